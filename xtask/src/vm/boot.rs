//! A guest, started as often as it takes to do all its parts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::image;
use super::plan::{self, Part};
use crate::started::Started;
use crate::workspace;

/// All starts of one kernel together; an emulated machine needs two to four minutes for everything.
const LIMIT: Duration = Duration::from_secs(1200);

/// Starts beyond the first: an emulator may kill its guest at random, and what was done by then stays done.
const RESTARTS: usize = 3;

/// What one part of the plan printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// Standard output.
    pub(super) output: String,
    /// Standard error.
    pub(super) complaints: String,
    /// Exit status.
    pub(super) status: i32,
}

/// All that guests of one kernel did.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// Each part by its name in the plan.
    pub(super) parts: BTreeMap<String, Said>,
    /// How often the guest died and was started again.
    pub(super) restarts: usize,
    /// Why not all parts are done.
    pub(super) gave_up: Option<String>,
}

/// Boots `kernel` (below `root`, with its modules) and goes through the plan.
pub(super) fn go_through(name: &str, root: &Path, kernel: &Path, shared: &Path, parts: &[Part]) -> Result<Done> {
    let mut done = Done::default();
    let until = Instant::now() + LIMIT;
    let mut console = File::create(log_of(name)).context("cannot keep the console's output")?;
    loop {
        let finished: Vec<String> = done.parts.keys().filter(|part| *part != "uname").cloned().collect();
        let addition = image::addition(name, &plan::text(parts), &finished, root)?;
        let output = boot(name, kernel, shared, &addition, until, &mut console);
        let (text, failure) = match output {
            Ok(text) => (text, None),
            Err((text, error)) => (text, Some(format!("{error:#}"))),
        };
        done.parts.extend(sections(&text));
        if text.contains("@@@ALL DONE") {
            return Ok(done);
        }
        if done.restarts == RESTARTS || Instant::now() >= until {
            done.gave_up = Some(failure.unwrap_or_else(|| format!("it died {} times", done.restarts + 1)));
            return Ok(done);
        }
        done.restarts += 1;
    }
}

/// Where the console's output of all starts is kept.
pub(super) fn log_of(name: &str) -> PathBuf {
    workspace::target().join("vm").join(format!("console-{name}.log"))
}

/// From power on to power off: what the guest wrote to its serial console, also kept in `log` as it comes.
fn boot(
    name: &str,
    kernel: &Path,
    shared: &Path,
    addition: &Path,
    until: Instant,
    log: &mut File,
) -> Result<String, (String, anyhow::Error)> {
    let fail = |error: anyhow::Error| (String::new(), error);
    let image = addition.with_extension("initrd");
    // The kernel unpacks one archive after the other.
    let whole = [shared, addition].map(std::fs::read).into_iter().collect::<Result<Vec<_>, _>>();
    let whole = whole.context("cannot read the archives").map_err(fail)?;
    std::fs::write(&image, whole.concat()).context("cannot write the archive").map_err(fail)?;
    let mut qemu = Command::new("qemu-system-x86_64");
    // Emulated, one plain CPU. Without cmpxchg16b: QEMU 7.2 takes its flags from the wrong place when an interrupt comes
    // next, and kernels from 6.3 on (`__kmalloc` with `this_cpu_cmpxchg16b`) die of impossible EFLAGS within seconds.
    qemu.args(["-name", name, "-accel", "tcg", "-cpu", "Nehalem,-cx16", "-smp", "1", "-m", "1024", "-nic", "none"]);
    qemu.args(["-nographic", "-no-reboot", "-append", "console=ttyS0 quiet loglevel=3 panic=-1", "-kernel"]);
    qemu.arg(kernel).arg("-initrd").arg(&image);
    let mut guest = Started::start(&mut qemu).map_err(fail)?;
    let mut output = String::new();
    loop {
        match guest.next_line(until.saturating_duration_since(Instant::now())) {
            Ok(Some(line)) => {
                output.push_str(line.trim_end_matches('\r'));
                output.push('\n');
                // For whoever watches; what counts is returned.
                let _ = writeln!(log, "{line}");
            }
            Ok(None) => return Ok(output),
            Err(error) => return Err((output, error.context(format!("booting {}", kernel.display())))),
        }
    }
}

/// The parts that came to their end.
fn sections(console: &str) -> BTreeMap<String, Said> {
    let mut sections = BTreeMap::new();
    let mut current: Option<(String, Said)> = None;
    for line in console.lines() {
        if let Some(name) = line.strip_prefix("@@@BEGIN ") {
            current = Some((name.to_owned(), Said::default()));
        } else if let Some(end) = line.strip_prefix("@@@END ") {
            // A part whose end is not its own was cut by the guest's death.
            if let Some((name, mut said)) = current.take()
                && let Some((ended, status)) = end.rsplit_once(' ')
                && ended == name
            {
                said.status = status.parse().unwrap_or(-1);
                sections.insert(name, said);
            }
        } else if let Some((_, said)) = &mut current {
            let (into, line) = match line.strip_prefix("@@@SAID ") {
                Some(complaint) => (&mut said.complaints, complaint),
                None => (&mut said.output, line),
            };
            into.push_str(line);
            into.push('\n');
        }
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_apart_and_one_that_was_cut_is_not_done() {
        let console = "noise\n@@@BEGIN uname\n5.10.0\n@@@END uname 0\n@@@BEGIN test a::b\nout\n@@@SAID err\n\
                       @@@END test a::b 101\n@@@BEGIN doctor\n{\n[ 1.2] Kernel panic\n";
        let sections = sections(console);
        assert_eq!(sections.len(), 2);
        assert_eq!(sections["uname"].output, "5.10.0\n");
        let test = &sections["test a::b"];
        assert_eq!((test.output.as_str(), test.complaints.as_str(), test.status), ("out\n", "err\n", 101));
    }
}
