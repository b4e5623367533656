//! The sink against receivers that answer as they are told, over real sockets.

mod profiles;
mod receiver;

use super::fixtures::{entity, event, point, sample};
use super::*;
use crate::export::signals::CENSUSES;
use crate::export::{Life, Value};
use crate::settings::{Otlp as To, Protocol};
use receiver::{Answer, Got, Receiver};
use std::net::SocketAddr;
use tonic::Code;

/// Everything here takes seconds at most.
const SOON: Duration = Duration::from_secs(20);
const BOTH: [Protocol; 2] = [Protocol::Grpc, Protocol::HttpProtobuf];

fn to(address: SocketAddr, protocol: Protocol) -> To {
    let timeout = Duration::from_secs(2);
    To { protocol, timeout, metrics: false, ..To::to(format!("http://{address}")) }
}

fn start(otlp: To) -> Box<Otlp> {
    let settings = Settings { otlp: Some(otlp), ..Settings::default() };
    Box::new(Otlp::start(&settings).expect("settings that work").expect("a receiver"))
}

fn offer(sink: &Otlp, ids: std::ops::Range<usize>) {
    ids.for_each(|id| sink.offer(Item::Finding(event(id, Life::Opened, entity(42), "stack"))));
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < end, "in vain: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn lost(sink: &Otlp) -> Vec<(String, u64)> {
    sink.stats().lost.into_iter().collect()
}

fn ids(got: &[Got]) -> Vec<String> {
    got.iter().flat_map(|got| got.ids.clone()).collect()
}

fn named(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|id| format!("id-{id}")).collect()
}

#[test]
fn both_protocols_with_and_without_gzip() {
    for (protocol, gzip) in BOTH.into_iter().flat_map(|protocol| [(protocol, true), (protocol, false)]) {
        let receiver = Receiver::start(&[]);
        let mut otlp = to(receiver.address, protocol);
        otlp.gzip = gzip;
        otlp.metrics = true;
        otlp.headers = vec![("Authorization".to_owned(), "Bearer x y".to_owned())];
        let sink = start(otlp);
        offer(&sink, 0..3);
        let points = vec![point(&CENSUSES, None, &[], Value::Count(1))];
        sink.offer(Item::Metrics(Arc::new(sample(points))));
        until("three findings and a point", || sink.stats().sent == 4);
        let mut got = receiver.got();
        got.sort_by_key(|got| got.points);
        let [logs, metrics] = got.as_slice() else { panic!("{got:?}") };
        assert_eq!((logs.ids.clone(), metrics.points), (named(0..3), 1), "in one request, in order");
        let paths = match protocol {
            Protocol::HttpProtobuf => ("/v1/logs", "/v1/metrics"),
            Protocol::Grpc => (
                "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
                "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
            ),
        };
        assert_eq!((logs.path.as_str(), metrics.path.as_str()), paths);
        for got in &got {
            assert_eq!(got.gzip, gzip);
            assert_eq!(got.headers.get("authorization").and_then(|value| value.to_str().ok()), Some("Bearer x y"));
            let agent = got.headers.get("user-agent").and_then(|value| value.to_str().ok());
            assert!(agent.is_some_and(|agent| agent.starts_with("observer/")), "{agent:?}");
        }
        assert_eq!((lost(&sink), sink.stats().queue.length), (Vec::new(), 0));
    }
}

#[test]
fn what_may_be_sent_again_is() {
    let second = Some(Duration::from_secs(1));
    let scripts = [
        (Protocol::HttpProtobuf, vec![Answer::Http(503, "1"), Answer::Http(429, "")], true),
        (
            Protocol::Grpc,
            vec![Answer::Grpc(Code::ResourceExhausted, second), Answer::Grpc(Code::Unavailable, None)],
            true,
        ),
        // A proxy in between speaks HTTP only.
        (Protocol::Grpc, vec![Answer::Http(503, ""), Answer::Http(502, "")], false),
    ];
    for (protocol, script, asks) in scripts {
        let receiver = Receiver::start(&script);
        let sink = start(to(receiver.address, protocol));
        offer(&sink, 0..2);
        until("the third try", || sink.stats().sent == 2);
        let got = receiver.got();
        assert_eq!(got.iter().map(|got| got.ids.clone()).collect::<Vec<_>>(), vec![named(0..2); 3], "{protocol:?}");
        let pause = got[1].at - got[0].at;
        assert!(!asks || pause >= Duration::from_secs(1), "asked for a second, waited {pause:?}");
        assert_eq!(lost(&sink), []);
    }
}

