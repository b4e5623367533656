//! A daemon in the PID namespace of a victim, asked over HTTP.

use crate::deadline::wait_until;
use crate::observer::{Live, Observer};
use crate::procfs;
use crate::victim::Victim;
use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Loading and attaching takes seconds on a busy machine.
const START: Duration = Duration::from_secs(60);

/// What a server answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Header lines.
    pub head: String,
    /// Body.
    pub body: String,
}

/// Asks for a path, with more header lines (each ending in `\r\n`).
pub fn get(address: SocketAddr, path: &str, headers: &str) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).with_context(|| format!("{path} is not answered"))?;
    let text = String::from_utf8(bytes)?;
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no answer to {path}: {text:?}"))?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).context("a status")?;
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// The value of a series on a page, as it is written there; `None` if it is not on it.
pub fn value(page: &str, series: &str) -> Option<f64> {
    page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

/// A daemon that serves.
#[derive(Debug)]
pub struct Serving {
    /// The run.
    pub live: Live,
    /// Where it serves.
    pub address: SocketAddr,
}

impl Serving {
    /// Starts `observer daemon --threshold 1s` beside this victim, on a free port of loopback.
    pub fn start(victim: &mut Victim) -> Result<Self> {
        Self::start_as(Observer::inside(victim, &["daemon", "--threshold", "1s"])?, |_| Ok(()))
    }

    /// The same with a stdout of one page that nobody reads.
    pub fn start_unread(victim: &mut Victim) -> Result<Self> {
        Self::start_as(Observer::inside(victim, &["daemon", "--threshold", "1s"])?, |live| live.guard.shrink_stdout())
    }

    fn start_as(daemon: Observer, prepare: impl FnOnce(&Live) -> Result<()>) -> Result<Self> {
        let mut live =
            daemon.env("OBSERVER_LISTEN", "127.0.0.1:0").env("OBSERVER_LOG", "warn,observer::cli=info").start()?;
        prepare(&live)?;
        let address = wait_until("the daemon to say where it serves", START, || {
            let stderr = live.stderr()?;
            let said = stderr.lines().find_map(|line| line.split_once("serving http://")?.1.strip_suffix("/metrics"));
            Ok(said.map(str::to_owned))
        });
        match address {
            Ok(address) => Ok(Self { live, address: address.parse()? }),
            Err(error) => bail!("{error}; stderr: {}", live.stderr()?),
        }
    }

    /// The process itself, not what entered the namespace for it.
    pub fn pid(&self) -> Result<i32> {
        let (pid, _) = *procfs::descendants(self.live.guard.pid()).first().context("the daemon is gone")?;
        Ok(pid)
    }

    /// Asks for a path.
    pub fn get(&self, path: &str) -> Result<Answer> {
        get(self.address, path, "")
    }

    /// The page of metrics, once this series has a value for which `wanted` holds.
    pub fn page_with(&self, series: &str, wanted: impl Fn(f64) -> bool) -> Result<String> {
        let mut last = String::new();
        let page = wait_until(series, START, || {
            let answer = self.get("/metrics")?;
            last = answer.body;
            Ok((answer.status == 200 && value(&last, series).is_some_and(&wanted)).then(|| last.clone()))
        });
        page.with_context(|| format!("the last page: {last}"))
    }

    /// Waits until it is ready; the body of `/readyz`.
    pub fn ready(&self) -> Result<serde_json::Value> {
        wait_until("the daemon to be ready", START, || {
            let answer = self.get("/readyz")?;
            ensure!([200, 503].contains(&answer.status), "{answer:?}");
            Ok((answer.status == 200).then(|| serde_json::from_str(&answer.body)).transpose()?)
        })
    }

    /// So many more censuses than now.
    pub fn turns(&self, more: u64) -> Result<()> {
        let series = "observer_census_total";
        let now = value(&self.page_with(series, |_| true)?, series).context("censuses")?;
        self.page_with(series, |count| count >= now + more as f64).map(|_| ())
    }
}
