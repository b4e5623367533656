//! What to find out next: whose memory, descriptors and other ends the judgement lacks.

use super::decode::{self, Call, Memory};
use super::ends::{self, Activity};
use super::file_lock;
use super::host::{Host, Suspect, switches};
use super::scope::Scope;
use super::wait::{Class, Owner};
use super::word::{self, Plain};
use crate::census::{Pid, ThreadRow};
use crate::proc::{FdFact, ThreadWant, Way};
use std::cell::OnceCell;
use std::collections::BTreeSet;

/// Readings of one sleep in which what arguments in memory lead to is asked for.
const FURTHER_READINGS: u32 = 20;
/// Readings of one sleep in which what did not come is asked for again at once. After that once in a while.
const LACKING_READINGS: u32 = 4;
/// How often then.
const LACKING_AGAIN_NS: u64 = 60_000_000_000;

impl Host {
    /// What to gather now: threads whose wait needs memory, a descriptor or a kernel stack to be
    /// understood.
    pub fn wants(&mut self, scope: &Scope) -> Vec<ThreadWant> {
        self.wanted(scope, &BTreeSet::new(), true)
    }

    /// What to gather once an answer has been learnt: a holder found in one round may lie outside the scope, and is then
    /// a suspect of the next. `asked` holds what this census asked already.
    pub fn wants_more(&mut self, scope: &Scope, asked: &BTreeSet<Pid>) -> Vec<ThreadWant> {
        self.wanted(scope, asked, false)
    }

    fn wanted(&mut self, scope: &Scope, asked: &BTreeSet<Pid>, is_first: bool) -> Vec<ThreadWant> {
        let holders: Vec<Pid> = self.holders().collect();
        self.chased.extend(holders);
        let tids = &self.tids;
        self.chased.retain(|tid| tids.binary_search(tid).is_ok());
        self.behind = ends::followed(self.suspects.values().map(|suspect| &suspect.facts), &self.rows);
        let changed = self.suspects.iter().filter(|(_, suspect)| suspect.changed.is_some()).map(|(tid, _)| *tid);
        let changed: BTreeSet<Pid> = changed.take(word::MOST_CHANGED).collect();
        // Made only if somebody waits for the other end of something.
        let activity = OnceCell::new();
        let activity = || activity.get_or_init(|| Activity::of(&self.rows, |row| self.since(row).ns));
        // Behind the first answer only those count that somebody else's wait led to.
        let sought: BTreeSet<Pid> = self.chased.iter().chain(&self.behind).chain(&changed).copied().collect();
        let led_to = sought.iter().filter(|_| !is_first).filter_map(|tid| self.row(*tid));
        let everybody = self.rows.iter().filter(|_| is_first);
        let mut wants: Vec<ThreadWant> = everybody
            .chain(led_to)
            .filter(|row| !asked.contains(&row.tid) && row.is_blocked() && !row.is_kernel_thread_at_rest())
            .filter_map(|row| {
                let is_sought = || sought.contains(&row.tid);
                // What is known already is asked last: few are wanted.
                if !scope.wants_facts(row, self.blocked_ns(row), self) && !is_sought() {
                    return None;
                }
                let way = self.far_end_wanted(row, scope);
                let suspect = self.suspects.get(&row.tid);
                let age = |suspect: &Suspect| self.now_ns().saturating_sub(suspect.learnt_ns);
                let is_done = suspect.is_some_and(|suspect| {
                    let again = || activity().asks_again(&suspect.facts, age(suspect), self.blocked_ns(row));
                    let lacks = || self.is_asked_again(row, suspect, way.is_some());
                    let asks_again = || lacks() || way.is_some() && again();
                    suspect.is_settled() && !self.asks_further(row, suspect) && !asks_again()
                });
                (!is_done).then_some((row, way))
            })
            .map(|(row, way)| self.want(row, way, scope))
            .collect();
        if is_first {
            wants.extend(self.glance(scope, &wants));
        }
        wants
    }

