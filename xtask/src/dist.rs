//! `cargo xtask dist`: the static binary, its archive and its checksums, in `target/dist`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::vm::image;
use crate::{ebpf, invoke, workspace};

/// musl and not a static glibc: that one looks names up through libraries of the machine it was built on, and an empty root has none.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-musl";

/// What goes to users beside the binary.
const LICENCES: [&str; 3] = ["LICENSE", "LICENSE-APACHE", "LICENSE-MIT"];

/// Certificate authorities of the machine that builds: the image has no others.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// `quick`: what goes into the guests of the kernel matrix, into `target/dist-quick`. It is built already where the matrix has run, and
/// shows all of a release but its speed.
pub(crate) fn run(quick: bool) -> Result<()> {
    ebpf::renew_if_stale()?;
    add_target()?;
    let (profile, place) = if quick { ("guest", "dist-quick") } else { ("release", "dist") };
    if quick {
        invoke::run(&mut image::cargo_build())?;
    } else {
        let release = ["build", "--quiet", "--release", "--locked", "--package", "observer", "--target", TARGET];
        invoke::run(workspace::cargo(&release).env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo"))?;
    }
    let binary = workspace::target().join(TARGET).join(profile).join("observer");
    ensure_static(&binary)?;

    let dist = workspace::target().join(place);
    fs::create_dir_all(&dist).with_context(|| format!("cannot write {}", dist.display()))?;
    let copy = |from: &Path, name: &str| {
        fs::copy(from, dist.join(name)).with_context(|| format!("cannot copy {}", from.display()))
    };
    // Removed first: a running binary cannot be written to.
    let _ = fs::remove_file(dist.join("observer"));
    copy(&binary, "observer")?;
    for name in LICENCES {
        copy(&workspace::root().join(name), name)?;
    }
    copy(&workspace::root().join("deploy/systemd/observer.service"), "observer.service")?;
    copy(Path::new(AUTHORITIES), "ca-certificates.crt").context("install ca-certificates")?;

    let archive = format!("observer-{}-{TARGET}.tar.gz", env!("CARGO_PKG_VERSION"));
    // The same bytes from the same inputs: no owner, no time, one order.
    let mut tar = Command::new("tar");
    tar.current_dir(&dist).args(["--use-compress-program", "gzip -n"]).args([
        "--sort=name",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
    ]);
    tar.args(["--mtime=@0", "--mode=go-w", "-cf", &archive, "observer", "observer.service"]).args(LICENCES);
    invoke::run(&mut tar)?;
    let sums = [archive.as_str(), "observer"].map(|name| {
        let bytes = fs::read(dist.join(name)).with_context(|| format!("cannot read {name}"))?;
        let hex: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(format!("{hex}  {name}\n"))
    });
    let sums: Result<String> = sums.into_iter().collect();
    fs::write(dist.join("SHA256SUMS"), sums?)?;
    println!("{}", dist.join(archive).display());
    Ok(())
}

/// Adds the standard library for [`TARGET`], if it is not here.
pub(crate) fn add_target() -> Result<()> {
    ensure!(invoke::is_installed("musl-gcc"), "C parts of dependencies need musl-gcc: apt-get install musl-tools");
    let sysroot = invoke::capture(Command::new("rustc").current_dir(workspace::root()).args(["--print", "sysroot"]))?;
    if Path::new(sysroot.trim()).join("lib/rustlib").join(TARGET).is_dir() {
        return Ok(());
    }
    ensure!(invoke::is_installed("rustup"), "this Rust has no {TARGET}: install its standard library");
    invoke::run(Command::new("rustup").current_dir(workspace::root()).args(["target", "add", TARGET]))
}

/// A binary with an interpreter would not start in an empty root.
pub(crate) fn ensure_static(binary: &Path) -> Result<()> {
    let headers = invoke::capture(Command::new("readelf").args(["--program-headers", "--wide"]).arg(binary))?;
    ensure!(!headers.contains("INTERP"), "{} asks for a dynamic linker", binary.display());
    Ok(())
}
