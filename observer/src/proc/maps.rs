//! `/proc/PID/maps`, read within bounds.

use crate::census::Pid;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};

/// Maps beyond this many bytes are not looked at (about 80,000 mappings).
const MAX_MAPS: u64 = 8 << 20;

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Behind the last one.
    pub end: u64,
    /// May be read.
    pub readable: bool,
    /// May be written.
    pub writable: bool,
    /// May be executed.
    pub executable: bool,
    /// Changes are seen by others that map it.
    pub shared: bool,
    /// Offset in the file, bytes.
    pub offset: u64,
    /// Device number of the file, as printed (`fd:01`).
    pub device: String,
    /// Inode number of the file; 0 for anonymous memory.
    pub inode: u64,
    /// File name as the target sees it (` (deleted)` behind it when it is gone), `[stack]`, `[vdso]`; empty for
    /// anonymous memory.
    pub name: String,
}

impl Mapping {
    /// Whether a file that has been removed or replaced is mapped.
    pub fn is_deleted(&self) -> bool {
        self.name.ends_with(" (deleted)")
    }

    /// The file's name without the mark of deletion.
    pub fn path(&self) -> &str {
        self.name.strip_suffix(" (deleted)").unwrap_or(&self.name)
    }

    /// Whether it maps a file of a file system.
    pub fn is_file(&self) -> bool {
        self.inode != 0 && self.name.starts_with('/')
    }
}

/// The mappings of a process, in the order of their addresses; what lies beyond 8 MiB of text is left out.
///
/// May block on the target's mmap lock: call it on a reader of the pool.
pub fn read(pid: Pid) -> std::io::Result<Vec<Mapping>> {
    let mut lines = BufReader::with_capacity(64 << 10, File::open(format!("/proc/{pid}/maps"))?.take(MAX_MAPS));
    let mut mappings = Vec::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line)? == 0 {
            return Ok(mappings);
        }
        mappings.extend(parse(&line));
    }
}

/// One line: `start-end perms offset device inode   name`. Names may hold any byte but a line end, which is `\012`.
pub fn parse(line: &[u8]) -> Option<Mapping> {
    let mut rest = line.strip_suffix(b"\n").unwrap_or(line);
    let mut word = || {
        let start = rest.iter().position(|b| *b != b' ')?;
        let word = &rest[start..];
        let end = word.iter().position(|b| *b == b' ').unwrap_or(word.len());
        rest = &word[end..];
        std::str::from_utf8(&word[..end]).ok()
    };
    let (start, end) = word()?.split_once('-')?;
    let (permissions, offset, device, inode) = (word()?, word()?, word()?, word()?);
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = (hex(start)?, hex(end)?);
    let permission = |at: usize, letter: u8| permissions.as_bytes().get(at) == Some(&letter);
    let padding = rest.iter().position(|b| *b != b' ').unwrap_or(rest.len());
    (start < end).then_some(Mapping {
        start,
        end,
        readable: permission(0, b'r'),
        writable: permission(1, b'w'),
        executable: permission(2, b'x'),
        shared: permission(3, b's'),
        offset: hex(offset)?,
        device: device.to_owned(),
        inode: inode.parse().ok()?,
        name: String::from_utf8_lossy(&rest[padding..]).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail")]
    use super::*;

    #[test]
    fn lines() {
        let line = b"55d0c0a00000-55d0c0a21000 r-xp 00002000 fd:01 1234567    /opt/a b/server (deleted)\n";
        let mapping = parse(line).unwrap();
        assert_eq!((mapping.start, mapping.end, mapping.offset), (0x55d0_c0a0_0000, 0x55d0_c0a2_1000, 0x2000));
        assert!(!mapping.writable && !mapping.shared);
        assert!(mapping.readable && mapping.executable && mapping.is_deleted() && mapping.is_file());
        assert_eq!((mapping.path(), mapping.device.as_str(), mapping.inode), ("/opt/a b/server", "fd:01", 1_234_567));
        let anonymous = parse(b"7f00000000-7f00001000 rw-p 00000000 00:00 0").unwrap();
        assert!(anonymous.writable && !anonymous.executable && !anonymous.is_file() && anonymous.name.is_empty());
        for bad in [&b""[..], b"x", b"1-2", b"2-1 r-xp 0 0:0 0", b"1-2 r-xp 0 0:0 x", b"\xff-\xfe r 0 0 0"] {
            assert_eq!(parse(bad), None);
        }
    }

    #[test]
    fn the_tests_own_maps() {
        let maps = read(std::process::id()).unwrap();
        assert!(maps.windows(2).all(|pair| pair[0].end <= pair[1].start));
        assert!(maps.iter().any(|m| m.name == "[stack]") && maps.iter().any(|m| m.executable && m.is_file()));
    }
}
