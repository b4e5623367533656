//! Programs are compiled here, and their names looked up.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

use super::*;
use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

/// xorshift64*: the same numbers at every run.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
    }
}

/// Packs with the `xz` program.
pub(super) fn xz(bytes: &[u8]) -> Vec<u8> {
    use std::io::{Seek, Write};
    let mut plain = tempfile::tempfile().unwrap();
    plain.write_all(bytes).unwrap();
    plain.rewind().unwrap();
    let output = Command::new("xz").args(["-c", "-T1"]).stdin(plain).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// Two functions that are not exported, one inlined into the other, and an exported one that calls.
const C: &str = r#"
#include <unistd.h>
static inline __attribute__((always_inline)) int inlined(volatile int *p) {
    *p += 41;
    return *p;
}
static __attribute__((noinline, noclone)) int hidden(volatile int *p) {
    return inlined(p) + 1;
}
__attribute__((visibility("default"))) int exported(volatile int *p) {
    int value = hidden(p);
    *p = (int)write(1, "", 0);
    return value;
}
int main(void) {
    volatile int value = 0;
    return exported(&value);
}
__asm__(".text\n.type sizeless, @function\nsizeless: nop\nnop\nnop\nret\n");
"#;

struct Built {
    dir: tempfile::TempDir,
}

/// Runs a program in the directory.
fn run(dir: &Path, program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).current_dir(dir).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is needed for this test: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Built {
    /// Compiles [`C`] into `program`, with all there is to know of it in `full`.
    fn c(flags: &[&str]) -> Self {
        let built = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::write(built.path("sample.c"), C).unwrap();
        let mut args = vec!["-O1", "-rdynamic", "-Wl,--build-id=sha1", "-o", "full", "sample.c"];
        args.extend(flags);
        run(built.dir.path(), "gcc", &args);
        std::fs::copy(built.path("full"), built.path("program")).unwrap();
        built
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, program: &str, args: &[&str]) {
        run(self.dir.path(), program, args);
    }

    /// The directory is the root the program sees.
    fn names(&self) -> Names {
        Names::load(map(&self.path("program")), self.dir.path(), "/program")
    }

    /// What the symbol table of `full` says.
    fn range(&self, function: &str) -> Range<u64> {
        use object::{Object, ObjectSymbol};
        let full = map(&self.path("full"));
        let elf = full.elf().unwrap();
        let symbol = elf.symbols().find(|symbol| symbol.name() == Ok(function)).unwrap();
        symbol.address()..symbol.address() + symbol.size().max(1)
    }

    /// The names of all addresses of a function, each once, as `function:line<function:line`.
    fn all(&self, names: &Names, function: &str) -> BTreeSet<String> {
        self.range(function).map(|svma| text(&names.lookup(svma, false))).collect()
    }
}

fn map(path: &Path) -> Arc<Image> {
    Arc::new(Image::map(&File::open(path).unwrap()).unwrap())
}

fn text(lookup: &Lookup) -> String {
    let frames = lookup.frames.iter().map(|named| {
        let line = named.line.map(|line| format!(":{line}")).unwrap_or_default();
        let inlined = if named.inlined { "*" } else { "" };
        format!("{}{line}{inlined}", named.function.as_deref().unwrap_or("?"))
    });
    frames.collect::<Vec<_>>().join("<")
}

fn set(texts: &[&str]) -> BTreeSet<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

/// What debug information says of `hidden`.
fn assert_full(built: &Built, names: &Names) {
    let all = built.all(names, "hidden");
    assert!(all.contains("inlined:4*<hidden:8"), "{all:?}");
    assert!(all.iter().all(|text| text.ends_with("hidden:8") || text.starts_with("hidden:")), "{all:?}");
    let inlined = built.range("hidden").map(|svma| names.lookup(svma, false)).find(|found| found.frames.len() == 2);
    let file = inlined.unwrap().frames[0].file.clone().unwrap();
    assert!(file.ends_with("/sample.c"), "{file}");
    let exported = built.all(names, "exported");
    assert!(exported.contains("exported:11") && exported.contains("exported:12"), "{exported:?}");
    let lookup = names.lookup(built.range("exported").start, false);
    assert_eq!(lookup.symbol, Some(built.range("exported")));
    // The first address after a function is a return address of a call at its end.
    assert!(text(&names.lookup(built.range("hidden").end, true)).contains("hidden"));
}

fn assert_symbols(built: &Built, names: &Names) {
    assert_eq!(built.all(names, "hidden"), set(&["hidden"]));
    assert_eq!(built.all(names, "exported"), set(&["exported"]));
    assert_eq!(names.lookup(built.range("hidden").start, false).symbol, Some(built.range("hidden")));
}

#[test]
fn debug_information() {
    for flags in [&["-g"][..], &["-g", "-gz=zlib"], &["-g", "-gdwarf-4", "-static"], &["-g", "-gdwarf-5"]] {
        let built = Built::c(flags);
        let names = built.names();
        assert_full(&built, &names);
        assert_eq!(names.notes(), [""; 0]);
        assert!(names.approximate_bytes() > 1000);
    }
}

#[test]
fn symbol_table_only() {
    let built = Built::c(&[]);
    let names = built.names();
    assert_symbols(&built, &names);
    // To the next symbol of its section, not behind the section.
    let sizeless = built.range("sizeless").start;
    assert_eq!(text(&names.lookup(sizeless + 3, false)), "sizeless");
    let main = names.lookup(built.range("main").start, false);
    assert_eq!(text(&main), "main");
    for nowhere in [0, 1, u64::MAX, 1 << 40] {
        assert_eq!(names.lookup(nowhere, false), Lookup::default());
        assert_eq!(names.lookup(nowhere, true), Lookup::default());
    }
}

#[test]
fn stubs_of_the_linkage_table() {
    for flags in [&["-Wl,-z,lazy"][..], &["-fcf-protection=full", "-Wl,-z,lazy"], &["-Wl,-z,now"]] {
        let built = Built::c(flags);
        let names = built.names();
        let image = map(&built.path("program"));
        let stubs = [".plt", ".plt.sec", ".plt.got"].iter().filter_map(|name| image.section(name));
        let all: BTreeSet<String> = stubs
            .flat_map(|s| s.svma..s.svma + s.bytes.len() as u64)
            .map(|at| text(&names.lookup(at, false)))
            .collect();
        assert!(all.contains("write@plt"), "{all:?}");
    }
}

#[test]
fn exports_only() {
    let built = Built::c(&["-g"]);
    built.run("strip", &["program"]);
    let names = built.names();
    assert_eq!(built.all(&names, "exported"), set(&["exported"]));
    assert_eq!(built.all(&names, "hidden"), set(&[""]), "no name is better than that of a neighbour");
    assert_eq!(text(&names.lookup(built.range("sizeless").start, false)), "");
}

#[test]
fn no_symbols_at_all() {
    let built = Built { dir: tempfile::tempdir().unwrap() };
    std::fs::write(built.path("sample.c"), C).unwrap();
    built.run("gcc", &["-static", "-O1", "-o", "full", "sample.c"]);
    built.run("strip", &["-o", "program", "full"]);
    let names = built.names();
    assert_eq!(built.all(&names, "exported"), set(&[""]));
    assert_eq!(built.all(&names, "hidden"), set(&[""]));
}

#[test]
fn debug_file_by_link() {
    for place in ["program.debug", ".debug/program.debug", "usr/lib/debug/program.debug"] {
        // Without a build-id, by checksum alone.
        let built = Built::c(&["-g", "-Wl,--build-id=none"]);
        built.run("objcopy", &["--only-keep-debug", "full", "program.debug"]);
        built.run("objcopy", &["--strip-all", "--add-gnu-debuglink=program.debug", "program"]);
        let to = built.path(place);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::rename(built.path("program.debug"), &to).unwrap();
        let names = built.names();
        assert_full(&built, &names);
        assert_eq!(names.notes(), [""; 0]);

        // A file that is not the one meant.
        let mut bytes = std::fs::read(&to).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&to, bytes).unwrap();
        let names = built.names();
        assert_eq!(names.notes(), [format!("/{place}: checksum differs")]);
        assert_eq!(built.all(&names, "hidden"), set(&[""]));
    }
}

