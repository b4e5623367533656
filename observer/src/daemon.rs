//! The service: wires a session to the sinks, and ends in order.

use crate::detect::{Change, Life, Moment, Turn};
use crate::export::{Entity, FindingEvent, Item, Sampler, Sink, SinkStats};
use crate::model::{Filter, Host, Scope};
use crate::session::{Session, SessionError};
use crate::settings::{Settings, Silence};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The second census follows the first so soon: a finding needs two.
const FIRST_GAP: Duration = Duration::from_millis(300);
/// What the sinks may take for their last items, all together.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What is looked at, by the settings.
pub fn scope(settings: &Settings) -> Scope {
    let only = &settings.only;
    Scope {
        processes: None,
        filter: Filter {
            comms: only.comms.clone(),
            cgroups: only.cgroups.clone(),
            containers: only.containers.clone(),
            excludes: only.excludes.clone(),
            ..Filter::default()
        },
        threshold_ns: u64::try_from(settings.threshold.as_nanos()).unwrap_or(u64::MAX),
    }
}

/// The daemon between two turns.
pub struct Daemon {
    settings: Settings,
    session: Session,
    sinks: Vec<Box<dyn Sink>>,
    sampler: Sampler,
    next_sample: Instant,
    turns: u64,
    /// Whom open findings are about, by the finding's id: the end of one must name the same container.
    entities: BTreeMap<String, Entity>,
}

impl Daemon {
    /// A daemon over this session; `session`'s scope is replaced by that of the settings.
    pub fn new(settings: Settings, mut session: Session, sinks: Vec<Box<dyn Sink>>, since: Moment) -> Self {
        session.judge.scope = scope(&settings);
        let sampler = Sampler::new(since, settings.top_processes);
        Self { settings, session, sinks, sampler, next_sample: Instant::now(), turns: 0, entities: BTreeMap::new() }
    }

    /// One turn: census, judgement, what goes to the sinks. Answers with when the next one is due.
    ///
    /// # Errors
    /// The census failed: nothing can be seen any more.
    pub fn turn(&mut self) -> Result<Instant, SessionError> {
        let began = Instant::now();
        let turn = self.session.turn()?;
        self.turns += 1;
        self.sampler.note(&turn);
        self.tell(&turn);
        if began >= self.next_sample {
            self.next_sample = began + self.settings.metrics_interval;
            self.sample();
        }
        let gap = if self.turns == 1 { FIRST_GAP.min(self.settings.interval) } else { self.settings.interval };
        Ok((began + gap).max(Instant::now()))
    }

    /// Findings to every sink, less those that are kept quiet.
    fn tell(&mut self, turn: &Turn) {
        let host = &self.session.judge.host;
        for (change, life) in &turn.changes {
            if self.settings.silences.iter().any(|silence| is_silenced(host, silence, life)) {
                self.sampler.note_silenced(life.finding.kind.name());
                continue;
            }
            let before = self.entities.remove(&life.finding.id);
            let event = FindingEvent::of(host, *change, life, before.as_ref());
            if *change != Change::Resolved {
                self.entities.insert(life.finding.id.clone(), event.entity.clone());
            }
            let event = Item::Finding(Arc::new(event));
            for sink in &self.sinks {
                sink.offer(event.clone());
            }
        }
    }

    fn sample(&mut self) {
        let stats: Vec<SinkStats> = self.sinks.iter().map(|sink| sink.stats()).collect();
        let sample = self.sampler.sample(&self.session.judge, &self.session.account, &stats);
        let item = Item::Metrics(Arc::new(sample));
        for sink in &self.sinks {
            sink.offer(item.clone());
        }
    }

    /// Takes other settings; sinks are the caller's business.
    pub fn reload(&mut self, settings: Settings) {
        self.session.judge.scope = scope(&settings);
        self.settings = settings;
    }

    /// The settings it works by.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Ends: open findings are not said to be over, since they are not; the sinks send what they have.
    pub fn close(mut self) {
        self.sample();
        let until = Instant::now() + LAST_WORDS;
        for sink in self.sinks {
            sink.close(until);
        }
    }
}

/// Whether a silence keeps this finding quiet.
fn is_silenced(host: &Host, silence: &Silence, life: &Life) -> bool {
    let finding = &life.finding;
    let facts = host.process(finding.process);
    let is_kind = silence.kind.as_ref().is_none_or(|kind| kind == finding.kind.name());
    let is_exe = silence.exe.as_ref().is_none_or(|pattern| {
        let exe = facts.and_then(|facts| facts.exe.as_deref());
        let name = exe.and_then(|exe| exe.rsplit('/').next());
        exe.into_iter()
            .chain(name)
            .chain([finding.comm.as_str()])
            .any(|name| crate::model::scope::matches_pattern(pattern, name))
    });
    let is_cgroup = silence.cgroup.as_ref().is_none_or(|part| {
        facts.and_then(|facts| facts.cgroup.as_ref()).is_some_and(|path| path.contains(part.as_str()))
    });
    let age = Duration::from_nanos(life.last_seen.0.saturating_sub(finding.since.0));
    // Labels come from the API server only.
    is_kind && is_exe && is_cgroup && silence.labels.is_empty() && silence.up_to.is_none_or(|up_to| age < up_to)
}
