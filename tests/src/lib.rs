//! Victims and scenarios: real programs that hang in a known way, and healthy ones that do not.
//!
//! - [`blocked`]: the programs of the stack tests, and the functions their threads are blocked in.
//! - [`compile`]: sources under `tests/victims` become programs, once per content.
//! - [`kube_stub`]: an API server that says what a test tells it to.
//! - [`deployed`]: an empty root, the container of the DaemonSet, the sandbox of the systemd unit.
//! - [`helm`]: the Helm chart, rendered by real Helm.
//! - [`golang`]: Go toolchains, and what Go programs say of their own goroutines.
//! - [`guard`]: a started process, killed with its descendants when the guard is dropped.
//! - [`victim`]: a program that reaches one known state, and the truth it tells about it.
//! - [`observer`]: the binary under test, run with a deadline.
//! - [`report`]: what it said, and the assertions scenarios share.
//! - [`stack`], [`gdb`]: user stacks as observer reports them, and as gdb shows them.
//! - [`container`]: a victim in a real container.
//! - [`rotel`]: an OpenTelemetry collector, and what it printed.
//! - [`contract`]: the keys every report and finding must have.
//! - [`serving`]: a daemon that serves `/metrics`, asked over HTTP.
//! - [`procfs`], [`deadline`], [`mod@skip`]: reading `/proc`, waiting without sleeping, skipping aloud.
//!
//! The scenarios themselves are in `tests/tests`.

pub mod blocked;
pub mod compile;
pub mod container;
pub mod contract;
pub mod deadline;
pub mod deployed;
pub mod gdb;
pub mod golang;
pub mod guard;
pub mod helm;
pub mod kube_stub;
pub mod observer;
pub mod procfs;
pub mod report;
pub mod rotel;
pub mod serving;
pub mod skip;
pub mod stack;
pub mod victim;
