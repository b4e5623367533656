//! When to search for the other ends of what threads wait at, and whom that brings into view.

use super::decode::Call;
use super::wait::Class;
use crate::census::{Pid, ThreadRow};
use crate::proc::{FarEnd, ThreadFacts, Way};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A search that found nothing is done again after this time, and after a quarter of the wait if that is longer.
const AGAIN_NS: u64 = 1_000_000_000;
/// A process with more threads than this is followed by its first one only.
const THREADS: usize = 16;
/// Threads followed at a time.
const FOLLOWED: usize = 512;
/// A set of more descriptors than this makes no chain that could be followed.
const SET: usize = 8;

/// What a call waits for at its descriptor, if that may have another end. Left out are calls that move data between two
/// descriptors: which of them they wait for does not show.
pub(super) fn way(call: &Call) -> Option<Way> {
    let moves = matches!(call.name, "splice" | "tee" | "vmsplice" | "sendfile" | "sendfile64" | "copy_file_range");
    match call.class {
        Class::Read if call.fd_arg.is_some() => Some(Way { reads: true, writes: false }),
        Class::Write if call.fd_arg.is_some() && !moves => Some(Way { reads: false, writes: true }),
        _ => None,
    }
}

/// What the processes do that have the other ends.
#[derive(Debug, Default)]
pub(super) struct Activity {
    /// Per process: whether any thread runs, and when the last one went to sleep.
    processes: HashMap<Pid, (bool, u64)>,
}

impl Activity {
    /// Of all processes; `since` tells since when a thread is off the CPU.
    pub(super) fn of(rows: &[ThreadRow], since: impl Fn(&ThreadRow) -> u64) -> Self {
        let mut processes: HashMap<Pid, (bool, u64)> = HashMap::new();
        for row in rows.iter().filter(|row| !row.is_exiting()) {
            let seen = processes.entry(row.process.pid).or_default();
            seen.0 |= !row.is_blocked();
            if row.is_blocked() {
                seen.1 = seen.1.max(since(row));
            }
        }
        Self { processes }
    }

    /// Whether a search is out of date, and another one would tell more: all holders sleep, and one has run since (or has
    /// ended). While one runs, nothing can be concluded anyway.
    fn outdates(&self, end: &FarEnd) -> bool {
        let of = |pid: Pid| self.processes.get(&pid).copied().unwrap_or((false, u64::MAX));
        let mut moved = false;
        for holder in &end.holders {
            let (runs, asleep_since) = of(holder.process.pid);
            if runs {
                return false;
            }
            moved |= asleep_since > end.taken_ns;
        }
        moved
    }

    /// Whether to search again, for a thread of which this is known since `age_ns`, and which has waited for `blocked_ns`.
    pub(super) fn asks_again(&self, facts: &ThreadFacts, age_ns: u64, blocked_ns: u64) -> bool {
        let mut any = false;
        for end in ends_of(facts).filter(|end| !end.holders.is_empty()) {
            any = true;
            if self.outdates(end) {
                return true;
            }
        }
        !any && age_ns >= AGAIN_NS.max(blocked_ns / 4)
    }
}

/// All other ends that are known of what a thread waits at.
fn ends_of(facts: &ThreadFacts) -> impl Iterator<Item = &FarEnd> {
    facts.far_end.iter().chain(facts.members.iter().filter_map(|member| member.far_end.as_ref()))
}

/// The threads that have the other ends, to be looked at as well: what they wait for continues the chain.
pub(super) fn followed<'a>(known: impl Iterator<Item = &'a ThreadFacts>, rows: &[ThreadRow]) -> BTreeSet<Pid> {
    let makes_chain = |facts: &&ThreadFacts| facts.members.len() <= SET && facts.members_cut == 0;
    let processes: BTreeSet<Pid> =
        known.filter(makes_chain).flat_map(ends_of).flat_map(|end| &end.holders).map(|end| end.process.pid).collect();
    if processes.is_empty() {
        return BTreeSet::new();
    }
    let mut threads: BTreeMap<Pid, Vec<Pid>> = BTreeMap::new();
    for row in rows.iter().filter(|row| !row.is_exiting() && processes.contains(&row.process.pid)) {
        threads.entry(row.process.pid).or_default().push(row.tid);
    }
    let of_process = threads.into_iter().flat_map(|(pid, threads)| {
        let all = threads.len() <= THREADS;
        threads.into_iter().filter(move |tid| all || *tid == pid)
    });
    of_process.take(FOLLOWED).collect()
}

