//! The life of findings across censuses: opened, worse, resolved.

use super::{Finding, Kind, Moment};
use std::collections::BTreeMap;

/// A resolved finding is remembered this long, so that a hang that comes back keeps its first sight.
const REMEMBER_NS: u64 = 600_000_000_000;
/// A bad timeout is passed in an instant: it stays open this long after the last sight.
const LINGER_NS: u64 = 60_000_000_000;

/// What happened to a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new, or back.
    Opened,
    /// Its severity, confidence or number of threads went up.
    Worsened,
    /// It is over.
    Resolved,
}

/// A finding with its times.
#[derive(Clone, Debug, PartialEq)]
pub struct Life {
    /// As last seen.
    pub finding: Finding,
    /// Noticed first.
    pub first_seen: Moment,
    /// Noticed last.
    pub last_seen: Moment,
    /// No longer there.
    pub resolved: bool,
}

/// All findings, open and lately resolved.
#[derive(Debug, Default)]
pub struct Ledger {
    lives: BTreeMap<String, Life>,
}

impl Ledger {
    /// Takes the findings of one census; answers with what changed, opened ones first.
    pub fn update(&mut self, findings: Vec<Finding>, now: Moment) -> Vec<(Change, Life)> {
        let mut changes = Vec::new();
        let mut present = std::collections::BTreeSet::new();
        for finding in findings {
            present.insert(finding.id.clone());
            if let Some(change) = self.note(finding, now) {
                changes.push(change);
            }
        }
        for (id, life) in &mut self.lives {
            let lingers = life.finding.kind == Kind::BadTimeout && now.0.saturating_sub(life.last_seen.0) < LINGER_NS;
            if !life.resolved && !present.contains(id) && !lingers {
                life.resolved = true;
                changes.push((Change::Resolved, life.clone()));
            }
        }
        self.lives.retain(|_, life| !life.resolved || now.0.saturating_sub(life.last_seen.0) < REMEMBER_NS);
        changes
    }

    fn note(&mut self, mut finding: Finding, now: Moment) -> Option<(Change, Life)> {
        let Some(life) = self.lives.get_mut(&finding.id) else {
            let life = Life { first_seen: now, last_seen: now, resolved: false, finding };
            self.lives.insert(life.finding.id.clone(), life.clone());
            return Some((Change::Opened, life));
        };
        let reopened = life.resolved;
        let worse = finding.severity > life.finding.severity
            || finding.confidence > life.finding.confidence
            || finding.threads.len() > life.finding.threads.len();
        if !reopened {
            // When it began does not move while it lasts, however the clocks drift.
            finding.since = finding.since.min(life.finding.since);
        } else if finding.since > life.first_seen {
            // Another one at the same place.
            life.first_seen = now;
        }
        life.finding = finding;
        life.last_seen = now;
        life.resolved = false;
        let change = if reopened {
            Change::Opened
        } else if worse {
            Change::Worsened
        } else {
            return None;
        };
        Some((change, life.clone()))
    }

    /// Findings that are open now, worst first, then oldest first.
    pub fn open(&self) -> Vec<&Life> {
        let mut open: Vec<&Life> = self.lives.values().filter(|life| !life.resolved).collect();
        open.sort_by_key(|life| {
            (std::cmp::Reverse(life.finding.severity), life.finding.kind, life.finding.since, life.finding.id.clone())
        });
        open
    }

    /// Every finding known, open or lately resolved.
    pub fn all(&self) -> impl Iterator<Item = &Life> {
        self.lives.values()
    }
}