#[test]
fn what_is_refused_is_lost_and_counted_with_its_reason() {
    let scripts = [
        (Protocol::HttpProtobuf, Answer::Http(400, "1"), "http_400"),
        (Protocol::HttpProtobuf, Answer::Http(307, ""), "http_307"),
        (Protocol::Grpc, Answer::Grpc(Code::InvalidArgument, None), "grpc_invalid_argument"),
        (Protocol::Grpc, Answer::Grpc(Code::ResourceExhausted, None), "grpc_resource_exhausted"),
    ];
    for (protocol, answer, reason) in scripts {
        let receiver = Receiver::start(&[answer]);
        let sink = start(to(receiver.address, protocol));
        offer(&sink, 0..3);
        until("the refusal", || !lost(&sink).is_empty());
        offer(&sink, 3..4);
        until("the next request", || sink.stats().sent == 1);
        assert_eq!(receiver.got().iter().map(|got| got.ids.len()).collect::<Vec<_>>(), [3, 1], "not sent again");
        assert_eq!(lost(&sink), [(reason.to_owned(), 3)]);
    }
}

#[test]
fn of_a_partial_success_the_rest_is_lost() {
    for protocol in BOTH {
        let receiver = Receiver::start(&[Answer::Partial(2), Answer::Partial(0), Answer::Partial(i64::MAX)]);
        let sink = start(to(receiver.address, protocol));
        for (round, expected) in [(5, 2), (2, 2), (1, 3)] {
            let before = receiver.got().len();
            offer(&sink, 0..round);
            until("an answer", || receiver.got().len() > before && sink.stats().queue.length == 0);
            until("its count", || lost(&sink) == [("partial_success".to_owned(), expected)]);
        }
        until("what was taken", || sink.stats().sent == 3 + 2);
        assert_eq!(receiver.got().len(), 3, "not sent again");
    }
}

#[test]
fn a_receiver_that_hangs_or_refuses_connections_costs_a_bounded_queue() {
    for protocol in BOTH {
        // Refuses: an address where nobody listens.
        let address = Receiver::start(&[]).address;
        let mut otlp = to(address, protocol);
        otlp.timeout = Duration::from_millis(400);
        otlp.queue = 100;
        let sink = start(otlp);
        offer(&sink, 0..70);
        until("a failed try", || sink.stats().queue.length == 70);
        let began = Instant::now();
        offer(&sink, 70..150);
        assert!(began.elapsed() < Duration::from_secs(1), "nobody waits for a receiver: {:?}", began.elapsed());
        assert!(sink.stats().queue.length <= 100);
        // It comes, and hangs once.
        let receiver = Receiver::start_at(address, &[Answer::Hang], None);
        until("all that had room", || sink.stats().sent >= 100);
        let got = receiver.got();
        assert_eq!(
            ids(got.get(1..).unwrap_or_default()),
            named(50..150),
            "the oldest were lost, the others are in order"
        );
        let stats = sink.stats();
        assert_eq!((stats.sent, stats.queue.dropped, stats.queue.length, lost(&sink)), (100, 50, 0, Vec::new()));
    }
}

#[test]
fn a_request_stays_below_the_receivers_limit() {
    let receiver = Receiver::start(&[]);
    let sink = start(to(receiver.address, Protocol::Grpc));
    let stacks = "x".repeat(100_000);
    let count = 45;
    for id in 0..count {
        sink.offer(Item::Finding(event(id, Life::Opened, entity(42), &stacks)));
    }
    until("all of them", || sink.stats().sent == count as u64);
    let got = receiver.got();
    assert!(
        got.len() > 1 && got.iter().all(|got| got.bytes <= LARGEST),
        "{:?}",
        got.iter().map(|got| got.bytes).collect::<Vec<_>>()
    );
    assert_eq!(ids(&got), named(0..count));
}

#[test]
fn what_waits_is_bounded_in_bytes_too() {
    let mut otlp = to(Receiver::start(&[]).address, Protocol::Grpc);
    otlp.queue = 100_000;
    let sink = start(otlp);
    let stacks = "x".repeat(1_000_000);
    for id in 0..20 {
        sink.offer(Item::Finding(event(id, Life::Opened, entity(42), &stacks)));
    }
    let stats = sink.stats().queue;
    assert!(stats.length <= 5 && stats.dropped >= 15, "{stats:?}");
}

