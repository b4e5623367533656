//! Builds the kernel object from `observer-ebpf` and commits it to its place with a manifest.
//!
//! A newcomer needs stable Rust only: the object is a generated file in git. Renewing it takes a nightly
//! toolchain with `rust-src`, or Debian's `rustc-web` and `rust-web-src`, and bpf-linker.

use crate::setup;
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "../../observer-ebpf/fingerprint.rs"]
mod fingerprint;

/// What bpf-linker is pinned to, and the LLVM it is built with.
const LINKER_VERSION: &str = "0.13.0";
const LLVM: &str = "/usr/lib/llvm-22";
/// Debian packages that build the object where no nightly toolchain is.
const PACKAGES: [&str; 7] =
    ["rustc-web", "cargo-web", "rust-web-src", "llvm-22", "llvm-22-dev", "libpolly-22-dev", "libzstd-dev"];

/// A compiler that can build `core` for the kernel's target.
struct Toolchain {
    rustc: PathBuf,
    cargo: PathBuf,
    rustc_version: String,
    linker_version: String,
    path: OsString,
}

/// Renews the object; with `check`, builds it again and compares.
pub(crate) fn run(check: bool) -> Result<()> {
    let workspace = workspace()?;
    if check && let Err(why) = current(&workspace) {
        bail!("{why}; renew it with: cargo xtask ebpf");
    }
    let toolchain = toolchain(&workspace)?;
    let manifest_path = workspace.join(fingerprint::MANIFEST);
    if check {
        let recorded = fs::read_to_string(&manifest_path)?;
        let is = |key| fingerprint::manifest_value(&recorded, key).unwrap_or_default().to_owned();
        if is("rustc") != toolchain.rustc_version || is("linker") != toolchain.linker_version {
            println!(
                "ebpf: the object was built by {} and {}; here are {} and {}. Its bytes cannot be compared; \
                 its sources are current.",
                is("rustc"),
                is("linker"),
                toolchain.rustc_version,
                toolchain.linker_version
            );
            return Ok(());
        }
    }
    let bytes = build(&workspace, &toolchain)?;
    let object = workspace.join(fingerprint::OBJECT);
    if check {
        if fs::read(&object)? != bytes {
            bail!("{} differs from what its sources build; renew it with: cargo xtask ebpf", object.display());
        }
        println!("ebpf: the object is what its sources build ({} bytes)", bytes.len());
        return Ok(());
    }
    let manifest = format!(
        "# Made by `cargo xtask ebpf`; do not edit.\n\
         object_sha256 = \"{}\"\nsources_sha256 = \"{}\"\nrustc = \"{}\"\nlinker = \"{}\"\n",
        fingerprint::sha256(&bytes),
        fingerprint::fingerprint(&workspace)?,
        toolchain.rustc_version,
        toolchain.linker_version
    );
    fs::write(&object, &bytes)?;
    fs::write(&manifest_path, manifest)?;
    println!("ebpf: wrote {} ({} bytes)", fingerprint::OBJECT, bytes.len());
    Ok(())
}

/// Renews the object only if its sources changed since it was made.
pub(crate) fn renew_if_stale() -> Result<()> {
    match current(&workspace()?) {
        Ok(()) => Ok(()),
        Err(why) => {
            println!("ebpf: {why}");
            run(false)
        }
    }
}

fn workspace() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here.parent().context("xtask has no workspace above it")?.to_owned())
}

/// `Err` says why the committed object is not current.
fn current(workspace: &Path) -> Result<()> {
    let object = fs::read(workspace.join(fingerprint::OBJECT)).context(fingerprint::OBJECT)?;
    let manifest = fs::read_to_string(workspace.join(fingerprint::MANIFEST)).context(fingerprint::MANIFEST)?;
    if fingerprint::manifest_value(&manifest, "object_sha256") != Some(&fingerprint::sha256(&object)) {
        bail!("{} is not the object its manifest describes", fingerprint::OBJECT);
    }
    if fingerprint::manifest_value(&manifest, "sources_sha256") != Some(&fingerprint::fingerprint(workspace)?) {
        bail!("{} is stale: the kernel programs changed", fingerprint::OBJECT);
    }
    Ok(())
}

/// Standard output of a command, trimmed; `None` if it cannot be run or fails.
fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

