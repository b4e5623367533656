//! What Rust victims share: threads that tell who they are, and the one line of truth (see `victim.h`).

use std::fs;
use std::io::Read;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

static SEATS: Mutex<Vec<(&'static str, u32, u128)>> = Mutex::new(Vec::new());

/// Called by a thread just before it waits for good.
pub(crate) fn take(name: &'static str) {
    let link = fs::read_link("/proc/thread-self").unwrap();
    let tid = link.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    SEATS.lock().unwrap().push((name, tid, now));
}

/// Whether the thread sleeps in this system call.
fn sleeps_in(tid: u32, number: &str) -> bool {
    let path = format!("/proc/self/task/{tid}/syscall");
    fs::read_to_string(path).is_ok_and(|text| text.split(' ').next() == Some(number))
}

/// Waits until `count` threads have taken a seat and sleep in a futex (twice in a row), then prints the truth.
pub(crate) fn tell(shape: &str, count: usize) {
    let mut seen = 0;
    while seen < 2 {
        let seats = SEATS.lock().unwrap().clone();
        let asleep = seats.len() == count && seats.iter().all(|(_, tid, _)| sleeps_in(*tid, "202"));
        seen = if asleep { seen + 1 } else { 0 };
        std::thread::park_timeout(std::time::Duration::from_millis(2));
    }
    let pid = std::process::id();
    let threads: Vec<String> = SEATS
        .lock()
        .unwrap()
        .iter()
        .map(|(name, tid, since)| {
            format!(
                "{{\"name\":\"{name}\",\"tid\":{tid},\"pid\":{pid},\"inside_tid\":{tid},\"inside_pid\":{pid},\
                 \"state\":\"S\",\"since_ns\":{since}}}"
            )
        })
        .collect();
    println!("{{\"ready\":true,\"shape\":\"{shape}\",\"pid\":{pid},\"threads\":[{}]}}", threads.join(","));
}

/// Until stdin closes.
#[inline(never)]
pub(crate) fn stay() -> ! {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    std::process::exit(0);
}
