//! One turn of the loop, as data: what a recording holds and a replay feeds in.

use crate::census::{Census, ProbeReading};
use crate::proc::Facts;
use serde::{Deserialize, Serialize};

/// A census, what the probes saw before it, and the facts gathered after it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// Every thread.
    pub census: Census,
    /// Probe events and aggregates since the last turn.
    #[serde(default)]
    pub probes: ProbeReading,
    /// Facts about suspects.
    #[serde(default)]
    pub facts: Facts,
}
