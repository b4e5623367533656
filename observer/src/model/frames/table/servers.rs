//! Servers with loops and locks of their own.

use super::Means::{Call, Pool, Wait};
use super::*;
use crate::model::wait::ResourceKind::{Mutex, Other};

pub(super) const GROUPS: &[Group] = &[
    Group {
        runtime: "postgresql",
        known: Known::Measured("PostgreSQL 15"),
        rows: &[
            ("WaitEventSetWait", Call),
            ("WaitLatch", Call),
            ("ProcSleep", elsewhere(Other, "PostgreSQL lock")),
            // The client's next request: whoever is in a transaction keeps its locks meanwhile.
            ("secure_read", IO),
            ("pg_sleep", SLEEP),
            ("CheckpointerMain", IDLE),
            ("BackgroundWriterMain", IDLE),
            ("WalWriterMain", IDLE),
            ("StartAutoVacLauncher", IDLE),
            ("ApplyLauncherMain", IDLE),
            // Backends are forked from the postmaster's loop: what is outside of this is how they were started.
            ("PostgresMain", Means::End),
            ("AuxiliaryProcessMain", Means::End),
            ("StartBackgroundWorker", Means::End),
            ("PostmasterMain", LOOP),
        ],
    },
    Group {
        runtime: "postgresql",
        known: Known::Source("PostgreSQL 15"),
        rows: &[
            ("PGSemaphoreLock", Wait),
            ("StartAutoVacWorker", Means::End),
            ("LWLockAcquire", elsewhere(Mutex, "PostgreSQL LWLock")),
            ("LWLockAcquireOrWait", elsewhere(Mutex, "PostgreSQL LWLock")),
        ],
    },
    Group {
        runtime: "nginx",
        known: Known::Measured("nginx 1.22"),
        rows: &[("ngx_process_events_and_timers", LOOP), ("ngx_master_process_cycle", LOOP)],
    },
    Group {
        runtime: "redis",
        known: Known::Measured("Redis 7.0"),
        rows: &[("aeMain", LOOP), ("bioProcessBackgroundJobs", Pool)],
    },
    Group { runtime: "redis", known: Known::Source("Redis 7.0"), rows: &[("aeProcessEvents", LOOP)] },
    Group {
        runtime: "apache",
        known: Known::Source("APR 1.7, httpd 2.4"),
        rows: &[
            // With several listeners, whoever has the accept mutex waits here.
            ("apr_pollset_poll", LEADERS_LOOP),
        ],
    },
    Group {
        runtime: "uwsgi",
        known: Known::Source("uWSGI 2.0"),
        rows: &[("event_queue_wait", Call), ("event_queue_wait_multi", Call), ("wsgi_req_accept", LEADERS_LOOP)],
    },
    Group {
        runtime: "mysql",
        known: Known::Source("MySQL 5.7 to 8.0"),
        rows: &[
            ("os_event::wait", Wait),
            ("os_event::wait_low", Wait),
            ("os_event::timed_wait", Wait),
            ("os_event::wait_time_low", Wait),
            ("os_event_wait_time_low", Wait),
            ("lock_wait_suspend_thread", elsewhere(Other, "InnoDB lock")),
            ("sync_array_wait_event", elsewhere(Mutex, "InnoDB mutex")),
            ("srv_worker_thread", IDLE),
            ("buf_flush_page_cleaner_worker", IDLE),
            ("MDL_wait::timed_wait", elsewhere(Other, "metadata lock")),
        ],
    },
    Group {
        runtime: "envoy",
        known: Known::Source("Envoy 1.28"),
        rows: &[("Envoy::Event::DispatcherImpl::run", LOOP), ("Envoy::Event::LibeventScheduler::run", LOOP)],
    },
];
