//! Running other programs to their end, with errors that name them.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Runs `command` with our own input and output; an unsuccessful end is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| cannot_start(command))?;
    ensure!(status.success(), "`{}` ended with {status}", shown(command));
    Ok(())
}

/// Runs `command` and says only whether it succeeded.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Runs `command` and returns what it printed; an unsuccessful end is an error with its complaint.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let (successful, output) = capture_any(command)?;
    ensure!(successful, "`{}` failed; it printed: {output}", shown(command));
    Ok(output)
}

/// As [`capture`], but an unsuccessful end is no error: returns whether it succeeded, and its output
/// (with its complaint when it did not succeed).
pub(crate) fn capture_any(command: &mut Command) -> Result<(bool, String)> {
    let output = command.stdin(Stdio::null()).output().with_context(|| cannot_start(command))?;
    let mut printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        printed.push_str(String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok((output.status.success(), printed))
}

/// The command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn cannot_start(command: &Command) -> String {
    format!("cannot start `{}`: is it installed?", shown(command))
}

/// Whether `program` is in the search path.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Whether we are root.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// `program` as root: directly when we are, through sudo when that is installed.
pub(crate) fn as_root(program: impl AsRef<Path>) -> Result<Command> {
    let program = program.as_ref();
    if is_root() {
        return Ok(Command::new(program));
    }
    if !is_installed("sudo") {
        bail!("{} must run as root, and sudo is not installed: run this as root", program.display());
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    Ok(command)
}
