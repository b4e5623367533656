//! Clients of a web server under test, who know which of their requests were answered.

use crate::deadline::wait_for_age;
use anyhow::{Context, Result, bail, ensure};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// One keep-alive connection.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    /// Bytes of an answer that is not complete yet.
    unread: Vec<u8>,
    /// When the request that is not answered was sent.
    pub asked: Option<Instant>,
    answered: Option<Instant>,
}

/// The kernel notes in ticks of up to 10 ms when data came and went: who asks sooner after an answer cannot be told, from outside, from
/// one who was answered in the same tick.
const TICKS: Duration = Duration::from_millis(30);

impl Client {
    /// Connects.
    pub fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, unread: Vec::new(), asked: None, answered: None })
    }

    /// So many of them.
    pub fn several(address: SocketAddr, count: usize) -> Result<Vec<Self>> {
        (0..count).map(|_| Self::connect(address)).collect()
    }

    /// Its own address.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.stream.local_addr()?)
    }

    /// Sends a request, some ticks of the kernel's clock after the last answer.
    pub fn ask(&mut self) -> Result<()> {
        if let Some(answered) = self.answered {
            wait_for_age(answered, TICKS)?;
        }
        self.stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")?;
        self.asked = Some(Instant::now());
        Ok(())
    }

    /// The status of the answer, when it is complete by then; `None` if it is not.
    pub fn answer(&mut self, limit: Duration) -> Result<Option<u16>> {
        let until = Instant::now() + limit;
        loop {
            if let Some((status, length)) = complete(&self.unread)? {
                self.unread.drain(..length);
                (self.asked, self.answered) = (None, Some(Instant::now()));
                return Ok(Some(status));
            }
            let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(left))?;
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => bail!("the server closed the connection"),
                Ok(count) => self.unread.extend_from_slice(&buffer[..count]),
                Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends a request, and is answered with 200.
    pub fn served(&mut self) -> Result<()> {
        self.ask()?;
        let status = self.answer(Duration::from_secs(20))?;
        ensure!(status == Some(200), "answered with {status:?}");
        Ok(())
    }
}

/// Status and length of the answer at the beginning of these bytes, if all of it is there.
fn complete(bytes: &[u8]) -> Result<Option<(u16, usize)>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end])?;
    let status = head.split(' ').nth(1).context("a status")?.parse()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>())
    });
    let whole = end + 4 + length.context("a length")??;
    Ok((bytes.len() >= whole).then_some((status, whole)))
}

/// How many of these requests are not answered, when none of them is for `quiet`.
pub fn unanswered(clients: &mut [Client], quiet: Duration) -> Result<usize> {
    let mut left = 0;
    let until = Instant::now() + quiet;
    for client in clients.iter_mut().filter(|client| client.asked.is_some()) {
        let limit = until.saturating_duration_since(Instant::now());
        left += usize::from(client.answer(limit)?.is_none());
    }
    Ok(left)
}
