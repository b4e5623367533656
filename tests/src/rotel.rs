//! rotel, an OpenTelemetry collector in Rust that comes as a wheel: a real receiver, and what it printed.

use crate::compile::target_dir;
use crate::deadline::wait_until;
use crate::guard::Guard;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const VERSION: &str = "0.0.1a15";

/// The program, installed under `target/tools` on the first use; the error says why it cannot be had here.
pub fn program() -> Result<PathBuf, String> {
    // Tests of one binary run side by side.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let tools = target_dir().map_err(|e| e.to_string())?.join("tools");
    let directory = tools.join(format!("rotel-{VERSION}"));
    let program = directory.join("rotel/rotel-agent");
    if !program.is_file() {
        fs::create_dir_all(&tools).map_err(|e| e.to_string())?;
        let fresh = tools.join(format!("rotel-{VERSION}.{}", std::process::id()));
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--pre", "--no-deps", "--target"]);
        pip.arg(&fresh).arg(format!("rotel=={VERSION}"));
        let done = pip.stdin(Stdio::null()).output().map_err(|e| format!("no pip: {e}"))?;
        if !done.status.success() {
            return Err(format!("pip cannot install rotel: {}", String::from_utf8_lossy(&done.stderr).trim()));
        }
        // Whoever comes second finds the first one's.
        if fs::rename(&fresh, &directory).is_err() {
            fs::remove_dir_all(&fresh).map_err(|e| e.to_string())?;
        }
    }
    let runs = Command::new(&program).arg("--help").stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
    if runs.status.success() {
        Ok(program)
    } else {
        Err(format!("rotel does not run: {}", String::from_utf8_lossy(&runs.stderr).trim()))
    }
}

/// Where a receiver listens.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// For gRPC.
    pub grpc: u16,
    /// For HTTP.
    pub http: u16,
}

impl Ports {
    /// Two that are free now.
    pub fn free() -> Result<Self> {
        let (grpc, http) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
        Ok(Self { grpc: grpc.local_addr()?.port(), http: http.local_addr()?.port() })
    }
}

/// A running receiver. Dropping it kills it.
#[derive(Debug)]
pub struct Rotel {
    guard: Guard,
    directory: tempfile::TempDir,
}

impl Rotel {
    /// Starts it and waits until it listens.
    pub fn start(program: &Path, ports: Ports) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        // Into a file: a pipe that nobody reads would stop it.
        let mut command = Command::new("sh");
        command.args(["-c", "out=$1; shift; exec \"$@\" >\"$out\" 2>&1", "sh"]).arg(directory.path().join("out"));
        command.arg(program).args(["start", "--exporter", "blackhole", "--debug-log-verbosity", "detailed"]);
        command.args(["--debug-log", "logs", "--debug-log", "metrics"]);
        command.args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{}", ports.grpc)]);
        command.args(["--otlp-http-endpoint", &format!("127.0.0.1:{}", ports.http)]);
        command.arg("--pid-file").arg(directory.path().join("pid"));
        let this = Self { guard: Guard::start(command, Stdio::null())?, directory };
        for port in [ports.grpc, ports.http] {
            wait_until("rotel to listen", Duration::from_secs(20), || {
                Ok(TcpStream::connect(("127.0.0.1", port)).ok().map(drop))
            })
            .with_context(|| this.printed().unwrap_or_default())?;
        }
        Ok(this)
    }

    /// Kills it now.
    pub fn kill(&mut self) {
        self.guard.kill();
    }

    /// What it printed so far.
    pub fn printed(&self) -> Result<String> {
        Ok(fs::read_to_string(self.directory.path().join("out"))?)
    }

    /// The log records it printed so far.
    pub fn records(&self) -> Result<Vec<Record>> {
        Ok(parse(&self.printed()?).0)
    }

    /// The points of metrics it printed so far.
    pub fn points(&self) -> Result<Vec<Point>> {
        Ok(parse(&self.printed()?).1)
    }

    /// The first record of this event and this kind of finding, when it is there.
    pub fn event(&self, name: &str, kind: &str, limit: Duration) -> Result<Record> {
        let wanted = |record: &Record| {
            record.field("EventName") == Some(name) && record.attribute("observer.finding.kind") == Some(kind)
        };
        let found = wait_until(&format!("{name} {kind}"), limit, || Ok(self.records()?.into_iter().find(&wanted)));
        found.with_context(|| self.printed().unwrap_or_default())
    }
}

