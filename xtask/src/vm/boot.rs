//! One boot, from power on to power off.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::started::Started;

/// An emulated machine needs about a minute for all checks; a verifier that goes astray, several.
const LIMIT: Duration = Duration::from_secs(600);

/// Boots `kernel` with `image`; returns what the guest wrote to its serial console (also in `guest.log`).
pub(super) fn boot(kernel: &Path, image: &Path) -> Result<String> {
    let mut qemu = Command::new("qemu-system-x86_64");
    // Emulated, one plain CPU. QEMU 7.2 still kills kernel 6.12 now and then, at random places with impossible
    // EFLAGS: most often with two CPUs or `-cpu max`, and in three boots of three that ran busybox in a loop
    // and no observer. Such a boot says "Kernel panic": run it again.
    qemu.args(["-accel", "tcg", "-cpu", "Nehalem", "-smp", "1", "-m", "1024", "-nic", "none", "-nographic"]);
    qemu.args(["-no-reboot", "-append", "console=ttyS0 quiet loglevel=3 panic=-1", "-kernel"]).arg(kernel);
    qemu.arg("-initrd").arg(image);
    let mut guest = Started::start(&mut qemu)?;
    let until = Instant::now() + LIMIT;
    let mut output = String::new();
    while let Some(line) = guest
        .next_line(until.saturating_duration_since(Instant::now()))
        .with_context(|| format!("booting {}", kernel.display()))?
    {
        output.push_str(line.trim_end_matches('\r'));
        output.push('\n');
    }
    std::fs::write(image.with_extension("log"), &output).context("cannot keep the console's output")?;
    Ok(output)
}
