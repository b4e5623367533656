//! Which threads are looked at, and which of those deserve a closer look now.

use super::decode::{self, Call, Memory};
use super::host::Host;
use super::wait::Class;
use crate::census::{Pid, ThreadRow};
use crate::proc::base_name;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A wait shorter than this is not worth a read of the target's memory when the whole host is watched.
const SUSPECT_AFTER_NS: u64 = 100_000_000;

/// What is looked at.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// These processes only (`attach`); `None` is the whole host through `filter`.
    pub processes: Option<BTreeSet<Pid>>,
    /// Narrows the whole host.
    pub filter: Filter,
    /// How long a wait must last before a rule that needs duration may speak, nanoseconds.
    pub threshold_ns: u64,
}

/// Narrows a look at the whole host. Empty lists let everything pass; different lists must all match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Filter {
    /// Process ids.
    pub pids: BTreeSet<Pid>,
    /// Names of a process' main thread or executable file; `*` matches any run of characters.
    pub comms: Vec<String>,
    /// Parts of the cgroup path.
    pub cgroups: Vec<String>,
    /// Beginnings of container ids.
    pub containers: Vec<String>,
    /// PID namespaces by inode number, as `/proc/PID/ns/pid` shows it.
    pub namespaces: Vec<u32>,
    /// Names or process ids to leave out; `*` as above.
    pub excludes: Vec<String>,
}

impl Filter {
    /// Whether judging a process takes more than its row.
    pub fn needs_identity(&self) -> bool {
        !(self.cgroups.is_empty() && self.containers.is_empty() && self.comms.is_empty() && self.excludes.is_empty())
    }

    fn passes(&self, row: &ThreadRow, host: &Host) -> bool {
        // Looked up only if somebody asks: most filters are empty.
        let facts = || host.process(row.process);
        let names = || {
            let exe = facts().and_then(|f| f.exe.as_deref()).map(base_name);
            let main = host.row(row.process.pid).map(|main| main.comm.as_str());
            exe.into_iter().chain(main)
        };
        let excluded = self.excludes.iter().any(|pattern| {
            pattern.parse() == Ok(row.process.pid) || names().any(|name| matches_pattern(pattern, name))
        });
        let any = |list: &[String], test: &dyn Fn(&String) -> bool| list.is_empty() || list.iter().any(test);
        !excluded
            && (self.pids.is_empty() || self.pids.contains(&row.process.pid))
            && (self.namespaces.is_empty() || self.namespaces.contains(&row.pidns))
            && any(&self.comms, &|pattern| names().any(|name| matches_pattern(pattern, name)))
            && any(&self.cgroups, &|part| {
                facts().and_then(|f| f.cgroup.as_ref()).is_some_and(|path| path.contains(part.as_str()))
            })
            && any(&self.containers, &|start| {
                facts().and_then(|f| f.container.as_ref()).is_some_and(|c| c.id.starts_with(start.as_str()))
            })
    }
}

/// `*` matches any run of characters; everything else itself.
pub fn matches_pattern(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in middle {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

impl Scope {
    /// Whether a thread belongs to what is looked at.
    pub fn contains(&self, row: &ThreadRow, host: &Host) -> bool {
        match &self.processes {
            Some(pids) => pids.contains(&row.process.pid),
            None => self.filter.passes(row, host),
        }
    }

    /// Whether a blocked thread deserves a closer look now. Cheap questions first: this is asked of
    /// every thread at every census.
    pub(super) fn wants_facts(&self, row: &ThreadRow, blocked_ns: u64, host: &Host) -> bool {
        let attached = self.processes.is_some();
        let suspicious = match row.state_letter() {
            'D' | 'T' | 't' => true,
            _ => self.is_suspicious_call(row, blocked_ns, attached, host),
        };
        suspicious && self.contains(row, host)
    }

    fn is_suspicious_call(&self, row: &ThreadRow, blocked_ns: u64, attached: bool, host: &Host) -> bool {
        let Some(in_progress) = row.syscall else {
            return false;
        };
        let call = Call::lookup(in_progress.number, row.compat);
        let args = &in_progress.args;
        if call.name == "restart_syscall" {
            return attached || blocked_ns >= SUSPECT_AFTER_NS;
        }
        if call.is_futex() {
            let has_timeout = args[3] != 0;
            return decode::may_be_lock(args) && (attached || blocked_ns >= SUSPECT_AFTER_NS)
                || has_timeout && attached
                || host.is_parked(row.tid);
        }
        if call.name == "socketcall" {
            // What it does is known by its number, where it connects to by its memory.
            let connects = || decode::behind_socketcall(args).is_some_and(|call| call.class == Class::Connect);
            return attached || blocked_ns >= self.threshold_ns || connects();
        }
        match call.class {
            Class::Connect | Class::Io | Class::Child => true,
            Class::FileLock => attached || blocked_ns >= SUSPECT_AFTER_NS,
            _ if attached => true,
            Class::Write => super::ends::way(&call).is_some() && blocked_ns >= self.threshold_ns,
            Class::Event if call.is_poll() => {
                let has_needs = !decode::needs(row, Memory::default()).memory.is_empty();
                decode::has_suspicious_millis(&call, args)
                    || blocked_ns >= self.threshold_ns && (has_needs || host.change_of_habit(row).is_some())
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::matches_pattern;

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("java", "java", true),
            ("java", "java2", false),
            ("*", "", true),
            ("ng*x", "nginx", true),
            ("ng*x", "nginx2", false),
            ("*worker*", "kworker/0:1", true),
            ("a*b*c", "a-b-c", true),
            ("a*b*c", "acb", false),
            ("", "x", false),
        ] {
            assert_eq!(matches_pattern(pattern, text), expected, "{pattern} on {text}");
        }
    }
}