    /// Futex words that nothing else asks about: they may have changed without a wake-up.
    fn glance(&mut self, scope: &Scope, others: &[ThreadWant]) -> Vec<ThreadWant> {
        let attached = scope.processes.is_some();
        let long = if attached { 0 } else { scope.threshold_ns };
        let candidates = self.rows.iter().filter(|row| {
            Plain::of(row).is_some()
                && self.blocked_ns(row) >= long
                && others.binary_search_by_key(&row.tid, |want| want.tid).is_err()
                && scope.contains(row, self)
        });
        let mut glanced = self.glanced;
        let wants: Vec<ThreadWant> = word::next_words(candidates, &mut glanced, attached)
            .into_iter()
            .map(|row| self.want(row, None, scope))
            .collect();
        self.glanced = glanced;
        self.glances = wants.iter().map(|want| want.tid).collect();
        wants
    }

    /// Whether a thread was asked about for the sake of its futex word alone.
    pub fn is_glance(&self, tid: Pid) -> bool {
        self.glances.contains(&tid)
    }

    /// Whether somebody waits for this thread, as a lock or the other end of a pipe says.
    pub fn is_chased(&self, tid: Pid) -> bool {
        self.chased.contains(&tid) || self.behind.contains(&tid)
    }

    /// Whether something is asked for again that did not come: a busy machine answers some questions with nothing.
    fn is_asked_again(&self, row: &ThreadRow, suspect: &Suspect, with_set: bool) -> bool {
        let is_due = || self.now_ns().saturating_sub(suspect.learnt_ns) >= LACKING_AGAIN_NS;
        // A socket that was not listed may be of a family that never is, and to list all others costs something.
        let may_come = suspect.facts.fd.is_none() || row.state_letter() == 'D' && suspect.facts.kernel_stack.is_empty();
        (suspect.readings < LACKING_READINGS || may_come && is_due()) && self.lacks(row, suspect, with_set)
    }

    /// Whether a descriptor, its socket, the set or the kernel stack of a wait is not known. That may have come too late, and it may
    /// not be there: a socket of a family that is not listed.
    fn lacks(&self, row: &ThreadRow, suspect: &Suspect, with_set: bool) -> bool {
        let facts = &suspect.facts;
        let needs = decode::needs(row, Memory(&facts.memory));
        let is_there = |fd: &FdFact| fd.socket.is_some() || !fd.target.starts_with("socket:");
        needs.fd.is_some() && !facts.fd.as_ref().is_some_and(is_there)
            || with_set && needs.set.is_some() && facts.members.is_empty() && facts.members_cut == 0
            || row.state_letter() == 'D' && facts.kernel_stack.is_empty()
    }

    /// Whether what did not come of a process that was asked for is to be had or judged at the next census.
    pub fn awaits_answers(&self, scope: &Scope) -> bool {
        let awaits = |(tid, suspect): (&Pid, &Suspect)| {
            let row = self.row(*tid).filter(|row| scope.contains(row, self))?;
            let is_late = suspect.facts.is_unread() || self.lacks(row, suspect, false);
            let is_new = (suspect.is_settled() || suspect.was_late) && suspect.readings > 1 && !suspect.confirmed;
            Some(is_late && suspect.readings < LACKING_READINGS || is_new)
        };
        self.suspects.iter().filter_map(awaits).any(|awaits| awaits)
    }

    /// Whether some call was not judged yet by all that its arguments in memory lead to.
    pub fn awaits_arguments(&self) -> bool {
        let is_old = |row: &ThreadRow| {
            row.compat && row.syscall.is_some_and(|call| Call::lookup(call.number, true).name == "socketcall")
        };
        let awaits = |(tid, suspect): (&Pid, &Suspect)| {
            let row = self.row(*tid).filter(|row| is_old(row))?;
            Some(self.asks_further(row, suspect) || suspect.readings > 1 && !suspect.confirmed)
        };
        self.suspects.iter().filter_map(awaits).any(|awaits| awaits)
    }

    /// Whether what was read tells of more to read: the arguments of `socketcall` are in memory.
    fn asks_further(&self, row: &ThreadRow, suspect: &Suspect) -> bool {
        // A busy machine may answer some of these with nothing; whoever writes to them all the time is not asked for ever.
        row.compat && suspect.readings < FURTHER_READINGS && {
            let needs = decode::needs(row, Memory(&suspect.facts.memory));
            let is_read = |addr: u64| suspect.facts.memory.iter().any(|piece| piece.addr == addr);
            let mut memory = needs.memory.iter().filter(|range| range.addr != 0 && range.len > 0);
            needs.fd.is_some() && suspect.facts.fd.is_none() || !memory.all(|range| is_read(range.addr))
        }
    }

