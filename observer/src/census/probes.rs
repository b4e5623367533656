//! stub
use super::*;
use std::collections::BTreeSet;
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    Fentry,
    Kprobe,
    TpBtf,
    Tracepoint,
}
impl Rung {
    pub const LADDER: [Rung; 4] = [Rung::Fentry, Rung::Kprobe, Rung::TpBtf, Rung::Tracepoint];
}
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FilterMode {
    #[default]
    All,
    Listed,
    Namespace,
}
#[derive(Debug, Default)]
pub struct ProbeSettings {
    pub rungs: Vec<Rung>,
    pub long_wait: std::time::Duration,
    pub slow_connect: std::time::Duration,
    pub filter: FilterMode,
}
pub struct ProbePlane;
pub struct ProbeStatus;
impl ProbeStatus {
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({"poll":"none"})
    }
}
impl ProbePlane {
    pub fn attach(_: ProbeSettings) -> Self {
        Self
    }
    pub fn status(&self) -> ProbeStatus {
        ProbeStatus
    }
    pub fn drain(&mut self) -> ProbeReading {
        ProbeReading::default()
    }
    pub fn note_pids(&mut self, _: &Census) {}
    pub fn set_filter(&mut self, _: &BTreeSet<Pid>) {}
}
