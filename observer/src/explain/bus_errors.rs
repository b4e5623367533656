//! Files of a target are mapped, and a target may cut its files short while we look: the kernel then raises SIGBUS at
//! the first touch of a page that is gone. Here such a page becomes one of zeros, and is counted.

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

/// `BUS_ADRERR` of `asm-generic/siginfo.h`: an address within a mapping, beyond the end of its file.
const BUS_ADRERR: i32 = 2;
/// Size of a page on x86-64.
const PAGE: usize = 4096;

static REPLACED: AtomicU64 = AtomicU64::new(0);
static INSTALLED: Once = Once::new();

/// Pages that were replaced by zeros so far.
pub(super) fn replaced() -> u64 {
    REPLACED.load(Ordering::Relaxed)
}

/// Takes SIGBUS for the whole process, once.
pub(super) fn install() {
    INSTALLED.call_once(|| {
        let action = SigAction::new(SigHandler::SigAction(on_bus_error), SaFlags::SA_SIGINFO, SigSet::empty());
        // SAFETY: the handler calls async-signal-safe functions only (mmap, sigaction) and touches one atomic.
        if let Err(error) = unsafe { sigaction(Signal::SIGBUS, &action) } {
            log::warn!("cannot handle SIGBUS ({error}): a target that cuts its program file short would end observer");
        }
    });
}

extern "C" fn on_bus_error(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid siginfo to a handler that is installed with SA_SIGINFO.
    let info = unsafe { &*info };
    let code = info.si_code;
    // SAFETY: the address is set for every SIGBUS that the kernel raises for a fault.
    let address = unsafe { info.si_addr() } as usize;
    if code == BUS_ADRERR {
        // SAFETY: it replaces a page that lies in a file mapping of this process and cannot be read any more; that
        // file mappings are read-only is a rule of this room, so nobody loses what was written there.
        let page = unsafe {
            libc::mmap(
                (address & !(PAGE - 1)) as *mut libc::c_void,
                PAGE,
                libc::PROT_READ,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        if page != libc::MAP_FAILED {
            REPLACED.fetch_add(1, Ordering::Relaxed);
            return;
        }
    }
    // Not ours: the default action ends the process at the next touch.
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: sets the default action; async-signal-safe.
    let _ = unsafe { sigaction(Signal::SIGBUS, &default) };
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail")]
    use super::*;
    use std::io::Write;

    #[test]
    fn a_file_cut_short_reads_as_zeros() {
        install();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 3 * PAGE]).unwrap();
        // SAFETY: the handler makes vanished pages readable.
        let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
        assert_eq!(map[2 * PAGE], 7);
        let before = replaced();
        file.set_len(PAGE as u64).unwrap();
        assert_eq!((map[0], map[PAGE + 5], map[2 * PAGE + 5]), (7, 0, 0));
        assert!(replaced() >= before + 2);
    }
}
