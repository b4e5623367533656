//! Builds, runs, tests and measures observer: `cargo xtask help`.

mod ebpf;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["ebpf"] => ebpf::run(false),
        ["ebpf", "--check"] => ebpf::run(true),
        ["ebpf", "--if-stale"] => ebpf::renew_if_stale(),
        _ => anyhow::bail!("usage: cargo xtask ebpf [--check | --if-stale]"),
    }
}
