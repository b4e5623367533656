//! C and C++: the C library, the C++ library, event loops.

use super::Means::{Bare, Call, Wait};
use super::*;
use crate::model::wait::ResourceKind::{Mutex, Rwlock};

pub(super) const GROUPS: &[Group] = &[
    Group {
        runtime: "glibc",
        known: Known::Measured("glibc 2.36"),
        rows: &[
            ("syscall", Bare),
            ("__futex_abstimed_wait_common*", Bare),
            ("pthread_cond_wait", Wait),
            ("pthread_cond_timedwait", Wait),
            ("pthread_cond_clockwait", Wait),
            ("pthread_barrier_wait", Wait),
            ("__new_sem_wait_slow*", Wait),
            ("__lll_lock_wait*", elsewhere(Mutex, "lll_lock")),
            ("pthread_mutex_lock", at(Mutex, "pthread mutex", 0)),
            ("__pthread_mutex_lock_full", at(Mutex, "pthread mutex", 0)),
            ("__pthread_mutex_clocklock_common", at(Mutex, "pthread mutex", 0)),
            ("pthread_rwlock_rdlock", elsewhere(Rwlock, "pthread rwlock")),
            ("pthread_rwlock_wrlock", elsewhere(Rwlock, "pthread rwlock")),
            ("__pthread_once_slow", once("pthread_once", None)),
            ("__pthread_clockjoin_ex", JOIN),
            ("clock_nanosleep", SLEEP),
            ("wait4", CHILD),
            ("select", Call),
            ("poll", Call),
            ("epoll_wait", Call),
            ("epoll_pwait", Call),
            ("read", Call),
            ("recv", Call),
            ("accept", Call),
            ("accept4", Call),
            ("open", Call),
            ("flock", Call),
            ("__sigsuspend", Call),
        ],
    },
    Group {
        runtime: "glibc",
        known: Known::Source("glibc 2.36"),
        rows: &[
            ("__pthread_mutex_cond_lock", at(Mutex, "pthread mutex", 0)),
            ("pthread_mutex_timedlock", at(Mutex, "pthread mutex", 0)),
            ("pthread_mutex_clocklock", at(Mutex, "pthread mutex", 0)),
            ("pthread_rwlock_timedrdlock", elsewhere(Rwlock, "pthread rwlock")),
            ("pthread_rwlock_timedwrlock", elsewhere(Rwlock, "pthread rwlock")),
            ("sem_wait", Wait),
            ("sem_timedwait", Wait),
            ("pthread_join", JOIN),
            ("nanosleep", SLEEP),
            ("waitid", CHILD),
            ("waitpid", CHILD),
            ("ppoll", Call),
            ("pselect", Call),
            ("write", Call),
            ("send", Call),
            ("recvfrom", Call),
            ("recvmsg", Call),
            ("sendmsg", Call),
            ("connect", Call),
            // Name lookups wait in poll() for a server that may never answer.
            ("__res_context_send", IO),
        ],
    },
    Group {
        runtime: "c++",
        known: Known::Measured("libstdc++ 12"),
        rows: &[
            ("__atomic_futex_unsigned_base::_M_futex_wait_until*", Wait),
            ("__detail::__platform_wait", Wait),
            ("std::__atomic_wait_address*", Wait),
            ("__cxa_guard_acquire", elsewhere(Mutex, "guard of a static variable")),
        ],
    },
    Group {
        runtime: "c++",
        known: Known::Source("libstdc++ 12, libc++ 17"),
        rows: &[
            ("condition_variable::wait", Wait),
            ("condition_variable::__do_timed_wait", Wait),
            ("std::thread::join", JOIN),
            ("shared_timed_mutex::lock*", elsewhere(Rwlock, "shared_timed_mutex")),
        ],
    },
    Group {
        runtime: "libuv",
        known: Known::Measured("node 20.20 (libuv 1.46)"),
        rows: &[
            // The function of the pool's threads has no better name.
            ("uv_cond_wait < worker", IDLE),
            ("uv__io_poll", Call),
            ("uv_run", LOOP),
            ("uv__fs_work", JOB),
        ],
    },
    Group {
        runtime: "libuv",
        known: Known::Source("libuv 1.46"),
        rows: &[("uv_cond_wait", Wait), ("uv_cond_timedwait", Wait), ("uv_sem_wait", Wait)],
    },
    Group {
        runtime: "glib",
        known: Known::Source("glib 2.74"),
        rows: &[
            ("g_poll", Call),
            ("g_main_context_poll*", Call),
            ("g_main_context_iterate*", Call),
            ("g_main_loop_run", LOOP),
            ("g_main_context_iteration", LOOP),
            ("g_mutex_lock_slowpath", at(Mutex, "GMutex", 0)),
            ("g_cond_wait", Wait),
            ("g_cond_wait_until", Wait),
            ("g_async_queue_pop*", Wait),
            ("g_thread_pool_thread_proxy", Means::Pool),
        ],
    },
    Group {
        runtime: "libevent",
        known: Known::Source("libevent 2.1"),
        rows: &[("epoll_dispatch", Call), ("poll_dispatch", Call), ("event_base_loop", LOOP)],
    },
    Group {
        runtime: "asio",
        known: Known::Source("Boost.Asio 1.74"),
        rows: &[
            ("asio::detail::epoll_reactor::run", Call),
            ("asio::detail::posix_event::wait*", Wait),
            // Its threads are a pool, too: handlers may block.
            ("asio::detail::scheduler::do_run_one", Means::Pool),
            ("asio::detail::scheduler::run", Means::Pool),
        ],
    },
    Group {
        runtime: "grpc",
        known: Known::Source("gRPC C++ 1.51"),
        rows: &[
            ("pollset_work", Call),
            ("grpc_pollset_work", Call),
            ("gpr_cv_wait", Wait),
            ("cq_next", Means::Pool),
            ("grpc_completion_queue_next", Means::Pool),
            ("grpc_core::TimerManager::*", Means::Pool),
        ],
    },
];
