//! Tables as an attacker would write them: damage at random, and on purpose.

use super::*;
use std::time::{Duration, Instant};

/// Far more than a lookup needs, and far less than a loop that a table controls.
const PATIENCE: Duration = Duration::from_secs(20);

/// xorshift64*: the same damage in each run.
pub(in crate::explain::go) struct Damage(pub(in crate::explain::go) u64);

impl Damage {
    pub(in crate::explain::go) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % limit
    }
}

fn ask(table: LineTable<'_>, pcs: impl IntoIterator<Item = u64>) {
    for pc in pcs {
        let _ = (table.function(pc), table.line(pc), table.frame_size(pc), table.frames(pc));
    }
}

/// The table of a real program, its text base, and the bytes of its inline trees.
fn real() -> (Vec<u8>, u64, Vec<u8>) {
    let directory = tempfile::tempdir().unwrap();
    let table = find(&build(directory.path(), "hostile", &["-ldflags=-s -w"]));
    let bytes = |range: &Range<usize>| table.image.bytes()[range.clone()].to_vec();
    (bytes(&table.bytes), table.text, bytes(&table.inline_trees))
}

#[test]
fn damaged_tables_are_read_without_a_panic_and_in_time() {
    let (good, text, trees) = real();
    let (start, end) = LineTable::new(&good, text, &trees).unwrap().bounds().unwrap();
    let mut damage = Damage(20_240_607);
    let pcs = |count: usize, damage: &mut Damage| {
        let span = usize::try_from(end - start).unwrap();
        let mut pcs: Vec<_> = (0..count).map(|_| start + damage.below(span) as u64).collect();
        pcs.extend([0, start - 1, start, end - 1, end, u64::MAX]);
        pcs
    };
    let began = Instant::now();
    let mut sound = 0;
    for round in 0..400 {
        let mut bytes = good.clone();
        // Some rounds damage the header only, some cut, all flip bits everywhere.
        for _ in 0..[1, 16, 4096][round % 3] {
            let limit = if round % 2 == 0 { 72 } else { bytes.len() };
            let at = damage.below(limit);
            bytes[at] ^= 1 << damage.below(8);
        }
        if round % 5 == 0 {
            bytes.truncate(damage.below(good.len()));
        }
        let cut = damage.below(trees.len());
        if let Ok(table) = LineTable::new(&bytes, text, &trees[cut..]) {
            sound += 1;
            ask(table, pcs(50, &mut damage));
        }
    }
    assert!(sound > 100, "{sound} headers were sound");
    assert!(began.elapsed() < 6 * PATIENCE, "{:?}", began.elapsed());
}

#[test]
fn every_truncation_of_the_header_is_refused() {
    let (good, text, _) = real();
    for length in 0..=table::HEADER_SIZE {
        assert!(LineTable::new(&good[..length], text, &[]).is_err());
    }
}

#[test]
fn numbers_without_bounds_are_refused() {
    let (good, text, _) = real();
    for word in 0..8 {
        for value in [1 << 32, 1 << 62, u64::MAX, u64::MAX / 8, u64::MAX / 2 + 1] {
            let mut bytes = good.clone();
            bytes[8 + word * 8..16 + word * 8].copy_from_slice(&value.to_le_bytes());
            match LineTable::new(&bytes, text, &[]) {
                // The number of files is not used, the text base is the caller's.
                Ok(table) if word == 1 || word == 2 => ask(table, [text, text + 0x1000]),
                other => assert!(matches!(other, Err(GoTableError::Header { .. })), "{word} {value:#x}"),
            }
        }
    }
}

#[test]
fn a_table_of_values_that_never_ends_is_given_up() {
    // One function of 4 GiB whose values advance by no byte of code, 16 MiB of them.
    let mut bytes = vec![0xf1, 0xff, 0xff, 0xff, 0, 0, 1, 8];
    let endless = 16 << 20;
    let offsets = [72_u64, 80, 84, 88, 88 + endless];
    for word in [1_u64, 1, 0].into_iter().chain(offsets) {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(b"name\0\0\0\0"); // names
    bytes.extend([0; 4]); // files of the unit
    bytes.extend(b"f.\0\0"); // files
    bytes.extend([2, 0].repeat(usize::try_from(endless / 2).unwrap()));
    for word in [0_u32, 12, u32::MAX] {
        bytes.extend(word.to_le_bytes()); // entry, its record, end
    }
    // entry, name, args, deferreturn, pcsp, pcfile, pcln, npcdata, unit, line, flags and nfuncdata, pcdata, funcdata
    for word in [0_u32, 0, 0, 0, 2, 2, 2, 3, 0, 7, 4 << 24, 2, 2, 2, 0, 0, 0, 0] {
        bytes.extend(word.to_le_bytes());
    }
    let table = LineTable::new(&bytes, 0x1000, &[0; 64]).unwrap();
    let began = Instant::now();
    for pc in (0x1000..u64::from(u32::MAX)).step_by(1 << 29) {
        assert_eq!(table.function(pc).unwrap().name, "name");
        assert_eq!((table.line(pc), table.frame_size(pc)), (None, None));
        assert_eq!(table.frames(pc).len(), 1);
    }
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
}

#[test]
fn damaged_files_are_searched_without_a_panic() {
    let directory = tempfile::tempdir().unwrap();
    let good = std::fs::read(build(directory.path(), "damaged", &["-buildmode=pie", "-ldflags=-s -w"])).unwrap();
    let mut damage = Damage(7);
    let began = Instant::now();
    for round in 0..60 {
        let mut bytes = good.clone();
        // The headers, the places that the search follows, or the end of the file.
        for _ in 0..8 {
            let at = damage.below(if round % 2 == 0 { 0x400 } else { good.len() });
            bytes[at] ^= 1 << damage.below(8);
        }
        if round % 3 == 0 {
            bytes.truncate(damage.below(good.len()));
        }
        let Ok(image) = Image::from_bytes(bytes) else { continue };
        if let Ok(Some(table)) = PcLineTable::find(&Arc::new(image)) {
            ask(table.table(), [0, table.text, table.text + 0x1234, u64::MAX]);
        }
    }
    assert!(began.elapsed() < 6 * PATIENCE, "{:?}", began.elapsed());
}
