//! C victims become programs, once per content of source, header and flags.

use anyhow::{Context, Result, bail};
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// Where the sources are.
pub fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("victims")
}

/// Cargo's target directory, from the place of the running test (`target/<profile>/deps/<test>`).
pub fn target_dir() -> Result<PathBuf> {
    let test = std::env::current_exe().context("where is this test")?;
    let target = test.ancestors().nth(3).context("a test binary lies in target/<profile>/deps")?;
    Ok(target.to_owned())
}

/// Which machine a victim is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Abi {
    /// This machine, with its C library.
    Native,
    /// i386 with glibc: needs the multilib packages.
    I386,
    /// i386 without a C library: needs gcc alone.
    I386Bare,
}

impl Abi {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Native => &["-pthread"],
            Self::I386 => &["-m32", "-pthread"],
            Self::I386Bare => {
                &["-m32", "-nostdlib", "-static", "-ffreestanding", "-fno-pie", "-no-pie", "-fno-stack-protector"]
            }
        }
    }
}

/// Whether this machine can build and run a program of this kind; why not, otherwise.
pub fn can_build(abi: Abi) -> Result<(), String> {
    let probe = || -> Result<()> {
        let dir = tempfile::tempdir()?;
        let source = dir.path().join("probe.c");
        std::fs::write(&source, "#include <pthread.h>\nint main(void) { return 0; }\n")?;
        let out = dir.path().join("probe");
        gcc(&source, &out, abi)?;
        if !Command::new(&out).status()?.success() {
            bail!("a program built with {:?} does not run", abi.flags());
        }
        Ok(())
    };
    probe().map_err(|e| format!("{e:#}"))
}

fn gcc(source: &Path, out: &Path, abi: Abi) -> Result<()> {
    let run = Command::new("gcc")
        .args(["-O2", "-g", "-Wall"])
        .args(abi.flags())
        .arg("-o")
        .arg(out)
        .arg(source)
        .output()
        .context("gcc is needed for the victims")?;
    if !run.status.success() {
        bail!("gcc {}:\n{}", source.display(), String::from_utf8_lossy(&run.stderr));
    }
    Ok(())
}

/// The program built from `victims/<name>.c`.
pub fn victim(name: &str, abi: Abi) -> Result<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);

    let source = sources().join(name).with_extension("c");
    let mut hasher = DefaultHasher::new();
    std::fs::read(&source).with_context(|| format!("no such victim: {}", source.display()))?.hash(&mut hasher);
    std::fs::read(sources().join("victim.h"))?.hash(&mut hasher);
    abi.flags().hash(&mut hasher);
    // The program's own name stays the first part: it becomes the process's comm (15 bytes).
    let dir = target_dir()?.join("victims").join(format!("{:016x}", hasher.finish()));
    let program = dir.join(name);
    if program.exists() {
        return Ok(program);
    }
    std::fs::create_dir_all(&dir)?;
    let unfinished = dir.join(format!("{name}.{}", std::process::id()));
    gcc(&source, &unfinished, abi)?;
    std::fs::rename(&unfinished, &program)?;
    Ok(program)
}
