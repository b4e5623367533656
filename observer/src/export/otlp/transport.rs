//! One request on its way to the receiver: gRPC or HTTP, in the clear or not.

use super::retry::{self, Outcome};
use super::tls;
use crate::settings::{Otlp, OtlpSignal, Protocol};
use http_body_util::BodyExt as _;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse, logs_service_client::LogsServiceClient,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse, metrics_service_client::MetricsServiceClient,
};
use opentelemetry_proto::tonic::collector::profiles::v1development::{
    ExportProfilesServiceRequest, ExportProfilesServiceResponse, profiles_service_client::ProfilesServiceClient,
};
use prost::Message as _;
use std::error::Error as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::codegen::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use tonic::codegen::http::{self, Uri};
use tonic_types::StatusExt as _;

/// Bytes of an answer that are read.
const LONGEST_ANSWER: usize = 64 * 1024;
/// Characters of a receiver's message that are told.
const LONGEST_MESSAGE: usize = 200;

/// Why OTLP cannot be spoken at all.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The endpoint.
    #[error("OTLP endpoint `{endpoint}` is no URL of the form http://host:port or https://host:port")]
    Endpoint {
        /// As given.
        endpoint: String,
    },
    /// A header. Its value may be a secret.
    #[error("OTLP header `{name}` cannot be sent")]
    Header {
        /// Its name.
        name: String,
    },
    /// A certificate or key.
    #[error("cannot use {path}: {problem}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A certificate without its key, or the other way round.
    #[error(
        "OTLP: a client certificate and its key belong together, and one of them is missing: set otlp-cert-file and otlp-key-file"
    )]
    HalfAnIdentity,
    /// Nobody to trust.
    #[error(
        "OTLP: this system has no certificates of authorities ({problem}): name a file with those of the receiver: otlp-ca-file"
    )]
    NoRoots {
        /// What is wrong.
        problem: String,
    },
    /// The standard variables have no endpoint of their own for profiles.
    #[error("OTLP: profiles need an endpoint for all signals: set otlp-endpoint, or leave otlp-profiles out")]
    NoPlaceForProfiles,
    /// TLS.
    #[error("OTLP: {0}")]
    Tls(#[from] rustls::Error),
    /// The worker.
    #[error("OTLP: cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// What is sent.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Request {
    /// Findings.
    Logs(ExportLogsServiceRequest),
    /// Points.
    Metrics(ExportMetricsServiceRequest),
    /// Blocked stacks.
    Profiles(ExportProfilesServiceRequest),
}

impl Request {
    /// Bytes, before compression: what a receiver's limit is about.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Logs(request) => request.encoded_len(),
            Self::Metrics(request) => request.encoded_len(),
            Self::Profiles(request) => request.encoded_len(),
        }
    }

    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Logs(request) => request.encode_to_vec(),
            Self::Metrics(request) => request.encode_to_vec(),
            Self::Profiles(request) => request.encode_to_vec(),
        }
    }
}

/// Which of the signals a transport is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// Findings.
    Events,
    /// Metrics.
    Metrics,
    /// Blocked stacks.
    Profiles,
}

impl Signal {
    /// Where it goes below a base URL.
    fn path(self) -> &'static str {
        match self {
            Self::Events => "v1/logs",
            Self::Metrics => "v1/metrics",
            Self::Profiles => "v1development/profiles",
        }
    }
}

type Connection = Client<HttpsConnector<HttpConnector>, tonic::body::Body>;

/// A way to one receiver. Connections are made when they are needed.
#[derive(Clone, Debug)]
pub(super) struct Transport {
    client: Connection,
    connector: HttpsConnector<HttpConnector>,
    protocol: Protocol,
    uri: Uri,
    headers: HeaderMap,
    gzip: bool,
    /// Longest time one request may take.
    pub(super) timeout: Duration,
}

