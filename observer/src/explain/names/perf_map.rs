//! Names of code that was made at run time, where a runtime writes them down (`perf-PID.map`).

use crate::proc::open_in_root;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// More of a file is not read, bytes.
const MAX_FILE: u64 = 64 << 20;
/// Entries beyond these are not looked at.
const MAX_ENTRIES: usize = 1 << 20;
/// Names are cut here, bytes.
const MAX_NAME: usize = 2 << 10;

/// A line of the file; the name is `text[name..name + len]`.
struct Entry {
    start: u64,
    end: u64,
    name: u32,
    len: u32,
}

/// `[start, end)` belongs to this entry.
struct Piece {
    start: u64,
    end: u64,
    entry: u32,
}

/// A map as `perf` documents it (`tools/perf/Documentation/jit-interface.txt`): lines of start, size (hexadecimal) and
/// name.
pub struct PerfMap {
    text: String,
    entries: Vec<Entry>,
    /// Sorted, disjoint.
    pieces: Vec<Piece>,
}

impl std::fmt::Debug for PerfMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PerfMap").field("entries", &self.entries.len()).finish()
    }
}

impl PerfMap {
    /// Takes what can be understood; where ranges overlap, the later line wins: code is thrown away and its place used
    /// again.
    pub fn parse(bytes: &[u8]) -> Self {
        let bytes = &bytes[..bytes.len().min(MAX_FILE as usize)];
        // Half a line at the end is not a line: the target is still writing it.
        let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1);
        let mut text = String::new();
        let mut entries = Vec::new();
        for line in bytes[..whole].split(|&b| b == b'\n') {
            if entries.len() == MAX_ENTRIES {
                break;
            }
            let mut fields = line.splitn(3, |&b| b == b' ');
            let mut number = || {
                let digits = std::str::from_utf8(fields.next()?).ok()?;
                u64::from_str_radix(digits.strip_prefix("0x").unwrap_or(digits), 16).ok()
            };
            let (Some(start), Some(size)) = (number(), number()) else { continue };
            let (Some(end), Some(name)) = (start.checked_add(size), fields.next()) else { continue };
            let name = String::from_utf8_lossy(&name[..name.len().min(MAX_NAME)]);
            let name = name.trim_end_matches('\r');
            if size == 0 || name.is_empty() {
                continue;
            }
            let (Ok(at), Ok(len)) = (u32::try_from(text.len()), u32::try_from(name.len())) else { break };
            text.push_str(name);
            entries.push(Entry { start, end, name: at, len });
        }
        let pieces = disjoint(&entries);
        Self { text, entries, pieces }
    }

    /// Opens `/tmp/perf-PID.map` of a process: `root` is where it sees its files, `own_pid` its PID in its own
    /// namespace. May block on the file system.
    pub fn open(root: &Path, own_pid: u32) -> Option<File> {
        open_in_root(root, Path::new(&format!("/tmp/perf-{own_pid}.map"))).ok()
    }

    /// Reads an open map.
    pub fn read(file: File) -> Option<Self> {
        let mut bytes = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
        Some(Self::parse(&bytes))
    }

    /// The name of the code at this address of the process.
    pub fn lookup(&self, avma: u64) -> Option<&str> {
        let piece = self.pieces[..self.pieces.partition_point(|piece| piece.start <= avma)].last()?;
        let entry = self.entries.get(piece.entry as usize).filter(|_| avma < piece.end)?;
        self.text.get(entry.name as usize..(entry.name + entry.len) as usize)
    }

    /// Bytes of memory held, about.
    pub fn approximate_bytes(&self) -> usize {
        self.text.capacity()
            + self.entries.capacity() * size_of::<Entry>()
            + self.pieces.capacity() * size_of::<Piece>()
    }
}

