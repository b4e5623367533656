//! Memory of other processes.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

use super::victim::{Victim, wait_for};
use crate::census::ProcessId;
use crate::proc::memory::read;
use crate::proc::pieces::{Pieces, read_pieces};
use crate::proc::stat::Stat;
use crate::proc::{MemoryFact, MemoryRange};
use std::time::Duration;

fn range(addr: u64, len: u32) -> MemoryRange {
    MemoryRange { addr, len }
}

fn check(fact: &MemoryFact, bytes: &[u8], error: Option<&str>) {
    assert_eq!(fact.error.as_deref(), error, "at {:#x}", fact.addr);
    assert_eq!(fact.bytes, bytes, "at {:#x}", fact.addr);
}

#[test]
fn a_bad_range_costs_only_itself() {
    let victim = Victim::start(&["memory"]);
    let at = victim.value;
    let ranges = [
        range(at, 4),
        range(at + 4096, 8),
        range(at + 8192, 3),
        range(0, 1),
        // Runs into the hole.
        range(at + 4090, 16),
        range(at, 0),
        range(u64::MAX, 8),
        range(at + 8192, 2),
    ];
    let facts = read(victim.id, &[], &ranges);
    assert_eq!(facts.len(), ranges.len());
    check(&facts[0], b"aaaa", None);
    check(&facts[1], b"", Some("EFAULT"));
    check(&facts[2], b"ccc", None);
    check(&facts[3], b"", Some("EFAULT"));
    check(&facts[4], b"aaaaaa", Some("EFAULT"));
    check(&facts[5], b"", None);
    check(&facts[6], b"", Some("EFAULT"));
    check(&facts[7], b"cc", None);
}

#[test]
fn many_ranges_and_long_ones() {
    let victim = Victim::start(&["memory"]);
    let mut ranges = vec![range(victim.value, 8); 2500];
    ranges[1700].addr += 4096;
    let facts = read(victim.id, &[], &ranges);
    assert_eq!(facts.len(), 2500);
    assert_eq!(facts.iter().filter(|f| f.bytes == b"aaaaaaaa").count(), 2499);
    check(&facts[1700], b"", Some("EFAULT"));

    let own = vec![7_u8; 100_000];
    let me = crate::proc::exists(std::process::id()).unwrap().id;
    let facts = read(me, &[], &[range(own.as_ptr() as u64, 100_000); 100]);
    assert!(facts.iter().all(|f| f.bytes.len() == 65536 && f.bytes[..] == own[..65536]));
    assert_eq!(facts[0].error.as_deref(), Some("cut at 65536 bytes"));
}

#[test]
fn a_process_that_is_gone_or_another() {
    let victim = Victim::start(&["memory"]);
    let at = victim.value;
    let other = ProcessId { start_ns: victim.id.start_ns + 20_000_000, ..victim.id };
    check(&read(other, &[], &[range(at, 4)])[0], b"", Some("ESRCH (pid reused)"));
    let gone = victim.kill();
    let facts = read(gone, &[], &[range(at, 4), range(at, 5)]);
    assert_eq!(facts.len(), 2);
    check(&facts[1], b"", Some("ESRCH"));
    check(&read(ProcessId { pid: u32::MAX, start_ns: 0 }, &[], &[range(0, 1)])[0], b"", Some("ESRCH"));
}

#[test]
fn a_main_thread_that_has_ended_has_threads_with_memory() {
    let victim = Victim::start(&["leaderless"]);
    wait_for("the main thread ends", Duration::from_secs(5), || {
        Stat::read(victim.id.pid).ok().filter(|s| s.state == 'Z')
    });
    let tids: Vec<u32> = std::fs::read_dir(format!("/proc/{}/task", victim.id.pid))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap().parse().unwrap())
        .collect();
    assert_eq!(tids.len(), 2);
    let facts = read(victim.id, &tids, &[range(victim.value, 10)]);
    check(&facts[0], b"still here", None);
    // Nor is it a zombie to whom there is nothing to attach.
    assert_eq!(crate::proc::exists(victim.id.pid).unwrap().id, victim.id);
}

#[test]
fn neighbours_read_together_are_each_what_they_are_alone() {
    let victim = Victim::start(&["memory"]);
    let at = victim.value;
    let ranges = [
        // Out of order, overlapping, near each other, into the hole and behind it.
        range(at + 8192, 3),
        range(at + 4090, 16),
        range(at + 4080, 8),
        range(at + 4084, 8),
        range(at, 4),
        range(at + 4096, 8),
        range(at, 0),
        range(u64::MAX - 3, 8),
        range(0, 1),
        range(at, 4096),
    ];
    let mut pieces = Pieces::default();
    for _ in 0..2 {
        read_pieces(victim.id.pid, &ranges, &mut pieces).unwrap();
        let wanted: [&[u8]; 9] = [b"ccc", b"aaaaaa", &[b'a'; 8], &[b'a'; 8], b"aaaa", b"", b"", b"", b""];
        for (index, wanted) in wanted.into_iter().enumerate() {
            assert_eq!(pieces.get(index), wanted, "piece {index}");
        }
        assert_eq!(pieces.get(9), [b'a'; 4096]);
    }

    let own: Vec<u8> = (0..1_u32 << 20).map(|n| (n % 251) as u8).collect();
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..20 {
        let some: Vec<(usize, u32)> = (0..3000).map(|_| (random.usize(0..1 << 19), random.u32(0..3000))).collect();
        let ranges: Vec<MemoryRange> =
            some.iter().map(|(begin, len)| range(own.as_ptr() as u64 + *begin as u64, *len)).collect();
        read_pieces(std::process::id(), &ranges, &mut pieces).unwrap();
        for (index, (begin, len)) in some.into_iter().enumerate() {
            assert!(pieces.get(index) == &own[begin..begin + len as usize], "piece {index}");
        }
    }
}
