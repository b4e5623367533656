//! User stacks as facts: plain data, made by `explain`, judged by `model`, printed by `report`.

use crate::census::{Pid, ProcessId, Registers};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A thread whose user stack is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackWant {
    /// Its process.
    pub process: ProcessId,
    /// The thread.
    pub tid: Pid,
    /// Context switches (`nvcsw + nivcsw`) of the row the registers are from.
    pub switches: u64,
    /// The registers with which it entered the kernel.
    pub registers: Registers,
    /// Addresses of locks to look for in its live frames.
    pub sought: Vec<u64>,
}

/// How the return address of a frame was found, from the surest to the least sure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FoundBy {
    /// The instruction pointer itself.
    Registers,
    /// Call frame information (`.eh_frame`, `.debug_frame`), or the frame sizes in Go's tables.
    #[default]
    Unwinding,
    /// The chain of frame pointers: interpreters, compiled-at-run-time code.
    FramePointer,
    /// A guess: a word on the stack that points behind a call instruction.
    Scan,
}

impl FoundBy {
    /// The name used in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Registers => "registers",
            Self::Unwinding => "unwinding",
            Self::FramePointer => "frame_pointer",
            Self::Scan => "scan",
        }
    }
}

/// One frame; a function that was inlined has one of its own, in front of the one it was inlined into.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Frame {
    /// Instruction pointer (innermost frame) or return address, in the target.
    pub address: u64,
    /// Demangled name of the function.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// Source file, as the debug information names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Line in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Path of the mapped file as the target sees it; `[vdso]`; `None` for code made at run time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// Build-id of the module, hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
    /// Address in the module's own numbering (ELF virtual address, what `addr2line -e` takes); the address itself
    /// where there is no module.
    pub offset: u64,
    /// Inlined into the next frame.
    #[serde(default)]
    pub inlined: bool,
    /// How it was found.
    #[serde(default)]
    pub found_by: FoundBy,
}

/// Where a walk ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StackEnd {
    /// At the thread's first function.
    Root,
    /// Before it, for this reason.
    Stopped(String),
}

/// The stack of one thread, innermost frame first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stack {
    /// The frames.
    pub frames: Vec<Frame>,
    /// Where it ends.
    pub end: StackEnd,
}

impl Stack {
    /// No frames, for this reason.
    pub fn missing(reason: impl Into<String>) -> Self {
        Self { frames: Vec::new(), end: StackEnd::Stopped(reason.into()) }
    }

    /// Reached the thread's first function.
    pub fn is_complete(&self) -> bool {
        self.end == StackEnd::Root
    }
}

/// An address that a live frame holds: whoever has a lock keeps a reference to it (and so do others).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mention {
    /// The address sought.
    pub address: u64,
    /// The frame, counted from the innermost; inlined functions do not count.
    pub frame: u32,
    /// Distance from the stack pointer, bytes.
    pub depth: u32,
}

/// The stack of a thread at a moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackFact {
    /// The thread.
    pub tid: Pid,
    /// Its process.
    pub process: ProcessId,
    /// Context switches of the row it was walked for: stale when the thread has moved on.
    pub switches: u64,
    /// The stack; threads that stand at the same place share one.
    pub stack: Arc<Stack>,
    /// The addresses that were looked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sought: Vec<u64>,
    /// Where they were found, the innermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mentions: Vec<Mention>,
}

/// A call site whose stack is wanted: what the probe kept of it at the call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteWant {
    /// Its process.
    pub process: ProcessId,
    /// The site, as [`crate::census::SiteStack::site`] has it.
    pub site: u64,
    /// The registers with which the thread entered the kernel.
    pub registers: Registers,
    /// What lay from the stack pointer upwards.
    pub bytes: Vec<u8>,
}

/// The stack at a call site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteFact {
    /// Its process.
    pub process: ProcessId,
    /// The site.
    pub site: u64,
    /// The stack as it was at the call; without frames if the process was gone by then.
    pub stack: Arc<Stack>,
}
