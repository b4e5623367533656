//! Waits for whoever has the other end of a pipe or a socket.

use super::ways::Way;
use super::{Hop, Nature};
use crate::census::{Pid, ThreadRow};
use crate::model::host::Host;
use crate::model::wait::{Class, Confidence, Owner, Resource, Wait};
use crate::proc::FarEnd;
use std::collections::BTreeSet;

const READER: &str = "has the end that can be written to";
const WRITER: &str = "has the end that can be read from";
const POLLED: &str = "has the other end of everything that is polled";

/// The ways out of a wait for the other end; `None` if that is not known.
pub(super) fn way(host: &Host, row: &ThreadRow, wait: &Wait) -> Option<Way> {
    let (ends, how): (Vec<&FarEnd>, _) = match wait.class {
        Class::Read => (wait.far_end.iter().collect(), READER),
        Class::Write => (wait.far_end.iter().collect(), WRITER),
        Class::Event if wait.members_cut == 0 && wait.timeout.is_unbounded() => {
            let all: Option<Vec<&FarEnd>> = wait.members.iter().map(|member| member.far_end.as_ref()).collect();
            (all?, POLLED)
        }
        _ => return None,
    };
    let resource = match wait.members.as_slice() {
        [only] if wait.class == Class::Event => only.resource.clone(),
        _ => wait.resource.clone()?,
    };
    if ends.is_empty() || ends.iter().any(|end| end.unsearched > 0) {
        return None;
    }
    let processes: BTreeSet<Pid> = ends.iter().flat_map(|end| &end.holders).map(|holder| holder.process.pid).collect();
    let threads: Vec<&ThreadRow> = host
        .rows()
        .iter()
        .filter(|other| processes.contains(&other.process.pid) && other.tid != row.tid && !other.is_exiting())
        .collect();
    let (owner, confidence) = shown(host, row, &threads);
    let is_closed = wait.class != Class::Event && !is_open_to_others(wait, &resource);
    Some(Way {
        hop: Hop {
            waiter: row.tid,
            resource,
            owner: owner.map(Owner::Thread),
            nature: Nature::FarEnd,
            confidence,
            how,
        },
        by: if is_closed { threads.iter().map(|row| row.tid).collect() } else { Vec::new() },
        // Its sleep proves that nobody has read from a full pipe; a reader's silence may be rest.
        spares_idle: wait.class == Class::Write,
        as_of_ns: ends.iter().map(|end| end.taken_ns).min(),
    })
}

/// Anybody may open a FIFO for writing at any time.
fn is_open_to_others(wait: &Wait, resource: &Resource) -> bool {
    wait.class == Class::Read && resource.detail.as_deref().is_some_and(|path| path.starts_with('/'))
}

/// The thread that stands for all: the only one of the only other process; its one thread that does not rest; its main thread.
fn shown(host: &Host, waiter: &ThreadRow, threads: &[&ThreadRow]) -> (Option<Pid>, Confidence) {
    let others: BTreeSet<Pid> =
        threads.iter().map(|row| row.process.pid).filter(|pid| *pid != waiter.process.pid).collect();
    let mut others = others.into_iter();
    let process = match (others.next(), others.next()) {
        (Some(only), None) => only,
        (None, _) => waiter.process.pid,
        _ => return (None, Confidence::Possible),
    };
    let of_it: Vec<&&ThreadRow> = threads.iter().filter(|row| row.process.pid == process).collect();
    let is_at_work = |row: &&&&ThreadRow| {
        !matches!(host.class(row), Some(Class::Condition | Class::Event | Class::Sleep | Class::Accept))
    };
    let mut at_work = of_it.iter().filter(is_at_work);
    match (of_it.as_slice(), at_work.next(), at_work.next()) {
        ([], ..) => (None, Confidence::Possible),
        ([only], ..) => (Some(only.tid), Confidence::Likely),
        (_, Some(only), None) => (Some(only.tid), Confidence::Possible),
        // Between threads of one process it is usually any of a pool.
        _ if process == waiter.process.pid => (None, Confidence::Possible),
        ([first, ..], ..) => {
            (Some(of_it.iter().find(|row| row.tid == process).unwrap_or(first).tid), Confidence::Possible)
        }
    }
}

/// A thread that rests where it would not look at a pipe.
pub(super) fn is_idle(host: &Host, tid: Pid) -> bool {
    host.row(tid).is_some_and(ThreadRow::is_blocked)
        && host.wait(tid).is_some_and(|wait| wait.class == Class::Condition && wait.owner.is_none())
}
