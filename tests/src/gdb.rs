//! The same stacks as gdb shows them: the truth for native programs. gdb stops its target, so it comes after observer.

use crate::stack::{Frame, Stack, last_part};
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// One frame gdb shows; only these fields of [`Frame`] are set: function, file, line, address.
fn frame(line: &str) -> Option<Frame> {
    let (_, rest) = line.strip_prefix('#')?.split_once(' ')?;
    let rest = rest.trim_start();
    if rest.starts_with("<signal handler called>") {
        return Some(Frame { function: Some("__restore_rt".to_owned()), ..Frame::default() });
    }
    let (address, rest) = rest.strip_prefix("0x")?.split_once(" in ")?;
    let end = rest.rfind(" (")?;
    let (name, place) = rest.split_at(end);
    let place = place.rsplit_once(" at ").and_then(|(_, place)| place.rsplit_once(':'));
    Some(Frame {
        function: Some(name.to_owned()).filter(|name| name != "??"),
        address: u64::from_str_radix(address, 16).ok(),
        file: place.map(|(file, _)| file.to_owned()),
        line: place.and_then(|(_, line)| line.parse().ok()),
        ..Frame::default()
    })
}

/// Where the second part of gdb's output begins.
const KINDS: &str = "kinds of frames";

/// Takes out the frames that gdb inferred from tail calls: nothing of them is on the stack. `output` is that of `info frame` for
/// every frame.
fn drop_tail_calls(threads: &mut BTreeMap<i32, Vec<Frame>>, output: &str) {
    let (mut at, mut level) = (None, None);
    let mut inferred = BTreeSet::new();
    for line in output.lines() {
        if line.starts_with("Thread ") {
            at = lwp(line);
        } else if let Some(rest) = line.strip_prefix("Stack level ") {
            level = rest.split(',').next().and_then(|number| number.parse::<usize>().ok());
        } else if line.trim_start().starts_with("tail call frame") {
            inferred.extend(at.zip(level));
        }
    }
    for (tid, level) in inferred.into_iter().rev() {
        if let Some(frames) = threads.get_mut(&tid).filter(|frames| level < frames.len()) {
            frames.remove(level);
        }
    }
}

fn lwp(line: &str) -> Option<i32> {
    let (_, rest) = line.split_once("LWP ")?;
    rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
}

/// The frames of every thread, by thread id.
fn parse(output: &str) -> BTreeMap<i32, Vec<Frame>> {
    let mut threads = BTreeMap::new();
    let mut at = None;
    for line in output.lines() {
        if line.starts_with("Thread ") {
            at = lwp(line);
        } else if let (Some(tid), Some(frame)) = (at, frame(line)) {
            threads.entry(tid).or_insert_with(Vec::new).push(frame);
        }
    }
    threads
}

/// Stops the process for a moment and reads all its stacks.
pub fn backtraces(pid: i32) -> Result<BTreeMap<i32, Vec<Frame>>> {
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-p", &pid.to_string()]);
    for command in [
        "set debuginfod enabled off",
        "set width 0",
        "set print frame-arguments none",
        "set print frame-info location-and-address",
        "set backtrace past-main on",
        "thread apply all bt",
        &format!("echo {KINDS}\\n"),
        "thread apply all -s frame apply all -s -q info frame",
    ] {
        gdb.args(["-ex", command]);
    }
    let run = gdb.output().context("gdb")?;
    let output = String::from_utf8_lossy(&run.stdout);
    let (stacks, kinds) = output.split_once(KINDS).unwrap_or((&output, ""));
    let mut threads = parse(stacks);
    drop_tail_calls(&mut threads, kinds);
    if threads.is_empty() {
        bail!("gdb showed no stack of {pid}: {}", String::from_utf8_lossy(&run.stderr));
    }
    Ok(threads)
}

/// Fails unless observer's stack is gdb's, frame by frame: address, function, and file and line where gdb has them.
pub fn expect_same(ours: &Stack, gdbs: &[Frame]) -> Result<()> {
    let both = || format!("observer: {ours:?}gdb: {:?}", Stack { frames: gdbs.to_vec(), end: "gdb".to_owned() });
    // Two gdbs differ in whether they show frames beyond clone: with pc 0.
    let gdbs: Vec<&Frame> = gdbs.iter().filter(|frame| frame.address != Some(0)).collect();
    ensure!(ours.frames.len() == gdbs.len(), "{} frames, gdb has {}: {}", ours.frames.len(), gdbs.len(), both());
    for (at, (our, gdb)) in ours.frames.iter().zip(gdbs).enumerate() {
        if gdb.address.is_some() {
            ensure!(our.address == gdb.address, "frame {at} is at another address: {}", both());
        }
        let Some(name) = &gdb.function else { continue };
        // Without debug information gdb takes the nearest symbol, however far; another rule is as good.
        if gdb.line.is_none() && our.function.is_none() {
            continue;
        }
        let said = our.function.as_deref().map(last_part);
        ensure!(said == Some(last_part(name)), "frame {at} is another function, {said:?}: {}", both());
        if let (Some(line), Some(file)) = (gdb.line, &gdb.file) {
            let base = |file: &str| file.rsplit('/').next().unwrap_or_default().to_owned();
            ensure!(our.line == Some(line), "frame {at} is on another line: {}", both());
            ensure!(our.file.as_deref().map(base) == Some(base(file)), "frame {at} is in another file: {}", both());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = r#"[New LWP 12]
Thread 2 (Thread 0x7f (LWP 12) "lambda"):
#0  0x00007f6b1f1162ec in __GI___libc_read (nbytes=..., fd=...) at ../sysdeps/unix/sysv/linux/read.c:26
#1  0x0000562a09675523 in (anonymous namespace)::blocked_here (fd=...) at /a/b.cpp:37
#2  <signal handler called>
#10 0x0000562a0967585d in std::function<int (int)>::operator()(int) const (this=...) at /usr/std_function.h:591

Thread 1 (LWP 11 "cpp"):
#0  0x00007f96d588bb91 in ?? () from /lib/ld-musl-x86_64.so.1
#1  0x0000562a09675441 in _start ()
"#;

    #[test]
    fn what_gdb_prints_is_understood() {
        let threads = parse(SAID);
        let names = |tid| threads[&tid].iter().map(|f| f.function.as_deref().map(last_part)).collect::<Vec<_>>();
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(names(12), [some("read"), some("blocked_here"), some("restore_rt"), some("operator")]);
        assert_eq!(names(11), [None, some("start")]);
        let first = &threads[&12][0];
        assert_eq!((first.address, first.line), (Some(0x7f6b_1f11_62ec), Some(26)));
        assert_eq!(first.file.as_deref(), Some("../sysdeps/unix/sysv/linux/read.c"));
    }
}
