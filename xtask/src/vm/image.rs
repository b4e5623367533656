//! The guest's file system: busybox, observer, tests and victims, all linked statically, in one cpio archive; and what differs
//! from guest to guest, in a second one behind it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::plan;
use crate::{dist, ebpf, invoke, workspace};

/// Modules of the kernel that the guest loads, for sockets.
const MODULES: [&str; 3] = ["inet_diag.ko", "tcp_diag.ko", "unix_diag.ko"];

/// Builds the archive that all guests share; returns where it is.
pub(super) fn build() -> Result<PathBuf> {
    for (program, package) in
        [("busybox", "busybox-static"), ("cpio", "cpio"), ("xz", "xz-utils"), ("qemu-system-x86_64", "qemu-system-x86")]
    {
        ensure!(invoke::is_installed(program), "{program} is missing: apt-get install {package}");
    }
    let home = workspace::target().join("vm");
    let files = home.join("guest");
    // Nothing of an earlier build stays.
    let _ = std::fs::remove_dir_all(&files);
    for directory in ["bin", "proc", "sys", "dev", "tmp", "tests", "victims"] {
        std::fs::create_dir_all(files.join(directory)).with_context(|| format!("cannot write {}", files.display()))?;
    }
    let sources = workspace::root().join("xtask/src/vm/guest");
    copy(&sources.join("init.sh"), &files.join("init"))?;
    invoke::run(Command::new("chmod").arg("755").arg(files.join("init")))?;
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new).into_iter().find(|path| path.is_file());
    let busybox = busybox.context("busybox is in neither /bin nor /usr/bin")?;
    dist::ensure_static(busybox).context("install busybox-static in place of busybox")?;
    copy(busybox, &files.join("bin/busybox"))?;
    copy(busybox, &files.join("bin/sh"))?;
    rust_programs(&files)?;
    for tool in ["calls", "verifier_log"] {
        compile(&["-static"], &sources.join(tool), &files.join("bin").join(tool))?;
    }
    for victim in plan::VICTIMS {
        let source = workspace::root().join("tests/victims").join(victim);
        compile(&["-static", "-pthread"], &source, &files.join("victims").join(victim))?;
    }
    let bare = ["-m32", "-nostdlib", "-static", "-ffreestanding", "-fno-pie", "-no-pie", "-fno-stack-protector"];
    for victim in plan::VICTIMS_OF_32_BITS {
        let source = workspace::root().join("tests/victims").join(victim);
        // Without it the tests that start it skip, and that is counted.
        if let Err(why) = compile(&bare, &source, &files.join("victims").join(victim)) {
            eprintln!("xtask: {victim} is missing in the guests: {why:#}");
        }
    }
    let image = home.join("guest.cpio");
    pack(&files, &image)?;
    Ok(image)
}

/// The archive of one start of one guest: `/plan`, `/done` and the kernel's modules.
pub(super) fn addition(name: &str, plan: &str, done: &[String], kernel: &Path) -> Result<PathBuf> {
    let home = workspace::target().join("vm");
    let files = home.join(format!("addition-{name}"));
    let _ = std::fs::remove_dir_all(&files);
    let modules = files.join("modules");
    std::fs::create_dir_all(&modules).with_context(|| format!("cannot write {}", files.display()))?;
    std::fs::write(files.join("plan"), plan)?;
    std::fs::write(files.join("done"), done.iter().map(|part| format!("{part}\n")).collect::<String>())?;
    for entry in walkdir::WalkDir::new(kernel).into_iter().filter_map(Result::ok) {
        let file = entry.file_name().to_string_lossy();
        let Some(module) = MODULES.iter().find(|module| file.starts_with(**module)) else { continue };
        let into = modules.join(module);
        if file.ends_with(".xz") {
            let unpack = "xz --decompress --stdout \"$1\" > \"$2\"";
            invoke::run(Command::new("sh").args(["-c", unpack, "sh"]).arg(entry.path()).arg(&into))?;
        } else {
            copy(entry.path(), &into)?;
        }
    }
    let image = home.join(format!("addition-{name}.cpio"));
    pack(&files, &image)?;
    Ok(image)
}

/// observer (`$OBSERVER_BIN`, which must be static, where that is set) and the test programs, for musl.
fn rust_programs(files: &Path) -> Result<()> {
    dist::add_target()?;
    ebpf::renew_if_stale()?;
    let messages = invoke::capture(cargo_build().args(["--message-format", "json-render-diagnostics"]))?;
    let mut found = 1;
    for message in messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let (Some(path), Some(name)) = (message["executable"].as_str(), message["target"]["name"].as_str()) else {
            continue;
        };
        let into = if name == "observer" {
            files.join("bin/observer")
        } else if plan::test_files().contains(&name) {
            found += 1;
            files.join("tests").join(name)
        } else {
            continue;
        };
        // Their debug information is most of them, and nobody reads it in a guest.
        invoke::run(Command::new("strip").arg("--strip-debug").arg("-o").arg(into).arg(path))?;
    }
    ensure!(found == 1 + plan::test_files().len(), "cargo did not say where it built the tests");
    if let Some(given) = workspace::given_observer()? {
        dist::ensure_static(&given).context("OBSERVER_BIN goes into a guest without libraries")?;
        copy(&given, &files.join("bin/observer"))?;
    }
    Ok(())
}

/// Builds them.
pub(crate) fn cargo_build() -> Command {
    // A profile of its own: see Cargo.toml.
    let mut cargo = workspace::cargo(&["build", "--quiet", "--package", "observer", "--package", "observer-tests"]);
    cargo.args(["--profile", "guest", "--target", dist::TARGET, "--bin", "observer"]);
    for file in plan::test_files() {
        cargo.args(["--test", file]);
    }
    cargo
}

/// As the tests compile their victims, but linked statically.
fn compile(flags: &[&str], source: &Path, binary: &Path) -> Result<()> {
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-g", "-Wall"]).args(flags).arg("-o").arg(binary).arg(source.with_extension("c"));
    invoke::run(&mut gcc)
}

fn pack(files: &Path, image: &Path) -> Result<()> {
    let pack = "find . | cpio --quiet --create --format=newc > \"$1\"";
    invoke::run(Command::new("sh").current_dir(files).args(["-c", pack, "sh"]).arg(image))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}
