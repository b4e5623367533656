//! Victims and scenarios: real programs that hang in a known way, and healthy ones that do not.
//!
//! - [`blocked`]: the programs of the stack tests, and the functions their threads are blocked in.
//! - [`compile`]: sources under `tests/victims` become programs, once per content.
//! - [`kube_stub`]: an API server that says what a test tells it to.
//! - [`debts`]: servers that owe something, and what observer says of them.
//! - [`deployed`]: an empty root, the container of the DaemonSet, the sandbox of the systemd unit.
//! - [`helm`]: the Helm chart, rendered by real Helm.
//! - [`golang`]: Go toolchains, and what Go programs say of their own goroutines.
//! - [`incidents`]: the incidents of Go services, and what a finding must name.
//! - [`guard`]: a started process, killed with its descendants when the guard is dropped.
//! - [`victim`]: a program that reaches one known state, and the truth it tells about it.
//! - [`observer`]: the binary under test, run with a deadline.
//! - [`report`]: what it said, and the assertions scenarios share.
//! - [`sockets`]: what `ss` says of a server.
//! - [`stack`], [`gdb`]: user stacks as observer reports them, and as gdb shows them.
//! - [`container`]: a victim in a real container.
//! - [`postgres`], [`requests`]: a database of a test's own; clients who know which requests were answered.
//! - [`rotel`]: an OpenTelemetry collector, and what it printed.
//! - [`contract`]: the keys every report and finding must have.
//! - [`servers`]: ordinary servers, as a distribution has them.
//! - [`serving`]: a daemon that serves `/metrics`, asked over HTTP.
//! - [`procfs`], [`deadline`], [`mod@skip`]: reading `/proc`, waiting without sleeping, skipping aloud.
//!
//! The scenarios themselves are in `tests/tests`.

pub mod blocked;
pub mod bpf_stats;
pub mod compile;
pub mod container;
pub mod contract;
pub mod deadline;
pub mod debts;
pub mod deployed;
pub mod gdb;
pub mod golang;
pub mod guard;
pub mod helm;
pub mod incidents;
pub mod kube_stub;
pub mod observer;
pub mod postgres;
pub mod procfs;
pub mod report;
pub mod requests;
pub mod rotel;
pub mod servers;
pub mod serving;
pub mod skip;
pub mod sockets;
pub mod stack;
pub mod tokio_program;
pub mod victim;
