//! Which changes are told, and which are kept quiet.

use crate::detect::{Change, Life};
use crate::model::Host;
use crate::model::scope::matches_pattern;
use crate::proc::base_name;
use crate::settings::Silence;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Remembers what was told: what was told to be open is told to be over, and what was quiet is told once it no longer is.
#[derive(Debug, Default)]
pub(super) struct Teller {
    told: BTreeSet<String>,
}

impl Teller {
    /// The changes to tell, and the number of those kept quiet by kind.
    pub(super) fn pick(
        &mut self,
        changes: &[(Change, Life)],
        open: &[&Life],
        is_silenced: impl Fn(&Life) -> bool,
    ) -> (Vec<(Change, Life)>, BTreeMap<&'static str, u64>) {
        let mut tell = Vec::new();
        let mut quiet: BTreeMap<&'static str, u64> = BTreeMap::new();
        for (change, life) in changes {
            let id = &life.finding.id;
            let speaks = match change {
                Change::Resolved => self.told.remove(id),
                Change::Worsened if !self.told.contains(id) => {
                    if is_silenced(life) {
                        false
                    } else {
                        // Told below, as opened.
                        continue;
                    }
                }
                Change::Opened | Change::Worsened => !is_silenced(life),
            };
            if !speaks {
                *quiet.entry(life.finding.kind.name()).or_default() += 1;
                continue;
            }
            if *change == Change::Opened {
                self.told.insert(id.clone());
            }
            tell.push((*change, life.clone()));
        }
        // It has become too old for its silence, or the silence is gone.
        for life in open {
            if !self.told.contains(&life.finding.id) && !is_silenced(life) {
                self.told.insert(life.finding.id.clone());
                tell.push((Change::Opened, (*life).clone()));
            }
        }
        (tell, quiet)
    }
}

