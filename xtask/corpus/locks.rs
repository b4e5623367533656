//! A random lock program that logs its own truth, for `cargo xtask corpus locks`.
//!
//!   locks SEED mutex|rwlock|parking-mutex|parking-rwlock|once [healthy]
//!
//! Two to eight threads, two to six locks. Each thread takes two or three locks in an order of its own, again and again, by one of
//! several shapes of code; some stop for good with all their locks in hand. After two seconds it prints, on one line of JSON, who
//! holds what and who waits for what, of the threads that have not moved for half a second; then it stays until its input ends.
//!
//! `once`: cells that are initialised once and need each other, in place of locks; who initialises one holds it. `healthy`: all
//! threads take their locks in one order and none stops; cells need only those behind them.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, RwLock, RwLockWriteGuard};
use std::thread;
use std::time::Duration;

const THREADS: usize = 8;
const DEPTH: usize = 3;
/// Cells that a thread can be initialising at the same time.
const HELD: usize = 8;

/// What a thread waits for, what it holds, and how often it has moved.
struct Seat {
    tid: AtomicU64,
    waits: AtomicU64,
    holds: [AtomicU64; HELD],
    moves: AtomicU64,
}

static SEATS: [Seat; THREADS] = [const {
    Seat {
        tid: AtomicU64::new(0),
        waits: AtomicU64::new(0),
        holds: [const { AtomicU64::new(0) }; HELD],
        moves: AtomicU64::new(0),
    }
}; THREADS];

trait Lock: Default + Send + Sync + 'static {
    type Guard<'a>;
    fn take(&self) -> Self::Guard<'_>;
}

impl Lock for Mutex<u64> {
    type Guard<'a> = MutexGuard<'a, u64>;
    #[inline(always)]
    fn take(&self) -> MutexGuard<'_, u64> {
        self.lock().unwrap()
    }
}

impl Lock for RwLock<u64> {
    type Guard<'a> = RwLockWriteGuard<'a, u64>;
    #[inline(always)]
    fn take(&self) -> RwLockWriteGuard<'_, u64> {
        self.write().unwrap()
    }
}

impl Lock for parking_lot::Mutex<u64> {
    type Guard<'a> = parking_lot::MutexGuard<'a, u64>;
    #[inline(always)]
    fn take(&self) -> parking_lot::MutexGuard<'_, u64> {
        self.lock()
    }
}

impl Lock for parking_lot::RwLock<u64> {
    type Guard<'a> = parking_lot::RwLockWriteGuard<'a, u64>;
    #[inline(always)]
    fn take(&self) -> parking_lot::RwLockWriteGuard<'_, u64> {
        self.write()
    }
}

#[derive(Clone, Copy)]
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % below
    }
}

fn address<L>(lock: &L) -> u64 {
    std::ptr::from_ref(lock) as u64
}

#[inline(always)]
fn locked<'a, L: Lock>(seat: &Seat, lock: &'a L, depth: usize) -> L::Guard<'a> {
    seat.waits.store(address(lock), SeqCst);
    let guard = lock.take();
    seat.holds[depth].store(address(lock), SeqCst);
    seat.waits.store(0, SeqCst);
    seat.moves.fetch_add(1, SeqCst);
    guard
}

/// Work with everything in hand: short, or for ever.
fn work(seat: &Seat, micros: u64, for_ever: bool) {
    if for_ever {
        thread::sleep(Duration::from_secs(3600));
    }
    thread::sleep(Duration::from_micros(micros));
    for hold in &seat.holds {
        hold.store(0, SeqCst);
    }
}

/// Each lock in a function of its own.
#[inline(never)]
fn nested<L: Lock>(seat: &Seat, locks: &[L], order: &[usize], depth: usize, micros: u64, for_ever: bool) -> u64 {
    let Some((first, rest)) = order.split_first() else {
        work(seat, micros, for_ever);
        return 1;
    };
    let guard = locked(seat, &locks[*first], depth);
    thread::sleep(Duration::from_micros(micros));
    let sum = nested(seat, locks, rest, depth + 1, micros, for_ever) + depth as u64;
    drop(black_box(guard));
    sum
}

/// All locks in one function.
#[inline(never)]
fn flat<L: Lock>(seat: &Seat, locks: &[L], order: &[usize], micros: u64, for_ever: bool) {
    let _one = locked(seat, &locks[order[0]], 0);
    thread::sleep(Duration::from_micros(micros));
    let _two = locked(seat, &locks[order[1]], 1);
    thread::sleep(Duration::from_micros(micros));
    let _three = order.get(2).map(|third| locked(seat, &locks[*third], 2));
    work(seat, micros, for_ever);
}

/// References to all of them on the stack from the start, guards on the heap.
#[inline(never)]
fn collected<L: Lock>(seat: &Seat, locks: &[L], order: &[usize], micros: u64, for_ever: bool) {
    let wanted: [Option<&L>; DEPTH] = black_box(std::array::from_fn(|n| order.get(n).map(|at| &locks[*at])));
    let mut guards = Vec::new();
    for (depth, lock) in wanted.iter().flatten().enumerate() {
        guards.push(locked(seat, *lock, depth));
        thread::sleep(Duration::from_micros(micros));
    }
    work(seat, micros, for_ever);
    drop(black_box(guards));
    black_box(wanted);
}

