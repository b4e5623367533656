//! Idle, busy, waiting or hung, in one word and one sentence.

use super::Debts;
use crate::model::duration;
use crate::proc::StreamKind;

/// In one word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It owes nothing that says more than that somebody waits on purpose, and does little.
    Idle,
    /// It makes progress.
    Busy,
    /// It waits for this peer: an address or a process.
    Waiting(String),
    /// A finding says so.
    Hung,
    /// When its sockets were used last could not be had, and nothing else tells.
    Unknown,
}

impl State {
    /// The name in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Waiting(_) => "waiting",
            Self::Hung => "hung",
            Self::Unknown => "unknown",
        }
    }
}

/// With its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// In one word.
    pub state: State,
    /// Why, for people.
    pub why: String,
}

impl Debts {
    /// Whether the times of all its TCP connections are known: `/proc/net/tcp` has none, and serves where socket diagnostics may not be
    /// asked. Without them nothing is known of what is owed and awaited.
    pub fn has_times(&self) -> bool {
        self.lines().all(|line| line.at.kind != StreamKind::Tcp || line.at.received.is_some())
    }
}

/// What the numbers say, where no rule has spoken.
pub(super) fn by_numbers(debts: &Debts) -> Verdict {
    let progress = &debts.progress;
    let busy = |why: String| Verdict { state: State::Busy, why };
    let within = duration(progress.elapsed_ns);
    if progress.answers > 0 {
        return busy(format!("at least {} answered within {within}", requests(progress.answers)));
    }
    if progress.is_hot() {
        return busy(format!("{} of CPU time within {within}", duration(progress.cpu_ns)));
    }
    if progress.accepts > 0 || progress.read_bytes > 0 {
        let (accepts, bytes) = (progress.accepts, progress.read_bytes);
        return busy(format!("{accepts} connection(s) accepted and {bytes} bytes read within {within}"));
    }
    if !debts.has_times() {
        let why = "when its connections were used last is not told here (socket diagnostics were refused, as in another network namespace without CAP_SYS_ADMIN), so whether it owes an answer is not known";
        return Verdict { state: State::Unknown, why: why.to_owned() };
    }
    let unanswered = debts.unanswered().map(|(_, since)| since).min();
    let awaited = debts.awaiting().min_by_key(|(_, since)| *since);
    match (unanswered, awaited) {
        (Some(asked), Some((line, sent))) if sent >= asked => {
            let peer = line.at.remote.clone().unwrap_or_else(|| "a peer".to_owned());
            let why = format!("it owes answers, and has awaited one of {peer} for {}", duration(debts.age(sent)));
            Verdict { state: State::Waiting(peer), why }
        }
        (Some(asked), _) => {
            let (count, long) = (requests(debts.unanswered().count() as u64), duration(debts.age(asked)));
            let pools = debts.pools();
            let why = match pools.iter().find(|pool| debts.may_exhaust(pool)) {
                Some(pool) => format!(
                    "{count} came at once and are unanswered, the oldest for {long}, while all {} connections to {} are idle: their clients wait on \
                     purpose, or the requests hold the pool and wait for more of it; the next request will show which",
                    pool.lines.len(),
                    pool.remote
                ),
                None => format!(
                    "{count} unanswered, the oldest for {long}, and nothing that shows more than clients who wait on purpose"
                ),
            };
            Verdict { state: State::Idle, why }
        }
        (None, Some((line, sent))) => {
            let peer = line.at.remote.clone().unwrap_or_else(|| "a peer".to_owned());
            let why = format!("nobody waits for it; it has awaited data of {peer} for {}", duration(debts.age(sent)));
            Verdict { state: State::Idle, why }
        }
        (None, None) => Verdict { state: State::Idle, why: "it owes nobody an answer".to_owned() },
    }
}

/// `1 request`, `12 requests`.
pub fn requests(count: u64) -> String {
    format!("{count} request{}", if count == 1 { "" } else { "s" })
}
