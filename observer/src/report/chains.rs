//! From each waiter to its root: for threads that no finding is about.

use super::text::clean;
use crate::census::Pid;
use crate::detect::finding::{links, thread_ref};
use crate::model::graph::{Chain, End, Graph};
use crate::model::{Host, Owner};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write;

/// Chains printed per process, and hops of each.
const CHAINS: usize = 4;
const HOPS: usize = 20;

/// The chain of a thread, and where it ends; `null` for one that waits for nobody.
pub(super) fn to_json(host: &Host, graph: &Graph, tid: Pid) -> Value {
    let Some(chain) = graph.chain(host, tid) else { return Value::Null };
    let thread = |kind: &str, tid: Pid| {
        let at = thread_ref(tid, host);
        json!({ "kind": kind, "pid": at.pid, "tid": at.tid, "comm": host.row(tid).map(|row| row.comm.as_str()), "doing": host.doing(tid) })
    };
    let end = match chain.end {
        End::Root(tid) => thread("root", tid),
        End::Cycle(at) => chain.hops.get(at).map_or(Value::Null, |hop| thread("cycle", hop.waiter)),
        End::Abandoned(Owner::Gone(own)) => json!({ "kind": "abandoned", "pid": null, "tid": own }),
        End::Abandoned(Owner::Thread(tid) | Owner::Elsewhere(tid)) => thread("abandoned", tid),
        End::Unknown => json!({ "kind": "unknown", "pid": null, "tid": null }),
    };
    let links: Vec<Value> = links(&chain.hops, host).iter().map(|link| super::json::link(host, link)).collect();
    json!({ "links": links, "end": end })
}

/// The chains of these threads that say more than their lines in the table: over several hops, or into another process.
pub(super) fn to_text(host: &Host, graph: &Graph, tids: &[Pid]) -> String {
    let mut chains: Vec<Chain> = tids.iter().filter_map(|tid| graph.chain(host, *tid)).collect();
    chains.retain(|chain| chain.hops.len() > 1 || crosses(host, chain));
    // The longest first: it tells those that begin on its way.
    chains.sort_by_key(|chain| (std::cmp::Reverse(chain.hops.len()), chain.hops.first().map(|hop| hop.waiter)));
    let mut told: BTreeSet<Pid> = BTreeSet::new();
    let mut out = String::new();
    let mut more = 0;
    let mut shown = 0;
    for chain in &chains {
        let Some(first) = chain.hops.first().filter(|first| !told.contains(&first.waiter)) else { continue };
        told.extend(chain.hops.iter().map(|hop| hop.waiter));
        if shown == CHAINS {
            more += 1;
            continue;
        }
        shown += 1;
        let _ = writeln!(out, "  why {} waits:", clean(&host.name(first.waiter)));
        for link in links(&chain.hops, host).iter().take(HOPS) {
            let _ = writeln!(out, "    {}", super::text::link(host, link));
        }
        if let Some(cut @ 1..) = chain.hops.len().checked_sub(HOPS) {
            let _ = writeln!(out, "    + {cut} more (--output json lists all)");
        }
        let end = match chain.end {
            End::Root(tid) => format!("{} {}", host.name(tid), host.doing(tid)),
            End::Cycle(_) => "… and so round in a circle".to_owned(),
            End::Abandoned(_) => "nobody is left to end this wait".to_owned(),
            End::Unknown => "whoever holds it cannot be told".to_owned(),
        };
        let _ = writeln!(out, "    {}", clean(&end));
    }
    if more > 0 {
        let _ = writeln!(out, "  + {more} more chains (--output json lists all)");
    }
    out
}

fn crosses(host: &Host, chain: &Chain) -> bool {
    let process = |tid: Pid| host.row(tid).map(|row| row.process);
    chain.hops.iter().any(|hop| matches!(hop.owner, Some(Owner::Thread(tid)) if process(tid) != process(hop.waiter)))
}