/// A log record.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Attributes of its resource.
    pub resource: BTreeMap<String, String>,
    /// As printed.
    pub text: String,
}

impl Record {
    /// What follows this word at the beginning of a line.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// An attribute with a value of one or more lines.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        let (_, rest) = self.text.split_once(&format!("     -> {name}: "))?;
        let value = rest.split("\n     -> ").next()?.split("\n    Trace ID").next()?;
        value.split_once('(')?.1.strip_suffix(')')
    }
}

/// A point of a metric.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Point {
    /// Attributes of its resource.
    pub resource: BTreeMap<String, String>,
    /// `Name`, `Unit`, `DataType`, `IsMonotonic`, `AggregationTemporality`.
    pub metric: BTreeMap<String, String>,
    /// Its attributes.
    pub attributes: BTreeMap<String, String>,
    /// `StartTimestamp`, `Timestamp`, `Value`, `Count`, `Sum`.
    pub fields: BTreeMap<String, String>,
}

impl Point {
    /// A number of it.
    pub fn number(&self, field: &str) -> Result<f64> {
        let Some(text) = self.fields.get(field) else { bail!("no {field}: {self:?}") };
        text.parse().with_context(|| format!("{field}: {self:?}"))
    }

    /// Whether it is of this metric and has these attributes.
    pub fn is(&self, name: &str, attributes: &[(&str, &str)]) -> bool {
        let has = |(key, value): &(&str, &str)| self.attributes.get(*key).is_some_and(|text| text == value);
        self.metric.get("Name").is_some_and(|text| text == name) && attributes.iter().all(has)
    }
}

/// Where the reader of its output is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Elsewhere,
    Resource,
    Metric,
    Point,
    PointAttributes,
    Record,
}

fn parse(printed: &str) -> (Vec<Record>, Vec<Point>) {
    let (mut records, mut points) = (Vec::<Record>::new(), Vec::<Point>::new());
    let (mut resource, mut metric) = (BTreeMap::new(), BTreeMap::new());
    let mut place = Place::Elsewhere;
    for line in printed.lines() {
        let begins = |what: &str| line.starts_with(what);
        if begins("ResourceLog #") || begins("ResourceMetrics #") {
            resource = BTreeMap::new();
            place = Place::Resource;
        } else if begins("ScopeLogs #") || begins("ScopeMetrics #") {
            place = Place::Elsewhere;
        } else if begins("Metric #") {
            metric = BTreeMap::new();
            place = Place::Metric;
        } else if begins("NumberDataPoints #") || begins("HistogramDataPoints #") {
            points.push(Point { resource: resource.clone(), metric: metric.clone(), ..Point::default() });
            place = Place::Point;
        } else if begins("Data point attributes:") {
            place = Place::PointAttributes;
        } else if begins("LogRecord #") {
            records.push(Record { resource: resource.clone(), text: String::new() });
            place = Place::Record;
        } else if place == Place::Record {
            if let Some(record) = records.last_mut() {
                record.text.push_str(line);
                record.text.push('\n');
            }
        } else if let Some((key, value)) = line.strip_prefix("     -> ").and_then(|line| line.split_once(": ")) {
            // `Str(value)`; what describes a metric is bare.
            let inner = value.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
            match (place, points.last_mut()) {
                (Place::Resource, _) => drop(resource.insert(key.to_owned(), inner.unwrap_or(value).to_owned())),
                (Place::Metric, _) => drop(metric.insert(key.to_owned(), value.to_owned())),
                (Place::PointAttributes, Some(point)) => {
                    point.attributes.insert(key.to_owned(), inner.unwrap_or(value).to_owned());
                }
                _ => {}
            }
        } else if matches!(place, Place::Point | Place::PointAttributes)
            && let (Some((key, value)), Some(point)) = (line.split_once(": "), points.last_mut())
        {
            place = Place::Point;
            point.fields.insert(key.to_owned(), value.to_owned());
        }
    }
    (records, points)
}
