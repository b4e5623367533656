//! User stacks, as text and as JSON.

use crate::census::Pid;
use crate::model::Host;
use crate::proc::{FoundBy, Frame, Stack, StackEnd, base_name};
use serde_json::{Value, json};
use std::fmt::Write;

/// Frames of one stack that text shows; the middle of a longer one is left out.
const SHOWN: usize = 32;
/// Of these, the outermost.
const OUTERMOST: usize = 6;

/// Threads that stand at the same place, and that place.
pub(super) struct Group<'a> {
    pub(super) tids: Vec<Pid>,
    pub(super) stack: &'a Stack,
}

/// The stacks of these threads, those of the same functions together, in the order of their first thread.
pub(super) fn groups<'a>(host: &'a Host, tids: impl IntoIterator<Item = Pid>) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    for tid in tids {
        let Some(stack) = host.stack(tid).filter(|stack| !stack.frames.is_empty()) else { continue };
        match groups.iter_mut().find(|group| is_same_place(group.stack, stack)) {
            Some(group) => group.tids.push(tid),
            None => groups.push(Group { tids: vec![tid], stack }),
        }
    }
    groups
}

pub(super) fn is_same_place(one: &Stack, other: &Stack) -> bool {
    let place = |frame: &Frame| frame.address;
    std::ptr::eq(one, other) || one.end == other.end && one.frames.iter().map(place).eq(other.frames.iter().map(place))
}

/// Why a walk ended, in JSON.
pub(super) fn end(stack: &Stack) -> &str {
    match &stack.end {
        StackEnd::Root => "root",
        StackEnd::Stopped(why) => why,
    }
}

/// The frames of a stack, innermost first.
pub(super) fn frames(stack: &Stack) -> Vec<Value> {
    let frame = |frame: &Frame| {
        json!({
            "function": frame.function,
            "file": frame.file,
            "line": frame.line,
            "module": frame.module,
            "offset": format!("{:#x}", frame.offset),
            "inlined": frame.inlined,
            "address": format!("{:#x}", frame.address),
            "build_id": frame.build_id,
            "found_by": frame.found_by.name(),
        })
    };
    stack.frames.iter().map(frame).collect()
}

/// One stack, a line a frame, as `py-spy dump` and `gdb` show it.
pub(super) fn to_text(stack: &Stack, indent: &str) -> String {
    let mut out = String::new();
    let total = stack.frames.len();
    let hidden = total.saturating_sub(SHOWN);
    for (number, frame) in stack.frames.iter().enumerate() {
        if hidden > 0 && number == SHOWN - OUTERMOST {
            let _ = writeln!(out, "{indent}… {hidden} more (--output json lists all)");
        }
        if hidden > 0 && (SHOWN - OUTERMOST..total - OUTERMOST).contains(&number) {
            continue;
        }
        let _ = writeln!(out, "{indent}#{number:<3} {}", line(frame));
    }
    if let StackEnd::Stopped(why) = &stack.end {
        let _ = writeln!(out, "{indent}… not followed further: {why}");
    }
    out
}

pub(super) fn line(frame: &Frame) -> String {
    let module = frame.module.as_deref().map_or("[code made at run time]", base_name);
    let mut text = match (&frame.function, &frame.build_id) {
        (Some(function), _) => function.clone(),
        (None, _) if frame.module.is_none() => format!("{module} {:#x}", frame.address),
        (None, Some(build_id)) => format!("{module}+{:#x} (build-id {build_id})", frame.offset),
        (None, None) => format!("{module}+{:#x}", frame.offset),
    };
    match (&frame.file, frame.line) {
        (Some(file), Some(line)) => text.push_str(&format!(" ({file}:{line})")),
        (Some(file), None) => text.push_str(&format!(" ({file})")),
        (None, _) if frame.function.is_some() => text.push_str(&format!(" [{module}]")),
        (None, _) => {}
    }
    if frame.inlined {
        text.push_str(" [inlined]");
    }
    if frame.found_by == FoundBy::Scan {
        text.push_str(" [guessed]");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(function: Option<&str>) -> Frame {
        Frame {
            function: function.map(str::to_owned),
            module: Some("/usr/lib/libapp.so".to_owned()),
            build_id: Some("abcd".to_owned()),
            offset: 0x1234,
            ..Frame::default()
        }
    }

    #[test]
    fn lines_name_what_is_known() {
        let whole = Frame { file: Some("src/pay.c".into()), line: Some(7), inlined: true, ..frame(Some("pay")) };
        assert_eq!(line(&whole), "pay (src/pay.c:7) [inlined]");
        assert_eq!(line(&frame(Some("pay"))), "pay [libapp.so]");
        let guessed = Frame { found_by: FoundBy::Scan, ..frame(None) };
        assert_eq!(line(&guessed), "libapp.so+0x1234 (build-id abcd) [guessed]");
        let generated = Frame { address: 0x7f00, ..Frame::default() };
        assert_eq!(line(&generated), "[code made at run time] 0x7f00");
    }

    #[test]
    fn the_middle_of_a_deep_stack_is_left_out() {
        let frames = (0..1024).map(|n| frame(Some(&format!("f{n}")))).collect();
        let text = to_text(&Stack { frames, end: StackEnd::Stopped("cut after 1024 frames".into()) }, "  ");
        assert_eq!(text.lines().count(), SHOWN + 2);
        assert!(text.contains("#25  f25 ") && !text.contains("f26 ") && text.contains("… 992 more"));
        assert!(text.contains("#1018 f1018 "));
        assert!(text.ends_with("  … not followed further: cut after 1024 frames\n"));
    }
}
