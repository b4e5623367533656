//! Every key of the daemon's settings, once: the schema of the file, the flags, the environment and the documentation.

use super::values::{Compression, Listen, Pair, Probes, SilenceKeys, Span, Wire, pairs};
use crate::settings::{CpuBudget, Only, Otlp, Settings};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// What stands for a secret in what is printed.
const REDACTED: &str = "<redacted>";

/// What was typed; what is absent stays as it is by default.
#[derive(Clone, Debug, Default, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct Keys {
    /// How long a wait must last before a rule that needs duration may speak
    #[arg(long, value_name = "DURATION", help_heading = "What is looked at")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<Span>,
    /// Time between two censuses of all threads
    #[arg(long, value_name = "DURATION", help_heading = "What is looked at")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Span>,
    /// Which probes are attached; `none` takes the census alone, which costs the programs of this node nothing
    #[arg(long, value_enum, value_name = "WHICH", help_heading = "What is looked at")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probes: Option<Probes>,
    /// What the probes may cost on average, as a share of one CPU, or `off`: beyond it they look at fewer calls, or are taken off for a while
    #[arg(long, value_name = "SHARE", help_heading = "What is looked at")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_budget: Option<CpuBudget>,
    /// Only processes of this name (main thread or executable; `*` matches anything)
    #[arg(long, value_name = "NAME", value_delimiter = ',', help_heading = "What is looked at")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm: Option<Vec<String>>,
    /// Only processes whose cgroup path contains this
    #[arg(long, value_name = "PART", value_delimiter = ',', help_heading = "What is looked at")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<Vec<String>>,
    /// Only processes of the container whose id begins like this
    #[arg(long, value_name = "ID", value_delimiter = ',', help_heading = "What is looked at")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Vec<String>>,
    /// Leave out processes of this name or PID
    #[arg(long, value_name = "NAME|PID", value_delimiter = ',', help_heading = "What is looked at")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude: Option<Vec<String>>,

    /// Write findings to stdout, one a line (observer.finding/v1)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "What is told")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout: Option<bool>,
    /// Where /metrics, /healthz and /readyz are served: ADDRESS:PORT or none
    #[arg(long, value_name = "ADDRESS", help_heading = "What is told")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<Listen>,
    /// Time between two samples of the metrics
    #[arg(long, value_name = "DURATION", help_heading = "What is told")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_interval: Option<Span>,
    /// Processes that get metrics of their own; the others are summed
    #[arg(long, value_name = "NUMBER", help_heading = "What is told")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_processes: Option<usize>,
    /// Export command lines: they may hold secrets
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "What is told")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub export_command_line: Option<bool>,

    /// Where OTLP goes, such as http://collector:4317; without it: where OTEL_EXPORTER_OTLP_ENDPOINT says, or nowhere
    #[arg(long, value_name = "URL", help_heading = "OpenTelemetry")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
    /// How OTLP is spoken
    #[arg(long, value_enum, value_name = "PROTOCOL", help_heading = "OpenTelemetry")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_protocol: Option<Wire>,
    /// How OTLP bodies are compressed
    #[arg(long, value_enum, value_name = "HOW", help_heading = "OpenTelemetry")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_compression: Option<Compression>,
    /// Longest time one OTLP request may take
    #[arg(long, value_name = "DURATION", help_heading = "OpenTelemetry")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_timeout: Option<Span>,
    /// Headers of every OTLP request; their values are never printed
    #[arg(long, value_name = "NAME=VALUE", value_delimiter = ',', help_heading = "OpenTelemetry")]
    #[serde(skip_serializing_if = "Option::is_none", with = "pairs")]
    pub otlp_headers: Option<Vec<Pair>>,
    /// Certificates of authorities to trust beside those of the system, PEM
    #[arg(long, value_name = "FILE", help_heading = "OpenTelemetry")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_ca_file: Option<PathBuf>,
    /// Certificate to show to the receiver, PEM; with otlp-key-file
    #[arg(long, value_name = "FILE", help_heading = "OpenTelemetry")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_cert_file: Option<PathBuf>,
    /// Key of that certificate, PEM
    #[arg(long, value_name = "FILE", help_heading = "OpenTelemetry")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_key_file: Option<PathBuf>,
    /// Items that wait at most while the receiver is away; the oldest is lost first
    #[arg(long, value_name = "NUMBER", help_heading = "OpenTelemetry")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_queue: Option<usize>,
    /// Send findings as events
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "OpenTelemetry")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_events: Option<bool>,
    /// Send metrics
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "OpenTelemetry")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_metrics: Option<bool>,
    /// Send the stacks of blocked threads as profiles (experimental: that part of OTLP is not stable yet)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "OpenTelemetry")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_profiles: Option<bool>,
    /// Attributes added to every resource
    #[arg(long, value_name = "NAME=VALUE", value_delimiter = ',', help_heading = "OpenTelemetry")]
    #[serde(skip_serializing_if = "Option::is_none", with = "pairs")]
    pub otlp_resource: Option<Vec<Pair>>,

    /// Name of this node: with it, the API server is asked for the names of its pods
    #[arg(long, value_name = "NAME", help_heading = "Kubernetes")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// How the API server is reached outside of a pod; without it: by the pod's service account
    #[arg(long, value_name = "FILE", help_heading = "Kubernetes")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubeconfig: Option<PathBuf>,

    /// Findings that are kept quiet: all of kind, exe, cgroup, labels.NAME that are given must match; up-to: until they are that old
    #[arg(long, value_name = "KEY=VALUE,…", value_delimiter = ';', help_heading = "Silences")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub silence: Option<Vec<SilenceKeys>>,
}

