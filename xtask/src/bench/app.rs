//! What an application pays: Redis and PostgreSQL on loopback, with the daemon and without it, in turns.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::companion::{Mode, Probes, Rung};
use super::namespace::Namespace;
use super::table::{markdown, median, provenance, spread};
use crate::invoke;
use crate::started::Started;

const READY_WITHIN: Duration = Duration::from_secs(30);

/// How long a daemon gets to know the processes, before it is measured: it runs for weeks.
const WARM_UP: Duration = Duration::from_secs(5);

/// What runs beside the application.
const BESIDE: [Mode; 4] =
    [Mode::Daemon(Probes::None), Mode::Daemon(Probes::Budget), Mode::Watch(Rung::TpBtf), Mode::Watch(Rung::Tracepoint)];

/// One application under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Load {
    /// `redis-benchmark`, 50 connections, one request at a time on each.
    RedisPlain,
    /// The same with 16 requests at a time.
    RedisPipeline,
    /// `pgbench -S` (reads only), 4 connections.
    Pgbench,
}

impl Load {
    fn name(self) -> &'static str {
        match self {
            Self::RedisPlain => "redis-benchmark, SET and GET",
            Self::RedisPipeline => "redis-benchmark, pipelines of 16",
            Self::Pgbench => "pgbench, reads only",
        }
    }
}

/// Requests a second of each load.
type Rates = BTreeMap<Load, f64>;

/// What was measured, one value a round and neighbour.
#[derive(Default)]
struct Samples {
    /// Requests a second with nobody watching.
    alone: BTreeMap<Load, Vec<f64>>,
    /// Throughput as a share of what it was just before and just after, alone.
    shares: BTreeMap<(Load, Mode), Vec<f64>>,
}

impl Samples {
    fn learn(&mut self, mode: Mode, beside: &Rates, before: &Rates, after: &Rates) {
        for (load, rate) in beside {
            let alone: Vec<f64> = [before, after].iter().filter_map(|rates| rates.get(load)).copied().collect();
            self.shares.entry((*load, mode)).or_default().extend(share(*rate, &alone));
            self.alone.entry(*load).or_default().extend(alone.last());
        }
    }
}

/// Measures and returns the table.
pub(crate) fn measure(observer: &Path, quick: bool) -> Result<String> {
    let (rounds, seconds) = if quick { (2, 2) } else { (8, 2) };
    // A network namespace with nothing but loopback, and a PID namespace: the daemon sees this and nothing else.
    let shell = "ip link set lo up && echo '{\"ready\":true}' && exec cat";
    let mut command = Command::new("unshare");
    command.args(["--net", "--pid", "--fork", "--mount-proc", "--kill-child", "--", "sh", "-c", shell]);
    let mut place = Namespace::of(&mut command)?;
    place.first.wait_until_ready(READY_WITHIN)?;
    let directory = tempfile::tempdir()?;
    let _redis = redis(&place)?;
    let postgres = postgres(&place, directory.path())?;
    let mut loads = vec![Load::RedisPlain, Load::RedisPipeline];
    if postgres.is_some() {
        loads.push(Load::Pgbench);
    }
    let mut samples = Samples::default();
    let mut requests: BTreeMap<Load, u64> = BTreeMap::new();
    for load in &loads {
        // How many requests fill the time, and everything warm.
        let rate = one(&place, *load, 20_000, 1)?;
        requests.insert(*load, (rate * f64::from(seconds)) as u64);
    }
    let all = |who: Option<Mode>| -> Result<Rates> {
        let heading = who.map_or("nobody watches", Mode::heading);
        let rate = |load: &Load| {
            let rate = one(&place, *load, requests.get(load).copied().unwrap_or(20_000), seconds);
            Ok((*load, rate.with_context(|| format!("{}, beside `{heading}`", load.name()))?))
        };
        loads.iter().map(rate).collect()
    };
    let mut before = all(None)?;
    for round in 0..rounds {
        eprintln!("xtask: round {} of {rounds}", round + 1);
        for turn in 0..BESIDE.len() {
            let Some(mode) = BESIDE.get((turn + round) % BESIDE.len()).copied() else { continue };
            let companion = mode.start(observer, &place)?;
            std::thread::sleep(WARM_UP);
            let beside = all(Some(mode))?;
            if let Some(companion) = companion {
                companion.stop().with_context(|| format!("cannot end `{}`", mode.heading()))?;
            }
            let after = all(None)?;
            samples.learn(mode, &beside, &before, &after);
            before = after;
        }
    }
    drop(postgres);
    let command = if quick { "cargo xtask bench app --quick" } else { "cargo xtask bench app" };
    Ok(format!(
        "{}\n\n{}\nMedians of {rounds} rounds, each about {seconds} s a load; nobody watching is in requests a second. The others are the median of \
         the ratios to the runs without observer just before and just after, ± half the distance between the quartiles. `observer watch` is without a budget here (`--cpu-budget off`). {}",
        provenance(command)?,
        table(&samples, &loads)?,
        if postgres_is_missing(&loads) { "PostgreSQL was not there." } else { "Server and client share the CPUs." }
    ))
}

fn postgres_is_missing(loads: &[Load]) -> bool {
    !loads.contains(&Load::Pgbench)
}