#[test]
fn memory_stays_flat_without_a_receiver() {
    let sink = start(To { metrics: true, ..to(Receiver::start(&[]).address, Protocol::Grpc) });
    let (_, before) = crate::host::own_usage();
    let stacks = "x".repeat(20_000);
    for id in 0..20_000 {
        sink.offer(Item::Finding(event(id, Life::Opened, entity(42), &stacks)));
        let points = (0..20).map(|_| point(&CENSUSES, None, &[], Value::Count(1))).collect();
        sink.offer(Item::Metrics(Arc::new(sample(points))));
    }
    let (_, after) = crate::host::own_usage();
    let stats = sink.stats().queue;
    // What the senders have taken to try it is in neither: one batch of events and one of numbers at most.
    let taken = 40_000 - (stats.length as u64 + stats.dropped);
    assert!(stats.length < 500 && taken <= TOGETHER as u64 + 1, "{stats:?}");
    let grown = after.saturating_sub(before) >> 20;
    assert!(grown < 100, "400 MiB went in, memory grew by {grown} MiB");
}

#[test]
fn the_end_is_waited_for_and_no_longer() {
    let receiver = Receiver::start(&[Answer::Http(503, "1")]);
    let sink = start(to(receiver.address, Protocol::HttpProtobuf));
    offer(&sink, 0..3);
    sink.close(Instant::now() + Duration::from_secs(5));
    let tries: Vec<Vec<String>> = receiver.got().into_iter().map(|got| got.ids).collect();
    assert_eq!(tries, [named(0..3), named(0..3)], "at once, and again when the receiver said");
    for script in [vec![Answer::Hang; 9], vec![Answer::Http(503, "3600"); 99]] {
        let receiver = Receiver::start(&script);
        let sink = start(to(receiver.address, Protocol::HttpProtobuf));
        let shared = sink.shared.clone();
        offer(&sink, 0..3);
        until("a try", || !receiver.got().is_empty());
        let began = Instant::now();
        sink.close(began + Duration::from_secs(3));
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        let closing = || shared.lost.so_far().get("closing").copied();
        until("the count", || closing() == Some(3));
        assert!(receiver.got().len() < 5, "no hammering: {}", receiver.got().len());
    }
}

mod tls {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use std::path::PathBuf;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
    use tokio_rustls::rustls::server::WebPkiClientVerifier;
    use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto::ring};

    struct Files {
        directory: tempfile::TempDir,
        authority: CertifiedIssuer<'static, KeyPair>,
    }

    impl Files {
        fn new() -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let authority =
                CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
            let this = Self { directory: tempfile::tempdir().expect("a directory"), authority };
            std::fs::write(this.path("ca.pem"), this.authority.pem()).expect("a file");
            for name in ["localhost", "client"] {
                let key = KeyPair::generate().expect("a key");
                let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
                let certificate = params.signed_by(&key, &this.authority).expect("a certificate");
                std::fs::write(this.path(&format!("{name}.pem")), certificate.pem()).expect("a file");
                std::fs::write(this.path(&format!("{name}.key")), key.serialize_pem()).expect("a file");
            }
            this
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn server(&self) -> Arc<ServerConfig> {
            let pem = |name: &str| CertificateDer::from_pem_file(self.path(name)).expect("a certificate");
            let mut roots = RootCertStore::empty();
            roots.add(pem("ca.pem")).expect("an authority");
            let provider = Arc::new(ring::default_provider());
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .expect("a verifier");
            let key = PrivateKeyDer::from_pem_file(self.path("localhost.key")).expect("a key");
            let mut config = ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_client_cert_verifier(verifier)
                .with_single_cert(vec![pem("localhost.pem")], key)
                .expect("a server");
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            Arc::new(config)
        }
    }

    #[test]
    fn both_sides_show_who_they_are() {
        let files = Files::new();
        for protocol in BOTH {
            let receiver = Receiver::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), &[], Some(files.server()));
            let with = |ca: Option<&str>, client: bool| {
                let mut otlp = to(receiver.address, protocol);
                otlp.endpoint = format!("https://localhost:{}", receiver.address.port());
                otlp.ca_file = ca.map(|name| files.path(name));
                otlp.cert_file = client.then(|| files.path("client.pem"));
                otlp.key_file = client.then(|| files.path("client.key"));
                otlp
            };
            // One that does not show its certificate, and one that does not trust the receiver.
            let refused = [start(with(Some("ca.pem"), false)), start(with(Some("client.pem"), true))];
            let sink = start(with(Some("ca.pem"), true));
            refused.iter().for_each(|sink| offer(sink, 7..8));
            offer(&sink, 0..2);
            until("two findings", || sink.stats().sent == 2);
            assert_eq!(ids(&receiver.got()), named(0..2));
            for sink in refused {
                let shared = sink.shared.clone();
                sink.close(Instant::now() + Duration::from_secs(2));
                until("the count", || shared.lost.so_far().get("closing").copied() == Some(1));
            }
            assert_eq!(ids(&receiver.got()), named(0..2), "nothing of those who are not trusted, or do not trust");
        }
    }
}