    /// Whether it is to be found out who has the other end of what a thread waits at. When the whole host is watched only of
    /// those in a chain, of those that wait long to write, and of those that gave up their limits: to wait for something to read is
    /// mostly rest.
    fn far_end_wanted(&self, row: &ThreadRow, scope: &Scope) -> Option<Way> {
        let in_progress = row.syscall.filter(|_| row.state_letter() == 'S')?;
        let outer = Call::lookup(in_progress.number, row.compat);
        let inner = (outer.name == "socketcall").then(|| decode::behind_socketcall(&in_progress.args)).flatten();
        let call = inner.unwrap_or(outer);
        // The cheap questions first: this is asked of every thread at every census.
        let wanted = if scope.processes.is_some() {
            self.is_chased(row.tid) || scope.contains(row, self)
        } else {
            let blocked = self.blocked_ns(row);
            let owes = || call.class == Class::Write || call.is_poll() && self.change_of_habit(row).is_some();
            blocked >= scope.threshold_ns / 2 && self.is_chased(row.tid)
                || blocked >= scope.threshold_ns && owes() && scope.contains(row, self)
        };
        if !wanted {
            return None;
        }
        ends::way(&call).or_else(|| decode::needs(row, Memory::default()).set.map(|_| Way::default()))
    }

    /// The threads that suspects wait for, as their locks say.
    pub(super) fn holders(&self) -> impl Iterator<Item = Pid> {
        let owners = self.suspects.values().filter_map(|s| self.owner_of(s.wait.as_ref()?, self.row(s.facts.tid)?));
        owners.filter_map(|owner| match owner {
            Owner::Thread(tid) => Some(tid),
            _ => None,
        })
    }

    /// The processes that hold the file locks which are waited for, as far as that is known.
    pub fn file_holders(&self) -> impl Iterator<Item = Pid> {
        self.suspects.values().filter_map(|known| Some(known.wait.as_ref()?.file_lock.as_ref()?.holder?.pid))
    }

    /// Whether an earlier reading of a sleep tells what a new one would: it was complete, and whom it names as the owner of a lock
    /// has slept since, or is gone.
    pub(super) fn still_holds(&self, before: &Suspect) -> bool {
        let owner = before.wait.as_ref().and_then(|wait| self.owner_of(wait, self.row(before.facts.tid)?));
        let has_slept = |tid| {
            let row = self.row(tid).filter(|row| row.is_blocked());
            row.is_some_and(|row| self.since(row).ns <= before.learnt_ns)
        };
        // What has changed in a word, and who has a file locked, is to be seen anew.
        !before.facts.is_unread()
            && before.changed.is_none()
            && before.wait.as_ref().is_none_or(|wait| wait.class != Class::FileLock)
            && match owner {
                Some(Owner::Thread(tid) | Owner::Elsewhere(tid)) => has_slept(tid),
                Some(Owner::Gone(_)) | None => true,
            }
    }

    fn want(&self, row: &ThreadRow, far_end: Option<Way>, scope: &Scope) -> ThreadWant {
        let mut needs = decode::needs(row, self.memory_read(row.tid));
        needs.memory.retain(|range| range.addr != 0 && range.len > 0);
        let letter = row.state_letter();
        ThreadWant {
            process: row.process,
            tid: row.tid,
            switches: switches(row),
            memory: needs.memory,
            fd: needs.fd,
            kernel_stack: letter == 'D',
            file_lock: self.decode(row, None).is_some_and(|wait| file_lock::kind(&wait).is_some()),
            set: needs.set.filter(|_| scope.processes.is_some() || far_end.is_some()),
            far_end,
        }
    }

