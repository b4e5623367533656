//! Where things are: the checkout, the target directory, the binaries and the C programs built from it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use anyhow::{Context, Result, ensure};

use crate::invoke;

/// The top of the checkout: of the one cargo runs us in, which need not be the one we were built in.
pub(crate) fn root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let built_in = || env!("CARGO_MANIFEST_DIR").into();
        let xtask: PathBuf = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(built_in, Into::into);
        xtask.parent().map(Path::to_owned).unwrap_or(xtask)
    });
    &ROOT
}

/// Cargo's target directory.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => root().join(directory),
        None => root().join("target"),
    }
}

/// The cargo that started us, at the top of the checkout.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(arguments);
    command
}

/// The release build of `observer`, built now; or `$OBSERVER_BIN` as it is.
pub(crate) fn release_observer() -> Result<PathBuf> {
    if let Some(given) = given_observer()? {
        return Ok(given);
    }
    invoke::run(&mut cargo(&["build", "--quiet", "--release", "--package", "observer"]))?;
    Ok(target().join("release/observer"))
}

/// The build of `observer` that its tests use, built now; or `$OBSERVER_BIN` as it is.
pub(crate) fn quick_observer() -> Result<PathBuf> {
    if let Some(given) = given_observer()? {
        return Ok(given);
    }
    invoke::run(&mut cargo(&["build", "--quiet", "--package", "observer"]))?;
    Ok(target().join("debug/observer"))
}

/// `$OBSERVER_BIN`, when set.
pub(crate) fn given_observer() -> Result<Option<PathBuf>> {
    let Some(given) = std::env::var_os("OBSERVER_BIN") else {
        return Ok(None);
    };
    let path = PathBuf::from(given);
    let path = path
        .canonicalize()
        .with_context(|| format!("OBSERVER_BIN={} does not exist: correct it or unset it", path.display()))?;
    Ok(Some(path))
}

/// Compiles one C file of the checkout to `target/<into>/<stem>` unless that is newer than its source and
/// the headers beside it.
pub(crate) fn compile_c(source: &str, into: &str) -> Result<PathBuf> {
    let source = root().join(source);
    ensure!(source.is_file(), "{} is missing: restore it with git", source.display());
    let directory = target().join(into);
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let binary = directory.join(source.file_stem().unwrap_or_default());
    let headers = std::fs::read_dir(source.parent().unwrap_or(root()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "h"));
    let mut inputs = headers.chain([source.clone()]);
    if !inputs.all(|input| is_newer(&binary, &input)) {
        invoke::run(
            Command::new("cc")
                .args(["-O2", "-g", "-fno-omit-frame-pointer", "-Wall", "-Wextra", "-pthread", "-o"])
                .arg(&binary)
                .arg(&source),
        )?;
    }
    Ok(binary)
}

fn is_newer(made: &Path, source: &Path) -> bool {
    let modified = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    matches!((modified(made), modified(source)), (Some(made), Some(source)) if made > source)
}
