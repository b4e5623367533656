//! What the probes saw that is already over: long waits that ended, connections that failed or were slow.

use super::json::{timeout_kind, timestamp};
use crate::census::{EventKind, Pid, ProbeEvent};
use crate::detect::Moment;
use crate::model::decode::Call;
use crate::model::{Host, duration};
use nix::errno::Errno;
use serde_json::{Value, json};

/// Events listed per process, the newest.
const LISTED: usize = 50;

fn events(host: &Host, pid: Pid) -> Vec<&ProbeEvent> {
    let all: Vec<&ProbeEvent> = host.probes().recent().filter(|event| event.pid == pid).collect();
    // A blocking attempt is seen twice, by its call and by its socket within that call: once is enough.
    let is_twin = |socket: &ProbeEvent| {
        all.iter().any(|call| {
            let during = call.start_ns..=call.start_ns.saturating_add(call.wait_ns);
            call.kind == EventKind::Connect
                && call.syscall.is_some()
                && call.tid == socket.tid
                && call.remote == socket.remote
                && during.contains(&socket.start_ns)
        })
    };
    all.iter().filter(|e| e.kind != EventKind::Connect || e.syscall.is_some() || !is_twin(e)).copied().collect()
}

/// The name of the error a call returned; `None` if it did not fail.
fn error(event: &ProbeEvent) -> Option<String> {
    let code = i32::try_from(event.ret.checked_neg()?).ok().filter(|code| (1..4096).contains(code))?;
    Some(format!("{:?}", Errno::from_raw(code)))
}

fn call(event: &ProbeEvent) -> &'static str {
    event.syscall.map_or("connect", |number| Call::lookup(number, false).name)
}

/// The newest events of one process.
pub(super) fn to_json(host: &Host, pid: Pid) -> Value {
    let all = events(host, pid);
    let newest = all.get(all.len().saturating_sub(LISTED)..).unwrap_or_default();
    newest
        .iter()
        .map(|event| {
            let at = host.clocks().map(|clocks| timestamp(Moment::from_mono(event.start_ns, clocks)));
            json!({
                "event": match event.kind {
                    EventKind::BadTimeout => "bad_timeout",
                    EventKind::LongWait => "long_wait",
                    EventKind::Connect => "connect",
                    EventKind::Habit => "habit",
                },
                "at": at,
                "tid": event.tid,
                "comm": event.comm,
                "syscall": call(event),
                "wait_ns": event.wait_ns,
                "error": error(event),
                "timeout": timeout_kind(event.timeout),
                "local": event.local,
                "remote": event.remote,
            })
        })
        .collect()
}

/// The same in a line or two; nothing where there was nothing.
pub fn to_text(host: &Host, pid: Pid) -> String {
    let all = events(host, pid);
    let mut out = String::new();
    let waits = all.iter().filter(|event| event.kind == EventKind::LongWait);
    if let Some(longest) = waits.clone().max_by_key(|event| event.wait_ns) {
        out.push_str(&format!(
            "  lately: {} wait(s) over the threshold ended, the longest after {} in {}()\n",
            waits.count(),
            duration(longest.wait_ns),
            call(longest)
        ));
    }
    let connects = all.iter().filter(|event| event.kind == EventKind::Connect);
    if let Some(last) = connects.clone().next_back() {
        let to = last.remote.map(|remote| format!(" to {remote}")).unwrap_or_default();
        let how =
            error(last).map_or_else(|| format!("took {}", duration(last.wait_ns)), |name| format!("failed: {name}"));
        let count = connects.count();
        out.push_str(&format!("  lately: {count} connection(s) failed or were slow, the last one{to} {how}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::census::{Family, ProbeReading, TimeoutKind};
    use crate::model::testkit::{S, census, row};

    fn event(kind: EventKind, ret: i64, syscall: Option<u32>) -> ProbeEvent {
        ProbeEvent {
            kind,
            family: Family::Connect,
            tid: 10,
            pid: 10,
            comm: "t10".to_owned(),
            syscall,
            start_ns: 90 * S,
            wait_ns: 7 * S,
            ret,
            timeout: TimeoutKind::None,
            timeout_raw: 0,
            timeout_ns: 0,
            args: [0; 6],
            local: None,
            remote: "127.0.0.1:80".parse().ok(),
            history: None,
            site: 0,
        }
    }

    #[test]
    fn what_is_over_is_told_and_only_of_this_process() {
        let refused = event(EventKind::Connect, -i64::from(libc::ECONNREFUSED), None);
        let long = event(EventKind::LongWait, 1, Some(7));
        let mut host = Host::default();
        let reading = ProbeReading { events: vec![refused, long], ..ProbeReading::default() };
        host.advance(census(100, vec![row(10, 10), row(11, 11)]), reading);
        let json = to_json(&host, 10);
        assert_eq!(
            (json[0]["error"].as_str(), json[0]["remote"].as_str()),
            (Some("ECONNREFUSED"), Some("127.0.0.1:80"))
        );
        assert_eq!((json[1]["event"].as_str(), json[1]["syscall"].as_str()), (Some("long_wait"), Some("poll")));
        assert_eq!(json[1]["error"], Value::Null, "a positive return value is no error");
        let text = to_text(&host, 10);
        assert!(text.contains("7.0 s in poll()") && text.contains("to 127.0.0.1:80 failed: ECONNREFUSED"), "{text}");
        assert_eq!((to_json(&host, 11), to_text(&host, 11)), (json!([]), String::new()));
    }

    #[test]
    fn a_blocking_connect_is_told_once() {
        let call = event(EventKind::Connect, -111, Some(42));
        let socket = ProbeEvent { start_ns: 91 * S, ..event(EventKind::Connect, -111, None) };
        let later = ProbeEvent { start_ns: 98 * S, ..socket.clone() };
        let mut host = Host::default();
        let reading = ProbeReading { events: vec![socket, call, later], ..ProbeReading::default() };
        host.advance(census(100, vec![row(10, 10)]), reading);
        assert_eq!(to_json(&host, 10).as_array().map(Vec::len), Some(2), "the call, and the later socket");
    }

    #[test]
    fn the_list_is_bounded_and_keeps_the_newest() {
        let mut host = Host::default();
        let events = (0..200).map(|i| ProbeEvent { wait_ns: i, ..event(EventKind::LongWait, 0, Some(202)) }).collect();
        host.advance(census(100, vec![row(10, 10)]), ProbeReading { events, ..ProbeReading::default() });
        let json = to_json(&host, 10);
        let list = json.as_array().map(Vec::as_slice).unwrap_or_default();
        assert_eq!((list.len(), list[LISTED - 1]["wait_ns"].as_u64()), (LISTED, Some(199)));
    }
}
