//! Damaged recordings: whatever a file holds, replay says something and never panics.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up must fail")]

use super::*;
use crate::census::{ProbeReading, row::state};
use crate::model::testkit::*;
use crate::model::{Filter, Observation};
use crate::proc::{BlockedRead, ConnectingSocket, FdFact};
use crate::recording::{Header, SCHEMA};
use crate::report::{json, processes, text};
use serde_json::Value;
use std::collections::BTreeSet;

/// A deadlock with a queue, an abandoned lock, a stop, a D state, a connect and a restarted call, seen three times.
fn recording() -> String {
    let mut rows: Vec<_> = (10..14).map(|tid| in_mutex(10, tid, 0x1000 * u64::from(tid))).collect();
    let owners = [11, 10, 10, 4242];
    let mut threads: Vec<_> =
        rows.iter().zip(owners).map(|(row, owner)| thread_facts(row, mutex_bytes(2, 0, owner, 1, 0))).collect();
    rows.push(with_syscall(row(10, 14), 219, [0x7ff0_0000, 1, 5000, 0, 0, 0]));
    rows.push(with_syscall(row(10, 15), 42, [3, 0x2000, 16, 0, 0, 0]));
    rows.push(with_syscall(row(10, 16), 7, [0x3000, 1, (-5_i32) as u32 as u64, 0, 0, 0]));
    rows.push(with_syscall(row(20, 20), 61, [u64::MAX, 0, 0, 0, 0, 0]));
    rows.push(row(30, 30));
    (rows[7].ppid, rows[8].ppid, rows[8].state) = (1, 20, state::STOPPED);
    let mut stuck = with_syscall(row(10, 17), 0, [4, 0, 1, 0, 0, 0]);
    stuck.state = state::UNINTERRUPTIBLE;
    rows.push(stuck);
    for row in &rows[4..] {
        let mut facts = thread_facts(row, [2_u16.to_ne_bytes().to_vec(), vec![0, 80, 127, 0, 0, 1]].concat());
        facts.memory[0].addr = 0x2000;
        facts.kernel_stack = vec!["folio_wait_bit_common+0x13d".to_owned()];
        facts.fd = Some(FdFact { fd: 4, target: "/mnt/x".to_owned(), ..FdFact::default() });
        threads.push(facts);
    }
    let mut learnt = facts(threads);
    learnt.blocked_reads = vec![BlockedRead { process: process(10), what: "memory".to_owned(), since_ns: 80 * S }];
    let (local, remote) = ("127.0.0.1:9".parse().unwrap(), "10.0.0.1:80".parse().unwrap());
    learnt.connecting.push(ConnectingSocket {
        process: process(10),
        fd: 3,
        inode: 9,
        local,
        remote,
        since_ns: Some(80 * S),
        retransmits: 2,
        taken_ns: 0,
    });
    let header = Header {
        schema: SCHEMA.to_owned(),
        host_name: "h".to_owned(),
        kernel: "6".to_owned(),
        boot_id: String::new(),
        processes: Some(BTreeSet::from([10, 20, 30])),
        filter: Filter::default(),
        threshold_ns: 5 * S,
        census: "iter_task".to_owned(),
        probes: Value::Null,
    };
    let mut lines = vec![serde_json::to_string(&header).unwrap()];
    for at in 100..103 {
        let mut observation =
            Observation { census: census(at, rows.clone()), probes: ProbeReading::default(), facts: learnt.clone() };
        observation.probes.account.insert("seen".to_owned(), 7);
        lines.push(serde_json::to_string(&observation).unwrap());
    }
    lines.join("\n") + "\n"
}

/// Reads, judges and prints; the kinds found.
fn replay(bytes: &[u8]) -> Vec<String> {
    let Ok(mut recording) = Recording::new("fuzz".into(), bytes) else { return Vec::new() };
    let mut judge = Judge::new(recording.header.scope());
    let mut account = Account::default();
    while let Ok(Some(observation)) = recording.next_observation() {
        let turn = judge.advance(observation.census, observation.probes);
        for (change, life) in &turn.changes {
            text::change(&judge.host, *change, life, text::Paint { colour: false });
        }
        judge.learn(observation.facts);
        judge.host.wants(&judge.scope);
        account.note_probes(judge.host.probes().account(), judge.host.probes().forgotten());
    }
    let setting = Setting {
        host_name: String::new(),
        kernel: String::new(),
        boot_id: String::new(),
        census: String::new(),
        probes: recording.header.probes.clone(),
        descriptors: None,
    };
    let findings = judge.ledger.open();
    let pids = crate::cli::look::shown(&judge, &findings);
    let views = processes(&judge, pids.iter().copied());
    text::report(
        &setting,
        (&judge.host, &judge.graph),
        &views,
        &findings,
        &account,
        text::Stacks::Listed,
        text::Paint { colour: true },
    );
    json::report(&setting, (&judge.host, &judge.graph), &views, &findings, &account);
    findings.iter().map(|life| life.finding.kind.name().to_owned()).collect()
}

/// xorshift64*
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides
    }
}

#[test]
fn the_whole_recording_is_understood() {
    let found = replay(recording().as_bytes());
    for kind in
        ["deadlock", "abandoned_lock", "stuck_connect", "uninterruptible", "stopped", "unreadable", "bad_timeout"]
    {
        assert!(found.iter().any(|name| name == kind), "{kind} in {found:?}");
    }
}

#[test]
fn flipped_bits_never_panic() {
    let whole = recording().into_bytes();
    for seed in 1..600 {
        let mut dice = Dice(seed);
        let mut bytes = whole.clone();
        for _ in 0..=dice.roll(8) {
            let at = dice.roll(bytes.len());
            bytes[at] ^= 1 << dice.roll(8);
        }
        if dice.roll(4) == 0 {
            bytes.truncate(dice.roll(bytes.len()));
        }
        replay(&bytes);
    }
}

#[test]
fn numbers_of_any_size_never_panic() {
    const EXTREMES: [&str; 10] = [
        "0",
        "1",
        "2",
        "10",
        "11",
        "2147483647",
        "4294967295",
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551615",
    ];
    let whole = recording();
    let numbers: Vec<(usize, usize)> = whole
        .match_indices(|c: char| c.is_ascii_digit())
        .map(|(at, _)| at)
        .filter(|at| matches!(whole.as_bytes()[at - 1], b':' | b'[' | b','))
        .map(|at| (at, at + whole[at..].find(|c: char| !c.is_ascii_digit()).unwrap_or(0)))
        .collect();
    assert!(numbers.len() > 1000);
    for seed in 1..600 {
        let mut dice = Dice(seed);
        let mut chosen: BTreeSet<(usize, usize)> =
            (0..=dice.roll(6)).map(|_| numbers[dice.roll(numbers.len())]).collect();
        let mut text = whole.clone();
        while let Some((from, to)) = chosen.pop_last() {
            text.replace_range(from..to, EXTREMES[dice.roll(EXTREMES.len())]);
        }
        replay(text.as_bytes());
    }
}
