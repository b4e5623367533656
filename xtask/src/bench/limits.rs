//! Raises a kernel limit for the length of a bench, and puts it back.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// A raised limit; the old value returns when dropped.
pub(crate) struct Raised {
    path: PathBuf,
    before: u64,
}

impl Raised {
    /// Raises `/proc/sys/<name>` to `wanted` if it is lower; `None` when it was high enough.
    pub(crate) fn to_at_least(name: &str, wanted: u64) -> Result<Option<Self>> {
        let path = PathBuf::from("/proc/sys").join(name);
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let before: u64 = text.trim().parse().with_context(|| format!("{} holds {text:?}", path.display()))?;
        if before >= wanted {
            return Ok(None);
        }
        std::fs::write(&path, wanted.to_string())
            .with_context(|| format!("{} is {before}, {wanted} is needed and cannot be set", path.display()))?;
        eprintln!("xtask: {} raised from {before} to {wanted} until the end of this bench", path.display());
        Ok(Some(Self { path, before }))
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(&self.path, self.before.to_string()) {
            let (path, before) = (self.path.display(), self.before);
            eprintln!("xtask: {path} could not be set back to {before} ({error}): set it by hand");
        }
    }
}
