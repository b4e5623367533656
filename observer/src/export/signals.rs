//! Every metric, event and attribute that leaves observer: name, unit, meaning. `docs/signals.md` is made from these tables.

/// How a metric is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A value as it is now.
    Gauge,
    /// A sum since the start; never goes down.
    Counter,
    /// Counts by size since the start.
    Histogram,
}

/// One metric.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// Name in OpenTelemetry; Prometheus' is made from it (`observer_threads_blocked`, `…_total`, `…_seconds`).
    pub name: &'static str,
    /// Unit (UCUM), `{thing}` for counts.
    pub unit: &'static str,
    /// How to read it.
    pub kind: Kind,
    /// The attributes of its points.
    pub attributes: &'static [&'static str],
    /// What it says.
    pub about: &'static str,
}

impl Metric {
    /// Whether its points are told apart by process.
    pub fn is_by_process(&self) -> bool {
        self.name.starts_with("observer.process.") || self.name.starts_with("observer.debts.")
    }
}

/// One attribute.
#[derive(Debug, PartialEq, Eq)]
pub struct Attribute {
    /// Its name.
    pub name: &'static str,
    /// Where it stands: resource, event, metric.
    pub on: &'static str,
    /// What it says.
    pub about: &'static str,
}

macro_rules! metrics {
    ($($id:ident = $name:literal, $unit:literal, $kind:ident, [$($attribute:literal),*], $about:literal;)*) => {
        $(
            #[doc = $about]
            pub static $id: Metric =
                Metric { name: $name, unit: $unit, kind: Kind::$kind, attributes: &[$($attribute),*], about: $about };
        )*
        /// All of them.
        pub static METRICS: &[&Metric] = &[$(&$id),*];
    };
}

metrics! {
    THREADS_BLOCKED = "observer.threads.blocked", "{thread}", Gauge, ["class"], "Threads off the CPU, by what they wait for";
    THREADS_SEEN = "observer.threads.seen", "{thread}", Gauge, [], "Threads in the last census";
    PROCESS_THREADS_BLOCKED = "observer.process.threads.blocked", "{thread}", Gauge, ["class"], "Threads of one process that wait for a lock, a file lock, a device, a connection, or are stopped; the processes with most of them, the others summed";
    DEBTS_UNANSWERED = "observer.debts.unanswered", "{request}", Gauge, [], "Requests that came to one process and have no answer yet, also from clients that wait on purpose; the processes with most debts, the others summed";
    DEBTS_OLDEST_UNANSWERED = "observer.debts.oldest_unanswered", "s", Gauge, [], "Age of the oldest of them; of the others together the oldest";
    DEBTS_UNREAD = "observer.debts.unread", "By", Gauge, [], "Bytes that came to one process and are not read";
    DEBTS_BACKLOG = "observer.debts.backlog", "{connection}", Gauge, [], "Connections to one process that it has not accepted";
    DEBTS_AWAITING = "observer.debts.awaiting", "{request}", Gauge, [], "Connections on which one process sent last and nothing has come since";
    FINDINGS_OPEN = "observer.findings.open", "{finding}", Gauge, ["kind", "severity"], "Findings that are open, silenced ones included";
    FINDINGS_OPENED = "observer.findings.opened.count", "{finding}", Counter, ["kind", "severity"], "Findings that opened";
    FINDINGS_RESOLVED = "observer.findings.resolved.count", "{finding}", Counter, ["kind"], "Findings that are over";
    FINDINGS_SILENCED = "observer.findings.silenced.count", "{finding}", Counter, ["kind"], "Changes of findings that the settings keep quiet";
    WAIT_DURATION = "observer.wait.duration", "s", Histogram, ["family"], "Waits that ended, by how long they took, of the probed calls (poll, futex, connect)";
    WAIT_FAILURES = "observer.wait.failures.count", "{call}", Counter, ["family"], "Probed calls that failed";
    TIMEOUTS = "observer.timeouts.count", "{call}", Counter, ["family", "timeout"], "Probed calls, by the kind of timeout they were given";
    PROBES_CPU = "observer.probes.cpu.time", "s", Counter, ["family"], "CPU time of the probes in the kernel, estimated from short windows in which the kernel measures them, or from the calls counted where it does not";
    PROBES_SAMPLING = "observer.probes.sampling", "{call}", Gauge, ["family"], "Of how many calls the probes look at one, to stay within `cpu-budget`: 1 is every call, 0 is none";
    PROBES_REDUCED = "observer.probes.reduced.time", "s", Counter, ["family"], "Time for which the probes did not look at every call, to stay within `cpu-budget`";
    CONFIG_RELOADS = "observer.config.reloads.count", "{reload}", Counter, ["outcome"], "Times the settings were loaded again (SIGHUP), by what became of it: the old ones stay where the new ones are wrong";
    SELF_CPU = "observer.self.cpu.time", "s", Counter, [], "CPU time of observer itself";
    SELF_MEMORY = "observer.self.memory.usage", "By", Gauge, [], "Resident memory of observer itself";
    CENSUS_DURATION = "observer.census.duration", "s", Gauge, [], "How long the last census took";
    CENSUSES = "observer.census.count", "{census}", Counter, [], "Censuses taken";
    LOST = "observer.lost.count", "{item}", Counter, ["stage", "reason"], "What could not be seen, read, unwound or kept, by the stage that lost it";
    EXPORT_QUEUE = "observer.export.queue.length", "{item}", Gauge, ["sink"], "Items that wait to be exported";
    EXPORT_SENT = "observer.export.sent.count", "{record}", Counter, ["sink"], "Records that a receiver took";
    EXPORT_LOST = "observer.export.lost.count", "{record}", Counter, ["sink", "reason"], "Records lost on the way out";
    WORKERS_STUCK = "observer.self.workers.stuck", "{thread}", Gauge, [], "Readers that a target keeps now";
    WORKERS_REPLACED = "observer.self.workers.replaced.count", "{thread}", Counter, [], "Readers given up because a target blocked them, and replaced";
}

