//! Every recording judged again: what must be found in it, and what must not. No root, no clock.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up must fail")]

use observer::detect::{Judge, Severity};
use observer::model::Confidence::{self, Certain, Likely};
use observer::recording::{Recording, RecordingError};
use std::collections::BTreeSet;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// File, and per finding: kind, confidence, number of threads, number of links in the chain.
type Expected = (&'static str, &'static [(&'static str, Confidence, usize, usize)]);

const EXPECTED: &[Expected] = &[
    ("abandoned-by-exit", &[("abandoned_lock", Certain, 2, 2)]),
    ("abandoned-by-fork", &[("abandoned_lock", Certain, 1, 1)]),
    ("connect-blocking", &[("stuck_connect", Certain, 1, 1)]),
    ("connect-nonblocking", &[("stuck_connect", Certain, 0, 0)]),
    ("deadlock-2", &[("deadlock", Certain, 2, 2)]),
    ("deadlock-5", &[("deadlock", Certain, 5, 5)]),
    ("deadlock-join", &[("deadlock", Certain, 2, 2)]),
    // The kernel refuses to close a circle of PI locks: the last thread is parked elsewhere by glibc.
    ("deadlock-pi", &[("lock_wait", Certain, 2, 1)]),
    ("deadlock-processes", &[("deadlock", Certain, 2, 2)]),
    ("deadlock-recursive", &[("deadlock", Certain, 2, 2)]),
    ("deadlock-robust", &[("deadlock", Certain, 2, 2)]),
    ("deadlock-rwlock", &[("deadlock", Certain, 2, 2)]),
    ("deadlock-self", &[("deadlock", Certain, 1, 1)]),
    ("deadlock-timed", &[("deadlock", Certain, 2, 2)]),
    ("healthy-contended", &[]),
    ("healthy-join", &[]),
    ("healthy-poll-intmax", &[]),
    ("healthy-pool-busy", &[]),
    ("healthy-pool-idle", &[]),
    ("healthy-server-idle", &[]),
    ("lock-chain", &[("lock_wait", Certain, 4, 3)]),
    ("lock-held-in-read", &[("lock_wait", Certain, 4, 3)]),
    ("namespace", &[("deadlock", Certain, 2, 2)]),
    ("poll-negative", &[("bad_timeout", Certain, 1, 0)]),
    ("ppoll-year", &[("bad_timeout", Likely, 1, 0)]),
    ("stopped-alone", &[]),
    ("stopped-awaited", &[("stopped", Certain, 2, 1)]),
    ("vfork", &[("uninterruptible", Certain, 1, 1)]),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/recordings")
}

/// Judges a recording to its end.
fn judge<R: std::io::BufRead>(mut recording: Recording<R>) -> Result<Judge, RecordingError> {
    let mut judge = Judge::new(recording.header.scope());
    while let Some(observation) = recording.next_observation()? {
        judge.advance(observation.census, observation.probes);
        judge.learn(observation.facts);
    }
    Ok(judge)
}

#[test]
fn every_recording_yields_what_it_should() {
    for (name, expected) in EXPECTED {
        let judge = judge(Recording::open(&folder().join(name).with_extension("ndjson")).unwrap()).unwrap();
        let found: Vec<_> = judge
            .ledger
            .all()
            .map(|life| &life.finding)
            .map(|f| (f.kind.name(), f.confidence, f.threads.len(), f.chain.len()))
            .collect();
        assert_eq!(found, *expected, "{name}");
        for life in judge.ledger.all() {
            let finding = &life.finding;
            assert!(finding.severity >= Severity::Warning, "{name}");
            assert!(
                !finding.title.is_empty() && !finding.explanation.is_empty() && !finding.remedy.is_empty(),
                "{name}"
            );
            assert!(finding.since > Default::default() && finding.since <= life.first_seen, "{name}: {finding:#?}");
        }
    }
}

#[test]
fn no_recording_is_forgotten() {
    let listed: BTreeSet<String> = EXPECTED.iter().map(|(name, _)| format!("{name}.ndjson")).collect();
    let present: BTreeSet<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "README.md")
        .collect();
    assert_eq!(listed, present);
}

#[test]
fn a_higher_threshold_silences_what_needs_duration_and_nothing_else() {
    for (name, stays) in [("lock-held-in-read", false), ("deadlock-2", true), ("vfork", false), ("poll-negative", true)]
    {
        let mut recording = Recording::open(&folder().join(name).with_extension("ndjson")).unwrap();
        recording.header.threshold_ns = 3_600_000_000_000;
        assert_eq!(judge(recording).unwrap().ledger.all().count() > 0, stays, "{name}");
    }
}

fn open(text: &str) -> Result<Recording<BufReader<&[u8]>>, RecordingError> {
    Recording::new(PathBuf::from("x"), BufReader::new(text.as_bytes()))
}

#[test]
fn what_is_not_a_recording_is_refused() {
    for text in ["", "{}", "not json\n", "{\"schema\":\"observer.report/v1\"}\n", "\u{0}\u{0}\n"] {
        assert!(matches!(open(text), Err(RecordingError::NotOurs { .. })), "{text:?}");
    }
    let good = std::fs::read_to_string(folder().join("deadlock-2.ndjson")).unwrap();
    let cut = &good[..good.len() - 100];
    assert!(matches!(judge(open(cut).unwrap()), Err(RecordingError::Damaged { .. })));
}