fn table(samples: &Samples, loads: &[Load]) -> Result<String> {
    let mut header = vec!["throughput", Mode::Off.heading()];
    header.extend(BESIDE.map(Mode::heading));
    let mut rows = Vec::new();
    for load in loads {
        let alone = samples.alone.get(load).map(Vec::as_slice).unwrap_or_default();
        let wide = spread(alone).unwrap_or(0.0) * 100.0;
        let mut row =
            vec![load.name().to_owned(), format!("{:.0} (±{wide:.1} %)", median(alone).context("no sample")?)];
        for mode in BESIDE {
            let shares = samples.shares.get(&(*load, mode)).map(Vec::as_slice).unwrap_or_default();
            let middle = median(shares).with_context(|| format!("no sample beside `{}`", mode.heading()))?;
            let wide = spread(shares).unwrap_or(0.0) * 100.0;
            row.push(format!("{:.1} % (±{wide:.1} %)", middle * 100.0));
        }
        rows.push(row);
    }
    Ok(markdown(&header, &rows))
}

/// A rate as a share of the mean of those around it.
fn share(rate: f64, around: &[f64]) -> Option<f64> {
    let mean = around.iter().sum::<f64>() / around.len() as f64;
    (mean > 0.0).then(|| rate / mean)
}

/// Requests a second of one run.
fn one(place: &Namespace, load: Load, requests: u64, seconds: u32) -> Result<f64> {
    match load {
        Load::RedisPlain | Load::RedisPipeline => {
            let mut command = place.inside(Path::new("redis-benchmark"));
            command.args(["-t", "set,get", "-c", "50", "-n", &(requests / 2).max(1000).to_string(), "--csv"]);
            if load == Load::RedisPipeline {
                command.args(["-P", "16"]);
            }
            redis_rate(&invoke::capture(&mut command)?)
        }
        Load::Pgbench => {
            let mut command = place.inside(Path::new("setpriv"));
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "pgbench"]);
            command.args(["-h", "127.0.0.1", "-p", PORT, "-S", "-n", "-c", "4", "-j", "2", "-T", &seconds.to_string()]);
            pgbench_rate(&invoke::capture(command.arg("postgres"))?)
        }
    }
}

/// The harmonic mean of `"SET","12345.67",…` and `"GET",…`: as many of each were asked.
fn redis_rate(csv: &str) -> Result<f64> {
    let rate = |name: &str| {
        let line = csv.lines().find(|line| line.starts_with(&format!("\"{name}\"")));
        let rate = line.and_then(|line| line.split(',').nth(1)?.trim_matches('"').parse::<f64>().ok());
        rate.with_context(|| format!("redis-benchmark printed no {name}: {csv}"))
    };
    let (set, get) = (rate("SET")?, rate("GET")?);
    ensure!(set > 0.0 && get > 0.0, "redis-benchmark measured nothing: {csv}");
    Ok(2.0 / (1.0 / set + 1.0 / get))
}

/// `tps = 12345.67 (without initial connection time)`.
fn pgbench_rate(text: &str) -> Result<f64> {
    let rate = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    rate.with_context(|| format!("pgbench printed no tps: {text}"))
}

fn redis(place: &Namespace) -> Result<Started> {
    let mut command = place.inside(Path::new("redis-server"));
    command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--io-threads", "1"]);
    let mut server = Started::start(&mut command)?;
    server.wait_for("Redis", READY_WITHIN, |line| line.contains("Ready to accept connections").then_some(()))?;
    Ok(server)
}

const PORT: &str = "54329";

/// A PostgreSQL with a filled table; `None`, said aloud, where it is not installed.
fn postgres(place: &Namespace, directory: &Path) -> Result<Option<Started>> {
    let Some(programs) = postgres_programs() else {
        eprintln!("xtask: no PostgreSQL here (apt-get install postgresql): its line is left out");
        return Ok(None);
    };
    let data = directory.join("data");
    std::fs::create_dir(&data)?;
    invoke::run(Command::new("chown").arg("-R").arg("postgres").arg(directory))?;
    let as_postgres = |program: &Path| {
        let mut command = place.inside(Path::new("setpriv"));
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
        command
    };
    invoke::capture(as_postgres(&programs.join("initdb")).args(["--auth=trust", "--no-sync", "-D"]).arg(&data))?;
    let mut command = as_postgres(&programs.join("postgres"));
    command.arg("-D").arg(&data).args(["-p", PORT, "-h", "127.0.0.1", "-c", "fsync=off"]);
    command.arg("-k").arg(directory);
    let server = Started::start(&mut command)?;
    let until = Instant::now() + READY_WITHIN;
    let fill = ["-h", "127.0.0.1", "-p", PORT, "-i", "-q", "-s", "5", "postgres"];
    loop {
        if invoke::succeeds(as_postgres(Path::new("pgbench")).args(fill)) {
            return Ok(Some(server));
        }
        if Instant::now() > until {
            bail!("PostgreSQL in {} did not come up within {READY_WITHIN:?}", data.display());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Where Debian keeps `initdb` and `postgres`: the newest version.
fn postgres_programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let programs = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    programs.filter(|path| path.join("initdb").is_file() && path.join("postgres").is_file()).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read() -> Result<()> {
        let csv = "\"test\",\"rps\",\"avg_latency_ms\"\n\"SET\",\"100.0\",\"0.2\"\n\"GET\",\"300.0\",\"0.2\"\n";
        assert!((redis_rate(csv)? - 150.0).abs() < 1e-9);
        assert!(redis_rate("\"SET\",\"1\"\n").is_err() && redis_rate("").is_err());
        assert!((pgbench_rate("latency = 1\ntps = 12.5 (without initial connection time)\n")? - 12.5).abs() < 1e-9);
        assert!(pgbench_rate("nothing").is_err());
        Ok(())
    }

    #[test]
    fn a_drift_cancels_out() {
        assert_eq!(share(100.0, &[90.0, 110.0]), Some(1.0));
        assert_eq!(share(50.0, &[100.0, 100.0]), Some(0.5));
        assert_eq!((share(50.0, &[0.0]), share(50.0, &[])), (None, None));
    }
}
