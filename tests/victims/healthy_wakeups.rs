//! Healthy programs of Rust whose futex words change all the time while somebody sleeps on them.
//!
//! `mutex`: eight threads, one lock, no rest. `rwlock`: readers come and go behind a long hold, several writers wait.
//! `condvar`: 16 sleepers, one of them is woken ten times a second. `barrier`: rounds of eight, ten a second.
//! `park`: a thread is parked and unparked without rest. `leftover`: two sleepers, one was woken.

use std::sync::{Arc, Barrier, Condvar, Mutex, RwLock};
use std::thread;
use std::time::Duration;

const TICK: Duration = Duration::from_millis(100);

fn start(name: &str, body: impl FnMut() + Send + 'static) -> thread::JoinHandle<()> {
    let mut body = body;
    let forever = move || loop {
        body();
    };
    thread::Builder::new().name(name.to_owned()).spawn(forever).unwrap()
}

fn mutex() {
    let lock = Arc::new(Mutex::new(0_u64));
    for _ in 0..8 {
        let lock = Arc::clone(&lock);
        start("worker", move || {
            let mut count = lock.lock().unwrap();
            for _ in 0..200 {
                *count = std::hint::black_box(*count + 1);
            }
        });
    }
}

fn rwlock() {
    let table = Arc::new(RwLock::new(0_u64));
    for n in 0..6_u64 {
        let table = Arc::clone(&table);
        start("reader", move || {
            let seen = table.read().unwrap();
            // One of them stays for long: writers queue up behind it.
            thread::sleep(if n == 0 { Duration::from_millis(700) } else { Duration::from_millis(3 + *seen % 2) });
        });
    }
    for _ in 0..4 {
        let table = Arc::clone(&table);
        start("writer", move || {
            *table.write().unwrap() += 1;
            thread::sleep(Duration::from_millis(5));
        });
    }
}

fn condvar() {
    let pair = Arc::new((Mutex::new(0_u64), Condvar::new()));
    for _ in 0..16 {
        let pair = Arc::clone(&pair);
        start("sleeper", move || {
            let mut tokens = pair.0.lock().unwrap();
            while *tokens == 0 {
                tokens = pair.1.wait(tokens).unwrap();
            }
            *tokens -= 1;
        });
    }
    start("notifier", move || {
        thread::sleep(TICK);
        *pair.0.lock().unwrap() += 1;
        pair.1.notify_one();
    });
}

/// Woken once, and never again: the sequence counter has moved under the sleeper that is left.
fn leftover() {
    let pair = Arc::new((Mutex::new(0_u64), Condvar::new()));
    for _ in 0..2 {
        let pair = Arc::clone(&pair);
        thread::spawn(move || {
            let mut tokens = pair.0.lock().unwrap();
            while *tokens == 0 {
                tokens = pair.1.wait(tokens).unwrap();
            }
            *tokens -= 1;
        });
    }
    thread::sleep(TICK);
    *pair.0.lock().unwrap() += 1;
    pair.1.notify_one();
    std::mem::forget(pair);
}

fn barrier() {
    let barrier = Arc::new(Barrier::new(8));
    for n in 0..8 {
        let barrier = Arc::clone(&barrier);
        start("walker", move || {
            if n == 0 {
                thread::sleep(TICK);
            }
            barrier.wait();
        });
    }
}

fn park() {
    let parked = start("parked", thread::park);
    start("unparker", move || {
        parked.thread().unpark();
        thread::sleep(Duration::from_micros(200));
    });
}

fn main() {
    let modes: [(&str, fn()); 6] = [
        ("mutex", mutex),
        ("rwlock", rwlock),
        ("condvar", condvar),
        ("leftover", leftover),
        ("barrier", barrier),
        ("park", park),
    ];
    let mode = std::env::args().nth(1).unwrap_or_default();
    modes.iter().find(|(name, _)| *name == mode).expect("a mode").1();
    println!("ready");
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
}
