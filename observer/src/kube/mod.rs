//! Names of pods, from the Kubernetes API server. Optional: UID and container id come from cgroup paths, without it.
//!
//! [`Names`] watches the pods of one node on a thread of its own; whoever reads takes a [`Snapshot`] and waits for nobody. What
//! goes wrong is tried again, ever more rarely, and counted; nothing here ever stops the daemon.

mod book;
mod watch;

#[cfg(test)]
mod tests;

pub use book::{Owner, PodNames, Snapshot};

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::oneshot;

/// Whose pods, and how often to try.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the node.
    pub node: String,
    /// How the API server is reached; `None`: as the service account of this pod.
    pub kubeconfig: Option<PathBuf>,
    /// Pause after the API server refused (401, 403): somebody may allow it later.
    pub refused_pause: Duration,
}

impl Settings {
    /// The usual pauses.
    pub fn new(node: String, kubeconfig: Option<PathBuf>) -> Self {
        Self { node, kubeconfig, refused_pause: Duration::from_secs(300) }
    }
}

/// What is known of the pods of this node, kept up to date by a thread.
#[derive(Debug)]
pub struct Names {
    shared: Arc<Shared>,
    /// Dropped, it ends the thread.
    _stop: oneshot::Sender<()>,
}

/// What the thread writes and others read.
#[derive(Debug, Default)]
struct Shared {
    snapshot: RwLock<Arc<Snapshot>>,
    version: AtomicU64,
    lost: RwLock<BTreeMap<&'static str, u64>>,
}

impl Shared {
    fn publish(&self, snapshot: Snapshot) {
        // Held for as long as it takes to swap a pointer.
        *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
        self.version.fetch_add(1, Relaxed);
    }

    fn lose(&self, reason: &'static str, count: u64) {
        *self.lost.write().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += count;
    }
}

impl Names {
    /// Starts the thread.
    ///
    /// # Errors
    /// There can be no thread. That the API server cannot be reached is no error: it is logged, and tried again.
    pub fn start(settings: Settings) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        std::thread::Builder::new().name("observer-kube".into()).spawn({
            let shared = shared.clone();
            move || {
                let watching = std::pin::pin!(watch::run(&settings, &shared));
                runtime.block_on(futures_util::future::select(watching, stopped));
            }
        })?;
        Ok(Self { shared, _stop: stop })
    }

    /// The pods as they are now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes with every snapshot.
    pub fn version(&self) -> u64 {
        self.shared.version.load(Relaxed)
    }

    /// What went wrong so far, by reason.
    pub fn lost(&self) -> BTreeMap<&'static str, u64> {
        self.shared.lost.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