/// Which entry owns what: from the left, at every start or end of one, the last of those that are open.
fn disjoint(entries: &[Entry]) -> Vec<Piece> {
    let mut by_start: Vec<u32> = (0..).take(entries.len()).collect();
    by_start.sort_unstable_by_key(|&index| entries[index as usize].start);
    let mut pieces: Vec<Piece> = Vec::new();
    let mut open = BinaryHeap::new();
    let mut next = by_start.iter().copied().peekable();
    let mut at = 0;
    loop {
        while open.peek().is_some_and(|&index: &u32| entries[index as usize].end <= at) {
            open.pop();
        }
        let Some(&owner) = open.peek() else {
            // Nothing is open: on to the next start.
            let Some(&first) = next.peek() else { return pieces };
            at = at.max(entries[first as usize].start);
            while let Some(index) = next.next_if(|&index| entries[index as usize].start <= at) {
                open.push(index);
            }
            continue;
        };
        let end = entries[owner as usize].end;
        let end = next.peek().map_or(end, |&index| end.min(entries[index as usize].start));
        match pieces.last_mut() {
            Some(last) if last.entry == owner && last.end == at => last.end = end,
            _ => pieces.push(Piece { start: at, end, entry: owner }),
        }
        at = end;
        while let Some(index) = next.next_if(|&index| entries[index as usize].start <= at) {
            open.push(index);
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail")]
    use super::*;

    fn load(root: &Path, own_pid: u32) -> Option<PerfMap> {
        PerfMap::read(PerfMap::open(root, own_pid)?)
    }

    use crate::explain::names::tests::Random;

    #[test]
    fn later_lines_win() {
        let map = PerfMap::parse(
            b"1000 100 LazyCompile:~outer /a b.js:1\n1020 10 inner\n0x2000 10 old\n1ff8 10 new\n3000 0 none\nbad\n4000 10 cut",
        );
        for (address, name) in [
            (0xfff, None),
            (0x1000, Some("LazyCompile:~outer /a b.js:1")),
            (0x1020, Some("inner")),
            (0x102f, Some("inner")),
            (0x1030, Some("LazyCompile:~outer /a b.js:1")),
            (0x10ff, Some("LazyCompile:~outer /a b.js:1")),
            (0x1100, None),
            (0x1ff8, Some("new")),
            (0x2007, Some("new")),
            (0x2008, Some("old")),
            (0x2010, None),
            (0x3000, None),
            (0x4000, None),
        ] {
            assert_eq!(map.lookup(address), name, "{address:#x}");
        }
    }

    #[test]
    fn as_a_slow_search_would_find() {
        let mut random = Random(7);
        for _ in 0..200 {
            let lines: Vec<(u64, u64)> = (0..20).map(|_| (random.below(60), random.below(20))).collect();
            let text: String =
                lines.iter().enumerate().map(|(i, (start, size))| format!("{start:x} {size:x} f{i}\n")).collect();
            let map = PerfMap::parse(text.as_bytes());
            for at in 0..90 {
                let slow = lines.iter().rposition(|&(start, size)| (start..start + size).contains(&at));
                assert_eq!(map.lookup(at), slow.map(|i| format!("f{i}")).as_deref());
            }
        }
    }

    #[test]
    fn garbage_is_no_map() {
        let mut random = Random(3);
        let garbage: Vec<u8> = (0..1 << 18).map(|_| random.below(256) as u8).collect();
        assert_eq!(PerfMap::parse(&garbage).lookup(0), None);
        let hexadecimal: Vec<u8> = (0..1 << 18).map(|_| b"0123456789abcdef  \n\n"[random.below(20) as usize]).collect();
        let map = PerfMap::parse(&hexadecimal);
        for _ in 0..1000 {
            map.lookup(random.below(u64::MAX));
        }
        assert!(PerfMap::parse(b"ffffffffffffffff 2 f\n").lookup(0).is_none());
    }

    #[test]
    fn only_from_a_regular_file() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("tmp")).unwrap();
        assert!(load(root.path(), 7).is_none());
        std::fs::write(root.path().join("tmp/perf-7.map"), "10 10 f\n").unwrap();
        assert_eq!(load(root.path(), 7).unwrap().lookup(0x11), Some("f"));
        nix::unistd::mkfifo(&root.path().join("tmp/perf-8.map"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(load(root.path(), 8).is_none());
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("tmp/perf-9.map")).unwrap();
        assert!(load(root.path(), 9).is_none(), "a link leads within the root");
    }
}
