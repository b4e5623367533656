//! A healthy idle Rust program: std threads parked, on a channel, a condition variable and a barrier, and a pool whose
//! idle workers wait for the lock of their queue, which one of them holds while it waits for a job.
//! Built with rustc by the healthy tests; prints one line when all threads have started.

use std::sync::{Arc, Barrier, Condvar, Mutex, mpsc};
use std::thread;

static STARTED: Barrier = Barrier::new(7);

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
    let (jobs, queue) = mpsc::channel::<u32>();
    let queue = Arc::new(Mutex::new(queue));
    for _ in 0..3 {
        let queue = Arc::clone(&queue);
        thread::spawn(move || {
            STARTED.wait();
            while queue.lock().unwrap().recv().is_ok() {}
        });
    }
    STARTED.wait();
    println!("ready");
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
    drop((sender, jobs));
}
