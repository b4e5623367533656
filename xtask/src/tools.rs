//! Programs that tests use as they are and that must not be installed: as packages they would start services. Their
//! Debian packages are unpacked under `target/tools`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{invoke, workspace};

/// A Debian package, and a program that it brings.
const TOOLS: &[(&str, &str)] = &[("prometheus", "usr/bin/promtool")];

/// Unpacks what is missing. Without a network the tests that need it say so themselves: no error.
pub(crate) fn unpack() {
    for (package, program) in TOOLS {
        let directory = workspace::target().join("tools").join(package);
        if !directory.join(program).is_file()
            && let Err(error) = fetch(package, program, &directory)
        {
            eprintln!("xtask: no {package}, so the tests that use it are skipped: {error:#}");
        }
    }
}

fn fetch(package: &str, program: &str, directory: &Path) -> Result<()> {
    eprintln!("xtask: unpacking {package} into {}", directory.display());
    let download = directory.with_extension("download");
    let _ = std::fs::remove_dir_all(&download);
    std::fs::create_dir_all(&download).with_context(|| format!("cannot create {}", download.display()))?;
    // apt drops its rights to download.
    let apt = || {
        let mut apt = Command::new("apt-get");
        apt.current_dir(&download).args(["download", "--quiet=2", "-o", "APT::Sandbox::User=root", package]);
        apt
    };
    if !invoke::succeeds(&mut apt()) {
        invoke::run(invoke::as_root("apt-get")?.args(["update", "--quiet=2"]))?;
        invoke::run(&mut apt())?;
    }
    let mut archives = std::fs::read_dir(&download)?.filter_map(|entry| Some(entry.ok()?.path()));
    let archive = archives.find(|path| path.extension().is_some_and(|end| end == "deb")).context("nothing came")?;
    invoke::run(Command::new("dpkg-deb").arg("--extract").arg(archive).arg(&download))?;
    ensure!(download.join(program).is_file(), "the package has no {program}");
    let _ = std::fs::remove_dir_all(directory);
    std::fs::rename(&download, directory).with_context(|| format!("cannot move to {}", directory.display()))
}
