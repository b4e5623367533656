//! Which language runtime and which C library a process runs, from its program and its maps.

use super::elf::{Elf, PF_W, PT_LOAD, Section};
use super::in_root::open_in_root;
use super::{Libc, maps};
use crate::census::Pid;
use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

/// How much of a program's constants is searched for a version.
const MAX_SEARCH: u64 = 64 << 20;

/// The file names in `/proc/PID/maps`, each once.
///
/// May block on the target's mmap lock: call it on a reader of the pool.
pub(crate) fn mapped_files(pid: Pid) -> std::io::Result<BTreeSet<String>> {
    let mappings = maps::read(pid)?;
    Ok(mappings.into_iter().map(|mapping| mapping.name).filter(|name| name.starts_with('/')).collect())
}

/// What was found out about a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) runtime: String,
    pub(crate) libc: Libc,
}

/// Tells runtime and C library. `exe` is the link of `/proc/PID/exe`; `elf` the program, if it could be read.
pub(crate) fn recognise(pid: Pid, exe: Option<&str>, maps: &BTreeSet<String>, elf: Option<&Elf>) -> Program {
    let go = elf.and_then(go_version);
    let interpreter = elf.and_then(Elf::interpreter);
    let mut libc = libc_of(maps, interpreter.as_deref());
    if libc == Libc::Unknown
        && go.is_none()
        && let Some(elf) = elf
    {
        libc = static_libc(elf);
    }
    let runtime = go
        .or_else(|| jvm(pid, maps))
        .or_else(|| cpython(exe, maps))
        .or_else(|| node(pid, exe, elf))
        .unwrap_or_else(|| if elf.is_some() { "native".into() } else { "unknown".into() });
    Program { runtime, libc }
}

/// The file's own name: what follows the last slash, without the kernel's note that the file is gone by now.
pub(crate) fn base_name(path: &str) -> &str {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    path.rsplit('/').next().unwrap_or(path)
}

/// `go1.24.3` from `.go.buildinfo`; `go` for builds before 1.18, whose strings are elsewhere.
pub(crate) fn go_version(elf: &Elf) -> Option<String> {
    const MAGIC: &[u8] = b"\xff Go buildinf:";
    let blob = match elf.section(".go.buildinfo") {
        Some(section) => elf.read(section.offset, section.size.min(4096)).ok()?,
        None if !elf.sections.is_empty() => return None,
        None => {
            // Without section headers: in the data segment (as Go's debug/buildinfo looks), behind what is
            // read-only after relocation.
            let data = elf.segments.iter().find(|s| s.kind == PT_LOAD && s.flags & PF_W != 0)?;
            let data = Section { name: String::new(), offset: data.offset, size: data.size };
            elf.find(&data, MAGIC, 256, 16 << 20)?
        }
    };
    if !blob.starts_with(MAGIC) {
        return None;
    }
    Some(inline_version(&blob).unwrap_or_else(|| "go".to_owned()))
}

/// Since Go 1.18: bit 1 of byte 15, then at 32 a varint length and the version (`debug/buildinfo`).
fn inline_version(blob: &[u8]) -> Option<String> {
    if blob.get(15)? & 2 == 0 {
        return None;
    }
    let (low, high) = (usize::from(*blob.get(32)?), usize::from(*blob.get(33)?));
    let (len, start) = if low & 0x80 == 0 { (low, 33) } else { (low & 0x7f | (high & 0x7f) << 7, 34) };
    let text = std::str::from_utf8(blob.get(start..start + len)?).ok()?;
    // `devel go1.25-abc`, `go1.22.1 X:boringcrypto`.
    let word = text.split_ascii_whitespace().find(|w| w.starts_with("go"))?;
    let word = word.split('-').next().unwrap_or(word);
    (word.len() <= 32 && word.bytes().all(|b| b.is_ascii_graphic())).then(|| word.to_owned())
}

