//! The server, asked over real sockets.

use super::*;
use crate::detect::Moment;
use std::io::{Read, Write};
use std::net::TcpStream;

const QUICK: Limits = Limits {
    connections: 4,
    request: Duration::from_millis(300),
    connection: Duration::from_millis(600),
    bytes: 16 << 10,
};

fn start(limits: Limits) -> (Http, Arc<Pulse>) {
    let pulse = Arc::new(Pulse::new(Duration::from_secs(1), Instant::now()));
    let server = Http::start_with(SocketAddr::from(([127, 0, 0, 1], 0)), pulse.clone(), limits);
    (server.expect("a free port"), pulse)
}

fn connect(http: &Http) -> TcpStream {
    let stream = TcpStream::connect(http.address()).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
    stream
}

fn ask(http: &Http, request: &str) -> String {
    let mut stream = connect(http);
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers and closes");
    answer
}

fn get(http: &Http, path: &str) -> String {
    ask(http, &format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n"))
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let (sender, ticks) = std::sync::mpsc::channel::<()>();
    for _ in 0..2000 {
        if condition() {
            return;
        }
        let _ = ticks.recv_timeout(Duration::from_millis(5));
    }
    drop(sender);
    panic!("in vain: {what}");
}

#[test]
fn three_paths_and_a_hint() {
    let (http, pulse) = start(LIMITS);
    assert!(get(&http, "/metrics").starts_with("HTTP/1.1 503 "), "no census yet");
    assert!(get(&http, "/healthz").ends_with("ok: starting, for 0.0 s\n"));
    let unready = get(&http, "/readyz");
    assert!(unready.starts_with("HTTP/1.1 503 ") && unready.contains(r#""probes":null"#), "{unready}");
    http.offer(Item::Metrics(Arc::new(Sample { at: Moment(1), ..Sample::default() })));
    pulse.beat(Instant::now());
    pulse.beat(Instant::now());
    pulse.set_probes(serde_json::json!({"poll": "fentry"}));
    let metrics = get(&http, "/metrics");
    assert!(metrics.starts_with("HTTP/1.1 200 "), "{metrics}");
    assert!(metrics.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{metrics}");
    assert!(metrics.contains("\nobserver_build_info{version=\""), "{metrics}");
    let health = get(&http, "/healthz");
    assert!(health.starts_with("HTTP/1.1 200 ") && health.contains("ok: 2 censuses"), "{health}");
    let ready = get(&http, "/readyz");
    assert!(ready.starts_with("HTTP/1.1 200 ") && ready.contains(r#""probes":{"poll":"fentry"}"#), "{ready}");
    let nothing = get(&http, "/");
    assert!(nothing.starts_with("HTTP/1.1 404 ") && nothing.ends_with(HINT), "{nothing}");
    wait_for("one answer is counted", || http.stats().sent == 1);
}

#[test]
fn who_asks_for_open_metrics_gets_them() {
    let (http, _) = start(LIMITS);
    http.offer(Item::Metrics(Arc::default()));
    let answer = ask(&http, "GET /metrics HTTP/1.1\r\nHost: h\r\nAccept: application/openmetrics-text\r\n\r\n");
    assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"));
    assert!(answer.ends_with("\n# EOF\n"), "{answer}");
}

#[test]
fn head_has_no_body_and_other_methods_are_refused() {
    let (http, _) = start(LIMITS);
    http.offer(Item::Metrics(Arc::default()));
    let head = ask(&http, "HEAD /metrics HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(head.contains("content-length: ") && !head.contains("content-length: 0"), "{head}");
    let post = ask(&http, "POST /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n");
    assert!(post.starts_with("HTTP/1.1 405 ") && post.contains("allow: GET, HEAD\r\n"), "{post}");
}

#[test]
fn garbage_and_endless_requests_are_refused() {
    let (http, _) = start(LIMITS);
    assert!(ask(&http, "\u{1}\u{2}\r\n\r\n").starts_with("HTTP/1.1 400 "));
    let mut stream = connect(&http);
    let endless = format!("GET /{} HTTP/1.1\r\n", "a".repeat(64 << 10));
    // It may hang up before it has read all of it.
    let _ = stream.write_all(endless.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&answer));
    wait_for("both are counted", || http.stats().lost.get("client failed") == Some(&2));
    assert!(get(&http, "/healthz").starts_with("HTTP/1.1 200 "));
}

#[test]
fn slow_clients_lose_their_connection_in_time() {
    let (http, _) = start(QUICK);
    let mut silent = connect(&http);
    let mut dripping = connect(&http);
    dripping.write_all(b"GET /healthz HTTP/1.1\r\nHo").expect("it reads");
    for stream in [&mut silent, &mut dripping] {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&answer));
    }
    wait_for("both are counted", || http.stats().lost.get("client too slow") == Some(&2));
}

#[test]
fn too_many_clients_cost_the_oldest_its_connection() {
    let patient = Limits { request: Duration::from_secs(60), connection: Duration::from_secs(60), ..QUICK };
    let (http, _) = start(patient);
    let mut silent: Vec<TcpStream> = (0..4).map(|_| connect(&http)).collect();
    assert!(get(&http, "/healthz").starts_with("HTTP/1.1 200 "), "the fifth is served");
    let mut answer = Vec::new();
    let _ = silent[0].read_to_end(&mut answer);
    assert!(answer.is_empty(), "the first is gone");
    assert_eq!(http.stats().lost.get("too many connections"), Some(&1));
}

#[test]
fn it_ends_in_time_with_clients_that_stay() {
    let (http, _) = start(LIMITS);
    let address = http.address();
    let mut stays = connect(&http);
    assert!(get(&http, "/healthz").starts_with("HTTP/1.1 200 "));
    let before = Instant::now();
    Box::new(http).close(before + Duration::from_secs(10));
    assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
    let mut answer = Vec::new();
    let _ = stays.read_to_end(&mut answer);
    assert!(answer.is_empty());
    assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
}

#[test]
fn an_address_in_use_is_named_with_its_setting() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("its address");
    let error = Http::start(address, Arc::new(Pulse::new(Duration::from_secs(1), Instant::now()))).err();
    let message = error.map(|error| error.to_string()).unwrap_or_default();
    assert!(message.contains(&address.to_string()) && message.contains("`listen`"), "{message}");
}
