//! What the committed kernel object was made from. Shared by `observer/build.rs`, which refuses a stale
//! object, and by `cargo xtask ebpf`, which renews it; not a part of any crate of its own.

use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::{fs, io};

/// The object, relative to the workspace.
pub(crate) const OBJECT: &str = "observer-ebpf/observer.bpf.o";
/// Its manifest, relative to the workspace.
pub(crate) const MANIFEST: &str = "observer-ebpf/observer.bpf.toml";

/// Crates whose version decides what the object contains; as locked in `Cargo.lock`.
const LOCKED: [&str; 8] = [
    "aya-ebpf",
    "aya-ebpf-bindings",
    "aya-ebpf-cty",
    "aya-ebpf-macros",
    "aya-log-common",
    "aya-log-ebpf",
    "aya-log-ebpf-macros",
    "aya-log-parser",
];

/// Hash of a file's bytes, in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The files the object is built from, relative to the workspace, sorted.
pub(crate) fn sources(workspace: &Path) -> io::Result<Vec<PathBuf>> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                walk(&path, found)?;
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
        Ok(())
    }
    let mut found = vec![workspace.join("observer-ebpf/Cargo.toml")];
    walk(&workspace.join("observer-ebpf/src"), &mut found)?;
    found.sort();
    Ok(found)
}

/// Hash over the sources and the locked versions of the kernel-side crates.
pub(crate) fn fingerprint(workspace: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    for path in sources(workspace)? {
        let name = path.strip_prefix(workspace).unwrap_or(&path).to_string_lossy().into_owned();
        let bytes = fs::read(&path)?;
        hash.update(format!("{name} {}\n", bytes.len()));
        hash.update(&bytes);
    }
    let lock = fs::read_to_string(workspace.join("Cargo.lock"))?;
    for package in lock.split("[[package]]") {
        let field = |key: &str| {
            package.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim_matches('"').to_owned())
        };
        if let Some(name) = field("name = ")
            && LOCKED.contains(&name.as_str())
        {
            let version = field("version = ").unwrap_or_default();
            hash.update(format!("{name} {version} {}\n", field("checksum = ").unwrap_or_default()));
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// One `key = "value"` of the manifest.
pub(crate) fn manifest_value<'a>(manifest: &'a str, key: &str) -> Option<&'a str> {
    manifest.lines().find_map(|line| {
        let (name, value) = line.split_once(" = ")?;
        (name == key).then(|| value.trim().trim_matches('"'))
    })
}
