//! Events of the probe plane: from the kernel border's numbers to user-space terms. No I/O.

use super::event::{EventKind, Family, ProbeEvent, TimeoutHistory, TimeoutKind};
use super::row::Pid;
use observer_ebpf::{Event, FAMILY_FUTEX, FAMILY_POLL};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The family of a number; `None` for one this version does not know.
pub(super) fn family(number: u32) -> Option<Family> {
    match number {
        FAMILY_POLL => Some(Family::Poll),
        FAMILY_FUTEX => Some(Family::Futex),
        observer_ebpf::FAMILY_CONNECT => Some(Family::Connect),
        observer_ebpf::FAMILY_SOCKET => Some(Family::Socket),
        _ => None,
    }
}

/// The number of a family.
pub(super) fn family_number(family: Family) -> u32 {
    match family {
        Family::Poll => FAMILY_POLL,
        Family::Futex => FAMILY_FUTEX,
        Family::Connect => observer_ebpf::FAMILY_CONNECT,
        Family::Socket => observer_ebpf::FAMILY_SOCKET,
    }
}

fn timeout(kind: u32) -> TimeoutKind {
    match kind {
        observer_ebpf::TIMEOUT_NONE => TimeoutKind::None,
        observer_ebpf::TIMEOUT_ZERO => TimeoutKind::Zero,
        observer_ebpf::TIMEOUT_FINITE => TimeoutKind::Finite,
        observer_ebpf::TIMEOUT_INFINITE => TimeoutKind::Infinite,
        observer_ebpf::TIMEOUT_NEGATIVE => TimeoutKind::Negative,
        observer_ebpf::TIMEOUT_ABSURD => TimeoutKind::Absurd,
        observer_ebpf::TIMEOUT_INVALID => TimeoutKind::Invalid,
        _ => TimeoutKind::Unknown,
    }
}

/// An event in user-space terms; `None` for a process without an id in observer's namespace.
pub(super) fn translate(event: &Event, in_initial_namespace: bool, view: &HashMap<Pid, Pid>) -> Option<ProbeEvent> {
    let (tid, pid) = if event.view_tid != 0 && event.view_tgid != 0 {
        (event.view_tid, event.view_tgid)
    } else if in_initial_namespace {
        (event.tid, event.tgid)
    } else if event.tid == event.tgid {
        let pid = *view.get(&event.tgid)?;
        (pid, pid)
    } else {
        return None;
    };
    let kind = match event.kind {
        observer_ebpf::EVENT_BAD_TIMEOUT => EventKind::BadTimeout,
        observer_ebpf::EVENT_LONG_WAIT => EventKind::LongWait,
        observer_ebpf::EVENT_CONNECT => EventKind::Connect,
        observer_ebpf::EVENT_HABIT => EventKind::Habit,
        _ => return None,
    };
    Some(ProbeEvent {
        kind,
        family: family(event.family)?,
        tid,
        pid,
        comm: super::decode::comm(&event.comm),
        syscall: (event.syscall != u32::MAX).then_some(event.syscall),
        start_ns: event.start_ns,
        wait_ns: event.wait_ns,
        ret: event.ret,
        timeout: timeout(event.timeout_kind),
        timeout_raw: event.timeout_raw,
        timeout_ns: event.timeout_ns,
        args: event.args,
        local: address(event.address_family, event.local, event.ports & 0xffff),
        remote: address(event.address_family, event.remote, event.ports >> 16),
        history: matches!(kind, EventKind::BadTimeout | EventKind::Habit).then_some(TimeoutHistory {
            zero: event.history.zero,
            finite: event.history.finite,
            infinite: event.history.infinite,
            other: event.history.other,
            longest_timeout_ns: event.history.longest_ns,
        }),
        site: if matches!(kind, EventKind::BadTimeout | EventKind::Habit) { event.site } else { 0 },
    })
}

/// An internet address; `None` for other families and for what is not known.
fn address(family: u32, bytes: [u8; 16], port: u32) -> Option<SocketAddr> {
    let ip: IpAddr = match family as i32 {
        libc::AF_INET => Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into(),
        libc::AF_INET6 => Ipv6Addr::from(bytes).into(),
        _ => return None,
    };
    // A socket that failed has given its local port back: half an address is none.
    (port != 0).then_some(SocketAddr::new(ip, port as u16))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        Event {
            kind: observer_ebpf::EVENT_CONNECT,
            family: observer_ebpf::FAMILY_CONNECT,
            tid: 1001,
            tgid: 1000,
            view_tid: 0,
            view_tgid: 0,
            syscall: u32::MAX,
            timeout_kind: 99,
            start_ns: 5,
            wait_ns: 6,
            ret: -110,
            timeout_raw: 0,
            timeout_ns: 0,
            args: [0; 6],
            address_family: libc::AF_INET as u32,
            ports: 443 << 16,
            local: [0; 16],
            remote: [192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            comm: *b"a\xffb\0cccccccccccc",
            history: observer_ebpf::History { zero: 9, finite: 8, infinite: 7, other: 6, longest_ns: 5 },
            site: 4,
        }
    }

    #[test]
    fn a_socket_event_has_addresses_and_no_call() {
        let event = translate(&event(), true, &HashMap::new());
        let event = event.as_ref();
        assert_eq!(event.map(|event| (event.tid, event.pid)), Some((1001, 1000)));
        assert_eq!(event.and_then(|event| event.syscall), None);
        assert_eq!(event.and_then(|event| event.local), None, "half an address is none");
        assert_eq!(event.and_then(|event| event.remote), "192.0.2.1:443".parse().ok());
        assert_eq!(event.map(|event| event.comm.as_str()), Some("a\u{fffd}b"));
        assert_eq!(event.map(|event| event.timeout), Some(TimeoutKind::Unknown));
    }

    #[test]
    fn a_change_of_habit_carries_its_history() {
        let connect = translate(&event(), true, &HashMap::new());
        assert_eq!(connect.map(|event| (event.history, event.site)), Some((None, 0)));
        let habit = Event { kind: observer_ebpf::EVENT_HABIT, family: FAMILY_POLL, syscall: 7, ..event() };
        let habit = translate(&habit, true, &HashMap::new());
        let history = TimeoutHistory { zero: 9, finite: 8, infinite: 7, other: 6, longest_timeout_ns: 5 };
        assert_eq!(
            habit.map(|event| (event.kind, event.history, event.site)),
            Some((EventKind::Habit, Some(history), 4))
        );
    }

    #[test]
    fn a_process_outside_the_view_has_no_event() {
        assert!(translate(&event(), false, &HashMap::new()).is_none());
        // The process is known, the thread is not: its id would be a guess.
        assert!(translate(&event(), false, &HashMap::from([(1000, 7)])).is_none());
        let leader = Event { tid: 1000, ..event() };
        let leader = translate(&leader, false, &HashMap::from([(1000, 7)]));
        assert_eq!(leader.map(|event| (event.tid, event.pid)), Some((7, 7)));
        let inside = Event { view_tid: 8, view_tgid: 7, ..event() };
        let inside = translate(&inside, false, &HashMap::new());
        assert_eq!(inside.map(|event| (event.tid, event.pid)), Some((8, 7)));
    }
}
