use observer::census::*;
fn main() {
    let t = std::time::Instant::now();
    let mut s = match IterSource::load() {
        Ok(s) => s,
        Err(e) => {
            println!("{e}");
            return;
        }
    };
    println!("load {:?} {} {:?}", t.elapsed(), s.name(), s.degraded());
    for _ in 0..5 {
        let c = s.take().unwrap();
        println!("{} rows {} us lost {:?}", c.rows.len(), c.took_ns / 1000, c.lost);
    }
    let c = s.take().unwrap();
    for r in c.rows.iter().filter(|r| !r.is_kernel_thread()).take(12) {
        println!(
            "{} {} {} {} {:?} off {:?} ms q {:?} cg {} {:?}",
            r.tid,
            r.process.pid,
            r.comm,
            r.state_letter(),
            r.syscall,
            r.off_cpu_since_ns.map(|o| (c.clocks.mono_ns - o) / 1_000_000),
            r.queued_since_ns,
            r.cgroup_id,
            r.own
        );
    }
    let tids: Vec<_> = c.rows.iter().filter(|r| !r.is_kernel_thread()).take(3).map(|r| r.tid).collect();
    let k = observer::host::Kallsyms::load().unwrap();
    for (t, st) in s.kernel_stacks(&tids).unwrap() {
        println!("{t}: {:?}", st.iter().map(|a| k.name(*a)).collect::<Vec<_>>());
    }
    let mut p = ProcSource::new();
    let c = p.take().unwrap();
    println!("proc {} rows {} us", c.rows.len(), c.took_ns / 1000);
}
