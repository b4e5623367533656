//! `observer attach PID…`

use super::look::{End, Look, LookArgs};
use crate::census;
use crate::host::clock::whole_ns;
use crate::model::Scope;
use crate::proc;
use std::collections::BTreeSet;

/// Look at one or more processes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    observer attach 4242 --once                 what is it stuck on, now\n  \
    observer attach 4242 --for 30s              watch it for half a minute\n  \
    observer attach $(pgrep -d' ' myapp) --children --once --output json")]
pub(super) struct Args {
    /// Process ids
    #[arg(required = true, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pids: Vec<u32>,
    /// Look until every answer that needs time has it, print the report, and exit
    #[arg(long, conflicts_with = "duration")]
    once: bool,
    /// Their descendants, too
    #[arg(long)]
    children: bool,
    #[command(flatten)]
    look: LookArgs,
}

pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let mut pids = BTreeSet::new();
    let mut refusals = Vec::new();
    for pid in args.pids.iter().copied().collect::<BTreeSet<_>>() {
        match proc::exists(pid) {
            Ok(_) => {
                pids.insert(pid);
            }
            Err(error) => refusals.push(error),
        }
    }
    // Some can be looked at: say what cannot, and go on.
    if pids.is_empty()
        && let Some(error) = refusals.pop()
    {
        return Err(error.into());
    }
    for error in refusals {
        eprintln!("observer: {error}");
    }
    let scope = Scope { processes: Some(pids), threshold_ns: whole_ns(args.look.threshold), ..Scope::default() };
    super::look::run(Look {
        args: &args.look,
        scope,
        filter: census::Filter::Listed(Vec::new()),
        end: if args.once { End::Once } else { End::Live },
        children: args.children,
    })
}
