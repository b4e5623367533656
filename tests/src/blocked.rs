//! The programs of the stack tests: how each is built, and the functions its threads are blocked in.

use crate::compile::Recipe;

/// A thread's name and its functions, innermost first, as a subsequence of its stack.
pub type Chain = (&'static str, &'static [&'static str]);

/// A program, how it is started, and what its stacks must show.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// How it is built.
    pub recipe: Recipe,
    /// Its arguments.
    pub args: &'static [&'static str],
    /// Threads by the names of the truth.
    pub chains: &'static [Chain],
    /// Whether its stacks can be walked to their root.
    pub root: bool,
    /// Whether gdb walks and names it well enough to be the truth.
    pub gdb: bool,
}

const CALLS: &[Chain] = &[
    ("reader", &["read", "blocked_here", "middle", "outer", "reader"]),
    ("locker", &["pthread_mutex_lock", "lock_here", "lock_middle", "lock_outer", "locker"]),
    ("waiter", &["pthread_cond_wait", "wait_here", "wait_outer", "waiter"]),
];

/// Of a program without unwinding information only its own functions are asked for.
const CALLS_WITHOUT_LIBRARY: &[Chain] = &[
    ("reader", &["blocked_here", "middle", "outer", "reader"]),
    ("locker", &["lock_here", "lock_middle", "lock_outer", "locker"]),
    ("waiter", &["wait_here", "wait_outer", "waiter"]),
];

const SIGNAL: &[Chain] =
    &[("signal", &["read", "blocked_here", "middle", "outer", "on_signal", "faults_here", "faults_outer", "faulter"])];

