//! A tokio runtime with a task that blocks its worker on a std mutex and one on parking_lot's, other workers idle, and
//! a thread of the blocking pool that waits. `cargo` builds it, so that the lock file says which tokio.

#![expect(clippy::unwrap_used, reason = "a victim that cannot reach its state dies aloud")]

mod seats;

use std::hint::black_box;
use std::sync::Mutex;

static STD: Mutex<u64> = Mutex::new(0);
static PARKING_LOT: parking_lot::Mutex<u64> = parking_lot::Mutex::new(0);
static NEVER: (Mutex<bool>, std::sync::Condvar) = (Mutex::new(false), std::sync::Condvar::new());

#[inline(never)]
fn lock_std() -> u64 {
    seats::take("std");
    black_box(*STD.lock().unwrap())
}

#[inline(never)]
fn lock_parking_lot() -> u64 {
    seats::take("parking_lot");
    black_box(*PARKING_LOT.lock())
}

#[inline(never)]
fn wait_in_pool() -> bool {
    seats::take("pool");
    let mut done = NEVER.0.lock().unwrap();
    while !*done {
        done = NEVER.1.wait(done).unwrap();
    }
    black_box(*done)
}

async fn handle_std() -> u64 {
    tokio::task::yield_now().await;
    lock_std()
}

async fn handle_parking_lot() -> u64 {
    tokio::task::yield_now().await;
    lock_parking_lot()
}

fn main() {
    let held = (STD.lock().unwrap(), PARKING_LOT.lock());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
    drop(runtime.spawn(handle_std()));
    drop(runtime.spawn(handle_parking_lot()));
    drop(runtime.spawn_blocking(wait_in_pool));
    seats::tell("tokio", 3);
    black_box(&held);
    seats::stay();
}
