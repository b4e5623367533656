//! Two threads that take two locks in opposite order, whose locks name no owner; a third thread that uses a lock of its own,
//! and main, which made them all and keeps references. `std` or `rwlock` as argument. Prints one line when all is set up.

use std::sync::{Arc, Barrier, Mutex, RwLock};
use std::thread;
use std::time::Duration;

struct Books<L> {
    payments: L,
    ledger: L,
    idle: Mutex<u64>,
    both: Barrier,
}

#[inline(never)]
fn transfer(books: &Books<Mutex<u64>>, back: bool) -> u64 {
    let (first, second) = if back { (&books.ledger, &books.payments) } else { (&books.payments, &books.ledger) };
    let mut one = first.lock().unwrap();
    books.both.wait();
    let mut other = second.lock().unwrap();
    *one += 1;
    *other += *one;
    *other
}

#[inline(never)]
fn transfer_rw(books: &Books<RwLock<u64>>, back: bool) -> u64 {
    let (first, second) = if back { (&books.ledger, &books.payments) } else { (&books.payments, &books.ledger) };
    let mut one = first.write().unwrap();
    books.both.wait();
    let mut other = second.write().unwrap();
    *one += 1;
    *other += *one;
    *other
}

fn start<L: Default + Send + Sync + 'static>(work: fn(&Books<L>, bool) -> u64) {
    let books = Arc::new(Books { payments: L::default(), ledger: L::default(), idle: Mutex::new(0), both: Barrier::new(2) });
    for (name, back) in [("payments", false), ("ledger", true)] {
        let books = Arc::clone(&books);
        thread::Builder::new().name(name.to_owned()).spawn(move || work(&books, back)).unwrap();
    }
    let watched = Arc::clone(&books);
    let watch = move || {
        loop {
            let seen = *watched.idle.lock().unwrap();
            thread::sleep(Duration::from_secs(3600 + seen));
        }
    };
    thread::Builder::new().name("watch".to_owned()).spawn(watch).unwrap();
    println!("ready {:p} {:p}", &books.payments, &books.ledger);
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
}

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("std") => start::<Mutex<u64>>(transfer),
        Some("rwlock") => start::<RwLock<u64>>(transfer_rw),
        _ => panic!("std or rwlock"),
    }
}
