//! What belongs to the kernel is refused. A file of its own: these tests run where kernel threads are to be seen.

use anyhow::{Result, ensure};
use observer_tests::observer::Observer;
use observer_tests::skip;

#[test]
fn a_kernel_thread() -> Result<()> {
    let name = std::fs::read_to_string("/proc/2/comm").unwrap_or_default();
    if name.trim() != "kthreadd" {
        skip!("process 2 is not kthreadd here: a PID namespace");
    }
    let line = Observer::attach(&[2], &["--once"])?.run()?.expect_refusal()?;
    ensure!(line.contains('2') && line.to_lowercase().contains("kernel thread"), "{line}");
    Ok(())
}
