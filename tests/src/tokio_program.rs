//! Programs over chosen versions of tokio: each is a package of its own, since a lock file holds one version of it.

use crate::compile::{once_of, run, sources, target_dir};
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// How `victims/tokio_tasks.rs` is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Build {
    /// Version of tokio: `1.40.0`.
    pub tokio: &'static str,
    /// With optimization.
    pub release: bool,
    /// Without symbols and debug information.
    pub stripped: bool,
    /// Further flags of the compiler.
    pub flags: &'static str,
}

impl Build {
    /// A debug build, with debug information.
    pub const fn debug(tokio: &'static str) -> Self {
        Self { tokio, release: false, stripped: false, flags: "" }
    }

    /// A release build.
    pub const fn release(tokio: &'static str) -> Self {
        Self { tokio, release: true, stripped: false, flags: "" }
    }

    /// The same without symbols.
    pub const fn stripped(self) -> Self {
        Self { stripped: true, ..self }
    }

    /// The same with these flags.
    pub const fn with(self, flags: &'static str) -> Self {
        Self { flags, ..self }
    }

    /// The program, built once; cargo takes this version of tokio from where it has it, or from the registry.
    pub fn program(self) -> Result<PathBuf> {
        let source = fs::read_to_string(sources().join("tokio_tasks.rs"))?;
        once_of("tokio_tasks", &(self, &source), |out| {
            let package = target_dir()?.join("victims").join(format!("tokio-{}.{}", self.tokio, std::process::id()));
            fs::create_dir_all(package.join("src"))?;
            fs::write(package.join("src/main.rs"), &source)?;
            let strip = if self.stripped { "symbols" } else { "none" };
            let manifest = format!(
                "[package]\nname = \"tokio_tasks\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\n[workspace]\n\n\
                 [dependencies]\ntokio = {{ version = \"={}\", features = [\"rt-multi-thread\", \"sync\", \"time\"] }}\n\n\
                 [profile.dev]\nstrip = \"{strip}\"\n\n[profile.release]\nstrip = \"{strip}\"\n",
                self.tokio
            );
            fs::write(package.join("Cargo.toml"), manifest)?;
            let build = package.join("target");
            let cargo = |offline: bool| {
                let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
                cargo.args(["build", "--quiet", "--manifest-path"]).arg(package.join("Cargo.toml"));
                cargo.args(offline.then_some("--offline")).args(self.release.then_some("--release"));
                cargo
                    .env("CARGO_TARGET_DIR", &build)
                    .env("RUSTFLAGS", self.flags)
                    .env_remove("CARGO_ENCODED_RUSTFLAGS");
                run(&mut cargo)
            };
            cargo(true).or_else(|_| cargo(false))?;
            let built = build.join(if self.release { "release" } else { "debug" }).join("tokio_tasks");
            fs::copy(&built, out).with_context(|| format!("{} was built", built.display()))?;
            fs::remove_dir_all(&package)?;
            Ok(())
        })
    }
}