macro_rules! attributes {
    ($($name:literal on $on:literal: $about:literal;)*) => {
        /// All attributes.
        pub static ATTRIBUTES: &[Attribute] = &[$(Attribute { name: $name, on: $on, about: $about }),*];
    };
}

attributes! {
    "service.name" on "resource": "`observer` of the observer's own resource; from OTEL_RESOURCE_ATTRIBUTES or OTEL_SERVICE_NAME if they say otherwise";
    "service.version" on "resource": "Version of observer";
    "host.name" on "resource": "Name of the host";
    "host.id" on "resource": "Machine id";
    "os.type" on "resource": "`linux`";
    "process.executable.name" on "resource": "Name of the executable file of the observed process";
    "process.executable.path" on "resource": "Its path, as the process sees it";
    "process.runtime.name" on "resource": "`go`, `jvm`, `cpython`, `node`, `native`, …";
    "process.runtime.version" on "resource": "Its version, where known";
    "container.id" on "resource": "Container of the observed process";
    "k8s.pod.uid" on "resource": "Pod of the observed process, from its cgroup path";
    "k8s.pod.name" on "resource": "From the API server, where it may be asked";
    "k8s.namespace.name" on "resource": "From the API server, where it may be asked";
    "k8s.container.name" on "resource": "From the API server, where it may be asked";
    "k8s.node.name" on "resource": "From the setting `node-name` (the downward API)";
    "event.name" on "event": "The event's name once more, for receivers that drop the field";
    "process.pid" on "event": "Process";
    "process.creation.time" on "event": "When it started: a pid alone is used again";
    "process.command_line" on "event": "Only where it is asked for (`export-command-line`): it may hold secrets";
    "observer.finding.id" on "event": "Stable across repeats";
    "observer.finding.kind" on "event": "`deadlock`, `lock_wait`, …";
    "observer.finding.severity" on "event": "`critical`, `warning`, `info`";
    "observer.finding.confidence" on "event": "`certain`, `likely`, `possible`";
    "observer.finding.state" on "event": "`open` or `resolved`";
    "observer.finding.since" on "event": "When it began (RFC 3339)";
    "observer.finding.title" on "event": "One line";
    "observer.finding.remedy" on "event": "What to look at first";
    "observer.finding.chain" on "event": "Who waits for what held by whom, one line a step";
    "observer.finding.evidence" on "event": "Facts by name, as JSON";
    "observer.thread.tids" on "event": "Threads involved";
    "code.stacktrace" on "event": "Stacks of the threads involved";
    "process.pid" on "profile": "Process";
    "observer.wait.class" on "profile": "What is waited for: `lock`, `condition`, `event`, …";
    "observer.stack.complete" on "profile": "Whether the stack reaches the thread's first function";
    "process.executable.build_id.gnu" on "profile": "Of a mapping: the file's build id";
    "class" on "metric": "What is waited for: `lock`, `condition`, `event`, …";
    "kind" on "metric": "Kind of finding";
    "severity" on "metric": "`critical`, `warning`, `info`";
    "family" on "metric": "`poll`, `futex`, `connect`";
    "timeout" on "metric": "`none`, `zero`, `finite`, `infinite`, `negative`, `absurd`, `invalid`, `unknown`";
    "stage" on "metric": "`census`, `probes`, `facts`, `stacks`";
    "reason" on "metric": "Why it was lost";
    "outcome" on "metric": "`taken` or `refused`";
    "sink" on "metric": "`otlp`, `stdout`, `prometheus`";
}

/// The events.
pub static EVENTS: &[(&str, &str)] = &[
    ("observer.finding.opened", "A finding is new, or back. Body: the explanation"),
    ("observer.finding.changed", "Its severity, its confidence or the number of its threads went up"),
    ("observer.finding.resolved", "It is over"),
];
