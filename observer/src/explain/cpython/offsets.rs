//! `_Py_DebugOffsets`, the table at the start of `_PyRuntime` (`Include/internal/pycore_runtime.h` of CPython 3.13).

use crate::explain::pieces::{Memory, word};

const COOKIE: &[u8; 8] = b"xdebugpy";
/// Words of the table of 3.13.
const WORDS: u64 = 73;
/// Of objects of which a few hundred bytes are read.
const MAX_OBJECT: u64 = 4096;
/// The interpreter's state: some hundred kilobytes.
const MAX_STATE: u64 = 64 << 20;

/// Where the fields are, in bytes from the start of what they belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offsets {
    pub(super) interpreters_head: u64,
    pub(super) interpreter: Interpreter,
    pub(super) thread: Thread,
    pub(super) frame: Frame,
    pub(super) code: Code,
    pub(super) ob_type: u64,
    pub(super) tp_name: u64,
    pub(super) bytes_size: u64,
    pub(super) bytes_value: u64,
    pub(super) text_length: u64,
    pub(super) text_value: u64,
}

/// `PyInterpreterState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interpreter {
    pub(super) next: u64,
    pub(super) threads_head: u64,
    /// Pointer to its GIL, which may be that of another interpreter.
    pub(super) gil: u64,
    /// In the GIL's own state.
    pub(super) gil_locked: u64,
    pub(super) gil_holder: u64,
}

/// `PyThreadState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Thread {
    pub(super) next: u64,
    pub(super) frame: u64,
    pub(super) ident: u64,
    pub(super) native: u64,
}

/// `_PyInterpreterFrame`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) previous: u64,
    pub(super) code: u64,
    pub(super) instruction: u64,
    pub(super) locals: u64,
    pub(super) owner: u64,
}

/// `PyCodeObject`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Code {
    pub(super) qualname: u64,
    pub(super) instructions: u64,
    /// Not in the table: these three lie between fields that are, and those are checked.
    pub(super) exceptions: u64,
    pub(super) stack_size: u64,
    pub(super) locals: u64,
}

impl Offsets {
    /// Reads the table of the interpreter whose `_PyRuntime` is at this address.
    pub(super) fn read(runtime: u64, memory: &mut Memory<'_>) -> Result<Self, String> {
        let bytes = memory.bytes(runtime, WORDS * 8);
        let Some((cookie, _)) = bytes.split_first_chunk::<8>() else {
            return Err("the state of its interpreter cannot be read".to_owned());
        };
        if cookie != COOKIE {
            return Err("this CPython is older than 3.13 and does not say where its fields are".to_owned());
        }
        let at = |index: u64| word(&bytes, index * 8).ok_or("CPython's table of offsets cannot be read");
        let version = at(1)?;
        if version >> 16 != 0x030d {
            let (major, minor) = (version >> 24 & 0xff, version >> 16 & 0xff);
            return Err(format!("the locks of CPython {major}.{minor} are not known, those of 3.13 are"));
        }
        if at(2)? != 0 {
            return Err("this CPython has no GIL (free-threaded): its locks are not known".to_owned());
        }
        let state = |index| at(index).ok().filter(|offset| *offset < MAX_STATE).ok_or(LIES);
        let object = |index| at(index).ok().filter(|offset| *offset < MAX_OBJECT).ok_or(LIES);
        let gil = state(15)?;
        let in_gil = |index| state(index)?.checked_sub(gil).filter(|offset| *offset < MAX_OBJECT).ok_or(LIES);
        // co_firstlineno, co_argcount, co_localsplusnames: what the table leaves out lies between them.
        if [at(39)?, at(40)?, at(41)?] != [68, 52, 96] || object(28)? > MAX_OBJECT {
            return Err(LIES.to_owned());
        }
        Ok(Self {
            interpreters_head: state(5)?,
            interpreter: Interpreter {
                next: state(8)?,
                threads_head: state(9)?,
                gil: state(14)?,
                gil_locked: in_gil(17)?,
                gil_holder: in_gil(18)?,
            },
            thread: Thread { next: object(21)?, frame: object(23)?, ident: object(24)?, native: object(25)? },
            frame: Frame {
                previous: object(29)?,
                code: object(30)?,
                instruction: object(31)?,
                locals: object(32)?,
                owner: object(33)?,
            },
            code: Code { qualname: object(37)?, instructions: object(43)?, exceptions: 40, stack_size: 64, locals: 72 },
            ob_type: object(45)?,
            tp_name: object(47)?,
            bytes_size: object(65)?,
            bytes_value: object(66)?,
            text_length: object(69)?,
            text_value: object(70)?,
        })
    }
}

const LIES: &str = "CPython's table of offsets is not that of a 3.13";
