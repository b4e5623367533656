//! The kernel object: embedded, given its offsets and settings, and loaded.

use aya::{Ebpf, EbpfError, EbpfLoader, Pod};
use observer_ebpf::{
    Attempt, Event, Globals, Offsets, ProcessKey, ProcessWaits, SiteKey, SiteRecord, ThreadState, Wakes, WordKey,
    WordRecord,
};

/// The object built from `observer-ebpf`, aligned as its reader wants it.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("OBSERVER_OBJECT"));

/// SHA-256 of the embedded kernel object, in hexadecimal.
pub const OBJECT_SHA256: &str = env!("OBSERVER_OBJECT_SHA256");

/// A structure of the kernel border: integers only, without padding.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Plain<T>(pub(super) T);

// SAFETY: `observer_ebpf` asserts that these hold integers only and no padding.
unsafe impl Pod for Plain<Offsets> {}
// SAFETY: as above.
unsafe impl Pod for Plain<Globals> {}
// SAFETY: as above.
unsafe impl Pod for Plain<ProcessKey> {}
// SAFETY: as above.
unsafe impl Pod for Plain<ProcessWaits> {}
// SAFETY: as above.
unsafe impl Pod for Plain<ThreadState> {}
// SAFETY: as above.
unsafe impl Pod for Plain<Attempt> {}
// SAFETY: as above.
unsafe impl Pod for Plain<SiteKey> {}
// SAFETY: as above.
unsafe impl Pod for Plain<SiteRecord> {}
// SAFETY: as above.
unsafe impl Pod for Plain<WordKey> {}
// SAFETY: as above.
unsafe impl Pod for Plain<WordRecord> {}
// SAFETY: as above.
unsafe impl Pod for Plain<Wakes> {}

/// Reads a structure of the kernel border from bytes; `None` if there are too few.
pub(super) fn read<T: Border>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: enough bytes, any bit pattern is valid, alignment does not matter.
    Some(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast::<T>()) })
}

/// Structures that any bytes are valid for.
///
/// # Safety
///
/// Integers only.
pub(super) unsafe trait Border: Copy {}
// SAFETY: integers only, as `observer_ebpf` promises.
unsafe impl Border for Event {}
// SAFETY: as above.
unsafe impl Border for observer_ebpf::UserStack {}
// SAFETY: as above.
unsafe impl Border for observer_ebpf::RecordPrefix {}
// SAFETY: as above.
unsafe impl Border for observer_ebpf::CensusHead {}
// SAFETY: as above.
unsafe impl Border for observer_ebpf::TaskRecord {}
// SAFETY: as above.
unsafe impl Border for observer_ebpf::SettledRecord {}
// SAFETY: as above.
unsafe impl Border for observer_ebpf::CensusTail {}
// SAFETY: as above.
unsafe impl Border for observer_ebpf::StackRecord {}
// SAFETY: as above.
unsafe impl Border for observer_ebpf::SocketRecord {}
// SAFETY: as above.
unsafe impl Border for observer_ebpf::SocketFileRecord {}

/// Creates the maps and prepares the programs; none is loaded yet.
pub(super) fn load(
    offsets: &Offsets,
    globals: &Globals,
    log_level: u8,
    sizes: &[(&'static str, u32)],
) -> Result<Ebpf, EbpfError> {
    let offsets = Plain(*offsets);
    let globals = Plain(*globals);
    let mut loader = EbpfLoader::new();
    loader.override_global("OFFSETS", &offsets, true).override_global("GLOBALS", &globals, true).override_global(
        aya_log::LEVEL,
        &log_level,
        true,
    );
    for (map, entries) in sizes {
        loader.map_max_entries(map, *entries);
    }
    loader.load(OBJECT)
}

/// The whole chain of an error in one line, with the end of the verifier's log where there is one.
pub(super) fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    use aya::programs::ProgramError;
    if let Some(ProgramError::LoadError { io_error, verifier_log }) = error.downcast_ref() {
        let log = verifier_log.to_string();
        let mut last: Vec<&str> =
            log.lines().filter(|line| !line.is_empty() && !line.starts_with("processed ")).rev().take(6).collect();
        last.reverse();
        return if last.is_empty() {
            format!("load: {io_error}")
        } else {
            format!("load: {io_error}; verifier: {}", last.join(" | "))
        };
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}
