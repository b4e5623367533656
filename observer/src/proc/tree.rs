//! Who descends from whom.

use crate::census::{Pid, ThreadRow};
use std::collections::{BTreeMap, BTreeSet};

/// All descendants of `pids` in a census: children, their children, and so on. The given processes themselves are in
/// it only if they descend from another one of them.
pub fn children_of(pids: &[Pid], rows: &[ThreadRow]) -> BTreeSet<Pid> {
    let mut children: BTreeMap<Pid, Vec<Pid>> = BTreeMap::new();
    // Every thread of a process has the same parent.
    for row in rows.iter().filter(|r| r.tid == r.process.pid) {
        children.entry(row.ppid).or_default().push(row.process.pid);
    }
    let mut found = BTreeSet::new();
    let mut open: Vec<Pid> = pids.to_vec();
    while let Some(pid) = open.pop() {
        // A census is not one moment: a reused number could close a circle.
        open.extend(children.get(&pid).into_iter().flatten().filter(|&&child| found.insert(child)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::census::ProcessId;

    fn row(tid: Pid, pid: Pid, ppid: Pid) -> ThreadRow {
        ThreadRow {
            tid,
            process: ProcessId { pid, start_ns: 0 },
            initial: (tid, pid),
            own: (tid, pid),
            pidns: 0,
            ppid,
            tracer: 0,
            comm: String::new(),
            state: 0,
            exit_state: 0,
            flags: 0,
            jobctl: 0,
            compat: false,
            on_cpu: false,
            start_ns: 0,
            nvcsw: 0,
            nivcsw: 0,
            cpu_ns: 0,
            off_cpu_since_ns: None,
            queued_since_ns: None,
            syscall: None,
            registers: None,
            cgroup_id: 0,
            blocker: 0,
            blocker_tid: 0,
            blocker_flags: 0,
        }
    }

    #[test]
    fn descendants_are_transitive_and_circles_end() {
        let rows = [row(1, 1, 0), row(2, 2, 1), row(20, 2, 1), row(3, 3, 2), row(4, 4, 1), row(8, 8, 9), row(9, 9, 8)];
        assert_eq!(children_of(&[2], &rows), BTreeSet::from([3]));
        assert_eq!(children_of(&[1], &rows), BTreeSet::from([2, 3, 4]));
        assert_eq!(children_of(&[1, 3], &rows), BTreeSet::from([2, 3, 4]));
        assert_eq!(children_of(&[8], &rows), BTreeSet::from([8, 9]));
        assert_eq!(children_of(&[77], &rows), BTreeSet::new());
    }
}
