//! Polled sets, and the other ends of descriptors: from facts into the wait.

use super::{described, syscalls::Call};
use crate::model::wait::{Class, Member, Resource, ResourceKind, Wait};
use crate::proc::{MemberFact, PolledSet, ThreadFacts};

/// Members of a set that its description names.
const NAMED: usize = 4;

/// Where the set lies that this call polls.
pub(super) fn set(call: &Call, args: &[u64; 6], compat: bool) -> Option<PolledSet> {
    let addr = |n: usize| if compat { args[n] & 0xffff_ffff } else { args[n] };
    // Counts are 32 bits wide, whatever the upper half of the register holds.
    let count = |n: usize| args[n] & 0xffff_ffff;
    match call.name {
        "poll" | "ppoll" | "ppoll_time64" => {
            Some(PolledSet::Poll { addr: addr(0), count: count(1) }).filter(|_| addr(0) != 0 && count(1) > 0)
        }
        // The old call of 32-bit programs has all its arguments in memory.
        "select" if compat => None,
        "select" | "_newselect" | "pselect6" | "pselect6_time64" => {
            let set = PolledSet::Select { count: count(0), sets: [addr(1), addr(2), addr(3)] };
            Some(set).filter(|_| (1..=i32::MAX as u64).contains(&count(0)) && (1..=3).any(|n| addr(n) != 0))
        }
        "epoll_wait" | "epoll_pwait" | "epoll_pwait2" => call.fd(args).map(|fd| PolledSet::Epoll { fd }),
        _ => None,
    }
}

/// The wait with what is known of the set it polls and of the other ends.
pub fn with_ends(mut wait: Wait, facts: &ThreadFacts) -> Wait {
    wait.far_end.clone_from(&facts.far_end);
    wait.members = facts.members.iter().map(member).collect();
    wait.members_cut = facts.members_cut;
    wait.process = match (wait.class, facts.members.as_slice()) {
        (Class::Child, _) => facts.fd.as_ref().and_then(|fd| fd.process),
        (Class::Event, [only]) if wait.members_cut == 0 && wait.timeout.is_unbounded() => only.fd.process,
        _ => None,
    };
    if wait.class == Class::Event && wait.resource.is_none() && !wait.members.is_empty() {
        let words = in_words(&wait.members, wait.members_cut);
        wait.resource = Some(Resource::of(ResourceKind::Descriptors).detailed(words));
    }
    wait
}

fn member(fact: &MemberFact) -> Member {
    Member { resource: described(&fact.fd), events: fact.events, far_end: fact.far_end.clone() }
}

/// `2 descriptors: pipe:[12] (fd 3, in), tcp to 10.0.0.1:80 (fd 5, in|out)`.
pub fn in_words(members: &[Member], cut: u32) -> String {
    let count = members.len() + cut as usize;
    let words: Vec<String> = members.iter().take(NAMED).map(Member::describe).collect();
    let more = if count > words.len() { ", …" } else { "" };
    format!("{count} descriptor{}: {}{more}", if count == 1 { "" } else { "s" }, words.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testkit::{row, thread_facts};
    use crate::model::wait::Timeout;
    use crate::proc::{FdFact, SocketFact};

    #[test]
    fn where_sets_lie() {
        let of = |name, args, compat| set(&Call::named(name), &args, compat);
        let high = 7 << 32;
        assert_eq!(of("poll", [0x1000, high | 3, 9, 0, 0, 0], false), Some(PolledSet::Poll { addr: 0x1000, count: 3 }));
        assert_eq!(of("poll", [0, 0, 1000, 0, 0, 0], false), None, "a poll that only sleeps");
        assert_eq!(of("ppoll", [0x1000, 0, 0, 0, 0, 0], false), None);
        let sets = [0x10, 0, 0x30];
        assert_eq!(of("pselect6", [8, 0x10, 0, 0x30, 0, 0], false), Some(PolledSet::Select { count: 8, sets }));
        assert_eq!(of("_newselect", [8, high | 0x10, 0, 0x30, 0, 0], true), Some(PolledSet::Select { count: 8, sets }));
        assert_eq!(of("select", [0x1000, 0, 0, 0, 0, 0], true), None);
        assert_eq!(of("select", [0xffff_ffff, 0x10, 0, 0, 0, 0], false), None, "a negative count");
        assert_eq!(of("select", [5, 0, 0, 0, 0, 0], false), None);
        assert_eq!(of("epoll_wait", [4, 0, 0, 0, 0, 0], false), Some(PolledSet::Epoll { fd: 4 }));
        assert_eq!(of("epoll_wait", [u64::MAX, 0, 0, 0, 0, 0], false), None);
        assert_eq!(of("read", [4, 0, 0, 0, 0, 0], false), None);
    }

    #[test]
    fn a_set_in_words() {
        let fd = |fd: i32, target: &str| FdFact { fd, target: target.to_owned(), ..FdFact::default() };
        let remote = Some("10.0.0.1:80".to_owned());
        let socket = SocketFact { protocol: "tcp".to_owned(), remote, ..SocketFact::default() };
        let mut facts = thread_facts(&row(1, 1), Vec::new());
        let all = [
            (fd(3, "pipe:[12]"), 0x1),
            (FdFact { socket: Some(socket), ..fd(5, "socket:[9]") }, 0x5),
            (FdFact { process: Some(77), ..fd(6, "anon_inode:[pidfd]") }, 0x1),
            (FdFact { fifo: Some((1, 2)), ..fd(7, "/run/x") }, 0),
            (fd(8, "anon_inode:[eventfd]"), 0x4000),
        ];
        facts.members = all.into_iter().map(|(fd, events)| MemberFact { fd, events, far_end: None }).collect();
        facts.members_cut = 2;
        let wait = || Wait::in_call("poll", [0; 6], Class::Event, Timeout::NONE);
        assert_eq!(
            with_ends(wait(), &facts).resource.map(|r| r.describe()).as_deref(),
            Some(
                "7 descriptors: pipe:[12] (fd 3, in), tcp to 10.0.0.1:80 (fd 5, in|out), \
                 child process 77 (fd 6, in), pipe /run/x (fd 7), …"
            )
        );
        facts.members.truncate(1);
        facts.members_cut = 0;
        let one = with_ends(wait(), &facts).resource.map(|r| r.describe());
        assert_eq!(one.as_deref(), Some("1 descriptor: pipe:[12] (fd 3, in)"));
        assert_eq!(with_ends(wait(), &thread_facts(&row(1, 1), Vec::new())).resource, None);
    }
}