/// `jvm17`: libjvm.so is mapped; the version is in the `release` file of its home.
fn jvm(pid: Pid, maps: &BTreeSet<String>) -> Option<String> {
    let library = maps.iter().find(|m| base_name(m) == "libjvm.so")?;
    // HOME/lib/server/libjvm.so, and before Java 9 HOME/jre/lib/amd64/server/libjvm.so.
    let release = Path::new(library)
        .ancestors()
        .skip(1)
        .take(6)
        .find_map(|dir| read_in_root(pid, &dir.join("release"), 16 * 1024));
    let major = release.and_then(|text| {
        let version = text.lines().find_map(|l| l.strip_prefix("JAVA_VERSION=\""))?;
        // `1.8.0_392` is Java 8.
        leading_number(version.strip_prefix("1.").unwrap_or(version))
    });
    Some(major.map_or_else(|| "jvm".to_owned(), |m| format!("jvm{m}")))
}

/// `cpython3.11`: from the library's or the program's name.
fn cpython(exe: Option<&str>, maps: &BTreeSet<String>) -> Option<String> {
    let version = |name: &str, prefix: &str| {
        let (major, rest) = name.strip_prefix(prefix)?.split_once('.')?;
        Some(format!("cpython{}.{}", leading_number(major)?, leading_number(rest)?))
    };
    if let Some(found) =
        maps.iter().map(|m| base_name(m)).filter(|n| n.contains(".so")).find_map(|n| version(n, "libpython"))
    {
        return Some(found);
    }
    let name = base_name(exe?);
    version(name, "python").or_else(|| matches!(name, "python" | "python2" | "python3").then(|| "cpython".to_owned()))
}

/// `node20`: from the header beside the program, else from the address of its release in the constants.
fn node(pid: Pid, exe: Option<&str>, elf: Option<&Elf>) -> Option<String> {
    let exe = exe?;
    if !matches!(base_name(exe), "node" | "nodejs") {
        return None;
    }
    let header = Path::new(exe).parent().and_then(Path::parent).map(|p| p.join("include/node/node_version.h"));
    let major = header
        .and_then(|path| read_in_root(pid, &path, 16 * 1024))
        .and_then(|text| {
            leading_number(text.lines().find_map(|l| l.strip_prefix("#define NODE_MAJOR_VERSION"))?.trim())
        })
        .or_else(|| {
            const RELEASE: &[u8] = b"nodejs.org/download/release/v";
            let elf = elf?;
            let found = elf.find(elf.section(".rodata")?, RELEASE, 8, MAX_SEARCH)?;
            leading_number(std::str::from_utf8(found.get(RELEASE.len()..)?).ok()?)
        });
    Some(major.map_or_else(|| "node".to_owned(), |m| format!("node{m}")))
}

