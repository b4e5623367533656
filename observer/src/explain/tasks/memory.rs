//! The memory of a target in which tasks may be: what it has written to, belongs to itself, and is in memory now.

use crate::census::Pid;
use crate::proc::MemoryRange;
use crate::proc::maps::Mapping;
use crate::proc::pieces::read_ranges;
use nix::errno::Errno;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;

const PAGE: u64 = 4096;
/// One reading looks through so much, bytes.
const MAX_BYTES: u64 = 256 << 20;
/// What is read at once, bytes.
const TOGETHER: u64 = 1 << 20;
/// Ranges in one reading.
const MAX_RANGES: usize = 512;
/// Entries of the page map that are read at once.
const ENTRIES: u64 = 8192;
/// A page is in memory (`Documentation/admin-guide/mm/pagemap.rst`).
const PRESENT: u64 = 1 << 63;

/// How much was looked through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) scanned_bytes: u64,
    pub(super) absent_bytes: u64,
    pub(super) cut_bytes: u64,
}

/// Whether tasks may be in this mapping: the heap, and what allocators map for themselves.
fn may_hold_tasks(mapping: &Mapping) -> bool {
    let is_anonymous = mapping.inode == 0
        && (mapping.name.is_empty() || mapping.name == "[heap]" || mapping.name.starts_with("[anon:"));
    is_anonymous && mapping.readable && mapping.writable && !mapping.executable && !mapping.shared
}

/// Shows `look` the memory of a process piece by piece, each with its address, a multiple of the page size. What is
/// not in memory is passed over: to read it would fetch it from swap, or use up memory of the target.
///
/// # Errors
/// What the kernel says when it lets us read nothing at all.
pub(super) fn each(
    via: Pid,
    mappings: &[Mapping],
    until: Instant,
    look: &mut dyn FnMut(u64, &[u8]),
) -> Result<Extent, Errno> {
    let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    let pagemap = File::open(format!("/proc/{via}/pagemap")).map_err(errno)?;
    let mut walk =
        Walk { via, until, look, extent: Extent::default(), ranges: Vec::new(), pending: 0, buffer: Vec::new() };
    let mut entries = vec![0_u8; (ENTRIES * 8) as usize];
    for mapping in mappings.iter().filter(|mapping| may_hold_tasks(mapping)) {
        let mut at = mapping.start;
        while at < mapping.end {
            let pages = ((mapping.end - at) / PAGE).min(ENTRIES);
            if pages == 0 || walk.is_over() {
                walk.extent.cut_bytes += mapping.end - at;
                break;
            }
            let room = &mut entries[..(pages * 8) as usize];
            let got = pagemap.read_at(room, at / PAGE * 8).map_err(errno)?;
            let (words, _) = room[..got].as_chunks::<8>();
            if words.is_empty() {
                // It was unmapped meanwhile.
                walk.extent.absent_bytes += mapping.end - at;
                break;
            }
            let mut page = at;
            for run in words.chunk_by(|a, b| is_present(a) == is_present(b)) {
                let len = run.len() as u64 * PAGE;
                match run.first().is_some_and(is_present) {
                    true => walk.add(page, len)?,
                    false => walk.extent.absent_bytes += len,
                }
                page += len;
            }
            at = page;
        }
    }
    walk.flush()?;
    Ok(walk.extent)
}

fn is_present(entry: &[u8; 8]) -> bool {
    u64::from_le_bytes(*entry) & PRESENT != 0
}

struct Walk<'a> {
    via: Pid,
    until: Instant,
    look: &'a mut dyn FnMut(u64, &[u8]),
    extent: Extent,
    ranges: Vec<MemoryRange>,
    /// Bytes of these.
    pending: u64,
    buffer: Vec<u8>,
}