fn seated(number: usize) -> &'static Seat {
    let seat = &SEATS[number];
    let link = std::fs::read_link("/proc/thread-self").unwrap();
    seat.tid.store(link.file_name().unwrap().to_str().unwrap().parse().unwrap(), SeqCst);
    seat
}

fn live<L: Lock>(mut random: Random, number: usize, locks: Arc<Vec<L>>, healthy: bool) {
    let seat = seated(number);
    let mut order: Vec<usize> = (0..locks.len()).collect();
    for at in (1..order.len()).rev() {
        order.swap(at, random.next(at as u64 + 1) as usize);
    }
    order.truncate((2 + random.next(2) as usize).min(locks.len()));
    if healthy {
        order.sort_unstable();
    }
    let shape = random.next(3);
    let mut rounds_left = if random.next(4) == 0 && !healthy { 1 + random.next(50) } else { u64::MAX };
    loop {
        rounds_left -= 1;
        let (micros, for_ever) = (100 + random.next(3000), rounds_left == 0);
        match shape {
            0 => drop(nested(seat, &locks, &order, 0, micros, for_ever)),
            1 => flat(seat, &locks, &order, micros, for_ever),
            _ => collected(seat, &locks, &order, micros, for_ever),
        }
        thread::sleep(Duration::from_micros(random.next(2000)));
    }
}

/// A value made once, of others.
struct Cell {
    value: OnceLock<u64>,
    needs: Vec<usize>,
    /// How long its initialiser takes, milliseconds; 0 is for ever.
    takes: u64,
}

#[inline(never)]
fn value(seat: &Seat, cells: &[Cell], at: usize, depth: usize) -> u64 {
    let cell = &cells[at];
    seat.waits.store(address(&cell.value), SeqCst);
    let made = *cell.value.get_or_init(|| {
        seat.holds[depth].store(address(&cell.value), SeqCst);
        seat.waits.store(0, SeqCst);
        seat.moves.fetch_add(1, SeqCst);
        thread::sleep(Duration::from_millis(if cell.takes == 0 { 3_600_000 } else { cell.takes }));
        let made = cell.needs.iter().map(|next| value(seat, cells, *next, depth + 1)).sum::<u64>() + 1;
        seat.holds[depth].store(0, SeqCst);
        made
    });
    seat.waits.store(0, SeqCst);
    made
}

fn run_cells(mut random: Random, healthy: bool) {
    let threads = 2 + random.next(THREADS as u64 - 1) as usize;
    let count = 2 + random.next(5) as usize;
    let cells = (0..count).map(|at| {
        let needs = (0..random.next(3)).map(|_| random.next(count as u64) as usize);
        let needs = needs.filter(|next| !healthy || *next > at).collect();
        let takes = if random.next(8) == 0 && !healthy { 0 } else { 20 + random.next(200) };
        Cell { value: OnceLock::new(), needs, takes }
    });
    let cells: Arc<Vec<Cell>> = Arc::new(cells.collect());
    for number in 0..threads {
        let (first, cells) = (random.next(count as u64) as usize, Arc::clone(&cells));
        thread::spawn(move || {
            let made = value(seated(number), &cells, first, 0);
            thread::sleep(Duration::from_secs(3600 + made));
        });
    }
    report(threads);
}

fn run<L: Lock>(mut random: Random, healthy: bool) {
    let threads = 2 + random.next(THREADS as u64 - 1) as usize;
    let locks: Arc<Vec<L>> = Arc::new((0..2 + random.next(5)).map(|_| L::default()).collect());
    for number in 0..threads {
        let (random, locks) = (Random(random.next(u64::MAX - 1) + 1), Arc::clone(&locks));
        thread::spawn(move || live(random, number, locks, healthy));
    }
    report(threads);
}

/// Says what is true when nothing has moved for half a second, and stays.
fn report(threads: usize) {
    thread::sleep(Duration::from_millis(1500));
    let before: Vec<u64> = SEATS.iter().map(|seat| seat.moves.load(SeqCst)).collect();
    thread::sleep(Duration::from_millis(500));
    let mut seats = Vec::new();
    for (seat, moves) in SEATS.iter().zip(before).take(threads) {
        if seat.moves.load(SeqCst) == moves {
            let holds: Vec<String> = seat
                .holds
                .iter()
                .map(|hold| hold.load(SeqCst))
                .filter(|hold| *hold != 0)
                .map(|h| h.to_string())
                .collect();
            let (tid, waits) = (seat.tid.load(SeqCst), seat.waits.load(SeqCst));
            seats.push(format!("{{\"tid\":{tid},\"waits\":{waits},\"holds\":[{}]}}", holds.join(",")));
        }
    }
    println!("{{\"ready\":true,\"threads\":{threads},\"seats\":[{}]}}", seats.join(","));
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let seed: u64 = args[1].parse().unwrap();
    let healthy = args.get(3).is_some_and(|word| word == "healthy");
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for _ in 0..8 {
        random.next(2);
    }
    match args[2].as_str() {
        "mutex" => run::<Mutex<u64>>(random, healthy),
        "rwlock" => run::<RwLock<u64>>(random, healthy),
        "parking-mutex" => run::<parking_lot::Mutex<u64>>(random, healthy),
        "parking-rwlock" => run::<parking_lot::RwLock<u64>>(random, healthy),
        "once" => run_cells(random, healthy),
        other => panic!("{other}: no such lock"),
    }
}
