//! The types of tasks that a program has: the tables of functions which tokio makes for each, found in the file by their
//! shape.
//!
//! `tokio/src/runtime/task/raw.rs` (1.40 to 1.54): seven pointers to functions (`poll`, `schedule`, `dealloc`,
//! `try_read_output`, `drop_join_handle_slow`, `drop_abort_handle`, `shutdown`), then the offsets of the trailer, of the
//! scheduler and of the id from the begin of a task; with `tokio_unstable` one more word, which is not looked at. They
//! lie in data that is read-only after relocation, also where all symbols are stripped.
//!
//! The file is read, not the target's memory: what is found is shared by all processes that map the file, and a target
//! could write anything into its own copy.

use crate::explain::image::{Image, Section};
use crate::explain::pieces::word;
use std::ops::Range;

/// Larger sections are not searched, bytes. The largest programs known have some 20 MiB.
const MAX_SECTION: usize = 64 << 20;
/// Relocations beyond these are not looked at.
const MAX_RELOCATIONS: usize = 16 << 20;
/// Types beyond these are not kept: large servers have some thousands.
const MAX_TYPES: usize = 64 << 10;
/// Pointers at the begin of a table.
const FUNCTIONS: usize = 7;
/// Words of a table that are looked at.
const WORDS: usize = FUNCTIONS + 3;
/// The header of a task has four words at least, and more with `tokio_unstable`; what follows may be aligned.
const SCHEDULER: Range<u64> = 32..4097;
/// From the scheduler (an `Arc`, or nothing at all) to the id.
const MAX_ID: u64 = 256;
/// No future is larger, bytes.
const MAX_TASK: u64 = 256 << 20;
/// `e_type` of an executable that is not relocated.
const ET_EXEC: u64 = 2;
/// Size of an `Elf64_Rela`, and the kind that stands for "base plus addend".
const RELA: usize = 24;
const RELATIVE: u64 = 8;

/// One type of tasks: a future together with the scheduler that it was spawned on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::explain) struct Vtable {
    /// Where the table is, svma.
    pub(in crate::explain) svma: u64,
    /// The function that polls, svma.
    pub(in crate::explain) poll: u64,
    /// The one that frees a task, svma.
    pub(in crate::explain) dealloc: u64,
    /// Bytes from the begin of a task to its trailer,
    pub(in crate::explain) trailer: u64,
    /// to its scheduler,
    pub(in crate::explain) scheduler: u64,
    /// and to its id.
    pub(in crate::explain) id: u64,
}

/// What a file tells of tokio.
#[derive(Debug, Default)]
pub(in crate::explain) struct Tables {
    /// By svma.
    pub(in crate::explain) vtables: Vec<Vtable>,
    /// `1.54.1`, where a path of its source is in the file (it is part of the messages of its panics).
    pub(in crate::explain) version: Option<String>,
    /// Such a path is of the runtime: the file has more of tokio than its channels and locks.
    pub(in crate::explain) has_runtime: bool,
}

impl Tables {
    /// Searches a file. Its relocations are applied to a copy of what is searched.
    pub(in crate::explain) fn find(image: &Image) -> Self {
        let fixed = word(image.bytes(), 16).is_some_and(|word| word & 0xffff == ET_EXEC);
        let code: Vec<Range<u64>> = image
            .loads()
            .iter()
            .filter(|load| load.executable)
            .map(|load| load.svma..load.svma.saturating_add(load.memory_size))
            .collect();
        let relocations = image.section(".rela.dyn").filter(|_| !fixed);
        // Without relocations there is no need to write, and some linkers put it there.
        let names: &[&str] = if fixed { &[".data.rel.ro", ".rodata"] } else { &[".data.rel.ro"] };
        let mut vtables = Vec::new();
        for section in names.iter().filter_map(|name| image.section(name)) {
            let words = relocated(section, relocations.map(|section| section.bytes));
            find_in(section.svma, &words, &code, &mut vtables);
        }
        vtables.sort_unstable_by_key(|vtable: &Vtable| vtable.svma);
        vtables.dedup_by_key(|vtable| vtable.svma);
        let source = image.section(".rodata").map(|section| source(section.bytes)).unwrap_or_default();
        Self { vtables, version: source.0, has_runtime: source.1 }
    }

