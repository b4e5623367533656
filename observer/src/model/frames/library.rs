//! Frames between a wait and whoever called it that belong to the libraries the table is about.

use crate::proc::base_name;
use crate::proc::stack::Frame;

/// The C library and its dynamic linker, by the start of the file's name.
const C_LIBRARY: [&str; 5] = ["libc.so", "libc-2.", "libpthread", "ld-musl-", "ld-linux"];

/// Crates (of C++: namespaces) whose own frames say nothing about a program, by the first segment of a path.
const CRATES: [&str; 21] = [
    "std",
    "core",
    "alloc",
    "parking_lot",
    "parking_lot_core",
    "lock_api",
    "tokio",
    "mio",
    "rayon",
    "rayon_core",
    "crossbeam_channel",
    "crossbeam_utils",
    "crossbeam_deque",
    "futures_executor",
    "futures_util",
    "async_std",
    "async_io",
    "async_global_executor",
    "polling",
    "parking",
    "blocking",
];

/// Their frames that call into the program: the function they call may have been inlined into them.
const CALLERS: [&str; 3] = ["tokio::runtime::task::", "rayon_core::job::", "core::ops::function::"];

/// Where the sources of the standard libraries lie; inlined functions often have no path in their name, but a file.
const SOURCES: [&str; 5] =
    ["/library/std/src/", "/library/core/src/", "/library/alloc/src/", "/include/c++/", "library/std/src/"];

/// Whether a frame, normalised name beside it, belongs to such a library.
pub(super) fn holds(frame: &Frame, name: Option<&str>) -> bool {
    let module = frame.module.as_deref().map_or("", base_name);
    let file = frame.file.as_deref().unwrap_or_default();
    if name.is_some_and(|name| CALLERS.iter().any(|start| name.starts_with(start))) {
        return false;
    }
    C_LIBRARY.iter().any(|start| module.starts_with(start))
        || name.is_some_and(|name| name.split_once("::").is_some_and(|(first, _)| CRATES.contains(&first)))
        || SOURCES.iter().any(|part| file.contains(part))
        || in_registry(file)
}

/// Whether a source file is one of these crates, as cargo unpacks it: `…/registry/src/INDEX/parking_lot-0.12.5/src/…`.
fn in_registry(file: &str) -> bool {
    let Some((_, inside)) = file.split_once("/registry/src/") else { return false };
    let directory = inside.split('/').nth(1).unwrap_or_default();
    let name = directory.rsplit_once('-').map_or(directory, |(name, _)| name).replace('-', "_");
    CRATES.contains(&name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_programs() {
        let frame = |file: &str, module: &str| Frame {
            file: Some(file.to_owned()),
            module: Some(module.to_owned()),
            ..Frame::default()
        };
        let std = "/rustc/59807616e1fa/library/std/src/sys/pal/unix/futex.rs";
        let registry = "/root/.cargo/registry/src/index.crates.io-1949cf8c6b5b557f";
        assert!(holds(&frame(std, "/srv/app"), Some("futex_wait")));
        assert!(holds(&frame(&format!("{registry}/lock_api-0.4.14/src/mutex.rs"), "/srv/app"), Some("lock")));
        assert!(holds(&frame(&format!("{registry}/crossbeam-channel-0.5.15/src/x.rs"), "/srv/app"), None));
        assert!(holds(&frame("", "/srv/app"), Some("lock_api::mutex::Mutex::lock")));
        assert!(holds(&frame("", "/usr/lib/libc.so.6"), Some("futex_wait")));
        assert!(!holds(&frame(&format!("{registry}/deadpool-0.12.3/src/lib.rs"), "/srv/app"), Some("get")));
        assert!(!holds(&frame("/src/core/src/main.rs", "/srv/app"), Some("app::core::run")));
        assert!(!holds(&Frame::default(), None));
    }
}