/// What an earlier reading of the same sleep told and this one does not: between two searches the old answer stays.
pub(super) fn keep(facts: &mut ThreadFacts, before: &ThreadFacts) {
    if facts.far_end.is_none() && facts.fd.as_ref().is_none_or(|fd| same_target(Some(fd), before.fd.as_ref())) {
        facts.far_end.clone_from(&before.far_end);
    }
    // It sleeps on what its descriptor was when it went to sleep.
    match &mut facts.fd {
        None => facts.fd.clone_from(&before.fd),
        Some(fd) if fd.socket.is_none() && same_target(Some(fd), before.fd.as_ref()) => {
            fd.socket = before.fd.as_ref().and_then(|old| old.socket.clone());
        }
        Some(_) => {}
    }
    if facts.kernel_stack.is_empty() {
        facts.kernel_stack.clone_from(&before.kernel_stack);
    }
    if facts.members.is_empty() {
        facts.members.clone_from(&before.members);
        facts.members_cut = before.members_cut;
    }
    for member in facts.members.iter_mut().filter(|member| member.far_end.is_none()) {
        let known = before.members.iter().find(|old| same_target(Some(&old.fd), Some(&member.fd)));
        member.far_end = known.and_then(|old| old.far_end.clone());
    }
}

fn same_target(a: Option<&crate::proc::FdFact>, b: Option<&crate::proc::FdFact>) -> bool {
    a.zip(b).is_some_and(|(a, b)| a.fd == b.fd && a.target == b.target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testkit::{S, process, row, thread_facts};
    use crate::proc::{EndHolder, FdFact, MemberFact};

    fn end(pids: &[Pid], taken_ns: u64) -> FarEnd {
        let holders = pids.iter().map(|pid| EndHolder { process: process(*pid), fd: 4 }).collect();
        FarEnd { object: "pipe:[7]".to_owned(), holders, unsearched: 0, unread: None, taken_ns }
    }

    /// A thread that reads a pipe whose other end these processes have.
    fn reader(pids: &[Pid], taken_ns: u64) -> ThreadFacts {
        ThreadFacts { far_end: Some(end(pids, taken_ns)), ..thread_facts(&row(10, 10), Vec::new()) }
    }

    fn activity(rows: &[ThreadRow]) -> Activity {
        Activity::of(rows, |row| row.off_cpu_since_ns.unwrap_or(0))
    }

    #[test]
    fn asked_again_when_a_holder_ran_and_sleeps() {
        // The rows of the kit sleep since second 90.
        let rows = [row(10, 10), row(20, 20), row(20, 21), row(30, 30)];
        let asleep = activity(&rows);
        let asks = |activity: &Activity, facts: &ThreadFacts| activity.asks_again(facts, 0, 100 * S);
        assert!(!asks(&asleep, &reader(&[20, 30], 95 * S)), "all slept since before");
        assert!(!asks(&asleep, &reader(&[20, 30], 90 * S)), "fell asleep in that instant");
        assert!(asks(&asleep, &reader(&[20, 30], 89 * S)), "ran since, and sleep now");
        assert!(asks(&asleep, &reader(&[20, 99], 95 * S)), "one has ended");
        let mut busy = rows.clone();
        busy[2].state = 0;
        assert!(!asks(&activity(&busy), &reader(&[20, 30], 89 * S)), "one runs");
    }

    #[test]
    fn a_search_in_vain_is_repeated_ever_more_rarely() {
        let activity = activity(&[row(10, 10)]);
        for facts in [reader(&[], 95 * S), ThreadFacts { far_end: None, ..reader(&[], 0) }] {
            assert!(!activity.asks_again(&facts, S - 1, 2 * S) && activity.asks_again(&facts, S, 2 * S));
            assert!(!activity.asks_again(&facts, S, 8 * S) && activity.asks_again(&facts, 2 * S, 8 * S));
        }
    }

    #[test]
    fn those_with_the_other_end_are_followed() {
        let mut rows: Vec<ThreadRow> = (0..17).map(|n| row(100, 100 + n)).collect();
        rows.extend([row(200, 200), row(200, 201), row(300, 300)]);
        let known = [reader(&[100, 200], 0)];
        assert_eq!(followed(known.iter(), &rows), BTreeSet::from([100, 200, 201]));
        let member = MemberFact { fd: FdFact::default(), events: 1, far_end: Some(end(&[300], 0)) };
        let mut polls = ThreadFacts { members: vec![member], far_end: None, ..reader(&[], 0) };
        assert_eq!(followed([&polls].into_iter(), &rows), BTreeSet::from([300]));
        polls.members_cut = 1;
        assert!(followed([&polls].into_iter(), &rows).is_empty(), "a set that is not known whole");
    }

    #[test]
    fn between_two_searches_the_old_answer_stays() {
        let fd = |fd: i32, target: &str| FdFact { fd, target: target.to_owned(), ..FdFact::default() };
        let member = |n: i32, far_end| MemberFact { fd: fd(n, "pipe:[7]"), events: 1, far_end };
        let mut before = ThreadFacts { fd: Some(fd(0, "pipe:[7]")), ..reader(&[20], 5) };
        before.members = vec![member(3, Some(end(&[30], 5)))];
        let mut again = ThreadFacts { far_end: None, ..before.clone() };
        again.members = vec![member(3, None), member(4, None)];
        keep(&mut again, &before);
        assert_eq!(again.far_end, before.far_end);
        assert_eq!((&again.members[0], again.members[1].far_end.as_ref()), (&before.members[0], None));
        let mut other = ThreadFacts { far_end: None, fd: Some(fd(0, "pipe:[8]")), ..before.clone() };
        keep(&mut other, &before);
        assert_eq!(other.far_end, None, "another pipe by now");
    }

    #[test]
    fn what_is_asked_about_in_which_look() {
        use crate::census::ProbeReading;
        use crate::model::testkit::{census, facts, with_syscall};
        use crate::model::{Host, Scope};

        // Since second 90: one reads, one writes, one moves data, one polls.
        let call = |pid, number| with_syscall(row(pid, pid), number, [3, 0x1000, 8, 0, 0, 0]);
        let rows = vec![call(10, 0), call(20, 1), call(30, 275), with_syscall(row(40, 40), 7, [0x1000, 2, 5, 0, 0, 0])];
        let asked = |at_s: u64, processes: Option<&[Pid]>, threshold_s: u64| {
            let mut host = Host::default();
            host.advance(census(at_s, rows.clone()), ProbeReading::default());
            let processes = processes.map(|pids| pids.iter().copied().collect());
            let scope = Scope { processes, threshold_ns: threshold_s * S, ..Scope::default() };
            let wants = host.wants(&scope);
            let ends: Vec<Pid> = wants.iter().filter(|want| want.far_end.is_some()).map(|want| want.tid).collect();
            let sets: Vec<Pid> = wants.iter().filter(|want| want.set.is_some()).map(|want| want.tid).collect();
            (ends, sets)
        };
        assert_eq!(asked(91, Some(&[10, 20, 30, 40]), 60), (vec![10, 20, 40], vec![40]), "attached: at once");
        assert_eq!(asked(91, Some(&[10]), 60), (vec![10], vec![]));
        assert_eq!(asked(149, None, 60), (vec![], vec![]));
        assert_eq!(asked(150, None, 60), (vec![20], vec![]), "of the whole host only long writes");

        // The reader has the other end of what the writer waits at: in a chain after half the threshold.
        let mut host = Host::default();
        let scope = Scope { threshold_ns: 60 * S, ..Scope::default() };
        host.advance(census(150, rows.clone()), ProbeReading::default());
        let fd = Some(FdFact { fd: 3, target: "pipe:[7]".to_owned(), ..FdFact::default() });
        let writer = ThreadFacts { fd, far_end: Some(end(&[10], 150 * S)), ..thread_facts(&rows[1], Vec::new()) };
        host.learn(facts(vec![writer]));
        let wants = host.wants(&scope);
        let ends: Vec<_> = wants.iter().filter_map(|want| Some((want.tid, want.far_end?.reads))).collect();
        assert_eq!(ends, [(10, true)], "the writer is known: {wants:?}");
    }
}