    /// Bytes of memory held, about.
    pub(in crate::explain) fn approximate_bytes(&self) -> usize {
        self.vtables.capacity() * size_of::<Vtable>()
    }
}

/// The words of a section as they are in memory, but for the base that is added to addresses.
fn relocated(section: Section<'_>, relocations: Option<&[u8]>) -> Vec<u64> {
    if section.bytes.len() > MAX_SECTION || !section.svma.is_multiple_of(8) {
        return Vec::new();
    }
    // Relative relocations that are packed (`.relr.dyn`) have their addends in place already.
    let (words, _) = section.bytes.as_chunks::<8>();
    let mut words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    for rela in relocations.unwrap_or_default().chunks_exact(RELA).take(MAX_RELOCATIONS) {
        let (Some(offset), Some(info), Some(addend)) = (word(rela, 0), word(rela, 8), word(rela, 16)) else { continue };
        let at = offset.wrapping_sub(section.svma);
        if info == RELATIVE
            && at % 8 == 0
            && let Some(word) = words.get_mut((at / 8) as usize)
        {
            *word = addend;
        }
    }
    words
}

fn find_in(svma: u64, words: &[u64], code: &[Range<u64>], found: &mut Vec<Vtable>) {
    for (at, table) in words.windows(WORDS).enumerate() {
        let [functions @ .., trailer, scheduler, id] = table else { continue };
        // The offsets first: most words are none.
        let is_layout = SCHEDULER.contains(scheduler)
            && (*scheduler..=scheduler + MAX_ID).contains(id)
            && (id + 8..MAX_TASK).contains(trailer)
            && (trailer | scheduler | id) % 8 == 0;
        let is_code = |svma: &u64| code.iter().any(|range| range.contains(svma));
        if !is_layout || !functions.iter().all(is_code) || found.len() >= MAX_TYPES {
            continue;
        }
        let [poll, _, dealloc, ..] = functions else { continue };
        // One that does nothing may stand for some, but not for all of them.
        if functions.iter().all(|function| function == poll) {
            continue;
        }
        let svma = svma.wrapping_add(at as u64 * 8);
        let (poll, dealloc, trailer, scheduler, id) = (*poll, *dealloc, *trailer, *scheduler, *id);
        found.push(Vtable { svma, poll, dealloc, trailer, scheduler, id });
    }
}

