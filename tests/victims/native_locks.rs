//! Locks and initialisers that record no owner, each in a known state.
//!
//!   native_locks mutex|rwlock|reader|lazy|lazy-self|once-cell|busy|slow
//!
//! `mutex`, `rwlock`: two threads take two `parking_lot` locks in opposite order; `reader`: the second one is taken to read,
//! below a writer. `lazy`: two `LazyLock`s whose initialisers need each other, begun in two threads; `lazy-self`: one that needs
//! itself; `once-cell`: the same as `lazy` with `OnceLock`. Healthy: `busy`, four threads that take the same two locks in one order
//! all the time; `slow`: three threads wait for an initialiser that is done after four seconds. Prints `ready`, and the addresses.

use std::sync::{Arc, Barrier, LazyLock, OnceLock};
use std::thread;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

struct Books<L> {
    payments: L,
    ledger: L,
    both: Barrier,
}

#[inline(never)]
fn transfer(books: &Books<Mutex<u64>>, back: bool) -> u64 {
    let (first, second) = if back { (&books.ledger, &books.payments) } else { (&books.payments, &books.ledger) };
    let mut one = first.lock();
    books.both.wait();
    let mut other = second.lock();
    *one += 1;
    *other += *one;
    *other
}

#[inline(never)]
fn transfer_rw(books: &Books<RwLock<u64>>, back: bool) -> u64 {
    let (first, second) = if back { (&books.ledger, &books.payments) } else { (&books.payments, &books.ledger) };
    let mut one = first.write();
    books.both.wait();
    let mut other = second.write();
    *one += 1;
    *other += *one;
    *other
}

#[inline(never)]
fn transfer_and_read(books: &Books<RwLock<u64>>, back: bool) -> u64 {
    let (first, second) = if back { (&books.ledger, &books.payments) } else { (&books.payments, &books.ledger) };
    let mut one = first.write();
    books.both.wait();
    let other = second.read();
    *one += *other;
    *one
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) {
    let _ = thread::Builder::new().name(name.to_owned()).spawn(work);
}

fn books<L: Default + Send + Sync + 'static>(work: fn(&Books<L>, bool) -> u64) {
    let books = Arc::new(Books { payments: L::default(), ledger: L::default(), both: Barrier::new(2) });
    for (name, back) in [("payments", false), ("ledger", true)] {
        let books = Arc::clone(&books);
        spawn(name, move || {
            work(&books, back);
        });
    }
    println!("ready {:p} {:p}", &books.payments, &books.ledger);
    stay();
}

static BEGUN: LazyLock<Barrier> = LazyLock::new(|| Barrier::new(2));

static PRICES: LazyLock<u64> = LazyLock::new(|| {
    BEGUN.wait();
    *RATES + 1
});
static RATES: LazyLock<u64> = LazyLock::new(|| {
    BEGUN.wait();
    *PRICES + 1
});
static ITSELF: LazyLock<u64> = LazyLock::new(|| itself() + 1);
static SLOW: LazyLock<u64> = LazyLock::new(|| {
    thread::sleep(Duration::from_secs(4));
    7
});

#[inline(never)]
fn itself() -> u64 {
    *ITSELF
}

static CELLS: [OnceLock<u64>; 2] = [const { OnceLock::new() }; 2];

#[inline(never)]
fn cell(at: usize) -> u64 {
    let make = || {
        BEGUN.wait();
        *CELLS[1 - at].get_or_init(|| 1) + 1
    };
    *CELLS[at].get_or_init(make)
}

fn busy() {
    let locks: Arc<[Mutex<u64>; 2]> = Arc::default();
    for number in 0..4 {
        let locks = Arc::clone(&locks);
        spawn(&format!("busy{number}"), move || {
            loop {
                let mut one = locks[0].lock();
                let mut two = locks[1].lock();
                *one += 1;
                *two += *one;
                thread::sleep(Duration::from_micros(300));
            }
        });
    }
}

fn stay() {
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
}

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("mutex") => books::<Mutex<u64>>(transfer),
        Some("rwlock") => books::<RwLock<u64>>(transfer_rw),
        Some("reader") => books::<RwLock<u64>>(transfer_and_read),
        Some("lazy") => {
            spawn("prices", || {
                std::hint::black_box(*PRICES);
            });
            spawn("rates", || {
                std::hint::black_box(*RATES);
            });
        }
        Some("lazy-self") => spawn("itself", || {
            std::hint::black_box(itself());
        }),
        Some("once-cell") => {
            spawn("zero", || {
                std::hint::black_box(cell(0));
            });
            spawn("one", || {
                std::hint::black_box(cell(1));
            });
        }
        Some("busy") => busy(),
        Some("slow") => (0..3).for_each(|number| {
            spawn(&format!("slow{number}"), || {
                std::hint::black_box(*SLOW);
            })
        }),
        _ => std::process::exit(2),
    }
    println!("ready");
    stay();
}
