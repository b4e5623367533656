//! Every setting of the daemon, validated. Where they come from (file, environment, flags) is `cli`'s business.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// The settings of the daemon.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// How long a wait must last before a rule that needs duration may speak.
    pub threshold: Duration,
    /// Time between two censuses.
    pub interval: Duration,
    /// Whether probes are attached.
    pub probes: bool,
    /// What the probes may cost.
    pub cpu_budget: CpuBudget,
    /// Time between two samples of the metrics.
    pub metrics_interval: Duration,
    /// Whether findings are written to stdout, one a line (`observer.finding/v1`).
    pub stdout: bool,
    /// Where `/metrics`, `/healthz` and `/readyz` are served; `None`: nowhere.
    pub listen: Option<SocketAddr>,
    /// Processes that get metrics of their own; the others are summed.
    pub top_processes: usize,
    /// Where OTLP goes; `None`: nowhere.
    pub otlp: Option<Otlp>,
    /// Whether command lines are exported: they may hold secrets.
    pub export_command_line: bool,
    /// Name of this node in Kubernetes, from the downward API; `None`: the API server is not asked.
    pub node_name: Option<String>,
    /// How the API server is reached outside of a pod; `None`: by the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// Which processes are looked at.
    pub only: Only,
    /// Findings that are kept quiet.
    pub silences: Vec<Silence>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            threshold: Duration::from_secs(5),
            interval: Duration::from_secs(1),
            probes: true,
            cpu_budget: CpuBudget::default(),
            metrics_interval: Duration::from_secs(15),
            stdout: true,
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 9465))),
            top_processes: 10,
            otlp: None,
            export_command_line: false,
            node_name: None,
            kubeconfig: None,
            only: Only::default(),
            silences: Vec::new(),
        }
    }
}

/// The share of one CPU that the probes may use: `1%`, `0.5%`, or `off` for no limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CpuBudget(Option<f64>);

impl CpuBudget {
    /// No limit.
    pub const OFF: Self = Self(None);

    /// CPU seconds a second; `None`: no limit.
    pub fn share(self) -> Option<f64> {
        self.0
    }
}

impl Default for CpuBudget {
    /// 1 % of one CPU.
    fn default() -> Self {
        Self(Some(0.01))
    }
}

impl FromStr for CpuBudget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::OFF);
        }
        let number = text.strip_suffix('%').map(str::trim_end).and_then(|number| number.parse::<f64>().ok());
        match number {
            Some(percent) if (0.01..=100.0).contains(&percent) => Ok(Self(Some(percent / 100.0))),
            Some(_) => {
                Err("a share of one CPU between 0.01% and 100%, or off; --probes none attaches no probes".to_owned())
            }
            None => Err("write a share of one CPU such as 1% or 0.5%, or off".to_owned()),
        }
    }
}

impl fmt::Display for CpuBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            // Shares are typed with a few digits: what binary fractions add behind them is cut.
            Some(share) => write!(f, "{}%", (share * 1e8).round() / 1e6),
            None => f.write_str("off"),
        }
    }
}

/// Which processes are looked at; empty lists let everything pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Only {
    /// Names of main thread or executable; `*` matches anything.
    pub comms: Vec<String>,
    /// Parts of the cgroup path.
    pub cgroups: Vec<String>,
    /// Beginnings of container ids.
    pub containers: Vec<String>,
    /// Names or process ids left out.
    pub excludes: Vec<String>,
}

/// How OTLP is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC.
    #[default]
    Grpc,
    /// HTTP with protobuf bodies.
    HttpProtobuf,
}

/// Where and how OTLP goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Otlp {
    /// `http://host:4317`, `https://…`.
    pub endpoint: String,
    /// How it is spoken.
    pub protocol: Protocol,
    /// Whether bodies are compressed with gzip.
    pub gzip: bool,
    /// Longest time one request may take.
    pub timeout: Duration,
    /// Headers of every request.
    pub headers: Vec<(String, String)>,
    /// Certificates of authorities to trust beside those of the system, PEM.
    pub ca_file: Option<PathBuf>,
    /// Certificate to show, PEM.
    pub cert_file: Option<PathBuf>,
    /// Its key, PEM.
    pub key_file: Option<PathBuf>,
    /// Items that wait at most.
    pub queue: usize,
    /// Whether findings are sent.
    pub events: bool,
    /// Whether metrics are sent.
    pub metrics: bool,
    /// Whether blocked stacks are sent as profiles (experimental).
    pub profiles: bool,
    /// Attributes added to every resource.
    pub resource: Vec<(String, String)>,
    /// What is different for findings.
    pub for_events: OtlpSignal,
    /// What is different for metrics.
    pub for_metrics: OtlpSignal,
}

/// What one signal does differently; `None`: as the others do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OtlpSignal {
    /// Where it goes. Over HTTP this is the whole URL: no path is appended.
    pub endpoint: Option<String>,
    /// How it is spoken.
    pub protocol: Option<Protocol>,
    /// Whether bodies are compressed with gzip.
    pub gzip: Option<bool>,
    /// Longest time one request may take.
    pub timeout: Option<Duration>,
    /// Headers of every request, instead of those of the others.
    pub headers: Option<Vec<(String, String)>>,
    /// Certificates of authorities, PEM.
    pub ca_file: Option<PathBuf>,
    /// Certificate to show, PEM.
    pub cert_file: Option<PathBuf>,
    /// Its key, PEM.
    pub key_file: Option<PathBuf>,
}

impl Otlp {
    /// To this endpoint, everything else as usual.
    pub fn to(endpoint: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            protocol: Protocol::Grpc,
            gzip: true,
            timeout: Duration::from_secs(10),
            headers: Vec::new(),
            ca_file: None,
            cert_file: None,
            key_file: None,
            queue: 2048,
            events: true,
            metrics: true,
            profiles: false,
            resource: Vec::new(),
            for_events: OtlpSignal::default(),
            for_metrics: OtlpSignal::default(),
        }
    }
}

/// Keeps findings quiet that match all of it; what is not given matches anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Silence {
    /// Kind of finding (`lock_wait`).
    pub kind: Option<String>,
    /// Path or name of the executable; `*` matches anything.
    pub exe: Option<String>,
    /// Part of the cgroup path.
    pub cgroup: Option<String>,
    /// Labels of the container's pod, all of which it must have.
    pub labels: BTreeMap<String, String>,
    /// Quiet up to this age of the finding only; `None`: for ever.
    pub up_to: Option<Duration>,
}