#[test]
fn a_link_does_not_lead_out_of_the_root() {
    let built = Built::c(&["-g", "-Wl,--build-id=none"]);
    built.run("objcopy", &["--only-keep-debug", "full", "program.debug"]);
    built.run("objcopy", &["--strip-all", "--add-gnu-debuglink=program.debug", "program"]);
    let outside = tempfile::tempdir().unwrap();
    std::fs::rename(built.path("program.debug"), outside.path().join("there")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("there"), built.path("program.debug")).unwrap();
    assert_eq!(built.all(&built.names(), "hidden"), set(&[""]));
    std::fs::remove_file(built.path("program.debug")).unwrap();
    nix::unistd::mkfifo(&built.path("program.debug"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert_eq!(built.names().notes(), ["/program.debug: not a regular file"]);
}

#[test]
fn debug_file_by_build_id() {
    let built = Built::c(&["-g", "-gz"]);
    built.run("objcopy", &["--only-keep-debug", "full", "full.debug"]);
    built.run("strip", &["program"]);
    let id = map(&built.path("program")).build_id().unwrap().to_owned();
    let place = format!("usr/lib/debug/.build-id/{}/{}.debug", &id[..2], &id[2..]);
    std::fs::create_dir_all(built.path(&place).parent().unwrap()).unwrap();
    std::fs::copy(built.path("full.debug"), built.path(&place)).unwrap();
    assert_full(&built, &built.names());

    // The module keeps its symbols: lines still come from the debug file.
    built.run("objcopy", &["--strip-debug", "full", "program"]);
    assert_full(&built, &built.names());

    // That of another build is not used.
    let other = Built::c(&["-g", "-DOTHER", "-O2"]);
    std::fs::copy(other.path("full"), built.path(&place)).unwrap();
    built.run("strip", &["program"]);
    let names = built.names();
    assert_eq!(names.notes(), [format!("/{place}: another build-id")]);
    assert_eq!(built.all(&names, "hidden"), set(&[""]));
}

#[test]
fn mini_debug_information() {
    let built = Built::c(&["-g"]);
    // As rpm's find-debuginfo makes it, in essence.
    built.run("objcopy", &["--only-keep-debug", "--strip-debug", "full", "mini"]);
    std::fs::write(built.path("mini.xz"), xz(&std::fs::read(built.path("mini")).unwrap())).unwrap();
    built.run("strip", &["program"]);
    built.run("objcopy", &["--add-section", ".gnu_debugdata=mini.xz", "program"]);
    let names = built.names();
    assert_symbols(&built, &names);
    assert_eq!(names.notes(), [""; 0]);

    let bomb = xz(&vec![0; 65 << 20]);
    std::fs::write(built.path("bomb.xz"), bomb).unwrap();
    built.run("objcopy", &["--update-section", ".gnu_debugdata=bomb.xz", "program"]);
    let names = built.names();
    assert_eq!(names.notes(), ["/program: .gnu_debugdata: xz data becomes too large"]);
    assert_eq!(built.all(&names, "exported"), set(&["exported"]));
}

#[test]
fn broken_debug_information_leaves_the_symbols() {
    let built = Built::c(&["-g"]);
    std::fs::write(built.path("junk"), [0xff; 999]).unwrap();
    built.run("objcopy", &["--update-section", ".debug_info=junk", "program"]);
    assert_symbols(&built, &built.names());
}

/// Debug information written by hand: the parts of a function `f` of 64 bytes, that is 64 `nop`.
const ASSEMBLY: &str = r#"
.globl f
.type f, @function
f: .skip 64, 0x90
.size f, 64
.section .debug_abbrev,"",@progbits
.uleb128 1, 0x11; .byte 1; .uleb128 0x11, 0x01, 0x12, 0x07, 0, 0
.uleb128 2, 0x2e; .byte 1; .uleb128 0x11, 0x01, 0x12, 0x07, 0x31, 0x1f20, 0, 0
.uleb128 3, 0x1d; .byte 1; .uleb128 0, 0
.byte 0
.section .debug_info,"",@progbits
.long end - start
start: .value 4; .long 0; .byte 8
.uleb128 1; .quad f, 64
"#;

/// What `dwz` takes out: a unit with the name of a function, referred to from other files.
const SHARED: &str = r#"
.section .debug_abbrev,"",@progbits
.uleb128 1, 0x3c; .byte 1; .uleb128 0, 0
.uleb128 2, 0x2e; .byte 0; .uleb128 0x03, 0x0e, 0, 0
.byte 0
.section .debug_str,"MS",@progbits,1
.string "name_in_the_shared_file"
.section .debug_info,"",@progbits
.long end - start
start: .value 4; .long 0; .byte 8
.uleb128 1
.uleb128 2; .long 0
.byte 0
end:
"#;

impl Built {
    /// Assembles and links `text` into `full` and `program`.
    fn assembly(text: &str, link: &[&str]) -> Self {
        let built = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::write(built.path("sample.s"), text).unwrap();
        built.run("gcc", &[&["-nostdlib", "-static", "-no-pie", "-Wl,-e,0", "-o", "full", "sample.s"], link].concat());
        std::fs::copy(built.path("full"), built.path("program")).unwrap();
        built
    }
}

#[test]
fn debug_information_that_dwz_shared() {
    // The name of `f` is the one of the entry at 12 of the shared file.
    let entry = ".uleb128 2; .quad f, 64; .long 12\n.byte 0, 0\nend:\n";
    let link = ".section .gnu_debugaltlink,\"\",@progbits\n.string \"dwz/shared\"\n.byte 0x12, 0x34, 0x56, 0x78\n";
    let built = Built::assembly(&format!("{ASSEMBLY}{entry}{link}"), &[]);
    let names = built.names();
    assert_eq!(built.all(&names, "f"), set(&["f"]));
    assert_eq!(names.notes(), ["/dwz/shared: missing: names it shares with other debug files are unknown"]);

    let place = |id: &str, path: &str| {
        let shared = Built::assembly(SHARED, &[&format!("-Wl,--build-id=0x{id}")]);
        std::fs::create_dir_all(built.path(path).parent().unwrap()).unwrap();
        std::fs::copy(shared.path("full"), built.path(path)).unwrap();
    };
    for path in ["dwz/shared", "usr/lib/debug/.build-id/12/345678.debug"] {
        place("12345678", path);
        let names = built.names();
        assert_eq!(built.all(&names, "f"), set(&["name_in_the_shared_file"]));
        assert_eq!(names.notes(), [""; 0]);
        std::fs::remove_file(built.path(path)).unwrap();
    }
    place("12345679", "dwz/shared");
    assert_eq!(built.names().notes()[0], "/dwz/shared: another build-id");
}

#[test]
fn a_million_inlined_into_each_other() {
    // Whoever follows them by recursion needs more stack than there is.
    let entries = ".uleb128 2; .quad f, 64; .long 0\n.fill 1000000, 1, 3\nend:\n";
    let built = Built::assembly(&format!("{ASSEMBLY}{entries}"), &[]);
    assert_eq!(built.all(&built.names(), "f"), set(&["f"]));
}

#[test]
fn sections_that_claim_to_be_huge_when_unpacked() {
    use object::{Object, ObjectSection};
    let built = Built::c(&["-g", "-gz=zlib"]);
    let mut bytes = std::fs::read(built.path("program")).unwrap();
    let image = map(&built.path("full"));
    let (at, _) = image.elf().unwrap().section_by_name(".debug_info").unwrap().file_range().unwrap();
    // `ch_size` of the header of a compressed section.
    bytes[at as usize + 8..at as usize + 16].copy_from_slice(&(1_u64 << 29 | 1).to_le_bytes());
    std::fs::write(built.path("program"), bytes).unwrap();
    assert_symbols(&built, &built.names());
}

#[test]
fn rust_names() {
    const RUST: &str = "
pub mod deep { pub struct S<T>(pub T); impl<T: Copy> S<T> {
    #[inline(never)] pub fn method(&self) -> T { std::hint::black_box(self.0) }
    #[inline(always)] pub fn inlined(&self) -> T { std::hint::black_box(self.0) }
} }
#[inline(never)] fn caller(s: &deep::S<u32>) -> u32 { s.inlined() + s.method() }
fn main() { println!(\"{}\", caller(&deep::S(7))); }
";
    for (mangling, method) in [("v0", "<sample::deep::S<u32>>::method"), ("legacy", "sample::deep::S<T>::method")] {
        let built = Built { dir: tempfile::tempdir().unwrap() };
        std::fs::write(built.path("sample.rs"), RUST).unwrap();
        let mangling = format!("symbol-mangling-version={mangling}");
        // `legacy` is for nightly compilers only, unless asked this way.
        let rustc = PathBuf::from(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        let status = Command::new(rustc)
            .args(["-O", "-g", "-C", &mangling, "-Z", "unstable-options", "-o", "program", "sample.rs"])
            .env("RUSTC_BOOTSTRAP", "1")
            .current_dir(built.dir.path())
            .status();
        assert!(status.unwrap().success());
        std::fs::copy(built.path("program"), built.path("full")).unwrap();
        let functions = |names: &Names, part: &str| -> BTreeSet<String> {
            use object::{Object, ObjectSymbol};
            let full = map(&built.path("full"));
            let elf = full.elf().unwrap();
            let symbol =
                elf.symbols().find(|s| s.name().is_ok_and(|n| n.contains("sample") && n.contains(part))).unwrap();
            let range = symbol.address()..symbol.address() + symbol.size();
            range.flat_map(|at| names.lookup(at, false).frames).filter_map(|named| named.function).collect()
        };
        let names = built.names();
        assert!(functions(&names, "method").contains(method), "{:?}", functions(&names, "method"));
        let caller = functions(&names, "caller");
        assert!(caller.contains("sample::caller"), "{caller:?}");
        assert!(caller.iter().any(|name| name.ends_with("inlined")), "{caller:?}");
        built.run("strip", &["--strip-debug", "program"]);
        let names = built.names();
        assert_eq!(functions(&names, "method"), set(&[method]));
        assert_eq!(functions(&names, "caller"), set(&["sample::caller"]));
    }
}

#[test]
fn cpp_names() {
    const CPP: &str = "
namespace deep { struct S { int value; __attribute__((noinline)) int method(int more) const; }; }
int deep::S::method(int more) const { return value + more; }
int main(int argc, char **) { deep::S s{argc}; return s.method(1); }
";
    if Command::new("g++").arg("--version").output().is_err() {
        println!("SKIPPED: explain::names::tests::cpp_names: g++ is not installed");
        return;
    }
    let built = Built { dir: tempfile::tempdir().unwrap() };
    std::fs::write(built.path("sample.cc"), CPP).unwrap();
    built.run("g++", &["-O1", "-g", "-o", "full", "sample.cc"]);
    std::fs::copy(built.path("full"), built.path("program")).unwrap();
    assert_eq!(built.all(&built.names(), "_ZNK4deep1S6methodEi"), set(&["deep::S::method(int) const:3"]));
    built.run("strip", &["--strip-debug", "program"]);
    assert_eq!(built.all(&built.names(), "_ZNK4deep1S6methodEi"), set(&["deep::S::method(int) const"]));
}

/// Looks addresses up as a walk would, and some no walk would.
fn exercise(bytes: Vec<u8>, addresses: &[u64]) {
    let Ok(image) = Image::from_bytes(bytes) else { return };
    let names = Names::load(Arc::new(image), Path::new("/nonexistent"), "/none");
    for &svma in addresses {
        for lookup in [names.lookup(svma, false), names.lookup(svma, true)] {
            assert!(lookup.frames.len() <= 64);
        }
    }
    names.approximate_bytes();
}

#[test]
fn damaged_files_name_what_they_can() {
    for flags in [&["-g"][..], &["-g", "-gz"], &["-g", "-gdwarf-4"]] {
        let built = Built::c(flags);
        let whole = std::fs::read(built.path("program")).unwrap();
        let starts = ["hidden", "exported", "main", "sizeless"].map(|name| built.range(name).start);
        let addresses: Vec<u64> = starts.iter().flat_map(|&at| [at, at + 5, at + 9]).chain([0, u64::MAX]).collect();
        let mut random = Random(42);
        for _ in 0..60 {
            exercise(whole[..random.below(whole.len() as u64) as usize].to_vec(), &addresses);
        }
        let image = map(&built.path("program"));
        let dense: Vec<Range<usize>> = {
            use object::{Object, ObjectSection};
            let elf = image.elf().unwrap();
            let ranges = elf.sections().filter(|s| s.name().is_ok_and(|n| n.starts_with(".debug") || n == ".symtab"));
            ranges.filter_map(|s| s.file_range()).map(|(at, len)| at as usize..(at + len) as usize).collect()
        };
        for case in 0..300 {
            let mut bytes = whole.clone();
            for _ in 0..1 + random.below(8) {
                // Half of them anywhere, half of them where the names are; and the header of the file.
                let range = match case % 4 {
                    0 => 0..bytes.len(),
                    1 => bytes.len() - 2500..bytes.len(),
                    _ => dense[random.below(dense.len() as u64) as usize].clone(),
                };
                let at = range.start + random.below(range.len() as u64) as usize;
                bytes[at] = random.below(256) as u8;
            }
            exercise(bytes, &addresses);
        }
    }
}