impl Walk<'_> {
    fn is_over(&self) -> bool {
        self.extent.scanned_bytes + self.pending >= MAX_BYTES || Instant::now() >= self.until
    }

    fn add(&mut self, mut start: u64, mut len: u64) -> Result<(), Errno> {
        while len > 0 {
            if self.extent.scanned_bytes + self.pending >= MAX_BYTES {
                self.extent.cut_bytes += len;
                return Ok(());
            }
            let part = len.min(TOGETHER - self.pending);
            self.ranges.push(MemoryRange { addr: start, len: part as u32 });
            (start, len, self.pending) = (start + part, len - part, self.pending + part);
            if self.pending >= TOGETHER || self.ranges.len() >= MAX_RANGES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Errno> {
        let mut got = Vec::with_capacity(self.ranges.len());
        if Instant::now() >= self.until {
            self.extent.cut_bytes += self.pending;
        } else if !self.ranges.is_empty() {
            read_ranges(self.via, &self.ranges, &mut self.buffer, &mut got)?;
        }
        for (range, (start, len)) in self.ranges.iter().zip(got) {
            self.extent.scanned_bytes += len as u64;
            self.extent.cut_bytes += u64::from(range.len).saturating_sub(len as u64);
            (self.look)(range.addr, self.buffer.get(start..start + len).unwrap_or_default());
        }
        self.ranges.clear();
        self.pending = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail")]
    use super::*;
    use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
    use std::num::NonZero;
    use std::time::Duration;

    const LATER: Duration = Duration::from_secs(60);

    #[test]
    fn pages_that_were_never_used_stay_so() {
        let (pid, len) = (std::process::id(), 1 << 20);
        let (protection, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
        // SAFETY: a new mapping of its own, which nothing else knows.
        let memory = unsafe { mmap_anonymous(None, NonZero::new(len).unwrap(), protection, flags) }.unwrap();
        let start = memory.addr().get() as u64;
        let own = |flags: (bool, bool)| Mapping {
            start,
            end: start + len as u64,
            readable: true,
            writable: flags.0,
            executable: false,
            shared: flags.1,
            offset: 0,
            device: String::new(),
            inode: 0,
            name: String::new(),
        };
        let until = Instant::now() + LATER;
        let mut seen = Vec::new();
        let mut look = |mapping: Mapping, until| {
            seen.clear();
            let mut keep = |at: u64, bytes: &[u8]| seen.push((at, bytes.to_vec()));
            let extent = each(pid, &[mapping], until, &mut keep).unwrap();
            (extent, std::mem::take(&mut seen))
        };
        let (extent, pieces) = look(own((true, false)), until);
        assert_eq!(extent, Extent { absent_bytes: len as u64, ..Extent::default() });
        assert!(pieces.is_empty());
        // SAFETY: within the mapping.
        let page = unsafe { memory.byte_add(5 * PAGE as usize) };
        // SAFETY: the same, and nobody else writes there.
        unsafe { page.cast::<u8>().write(7) };
        let (extent, pieces) = look(own((true, false)), until);
        // With huge pages in use its neighbours came along.
        assert!(extent.scanned_bytes >= PAGE && extent.scanned_bytes + extent.absent_bytes == len as u64, "{extent:?}");
        let written = start + 5 * PAGE;
        let byte = pieces.iter().find_map(|(at, bytes)| bytes.get(usize::try_from(written.checked_sub(*at)?).ok()?));
        assert_eq!(byte, Some(&7));
        // Not its own, or not for writing; no time.
        for flags in [(false, false), (true, true)] {
            assert_eq!(look(own(flags), until), (Extent::default(), Vec::new()));
        }
        let (extent, pieces) = look(own((true, false)), Instant::now());
        assert_eq!((extent.cut_bytes, pieces.len()), (len as u64, 0));
        // SAFETY: nobody uses it any more.
        unsafe { nix::sys::mman::munmap(memory, len) }.unwrap();
        assert_eq!(each(u32::MAX >> 1, &[], until, &mut |_, _| {}), Err(Errno::ENOENT));
    }
}