fn leading_number(text: &str) -> Option<u32> {
    let end = text.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

fn libc_of(maps: &BTreeSet<String>, interpreter: Option<&str>) -> Libc {
    let glibc = |name: &str| name == "libc.so.6" || name.starts_with("libc-2.") || name.starts_with("ld-linux");
    let mut musl = false;
    for path in maps {
        let name = base_name(path);
        if glibc(name) {
            return Libc::Glibc;
        }
        // Debian's musl is /usr/lib/x86_64-linux-musl/libc.so, the loader a link to it.
        musl |= name.starts_with("ld-musl-") || name == "libc.so" && path.contains("musl");
    }
    match interpreter.map(base_name) {
        _ if musl => Libc::Musl,
        Some(name) if name.starts_with("ld-musl-") => Libc::Musl,
        Some(name) if glibc(name) => Libc::Glibc,
        _ => Libc::Unknown,
    }
}

/// A static program: glibc leaves sections that stripping keeps, musl the text of its error 0.
fn static_libc(elf: &Elf) -> Libc {
    if ["__libc_freeres_fn", "__libc_atexit", "__libc_IO_vtables", "__libc_subfreeres"]
        .iter()
        .any(|n| elf.section(n).is_some())
    {
        return Libc::Glibc;
    }
    let musl =
        elf.section(".rodata").and_then(|rodata| elf.find(rodata, b"\0No error information\0", 0, 4 << 20)).is_some();
    if musl { Libc::Musl } else { Libc::Unknown }
}

/// The text of a small file as the target sees it.
fn read_in_root(pid: Pid, path: &Path, cap: u64) -> Option<String> {
    let file = open_in_root(Path::new(&format!("/proc/{pid}/root")), path).ok()?;
    let mut bytes = Vec::new();
    file.take(cap).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail")]
    use super::*;
    use std::io::Write;

    fn maps(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn libraries_tell_runtime_and_libc() {
        let libc = |names: &[&str]| libc_of(&maps(names), None);
        assert_eq!(libc(&["/lib/x86_64-linux-gnu/libc.so.6"]), Libc::Glibc);
        assert_eq!(libc(&["/lib64/libc-2.17.so"]), Libc::Glibc);
        assert_eq!(libc(&["/lib/ld-musl-x86_64.so.1"]), Libc::Musl);
        assert_eq!(libc(&["/usr/lib/x86_64-linux-musl/libc.so"]), Libc::Musl);
        assert_eq!(libc(&["/opt/libc.so", "/x/libc-client.so"]), Libc::Unknown);
        let python = |exe, names: &[&str]| cpython(exe, &maps(names));
        assert_eq!(python(None, &["/usr/lib/libpython3.11.so.1.0"]).unwrap(), "cpython3.11");
        assert_eq!(python(Some("/usr/bin/python3.13 (deleted)"), &[]).unwrap(), "cpython3.13");
        assert_eq!(python(Some("/usr/bin/python2.7"), &[]).unwrap(), "cpython2.7");
        assert_eq!(python(Some("/usr/bin/pythonista"), &[]), None);
    }

    #[test]
    fn go_versions() {
        let blob = |flags: u8, text: &str| {
            let mut b = b"\xff Go buildinf:\x08".to_vec();
            b.push(flags);
            b.resize(32, 0);
            b.push(u8::try_from(text.len()).unwrap());
            b.extend_from_slice(text.as_bytes());
            b
        };
        assert_eq!(inline_version(&blob(2, "go1.24.3")).unwrap(), "go1.24.3");
        assert_eq!(inline_version(&blob(2, "go1.22.1 X:boringcrypto")).unwrap(), "go1.22.1");
        assert_eq!(inline_version(&blob(2, "devel go1.25-abcdef Mon")).unwrap(), "go1.25");
        assert_eq!(inline_version(&blob(0, "go1.24.3")), None);
        let mut cut = blob(2, "go1.24.3");
        cut.truncate(38);
        assert_eq!(inline_version(&cut), None);
        assert_eq!(inline_version(b"\xff Go buildinf:"), None);
    }

    #[test]
    fn lying_headers_cost_nothing() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        let head = &own[..own.len().min(4096)];
        for at in 24..64 {
            let mut bytes = head.to_vec();
            bytes[at] ^= 0xff;
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            if let Ok(elf) = Elf::open(file) {
                let _ = (go_version(&elf), elf.interpreter(), static_libc(&elf));
                for section in &elf.sections {
                    let _ = elf.find(section, b"x", usize::from(u8::MAX), 1 << 20);
                }
            }
        }
    }

    #[test]
    fn a_needle_across_two_pieces_is_found() {
        let mut file = tempfile::tempfile().unwrap();
        let own = std::fs::read("/proc/self/exe").unwrap();
        file.write_all(&own[..64]).unwrap();
        let size = 600 * 1024;
        for at in [100, 256 * 1024 - 3, 256 * 1024 + 1, 512 * 1024 - 10, size - 6] {
            let mut bytes = vec![0_u8; size];
            bytes[at..at + 6].copy_from_slice(b"needle");
            use std::os::unix::fs::FileExt;
            file.write_all_at(&bytes, 64).unwrap();
            let elf = Elf::open(file.try_clone().unwrap()).unwrap();
            let section = Section { name: String::new(), offset: 64, size: size as u64 };
            let found = elf.find(&section, b"needle", 4, u64::MAX).unwrap();
            assert!(found.starts_with(b"needle"), "{at}");
            assert_eq!(elf.find(&section, b"needles", 4, u64::MAX), None);
        }
    }
}
