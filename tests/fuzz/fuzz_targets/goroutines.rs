//! Memory of a Go program: changes (place, value) to goroutines that are sound.
#![no_main]

use libfuzzer_sys::fuzz_target;
use observer::explain::fuzzing::MadeUp;
use observer::explain::image::Image;
use std::process::Command;
use std::sync::{Mutex, OnceLock};

/// A real program, built by the `go` of this machine, with goroutines made up, and their memory as it was.
fn made_up() -> &'static Mutex<(MadeUp, Vec<u8>)> {
    static MADE_UP: OnceLock<Mutex<(MadeUp, Vec<u8>)>> = OnceLock::new();
    MADE_UP.get_or_init(|| {
        let program = std::env::temp_dir().join(format!("observer-fuzz-goroutines-{}", std::process::id()));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../../observer/src/explain/go/testdata/main.go");
        let mut go = Command::new("go");
        go.env("GO111MODULE", "off").env("GOTOOLCHAIN", "local").env("GOFLAGS", "").env("CGO_ENABLED", "0");
        let built = go.args(["build", "-ldflags=-s -w", "-o"]).arg(&program).arg(source).status();
        assert!(built.is_ok_and(|status| status.success()), "`go` must be installed (cargo xtask toolchain)");
        let bytes = std::fs::read(&program).expect("it was built");
        let _ = std::fs::remove_file(&program);
        let image = Image::from_bytes(bytes).expect("an ELF file");
        let mut made_up = MadeUp::new(image).expect("a Go program");
        let good = made_up.memory().clone();
        Mutex::new((made_up, good))
    })
}

fuzz_target!(|changes: &[u8]| {
    let mut guard = made_up().lock().expect("nobody panicked");
    let (made_up, good) = &mut *guard;
    let memory = made_up.memory();
    memory.clone_from(good);
    for change in changes.chunks_exact(4) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) | usize::from(change[2] & 1) << 16;
        let len = memory.len();
        memory[at % len] = change[3];
    }
    let census = made_up.census();
    assert!(census.missing.is_none() || census.groups.is_empty());
    assert!(census.total() as u64 <= census.slots);
});
