//! What observer costs, measured: `cargo xtask bench census`, `cargo xtask bench stacks`, `cargo xtask bench convoy`,
//! `cargo xtask bench sockets`, `cargo xtask bench daemon`, `cargo xtask bench tax` and `cargo xtask bench app`.
//!
//! They measure only processes they start themselves, and write a table into docs/overhead.md.

mod app;
mod census;
mod companion;
mod convoy;
mod daemon;
mod goroutines;
mod limits;
mod namespace;
mod sockets;
mod stacks;
mod table;
mod tax;

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::setup::{self, Purpose};
use crate::{ebpf, invoke, workspace};

/// What can be measured.
pub(crate) const NAMES: [&str; 8] = ["census", "stacks", "goroutines", "sockets", "convoy", "daemon", "tax", "app"];

/// Runs the bench named `what`; `quick` makes it short and leaves the document alone.
pub(crate) fn run(what: &str, quick: bool) -> Result<()> {
    if !invoke::is_root() {
        bail!("bench {what} loads eBPF programs: run it as root (sudo -E cargo xtask bench {what})");
    }
    setup::prepare(Purpose::Benches)?;
    setup::mount_tracefs();
    let observer = observer()?;
    let table = match what {
        "census" => census::measure(&observer, quick)?,
        "stacks" => stacks::measure(&observer, quick)?,
        "goroutines" => goroutines::measure(&observer, quick)?,
        "convoy" => convoy::measure(&observer, quick)?,
        "sockets" => sockets::measure(&observer, quick)?,
        "app" => app::measure(&observer, quick)?,
        "daemon" => daemon::measure(&observer, quick)?,
        _ => tax::measure(&observer, quick)?,
    };
    println!("\n{table}");
    if quick {
        println!("(--quick: docs/overhead.md is left as it is)");
        return Ok(());
    }
    table::write(what, &table)
}

/// The release build of observer.
pub(crate) fn observer() -> Result<PathBuf> {
    if workspace::given_observer()?.is_none() {
        ebpf::renew_if_stale()?;
        eprintln!("xtask: building observer (release)");
    }
    workspace::release_observer()
}
