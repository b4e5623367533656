//! A PostgreSQL server of a test's own: its data in a temporary directory, its port a free one of loopback.

use crate::compile::{find, run};
use crate::deadline::wait_until;
use crate::guard::Guard;
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// It refuses to run as root.
const NOBODY: u32 = 65534;

/// How long the start of a server may take on a busy machine.
const START: Duration = Duration::from_secs(60);

/// A port of loopback that was free a moment ago.
pub fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// One of PostgreSQL's own programs: Debian keeps the server's out of PATH.
pub fn program(name: &str) -> Result<PathBuf> {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path().join("bin").join(name))).collect())
        .unwrap_or_default();
    versions.retain(|file| file.is_file());
    versions.sort();
    versions.pop().map_or_else(|| find(name), Ok)
}

/// A running server. Dropping it ends it, and its data are gone.
#[derive(Debug)]
pub struct Postgres {
    guard: Guard,
    /// Where it listens. User and database are `postgres`, nobody asks for a password.
    pub address: SocketAddr,
    data: TempDir,
}

impl Postgres {
    /// Starts one, and waits until it takes connections.
    pub fn start() -> Result<Self> {
        let data = tempfile::tempdir()?;
        std::os::unix::fs::chown(data.path(), Some(NOBODY), Some(NOBODY))?;
        let cluster = data.path().join("cluster");
        let mut init = Command::new(program("initdb")?);
        init.args(["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--pgdata"]);
        run(init.arg(&cluster).current_dir("/").uid(NOBODY).gid(NOBODY))?;

        let address = free_port()?;
        let mut server = Command::new(program("postgres")?);
        server.arg("-D").arg(&cluster).current_dir("/").uid(NOBODY).gid(NOBODY);
        for setting in ["fsync=off", "listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=64"] {
            server.args(["-c", setting]);
        }
        server.args(["-c", &format!("port={}", address.port())]);
        let log = data.path().join("log");
        let guard = Guard::start(server, Stdio::from(File::create(&log)?))?;
        let this = Self { guard, address, data };
        wait_until("PostgreSQL to take connections", START, || {
            let mut ready = this.client("pg_isready")?;
            Ok(ready.arg("--quiet").status()?.success().then_some(()))
        })
        .with_context(|| std::fs::read_to_string(&log).unwrap_or_default())?;
        Ok(this)
    }

    /// The postmaster.
    pub fn pid(&self) -> i32 {
        self.guard.pid()
    }

    /// Its data directory's parent: a place for a test's own files.
    pub fn directory(&self) -> PathBuf {
        self.data.path().to_owned()
    }

    /// One of its client programs, told whom to connect to.
    pub fn client(&self, name: &str) -> Result<Command> {
        let mut command = Command::new(program(name)?);
        command.env("PGHOST", self.address.ip().to_string()).env("PGPORT", self.address.port().to_string());
        command.env("PGUSER", "postgres").env("PGDATABASE", "postgres").env("PGCONNECT_TIMEOUT", "10");
        Ok(command)
    }

    /// What a statement answers, without decoration.
    pub fn ask(&self, statement: &str) -> Result<String> {
        let mut psql = self.client("psql")?;
        let output = psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement]).output()?;
        anyhow::ensure!(output.status.success(), "{statement}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// A session that stays: statements go to its stdin, answers come line by line.
    pub fn session(&self) -> Result<Guard> {
        let mut psql = self.client("psql")?;
        psql.args(["-X", "-q", "-A", "-t"]);
        Guard::start(psql, Stdio::inherit())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // A killed postmaster leaves its System V memory behind. Errors mean that it is gone.
        let _ = self.guard.signal(Signal::SIGQUIT);
        let _ = self.guard.ended(Duration::from_secs(10));
    }
}