/// Which tokio it is, and whether its runtime is there, by the paths of its source: `…/tokio-1.54.1/src/runtime/task/…`.
fn source(bytes: &[u8]) -> (Option<String>, bool) {
    const CRATE: &[u8] = b"tokio-1.";
    const RUNTIME: &[u8] = b"/src/runtime/task/";
    let mut version = None;
    let mut rest = &bytes[..bytes.len().min(MAX_SECTION)];
    while let Some(at) = rest.windows(CRATE.len()).position(|window| window == CRATE) {
        rest = rest.get(at + b"tokio-".len()..).unwrap_or_default();
        let digits = rest.iter().take(16).take_while(|b| b.is_ascii_digit() || **b == b'.').count();
        let (number, behind) = rest.split_at(digits);
        if behind.starts_with(b"/src/") && number.iter().filter(|b| **b == b'.').count() == 2 {
            version = Some(String::from_utf8_lossy(number).into_owned());
            if behind.starts_with(RUNTIME) {
                return (version, true);
            }
        }
    }
    (version, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: Range<u64> = 0x10_000..0x20_000;
    const GOOD: [u64; WORDS] = [0x10_000, 0x10_040, 0x10_080, 0x10_100, 0x10_200, 0x10_300, 0x10_400, 0x180, 32, 40];

    fn find(words: &[u64]) -> Vec<Vtable> {
        let mut found = Vec::new();
        find_in(0x5000, words, &[CODE], &mut found);
        found
    }

    #[test]
    fn a_table_among_other_words() {
        let words: Vec<u64> = [0, 8, 8].into_iter().chain(GOOD).chain([0x10_000, 1]).collect();
        let found = find(&words);
        assert_eq!(
            found,
            [Vtable { svma: 0x5018, poll: 0x10_000, dealloc: 0x10_080, trailer: 0x180, scheduler: 32, id: 40 }]
        );
        // With tokio_unstable the header is longer.
        let mut unstable = GOOD;
        unstable[7..].copy_from_slice(&[0x200, 48, 56]);
        assert_eq!(find(&unstable).len(), 1);
    }

    #[test]
    fn what_only_resembles_one() {
        for (at, wrong) in [
            (0, 0x20_000),
            (6, 0),
            (3, 0xfff8),
            (7, 40),
            (7, 0x181),
            (7, 1 << 40),
            (8, 24),
            (8, 33),
            (9, 24),
            (9, 400),
            (9, u64::MAX),
        ] {
            let mut words = GOOD;
            words[at] = wrong;
            assert!(find(&words).is_empty(), "{at} {wrong:#x}");
        }
        let mut same = GOOD;
        same[..FUNCTIONS].fill(0x10_000);
        assert!(find(&same).is_empty());
        assert!(find(&GOOD[..WORDS - 1]).is_empty());
        // The last number that could be added to.
        let mut high = GOOD;
        high[8..].copy_from_slice(&[!7, !7]);
        assert!(find(&high).is_empty());
    }

    #[test]
    fn relocations_give_the_pointers() {
        let bytes = [0_u8; 32];
        let rela = |offset: u64, info: u64, addend: u64| [offset, info, addend].map(u64::to_le_bytes).concat();
        let all =
            [rela(0x5008, 8, 0x10_000), rela(0x5010, 1, 7), rela(0x4ff8, 8, 7), rela(0x5012, 8, 7), rela(0x5020, 8, 7)];
        let section = Section { svma: 0x5000, bytes: &bytes };
        assert_eq!(relocated(section, Some(&all.concat())), [0, 0x10_000, 0, 0]);
        assert_eq!(relocated(section, None), [0; 4]);
        assert!(relocated(Section { svma: 0x5001, bytes: &bytes }, None).is_empty());
    }

    #[test]
    fn versions_by_paths_of_the_source() {
        for (text, wanted) in [
            ("x/tokio-1.54.1/src/sync/mutex.rs", (Some("1.54.1"), false)),
            ("/r/tokio-1.9.0/src/time.rs/r/tokio-1.54.1/src/runtime/task/core.rs", (Some("1.54.1"), true)),
            ("/tokio-1.tokio-1.2/src/ tokio-1.2.3.4/src/", (None, false)),
            ("tokio-1.", (None, false)),
            ("tokio-util-0.7.20/src/runtime/task/", (None, false)),
            ("", (None, false)),
        ] {
            assert_eq!(source(text.as_bytes()), (wanted.0.map(str::to_owned), wanted.1), "{text}");
        }
    }

    #[test]
    fn the_tests_own_program_has_tasks() {
        let file = std::fs::File::open("/proc/self/exe").expect("its own file");
        let tables = Tables::find(&Image::map(&file).expect("an ELF file"));
        // observer exports over tokio.
        assert!(!tables.vtables.is_empty() && tables.has_runtime, "{tables:?}");
        assert!(tables.version.is_some_and(|version| version.starts_with("1.")));
        let libc = crate::proc::maps::read(std::process::id()).expect("its maps");
        let libc = libc.iter().find(|mapping| mapping.path().ends_with("libc.so.6")).expect("it runs with glibc");
        let tables = Tables::find(&Image::map(&std::fs::File::open(libc.path()).expect("libc")).expect("an ELF file"));
        assert!(tables.vtables.is_empty() && tables.version.is_none() && !tables.has_runtime);
    }
}
