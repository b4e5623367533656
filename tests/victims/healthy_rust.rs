//! A healthy idle Rust program: std threads parked, on a channel, a condition variable and a barrier.
//! Built with rustc by the healthy tests; prints one line when all threads have started.

use std::sync::{Barrier, Condvar, Mutex, mpsc};
use std::thread;

static STARTED: Barrier = Barrier::new(4);

fn main() {
    let (sender, receiver) = mpsc::channel::<u32>();
    thread::spawn(move || {
        STARTED.wait();
        receiver.recv()
    });
    thread::spawn(|| {
        STARTED.wait();
        loop {
            thread::park();
        }
    });
    thread::spawn(|| {
        let (lock, news) = (Mutex::new(false), Condvar::new());
        STARTED.wait();
        drop(news.wait_while(lock.lock().unwrap(), |seen| !*seen));
    });
    STARTED.wait();
    println!("ready");
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
    drop(sender);
}
