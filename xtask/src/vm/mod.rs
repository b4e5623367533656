//! `cargo xtask vm`: observer on other kernels than this machine's.
//!
//! Debian's own kernels, fetched from its archive and booted in QEMU (emulated: no KVM, no root, no network
//! in the guest) with nothing but busybox, observer and two victims. Not part of `cargo xtask test`: it
//! fetches 20 to 35 MB a kernel and takes a minute or two for each.

mod boot;
mod fetch;
mod image;
mod verdict;

use anyhow::{Result, bail};

/// A kernel of the matrix.
struct Kernel {
    /// Major and minor version.
    version: &'static str,
    /// Debian's suite that has it.
    suite: &'static str,
    /// Rungs that cannot work there.
    lacks: &'static [&'static str],
}

/// Oldest first.
const KERNELS: &[Kernel] = &[
    // BTF of 5.10 has `struct pt_regs` of `__x64_sys_*` as a forward declaration, which fentry refuses.
    Kernel { version: "5.10", suite: "bullseye", lacks: &["fentry"] },
    Kernel { version: "6.1", suite: "bookworm", lacks: &[] },
    Kernel { version: "6.12", suite: "trixie", lacks: &[] },
    Kernel { version: "7.2", suite: "forky", lacks: &[] },
];

/// Boots the kernels asked for; true if all is well on each.
pub(crate) fn run(flags: &[&str]) -> Result<bool> {
    let wanted: Vec<&Kernel> = match flags {
        [] | ["--kernel", "all"] => KERNELS.iter().collect(),
        ["--kernel", version] => KERNELS.iter().filter(|kernel| kernel.version == *version).collect(),
        _ => bail!("vm takes only --kernel VERSION, not {flags:?}"),
    };
    if wanted.is_empty() {
        let known: Vec<_> = KERNELS.iter().map(|kernel| kernel.version).collect();
        bail!("no such kernel: --kernel takes all or one of {}", known.join(", "));
    }
    let image = image::build()?;
    println!("{}", verdict::HEADING);
    let mut all_well = true;
    for kernel in wanted {
        let output = boot::boot(&fetch::kernel(kernel)?, &image)?;
        let verdict = verdict::judge(kernel, &output);
        println!("{verdict}");
        all_well &= verdict.wrong.is_empty();
    }
    Ok(all_well)
}
