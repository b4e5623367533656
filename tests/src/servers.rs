//! Ordinary servers as Debian has them, each on a free port of loopback, with all its files in a directory of its own.

use crate::compile::installed;
use crate::deadline::wait_until;
use crate::guard::Guard;
use crate::postgres::free_port;
use crate::procfs::descendants;
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// How long a start may take on a busy machine.
const START: Duration = Duration::from_secs(30);

/// A running server. Dropping it ends it.
#[derive(Debug)]
pub struct Service {
    guard: Guard,
    /// Where it listens.
    pub address: SocketAddr,
    directory: TempDir,
}

/// The first of these programs that is not installed.
pub fn missing<'a>(programs: &[&'a str]) -> Option<&'a str> {
    let there = |name: &str| installed(name) || Path::new("/usr/sbin").join(name).is_file();
    programs.iter().copied().find(|name| !there(name))
}

impl Service {
    /// Starts what `command` makes of a directory and an address, and waits until it takes connections.
    fn start(command: impl FnOnce(&Path, SocketAddr) -> Result<Command>) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let address = free_port()?;
        let mut command = command(directory.path(), address)?;
        command.current_dir(directory.path()).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let log = directory.path().join("log");
        let guard = Guard::start(command, Stdio::from(File::create(&log)?))?;
        wait_until("a server to take connections", START, || Ok(TcpStream::connect(address).ok()))
            .with_context(|| std::fs::read_to_string(&log).unwrap_or_default())?;
        Ok(Self { guard, address, directory })
    }

    /// Its processes.
    pub fn pids(&self) -> Vec<i32> {
        let mut pids = vec![self.guard.pid()];
        pids.extend(descendants(self.guard.pid()).into_iter().map(|(pid, _)| pid));
        pids
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// nginx, which serves one page to keep-alive clients.
    pub fn nginx() -> Result<Self> {
        Self::start(|directory, address| {
            let place = directory.display();
            std::fs::write(directory.join("index.html"), "a page\n")?;
            let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                .map(|what| format!("{what}_temp_path {place}/{what};"))
                .concat();
            let settings = format!(
                "daemon off; user root; worker_processes 2; pid {place}/pid; error_log stderr; events {{}}\n\
                 http {{ access_log off; keepalive_timeout 600s; {temporary}\n\
                 server {{ listen {address}; root {place}; }} }}\n"
            );
            std::fs::write(directory.join("nginx.conf"), settings)?;
            let mut command = Command::new("/usr/sbin/nginx");
            command.arg("-c").arg(directory.join("nginx.conf")).args(["-e", "stderr"]).arg("-p").arg(directory);
            Ok(command)
        })
    }

    /// haproxy in front of another server.
    pub fn haproxy(behind: SocketAddr) -> Result<Self> {
        Self::start(|directory, address| {
            let settings = format!(
                "global\n maxconn 200\n\
                 defaults\n mode http\n timeout connect 5s\n timeout client 600s\n timeout server 600s\n\
                 timeout http-keep-alive 600s\n\
                 frontend front\n bind {address}\n default_backend back\n\
                 backend back\n server one {behind} check inter 500ms\n"
            );
            std::fs::write(directory.join("haproxy.cfg"), settings)?;
            let mut command = Command::new("haproxy");
            command.arg("-db").arg("-f").arg(directory.join("haproxy.cfg"));
            Ok(command)
        })
    }

    /// Redis without persistence.
    pub fn redis() -> Result<Self> {
        Self::start(|_, address| {
            let mut command = Command::new("redis-server");
            command.args(["--port", &address.port().to_string(), "--bind", "127.0.0.1", "--save", ""]);
            Ok(command)
        })
    }

    /// memcached.
    pub fn memcached() -> Result<Self> {
        Self::start(|_, address| {
            let mut command = Command::new("memcached");
            command.args(["-u", "nobody", "-l", "127.0.0.1", "-U", "0", "-p", &address.port().to_string()]);
            Ok(command)
        })
    }

    /// mosquitto.
    pub fn mosquitto() -> Result<Self> {
        Self::start(|directory, address| {
            let settings = format!("listener {} 127.0.0.1\nallow_anonymous true\nuser root\n", address.port());
            std::fs::write(directory.join("mosquitto.conf"), settings)?;
            let mut command = Command::new("mosquitto");
            command.arg("-c").arg(directory.join("mosquitto.conf"));
            Ok(command)
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Some clean up behind them. Errors mean that it is gone; whoever does not end is killed with its guard.
        let _ = self.guard.signal(Signal::SIGTERM);
        let _ = self.guard.ended(Duration::from_secs(5));
    }
}