/// Whether a silence keeps this finding quiet. `labels` are those of the process' pod, where they are known.
pub(super) fn is_silenced(
    host: &Host,
    silence: &Silence,
    life: &Life,
    labels: Option<&BTreeMap<String, String>>,
) -> bool {
    let finding = &life.finding;
    let facts = host.process(finding.process);
    let is_kind = silence.kind.as_ref().is_none_or(|kind| kind == finding.kind.name());
    let is_exe = silence.exe.as_ref().is_none_or(|pattern| {
        let exe = facts.and_then(|facts| facts.exe.as_deref());
        let name = exe.map(base_name);
        exe.into_iter().chain(name).chain([finding.comm.as_str()]).any(|name| matches_pattern(pattern, name))
    });
    let is_cgroup = silence.cgroup.as_ref().is_none_or(|part| {
        facts.and_then(|facts| facts.cgroup.as_ref()).is_some_and(|path| path.contains(part.as_str()))
    });
    let is_pod = silence.labels.is_empty()
        || labels.is_some_and(|labels| silence.labels.iter().all(|(name, value)| labels.get(name) == Some(value)));
    let age = Duration::from_nanos(life.last_seen.0.saturating_sub(finding.since.0));
    is_kind && is_exe && is_cgroup && is_pod && silence.up_to.is_none_or(|up_to| age < up_to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::census::ProcessId;
    use crate::detect::{Finding, Kind, Moment};

    fn life(seconds: u64) -> Life {
        let process = ProcessId { pid: 7, start_ns: 1 };
        let finding = Finding::new(Kind::LockWait, &Host::default(), process, "lock");
        let last_seen = Moment(seconds * 1_000_000_000);
        Life { finding, first_seen: Moment(0), last_seen, resolved: false }
    }

    fn silence(text: (&str, Option<u64>)) -> Silence {
        Silence { kind: Some(text.0.to_owned()), up_to: text.1.map(Duration::from_secs), ..Silence::default() }
    }

    /// What a turn tells under one silence.
    fn turn(teller: &mut Teller, change: Option<Change>, age: u64, quiet: &Silence) -> (Vec<Change>, u64) {
        let life = life(age);
        let changes: Vec<(Change, Life)> = change.into_iter().map(|change| (change, life.clone())).collect();
        let open = if change == Some(Change::Resolved) { Vec::new() } else { vec![&life] };
        let host = Host::default();
        let (tell, quiet) = teller.pick(&changes, &open, |life| is_silenced(&host, quiet, life, None));
        (tell.into_iter().map(|(change, _)| change).collect(), quiet.values().sum())
    }

    #[test]
    fn a_life_without_silence() {
        let (mut teller, other) = (Teller::default(), silence(("deadlock", None)));
        assert_eq!(turn(&mut teller, Some(Change::Opened), 1, &other), (vec![Change::Opened], 0));
        assert_eq!(turn(&mut teller, None, 2, &other), (vec![], 0));
        assert_eq!(turn(&mut teller, Some(Change::Worsened), 3, &other), (vec![Change::Worsened], 0));
        assert_eq!(turn(&mut teller, Some(Change::Resolved), 4, &other), (vec![Change::Resolved], 0));
        assert_eq!(turn(&mut teller, Some(Change::Opened), 5, &other), (vec![Change::Opened], 0));
    }

    #[test]
    fn a_silence_ends_with_the_age_it_is_good_for() {
        let (mut teller, brief) = (Teller::default(), silence(("lock_wait", Some(10))));
        assert_eq!(turn(&mut teller, Some(Change::Opened), 1, &brief), (vec![], 1));
        assert_eq!(turn(&mut teller, Some(Change::Worsened), 5, &brief), (vec![], 1));
        assert_eq!(turn(&mut teller, None, 9, &brief), (vec![], 0));
        assert_eq!(turn(&mut teller, None, 10, &brief), (vec![Change::Opened], 0));
        assert_eq!(turn(&mut teller, None, 11, &brief), (vec![], 0));
        assert_eq!(turn(&mut teller, Some(Change::Resolved), 12, &brief), (vec![Change::Resolved], 0));
    }

    #[test]
    fn what_was_never_told_is_not_told_to_be_over() {
        let (mut teller, ever) = (Teller::default(), silence(("lock_wait", None)));
        assert_eq!(turn(&mut teller, Some(Change::Opened), 1, &ever), (vec![], 1));
        assert_eq!(turn(&mut teller, Some(Change::Resolved), 99_999, &ever), (vec![], 1));
    }

    #[test]
    fn what_was_told_is_told_to_be_over_whatever_is_silenced_since() {
        let mut teller = Teller::default();
        assert_eq!(turn(&mut teller, Some(Change::Opened), 1, &silence(("deadlock", None))), (vec![Change::Opened], 0));
        let ever = silence(("lock_wait", None));
        assert_eq!(turn(&mut teller, Some(Change::Worsened), 2, &ever), (vec![], 1));
        assert_eq!(turn(&mut teller, Some(Change::Resolved), 3, &ever), (vec![Change::Resolved], 0));
    }

    #[test]
    fn worse_and_no_longer_silenced_is_told_once() {
        let mut teller = Teller::default();
        let brief = silence(("lock_wait", Some(10)));
        assert_eq!(turn(&mut teller, Some(Change::Opened), 1, &brief), (vec![], 1));
        assert_eq!(turn(&mut teller, Some(Change::Worsened), 11, &brief), (vec![Change::Opened], 0));
    }

    #[test]
    fn labels_must_all_be_there() {
        let host = Host::default();
        let wants = |labels: &[(&str, &str)]| Silence {
            labels: labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            ..Silence::default()
        };
        let pod = BTreeMap::from([("app".to_owned(), "web".to_owned()), ("tier".to_owned(), "front".to_owned())]);
        assert!(is_silenced(&host, &wants(&[("app", "web")]), &life(1), Some(&pod)));
        assert!(!is_silenced(&host, &wants(&[("app", "web"), ("zone", "a")]), &life(1), Some(&pod)));
        assert!(!is_silenced(&host, &wants(&[("app", "db")]), &life(1), Some(&pod)));
        assert!(!is_silenced(&host, &wants(&[("app", "web")]), &life(1), None), "unknown is not a match");
    }
}
