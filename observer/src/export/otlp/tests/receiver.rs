//! A receiver that answers as it is told, over real sockets: HTTP/1.1 and HTTP/2, in the clear or not.

use super::super::profile::tests::{Read as Blocked, read};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::profiles::v1development::ExportProfilesServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message as _;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio_rustls::rustls::ServerConfig;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic_types::{ErrorDetails, StatusExt as _};

/// What the receiver answers.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Taken,
    Partial(i64),
    Http(u16, &'static str),
    Grpc(tonic::Code, Option<Duration>),
    Hang,
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Got {
    pub(super) at: Instant,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    /// Whether the body was compressed.
    pub(super) gzip: bool,
    /// Bytes of the message.
    pub(super) bytes: usize,
    /// Ids of findings.
    pub(super) ids: Vec<String>,
    /// Points of metrics.
    pub(super) points: usize,
    /// Samples of profiles, read through their tables.
    pub(super) blocked: Vec<Blocked>,
}

#[derive(Default)]
pub(super) struct Log {
    pub(super) got: Mutex<Vec<Got>>,
    script: Mutex<VecDeque<Answer>>,
}

/// A running receiver.
pub(super) struct Receiver {
    pub(super) address: SocketAddr,
    pub(super) log: Arc<Log>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

type Acceptor = Option<Arc<ServerConfig>>;

impl Receiver {
    /// Answers by the script; everything after it is taken.
    pub(super) fn start(script: &[Answer]) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), script, None)
    }

    /// At this address, perhaps with TLS.
    pub(super) fn start_at(address: SocketAddr, script: &[Answer], tls: Acceptor) -> Self {
        let log = Arc::new(Log { script: Mutex::new(script.to_vec().into()), ..Log::default() });
        let listener = std::net::TcpListener::bind(address).expect("an address");
        listener.set_nonblocking(true).expect("no waiting");
        let address = listener.local_addr().expect("an address");
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn({
            let log = log.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.spawn(accept(listener, log, tls));
                let _ = runtime.block_on(stopped);
            }
        });
        Self { address, log, stop: Some(stop), thread: Some(thread) }
    }

    /// What arrived so far.
    pub(super) fn got(&self) -> Vec<Got> {
        self.log.got.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: std::net::TcpListener, log: Arc<Log>, tls: Acceptor) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    while let Ok((stream, _)) = listener.accept().await {
        let (log, tls) = (log.clone(), tls.clone());
        tokio::spawn(async move {
            match tls {
                None => serve(stream, log).await,
                Some(config) => {
                    if let Ok(stream) = tokio_rustls::TlsAcceptor::from(config).accept(stream).await {
                        serve(stream, log).await;
                    }
                }
            }
        });
    }
}

async fn serve(stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static, log: Arc<Log>) {
    let service = hyper::service::service_fn(move |request| answer(request, log.clone()));
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    // An error is a peer that went away.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(request: Request<Incoming>, log: Arc<Log>) -> Result<Response<tonic::body::Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let mut bytes = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let is_grpc = parts.uri.path().ends_with("Service/Export");
    let mut gzip = parts.headers.get("content-encoding").is_some_and(|value| value == "gzip");
    if is_grpc {
        gzip = bytes.first() == Some(&1);
        bytes = bytes.slice(5.min(bytes.len())..);
    }
    if gzip {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(bytes.as_ref()).read_to_end(&mut plain).expect("gzip");
        bytes = plain.into();
    }
    log.got.lock().unwrap_or_else(PoisonError::into_inner).push(got(&parts, gzip, &bytes));
    let answer = log.script.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let answer = answer.unwrap_or(Answer::Taken);
    Ok(match answer {
        Answer::Hang => std::future::pending().await,
        Answer::Taken => taken(is_grpc, gzip, ExportLogsServiceResponse::default()),
        Answer::Partial(rejected_log_records) => {
            let error_message = "too old".to_owned();
            let partial = ExportLogsPartialSuccess { rejected_log_records, error_message };
            taken(is_grpc, gzip, ExportLogsServiceResponse { partial_success: Some(partial) })
        }
        Answer::Http(status, retry_after) => {
            let mut response = Response::builder().status(status);
            if !retry_after.is_empty() {
                response = response.header("retry-after", retry_after);
            }
            response.body(tonic::body::Body::empty()).expect("a response")
        }
        Answer::Grpc(code, delay) => {
            let details = ErrorDetails::with_retry_info(delay);
            let status = if delay.is_some() {
                tonic::Status::with_error_details(code, "no", details)
            } else {
                tonic::Status::new(code, "no")
            };
            status.into_http()
        }
    })
}

/// As servers do, the answer is compressed if the request was.
fn taken(is_grpc: bool, gzip: bool, answer: ExportLogsServiceResponse) -> Response<tonic::body::Body> {
    let mut message = answer.encode_to_vec();
    if !is_grpc {
        return Response::new(tonic::body::Body::new(Full::from(message)));
    }
    let mut response = Response::builder().header("content-type", "application/grpc");
    if gzip {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&message).expect("memory");
        message = encoder.finish().expect("memory");
        response = response.header("grpc-encoding", "gzip");
    }
    let mut frame = vec![u8::from(gzip)];
    frame.extend(u32::try_from(message.len()).expect("short").to_be_bytes());
    frame.extend(message);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().expect("a header"));
    let body = Full::<Bytes>::from(frame).with_trailers(std::future::ready(Some(Ok(trailers))));
    response.body(tonic::body::Body::new(body)).expect("a response")
}

fn got(parts: &tonic::codegen::http::request::Parts, gzip: bool, bytes: &Bytes) -> Got {
    let path = parts.uri.path().to_owned();
    let mut got = Got {
        at: Instant::now(),
        headers: parts.headers.clone(),
        gzip,
        bytes: bytes.len(),
        ids: Vec::new(),
        points: 0,
        blocked: Vec::new(),
        path,
    };
    if got.path.contains("metrics") {
        let request = ExportMetricsServiceRequest::decode(bytes.clone()).expect("metrics");
        let scopes = request.resource_metrics.iter().flat_map(|metrics| &metrics.scope_metrics);
        got.points = scopes.map(|scope| scope.metrics.len()).sum();
        return got;
    }
    if got.path.contains("profiles") {
        let request = ExportProfilesServiceRequest::decode(bytes.clone()).expect("profiles");
        got.blocked = read(&request);
        return got;
    }
    let request = ExportLogsServiceRequest::decode(bytes.clone()).expect("logs");
    let scopes = request.resource_logs.iter().flat_map(|logs| &logs.scope_logs);
    for attribute in scopes.flat_map(|scope| &scope.log_records).flat_map(|record| &record.attributes) {
        if let ("observer.finding.id", Some(Value::StringValue(id))) =
            (attribute.key.as_str(), attribute.value.as_ref().and_then(|value| value.value.as_ref()))
        {
            got.ids.push(id.clone());
        }
    }
    got
}
