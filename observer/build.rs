//! Embeds the kernel object committed beside its sources, and refuses a stale one.

use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

#[path = "../observer-ebpf/fingerprint.rs"]
mod fingerprint;

fn main() -> ExitCode {
    match check() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}\nRenew it with: cargo xtask ebpf");
            ExitCode::FAILURE
        }
    }
}

fn check() -> Result<(), String> {
    let here = env::var("CARGO_MANIFEST_DIR").map_err(|error| error.to_string())?;
    let workspace = Path::new(&here).parent().ok_or("the crate has no workspace above it")?;
    let object = workspace.join(fingerprint::OBJECT);
    let manifest = workspace.join(fingerprint::MANIFEST);
    let sources = fingerprint::sources(workspace).map_err(|error| format!("observer-ebpf: {error}"))?;
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={}", workspace.join("observer-ebpf/fingerprint.rs").display());
    println!("cargo:rerun-if-changed={}", workspace.join("observer-ebpf/src").display());
    println!("cargo:rerun-if-changed={}", workspace.join("Cargo.lock").display());
    println!("cargo:rerun-if-changed={}", object.display());
    println!("cargo:rerun-if-changed={}", manifest.display());
    for path in sources {
        println!("cargo:rerun-if-changed={}", path.display());
    }

    let bytes = fs::read(&object).map_err(|error| format!("{}: {error}", object.display()))?;
    let text = fs::read_to_string(&manifest).map_err(|error| format!("{}: {error}", manifest.display()))?;
    let recorded =
        |key| fingerprint::manifest_value(&text, key).ok_or_else(|| format!("{}: no `{key}`", manifest.display()));
    if recorded("object_sha256")? != fingerprint::sha256(&bytes) {
        return Err(format!("{} is not the object its manifest describes.", object.display()));
    }
    let current = fingerprint::fingerprint(workspace).map_err(|error| format!("observer-ebpf: {error}"))?;
    if recorded("sources_sha256")? != current {
        return Err(format!("{} is stale: the kernel programs in observer-ebpf changed.", object.display()));
    }
    println!("cargo:rustc-env=OBSERVER_OBJECT={}", object.display());
    println!("cargo:rustc-env=OBSERVER_OBJECT_SHA256={}", fingerprint::sha256(&bytes));
    Ok(())
}
