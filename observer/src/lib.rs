//! observer: which process is hung, since when, on what, with which timeout, and who holds what it
//! waits for, from outside and without touching it.
//!
//! Data flows one way through the rooms, in this order: [`host`] (facts about the machine) →
//! [`census`] (every thread) → [`proc`] (identity and memory of suspects) → [`mod@kube`] (names of pods) → [`model`] (waits, locks,
//! owners) → [`detect`] (findings) → [`explain`] (stacks) → [`report`] (text, JSON) → [`export`] (what
//! leaves the daemon). [`session`] wires a look, [`mod@daemon`] the service, by its [`settings`]. `model` and `detect` do no I/O and
//! know no clock.

pub mod census;
pub mod cli;
pub mod daemon;
pub mod detect;
pub mod explain;
pub mod export;
pub mod host;
pub mod kube;
pub mod model;
pub mod proc;
pub mod recording;
pub mod report;
pub mod session;
pub mod settings;
