//! The guest's file system: busybox, observer and victims, all linked statically, in one cpio archive.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{invoke, workspace};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the archive; returns where it is.
pub(super) fn build() -> Result<PathBuf> {
    for (program, package) in
        [("busybox", "busybox-static"), ("cpio", "cpio"), ("qemu-system-x86_64", "qemu-system-x86")]
    {
        ensure!(invoke::is_installed(program), "{program} is missing: apt-get install {package}");
    }
    let home = workspace::target().join("vm");
    let files = home.join("guest");
    for directory in ["bin", "proc", "sys", "dev"] {
        std::fs::create_dir_all(files.join(directory)).with_context(|| format!("cannot write {}", files.display()))?;
    }
    let sources = workspace::root().join("xtask/src/vm/guest");
    copy(&sources.join("init.sh"), &files.join("init"))?;
    invoke::run(Command::new("chmod").arg("755").arg(files.join("init")))?;
    copy(Path::new("/bin/busybox"), &files.join("bin/busybox"))?;
    copy(&files.join("bin/busybox"), &files.join("bin/sh"))?;
    copy(&observer(&home)?, &files.join("bin/observer"))?;
    compile(&sources.join("polls.c"), &files.join("bin/polls"))?;
    compile(&workspace::root().join("tests/victims/deadlock.c"), &files.join("bin/deadlock"))?;
    let image = home.join("guest.cpio");
    let pack = "find . | cpio --quiet --create --format=newc > \"$1\"";
    invoke::run(Command::new("sh").current_dir(&files).args(["-c", pack, "sh"]).arg(&image))?;
    Ok(image)
}

/// `$OBSERVER_BIN` (which must be static), or a static build of our own.
fn observer(home: &Path) -> Result<PathBuf> {
    if let Some(given) = workspace::given_observer()? {
        return Ok(given);
    }
    let build = home.join("build");
    // Flags of its own, hence a directory of its own: the usual one would be rebuilt each time.
    let mut cargo = workspace::cargo(&["build", "--quiet", "--release", "--package", "observer", "--target", TARGET]);
    cargo.env("CARGO_TARGET_DIR", &build).env("RUSTFLAGS", "-Ctarget-feature=+crt-static");
    invoke::run(&mut cargo)?;
    Ok(build.join(TARGET).join("release/observer"))
}

fn compile(source: &Path, binary: &Path) -> Result<()> {
    invoke::run(Command::new("cc").args(["-static", "-O1", "-g", "-pthread", "-o"]).arg(binary).arg(source))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}
