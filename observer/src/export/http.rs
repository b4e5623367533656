//! `/metrics`, `/healthz` and `/readyz`, for whoever scrapes and whoever restarts.
//!
//! On a thread of its own. `/metrics` serves the sample of the last turn: it is at most one census old, a scrape costs the loop
//! nothing, and one that comes while a census is stuck is answered all the same (`/healthz` then says so). Each connection
//! is for one request and has its time; when there are too many, the oldest ends: nobody who never reads or never asks
//! keeps the others from an answer.

use super::prometheus::{Format, page};
use super::{Item, Losses, Pulse, QueueStats, Sample, Sink, SinkStats, await_end};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

/// What clients may take.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Connections at the same time.
    connections: usize,
    /// Until the request is there.
    request: Duration,
    /// The whole connection.
    connection: Duration,
    /// Bytes of a request.
    bytes: usize,
}

const LIMITS: Limits =
    Limits { connections: 32, request: Duration::from_secs(5), connection: Duration::from_secs(10), bytes: 16 << 10 };

/// What is said where there is nothing.
const HINT: &str = "try /metrics, /healthz or /readyz\n";
const PLAIN: &str = "text/plain; charset=utf-8";

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address cannot be had.
    #[error("cannot serve /metrics on {address}: {source}; change the setting `listen`, or free the address")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The error.
        #[source]
        source: std::io::Error,
    },
    /// No thread, or no event loop.
    #[error("cannot start the server of /metrics: {0}")]
    Start(#[source] std::io::Error),
}

struct Shared {
    pulse: Arc<Pulse>,
    newest: Mutex<Option<Arc<Sample>>>,
    answered: AtomicU64,
    lost: Losses,
}

/// The server.
pub struct Http {
    shared: Arc<Shared>,
    address: SocketAddr,
    end: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

impl Http {
    /// Serves on this address; port 0 takes any free one.
    ///
    /// # Errors
    /// The address is in use or not ours; no thread can be started.
    pub fn start(address: SocketAddr, pulse: Arc<Pulse>) -> Result<Self, ListenError> {
        Self::start_with(address, pulse, LIMITS)
    }

    fn start_with(address: SocketAddr, pulse: Arc<Pulse>, limits: Limits) -> Result<Self, ListenError> {
        let listen = || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok((listener.local_addr()?, listener))
        };
        let (address, listener) = listen().map_err(|source| ListenError::Bind { address, source })?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(ListenError::Start)?;
        let shared =
            Arc::new(Shared { pulse, newest: Mutex::default(), answered: AtomicU64::new(0), lost: Losses::default() });
        let (end, ended) = oneshot::channel();
        let server = std::thread::Builder::new().name("observer-http".into()).spawn({
            let shared = shared.clone();
            move || {
                runtime.block_on(async move {
                    let serving = tokio::spawn(serve(listener, shared, limits));
                    // Whether told or left behind: the end.
                    let _ = ended.await;
                    serving.abort();
                });
                // Connections that are open end here.
                runtime.shutdown_background();
            }
        });
        Ok(Self { shared, address, end, server: server.map_err(ListenError::Start)? })
    }

    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Sink for Http {
    fn offer(&self, item: Item) {
        if let Item::Metrics(sample) = item {
            *self.shared.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(sample);
        }
    }

    fn wants_every_turn(&self) -> bool {
        true
    }

    fn stats(&self) -> SinkStats {
        let Shared { answered, lost, .. } = &*self.shared;
        let (queue, sent, lost) = (QueueStats::default(), answered.load(Relaxed), lost.so_far());
        SinkStats { name: "prometheus", queue, sent, lost }
    }

    fn close(self: Box<Self>, until: Instant) {
        let _ = self.end.send(());
        await_end(&self.server, until);
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>, limits: Limits) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            log::error!("/metrics is not served: {error}");
            return;
        }
    };
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                open.retain(|connection| !connection.is_finished());
                if open.len() >= limits.connections
                    && let Some(oldest) = open.pop_front()
                {
                    oldest.abort();
                    shared.lost.add("too many connections", 1);
                }
                open.push_back(tokio::spawn(converse(stream, shared.clone(), limits)).abort_handle());
            }
            // Out of descriptors: those in use end within their time.
            Err(error) => {
                shared.lost.add(&error.kind().to_string(), 1);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// One connection: a request and its answer.
async fn converse(stream: TcpStream, shared: Arc<Shared>, limits: Limits) {
    let has_metrics = AtomicBool::new(false);
    let service = service_fn(|request: Request<Incoming>| {
        let answer = answer(&shared, &request);
        has_metrics.store(request.uri().path() == "/metrics" && answer.status() == StatusCode::OK, Relaxed);
        async { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.request)
        .keep_alive(false)
        .half_close(true)
        .max_buf_size(limits.bytes)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(limits.connection, connection).await {
        Ok(Ok(())) if has_metrics.load(Relaxed) => {
            shared.answered.fetch_add(1, Relaxed);
        }
        Ok(Ok(())) => {}
        Ok(Err(error)) if error.is_timeout() => shared.lost.add("client too slow", 1),
        Ok(Err(error)) => {
            log::debug!("a client of /metrics: {error}");
            shared.lost.add("client failed", 1);
        }
        Err(_) => shared.lost.add("client too slow", 1),
    }
}

/// What is answered to a request.
fn answer(shared: &Shared, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut refusal = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".to_owned());
        refusal.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    match request.uri().path() {
        "/metrics" => {
            let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
            let format = Format::accepted(accept);
            let newest = shared.newest.lock().unwrap_or_else(PoisonError::into_inner).clone();
            match newest {
                Some(sample) => {
                    let page = page(&sample, env!("CARGO_PKG_VERSION"), format);
                    respond(StatusCode::OK, format.content_type(), page)
                }
                None => plain(StatusCode::SERVICE_UNAVAILABLE, "no census yet\n".to_owned()),
            }
        }
        "/healthz" => match shared.pulse.health(Instant::now()) {
            Ok(health) => plain(StatusCode::OK, health + "\n"),
            Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, why + "\n"),
        },
        "/readyz" => {
            let (ready, body) = shared.pulse.readiness();
            let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            respond(status, "application/json", format!("{body}\n"))
        }
        _ => plain(StatusCode::NOT_FOUND, HINT.to_owned()),
    }
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    respond(status, PLAIN, text)
}

fn respond(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
