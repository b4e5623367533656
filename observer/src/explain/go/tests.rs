//! Against programs that the `go` of this machine builds, its own tools and the symbol table; other versions of Go are
//! not tried here.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod hostile;
pub(super) use hostile::Damage;

use super::*;
use object::{Object, ObjectSymbol, SymbolKind};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds the test program with the `go` of this machine (Debian's, installed by `xtask setup`).
pub(super) fn build(directory: &Path, name: &str, arguments: &[&str]) -> PathBuf {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/explain/go/testdata/main.go");
    let program = directory.join(name);
    let mut go = Command::new("go");
    go.env("GO111MODULE", "off").env("GOTOOLCHAIN", "local").env("GOFLAGS", "").env("CGO_ENABLED", "0");
    go.arg("build").args(arguments).arg("-o").arg(&program).arg(source);
    let output = go.output().expect("`go` must be installed (xtask setup)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}

fn image(program: &Path) -> Arc<Image> {
    Arc::new(Image::map(&File::open(program).unwrap()).unwrap())
}

fn find(program: &Path) -> PcLineTable {
    PcLineTable::find(&image(program)).unwrap().expect("it is a Go program")
}

/// Entry, size and name of the functions of Go in the symbol table.
fn symbols(image: &Image, table: &PcLineTable) -> Vec<(u64, u64, String)> {
    let (start, end) = table.table().bounds().unwrap();
    let elf = image.elf().unwrap();
    let functions = elf.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() != 0);
    let functions = functions.filter(|symbol| (start..end).contains(&symbol.address()));
    functions.map(|symbol| (symbol.address(), symbol.size(), symbol.name().unwrap().to_owned())).collect()
}

/// Newer linkers write type arguments as `[...]`, and the symbol table marks the calling convention.
fn bare(name: &str) -> &str {
    let name = name.split('[').next().unwrap();
    name.strip_suffix(".abi0").unwrap_or(name)
}

#[test]
fn every_function_has_the_name_and_the_entry_of_its_symbol() {
    let directory = tempfile::tempdir().unwrap();
    for (mode, stripped) in [("exe", "exe-stripped"), ("pie", "pie-stripped")] {
        let mode = format!("-buildmode={mode}");
        let program = build(directory.path(), "symbols", &[&mode]);
        let (image, named) = (image(&program), find(&program));
        let stripped = find(&build(directory.path(), stripped, &[&mode, "-ldflags=-s -w"]));
        assert_eq!(named.module().map(|module| module.text), stripped.module().map(|module| module.text));
        assert!(stripped.version().starts_with("go1."), "{}", stripped.version());
        let symbols = symbols(&image, &named);
        assert!(symbols.len() > 1000, "{} symbols", symbols.len());
        for (entry, size, name) in symbols {
            for pc in [entry, entry + size / 2, entry + size - 1] {
                let function = stripped.function(pc).unwrap();
                assert_eq!((function.entry, bare(&function.name)), (entry, bare(&name)));
                assert!(function.end >= entry + size);
                assert_eq!(stripped.frames(pc), named.frames(pc));
            }
        }
    }
}

#[test]
fn files_and_lines_are_those_of_go_tool_addr2line() {
    let directory = tempfile::tempdir().unwrap();
    let program = build(directory.path(), "lines", &[]);
    let table = find(&program);
    let symbols = symbols(&image(&program), &table);
    let pcs: Vec<_> =
        symbols.iter().flat_map(|&(entry, size, _)| [entry, entry + size / 3, entry + size - 1]).collect();
    let list = directory.path().join("pcs");
    std::fs::write(&list, pcs.iter().map(|pc| format!("{pc:#x}\n")).collect::<String>()).unwrap();
    let mut go = Command::new("go");
    go.args(["tool", "addr2line"]).arg(&program).stdin(File::open(list).unwrap());
    let output = String::from_utf8(go.output().unwrap().stdout).unwrap();
    let expected: Vec<_> = output.lines().skip(1).step_by(2).collect();
    assert_eq!(expected.len(), pcs.len());
    for (pc, expected) in pcs.iter().zip(expected) {
        let (file, line) = table.line(*pc).unwrap_or(("?".to_owned(), 0));
        assert_eq!(format!("{file}:{line}"), expected, "at {pc:#x}");
    }
}

#[test]
fn inlined_calls_come_before_the_function_that_holds_them() {
    let directory = tempfile::tempdir().unwrap();
    let program = build(directory.path(), "inlined", &["-ldflags=-s -w"]);
    let table = find(&program);
    let (start, end) = table.table().bounds().unwrap();
    let deepest = (start..end)
        .map(|pc| (pc, table.frames(pc)))
        .filter(|(_, frames)| frames.last().is_some_and(|frame| bare(&frame.function) == "main.(*account).deposit"));
    let (pc, frames) = deepest.max_by_key(|(_, frames)| frames.len()).unwrap();
    let names: Vec<_> = frames.iter().map(|frame| (frame.function.as_str(), frame.inlined)).collect();
    assert_eq!(names, [("main.addOne", true), ("main.addTwo", true), ("main.(*account).deposit", false)]);
    let lines: Vec<_> = frames.iter().map(|frame| frame.line.unwrap()).collect();
    assert_eq!(lines, [18, 20, 24]);
    assert_eq!(table.line(pc).unwrap().1, 18);
    assert!(frames.iter().all(|frame| frame.file.as_deref().unwrap().ends_with("testdata/main.go")));
}

#[test]
fn frame_sizes_follow_the_stack_pointer() {
    let directory = tempfile::tempdir().unwrap();
    let program = build(directory.path(), "sizes", &["-buildmode=pie"]);
    let table = find(&program);
    let symbols = symbols(&image(&program), &table);
    let (entry, size, _) = symbols.iter().find(|(.., name)| name == "main.frameOfKnownSize").unwrap();
    // At the entry only the return address is on the stack; in the body the 256 bytes and the frame pointer too.
    assert_eq!(table.frame_size(*entry), Some(0));
    let largest = (*entry..entry + size).filter_map(|pc| table.frame_size(pc)).max().unwrap();
    assert!((264..512).contains(&largest), "{largest}");
    let exit = symbols.iter().find(|(.., name)| bare(name) == "runtime.goexit").unwrap().0;
    assert!(table.function(exit).unwrap().top_frame);
    assert!(!table.function(*entry).unwrap().top_frame);
}

#[test]
fn without_section_headers_the_table_is_searched() {
    let directory = tempfile::tempdir().unwrap();
    for mode in ["-buildmode=exe", "-buildmode=pie"] {
        let program = build(directory.path(), "headerless", &[mode, "-ldflags=-s -w"]);
        let with = find(&program);
        let mut bytes = std::fs::read(&program).unwrap();
        bytes[0x28..0x30].fill(0); // e_shoff
        bytes[0x3c..0x40].fill(0); // e_shnum, e_shstrndx
        let without = PcLineTable::find(&Arc::new(Image::from_bytes(bytes).unwrap())).unwrap().unwrap();
        assert_eq!((without.module(), without.version()), (with.module(), with.version()));
        let (start, _) = with.table().bounds().unwrap();
        assert_eq!(without.frames(start + 100), with.frames(start + 100));
    }
}

#[test]
fn what_is_not_go_has_no_table() {
    assert!(PcLineTable::find(&image(Path::new("/proc/self/exe"))).unwrap().is_none());
}
