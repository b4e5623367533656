//! `cargo xtask vm`: observer on other kernels than this machine's.
//!
//! Debian's own kernels, fetched from its archive (20 to 60 MB each) and booted in QEMU: emulated, no KVM, no root, no
//! network in the guest, nothing but busybox, observer, victims and the end-to-end tests that make sense there. What came
//! of it is compared with `docs/kernel-support.toml`, and with `--write` becomes it and `docs/kernel-support.md`.

mod boot;
mod fetch;
pub(crate) mod image;
mod page;
mod plan;
mod record;
mod verdict;

use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::setup::{self, Purpose};
use crate::test_output::Tally;
use plan::Part;
use record::Record;
use verdict::Verdict;

/// Guests at a time: each is one CPU at its limit.
const AT_A_TIME: usize = 2;

/// A kernel of the matrix.
struct Kernel {
    /// Major and minor version.
    version: &'static str,
    /// Debian's suite that has it.
    suite: &'static str,
    /// Rungs that cannot work there.
    lacks: &'static [&'static str],
    /// Rungs that may miss what they are attached to.
    blind: &'static [&'static str],
}

/// Oldest first.
const KERNELS: &[Kernel] = &[
    // BTF of 5.10 has `struct pt_regs` of `__x64_sys_*` as a forward declaration, which fentry refuses.
    // A kretprobe holds one of few instances for each thread asleep in the call (as many as CPUs), and misses the others.
    Kernel { version: "5.10", suite: "bullseye", lacks: &["fentry"], blind: &["kprobe"] },
    Kernel { version: "6.1", suite: "bookworm", lacks: &[], blind: &[] },
    Kernel { version: "6.12", suite: "trixie", lacks: &[], blind: &[] },
    Kernel { version: "7.2", suite: "forky", lacks: &[], blind: &[] },
];

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
struct Asked<'a> {
    /// A version, or `all`.
    kernel: &'a str,
    write: bool,
    filters: &'a [&'a str],
}

impl<'a> Asked<'a> {
    fn parse(flags: &'a [&'a str]) -> Result<Self> {
        let mut asked = Self { kernel: "all", write: false, filters: &[] };
        let mut rest = flags;
        loop {
            rest = match rest {
                [] => break,
                ["--kernel", kernel, rest @ ..] => {
                    asked.kernel = kernel;
                    rest
                }
                ["--write", rest @ ..] => {
                    asked.write = true;
                    rest
                }
                ["--", filters @ ..] => {
                    asked.filters = filters;
                    break;
                }
                [other, ..] => {
                    bail!("vm takes --kernel VERSION|all, --write and -- TEST…, or --page alone, not {other}")
                }
            };
        }
        if asked.write && !asked.filters.is_empty() {
            bail!("--write records everything: leave out -- {}", asked.filters.join(" "));
        }
        Ok(asked)
    }

    fn kernels(&self) -> Result<Vec<&'static Kernel>> {
        let wanted: Vec<_> =
            KERNELS.iter().filter(|kernel| self.kernel == "all" || kernel.version == self.kernel).collect();
        if wanted.is_empty() {
            let known: Vec<_> = KERNELS.iter().map(|kernel| kernel.version).collect();
            bail!("no such kernel: --kernel takes all or one of {}", known.join(", "));
        }
        Ok(wanted)
    }
}

/// Boots the kernels asked for; true if all is well on each.
pub(crate) fn run(flags: &[&str]) -> Result<bool> {
    if flags == ["--page"] {
        return page::write(&Record::read()?).map(|()| true);
    }
    let asked = Asked::parse(flags)?;
    let kernels = asked.kernels()?;
    setup::prepare(Purpose::Tests)?;
    let verdicts = matrix(&kernels, asked.filters)?;
    let (verdicts, failed): (Vec<_>, Vec<_>) = verdicts.into_iter().partition(|(_, verdict)| verdict.is_ok());
    let verdicts: Vec<Verdict> = verdicts.into_iter().filter_map(|(_, verdict)| verdict.ok()).collect();
    let mut all_well = failed.is_empty();
    print!("{}", page::tables(&verdicts.iter().map(|verdict| &verdict.record).collect::<Vec<_>>()));
    for (kernel, why) in failed {
        if let Err(why) = why {
            println!("kernel {}: skipped: {why:#}", kernel.version);
        }
    }
    let recorded = Record::read()?;
    for verdict in &verdicts {
        print!("{verdict}");
        all_well &= verdict.wrong.is_empty();
        for line in verdict.record.dearer(&recorded) {
            println!("    dearer: {line}");
        }
    }
    if asked.write {
        let mut record = recorded;
        verdicts.into_iter().for_each(|verdict| record.put(verdict.record));
        record.write()?;
        page::write(&record)?;
    }
    Ok(all_well)
}

