//! A program's file, by which its runtime is recognised.
#![no_main]

use libfuzzer_sys::fuzz_target;
use observer::proc::fuzzing::program;
use std::fs::File;
use std::io::{Seek, Write};
use std::sync::LazyLock;

/// One file for all runs: in memory, so that a run costs no disk.
static FILE: LazyLock<Option<File>> = LazyLock::new(|| {
    let path = format!("/dev/shm/observer-fuzz-{}", std::process::id());
    let file = File::options().read(true).write(true).create_new(true).open(&path).ok()?;
    std::fs::remove_file(path).ok()?;
    Some(file)
});

fuzz_target!(|bytes: &[u8]| {
    let Some(mut file) = FILE.as_ref() else { panic!("/dev/shm is needed") };
    let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(bytes));
    assert!(written.is_ok());
    let Ok(file) = file.try_clone() else { panic!("too many files are open") };
    program(file);
});
