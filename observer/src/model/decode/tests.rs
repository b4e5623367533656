//! Decoding from rows and bytes, without any process.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up must fail")]

use super::*;
use crate::census::{Registers, TimeoutKind};
use crate::model::testkit::{mutex_bytes, row, with_syscall};
use crate::proc::MemoryFact;

const S: u64 = 1_000_000_000;

fn known(memory: &[MemoryFact]) -> Known<'_> {
    Known {
        memory: Memory(memory),
        fd: None,
        libc: Libc::Glibc,
        clocks: Clocks { mono_ns: 100 * S, boot_ns: 100 * S, real_ns: 1_790_000_000 * S },
        since_ns: 90 * S,
    }
}

fn piece(addr: u64, bytes: Vec<u8>) -> MemoryFact {
    MemoryFact { addr, bytes, error: None }
}

fn timespec(addr: u64, s: i64, ns: i64) -> MemoryFact {
    piece(addr, [s.to_ne_bytes(), ns.to_ne_bytes()].concat())
}

fn timeout_of(number: u32, args: [u64; 6], memory: &[MemoryFact]) -> Timeout {
    decode(&with_syscall(row(1, 1), number, args), &known(memory)).unwrap().timeout
}

#[test]
fn poll_timeouts_are_ints() {
    use TimeoutKind as T;
    let year_ms = 365 * 24 * 3600 * 1000_u64;
    for (ms, kind) in [
        (0, T::Zero),
        (50, T::Finite),
        (u64::from(u32::MAX), T::Infinite),
        // The upper half of the register is noise.
        (0xdead_beef_ffff_ffff, T::Infinite),
        (-5_i32 as u32 as u64, T::Negative),
        (30 * 3600 * 1000, T::Absurd),
        // How event loops write "for ever".
        (i32::MAX as u64, T::Infinite),
        (i32::MAX as u64 - 1, T::Absurd),
        (i32::MIN as u32 as u64, T::Negative),
        (year_ms, timeout_of(7, [0, 0, year_ms as u32 as u64, 0, 0, 0], &[]).kind),
    ] {
        assert_eq!(timeout_of(7, [0, 0, ms, 0, 0, 0], &[]).kind, kind, "poll {ms:#x}");
        assert_eq!(timeout_of(232, [3, 0, 1, ms, 0, 0], &[]).kind, kind, "epoll_wait {ms:#x}");
    }
    assert_eq!(timeout_of(7, [0, 0, 15_000, 0, 0, 0], &[]).remaining_ns, Some(5 * S as i64));
}

#[test]
fn timespecs_are_read_from_the_target() {
    use TimeoutKind as T;
    // ppoll(fds, n, timespec*, …)
    let at = |memory: &[MemoryFact]| timeout_of(271, [0, 0, 0x7000, 0, 0, 0], memory);
    assert_eq!(timeout_of(271, [0; 6], &[]).kind, T::Infinite);
    assert_eq!(at(&[]).kind, T::Unknown, "unreadable");
    assert_eq!(at(&[timespec(0x7000, 0, 0)]).kind, T::Zero);
    assert_eq!(at(&[timespec(0x7000, 12, 0)]).remaining_ns, Some(2 * S as i64));
    assert_eq!(at(&[timespec(0x7000, -3, 0)]).kind, T::Negative);
    assert_eq!(at(&[timespec(0x7000, 1, 1_000_000_000)]).kind, T::Invalid);
    assert_eq!(at(&[timespec(0x7000, i64::MAX, 999_999_999)]).kind, T::Absurd, "no overflow");
    // A piece cut short by the end of a mapping is not read beyond its end.
    assert_eq!(at(&[piece(0x7000, vec![1; 12])]).kind, T::Unknown);
}

#[test]
fn futex_deadlines_by_clock() {
    use TimeoutKind as T;
    let at = |op: u64, s: i64| timeout_of(202, [0x1000, op, 0, 0x7000, 0, u64::MAX], &[timespec(0x7000, s, 0)]);
    // FUTEX_WAIT: relative.
    assert_eq!(at(0x80, 12).requested_ns, Some(12 * S as i64));
    // FUTEX_WAIT_BITSET on CLOCK_MONOTONIC: now is 100, the wait began at 90.
    let timeout = at(0x89, 103);
    assert_eq!((timeout.remaining_ns, timeout.requested_ns), (Some(3 * S as i64), Some(13 * S as i64)));
    assert_eq!(at(0x89, 80).kind, T::Zero, "in the past");
    // … on CLOCK_REALTIME.
    assert_eq!(at(0x189, 1_790_000_003).remaining_ns, Some(3 * S as i64));
    assert_eq!(at(0x189, 1_790_000_000 + 3_200_000_000).kind, T::Absurd, "a century ahead");
    // FUTEX_LOCK_PI is on CLOCK_REALTIME without saying so.
    assert_eq!(at(0x86, 1_790_000_003).remaining_ns, Some(3 * S as i64));
}

