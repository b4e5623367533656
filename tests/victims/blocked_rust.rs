//! Rust threads blocked at a known chain of functions: std's mutex, condition variable, channel and park.
//! Built by the stack tests with rustc: optimised, stripped, with both manglings, with line tables.

mod seats;

use std::hint::black_box;
use std::sync::{Condvar, Mutex, MutexGuard, mpsc};
use std::thread;

mod bank {
    use super::*;

    pub(crate) struct Account {
        pub(crate) balance: Mutex<u64>,
    }

    pub(crate) trait Lock {
        fn lock_account(&self) -> MutexGuard<'_, u64>;
    }

    impl Lock for Account {
        #[inline(never)]
        fn lock_account(&self) -> MutexGuard<'_, u64> {
            black_box(self.balance.lock().unwrap())
        }
    }

    #[inline(never)]
    pub(crate) fn transfer<L: Lock>(account: &L, amount: u64) -> u64 {
        let mut balance = account.lock_account();
        *balance += amount;
        black_box(*balance)
    }
}

#[inline(never)]
fn wait_for_news(news: &Condvar, seen: &Mutex<bool>) -> bool {
    let mut seen = seen.lock().unwrap();
    while !*seen {
        seen = news.wait(seen).unwrap();
    }
    black_box(*seen)
}

#[inline(never)]
fn next_job(jobs: &mpsc::Receiver<u64>) -> u64 {
    black_box(jobs.recv().unwrap()) + 1
}

#[inline(never)]
fn park_here() -> u64 {
    loop {
        thread::park();
        black_box(1);
    }
}

static ACCOUNT: bank::Account = bank::Account { balance: Mutex::new(1) };
static NEWS: (Condvar, Mutex<bool>) = (Condvar::new(), Mutex::new(false));

fn main() {
    let held = ACCOUNT.balance.lock().unwrap();
    let (sender, jobs) = mpsc::channel();
    thread::spawn(|| {
        seats::take("mutex");
        black_box(bank::transfer(&ACCOUNT, 3))
    });
    thread::spawn(|| {
        seats::take("condvar");
        black_box(wait_for_news(&NEWS.0, &NEWS.1))
    });
    thread::spawn(move || {
        seats::take("recv");
        black_box(next_job(&jobs))
    });
    thread::spawn(|| {
        seats::take("park");
        black_box(park_here())
    });
    seats::tell("rust", 4);
    black_box((&held, &sender));
    seats::stay();
}
