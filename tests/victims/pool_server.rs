//! An HTTP/1.1 server over tokio that asks PostgreSQL through a pool of deadpool: `pool_server MODE ADDRESS SIZE [SECONDS]`.
//! ADDRESS is where the database listens, SIZE how many connections the pool has.
//!
//! - `nested`: a request takes a second connection while it holds one, without a limit on the wait. As many requests
//!   at once as there are connections, and none is ever answered again.
//! - `timeout`: the same, but a wait for a connection ends after SECONDS: the request is answered with 503.
//! - `good`: a request takes one connection, for as long as its question takes.
//! - `longpoll`: a request asks the database once, gives the connection back, and is answered SECONDS later.
//! - `blocked`: a request reads a pipe that stays empty, with a mutex of std locked, in the middle of a task; the next ones
//!   wait for the mutex: soon no worker is left.

use std::error::Error;
use std::io::{PipeReader, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deadpool_postgres::{Manager, Pool, Runtime};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_postgres::NoTls;

type Failure = Box<dyn Error + Send + Sync>;

struct Server {
    mode: String,
    pool: Pool,
    seconds: u64,
    empty: Mutex<PipeReader>,
}

/// Takes 20 ms: requests that come at once meet.
async fn ask(client: &deadpool_postgres::Client) -> Result<i32, Failure> {
    Ok(client.query_one("select 1 from pg_sleep(0.02)", &[]).await?.get(0))
}

impl Server {
    async fn answer(&self) -> Result<i32, Failure> {
        match self.mode.as_str() {
            "nested" | "timeout" => {
                let first = self.pool.get().await?;
                let one = ask(&first).await?;
                let second = self.pool.get().await?;
                Ok(one + ask(&second).await?)
            }
            "longpoll" => {
                let one = ask(&self.pool.get().await?).await?;
                tokio::time::sleep(Duration::from_secs(self.seconds)).await;
                Ok(one)
            }
            "blocked" => {
                let mut empty = self.empty.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(i32::try_from(empty.read(&mut [0])?)?)
            }
            _ => ask(&self.pool.get().await?).await,
        }
    }

    /// One connection of a client: requests one after the other, as long as it likes.
    async fn serve(&self, mut stream: TcpStream) -> Result<(), Failure> {
        let (read, mut write) = stream.split();
        let mut lines = BufReader::new(read).lines();
        while let Some(line) = lines.next_line().await? {
            // A request has no body: it ends with an empty line.
            if !line.is_empty() {
                continue;
            }
            let (status, body) = match self.answer().await {
                Ok(sum) => ("200 OK", sum.to_string()),
                Err(error) => ("503 Service Unavailable", error.to_string()),
            };
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            write.write_all(answer.as_bytes()).await?;
        }
        Ok(())
    }
}

async fn run() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let mode = arguments.next().ok_or("a mode")?;
    let address = arguments.next().ok_or("an address")?;
    let (host, port) = address.rsplit_once(':').ok_or("HOST:PORT")?;
    let size = arguments.next().ok_or("a size")?.parse()?;
    let seconds = arguments.next().unwrap_or_default().parse().unwrap_or(0);

    let mut database = tokio_postgres::Config::new();
    database.host(host).port(port.parse()?).user("postgres").dbname("postgres");
    let pool = Pool::builder(Manager::new(database, NoTls)).max_size(size);
    let pool = match mode.as_str() {
        "timeout" => pool.runtime(Runtime::Tokio1).wait_timeout(Some(Duration::from_secs(seconds))),
        _ => pool,
    };
    let pool = pool.build()?;
    // All connections exist from the start on.
    let mut all = Vec::new();
    for _ in 0..size {
        let client = pool.get().await?;
        ask(&client).await?;
        all.push(client);
    }
    drop(all);

    // The writing end stays open as long as the program runs.
    let (empty, _writer) = std::io::pipe()?;
    let server = Arc::new(Server { mode, pool, seconds, empty: Mutex::new(empty) });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    writeln!(std::io::stdout(), "{}", listener.local_addr()?.port())?;
    loop {
        let (stream, _) = listener.accept().await?;
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            // A client that went away is no failure of the server.
            let _ = server.serve(stream).await;
        });
    }
}

fn main() -> Result<(), Failure> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(run())
}
