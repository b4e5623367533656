//! The kernel's file iterator for real. Needs root; where it cannot run it prints `SKIPPED:` and why.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[expect(dead_code, reason = "not every file of tests gives orders")]
mod victim;

use observer::census::{IterSource, SocketFiles, SocketFilesError, Source};
use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use victim::skipped;

fn iterator() -> Option<SocketFiles> {
    let loaded = IterSource::load().map_err(|error| error.to_string());
    match loaded.and_then(|mut source| source.socket_files()) {
        Ok(files) => Some(files),
        Err(why) => {
            skipped(&why);
            None
        }
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn inode(socket: &UdpSocket) -> u32 {
    let link = std::fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
    u32::try_from(link.ino()).unwrap()
}

#[test]
fn a_process_that_opens_and_closes_meanwhile() {
    let Some(files) = iterator() else { return };
    let steady: Vec<UdpSocket> = (0..400).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let expected: BTreeMap<i32, u32> = steady.iter().map(|socket| (socket.as_raw_fd(), inode(socket))).collect();
    let done = AtomicBool::new(false);
    let listings: Vec<_> = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let _brief: Vec<_> = (0..50).map(|_| UdpSocket::bind("127.0.0.1:0")).collect();
            }
        });
        let listings = (0..200).map(|_| files.of(std::process::id(), soon())).collect();
        done.store(true, Ordering::Relaxed);
        listings
    });
    for listed in listings {
        let listed = listed.unwrap();
        assert!(listed.is_sorted_by(|(a, _), (b, _)| a < b), "each descriptor once");
        let listed: BTreeMap<i32, u32> = listed.into_iter().collect();
        for (fd, inode) in &expected {
            assert_eq!(listed.get(fd), Some(inode), "descriptor {fd}");
        }
    }
}

#[test]
fn nobody_and_nothing() {
    let Some(files) = iterator() else { return };
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    assert_eq!(files.of(child.id(), soon()).unwrap(), [], "a process that is gone");
    assert_eq!(files.of(0, soon()).unwrap(), [], "not the whole host");
    assert_eq!(files.of(u32::MAX, soon()).unwrap(), []);
    let late = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
    assert!(matches!(files.of(std::process::id(), late), Err(SocketFilesError::Deadline)));
}
