//! Victims become programs, once per content of source, what it includes, and flags.

use anyhow::{Context, Result, bail, ensure};
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
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

/// One way to make a program of a victim's source, for those that whoever unwinds stacks must tell apart.
#[derive(Clone, Copy, Debug, Hash)]
pub struct Recipe {
    /// Name of the program: it becomes the main thread's comm.
    pub program: &'static str,
    /// File under `victims`.
    pub source: &'static str,
    /// Compiler and its arguments; `-o PROGRAM SOURCE` is added.
    pub command: &'static [&'static str],
}

impl Recipe {
    /// The compiler (or what it needs) that is missing here.
    pub fn missing(&self) -> Option<&'static str> {
        let compiler = self.command.iter().find(|word| **word != "env" && !word.contains('='));
        let linker = self.command.contains(&"-fuse-ld=lld").then_some("ld.lld");
        compiler.copied().into_iter().chain(linker).find(|tool| !installed(tool))
    }

    /// The program, built once per content of source, what it includes, and command.
    pub fn build(&self) -> Result<PathBuf> {
        let source = sources().join(self.source);
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        for file in [&source, &sources().join("victim.h"), &sources().join("seats.rs")] {
            std::fs::read(file).with_context(|| format!("no such victim: {}", file.display()))?.hash(&mut hasher);
        }
        once(self.program, &hasher, |out| {
            let (compiler, arguments) = self.command.split_first().context("a compiler")?;
            run(Command::new(compiler).args(arguments).arg("-o").arg(out).arg(&source))
        })
    }
}

/// Whether this program is in PATH.
pub fn installed(tool: &str) -> bool {
    let look = Command::new("sh").args(["-c", "command -v \"$0\" >/dev/null", tool]).status();
    look.is_ok_and(|status| status.success())
}

/// Where this program is in PATH.
pub fn find(tool: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|dir| dir.join(tool));
    places.find(|file| file.is_file()).with_context(|| format!("{tool} is not in PATH"))
}

/// Runs a tool to its end; what it wrote to stderr becomes the error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let run = command.output().with_context(|| format!("a victim needs {:?}", command.get_program()))?;
    if !run.status.success() {
        bail!("{command:?}:\n{}", String::from_utf8_lossy(&run.stderr));
    }
    Ok(())
}

/// A program under `target/victims`, made of this content unless it is there already.
pub(crate) fn once_of(program: &str, content: &impl Hash, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    once(program, &hasher, make)
}

/// A program under `target/victims`, made unless it is there already.
fn once(program: &str, content: &DefaultHasher, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);

    // The program's own name stays the first part: it becomes the process's comm (15 bytes).
    let dir = target_dir()?.join("victims").join(format!("{:016x}", content.finish()));
    let path = dir.join(program);
    if path.exists() {
        return Ok(path);
    }
    std::fs::create_dir_all(&dir)?;
    let unfinished = dir.join(format!("{program}.{}", std::process::id()));
    make(&unfinished)?;
    std::fs::rename(&unfinished, &path)?;
    Ok(path)
}

/// The directory with the classes of `victims/<name>.java`.
pub fn java_classes(name: &str) -> Result<PathBuf> {
    let source = sources().join(name).with_extension("java");
    let mut hasher = DefaultHasher::new();
    std::fs::read(&source)?.hash(&mut hasher);
    once(name, &hasher, |out| run(Command::new("javac").arg("-d").arg(out).arg(&source)))
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
    if abi == Abi::I386Bare {
        return can_run("tiny32", abi).map_err(|e| format!("{e:#}"));
    }
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

/// Whether a victim that ends when its input does can be built (or is built) and run.
fn can_run(name: &str, abi: Abi) -> Result<()> {
    let path = victim(name, abi)?;
    // Without a kernel that runs such programs (`CONFIG_IA32_EMULATION`) this is ENOEXEC.
    let child = Command::new(&path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let run = child.and_then(std::process::Child::wait_with_output);
    let run = run.with_context(|| format!("{} does not run here", path.display()))?;
    ensure!(run.status.success(), "{} ended with {}", path.display(), run.status);
    Ok(())
}

fn gcc(source: &Path, out: &Path, abi: Abi) -> Result<()> {
    run(Command::new("gcc").args(["-O2", "-g", "-Wall"]).args(abi.flags()).arg("-o").arg(out).arg(source))
}

/// The program built from `victims/<name>.c`; where `OBSERVER_VICTIMS` names a directory with programs that are built
/// already (in a guest without compilers, `cargo xtask vm`), the one there.
pub fn victim(name: &str, abi: Abi) -> Result<PathBuf> {
    if let Some(built) = std::env::var_os("OBSERVER_VICTIMS") {
        let path = PathBuf::from(built).join(name);
        ensure!(abi != Abi::I386 && path.is_file(), "no victim {name} for {abi:?} in OBSERVER_VICTIMS");
        return Ok(path);
    }
    let source = sources().join(name).with_extension("c");
    let mut hasher = DefaultHasher::new();
    std::fs::read(&source).with_context(|| format!("no such victim: {}", source.display()))?.hash(&mut hasher);
    std::fs::read(sources().join("victim.h"))?.hash(&mut hasher);
    abi.flags().hash(&mut hasher);
    once(name, &hasher, |out| gcc(&source, out, abi))
}
