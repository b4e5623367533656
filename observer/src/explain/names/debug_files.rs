//! Finding the files that hold what was stripped from a module.
//!
//! They are looked for where gdb looks, first as the target sees its files, then as this host does. One is used only if
//! it says that it belongs to the module: by build-id, or by the checksum in the module's link to it.

use crate::explain::image::Image;
use crate::proc::open_in_root;
use object::Object;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A larger file's checksum is not computed, bytes.
const MAX_CHECKSUM: usize = 512 << 20;
/// Notes beyond these are dropped.
const MAX_NOTES: usize = 16;
/// Where distributions put debug files.
const DEBUG_ROOT: &str = "/usr/lib/debug";

/// What could not be used, and why.
#[derive(Default)]
pub(super) struct Notes(pub(super) Vec<String>);

impl Notes {
    pub(super) fn add(&mut self, path: &Path, what: impl std::fmt::Display) {
        if self.0.len() < MAX_NOTES {
            self.0.push(format!("{}: {what}", path.display()));
        }
    }
}

/// A debug file, and where it was found.
pub(super) struct Found {
    pub(super) image: Arc<Image>,
    root: PathBuf,
    path: PathBuf,
}

impl Found {
    /// The module itself, for what it links to.
    pub(super) fn module(image: &Arc<Image>, root: &Path, path: &str) -> Self {
        Self { image: Arc::clone(image), root: root.to_owned(), path: Path::new(path).to_owned() }
    }
}

/// The debug file of a module.
pub(super) fn debug_file(module: &Image, root: &Path, path: &str, notes: &mut Notes) -> Option<Found> {
    let roots = roots(root);
    if let Some(id) = module.build_id() {
        for root in &roots {
            if let Some(found) = by_build_id(root, id, notes) {
                return Some(found);
            }
        }
    }
    let (name, checksum) = module.elf().ok()?.gnu_debuglink().ok()??;
    // A name, not a path: the link is not followed out of the directories below.
    let name = Some(OsStr::from_bytes(name)).filter(|name| name.len() < 256 && !name.as_bytes().contains(&b'/'))?;
    let directory = Path::new(path).parent()?;
    let below = directory.strip_prefix("/").unwrap_or(directory);
    let candidates =
        [directory.join(name), directory.join(".debug").join(name), Path::new(DEBUG_ROOT).join(below).join(name)];
    for (root, candidate) in roots.iter().flat_map(|root| candidates.iter().map(move |candidate| (root, candidate))) {
        let Some(image) = open(root, candidate, notes) else { continue };
        match belongs(module, &image, checksum) {
            Ok(()) => return Some(Found { image: Arc::new(image), root: root.clone(), path: candidate.clone() }),
            // The link may name the module itself.
            Err(_) if candidate == Path::new(path) => {}
            Err(why) => notes.add(candidate, why),
        }
    }
    None
}

/// The file to which `dwz` moved what several debug files share.
pub(super) fn shared_file(debug: &Found, notes: &mut Notes) -> Option<Arc<Image>> {
    let elf = debug.image.elf().ok()?;
    let (name, id) = elf.gnu_debugaltlink().ok()??;
    let id: String = id.iter().take(64).map(|byte| format!("{byte:02x}")).collect();
    let linked = debug.path.parent()?.join(OsStr::from_bytes(name));
    for root in roots(&debug.root) {
        if let Some(image) = open(&root, &linked, notes) {
            if image.build_id() == Some(&id) {
                return Some(Arc::new(image));
            }
            notes.add(&linked, "another build-id");
        }
        if let Some(found) = by_build_id(&root, &id, notes) {
            return Some(found.image);
        }
    }
    notes.add(&linked, "missing: names it shares with other debug files are unknown");
    None
}

/// The target's root, then ours.
fn roots(root: &Path) -> Vec<PathBuf> {
    let mut roots = vec![root.to_owned()];
    if root != Path::new("/") {
        roots.push(PathBuf::from("/"));
    }
    roots
}

fn by_build_id(root: &Path, id: &str, notes: &mut Notes) -> Option<Found> {
    let (first, rest) = id.split_at_checked(2).filter(|(_, rest)| !rest.is_empty())?;
    let path = PathBuf::from(format!("{DEBUG_ROOT}/.build-id/{first}/{rest}.debug"));
    let image = open(root, &path, notes)?;
    if image.build_id() != Some(id) {
        notes.add(&path, "another build-id");
        return None;
    }
    Some(Found { image: Arc::new(image), root: root.to_owned(), path })
}

fn open(root: &Path, path: &Path, notes: &mut Notes) -> Option<Image> {
    let file = match open_in_root(root, path) {
        Ok(file) => file,
        Err(error) => {
            if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
                notes.add(path, error);
            }
            return None;
        }
    };
    Image::map(&file).map_err(|error| notes.add(path, error)).ok()
}

/// Whether a file that a link names is the one that was meant.
fn belongs(module: &Image, debug: &Image, checksum: u32) -> Result<(), &'static str> {
    if let (Some(ours), Some(theirs)) = (module.build_id(), debug.build_id()) {
        return if ours == theirs { Ok(()) } else { Err("another build-id") };
    }
    if debug.bytes().len() > MAX_CHECKSUM {
        return Err("too large for its checksum to be compared");
    }
    if crc32(debug.bytes()) == checksum { Ok(()) } else { Err("checksum differs") }
}

/// The CRC-32 of zlib, as gdb's manual defines it for `.gnu_debuglink`.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut value = index as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { value >> 1 ^ 0xedb8_8320 } else { value >> 1 };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    !bytes.iter().fold(u32::MAX, |crc, &byte| TABLE[(crc as u8 ^ byte) as usize] ^ crc >> 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_the_standard() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