/// Keys that need a restart: they shape threads that are started once.
pub(super) fn needs_restart(key: &str) -> bool {
    key.starts_with("otlp-")
        || ["probes", "stdout", "listen", "node-name", "kubeconfig", "export-command-line"].contains(&key)
}

/// A value that cannot be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub key: &'static str,
    pub why: String,
}

fn within(
    key: &'static str,
    span: Option<Span>,
    least: Duration,
    most: Duration,
    or: Duration,
) -> Result<Duration, Wrong> {
    let Some(Span(value)) = span else { return Ok(or) };
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    let why = format!("{} is not between {} and {}", Span(value), Span(least), Span(most));
    Err(Wrong { key, why })
}

fn count(key: &'static str, value: Option<usize>, least: usize, most: usize, or: usize) -> Result<usize, Wrong> {
    match value {
        None => Ok(or),
        Some(value) if (least..=most).contains(&value) => Ok(value),
        Some(value) => Err(Wrong { key, why: format!("{value} is not between {least} and {most}") }),
    }
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const HOUR: Duration = Duration::from_secs(60 * 60);

impl Keys {
    /// The settings that these keys make; `standard` is what the `OTEL_…` variables say.
    pub(super) fn settings(self, standard: Option<Otlp>) -> Result<Settings, Wrong> {
        let or = Settings::default();
        let otlp = self.otlp(standard)?;
        if let Some(empty) = self.node_name.as_ref().filter(|name| name.trim().is_empty()) {
            return Err(Wrong { key: "node-name", why: format!("`{empty}` is no name") });
        }
        Ok(Settings {
            threshold: within("threshold", self.threshold, Duration::from_millis(100), DAY, or.threshold)?,
            interval: within("interval", self.interval, Duration::from_millis(50), HOUR, or.interval)?,
            metrics_interval: within(
                "metrics-interval",
                self.metrics_interval,
                Duration::from_millis(100),
                HOUR,
                or.metrics_interval,
            )?,
            probes: self.probes.map_or(or.probes, |probes| probes == Probes::Auto),
            cpu_budget: self.cpu_budget.unwrap_or(or.cpu_budget),
            stdout: self.stdout.unwrap_or(or.stdout),
            listen: self.listen.map_or(or.listen, |listen| listen.0),
            top_processes: count("top-processes", self.top_processes, 0, 1000, or.top_processes)?,
            otlp,
            export_command_line: self.export_command_line.unwrap_or(or.export_command_line),
            node_name: self.node_name,
            kubeconfig: self.kubeconfig.map(|path| readable("kubeconfig", path)).transpose()?,
            only: Only {
                comms: self.comm.unwrap_or_default(),
                cgroups: self.cgroup.unwrap_or_default(),
                containers: self.container.unwrap_or_default(),
                excludes: self.exclude.unwrap_or_default(),
            },
            silences: self.silence.unwrap_or_default().into_iter().map(Into::into).collect(),
        })
    }

    fn otlp(&self, standard: Option<Otlp>) -> Result<Option<Otlp>, Wrong> {
        let otlp = match (&self.otlp_endpoint, standard) {
            (None, None) => return Ok(None),
            (None, Some(standard)) => standard,
            (Some(endpoint), standard) => {
                check_url(endpoint)?;
                Otlp { endpoint: endpoint.clone(), ..standard.unwrap_or_else(|| Otlp::to(endpoint)) }
            }
        };
        self.over(otlp).map(Some)
    }

    /// What is given here over what was known before.
    fn over(&self, mut otlp: Otlp) -> Result<Otlp, Wrong> {
        let pairs = |pairs: &[Pair]| pairs.iter().map(|Pair(name, value)| (name.clone(), value.clone())).collect();
        if let Some(wire) = self.otlp_protocol {
            otlp.protocol = wire.into();
        }
        if let Some(compression) = self.otlp_compression {
            otlp.gzip = compression == Compression::Gzip;
        }
        otlp.timeout = within("otlp-timeout", self.otlp_timeout, Duration::from_millis(100), HOUR, otlp.timeout)?;
        if let Some(headers) = &self.otlp_headers {
            check_headers(headers)?;
            otlp.headers = pairs(headers);
        }
        if let Some(path) = &self.otlp_ca_file {
            otlp.ca_file = Some(readable("otlp-ca-file", path.clone())?);
        }
        if let Some(path) = &self.otlp_cert_file {
            otlp.cert_file = Some(readable("otlp-cert-file", path.clone())?);
        }
        if let Some(path) = &self.otlp_key_file {
            otlp.key_file = Some(readable("otlp-key-file", path.clone())?);
        }
        match (&otlp.cert_file, &otlp.key_file) {
            (Some(_), None) => Err(Wrong { key: "otlp-cert-file", why: "needs otlp-key-file beside it".to_owned() })?,
            (None, Some(_)) => Err(Wrong { key: "otlp-key-file", why: "needs otlp-cert-file beside it".to_owned() })?,
            _ => {}
        }
        otlp.queue = count("otlp-queue", self.otlp_queue, 1, 1_000_000, otlp.queue)?;
        otlp.events = self.otlp_events.unwrap_or(otlp.events);
        otlp.metrics = self.otlp_metrics.unwrap_or(otlp.metrics);
        otlp.profiles = self.otlp_profiles.unwrap_or(otlp.profiles);
        if let Some(attributes) = &self.otlp_resource {
            otlp.resource = pairs(attributes);
        }
        Ok(otlp)
    }

    /// The keys that make these settings, each of them.
    pub(super) fn of(settings: &Settings) -> Self {
        let Settings {
            threshold,
            interval,
            metrics_interval,
            probes,
            cpu_budget,
            stdout,
            listen,
            top_processes,
            otlp,
            export_command_line,
            node_name,
            kubeconfig,
            only: Only { comms, cgroups, containers, excludes },
            silences,
        } = settings.clone();
        let keys = Self {
            threshold: Some(Span(threshold)),
            interval: Some(Span(interval)),
            cpu_budget: Some(cpu_budget),
            probes: Some(if probes { Probes::Auto } else { Probes::None }),
            comm: Some(comms),
            cgroup: Some(cgroups),
            container: Some(containers),
            exclude: Some(excludes),
            stdout: Some(stdout),
            listen: Some(Listen(listen)),
            metrics_interval: Some(Span(metrics_interval)),
            top_processes: Some(top_processes),
            export_command_line: Some(export_command_line),
            node_name,
            kubeconfig,
            silence: Some(silences.into_iter().map(Into::into).collect()),
            ..Self::default()
        };
        let Some(otlp) = otlp else { return keys };
        let Otlp {
            endpoint,
            protocol,
            gzip,
            timeout,
            headers,
            ca_file,
            cert_file,
            key_file,
            queue,
            events,
            metrics,
            profiles,
            // The variants per signal come from the standard variables only.
            for_events: _,
            for_metrics: _,
            resource,
        } = otlp;
        let pairs =
            |pairs: Vec<(String, String)>| Some(pairs.into_iter().map(|(name, value)| Pair(name, value)).collect());
        Self {
            otlp_endpoint: Some(endpoint),
            otlp_protocol: Some(protocol.into()),
            otlp_compression: Some(if gzip { Compression::Gzip } else { Compression::None }),
            otlp_timeout: Some(Span(timeout)),
            otlp_headers: pairs(headers),
            otlp_ca_file: ca_file,
            otlp_cert_file: cert_file,
            otlp_key_file: key_file,
            otlp_queue: Some(queue),
            otlp_events: Some(events),
            otlp_metrics: Some(metrics),
            otlp_profiles: Some(profiles),
            otlp_resource: pairs(resource),
            ..keys
        }
    }

    /// The same with nothing in it that must not be shown.
    pub(super) fn redacted(mut self) -> Self {
        for Pair(_, value) in self.otlp_headers.iter_mut().flatten() {
            REDACTED.clone_into(value);
        }
        if let Some(endpoint) = &mut self.otlp_endpoint {
            *endpoint = without_password(endpoint);
        }
        self
    }
}

/// `http://user:password@host` without who and how.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) => format!("{scheme}://{REDACTED}{}", &rest[at..]),
        None => url.to_owned(),
    }
}

