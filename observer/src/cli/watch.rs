//! `observer watch`

use super::look::{End, Look, LookArgs};
use crate::census;
use crate::host::clock::whole_ns;
use crate::model::{Filter, Scope};

/// Look at the whole host.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without filters every process of this PID namespace is watched. Lists are given by repeating an \
    option; different options must all match."
)]
pub(super) struct Args {
    /// Only this process
    #[arg(long, value_name = "PID")]
    pid: Vec<u32>,
    /// Only processes of this name (main thread or executable; `*` matches anything)
    #[arg(long, value_name = "NAME")]
    comm: Vec<String>,
    /// Only processes whose cgroup path contains this
    #[arg(long, value_name = "PART")]
    cgroup: Vec<String>,
    /// Only processes of the container whose id begins like this
    #[arg(long, value_name = "ID")]
    container: Vec<String>,
    /// Only processes of this PID namespace, by inode number (readlink /proc/PID/ns/pid)
    #[arg(long, value_name = "NUMBER", value_parser = namespace)]
    namespace: Vec<u32>,
    /// Leave out processes of this name or PID
    #[arg(long, value_name = "NAME|PID")]
    exclude: Vec<String>,
    /// Look until every answer that needs time has it, print the report, and exit
    #[arg(long, conflicts_with = "duration")]
    once: bool,
    #[command(flatten)]
    look: LookArgs,
}

/// `4026531836` or `pid:[4026531836]`.
fn namespace(text: &str) -> Result<u32, String> {
    let number = text.strip_prefix("pid:[").and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    number.parse().map_err(|_| {
        "give the inode number of a PID namespace (readlink /proc/PID/ns/pid); names of Kubernetes namespaces are not known here, use --container or --cgroup".to_owned()
    })
}

pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let filter = Filter {
        pids: args.pid.iter().copied().collect(),
        comms: args.comm.clone(),
        cgroups: args.cgroup.clone(),
        containers: args.container.clone(),
        namespaces: args.namespace.clone(),
        excludes: args.exclude.clone(),
    };
    let scope = Scope { processes: None, filter, threshold_ns: whole_ns(args.look.threshold) };
    super::look::run(Look {
        args: &args.look,
        scope,
        filter: census::Filter::Namespace,
        end: if args.once { End::Once } else { End::Live },
        children: false,
    })
}
