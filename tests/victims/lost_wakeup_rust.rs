//! Threads of Rust whose wake-up got lost: `park` (the token is set, nobody wakes the thread) or `mutex` (the lock becomes
//! free without a wake-up). The word is found where the kernel keeps it: in the arguments of the system call.

mod seats;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use std::{fs, thread};

static LOCK: Mutex<u32> = Mutex::new(0);

/// The futex word that the thread of this name sleeps on.
fn word_of(name: &str) -> Option<&'static AtomicU32> {
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name) {
            let call = fs::read_to_string(path.join("syscall")).unwrap();
            let mut fields = call.split(' ');
            let address = fields.nth(1).filter(|_| call.starts_with("202 "))?;
            let address = usize::from_str_radix(address.trim_start_matches("0x"), 16).unwrap();
            // SAFETY: the thread sleeps on it, and what holds it (the thread's own handle, a static) stays.
            return Some(unsafe { &*(address as *const AtomicU32) });
        }
    }
    None
}

fn main() {
    let mode = std::env::args().nth(1).unwrap_or_default();
    let guard = LOCK.lock().unwrap();
    let sleeps: fn() = match mode.as_str() {
        "park" => || {
            seats::take("waiter");
            thread::park();
        },
        "mutex" => || {
            seats::take("waiter");
            *LOCK.lock().unwrap() += 1;
        },
        _ => panic!("park or mutex"),
    };
    thread::Builder::new().name("waiter".to_owned()).spawn(sleeps).unwrap();
    let word = loop {
        if let Some(word) = word_of("waiter") {
            // Taking a seat is a lock, too.
            thread::park_timeout(Duration::from_millis(20));
            if word_of("waiter").is_some_and(|again| std::ptr::eq(again, word)) {
                break word;
            }
        }
        thread::park_timeout(Duration::from_millis(2));
    };
    let (before, after) = if mode == "park" { (u32::MAX, 1) } else { (2, 0) };
    assert_eq!(word.swap(after, Ordering::SeqCst), before, "not the word that was meant");
    std::mem::forget(guard);
    seats::tell(&mode, 1);
    seats::stay();
}
