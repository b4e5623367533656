use observer::census::*;
use std::time::*;
fn main() {
    env_logger::init();
    let only = std::env::args().nth(1);
    let rungs = match only.as_deref() {
        Some("fentry") => vec![Rung::Fentry],
        Some("kprobe") => vec![Rung::Kprobe],
        Some("tp_btf") => vec![Rung::TpBtf],
        Some("tracepoint") => vec![Rung::Tracepoint],
        _ => Rung::ALL.to_vec(),
    };
    let t = Instant::now();
    let mut p = match ProbePlane::attach(&ProbeSettings {
        filter: Filter::Listed(vec![std::process::id()]),
        long_wait: Duration::from_millis(40),
        slow_connect: Duration::from_millis(500),
        rungs,
        log_level: log::LevelFilter::Debug,
        ..Default::default()
    }) {
        Ok(p) => p,
        Err(e) => {
            println!("{e}");
            return;
        }
    };
    println!("attach {:?}", t.elapsed());
    let s = p.status().clone();
    for (n, f) in [("poll", &s.poll), ("futex", &s.futex), ("connect", &s.connect), ("tcp", &s.tcp_state)] {
        println!("{n}: {f}");
        for x in &f.falls {
            println!("   {} {}", x.rung, x.reason);
        }
    }
    std::thread::spawn(|| {
        unsafe {
            libc::poll(std::ptr::null_mut(), 0, 50);
        }
        let ts = libc::timespec { tv_sec: 0, tv_nsec: 2_000_000_000 };
        unsafe {
            libc::ppoll(std::ptr::null_mut(), 0, &ts, std::ptr::null());
        }
    })
    .join()
    .unwrap();
    let mut pipe = [0; 2];
    unsafe {
        libc::pipe(pipe.as_mut_ptr());
        libc::write(pipe[1], b"x".as_ptr().cast(), 1);
    }
    let mut fd = libc::pollfd { fd: pipe[0], events: libc::POLLIN, revents: 0 };
    unsafe {
        libc::poll(&mut fd, 1, -5);
    }
    println!("{:?}", std::net::TcpStream::connect("127.0.0.1:1"));
    println!("{:?}", std::net::TcpStream::connect("[::1]:1"));
    println!("{:?}", std::net::TcpStream::connect_timeout(&"127.0.0.1:2".parse().unwrap(), Duration::from_secs(1)));
    let r = p.drain().unwrap();
    for e in &r.events {
        println!("{e:?}");
    }
    for e in &r.stats {
        println!("{e:?}");
    }
    println!("{:?}", r.account);
}
