use observer::census::*;
use std::time::*;
fn med(mut v: Vec<u64>) -> u64 {
    v.sort();
    v[v.len() / 2]
}
fn main() {
    let n: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    for _ in 0..n {
        std::thread::Builder::new().stack_size(16384).spawn(|| std::thread::park()).unwrap();
    }
    std::thread::sleep(Duration::from_millis(300));
    let t = Instant::now();
    let mut s = IterSource::load().unwrap();
    println!("load {:?}", t.elapsed());
    let v: Vec<u64> = (0..11).map(|_| s.take().unwrap().took_ns).collect();
    let c = s.take().unwrap();
    println!(
        "iter rows {} median {} us = {} ns/thread",
        c.rows.len(),
        med(v.clone()) / 1000,
        med(v) / c.rows.len() as u64
    );
    let mut p = ProcSource::new();
    let c = p.take().unwrap();
    println!("proc {} rows {} us", c.rows.len(), c.took_ns / 1000);
    // probe tax: futex wake (no waiter), futex wait EAGAIN, poll(0), getppid
    let word = 0u32;
    let bench = |name: &str| {
        let run = |f: &dyn Fn()| {
            med((0..15)
                .map(|_| {
                    let t = Instant::now();
                    for _ in 0..20000 {
                        f()
                    }
                    t.elapsed().as_nanos() as u64 / 20000
                })
                .collect())
        };
        println!(
            "{name}: futex_wake {} futex_wait(EAGAIN) {} poll0 {} getppid {}",
            run(&|| unsafe {
                libc::syscall(202, &word, 0x81, 1);
            }),
            run(&|| unsafe {
                libc::syscall(202, &word, 0x80, 1, 0usize);
            }),
            run(&|| unsafe {
                libc::poll(std::ptr::null_mut(), 0, 0);
            }),
            run(&|| unsafe {
                libc::syscall(110);
            })
        );
    };
    for _ in 0..2 {
        bench("off");
        for (name, rungs, filter) in [
            ("tp_btf listed", vec![Rung::TpBtf], Filter::Listed(vec![std::process::id()])),
            ("tp_btf filtered out", vec![Rung::TpBtf], Filter::Listed(vec![1])),
            ("tracepoint listed", vec![Rung::Tracepoint], Filter::Listed(vec![std::process::id()])),
        ] {
            let p = ProbePlane::attach(&ProbeSettings {
                rungs,
                filter,
                long_wait: Duration::from_secs(5),
                ..Default::default()
            })
            .unwrap();
            bench(name);
            drop(p);
        }
    }
}
