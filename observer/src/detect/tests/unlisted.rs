//! Processes whose sockets could not be listed this time: nothing of what they owe is over, and nothing is new.

use super::debts::*;
use super::*;
use crate::proc::ProcessStreams;

/// These were listed, and process 10 could not be.
fn without_10(streams: Vec<ProcessStreams>) -> Facts {
    Facts { streams, unlisted: vec![process(10)], ..Facts::default() }
}

#[test]
fn what_could_not_be_listed_is_not_over() {
    let rows = [server(), vec![row(20, 20)]].concat();
    let hung = |at: u64| vec![listed(10, at, nested(12, 5), Vec::new())];
    let others = |at: u64| vec![listed(20, at, Vec::new(), Vec::new())];
    let missed = |judge: &mut Judge, at: u64| {
        judge.advance(census(at, rows.clone()), ProbeReading::default());
        judge.learn(without_10(others(at)));
        judge.advance(census(at + 1, rows.clone()), ProbeReading::default());
        judge.ledger.open().len()
    };
    let mut judge = judge();
    assert_eq!(watch(&mut judge, &rows, &[91, 96, 97], hung).len(), 1);
    for at in [99, 102, 105] {
        assert_eq!(missed(&mut judge, at), 1, "at second {at}");
        assert_eq!(judge.host.services().of(process(10)).unwrap().taken_ns, 97 * S, "it grows no older");
    }
    assert_eq!(watch(&mut judge, &rows, &[107], hung).len(), 1);
    // Not for ever.
    assert_eq!(missed(&mut judge, 109), 1);
    assert_eq!(missed(&mut judge, 170), 0);
    assert_eq!(missed(&mut judge, 400), 0);
    assert_eq!(missed(&mut judge, 402), 0);
    assert!(judge.host.services().of(process(10)).is_none());
    // What was over before stays so.
    assert_eq!(watch(&mut judge, &rows, &[404, 406], hung).len(), 1);
    assert!(watch(&mut judge, &rows, &[408], others).is_empty());
    assert_eq!(missed(&mut judge, 410), 0);
    assert!(judge.host.services().of(process(10)).is_none());
}

#[test]
fn a_sharer_that_could_not_be_listed_knows_since_when() {
    let mut rows = server();
    rows.push(with_syscall(row(20, 20), 232, [3, 0x1000, 16, u64::MAX, 0, 0]));
    let desk = |pid, at, remote: &str| listed(pid, at, Vec::new(), vec![listener(1, 8, &[remote])]);
    let open_with = |remote: &str| {
        let scope = Scope { processes: Some(BTreeSet::from([10, 20])), threshold_ns: 5 * S, ..Scope::default() };
        let mut judge = Judge::new(scope);
        let first = |at| vec![desk(10, at, "10.0.0.9:1")];
        watch(&mut judge, &rows, &[91], first);
        let both = |at| [10, 20].map(|pid| desk(pid, at, "10.0.0.9:1")).to_vec();
        assert_eq!(watch(&mut judge, &rows, &[96], both).len(), 1);
        judge.advance(census(98, rows.clone()), ProbeReading::default());
        judge.learn(without_10(vec![desk(20, 98, remote)]));
        judge.advance(census(99, rows.clone()), ProbeReading::default());
        judge.ledger.open().len()
    };
    assert_eq!(open_with("10.0.0.9:1"), 1);
    assert_eq!(open_with("10.0.0.9:2"), 0, "the other one was accepted");
}