fn futex(op: u64, value: u32, timeout: u64, memory: &[MemoryFact], libc: Libc) -> Wait {
    let row = with_syscall(row(7, 8), 202, [0x1000, op, u64::from(value), timeout, 0, 0]);
    decode(&row, &Known { libc, ..known(memory) }).unwrap()
}

#[test]
fn glibc_mutex_names_its_owner() {
    let memory = [piece(0x1000, mutex_bytes(2, 0, 4242, 1, 0))];
    let wait = futex(0x80, 2, 0, &memory, Libc::Glibc);
    assert_eq!((wait.class, wait.owner.as_ref().unwrap().own_tid), (Class::Lock, 4242));
    assert!(wait.owner.unwrap().proven);
    // The same bytes in a static binary are likely, in musl nothing.
    assert!(!futex(0x80, 2, 0, &memory, Libc::Unknown).owner.unwrap().proven);
    assert_eq!(futex(0x80, 2, 0, &memory, Libc::Musl).class, Class::Condition);
    // Recursive needs its count.
    assert_eq!(futex(0x80, 2, 0, &[piece(0x1000, mutex_bytes(2, 1, 4242, 1, 1))], Libc::Glibc).class, Class::Lock);
    assert_eq!(futex(0x80, 2, 0, &[piece(0x1000, mutex_bytes(2, 0, 4242, 1, 1))], Libc::Glibc).class, Class::Condition);
}

/// A mutex of musl whose word is at 0x1000: type, word, waiters, and what is behind them.
fn musl_mutex(kind: u32, word: u32, waiters: u32) -> Vec<MemoryFact> {
    let bytes = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    vec![piece(0x1000, bytes(&[word, waiters, 0, 0, 0, 0, 0, 0, 0, 0])), piece(0xff0, bytes(&[7, 7, 7, kind]))]
}

#[test]
fn musl_mutexes_but_the_normal_one_name_their_owner() {
    let waits = 0x8000_0000_u32;
    let owner = |wait: &Wait| wait.owner.as_ref().map(|owner| (owner.own_tid, owner.proven));
    for kind in [1, 2, 4, 5] {
        let wait = futex(0x80, waits | 77, 0, &musl_mutex(kind, waits | 77, 1), Libc::Musl);
        assert_eq!((wait.class, owner(&wait)), (Class::Lock, Some((77, true))), "{kind}");
        assert_eq!(wait.resource.unwrap().address, Some(0xffc), "the lock begins with its type");
    }
    // Between processes the futex is shared.
    assert_eq!(owner(&futex(0, waits | 77, 0, &musl_mutex(129, waits | 77, 1), Libc::Musl)), Some((77, true)));
    let normal = futex(0x80, waits | 16, 0, &musl_mutex(0, waits | 16, 2), Libc::Musl);
    assert_eq!((normal.class, normal.by_frames, owner(&normal)), (Class::Lock, true, None));
    for (what, libc, memory) in [
        ("another library", Libc::Glibc, musl_mutex(1, waits | 77, 1)),
        ("released meanwhile", Libc::Musl, musl_mutex(1, 0, 1)),
        ("its owner died", Libc::Musl, musl_mutex(4, waits | 0x4000_0000 | 77, 1)),
        ("nobody waits", Libc::Musl, musl_mutex(1, waits | 77, 0)),
        ("no type of a mutex", Libc::Musl, musl_mutex(0x100, waits | 77, 1)),
        ("shared type on a private futex", Libc::Musl, musl_mutex(129, waits | 77, 1)),
        ("cut short", Libc::Musl, musl_mutex(1, waits | 77, 1)[..1].to_vec()),
    ] {
        let wait = futex(0x80, waits | 77, 0, &memory, libc);
        assert_eq!((wait.class, owner(&wait)), (Class::Condition, None), "{what}");
    }
}

