//! `observer bench-sockets`: what one listing of stream sockets costs, for `cargo xtask bench sockets`.

use super::NOTHING;
use crate::census::{IterSource, ProcessId, Source};
use crate::host::{self, clock::monotonic_ns};
use crate::proc::{FileTables, ProcessStreams, Streams, exists};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

/// Far more than one may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Measure listings of the stream sockets of processes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How many
    #[arg(long, default_value_t = 10)]
    rounds: u32,
    /// Read /proc/PID/fd also where the kernel has a file iterator
    #[arg(long)]
    links: bool,
    /// Print which descriptors are sockets, as the kernel and as /proc list them, and measure nothing
    #[arg(long)]
    list: bool,
    /// Process ids
    #[arg(required = true, value_name = "PID")]
    pids: Vec<u32>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let mut processes: Vec<ProcessId> = Vec::new();
    for pid in &args.pids {
        processes.push(exists(*pid)?.id);
    }
    if args.list {
        return list(&processes);
    }
    let mut lost = BTreeMap::new();
    // A look has this program beside that of its census.
    let mut source = IterSource::load()?;
    let began = Instant::now();
    let (tables, descriptors) = match source.socket_files() {
        Ok(iterator) if !args.links => (FileTables::by_iterator(iterator), "iter_task_file"),
        _ => (FileTables::default(), "proc"),
    };
    let load_ns = host::clock::whole_ns(began.elapsed());
    drop(source);
    let streams = || Streams::new(monotonic_ns, tables.clone());
    // One observer looks at these processes, another at all that is here.
    let (mut attached, mut host) = (streams(), streams());
    let mut rounds = Vec::new();
    // The first of each grows buffers, and a survey looks for services: not counted.
    for round in 0..=args.rounds {
        let (listed, attach) = timed(|| attached.of(&processes, &processes, Instant::now() + LIMIT, &mut lost));
        let mut fresh = streams();
        let (_, first) = timed(|| fresh.of(&processes, &processes, Instant::now() + LIMIT, &mut lost));
        let after = Duration::from_millis(2500);
        let (survey, watch) = timed(|| host.survey(&processes, &processes, after, Instant::now() + LIMIT, &mut lost));
        if round > 0 {
            rounds.push(json!({
                "first": first,
                "attach": attach,
                "watch": watch,
                "suspects": survey.suspects,
                "connections": count(&listed, |_| true),
                "answered": count(&listed, |c| c.inbound && c.last_sent_ns >= c.last_received_ns && c.sent == Some(1)),
                "joined": count(&listed, |c| c.peer.is_some() && c.peer_process.is_some()),
            }));
        }
    }
    let (_, rss) = host::own_usage();
    writeln!(
        std::io::stdout().lock(),
        "{}",
        json!({
            "descriptors": descriptors, "load_ns": load_ns, "rounds": rounds, "rss_bytes": rss, "lost": lost
        })
    )?;
    Ok(NOTHING)
}

/// Prints a line for each process.
fn list(processes: &[ProcessId]) -> anyhow::Result<u8> {
    let mut source = IterSource::load()?;
    let iterator = source.socket_files();
    let mut out = std::io::stdout().lock();
    for process in processes {
        let until = Instant::now() + LIMIT;
        let listed = iterator.as_ref().map_err(String::clone);
        let listed = listed.and_then(|iterator| iterator.of(process.pid, until).map_err(|error| error.to_string()));
        let links = FileTables::default().sockets_of(*process, until).map_err(anyhow::Error::msg)?;
        let line = json!({
            "pid": process.pid, "iterator": listed.as_ref().ok(), "not_because": listed.as_ref().err(), "proc": links
        });
        writeln!(out, "{line}")?;
    }
    Ok(NOTHING)
}

fn count(listed: &[ProcessStreams], which: impl Fn(&crate::proc::Connection) -> bool) -> usize {
    listed.iter().flat_map(|streams| &streams.connections).filter(|connection| which(connection)).count()
}

/// What something answers, and what it took.
fn timed<T>(what: impl FnOnce() -> T) -> (T, Value) {
    let (began, (cpu, _)) = (Instant::now(), host::own_usage());
    let answer = what();
    let wall_ns = host::clock::whole_ns(began.elapsed());
    (answer, json!({ "wall_ns": wall_ns, "cpu_ns": host::own_usage().0 - cpu }))
}
