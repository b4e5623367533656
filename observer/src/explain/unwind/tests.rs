//! The walker by itself: stacks made by hand, over small programs that are assembled here.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

use super::MAX_FRAMES;
use crate::census::Registers;
use crate::explain::fuzzing::{Found, Region, walk_stack};
use crate::explain::image::Image;
use crate::proc::{FoundBy, StackEnd};
use object::{Object, ObjectSymbol};
use std::collections::HashMap;
use std::process::Command;

/// Where the stacks begin.
const STACK: u64 = 0x7ffe_0000_0000;
/// By how much the program lies elsewhere than its file says.
const BIAS: u64 = 0x1_0000_0000;
/// Where code made at run time is.
const GENERATED: u64 = 0x7000_0000_0000;

/// Labels ending in `_ret` stand behind a call. Functions with `cfi` in their name have call frame information.
const PROGRAM: &str = r"
.text
.globl _start
.type _start, @function
_start:
    .cfi_startproc
    .cfi_undefined rip
    call outer_cfi
start_ret:
    hlt
    .cfi_endproc
.size _start, . - _start
.type outer_cfi, @function
outer_cfi:
    .cfi_startproc
    push %rbp
    .cfi_def_cfa_offset 16
    .cfi_offset rbp, -16
    mov %rsp, %rbp
    .cfi_def_cfa_register rbp
    call leaf_cfi
outer_ret:
    pop %rbp
    .cfi_def_cfa rsp, 8
    ret
    .cfi_endproc
.size outer_cfi, . - outer_cfi
.type leaf_cfi, @function
leaf_cfi:
    .cfi_startproc
    sub $24, %rsp
    .cfi_adjust_cfa_offset 24
leaf_wait:
    syscall
    add $24, %rsp
    .cfi_adjust_cfa_offset -24
    ret
    .cfi_endproc
.size leaf_cfi, . - leaf_cfi
.type endless_cfi, @function
endless_cfi:
    .cfi_startproc
    call endless_cfi
endless_ret:
    ret
    .cfi_endproc
.size endless_cfi, . - endless_cfi
.type back_cfi, @function
back_cfi:
    .cfi_startproc simple
    .cfi_escape 0x12, 0x07, 0x08
    .cfi_escape 0x11, 0x10, 0x78
    nop
    ret
    .cfi_endproc
.size back_cfi, . - back_cfi
    .cfi_startproc simple
    .cfi_signal_frame
    .cfi_escape 0x0f, 0x04, 0x77, 0xa0, 0x01, 0x06
    .cfi_escape 0x10, 0x10, 0x03, 0x77, 0xa8, 0x01
    .cfi_escape 0x10, 0x06, 0x03, 0x77, 0xf8, 0x00
    nop
.type restorer, @function
restorer:
    mov $15, %eax
    syscall
    .cfi_endproc
.size restorer, . - restorer
.type handler_cfi, @function
handler_cfi:
    .cfi_startproc
handler_wait:
    syscall
    ret
    .cfi_endproc
.size handler_cfi, . - handler_cfi
.type bare, @function
bare:
    push %rbx
bare_wait:
    syscall
    pop %rbx
    ret
.size bare, . - bare
.type calls_bare, @function
calls_bare:
    .cfi_startproc
    call bare
calls_bare_ret:
    ret
    .cfi_endproc
.size calls_bare, . - calls_bare
.type calls_other, @function
calls_other:
    .cfi_startproc
    call other
calls_other_ret:
    ret
    .cfi_endproc
.size calls_other, . - calls_other
.type calls_jumper, @function
calls_jumper:
    .cfi_startproc
    call jumper
calls_jumper_ret:
    ret
    .cfi_endproc
.size calls_jumper, . - calls_jumper
.type other, @function
other:
    nop
    ret
.size other, . - other
.type jumper, @function
jumper:
    nop
    jmp bare
.size jumper, . - jumper
";

/// The program, and where its labels are in the process.
struct Program {
    bytes: Vec<u8>,
    labels: HashMap<String, u64>,
}

