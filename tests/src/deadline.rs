//! Waiting for a condition, never for a while.

use anyhow::{Result, bail};
use nix::poll::{PollTimeout, poll};
use std::time::{Duration, Instant};

/// Asks `condition` until it has an answer; fails with `what` when it has none by then.
pub fn wait_until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let until = Instant::now() + limit;
    loop {
        if let Some(answer) = condition()? {
            return Ok(answer);
        }
        if Instant::now() >= until {
            bail!("waited {limit:?} in vain: {what}");
        }
        // No descriptor: the poll is a breath between two questions.
        poll(&mut [], PollTimeout::from(5_u16))?;
    }
}

/// Waits until `begin` lies at least `age` back: "the hang is older than the threshold".
pub fn wait_for_age(begin: Instant, age: Duration) -> Result<()> {
    wait_until("time to pass", age + Duration::from_secs(5), || Ok((begin.elapsed() >= age).then_some(())))
}