impl Transport {
    /// A way for this signal. Reads certificates; connects to nothing.
    pub(super) fn new(otlp: &Otlp, signal: Signal) -> Result<Self, SetupError> {
        let as_others = OtlpSignal::default();
        let own = match signal {
            Signal::Events => &otlp.for_events,
            Signal::Metrics => &otlp.for_metrics,
            Signal::Profiles if otlp.endpoint.is_empty() => return Err(SetupError::NoPlaceForProfiles),
            Signal::Profiles => &as_others,
        };
        let protocol = own.protocol.unwrap_or(otlp.protocol);
        let uri = uri(otlp, own, protocol, signal)?;
        let timeout = own.timeout.unwrap_or(otlp.timeout);
        let connector = connector(otlp, own, protocol, &uri, timeout)?;
        Ok(Self {
            client: client(connector.clone(), protocol),
            connector,
            protocol,
            uri,
            headers: headers(own.headers.as_ref().unwrap_or(&otlp.headers))?,
            gzip: own.gzip.unwrap_or(otlp.gzip),
            timeout,
        })
    }

    /// Sends once, within `timeout`.
    pub(super) async fn send(&mut self, request: &Request, timeout: Duration) -> Outcome {
        let sent = async {
            match self.protocol {
                Protocol::Grpc => self.grpc(request, timeout).await,
                Protocol::HttpProtobuf => self.http(request).await,
            }
        };
        if let Ok(outcome) = tokio::time::timeout(timeout, sent).await {
            return outcome;
        }
        // The peer may have gone without a word: the next request gets a connection of its own.
        self.client = client(self.connector.clone(), self.protocol);
        Outcome::Again { after: None, why: format!("no answer within {timeout:?}") }
    }

    async fn grpc(&self, request: &Request, timeout: Duration) -> Outcome {
        // Without `accept_compressed` a compressed answer is an error after the receiver has stored the data: it would be sent twice.
        macro_rules! export {
            ($client:ident, $request:expr) => {{
                let mut client = $client::with_origin(self.client.clone(), self.uri.clone()).accept_compressed(Gzip);
                if self.gzip {
                    client = client.send_compressed(Gzip);
                }
                let mut request = tonic::Request::new($request.clone());
                *request.metadata_mut() = tonic::metadata::MetadataMap::from_headers(self.headers.clone());
                request.set_timeout(timeout);
                client.export(request).await.map(tonic::Response::into_inner)
            }};
        }
        let taken = match request {
            Request::Logs(request) => export!(LogsServiceClient, request).map(|answer| of_logs(&answer)),
            Request::Metrics(request) => export!(MetricsServiceClient, request).map(|answer| of_metrics(&answer)),
            Request::Profiles(request) => export!(ProfilesServiceClient, request).map(|answer| of_profiles(&answer)),
        };
        taken.unwrap_or_else(|status| of_status(&status))
    }

    async fn http(&self, request: &Request) -> Outcome {
        let mut body = request.encode();
        if self.gzip {
            body = match compress(&body) {
                Ok(body) => body,
                Err(error) => return refused("compression", &error.to_string()),
            };
        }
        let mut posted = http::Request::post(self.uri.clone());
        if let Some(headers) = posted.headers_mut() {
            headers.extend(self.headers.clone());
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
            if self.gzip {
                headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            }
        }
        let Ok(posted) = posted.body(tonic::body::Body::new(http_body_util::Full::from(body))) else {
            return refused("request", "headers and URL make no request");
        };
        let answer = match self.client.request(posted).await {
            Ok(answer) => answer,
            Err(error) => return again(&error),
        };
        let status = answer.status();
        let retry_after =
            answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let body = http_body_util::Limited::new(answer.into_body(), LONGEST_ANSWER).collect().await;
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        if !status.is_success() {
            let message = tonic_types::pb::Status::decode(body).map(|status| status.message).unwrap_or_default();
            return retry::of_http(status.as_u16(), retry_after.as_deref(), jiff::Timestamp::now(), told(&message));
        }
        // An answer that cannot be read does not make what was taken untaken.
        match request {
            Request::Logs(_) => of_logs(&ExportLogsServiceResponse::decode(body).unwrap_or_default()),
            Request::Metrics(_) => of_metrics(&ExportMetricsServiceResponse::decode(body).unwrap_or_default()),
            Request::Profiles(_) => of_profiles(&ExportProfilesServiceResponse::decode(body).unwrap_or_default()),
        }
    }
}