impl Program {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("program.s"), PROGRAM).unwrap();
        let mut gcc = Command::new("gcc");
        gcc.args(["-nostdlib", "-static", "-Wl,--eh-frame-hdr", "-o", "program", "program.s"]).current_dir(dir.path());
        let output = gcc.output().unwrap_or_else(|error| panic!("gcc is needed for this test: {error}"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let bytes = std::fs::read(dir.path().join("program")).unwrap();
        let elf = object::File::parse(&*bytes).unwrap();
        let label = |symbol: object::Symbol<'_, '_>| Some((symbol.name().ok()?.to_owned(), symbol.address() + BIAS));
        let labels = elf.symbols().filter_map(label).collect();
        Self { bytes, labels }
    }

    fn at(&self, label: &str) -> u64 {
        *self.labels.get(label).unwrap_or_else(|| panic!("no label {label}"))
    }

    /// Walks from `ip`, with the stack pointer at the first of these words.
    fn walk(&self, ip: u64, bp: Option<u64>, words: &[u64]) -> (Vec<Found>, StackEnd) {
        let mut regions = Region::of_image(Image::from_bytes(self.bytes.clone()).unwrap(), BIAS);
        regions.push(Region::generated(GENERATED..GENERATED + 0x1000));
        let stack = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        walk_stack(regions, (STACK, stack), Registers { ip, sp: STACK, bp })
    }

    /// The same, expecting the root, with the frames behind the first one as labels.
    fn callers(&self, ip: &str, bp: Option<u64>, words: &[u64]) -> Vec<(String, FoundBy)> {
        let (frames, end) = self.walk(self.at(ip), bp, words);
        assert_eq!(frames[0], (self.at(ip), false, FoundBy::Registers));
        assert_eq!(end, StackEnd::Root, "{:x?}", frames);
        let name = |address: u64| self.labels.iter().find(|(_, at)| **at == address).map(|(label, _)| label.clone());
        frames[1..].iter().map(|&(at, _, by)| (name(at).unwrap_or_else(|| format!("{at:#x}")), by)).collect()
    }
}

/// The address of a word of the stack.
fn slot(number: u64) -> u64 {
    STACK + 8 * number
}

fn found(frames: &[(&str, FoundBy)]) -> Vec<(String, FoundBy)> {
    frames.iter().map(|(label, by)| ((*label).to_owned(), *by)).collect()
}

use FoundBy::{FramePointer, Scan, Unwinding};

#[test]
fn by_call_frame_information() {
    let program = Program::new();
    let words = [0, 0, 0, program.at("outer_ret"), 0, program.at("start_ret"), 7];
    let expected = found(&[("outer_ret", Unwinding), ("start_ret", Unwinding)]);
    assert_eq!(program.callers("leaf_wait", Some(slot(4)), &words), expected);
}

#[test]
fn an_unknown_frame_pointer_is_bridged_by_a_guess() {
    let program = Program::new();
    // `outer_cfi` hangs on the frame pointer register, which /proc does not give.
    let words = [0, 0, 0, program.at("outer_ret"), 0, program.at("start_ret"), 7];
    let expected = found(&[("outer_ret", Unwinding), ("start_ret", Scan)]);
    assert_eq!(program.callers("leaf_wait", None, &words), expected);
}

#[test]
fn a_null_return_address_is_the_root() {
    let program = Program::new();
    assert_eq!(program.callers("leaf_wait", None, &[0, 0, 0, 0]), []);
}

#[test]
fn without_information_the_call_that_fits_is_taken() {
    let program = Program::new();
    // A stale address of a call to another function comes first, then words that are no return addresses.
    let words = [
        program.at("calls_other_ret"),
        program.at("bare"),
        program.at("calls_bare_ret"),
        program.at("start_ret"),
        program.at("calls_other_ret"),
    ];
    let expected = found(&[("calls_bare_ret", Scan), ("start_ret", Unwinding)]);
    assert_eq!(program.callers("bare_wait", None, &words), expected);
}

#[test]
fn a_tail_call_is_followed() {
    let program = Program::new();
    let words =
        [program.at("calls_other_ret"), program.at("calls_jumper_ret"), program.at("start_ret"), slot(2), slot(1)];
    let expected = found(&[("calls_jumper_ret", Scan), ("start_ret", Unwinding)]);
    assert_eq!(program.callers("bare_wait", None, &words), expected);
}

