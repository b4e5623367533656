//! Where censuses come from.

use super::{Census, Pid, SocketFiles, SocketLimits, ThreadRow};
use crate::host::TypesError;
use std::collections::{BTreeMap, HashMap};
use std::io;
use thiserror::Error;

/// Something that can list every thread.
pub trait Source {
    /// Takes one census of every thread that observer can see.
    fn take(&mut self) -> Result<Census, CensusError>;
    /// The same, given the rows of the last census back: a source may take those over that have not changed. What others
    /// may change of a sleeping thread (parent, tracer, cgroup, name) may then be some censuses old.
    fn take_again(&mut self, _before: Vec<ThreadRow>) -> Result<Census, CensusError> {
        self.take()
    }
    /// `iter_task`, `iter_task without registers`, `proc` or `recording`.
    fn name(&self) -> &'static str;
    /// Kernel stacks of these threads (ids of observer's PID namespace), return addresses, innermost first.
    /// A source that cannot tell answers with none.
    fn kernel_stacks(&mut self, _tids: &[Pid]) -> Result<HashMap<Pid, Vec<u64>>, CensusError> {
        Ok(HashMap::new())
    }
    /// The time limits of the sockets of a process (id of observer's PID namespace), by descriptor. A source that cannot
    /// tell answers with none.
    fn socket_limits(&mut self, _pid: Pid) -> Result<BTreeMap<i32, SocketLimits>, CensusError> {
        Ok(BTreeMap::new())
    }
    /// The kernel's way to list the descriptors of a process that are sockets, for whoever asks often.
    ///
    /// # Errors
    /// Why there is none: `/proc` has them, too.
    fn socket_files(&mut self) -> Result<SocketFiles, String> {
        Err(format!("the census is taken from {}", self.name()))
    }
}

/// Why there is no census.
#[derive(Debug, Error)]
pub enum CensusError {
    /// Kernel types unknown.
    #[error("{0}; `--census proc` works without it, with less to say")]
    Types(&'static TypesError),
    /// The object cannot be loaded at all (maps, BTF).
    #[error("cannot load the kernel programs: {reason}; run as root, or with CAP_BPF and CAP_PERFMON")]
    Load {
        /// What the loader says.
        reason: String,
    },
    /// The kernel refuses a program.
    #[error("the kernel refuses the program `{program}`: {reason}; `--census proc` works without it")]
    Refused {
        /// Which program.
        program: &'static str,
        /// Error and the end of the verifier's log.
        reason: String,
    },
    /// The stream could not be read.
    #[error("reading {what}: {error}; try again")]
    Read {
        /// Which file.
        what: String,
        /// The error.
        #[source]
        error: io::Error,
    },
    /// The stream makes no sense.
    #[error("the census stream is malformed at byte {at}: {what}; please report this kernel")]
    Malformed {
        /// Position in the stream.
        at: u64,
        /// What is wrong.
        what: &'static str,
    },
}