const fn c(program: &'static str, command: &'static [&'static str], args: &'static [&'static str]) -> Case {
    Case { recipe: Recipe { program, source: "blocked.c", command }, args, chains: CALLS, root: true, gdb: true }
}

const DEFAULT: &[&str] = &["gcc", "-O2", "-g", "-Wall", "-Wextra", "-pthread"];

/// Built without debug information: what the shipped program of a distribution is like, but for its symbols.
pub const PLAIN: Case = c("c_plain", &["gcc", "-O2", "-pthread"], &["calls"]);

/// The same program without symbols: its addresses are those of [`PLAIN`].
pub const STRIPPED: Case = c("c_stripped", &["gcc", "-O2", "-pthread", "-s"], &["calls"]);

/// C with glibc.
pub const C: &[Case] = &[
    PLAIN,
    c("c_debug", DEFAULT, &["calls"]),
    c("c_fp", &["gcc", "-O2", "-g", "-pthread", "-fno-omit-frame-pointer"], &["calls"]),
    c("c_nofp", &["gcc", "-O2", "-g", "-pthread", "-fomit-frame-pointer"], &["calls"]),
    c("c_nopie", &["gcc", "-O2", "-g", "-pthread", "-fno-pie", "-no-pie"], &["calls"]),
    c("c_static", &["gcc", "-O2", "-g", "-pthread", "-static"], &["calls"]),
    c("c_static_pie", &["gcc", "-O2", "-g", "-pthread", "-fPIE", "-static-pie"], &["calls"]),
    c("c_lld", &["gcc", "-O2", "-g", "-pthread", "-fuse-ld=lld"], &["calls"]),
    c("c_lld_nopie", &["gcc", "-O2", "-g", "-pthread", "-fuse-ld=lld", "-fno-pie", "-no-pie"], &["calls"]),
    Case { chains: SIGNAL, ..c("c_signal", DEFAULT, &["signal"]) },
    Case { chains: SIGNAL, ..c("c_altstack", DEFAULT, &["altstack"]) },
    Case {
        chains: &[
            ("small", &["read", "blocked_here", "outer", "small_frame", "large"]),
            ("big", &["read", "blocked_here", "outer", "big_frame", "large"]),
            ("alloca", &["read", "blocked_here", "outer", "alloca_frame", "large"]),
        ],
        ..c("c_large", DEFAULT, &["large"])
    },
];

/// Functions that the compiler put into another.
pub const INLINED: Case = Case {
    chains: &[("inlined", &["read", "blocked_here", "inlined_inner", "inlined_outer", "not_inlined", "inlined"])],
    ..c("c_inlined", DEFAULT, &["inlined"])
};

/// Ten thousand frames.
pub const DEEP: Case = Case {
    chains: &[("deep", &["read", "blocked_here", "recurse", "recurse"])],
    root: false,
    gdb: false,
    ..c("c_deep", DEFAULT, &["deep"])
};

/// With a library that it loads.
pub const WITH_LIBRARY: Case = Case {
    chains: &[(
        "library",
        &["read", "blocked_here", "called_back", "library_middle", "library_outer", "calls_library", "library"],
    )],
    ..c("c_library", &["gcc", "-O2", "-g", "-pthread", "-DWITH_LIBRARY"], &["library"])
};

/// That library.
pub const LIBRARY: Recipe = Recipe {
    program: "libblocked.so",
    source: "blocked_library.c",
    command: &["gcc", "-O2", "-g", "-shared", "-fPIC"],
};

const fn no_cfi(program: &'static str, command: &'static [&'static str]) -> Case {
    Case { chains: CALLS_WITHOUT_LIBRARY, root: false, gdb: false, ..c(program, command, &["calls"]) }
}

/// C whose program or C library says nothing about its frames: found by return addresses on the stack.
pub const WITHOUT_CFI: &[Case] = &[
    no_cfi(
        "c_nocfi",
        &[
            "gcc",
            "-O2",
            "-pthread",
            "-fomit-frame-pointer",
            "-fno-asynchronous-unwind-tables",
            "-fno-unwind-tables",
            "-fno-exceptions",
        ],
    ),
    no_cfi("musl_dynamic", &["musl-gcc", "-O2", "-pthread"]),
    no_cfi("musl_static", &["musl-gcc", "-O2", "-pthread", "-static"]),
    no_cfi("musl_nocfi", &["musl-gcc", "-O2", "-pthread", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables"]),
];

const fn cpp(program: &'static str, command: &'static [&'static str], chains: &'static [Chain]) -> Case {
    Case { recipe: Recipe { program, source: "blocked_cpp.cpp", command }, args: &[], chains, root: true, gdb: true }
}

/// C++; without debug information the inlined `std::mutex::lock` cannot be seen.
pub const CPP: &[Case] = &[
    cpp(
        "cpp_debug",
        &["g++", "-O2", "-g", "-Wall", "-pthread"],
        &[
            ("mutex", &["pthread_mutex_lock", "std::mutex::lock", "ledger::lock_book", "ledger::Book::post", "poster"]),
            ("lambda", &["read", "blocked_here", "_M_invoke", "run_all", "runner"]),
        ],
    ),
    cpp(
        "cpp_plain",
        &["g++", "-O2", "-pthread"],
        &[
            ("mutex", &["pthread_mutex_lock", "ledger::lock_book", "ledger::Book::post", "poster"]),
            ("lambda", &["read", "blocked_here", "_M_invoke", "run_all", "runner"]),
        ],
    ),
];

const RUST_CHAINS: &[Chain] = &[
    ("mutex", &["syscall", "Mutex::lock_contended", "lock_account", "transfer"]),
    ("condvar", &["syscall", "wait_for_news"]),
    ("recv", &["syscall", "recv", "next_job"]),
    ("park", &["syscall", "park", "park_here"]),
];

const fn rust(program: &'static str, command: &'static [&'static str]) -> Case {
    let recipe = Recipe { program, source: "blocked_rust.rs", command };
    Case { recipe, args: &[], chains: RUST_CHAINS, root: true, gdb: true }
}

/// Rust, optimised, with names.
pub const RUST: &[Case] = &[
    rust("rust_lines", &["rustc", "--edition", "2024", "-O", "-Cdebuginfo=line-tables-only"]),
    Case { gdb: false, ..rust("rust_plain", &["rustc", "--edition", "2024", "-O"]) },
    Case { gdb: false, ..rust("rust_v0", &["rustc", "--edition", "2024", "-O", "-Csymbol-mangling-version=v0"]) },
    Case {
        gdb: false,
        ..rust(
            "rust_legacy",
            // Stable rustc takes the old mangling only when told that it is none.
            &[
                "env",
                "RUSTC_BOOTSTRAP=1",
                "rustc",
                "--edition",
                "2024",
                "-O",
                "-Zunstable-options",
                "-Csymbol-mangling-version=legacy",
            ],
        )
    },
];

/// Rust without symbols.
pub const RUST_STRIPPED: Case = rust("rust_stripped", &["rustc", "--edition", "2024", "-O", "-Cstrip=symbols"]);

const GO_CHAIN: &[Chain] = &[(
    "main",
    &["syscall.Read", "main.blockedHere", "main.middle", "main.outer", "main.main", "runtime.main", "runtime.goexit"],
)];

const fn go(program: &'static str, command: &'static [&'static str]) -> Case {
    let recipe = Recipe { program, source: "blocked_go.go", command };
    Case { recipe, args: &[], chains: GO_CHAIN, root: true, gdb: false }
}

/// Go, with its symbol table and without: its function table is always there.
pub const GO: &[Case] = &[
    go("go_plain", &["env", "CGO_ENABLED=0", "GO111MODULE=off", "go", "build"]),
    go("go_stripped", &["env", "CGO_ENABLED=0", "GO111MODULE=off", "go", "build", "-ldflags=-s -w"]),
];
