//! A tokio program that counts its own tasks: `tokio_tasks RUNTIME MODE [MIB]`, RUNTIME `multi` or `current`, MIB how much memory
//! it uses besides.
//!
//! - `still`: tasks that wait for a message, for time and for a task, one that is cancelled and one that is finished with their handles
//!   kept; a job of the blocking pool, and memory that held tasks once.
//! - `churn`: besides, tasks that end at once are started all the time.
//! - `blocked`: every worker is in the middle of a task that locks a mutex, and seven tasks are ready to run.
//!
//! To the line `count` it answers with one of JSON: how many of them are alive as the runtime says (`alive`), and what it
//! knows itself of each type. Built by the tests with several versions of tokio, in a package of its own.

use std::future::Future;
use std::io::{BufRead, Write};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const RECEIVERS: usize = 23;
const SLEEPERS: usize = 9;
const WORKERS: usize = 3;
const READY: usize = 7;

static LOCKED: Mutex<()> = Mutex::new(());
static BLOCKED: AtomicUsize = AtomicUsize::new(0);

async fn receive(mut from: mpsc::Receiver<u64>, ballast: [u64; 40]) -> u64 {
    let got = from.recv().await.unwrap_or(0);
    got + ballast.iter().sum::<u64>()
}

async fn sleep_long() {
    tokio::time::sleep(Duration::from_secs(3600)).await;
}

async fn wait_for(other: JoinHandle<u64>) -> u64 {
    other.await.unwrap_or(0)
}

async fn finish(with: u64) -> u64 {
    tokio::task::yield_now().await;
    with
}

async fn brief(turns: u64) {
    for _ in 0..turns {
        tokio::task::yield_now().await;
    }
}

/// A future that is aligned like a cache line: its id is further from the begin of the task.
#[repr(align(128))]
struct Aligned([u8; 300]);

impl Future for Aligned {
    type Output = u8;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<u8> {
        match self.0[0] {
            0 => Poll::Pending,
            byte => Poll::Ready(byte),
        }
    }
}

#[inline(never)]
fn lock_it() {
    BLOCKED.fetch_add(1, Ordering::SeqCst);
    drop(LOCKED.lock());
}

async fn block_worker() {
    tokio::task::yield_now().await;
    lock_it();
}

async fn ready() {
    std::hint::black_box(1);
}

/// Runs until this returns something.
fn until(mut done: impl FnMut() -> bool) {
    while !done() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn churn(handle: &Handle) {
    let handle = handle.clone();
    std::thread::spawn(move || {
        for round in 0.. {
            let started: Vec<JoinHandle<()>> = (0..20).map(|turns| handle.spawn(brief(turns + round % 2))).collect();
            until(|| started.iter().all(JoinHandle::is_finished));
        }
    });
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (runtime, mode) = (arguments.next().unwrap_or_default(), arguments.next().unwrap_or_default());
    let (handle, workers) = match runtime.as_str() {
        "current" => {
            let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
            let handle = runtime.handle().clone();
            std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
            (handle, 1)
        }
        _ => {
            let runtime = Builder::new_multi_thread().worker_threads(WORKERS).enable_time().build().expect("a runtime");
            let runtime: &'static Runtime = Box::leak(Box::new(runtime));
            (runtime.handle().clone(), WORKERS)
        }
    };
    let mut kept: Vec<Box<dyn std::any::Any>> = Vec::new();
    let ballast: usize = arguments.next().and_then(|mib| mib.parse().ok()).unwrap_or(0);
    kept.push(Box::new(vec![0x55_u8; ballast << 20]));
    let mut senders = Vec::new();
    let mut receivers = Vec::new();
    for number in 0..RECEIVERS {
        let (sender, receiver) = mpsc::channel(1);
        senders.push(sender);
        receivers.push(handle.spawn(receive(receiver, [number as u64; 40])));
    }
    let waited_for = receivers.pop().expect("receivers");
    let waiter = handle.spawn(wait_for(waited_for));
    for _ in 0..SLEEPERS {
        // Nobody keeps the handle.
        drop(handle.spawn(sleep_long()));
    }
    let aligned = handle.spawn(Aligned([0; 300]));
    // Many that are gone.
    let gone: Vec<JoinHandle<u64>> = (0..500).map(|with| handle.spawn(finish(with))).collect();
    until(|| gone.iter().all(JoinHandle::is_finished));
    drop(gone);
    let finished = handle.spawn(finish(7));
    let cancelled = handle.spawn(sleep_long());
    cancelled.abort();
    until(|| finished.is_finished() && cancelled.is_finished());
    let (done, wait) = std::sync::mpsc::channel::<()>();
    drop(handle.spawn_blocking(move || wait.recv()));
    let mut extra = (0, 0);
    let _guard = LOCKED.lock();
    match mode.as_str() {
        "churn" => churn(&handle),
        "blocked" => {
            for _ in 0..workers {
                drop(handle.spawn(block_worker()));
            }
            until(|| BLOCKED.load(Ordering::SeqCst) == workers);
            for _ in 0..READY {
                drop(handle.spawn(ready()));
            }
            extra = (workers, READY);
        }
        _ => {}
    }
    kept.push(Box::new((senders, receivers, waiter, aligned, finished, cancelled, done)));
    // What is told apart by its own count.
    let handle = Arc::new(handle);
    let tell = || {
        let alive = handle.metrics().num_alive_tasks();
        let mut out = std::io::stdout();
        writeln!(
            out,
            "{{\"alive\": {alive}, \"complete\": 2, \"receive\": {RECEIVERS}, \"sleep_long\": {SLEEPERS}, \"wait_for\": 1, \"Aligned\": 1, \"block_worker\": {}, \"ready\": {}}}",
            extra.0, extra.1
        )
        .and_then(|()| out.flush())
        .expect("stdout");
    };
    tell();
    for line in std::io::stdin().lock().lines() {
        if line.is_ok_and(|line| line == "count") {
            tell();
        }
    }
    drop(kept);
}