#[test]
fn a_doubtful_call_is_better_than_none() {
    let program = Program::new();
    let words = [1, 2, program.at("calls_other_ret"), program.at("start_ret"), 3];
    let expected = found(&[("calls_other_ret", Scan), ("start_ret", Unwinding)]);
    assert_eq!(program.callers("bare_wait", None, &words), expected);
    let (frames, end) = program.walk(program.at("bare_wait"), None, &[1, 2, program.at("bare"), 3]);
    assert_eq!(frames.len(), 1);
    assert!(matches!(end, StackEnd::Stopped(why) if why.contains("no call frame information")));
}

#[test]
fn frame_pointers_lead_out_of_generated_code() {
    let program = Program::new();
    let words =
        [9, 9, slot(6), GENERATED + 0x20, 9, 9, slot(9), program.at("outer_ret"), 9, 0, program.at("start_ret")];
    let (frames, end) = program.walk(GENERATED + 0x10, Some(slot(2)), &words);
    let at = |address, by| (address, true, by);
    let expected = [
        at(GENERATED + 0x20, FramePointer),
        at(program.at("outer_ret"), FramePointer),
        at(program.at("start_ret"), Unwinding),
    ];
    assert_eq!((&frames[1..], end), (&expected[..], StackEnd::Root));
    let (frames, end) = program.walk(GENERATED + 0x10, None, &[1, 2, 3]);
    assert!(frames.len() == 1 && matches!(end, StackEnd::Stopped(why) if why.contains("no frame pointer")));
}

#[test]
fn a_signal_interrupts_anywhere() {
    let program = Program::new();
    // As the kernel leaves it: the restorer's address, then `ucontext` with rbp at 120, rsp at 160 and rip at 168 from it.
    let mut words = vec![0; 40];
    words[0] = program.at("restorer");
    (words[1 + 15], words[1 + 20], words[1 + 21]) = (slot(34), slot(30), program.at("leaf_wait"));
    (words[33], words[35]) = (program.at("outer_ret"), program.at("start_ret"));
    let (frames, end) = program.walk(program.at("handler_wait"), None, &words);
    let expected = [("restorer", true), ("leaf_wait", false), ("outer_ret", true), ("start_ret", true)];
    let expected: Vec<Found> = expected.map(|(label, call)| (program.at(label), call, Unwinding)).to_vec();
    assert_eq!((&frames[1..], end), (&expected[..], StackEnd::Root));
}

#[test]
fn signals_upon_signals_end() {
    let program = Program::new();
    // The interrupted function is the trampoline itself, on the same stack.
    let mut words = vec![0; 40];
    words[0] = program.at("restorer");
    (words[1 + 20], words[1 + 21]) = (slot(1), program.at("restorer"));
    let (frames, end) = program.walk(program.at("handler_wait"), None, &words);
    assert!(frames.len() < 32 && matches!(end, StackEnd::Stopped(_)), "{} frames, {end:?}", frames.len());
}

#[test]
fn a_stack_that_leads_back_to_itself() {
    let program = Program::new();
    let words = [program.at("bare"); 16];
    let (frames, end) = program.walk(program.at("back_cfi"), None, &words);
    assert_eq!(frames.len(), 1);
    assert!(matches!(&end, StackEnd::Stopped(why) if why.contains("itself")), "{end:?}");
}

#[test]
fn frames_are_counted() {
    let program = Program::new();
    let words = vec![program.at("endless_ret"); 2 * MAX_FRAMES];
    let (frames, end) = program.walk(program.at("endless_ret"), None, &words);
    assert_eq!(frames.len(), MAX_FRAMES);
    assert!(matches!(end, StackEnd::Stopped(why) if why.contains("cut after 1024")));
}

#[test]
fn what_is_not_code_is_not_followed() {
    let program = Program::new();
    let (frames, end) = program.walk(0x10, Some(slot(0)), &[1, 2, 3]);
    assert!(frames.len() == 1 && matches!(end, StackEnd::Stopped(why) if why.contains("is not code")));
    for ip in [0, u64::MAX] {
        assert_eq!(program.walk(ip, None, &[]).0.len(), 1);
    }
}
