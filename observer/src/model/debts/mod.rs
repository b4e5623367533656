//! Who owes whom an answer: requests not answered, bytes not read, connections not accepted, and what is awaited of peers;
//! from one listing of sockets to the next.

use crate::census::ProcessId;
use crate::proc::ProcessStreams;
use std::collections::BTreeMap;

/// What is known of the sockets of processes.
#[derive(Debug, Default)]
pub struct Services {
    processes: BTreeMap<ProcessId, ProcessStreams>,
}

impl Services {
    /// Takes what was listed.
    pub(super) fn learn(&mut self, listed: &[ProcessStreams]) {
        self.processes.extend(listed.iter().map(|streams| (streams.process, streams.clone())));
    }

    /// Forgets the others.
    pub(super) fn retain(&mut self, lives: impl Fn(&ProcessId) -> bool) {
        self.processes.retain(|id, _| lives(id));
    }
}
