//! The service: wires a session to the sinks, and ends in order.

mod silence;

use crate::detect::{Change, Life, Moment, Turn};
use crate::export::{Entity, FindingEvent, Item, Profiler, Pulse, Sampler, Sink, SinkStats};
use crate::host::clock::whole_ns;
use crate::model::{Filter, Scope};
use crate::session::{FIRST_GAP, Session, SessionError};
use crate::settings::Settings;
use silence::Teller;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
        threshold_ns: whole_ns(settings.threshold),
    }
}

/// The daemon between two turns.
pub struct Daemon {
    settings: Settings,
    session: Session,
    sinks: Vec<Box<dyn Sink>>,
    sampler: Sampler,
    profiler: Profiler,
    teller: Teller,
    next_sample: Instant,
    turns: u64,
    pulse: Option<Arc<Pulse>>,
    /// Whom open findings are about, by the finding's id: the end of one must name the same container.
    entities: BTreeMap<String, Entity>,
}

impl Daemon {
    /// A daemon over this session; `session`'s scope is replaced by that of the settings.
    pub fn new(settings: Settings, mut session: Session, sinks: Vec<Box<dyn Sink>>, since: Moment) -> Self {
        session.judge.scope = scope(&settings);
        let sampler = Sampler::new(since, settings.top_processes);
        Self {
            settings,
            session,
            sinks,
            sampler,
            profiler: Profiler::default(),
            next_sample: Instant::now(),
            turns: 0,
            pulse: None,
            teller: Teller::default(),
            entities: BTreeMap::new(),
        }
    }

    /// Tells this pulse of every turn.
    pub fn show_pulse(&mut self, pulse: Arc<Pulse>) {
        self.pulse = Some(pulse);
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
        let is_due = began >= self.next_sample;
        if is_due {
            self.next_sample = began + self.settings.metrics_interval;
        }
        self.sample(is_due);
        if let Some(pulse) = &self.pulse {
            pulse.beat(Instant::now());
        }
        let gap = if self.turns == 1 { FIRST_GAP.min(self.settings.interval) } else { self.settings.interval };
        Ok((began + gap).max(Instant::now()))
    }

    /// A turn has failed: when the next one is due.
    pub fn failed(&mut self) -> Instant {
        self.session.account.lose("census_failed", 1);
        Instant::now() + self.settings.interval
    }

    /// Findings to every sink, less those that are kept quiet.
    fn tell(&mut self, turn: &Turn) {
        let (host, open) = (&self.session.judge.host, self.session.judge.ledger.open());
        let silences = &self.settings.silences;
        let pods = self.session.pods();
        let labels = |life: &Life| {
            let uid = &host.process(life.finding.process)?.pod.as_ref()?.uid;
            Some(&pods.as_ref()?.pod(uid)?.labels)
        };
        let is_silenced =
            |life: &Life| silences.iter().any(|silence| silence::is_silenced(host, silence, life, labels(life)));
        let (tell, quiet) = self.teller.pick(&turn.changes, &open, is_silenced);
        for (kind, count) in quiet {
            self.sampler.note_silenced(kind, count);
        }
        for (change, life) in tell {
            let before = self.entities.remove(&life.finding.id);
            let event = FindingEvent::of(host, change, &life, before.as_ref());
            if change != Change::Resolved {
                self.entities.insert(life.finding.id.clone(), event.entity.clone());
            }
            let event = Item::Finding(Arc::new(event));
            for sink in &self.sinks {
                sink.offer(event.clone());
            }
        }
    }

    /// The metrics to every sink, or if they are not due yet to those that want them all the same.
    fn sample(&mut self, is_due: bool) {
        if !is_due && !self.sinks.iter().any(|sink| sink.wants_every_turn()) {
            return;
        }
        let stats: Vec<SinkStats> = self.sinks.iter().map(|sink| sink.stats()).collect();
        let sample = self.sampler.sample(&self.session.judge, &self.session.account, &stats);
        let item = Item::Metrics(Arc::new(sample));
        for sink in self.sinks.iter().filter(|sink| is_due || sink.wants_every_turn()) {
            sink.offer(item.clone());
        }
        if is_due {
            self.profile();
        }
    }

    /// Blocked stacks to the sinks that want them.
    fn profile(&mut self) {
        let wanted = || self.sinks.iter().filter(|sink| sink.wants_profiles());
        if wanted().next().is_none() {
            // Whoever wants them later wants none of the time before.
            self.profiler = Profiler::default();
            return;
        }
        let Some(profile) = self.profiler.profile(&self.session.judge) else { return };
        let item = Item::Profile(Arc::new(profile));
        wanted().for_each(|sink| sink.offer(item.clone()));
    }

    /// Takes other settings; sinks are the caller's business.
    pub fn reload(&mut self, settings: Settings) {
        self.session.judge.scope = scope(&settings);
        if let Some(probes) = self.session.probes() {
            probes.set_budget(settings.cpu_budget);
        }
        if let Some(pulse) = &self.pulse {
            pulse.set_interval(settings.interval);
        }
        self.sampler.set_top(settings.top_processes);
        self.sampler.note_reload(true);
        self.next_sample = self.next_sample.min(Instant::now() + settings.metrics_interval);
        self.settings = settings;
    }

    /// Counts that other settings were wrong: those it has stay.
    pub fn refuse_reload(&mut self) {
        self.sampler.note_reload(false);
    }

    /// Censuses so far.
    pub fn turns(&self) -> u64 {
        self.turns
    }

    /// What it does, in one line.
    pub fn status(&self) -> String {
        let open = self.session.judge.ledger.open().len();
        format!("{} threads watched, {open} findings open", self.session.account.threads_seen)
    }

    /// The settings it works by.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Ends: open findings are not said to be over, since they are not; the sinks send what they have.
    pub fn close(mut self) {
        self.sample(true);
        let until = Instant::now() + LAST_WORDS;
        for sink in self.sinks {
            sink.close(until);
        }
    }
}