/// Finds a toolchain: the recorded compiler if it is there, else a nightly with `rust-src`, else Debian's,
/// installed if it is missing.
fn toolchain(workspace: &Path) -> Result<Toolchain> {
    let recorded = fs::read_to_string(workspace.join(fingerprint::MANIFEST)).unwrap_or_default();
    let recorded = fingerprint::manifest_value(&recorded, "rustc").unwrap_or_default().to_owned();
    let mut compilers: Vec<(PathBuf, PathBuf)> = Vec::new();
    compilers.push((PathBuf::from("/usr/bin/rustc"), PathBuf::from("/usr/bin/cargo")));
    let which = |tool: &str| output(Command::new("rustup").args(["which", "--toolchain", "nightly", tool]));
    if let (Some(rustc), Some(cargo)) = (which("rustc"), which("cargo")) {
        compilers.insert(0, (rustc.into(), cargo.into()));
    }
    compilers.retain(|(rustc, _)| has_core_source(rustc));
    if compilers.is_empty() {
        install_compiler()?;
        compilers.push((PathBuf::from("/usr/bin/rustc"), PathBuf::from("/usr/bin/cargo")));
    }
    let version = |rustc: &Path| output(Command::new(rustc).arg("--version")).unwrap_or_default();
    let at = compilers.iter().position(|(rustc, _)| version(rustc) == recorded).unwrap_or(0);
    let (rustc, cargo) = compilers.swap_remove(at);

    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let mut path: Vec<PathBuf> = home.iter().map(|home| home.join("bin")).collect();
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let path = std::env::join_paths(path)?;
    let linker = |path: &OsString| output(Command::new("bpf-linker").arg("--version").env("PATH", path));
    if linker(&path).is_none() {
        install_linker(&path)?;
    }
    let linker_version = linker(&path).context("bpf-linker does not run; see https://github.com/aya-rs/bpf-linker")?;
    Ok(Toolchain { rustc_version: version(&rustc), rustc, cargo, linker_version, path })
}

fn has_core_source(rustc: &Path) -> bool {
    output(Command::new(rustc).args(["--print", "sysroot"]))
        .is_some_and(|root| Path::new(&root).join("lib/rustlib/src/rust/library/core/src/lib.rs").exists())
}

fn install_compiler() -> Result<()> {
    println!("ebpf: no nightly toolchain with rust-src; installing Debian's compiler");
    setup::install_packages(&PACKAGES).context(
        "need `rustup toolchain install nightly --component rust-src`, or a Debian system with apt-get as root",
    )
}

fn install_linker(path: &OsString) -> Result<()> {
    println!("ebpf: installing bpf-linker {LINKER_VERSION} (some minutes)");
    if !Path::new(LLVM).exists() {
        install_compiler()?;
    }
    // LLVM_PREFIX is what its build script reads; LLVM_SYS_221_PREFIX is what llvm-sys reads.
    succeed(
        Command::new("cargo")
            .args([
                "install",
                "bpf-linker",
                "--version",
                LINKER_VERSION,
                "--no-default-features",
                "--features",
                "llvm-22",
            ])
            .env("PATH", path)
            .env("LLVM_PREFIX", LLVM)
            .env("LLVM_SYS_221_PREFIX", LLVM),
    )
}

/// Builds, strips DWARF (BTF stays), and returns the bytes.
fn build(workspace: &Path, toolchain: &Toolchain) -> Result<Vec<u8>> {
    let target = workspace.join("target/ebpf");
    let sysroot = output(Command::new(&toolchain.rustc).args(["--print", "sysroot"])).unwrap_or_default();
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cargo"));
    // The same bytes wherever the checkout is: no absolute path reaches BTF.
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let flags = [
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        remap(&cargo_home.join("registry/src"), "registry"),
        remap(&Path::new(&sysroot).join("lib/rustlib/src/rust"), "rust"),
        remap(workspace, "."),
    ];
    succeed(
        Command::new(&toolchain.cargo)
            .current_dir(workspace.join("observer-ebpf"))
            .args(["build", "--quiet", "--release", "--locked", "--features", "kernel", "--bin", "observer-kernel"])
            .args(["-Z", "build-std=core", "--target", "bpfel-unknown-none", "--target-dir"])
            .arg(&target)
            .env("RUSTC", &toolchain.rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .env("PATH", &toolchain.path)
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("RUSTFLAGS"),
    )?;
    let built = target.join("bpfel-unknown-none/release/observer-kernel");
    let stripped = target.join("observer.bpf.o");
    let strip = [PathBuf::from(LLVM).join("bin/llvm-strip"), "llvm-strip-22".into(), "llvm-strip".into()]
        .into_iter()
        .find(|tool| output(Command::new(tool).arg("--version")).is_some())
        .context("no llvm-strip; install the package llvm-22")?;
    succeed(Command::new(strip).args(["--strip-debug", "-o"]).arg(&stripped).arg(&built))?;
    Ok(fs::read(&stripped)?)
}