#[test]
fn musl_joins_by_the_record_of_the_thread() {
    let record = |start: u64| {
        let mut bytes = [start.to_ne_bytes().to_vec(), vec![0; 40]].concat();
        bytes.extend(78_u32.to_ne_bytes());
        bytes.extend([0; 4]);
        vec![piece(0x1000, 2_u32.to_ne_bytes().to_vec()), piece(0x1000 - 56, bytes)]
    };
    let wait = futex(0x80, 2, 0, &record(0x1000 - 56), Libc::Musl);
    assert_eq!((wait.class, wait.owner.unwrap().own_tid), (Class::Condition, 78));
    // A condition variable of musl waits for 2 on the waiter's own stack.
    assert_eq!(futex(0x80, 2, 0, &record(0x7000), Libc::Musl).owner, None);
}

#[test]
fn what_lies_beside_a_word_of_ones_own() {
    let beside = |key: u64, next: u64| {
        let words: Vec<u8> = [0, 0, key, next, 0, 0].into_iter().flat_map(u64::to_ne_bytes).collect();
        vec![piece(0x1000 - 48, words)]
    };
    let parked = |op, value, memory: &[MemoryFact]| futex(op, value, 0, memory, Libc::Glibc).parked;
    assert_eq!(parked(0x80, 1, &beside(0x5555_0001, 0)), Some(0x5555_0001), "a mutex is a byte, anywhere");
    assert_eq!(parked(0x80, 1, &beside(0x5555_0000, 0x7000)), Some(0x5555_0000));
    assert_eq!(parked(0x80, 1, &beside(0x5555_0000, 0x7001)), None, "no pointer to the next one");
    assert_eq!(parked(0x80, 1, &beside(9, 0)), None);
    assert_eq!(parked(0x80, 1, &beside(u64::MAX, 0)), None);
    assert_eq!(parked(0x80, 2, &beside(0x5555_0000, 0)), None);
    assert_eq!(parked(0x89, 1, &beside(0x5555_0000, 0)), None);
}

#[test]
fn look_alikes_are_not_locks() {
    let mutex = |word, count, owner, users, kind| [piece(0x1000, mutex_bytes(word, count, owner, users, kind))];
    for (what, memory) in [
        ("released meanwhile", mutex(0, 0, 0, 0, 0)),
        ("no owner yet", mutex(2, 0, 0, 1, 0)),
        ("no users", mutex(2, 0, 4242, 0, 0)),
        ("unknown kind", mutex(2, 0, 4242, 1, 0x40)),
        ("shared kind on a private futex", mutex(2, 0, 4242, 1, 0x80)),
        ("data where a mutex has its list", {
            let mut bytes = mutex_bytes(2, 0, 4242, 1, 0);
            bytes[24] = 1;
            [piece(0x1000, bytes)]
        }),
        ("cut short", [piece(0x1000, mutex_bytes(2, 0, 4242, 1, 0)[..20].to_vec())]),
    ] {
        let wait = futex(0x80, 2, 0, &memory, Libc::Glibc);
        assert_eq!((wait.class, wait.owner), (Class::Condition, None), "{what}");
    }
    // Rust's mutex waits with a bit set and without a timeout; what follows is the user's data.
    let wait = futex(0x89, 2, 0, &mutex(2, 0, 4242, 1, 0), Libc::Glibc);
    assert_eq!(wait.class, Class::Condition);
    // glibc's timed lock has a timeout.
    let mut memory = mutex(2, 0, 4242, 1, 0).to_vec();
    memory.push(timespec(0x7000, 1_790_000_003, 0));
    assert_eq!(futex(0x189, 2, 0x7000, &memory, Libc::Glibc).class, Class::Lock);
}