    /// The rows a recording needs: the processes looked at, holders they wait for, and their ancestors.
    pub fn relevant(&self, scope: &Scope) -> BTreeSet<Pid> {
        let Some(pids) = &scope.processes else { return self.rows.iter().map(|row| row.process.pid).collect() };
        let chased = self.chased.iter().chain(&self.behind).filter_map(|tid| self.row(*tid)).map(|row| row.process.pid);
        let mut relevant: BTreeSet<Pid> = pids.iter().copied().chain(chased).collect();
        let mut todo: Vec<Pid> = relevant.iter().copied().collect();
        while let Some(pid) = todo.pop() {
            let parent = self.row(pid).map_or(0, |row| row.ppid);
            if parent != 0 && relevant.insert(parent) {
                todo.push(parent);
            }
        }
        relevant
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::census::ProbeReading;
    use crate::model::testkit::{S, census, facts, row, thread_facts, with_syscall};
    use crate::proc::{MemoryFact, MemoryRange, SocketFact, ThreadFacts};

    #[test]
    fn what_did_not_come_is_asked_for_again_and_not_for_ever() {
        let reader = with_syscall(row(10, 10), 0, [5, 0, 1, 0, 0, 0]);
        let scope = Scope { processes: Some(BTreeSet::from([10])), threshold_ns: S, ..Scope::default() };
        let mut host = Host::default();
        let mut at_s = 100;
        let mut asked = |host: &mut Host| {
            at_s += 1;
            host.advance(census(at_s, vec![reader.clone()]), ProbeReading::default());
            host.wants(&scope).iter().filter(|want| want.fd == Some(5)).count()
        };
        let nothing = thread_facts(&reader, Vec::new());
        for number in 1..=LACKING_READINGS {
            assert_eq!(asked(&mut host), 1, "reading {number}");
            host.learn(facts(vec![nothing.clone()]));
            assert!(host.awaits_answers(&scope), "the next reading, or the next census to judge it");
        }
        assert_eq!(asked(&mut host), 0, "it may not be there at all");
        assert!(!host.awaits_answers(&scope));
        for _ in 0..60 {
            asked(&mut host);
        }
        assert_eq!(asked(&mut host), 1, "once in a while");
        let fd = FdFact { fd: 5, target: "/run/file".to_owned(), ..FdFact::default() };
        host.learn(facts(vec![ThreadFacts { fd: Some(fd), ..nothing }]));
        assert_eq!(asked(&mut host), 0);
    }

    #[test]
    fn what_an_old_connect_points_to_is_asked_for_once_its_arguments_are_known() {
        let mut old = with_syscall(row(10, 10), 102, [3, 0x1000, 0, 0, 0, 0]);
        old.compat = true;
        let scope = Scope { processes: Some(BTreeSet::from([10])), threshold_ns: S, ..Scope::default() };
        let mut host = Host::default();
        let mut at_s = 100;
        let mut asked = |host: &mut Host, rows: &[ThreadRow]| {
            at_s += 1;
            host.advance(census(at_s, rows.to_vec()), ProbeReading::default());
            let wants = host.wants(&scope).into_iter();
            wants.map(|want| (want.memory, want.fd)).collect::<Vec<_>>()
        };
        let range = |addr, len| MemoryRange { addr, len };
        let rows = [old.clone()];
        assert_eq!(asked(&mut host, &rows), [(vec![range(0x1000, 24)], None)]);
        let arguments = |address: u32| [5, address, 16, 0, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
        let mut read = thread_facts(&old, Vec::new());
        read.memory = vec![MemoryFact { addr: 0x1000, bytes: arguments(0x2000), error: None }];
        host.learn(facts(vec![read.clone()]));
        assert!(host.awaits_arguments());
        assert_eq!(asked(&mut host, &rows), [(vec![range(0x1000, 24), range(0x2000, 16)], Some(5))]);
        let address = [&2_u16.to_ne_bytes()[..], &80_u16.to_be_bytes(), &[10, 0, 0, 1], &[0; 8]].concat();
        read.memory.push(MemoryFact { addr: 0x2000, bytes: address, error: None });
        let socket = Some(SocketFact { inode: 7, ..SocketFact::default() });
        read.fd = Some(FdFact { fd: 5, target: "socket:[7]".to_owned(), socket, ..FdFact::default() });
        host.learn(facts(vec![read.clone()]));
        assert!(host.awaits_arguments(), "not judged yet");
        assert_eq!(asked(&mut host, &rows), []);
        assert!(!host.awaits_arguments());
        let wait = host.confirmed_wait(10).expect("it slept on").1;
        let resource = wait.resource.as_ref().expect("a socket");
        assert_eq!((wait.syscall, resource.fd, resource.remote.as_deref()), ("connect", Some(5), Some("10.0.0.1:80")));

        // Somebody who writes other arguments all the time is not asked for ever.
        for round in 0..FURTHER_READINGS {
            read.memory[0].bytes = arguments(0x3000 + round);
            host.learn(facts(vec![read.clone()]));
        }
        assert_eq!(asked(&mut host, &rows), []);
    }
}
