//! Profiles: what arrives, and what becomes of them at receivers that know none.

use super::super::profile::tests::{blocked, frame, profile};
use super::*;
use crate::proc::StackEnd;

fn with_profiles(address: SocketAddr, protocol: Protocol) -> Box<Otlp> {
    start(To { profiles: true, ..to(address, protocol) })
}

fn offer_stack(sink: &Otlp, pid: u32, left_out: u64) {
    let frames = vec![frame("lock", 3, 0x10), frame("pay", 7, 0x20), frame("main", 1, 0x30)];
    let stacks = vec![blocked(pid, frames, StackEnd::Root, 8_000_000_000)];
    sink.offer(Item::Profile(Arc::new(Profile { left_out, ..profile(stacks) })));
}

#[test]
fn blocked_stacks_arrive_with_their_frames_in_order() {
    for protocol in BOTH {
        let receiver = Receiver::start(&[]);
        let sink = with_profiles(receiver.address, protocol);
        assert!(sink.wants_profiles());
        offer_stack(&sink, 42, 3);
        until("a profile", || sink.stats().sent == 1);
        let got = receiver.got();
        let [got] = got.as_slice() else { panic!("{got:?}") };
        let path = match protocol {
            Protocol::HttpProtobuf => "/v1development/profiles",
            Protocol::Grpc => "/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export",
        };
        assert_eq!((got.path.as_str(), got.gzip), (path, true));
        let [blocked] = got.blocked.as_slice() else { panic!("{got:?}") };
        let names: Vec<&str> = blocked.frames.iter().filter_map(|frame| frame.split(' ').next()).collect();
        assert_eq!(names, ["lock@shop.c:3", "pay@shop.c:7", "main@shop.c:1"], "the innermost first");
        assert_eq!((blocked.executable.as_str(), blocked.value), ("shop", 8_000_000_000));
        assert_eq!(lost(&sink), [("too_many_stacks".to_owned(), 3)]);
    }
}

#[test]
fn nobody_who_did_not_ask_for_profiles_gets_any() {
    let receiver = Receiver::start(&[]);
    let sink = start(to(receiver.address, Protocol::Grpc));
    assert!(!sink.wants_profiles());
    offer_stack(&sink, 42, 3);
    offer(&sink, 0..1);
    until("a finding", || sink.stats().sent == 1);
    assert_eq!((receiver.got().len(), lost(&sink)), (1, Vec::new()));
}

#[test]
fn a_receiver_that_knows_no_profiles_is_asked_once() {
    let scripts = [
        (Protocol::HttpProtobuf, Answer::Http(404, ""), "http_404"),
        (Protocol::Grpc, Answer::Grpc(Code::Unimplemented, None), "grpc_unimplemented"),
        // A server of HTTP alone behind the gRPC endpoint.
        (Protocol::Grpc, Answer::Http(404, ""), "grpc_unimplemented"),
    ];
    for (protocol, answer, reason) in scripts {
        let receiver = Receiver::start(&[answer]);
        let sink = with_profiles(receiver.address, protocol);
        offer_stack(&sink, 42, 0);
        until("the refusal", || !sink.wants_profiles());
        assert_eq!(lost(&sink), [(reason.to_owned(), 1)]);
        offer_stack(&sink, 42, 9);
        offer(&sink, 0..2);
        until("findings go on", || sink.stats().sent == 2);
        assert_eq!(receiver.got().len(), 2, "one profile, one request of findings");
        assert_eq!(lost(&sink), [(reason.to_owned(), 1)], "what is off loses nothing");
        // After the hour it is tried again.
        *sink.shared.profiles_off.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        assert!(sink.wants_profiles());
        offer_stack(&sink, 42, 0);
        until("a profile", || sink.stats().sent == 3);
    }
}

#[test]
fn another_refusal_does_not_switch_them_off() {
    let receiver = Receiver::start(&[Answer::Http(400, ""), Answer::Http(503, ""), Answer::Partial(1)]);
    let sink = with_profiles(receiver.address, Protocol::HttpProtobuf);
    offer_stack(&sink, 42, 0);
    until("the refusal", || lost(&sink) == [("http_400".to_owned(), 1)]);
    offer_stack(&sink, 43, 0);
    until("the second try", || receiver.got().len() == 3 && sink.stats().lost.len() == 2);
    assert_eq!(lost(&sink), [("http_400".to_owned(), 1), ("partial_success".to_owned(), 1)]);
    let pids: Vec<Vec<String>> = receiver.got().iter().map(|got| got.blocked[0].attributes.clone()).collect();
    assert_eq!(pids[1], pids[2], "the same again");
    assert!(sink.wants_profiles());
}

#[test]
fn a_profile_too_large_for_one_request_is_split() {
    let receiver = Receiver::start(&[Answer::Taken, Answer::Http(503, "")]);
    let sink = with_profiles(receiver.address, Protocol::HttpProtobuf);
    // Different names, so that nothing is shared between stacks: about 40 KB each, 12 MB together.
    let name = |pid: u32, at: u32| format!("{pid}-{at}-{}", "x".repeat(4000));
    let long = |pid: u32| (0..10).map(|at| frame(&name(pid, at), at, at.into())).collect();
    let stacks: Vec<_> = (1000..1300).map(|pid| blocked(pid, long(pid), StackEnd::Root, 1)).collect();
    sink.offer(Item::Profile(Arc::new(profile(stacks))));
    // A quarter is taken; of the rest, sent again, each quarter.
    until("five parts", || sink.stats().sent == 5);
    let mut got = receiver.got();
    assert!(got.iter().all(|got| got.bytes <= LARGEST) && got.len() == 6, "{}", got.len());
    got.remove(1);
    let mut pids: Vec<String> = got.iter().flat_map(|got| &got.blocked).map(|one| one.attributes[0].clone()).collect();
    pids.sort();
    let expected: Vec<String> = (1000..1300).map(|pid| format!("process.pid={pid}")).collect();
    assert_eq!(pids, expected, "each once: a stack that was taken is not sent again");
    assert_eq!(lost(&sink), []);
}
