//! Rust: the standard library, lock crates, executors.

use super::Means::{Bare, Call, Pool, Rests, Wait};
use super::*;
use crate::model::wait::ResourceKind::{Mutex, Rwlock};

pub(super) const GROUPS: &[Group] = &[
    Group {
        runtime: "tokio",
        known: Known::Measured("tokio 1.54"),
        rows: &[
            // Workers live in the blocking pool: what is outside of this is how they were started.
            ("multi_thread::worker::run", Means::End),
            ("worker::Context::run_task", TURN),
            ("current_thread::Context::run_task", TURN),
            // Hands the worker's other tasks to another thread first.
            ("worker::block_in_place", JOB),
            ("blocking::task::BlockingTask::poll", JOB),
            ("worker::Context::park_internal", IDLE),
            ("multi_thread::park::Inner::park_condvar", Rests),
            ("io::driver::Driver::turn", Rests),
            ("mio::poll::Poll::poll", Call),
            ("time::Driver::park_internal", Rests),
            ("current_thread::Context::park_internal", Rests),
            // Under block_on.
            ("runtime::park::Inner::park", Rests),
            ("blocking::pool::Inner::run", Pool),
        ],
    },
    Group {
        runtime: "tokio",
        known: Known::Source("tokio 1.54"),
        rows: &[
            ("multi_thread::park::Inner::park_driver", Rests),
            ("task::local::LocalSet::tick", TURN),
            ("sync::notify::Notified::poll_notified", Wait),
        ],
    },
    Group {
        runtime: "rust",
        known: Known::Measured("Rust 1.95, legacy and v0 names"),
        rows: &[
            ("mutex::futex::Mutex::lock_contended", guarded(Mutex, "std Mutex", 0)),
            // The word that readers and writers wait for is the state; of writers only, the one behind it.
            ("rwlock::futex::RwLock::read_contended", guarded(Rwlock, "std RwLock", 0)),
            ("rwlock::futex::RwLock::write_contended", guarded(Rwlock, "std RwLock", -4)),
            ("once::futex::Once::call", once("std Once", Place::Word(0))),
            ("condvar::futex::Condvar::wait", Wait),
            ("condvar::futex::Condvar::wait_optional_timeout", Wait),
            ("sync::barrier::Barrier::wait", Wait),
            ("thread::functions::park", Wait),
            ("thread::functions::park_timeout", Wait),
            ("thread::Thread::park", Wait),
            ("mpmc::list::Channel::recv", Wait),
            ("mpmc::zero::Channel::send", Wait),
            ("mpmc::array::Channel::send", Wait),
            ("unix::Thread::join", JOIN),
            ("thread::functions::sleep", SLEEP),
            ("unix::Process::wait", CHILD),
        ],
    },
    Group {
        runtime: "rust",
        known: Known::Source("Rust 1.75 to 1.95"),
        rows: &[
            ("once::futex::Once::wait", awaits_once("std Once")),
            ("mpmc::zero::Channel::recv", Wait),
            ("mpmc::array::Channel::recv", Wait),
            ("mpmc::context::Context::wait_until", Wait),
            ("thread::park", Wait),
            ("thread::park_timeout", Wait),
            ("thread::sleep", SLEEP),
        ],
    },
    Group {
        runtime: "parking_lot",
        known: Known::Measured("parking_lot 0.12"),
        rows: &[
            // Waiters sleep on words of their own.
            ("raw_mutex::RawMutex::lock_slow", parked(Mutex, "parking_lot Mutex")),
            ("raw_rwlock::RawRwLock::lock_shared_slow", parked(Rwlock, "parking_lot RwLock")),
            ("raw_rwlock::RawRwLock::lock_exclusive_slow", parked(Rwlock, "parking_lot RwLock")),
            ("raw_rwlock::RawRwLock::wait_for_readers", parked(Rwlock, "parking_lot RwLock")),
            ("parking_lot::once::Once::call_once_slow", once("parking_lot Once", Place::Parked)),
            ("parking_lot::condvar::Condvar::wait_until_internal", Wait),
        ],
    },
    Group {
        runtime: "parking_lot",
        known: Known::Source("parking_lot 0.12"),
        rows: &[
            ("parking_lot_core::parking_lot::park", Bare),
            ("raw_rwlock::RawRwLock::lock_upgradable_slow", parked(Rwlock, "parking_lot RwLock")),
            ("raw_rwlock::RawRwLock::upgrade_slow", parked(Rwlock, "parking_lot RwLock")),
        ],
    },
    Group {
        runtime: "crossbeam",
        known: Known::Measured("crossbeam-channel 0.5"),
        rows: &[
            ("flavors::list::Channel::recv", Wait),
            ("flavors::zero::Channel::send", Wait),
            ("crossbeam_channel::select::run_select", Wait),
        ],
    },
    Group {
        runtime: "crossbeam",
        known: Known::Source("crossbeam-channel 0.5"),
        rows: &[
            ("flavors::array::Channel::*", Wait),
            ("flavors::zero::Channel::recv", Wait),
            ("crossbeam_channel::context::Context::wait_until", Wait),
        ],
    },
    Group {
        runtime: "rayon",
        known: Known::Measured("rayon 1"),
        rows: &[
            ("rayon_core::sleep::Sleep::sleep", Wait),
            // Inside of a job: its other half is being worked on elsewhere.
            ("rayon_core::registry::WorkerThread::wait_until_cold", Rests),
            ("rayon_core::job::StackJob::execute", JOB),
            ("rayon_core::job::HeapJob::execute", JOB),
            ("rayon_core::latch::LockLatch::wait_and_reset", Wait),
        ],
    },
    Group {
        runtime: "smol",
        known: Known::Measured("smol 2, async-std 1, blocking 1.6"),
        rows: &[
            // Under block_on.
            ("parking::Inner::park", Rests),
            ("polling::epoll::Poller::wait_deadline", Call),
            ("polling::Poller::wait_impl", Call),
            ("polling::Poller::wait", Call),
            ("async_io::reactor::ReactorLock::react", Rests),
            ("blocking::Executor::main_loop", Pool),
        ],
    },
];