#[test]
fn pi_robust_join_rwlock() {
    let word = |w: u32| [piece(0x1000, [w.to_ne_bytes().to_vec(), vec![0; 36]].concat())];
    let owner = |wait: &Wait| wait.owner.as_ref().map(|o| o.own_tid);
    let pi = futex(0x86, 0, 0, &word(0x8000_0000 | 77), Libc::Musl);
    assert_eq!((pi.class, owner(&pi)), (Class::Lock, Some(77)));

    // As initialised by glibc 2.36: robust, shared bit, elision off.
    for kind in [0x10, 0x90, 0x290] {
        let robust = [piece(0x1000, mutex_bytes(0x8000_0000 | 78, 1, 78, 1, kind))];
        let robust = futex(0, 0x8000_0000 | 78, 0, &robust, Libc::Glibc);
        assert_eq!((robust.class, owner(&robust)), (Class::Lock, Some(78)), "{kind:#x}");
    }

    let join = futex(0x109, 79, 0, &word(79), Libc::Glibc);
    assert_eq!((join.class, owner(&join)), (Class::Condition, Some(79)), "a join is rest, with an edge");
    assert_eq!(owner(&futex(0x109, 79, 0, &word(0), Libc::Glibc)), None, "it has exited");

    // pthread_rwlock_t at 0xff8: readers, writers, wrphase_futex (the word), writers_futex, …, cur_writer.
    let mut lock = [0_u8; 56];
    lock[0] = 2 | 8;
    lock[8] = 3;
    lock[24] = 80;
    let memory = [piece(0x1000, lock[8..].to_vec()), piece(0xff0, [vec![0; 8], lock[..8].to_vec()].concat())];
    let rwlock = futex(0x189, 3, 0, &memory, Libc::Glibc);
    assert_eq!((rwlock.class, owner(&rwlock)), (Class::Lock, Some(80)));
    assert_eq!(rwlock.resource.unwrap().address, Some(0xff8));
}

#[test]
fn restart_syscall_is_what_it_restarts() {
    let mut stopped = with_syscall(row(1, 1), 219, [0x7ff0_0000, 1, 5000, 0, 0, 0]);
    stopped.registers = Some(Registers { ip: 0x40_0020, sp: 0, bp: None });
    // … mov $7,%eax; syscall
    let mut code = vec![0x90; 24];
    code[17..].copy_from_slice(&[0xb8, 7, 0, 0, 0, 0x0f, 0x05]);
    let by_code = decode(&stopped, &known(&[piece(0x40_0008, code)])).unwrap();
    assert_eq!((by_code.syscall, by_code.timeout.requested_ns), ("poll", Some(5 * S as i64)));
    let by_arguments = decode(&stopped, &known(&[])).unwrap();
    assert_eq!(by_arguments.syscall, "poll");
    let sleeping = with_syscall(row(1, 1), 219, [1, 0, 0x7ff0_0000, 0, 0, 0]);
    assert_eq!(decode(&sleeping, &known(&[])).unwrap().syscall, "clock_nanosleep");
}

#[test]
fn compat_is_said_and_not_guessed() {
    let mut old = with_syscall(row(1, 1), 240, [0x1000, 0x80, 2, 0, 0, 0]);
    old.compat = true;
    let wait = decode(&old, &known(&[piece(0x1000, mutex_bytes(2, 0, 4242, 1, 0))])).unwrap();
    assert_eq!((wait.syscall, wait.class, wait.owner), ("futex", Class::Condition, None));
    let mut poll = with_syscall(row(1, 1), 168, [0, 0, -5_i32 as u32 as u64, 0, 0, 0]);
    poll.compat = true;
    assert_eq!(decode(&poll, &known(&[])).unwrap().timeout.kind, TimeoutKind::Negative);
}

#[test]
fn limits_of_32_bit_calls_are_as_wide_as_each_call_has_them() {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    // 3600.5 s, as two words; and as two of twice the width.
    let (short, long) = (words(&[3600, 500_000_000]), words(&[3600, 0, 500_000_000, 0]));
    let micros = words(&[3600, 500_000]);
    let high = 7 << 32;
    for (number, name, at, bytes) in [
        (309, "ppoll", 2, &short),
        (414, "ppoll_time64", 2, &long),
        (142, "_newselect", 4, &micros),
        (308, "pselect6", 4, &short),
        (413, "pselect6_time64", 4, &long),
        (441, "epoll_pwait2", 3, &long),
        (240, "futex", 3, &short),
        (422, "futex_time64", 3, &long),
    ] {
        // The upper halves of registers are not the call's.
        let mut args = [high; 6];
        args[at] |= 0x1000;
        let mut row = with_syscall(row(1, 1), number, args);
        row.compat = true;
        let bytes = [&bytes[..], &[0xff; 16]].concat();
        let wait = decode(&row, &known(&[piece(0x1000, bytes)])).unwrap();
        assert_eq!((wait.syscall, wait.timeout.requested_ns), (name, Some(3600 * S as i64 + 500_000_000)), "{number}");
        assert!(needs(&row, Memory::default()).memory.iter().any(|range| range.addr == 0x1000), "{name}");
    }
    // All of its arguments are in memory: what the registers hold is no limit.
    let mut old = with_syscall(row(1, 1), 82, [0x1000, 0, 0, 0, 0x1000, 0]);
    old.compat = true;
    let wait = decode(&old, &known(&[piece(0x1000, words(&[u32::MAX; 8]))])).unwrap();
    assert_eq!((wait.syscall, wait.timeout.kind), ("select", TimeoutKind::Unknown));
}