fn check_url(url: &str) -> Result<(), Wrong> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let host = rest.and_then(|rest| rest.split(['/', '?', '#']).next());
    if host.is_some_and(|host| !host.is_empty()) && !url.contains(char::is_whitespace) {
        return Ok(());
    }
    let shown = without_password(url);
    let why = format!("`{shown}` is no address of a receiver; write http://HOST:4317 or https://HOST:4317");
    Err(Wrong { key: "otlp-endpoint", why })
}

fn check_headers(headers: &[Pair]) -> Result<(), Wrong> {
    let wrong = |why: String| Err(Wrong { key: "otlp-headers", why });
    for Pair(name, value) in headers {
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || !name.chars().all(is_token) {
            return wrong(format!("`{name}` is no name of a header"));
        }
        // The value is a secret: it is not shown.
        if value.chars().any(|c| c.is_control() && c != '\t') {
            return wrong(format!("the value of `{name}` has a line break or another control character"));
        }
    }
    Ok(())
}

/// A file that must be there.
fn readable(key: &'static str, path: PathBuf) -> Result<PathBuf, Wrong> {
    let fail = |error: std::io::Error| Wrong { key, why: format!("cannot read {}: {error}", path.display()) };
    // Asked first: to open a FIFO would wait for its writer.
    if !std::fs::metadata(&path).map_err(fail)?.is_file() {
        return Err(Wrong { key, why: format!("{} is not a file", path.display()) });
    }
    std::fs::File::open(&path).map_err(fail)?;
    Ok(path)
}