const USER_AGENT: &str = concat!("observer/", env!("CARGO_PKG_VERSION"));

fn uri(otlp: &Otlp, own: &OtlpSignal, protocol: Protocol, signal: Signal) -> Result<Uri, SetupError> {
    let endpoint = own.endpoint.as_ref().unwrap_or(&otlp.endpoint);
    let bad = || SetupError::Endpoint { endpoint: endpoint.clone() };
    let base = endpoint.trim_end_matches('/');
    let text = match protocol {
        // The base alone gets a path; what is given for one signal is whole.
        Protocol::HttpProtobuf if own.endpoint.is_none() => format!("{base}/{}", signal.path()),
        Protocol::HttpProtobuf => endpoint.clone(),
        Protocol::Grpc => base.to_owned(),
    };
    let uri: Uri = text.parse().map_err(|_| bad())?;
    let has_scheme = matches!(uri.scheme_str(), Some("http" | "https"));
    if has_scheme && uri.host().is_some_and(|host| !host.is_empty()) { Ok(uri) } else { Err(bad()) }
}

fn headers(list: &[(String, String)]) -> Result<HeaderMap, SetupError> {
    let mut headers = HeaderMap::new();
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    for (name, value) in list {
        let bad = || SetupError::Header { name: name.clone() };
        let key = HeaderName::try_from(name.as_str()).map_err(|_| bad())?;
        let mut value = HeaderValue::try_from(value.as_str()).map_err(|_| bad())?;
        value.set_sensitive(true);
        headers.insert(key, value);
    }
    Ok(headers)
}

fn connector(
    otlp: &Otlp,
    own: &OtlpSignal,
    protocol: Protocol,
    uri: &Uri,
    timeout: Duration,
) -> Result<HttpsConnector<HttpConnector>, SetupError> {
    let mut plain = HttpConnector::new();
    plain.enforce_http(false);
    plain.set_nodelay(true);
    plain.set_connect_timeout(Some(timeout));
    let config = if uri.scheme_str() == Some("https") {
        tls::config(
            own.ca_file.as_deref().or(otlp.ca_file.as_deref()),
            own.cert_file.as_deref().or(otlp.cert_file.as_deref()),
            own.key_file.as_deref().or(otlp.key_file.as_deref()),
        )?
    } else {
        tls::unused()?
    };
    let builder = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(config).https_or_http();
    Ok(match protocol {
        Protocol::Grpc => builder.enable_http2().wrap_connector(plain),
        Protocol::HttpProtobuf => builder.enable_http1().wrap_connector(plain),
    })
}

fn client(connector: HttpsConnector<HttpConnector>, protocol: Protocol) -> Connection {
    // No pings: the usual limits of gRPC servers answer them with GOAWAY.
    let mut client = Client::builder(TokioExecutor::new());
    client.timer(TokioTimer::new()).pool_timer(TokioTimer::new()).pool_max_idle_per_host(1);
    client.http2_only(protocol == Protocol::Grpc).build(connector)
}

fn compress(body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(body)?;
    encoder.finish()
}

fn of_logs(answer: &ExportLogsServiceResponse) -> Outcome {
    let partial = answer.partial_success.as_ref();
    taken(partial.map(|partial| (partial.rejected_log_records, partial.error_message.as_str())))
}

fn of_metrics(answer: &ExportMetricsServiceResponse) -> Outcome {
    let partial = answer.partial_success.as_ref();
    taken(partial.map(|partial| (partial.rejected_data_points, partial.error_message.as_str())))
}

fn of_profiles(answer: &ExportProfilesServiceResponse) -> Outcome {
    let partial = answer.partial_success.as_ref();
    taken(partial.map(|partial| (partial.rejected_profiles, partial.error_message.as_str())))
}

