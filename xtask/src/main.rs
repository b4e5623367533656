//! Builds, runs, tests and measures observer: `cargo xtask help`.

mod bench;
mod corpus;
mod dist;
pub mod ebpf;
mod fuzz;
mod invoke;
mod licences;
mod manifests;
mod run;
mod setup;
mod signals;
mod started;
mod test;
mod test_output;
mod tidy;
mod tools;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::{Result, bail};

const HELP: &str = "\
cargo xtask run                        see observer find a real deadlock: builds it, starts a victim, attaches
cargo xtask run -- ARGS                builds observer and runs `observer ARGS` (as root)
cargo xtask test [FILTER…]             everything a change must pass; with FILTER only the tests whose name contains it
cargo xtask tidy                       the rules of this code base, and licences of what it depends on
cargo xtask ebpf [--check]             renews the eBPF object; --check fails when it differs from its sources
cargo xtask signals                    renews docs/signals.md (a unit test fails when it is stale)
cargo xtask configuration              renews docs/configuration.md and deploy/observer.toml
cargo xtask fuzz [TARGET…] [--runs N] [--seconds S]
                                       the parsers of what a target provides, fed by libFuzzer
cargo xtask corpus locks [--seed N] [--count N] [--library NAME] [--healthy]
                                       random lock programs that log their own truth: how often inferred holders are right
cargo xtask bench census [--quick]     what a census costs, against the same through /proc
cargo xtask bench stacks [--quick]     what the stacks of a process cost, against gdb and eu-stack
cargo xtask bench goroutines [--quick] what a census of 10,000 and 100,000 goroutines costs, against the program's own profile
cargo xtask bench sockets [--quick]    what a listing of 20,000 stream sockets costs, against ss and /proc/net/tcp
cargo xtask bench convoy [--quick]     how soon a convoy of threads behind one lock is explained
cargo xtask bench daemon [--quick]     what the daemon costs a node of 10,000 threads and 5,000 sockets
cargo xtask bench tax [--quick]        what observed programs pay, against bpftrace, perf trace and strace
cargo xtask bench app [--quick]        what Redis and PostgreSQL pay for the daemon
cargo xtask vm [--kernel 5.10|6.1|6.12|7.2|all] [--write] [-- TEST…]
                                       observer on Debian's kernels in QEMU (fetches them; minutes for each): each rung, the
                                       end-to-end tests (or those named like TEST), what the verifier pays; --write records
                                       it in docs/kernel-support.toml and renews docs/kernel-support.md
cargo xtask vm --page                  renews docs/kernel-support.md from what is recorded
cargo xtask dist [--quick]             the static binary, an archive, checksums, in target/dist (quick: less optimized)
cargo xtask manifests [--check]        renews deploy/kubernetes from the Helm chart; --check fails when it is stale
cargo xtask toolchain                  installs what tests and benches need and this machine lacks

Exit status: 0 done, 1 something was found or failed, 2 it could not be done here.
OBSERVER_BIN=PATH makes `run` and `bench` use that binary instead of building one.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    dispatch(&arguments).unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::from(2)
    })
}

fn dispatch(arguments: &[&str]) -> Result<ExitCode> {
    match arguments {
        [] | ["help" | "--help" | "-h"] => {
            println!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        ["run"] | ["run", "--"] => run::demonstrate(),
        ["run", "--", rest @ ..] | ["run", rest @ ..] => run::observer(rest),
        ["test", "--", filters @ ..] | ["test", filters @ ..] => test::run(filters),
        ["tidy"] => Ok(passed(tidy::run()? & licences::run()?)),
        ["ebpf"] => ebpf::run(false).map(|()| ExitCode::SUCCESS),
        ["ebpf", "--check"] => ebpf::run(true).map(|()| ExitCode::SUCCESS),
        ["signals"] => signals::run().map(|()| ExitCode::SUCCESS),
        ["configuration"] => configuration().map(|()| ExitCode::SUCCESS),
        ["fuzz", arguments @ ..] => fuzz::run(arguments).map(passed),
        ["bench", what, flags @ ..] if bench::NAMES.contains(what) => {
            let quick = match flags {
                [] => false,
                ["--quick"] => true,
                _ => bail!("bench takes only --quick, not {flags:?}"),
            };
            bench::run(what, quick).map(|()| ExitCode::SUCCESS)
        }
        ["corpus", "locks", flags @ ..] => corpus::locks(&corpus::Plan::parse(flags)?).map(passed),
        ["vm", flags @ ..] => vm::run(flags).map(passed),
        ["dist"] => dist::run(false).map(|()| ExitCode::SUCCESS),
        ["dist", "--quick"] => dist::run(true).map(|()| ExitCode::SUCCESS),
        ["manifests"] => manifests::run(false).map(passed),
        ["manifests", "--check"] => manifests::run(true).map(passed),
        // For the tests, which ask Helm themselves.
        ["manifests", "--python"] => {
            println!("{}", manifests::python()?.display());
            Ok(ExitCode::SUCCESS)
        }
        ["toolchain"] => setup::toolchain().map(|()| ExitCode::SUCCESS),
        _ => bail!("no such command: {}; see `cargo xtask help`", arguments.join(" ")),
    }
}

/// Renews what is made from the table of the daemon's settings.
fn configuration() -> Result<()> {
    let observer = || workspace::cargo(&["run", "--quiet", "--package", "observer", "--", "configuration"]);
    for (file, arguments) in [("docs/configuration.md", &[] as &[&str]), ("deploy/observer.toml", &["--example"])] {
        let text = invoke::capture(observer().args(arguments))?;
        let path = workspace::root().join(file);
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::write(&path, text)?;
    }
    Ok(())
}

fn passed(clean: bool) -> ExitCode {
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
