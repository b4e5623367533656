//! `restart_syscall`: after a stop or a signal the kernel shows number 219 (i386: 0), with the
//! arguments of the interrupted call still in the registers.

use super::Memory;
use super::syscalls::Call;
use crate::census::ThreadRow;
use crate::proc::MemoryRange;

/// The kernel steps back over these two bytes (`syscall`, `sysenter`, `int 0x80`) to restart; the saved
/// instruction pointer is behind them.
const SYSCALL_LEN: u64 = 2;
/// `mov $imm32, %eax`
const MOV_EAX: u8 = 0xb8;
const WINDOW: u64 = 24;

/// The code before the system call instruction.
pub(super) fn needs(row: &ThreadRow) -> Option<MemoryRange> {
    let ip = row.registers?.ip;
    Some(MemoryRange { addr: ip.checked_sub(WINDOW)?, len: WINDOW as u32 })
}

/// The interrupted call: by the number the code loads before the system call instruction, else by
/// what only one of the restartable calls can have as arguments.
pub(super) fn restarted(row: &ThreadRow, args: [u64; 6], memory: Memory<'_>) -> Option<Call> {
    let candidate =
        from_code(row, memory).map(|number| Call::lookup(number, row.compat)).filter(|call| is_restartable(call.name));
    candidate.or_else(|| from_arguments(args))
}

/// Only these use the kernel's restart block (`set_restart_fn` callers).
fn is_restartable(name: &str) -> bool {
    matches!(name, "poll" | "futex" | "futex_time64" | "nanosleep" | "clock_nanosleep" | "clock_nanosleep_time64")
}

fn from_code(row: &ThreadRow, memory: Memory<'_>) -> Option<u32> {
    let ip = row.registers?.ip;
    let code: [u8; WINDOW as usize] = memory.bytes(ip.checked_sub(WINDOW)?)?;
    // Between the load and the call there may be other register moves: take the nearest load.
    let end = (WINDOW - SYSCALL_LEN) as usize;
    (0..=end.checked_sub(5)?).rev().find_map(|at| {
        let number = u32::from_ne_bytes(code.get(at + 1..at + 5)?.try_into().ok()?);
        (code[at] == MOV_EAX && number < 512).then_some(number)
    })
}

fn from_arguments(args: [u64; 6]) -> Option<Call> {
    let is_pointer = |a: u64| (0x1_0000..0x8000_0000_0000).contains(&a);
    let [a0, a1, a2, ..] = args;
    if is_pointer(a0) && is_pointer(a1) {
        Some(Call::named("nanosleep"))
    } else if a0 < 16 && a1 <= 1 && is_pointer(a2) {
        Some(Call::named("clock_nanosleep"))
    } else if is_pointer(a0) && a0 % 4 == 0 && matches!(a1 & !0x180, 0 | 9 | 6 | 11 | 13) && a1 >= 0x80 {
        Some(Call::named("futex"))
    } else if is_pointer(a0) && a1 < 1 << 20 && (a2 as i32) > 0 {
        Some(Call::named("poll"))
    } else {
        None
    }
}
