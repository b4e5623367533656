//! Ends of this process, as a search finds them, and what hostile links lead to.
#![expect(clippy::unwrap_used, reason = "a test may fail")]
use super::*;
use crate::proc::{GatherSettings, Gatherer, exists, fd_fact};
use nix::sys::eventfd::EventFd;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

const READS: Way = Way { reads: true, writes: false };
const WRITES: Way = Way { reads: false, writes: true };

fn me() -> ProcessId {
    exists(std::process::id()).unwrap().id
}

fn search(among: Vec<ProcessId>) -> FarEnds {
    FarEnds::new(among, 7, || 0, Duration::from_secs(5))
}

/// The descriptors that `ends` finds beyond `fd`, as a gatherer sees that.
fn beyond(ends: &mut FarEnds, fd: RawFd, way: Way) -> Option<Vec<i32>> {
    let want = ThreadWant {
        process: me(),
        tid: std::process::id(),
        switches: 0,
        memory: Vec::new(),
        fd: Some(fd),
        kernel_stack: false,
        file_lock: false,
        set: None,
        far_end: Some(way),
    };
    let wants = [want];
    let mut facts = Gatherer::new(GatherSettings::default()).gather(&wants, &[], &[], &[]);
    ends.add(&wants, &mut facts.threads);
    let found = facts.threads[0].far_end.clone()?;
    assert!(found.holders.iter().all(|end| end.process == me()), "{found:?}");
    assert_eq!((found.unsearched, found.taken_ns), (0, 7));
    Some(found.holders.iter().map(|end| end.fd).collect())
}

#[test]
fn each_kind_of_end() {
    let (reader, writer) = std::io::pipe().unwrap();
    let (left, right) = UnixStream::pair().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    let (counter, other) = (EventFd::new().unwrap(), EventFd::new().unwrap());
    let mut ends = search(vec![me()]);
    let mut of = |fd: RawFd, way| beyond(&mut ends, fd, way);
    assert_eq!(of(reader.as_raw_fd(), READS), Some(vec![writer.as_raw_fd()]));
    assert_eq!(of(writer.as_raw_fd(), WRITES), Some(vec![reader.as_raw_fd()]));
    assert_eq!(of(left.as_raw_fd(), READS), Some(vec![right.as_raw_fd()]));
    assert_eq!(of(client.as_raw_fd(), WRITES), Some(vec![server.as_raw_fd()]));
    assert_eq!(of(server.as_raw_fd(), READS), Some(vec![client.as_raw_fd()]));
    assert_eq!(of(counter.as_raw_fd(), READS), Some(vec![counter.as_raw_fd()]), "not {other:?}");
    assert_eq!(of(listener.as_raw_fd(), READS), None, "a listener has no other end");
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    assert_eq!(of(file.as_raw_fd(), READS), None);
}

#[test]
fn a_fifo_is_found_by_what_it_is_and_not_by_its_name() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [fifo, same_name] = [&here, &there].map(|dir| dir.path().join("requests"));
    for path in [&fifo, &same_name] {
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    }
    let open = |path, write: bool| std::fs::File::options().read(true).write(write).open(path).unwrap();
    // Opened to read and write: such a descriptor is both ends, and does not wait for another.
    let (both, _other) = (open(&fifo, true), open(&same_name, true));
    let link = here.path().join("other name");
    std::fs::hard_link(&fifo, &link).unwrap();
    assert_eq!(beyond(&mut search(vec![me()]), both.as_raw_fd(), READS), Some(vec![both.as_raw_fd()]));
    std::fs::remove_file(&fifo).unwrap();
    assert_eq!(beyond(&mut search(vec![me()]), both.as_raw_fd(), READS), Some(vec![both.as_raw_fd()]), "deleted");
}

#[test]
fn what_could_not_be_searched_is_counted() {
    let (reader, _writer) = std::io::pipe().unwrap();
    let fact = fd_fact(std::process::id(), std::process::id(), reader.as_raw_fd()).unwrap();
    let mut ends = FarEnds::new(vec![me(); 3], 0, || 0, Duration::ZERO);
    let found = ends.find(me(), &fact, READS).unwrap();
    assert_eq!((found.holders.as_slice(), found.unsearched), (&[][..], 3));
    assert_eq!(ends.take_lost().into_keys().collect::<Vec<_>>(), ["far_ends: deadline"]);
    // A number that another process has by now, and one that nobody has.
    let reused = ProcessId { start_ns: me().start_ns + 1_000_000_000, ..me() };
    let gone = ProcessId { pid: 0x7fff_ffff, start_ns: 0 };
    let found = search(vec![reused, gone]).find(me(), &fact, READS).unwrap();
    assert_eq!((found.holders.as_slice(), found.unsearched), (&[][..], 0));
}

#[test]
fn access_decides_which_way_a_descriptor_works() {
    for (mode, as_writer, as_reader) in
        [(0o500, false, true), (0o300, true, false), (0o700, true, true), (0o000, false, false)]
    {
        assert_eq!((ends(0o120_000 | mode, READS), ends(mode, WRITES)), (as_writer, as_reader), "{mode:o}");
        assert!(!ends(mode, Way::default()));
    }
    assert_eq!(way_of_events(0x2001), READS);
    assert_eq!(way_of_events(0x4), WRITES);
    assert_eq!(way_of_events(0x18), Way::default());
    assert_eq!((way_of_access(0o0), way_of_access(0o1)), (READS, WRITES));
}

#[test]
fn a_descriptor_that_only_names_the_file_is_no_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let both = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    let _names = nix::fcntl::open(&path, nix::fcntl::OFlag::O_PATH, nix::sys::stat::Mode::empty()).unwrap();
    assert_eq!(beyond(&mut search(vec![me()]), both.as_raw_fd(), READS), Some(vec![both.as_raw_fd()]));
}

#[test]
fn hostile_links() {
    for (link, object) in [
        ("pipe:[7]", Some(Object::Pipe(7))),
        ("socket:[7]", Some(Object::Socket(7))),
        ("anon_inode:[eventfd]", Some(Object::Eventfd)),
        ("pipe:[]", None),
        ("pipe:[-1]", None),
        ("pipe:[99999999999999999999]", None),
        ("socket:[7] (deleted)", None),
        ("", None),
        ("/dev/null", None),
    ] {
        assert_eq!(Object::of(link.as_bytes()), object, "{link}");
    }
    assert_eq!(Object::of(b"\xff:[7]"), None);
    assert_eq!(Object::of(b"/a/x"), Object::of(b"/b/x (deleted)"));
    assert_ne!(Object::of(b"/a/x"), Object::of(b"/a/pipe:[7]"));
    assert!(Object::of(b"/\xff").is_some());
}
