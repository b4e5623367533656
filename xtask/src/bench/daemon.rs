//! What the daemon costs on a node: CPU, memory and what it sends, with a receiver and without one.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::namespace::Namespace;
use super::table::{markdown, provenance};
use crate::started::{Started, only_child};
use crate::workspace;

const PROCESSES: u32 = 200;
const THREADS: u32 = 10_000;
const SOCKETS: u32 = 5_000;

/// Until the daemon is up and has identified every process: not measured.
const WARM_UP: Duration = Duration::from_secs(10);
const MEASURED: Duration = Duration::from_secs(60);
const QUICK: Duration = Duration::from_secs(15);

/// What one run cost.
struct Cost {
    cpu_percent: f64,
    rss_mib: f64,
    bytes_a_minute: f64,
}

/// Measures the daemon and returns the table.
pub(crate) fn measure(observer: &Path, quick: bool) -> Result<String> {
    let program = workspace::compile_c("xtask/bench/node.c", "bench")?;
    let arguments = [PROCESSES, THREADS, SOCKETS].map(|n| n.to_string());
    let mut node = Namespace::start(&program, &arguments)?;
    node.first.wait_until_ready(Duration::from_secs(120)).context("cannot make so many threads and sockets")?;
    let time = if quick { QUICK } else { MEASURED };
    let mut rows = Vec::new();
    for (name, receives, probes) in [
        ("receiver, no probes", true, "none"),
        ("receiver, probes", true, "auto"),
        ("dead receiver, no probes", false, "none"),
    ] {
        eprintln!("xtask: {name}");
        let Cost { cpu_percent, rss_mib, bytes_a_minute } = one(&node, observer, receives, probes, time)?;
        let sent = if receives { format!("{:.1} KiB", bytes_a_minute / 1024.0) } else { "–".to_owned() };
        rows.push(vec![name.to_owned(), format!("{cpu_percent:.2} %"), format!("{rss_mib:.1} MiB"), sent]);
    }
    let header = ["daemon with", "CPU (of one)", "resident memory at the end", "sent a minute"];
    let command = if quick { "cargo xtask bench daemon --quick" } else { "cargo xtask bench daemon" };
    let note = format!(
        "{THREADS} threads in {PROCESSES} processes, one in fifty awake ten times a second, {SOCKETS} TCP sockets; a census a second, metrics every \
         15 s over OTLP (HTTP, gzip). Each line over {} s, after {} s of warming up.",
        time.as_secs(),
        WARM_UP.as_secs()
    );
    Ok(format!("{}\n\n{}\n{note}", provenance(command)?, markdown(&header, &rows)))
}

fn one(node: &Namespace, observer: &Path, receives: bool, probes: &str, time: Duration) -> Result<Cost> {
    let receiver = Receiver::start()?;
    let endpoint = if receives { receiver.endpoint() } else { closed_port()? };
    let mut command = node.inside(observer);
    command.args(["daemon", "--listen", "none", "--probes", probes, "--otlp-endpoint", &endpoint]);
    command.args(["--otlp-protocol", "http/protobuf"]);
    let mut daemon = Started::start(&mut command)?;
    let pid = only_child(daemon.pid(), Duration::from_secs(10)).or_else(|error| daemon.still_runs().and(Err(error)))?;
    std::thread::sleep(WARM_UP);
    let (before, sent) = (cpu_seconds(pid)?, receiver.bytes());
    std::thread::sleep(time);
    let (after, sent) = (cpu_seconds(pid)?, receiver.bytes() - sent);
    let rss_mib = rss_kib(pid)? / 1024.0;
    daemon.still_runs()?;
    daemon.interrupt(pid, Duration::from_secs(60))?;
    ensure!(!receives || sent > 0, "the daemon sent nothing");
    let seconds = time.as_secs_f64();
    Ok(Cost { cpu_percent: (after - before) / seconds * 100.0, rss_mib, bytes_a_minute: sent as f64 / seconds * 60.0 })
}

/// An address that refuses connections.
fn closed_port() -> Result<String> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    Ok(format!("http://{address}"))
}

/// User and system time of a process, from `/proc/PID/stat`.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    // utime and stime are fields 14 and 15, the state behind the name is field 3.
    let ticks =
        |field: usize| fields.get(field - 3).and_then(|text| text.parse::<u64>().ok()).context("/proc/PID/stat");
    Ok((ticks(14)? + ticks(15)?) as f64 / 100.0)
}

fn rss_kib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Takes OTLP over HTTP, says that it is well, and counts bytes.
struct Receiver {
    address: std::net::SocketAddr,
    bytes: Arc<AtomicU64>,
}

impl Receiver {
    fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let bytes = Arc::new(AtomicU64::new(0));
        let counted = bytes.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let counted = counted.clone();
                std::thread::spawn(move || serve(stream, &counted));
            }
        });
        Ok(Self { address, bytes })
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}

/// Requests of one connection: head, as many bytes as it announces, an empty answer.
fn serve(mut stream: TcpStream, counted: &AtomicU64) -> Option<()> {
    let mut got: Vec<u8> = Vec::new();
    let mut block = [0; 16 * 1024];
    loop {
        let head = got.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
        let announced = head.and_then(|head| {
            let text = String::from_utf8_lossy(got.get(..head)?).to_ascii_lowercase();
            text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok())
        });
        if let Some(whole) = head.zip(announced).map(|(head, body)| head + body).filter(|whole| got.len() >= *whole) {
            got.drain(..whole);
            counted.fetch_add(whole as u64, Relaxed);
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n")
                .ok()?;
            continue;
        }
        match stream.read(&mut block).ok()? {
            0 => return None,
            n => got.extend_from_slice(block.get(..n)?),
        }
    }
}