/// The same for `cargo xtask test`: each kernel is a check; one that cannot be fetched, and what a test in a guest skips,
/// is a skip.
pub(crate) fn check(tally: &mut Tally) -> Result<()> {
    let kernels: Vec<&Kernel> = KERNELS.iter().collect();
    let recorded = Record::read()?;
    let verdicts = matrix(&kernels, &[])?;
    let found: Vec<&record::KernelRecord> =
        verdicts.iter().filter_map(|(_, verdict)| Some(&verdict.as_ref().ok()?.record)).collect();
    print!("{}", page::tables(&found));
    for (kernel, verdict) in &verdicts {
        let name = format!("kernel_{}", kernel.version);
        match verdict {
            Err(why) => tally.skip(&name, &format!("{why:#}")),
            Ok(verdict) => {
                print!("{verdict}");
                for line in verdict.record.dearer(&recorded) {
                    println!("    dearer: {line}");
                }
                tally.check(verdict.wrong.is_empty());
                for (test, why) in verdict.record.skipped() {
                    tally.skip(&format!("{name}/{test}"), why);
                }
            }
        }
    }
    Ok(())
}

/// Goes through the plan on each kernel, two at a time. An error of one is that its kernel could not be fetched.
fn matrix(kernels: &[&'static Kernel], filters: &[&str]) -> Result<Vec<(&'static Kernel, Result<Verdict>)>> {
    let parts = plan::parts(filters);
    if !filters.is_empty() && !parts.iter().any(|part| matches!(part, Part::Test(..))) {
        bail!("no test is named like {filters:?}: those that run in guests are in xtask/src/vm/plan.rs");
    }
    let shared = image::build()?;
    let recorded = Record::read()?;
    // The oldest last: it takes the shortest.
    let waiting = Mutex::new(kernels.iter().copied().enumerate().rev());
    let done = Mutex::new(Vec::new());
    let outcome: Result<()> = std::thread::scope(|scope| {
        let work = || -> Result<()> {
            loop {
                let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((at, kernel)) = next else { return Ok(()) };
                let verdict = one(kernel, &shared, &parts, &recorded)?;
                done.lock().unwrap_or_else(PoisonError::into_inner).push((at, kernel, verdict));
            }
        };
        let workers: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    });
    outcome?;
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(at, ..)| *at);
    Ok(done.into_iter().map(|(_, kernel, verdict)| (kernel, verdict)).collect())
}

/// The outer error is ours; the inner one is that the kernel is not to be had.
fn one(kernel: &'static Kernel, shared: &Path, parts: &[Part], recorded: &Record) -> Result<Result<Verdict>> {
    let began = Instant::now();
    let fetched = match fetch::kernel(kernel).context("cannot be fetched") {
        Ok(fetched) => fetched,
        Err(why) => return Ok(Err(why)),
    };
    let done = boot::go_through(kernel.version, &fetched.root, &fetched.image, shared, parts)?;
    let verdict = verdict::judge(kernel, parts, &done, recorded);
    eprintln!(
        "xtask: kernel {}: {} s, {} restarts; console in {}",
        kernel.version,
        began.elapsed().as_secs(),
        done.restarts,
        boot::log_of(kernel.version).display()
    );
    Ok(Ok(verdict))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_and_wrong_ones_refused() -> Result<()> {
        let asked = Asked::parse(&["--kernel", "6.1", "--", "frozen"])?;
        assert_eq!(asked, Asked { kernel: "6.1", write: false, filters: &["frozen"] });
        assert_eq!(asked.kernels()?.len(), 1);
        assert_eq!(Asked::parse(&[])?.kernels()?.len(), KERNELS.len());
        for wrong in [&["--kernel"][..], &["--fast"], &["--write", "--", "frozen"]] {
            assert!(Asked::parse(wrong).is_err(), "{wrong:?}");
        }
        assert!(Asked::parse(&["--kernel", "4.4"])?.kernels().is_err());
        Ok(())
    }
}