#[test]
fn what_is_behind_socketcall_is_named() {
    let mut row = with_syscall(row(1, 1), 102, [12, 0x1000, 0, 0, 0, 0]);
    row.compat = true;
    let unread = decode(&row, &known(&[])).unwrap();
    assert_eq!((unread.syscall, unread.class), ("socketcall", Class::Other));
    assert_eq!(needs(&row, Memory::default()).memory[0].addr, 0x1000);
    let bytes: Vec<u8> = [5_u32, 0x2000, 64, 0, 0, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let wait = decode(&row, &known(&[piece(0x1000, bytes)])).unwrap();
    assert_eq!((wait.syscall, wait.class, wait.args[..3].to_vec()), ("recvfrom", Class::Read, vec![5, 0x2000, 64]));
    assert_eq!(wait.resource.unwrap().fd, Some(5));
}

#[test]
fn a_connect_behind_socketcall_asks_for_its_address_once_its_arguments_are_known() {
    let mut row = with_syscall(row(1, 1), 102, [3, 0x1000, 0, 0, 0, 0]);
    row.compat = true;
    let words = |words: [u32; 6]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    let arguments = piece(0x1000, words([5, 0x2000, 16, 0, 0, 0]));
    let first = needs(&row, Memory::default());
    assert_eq!((first.memory.len(), first.fd), (1, None));
    let second = needs(&row, Memory(std::slice::from_ref(&arguments)));
    // The arguments, too: they may be others by then.
    assert_eq!(second.memory[0], first.memory[0]);
    assert_eq!((second.memory[1], second.fd), (MemoryRange { addr: 0x2000, len: 16 }, Some(5)));
    let address = [&2_u16.to_ne_bytes()[..], &80_u16.to_be_bytes(), &[10, 0, 0, 1], &[0; 8]].concat();
    let wait = decode(&row, &known(&[arguments, piece(0x2000, address)])).unwrap();
    assert_eq!((wait.syscall, wait.class), ("connect", Class::Connect));
    assert_eq!(wait.resource.unwrap().remote.as_deref(), Some("10.0.0.1:80"));
    assert_eq!(behind_socketcall(&[3, 0, 0, 0, 0, 0]).map(|call| call.class), Some(Class::Connect));
    for no_wait in [1, 2, 4, 6, 14, 0, 21, u64::from(u32::MAX)] {
        assert_eq!(behind_socketcall(&[no_wait, 0, 0, 0, 0, 0]), None, "{no_wait}");
    }
}

#[test]
fn any_number_and_any_bytes_are_survived() {
    let noise: Vec<u8> = (0..=255_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for number in (0..600).chain([u32::MAX]) {
        for addr in [0, 0x1000, u64::MAX - 4, u64::MAX] {
            let mut row = with_syscall(row(1, 1), number, [addr, 0x80, 2, addr, addr, addr]);
            for compat in [false, true] {
                row.compat = compat;
                row.registers = Some(Registers { ip: addr, sp: addr, bp: Some(addr) });
                let read = [piece(addr, noise.clone())];
                needs(&row, Memory(&read));
                decode(&row, &known(&read)).unwrap();
            }
        }
    }
}

#[test]
fn a_unix_socket_is_named_by_the_address_asked_for() {
    for (name, expected) in [(&b"/run/db.sock\0\0"[..], "/run/db.sock"), (b"\0db\0", "@db")] {
        let address = [&1_u16.to_ne_bytes()[..], name].concat();
        let row = with_syscall(row(1, 1), 42, [3, 0x1000, address.len() as u64, 0, 0, 0]);
        let resource = decode(&row, &known(&[piece(0x1000, address)])).unwrap().resource.unwrap();
        assert_eq!((resource.kind, resource.remote.as_deref()), (ResourceKind::Unix, Some(expected)));
    }
}
