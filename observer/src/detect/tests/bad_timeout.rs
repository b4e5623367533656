//! Timeouts that cannot be meant, and in which words that is said.

use super::*;
use crate::census::Clocks;
use crate::model::decode::{Call, as_time_of_day};
use crate::proc::MemoryFact;

const PPOLL: u32 = 271;
const FUTEX: u32 = 202;
/// `FUTEX_WAIT_BITSET`, private, and the same by the time of day.
const MONOTONIC: u64 = 0x89;
const REALTIME: u64 = 0x189;

/// The thread sleeps since second 90 until this deadline.
fn until(op: u64, deadline_s: u64) -> Vec<Finding> {
    let row = with_syscall(row(10, 10), FUTEX, [0x7000, op, 0, 0x9000, 0, u64::from(u32::MAX)]);
    let mut thread = thread_facts(&row, Vec::new());
    let bytes = [deadline_s, 0].into_iter().flat_map(u64::to_ne_bytes).collect();
    thread.memory.push(MemoryFact { addr: 0x9000, bytes, error: None });
    look(vec![row], facts(vec![thread]), 200)
}

#[test]
fn a_time_of_day_on_the_monotonic_clock_is_told_from_a_far_deadline() {
    const NOON: u64 = 1_790_000_000;
    let found = until(MONOTONIC, NOON + 120);
    let [finding] = found.as_slice() else { panic!("{found:#?}") };
    assert_eq!((finding.kind, finding.severity), (Kind::BadTimeout, Severity::Warning));
    assert_eq!((finding.confidence, finding.evidence["meant_ns"].as_u64()), (Confidence::Likely, Some(30 * S)));
    for words in ["30.0 s after the wait began", "CLOCK_MONOTONIC"] {
        assert!(finding.explanation.contains(words), "{words}: {}", finding.explanation);
    }
    assert_eq!(until(REALTIME, NOON + 120), [], "that is what it says");
    // Other far deadlines are how runtimes write "for ever".
    for far in [NOON + 3 * 86_400, NOON - 30 * 86_400, 365 * 86_400, 9_000_000_000] {
        let found = until(MONOTONIC, far);
        let [finding] = found.as_slice() else { panic!("{far}: {found:#?}") };
        assert_eq!((finding.kind, finding.severity), (Kind::BadTimeout, Severity::Info), "{far}");
        assert_eq!(finding.confidence, Confidence::Possible);
        assert!(finding.explanation.contains("the longest time they know"), "{}", finding.explanation);
    }
    let none = Clocks { mono_ns: 200 * S, boot_ns: 200 * S, real_ns: 300 * S };
    let call = Call::named("futex");
    let args = [0x7000, MONOTONIC, 0, 0x9000, 0, 0];
    assert_eq!(as_time_of_day(&call, &args, 130 * S as i64, none), None, "a clock that was never set");
}

#[test]
fn of_a_timespec_minus_one_is_not_said_to_be_right() {
    let explanation = |syscall, raw| {
        let mut judge = judge();
        let reading = ProbeReading { events: vec![bad_timeout(syscall, raw)], ..ProbeReading::default() };
        judge.advance(census(100, vec![row(10, 10)]), reading);
        let open = judge.ledger.open();
        assert_eq!(open.len(), 1);
        open[0].finding.explanation.clone()
    };
    let ppoll = explanation(PPOLL, -1);
    assert!(ppoll.starts_with("The timeout passed is -1 s, seen at one call; only a null pointer means"), "{ppoll}");
    let poll = explanation(7, -5);
    assert!(
        poll.starts_with("The timeout passed is -5 ms, seen at one call; whoever means \"for ever\" writes -1"),
        "{poll}"
    );
}