fn taken(partial: Option<(i64, &str)>) -> Outcome {
    let (rejected, message) = partial.unwrap_or_default();
    Outcome::Taken { rejected: u64::try_from(rejected).unwrap_or(0), message: told(message) }
}

fn of_status(status: &tonic::Status) -> Outcome {
    if let Some(error) = status.source() {
        // The receiver said nothing: it is the way that failed.
        return again(error);
    }
    let retry_info = status.get_details_retry_info().and_then(|info| info.retry_delay);
    retry::of_grpc(status.code(), retry_info, told(status.message()))
}

fn again(error: &(dyn std::error::Error + 'static)) -> Outcome {
    // The last of the chain says it: `Connection refused`, `unknown certificate`.
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    let texts: Vec<String> = causes.map(ToString::to_string).collect();
    Outcome::Again { after: None, why: told(&texts.join(": ")) }
}

fn refused(reason: &str, message: &str) -> Outcome {
    Outcome::Refused { reason: reason.to_owned(), message: told(message) }
}

/// What somebody else says, fit for a log.
fn told(message: &str) -> String {
    message.chars().take(LONGEST_MESSAGE).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri_of(endpoint: &str, own: Option<&str>, protocol: Protocol, signal: Signal) -> String {
        let own = OtlpSignal { endpoint: own.map(str::to_owned), ..OtlpSignal::default() };
        uri(&Otlp::to(endpoint), &own, protocol, signal).map_or_else(|error| error.to_string(), |uri| uri.to_string())
    }

    #[test]
    fn a_base_gets_a_path_and_a_whole_url_does_not() {
        let http = |endpoint, own, signal| uri_of(endpoint, own, Protocol::HttpProtobuf, signal);
        assert_eq!(http("http://c:4318", None, Signal::Events), "http://c:4318/v1/logs");
        assert_eq!(http("https://c/otlp/", None, Signal::Metrics), "https://c/otlp/v1/metrics");
        assert_eq!(http("http://c:4318/", None, Signal::Profiles), "http://c:4318/v1development/profiles");
        assert_eq!(http("http://c:4318", Some("http://d/x"), Signal::Events), "http://d/x");
        assert_eq!(http("http://c:4318", Some("http://d"), Signal::Events), "http://d/");
        assert_eq!(uri_of("http://c:4317/", None, Protocol::Grpc, Signal::Events), "http://c:4317/");
        for bad in ["c:4317", "ftp://c", "http://", "http:///x", "", "http://a b"] {
            assert!(uri_of(bad, None, Protocol::Grpc, Signal::Events).starts_with("OTLP endpoint `"), "{bad}");
        }
    }

    #[test]
    fn what_cannot_work_is_said_at_the_start_and_keeps_secrets() {
        let mut otlp = Otlp::to("https://c:4317");
        otlp.headers = vec![("good".to_owned(), "bad\nhunter2".to_owned())];
        let says = |otlp: &Otlp| {
            Transport::new(otlp, Signal::Events).map_or_else(|error| error.to_string(), |_| "taken".into())
        };
        assert!(says(&otlp).contains("`good`") && !says(&otlp).contains("hunter2"), "{}", says(&otlp));
        otlp.headers.clear();
        let without = Transport::new(&Otlp::to(""), Signal::Profiles);
        assert!(matches!(without, Err(SetupError::NoPlaceForProfiles)));
        otlp.ca_file = Some("/nowhere.pem".into());
        assert!(says(&otlp).starts_with("cannot use /nowhere.pem: "), "{}", says(&otlp));
        otlp.ca_file = None;
        otlp.cert_file = Some("/nowhere.pem".into());
        assert!(says(&otlp).contains("belong together"), "{}", says(&otlp));
    }

    #[test]
    fn what_others_say_is_short_and_has_no_control_characters() {
        assert_eq!(told("a\n\x1b[31mb"), "a  [31mb");
        assert_eq!(told(&"x".repeat(5000)).len(), LONGEST_MESSAGE);
    }
}
