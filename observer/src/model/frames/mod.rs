//! What a stack says about the wait of its thread: a lock, rest by construction, or something else.
//!
//! System-call arguments cannot tell most waits apart: a lock of Rust's library, an idle worker and a task that
//! blocks its whole runtime all are a futex wait. The frames can. [`classify`] walks outwards from the blocked
//! frame. Frames known to the [table](table) tell, first, what is waited for; then the next known frame further out
//! tells whether the thread is between two jobs or inside of one.
//!
//! A frame speaks about the wait only if it stands *directly* outside of it, with no frame in between that the table
//! does not know: `pthread_cond_wait` called by a pool's loop is rest, the same call made by a function of the
//! program, called by the loop, is not.

mod apply;
mod library;
mod name;
mod runs;
mod table;
#[cfg(test)]
mod tests;
mod turn;

pub use apply::{parked_at, sharpen};
pub use runs::runs_once;
pub use turn::turn_of;

use super::wait::ResourceKind;
use crate::proc::stack::Frame;
use table::{Means, Row};

/// Why a thread does not run, as its stack tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rest {
    /// Waits for a lock that somebody holds.
    Lock,
    /// Rest by construction: a worker without work, a service thread of a runtime, an event loop, a scheduler.
    Idle,
    /// Input, output, a name lookup.
    Io,
    /// A child process.
    Child,
    /// Time to pass.
    Sleep,
    /// A collection of garbage, or the safepoint for one.
    Gc,
    /// The end of a thread.
    Join,
    /// A condition, a semaphore, a channel, inside of a job that is not finished.
    Work,
    /// A condition, a semaphore, a channel; nothing further out tells what for.
    Condition,
}

impl Rest {
    /// The name used in JSON and text.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Idle => "idle",
            Self::Io => "io",
            Self::Child => "child",
            Self::Sleep => "sleep",
            Self::Gc => "gc",
            Self::Join => "join",
            Self::Work => "work",
            Self::Condition => "condition",
        }
    }
}

/// Where a lock lies, as far as the frame of its waiter tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// So many bytes from the futex word.
    Word(i64),
    /// Its waiters sleep on words of their own, beside which they keep its address (`parking_lot`).
    Parked,
    /// Not known.
    Unknown,
}

/// The lock that a frame waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockFrame {
    /// Its kind.
    pub kind: ResourceKind,
    /// How a person calls it (`std Mutex`).
    pub named: &'static str,
    /// Where it begins.
    pub place: Place,
    /// It is no lock, but something that one thread does once and the others wait for.
    pub once: bool,
    /// Who holds it keeps a reference to it in a live frame, as Rust's guards do. A lock of C is held without.
    pub guarded: bool,
}

/// What kind of job a wait interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobKind {
    /// A turn of an asynchronous task: it must not block, everything on its thread waits with it.
    Turn,
    /// A callback of an event loop: all other events wait with it.
    Callback,
    /// A job of a pool: made for jobs that may block.
    Pool,
}

/// The job a wait interrupts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its kind.
    pub kind: JobKind,
    /// Whose pool, loop or scheduler it is.
    pub runtime: &'static str,
    /// The frame that runs it.
    pub by: String,
}

/// What a stack says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Why the thread does not run.
    pub rest: Rest,
    /// Whose frames told: `glibc`, `tokio`, `jvm`, …
    pub runtime: &'static str,
    /// The frame that decided.
    pub by: String,
    /// The lock, where it waits for one.
    pub lock: Option<LockFrame>,
    /// The job it is in the middle of.
    pub job: Option<Job>,
    /// Idle in a loop that its servers enter with a lock held, on purpose: whoever has the lock waits for
    /// work, the others for the lock.
    pub leads: bool,
}

impl Reading {
    /// The frames that decided, for people.
    pub fn frames(&self) -> String {
        match &self.job {
            Some(job) => format!("{} under {}", self.by, job.by),
            None => self.by.clone(),
        }
    }
}

/// The frames that say something about the wait so far, from the weakest to the strongest.
struct Told {
    row: Row,
    by: String,
}

/// Unnamed frames in a row that may belong to the same library as their neighbours: stripped libraries keep the names
/// of exported functions only.
const MOST_UNNAMED: usize = 1;

/// Reads a stack, innermost frame first. `None` if no frame says more than the system call does.
pub fn classify(frames: &[Frame]) -> Option<Reading> {
    let names: Vec<Option<String>> =
        frames.iter().map(|frame| frame.function.as_deref().map(name::normalised).filter(|n| !n.is_empty())).collect();
    let mut told: Option<Told> = None;
    let mut job: Option<Job> = None;
    let (mut is_direct, mut unnamed) = (true, 0_usize);
    for (at, this) in names.iter().enumerate() {
        let outside = names.get(at + 1).and_then(Option::as_deref);
        let Some((this, row)) = this.as_deref().and_then(|this| Some((this, table::row_of(this, outside)?))) else {
            // With debug information libraries show their inner functions: they are part of the one that was called.
            if frames.get(at).is_some_and(|frame| library::holds(frame, this.as_deref())) {
                continue;
            }
            unnamed += 1;
            is_direct &= this.is_none() && unnamed <= MOST_UNNAMED;
            continue;
        };
        unnamed = 0;
        let is_open = told.as_ref().is_none_or(|told| !told.row.means.is_final());
        let inside = told.as_ref().map(|told| told.row.means);
        let in_job = |kind| Some(Job { kind, runtime: row.runtime, by: this.to_owned() });
        match row.means {
            Means::End => break,
            Means::Runs(kind) => {
                job = in_job(kind);
                break;
            }
            // What it waits for by itself is rest; anything else it has called is a job.
            Means::Pool | Means::Loop { .. } if !(is_direct && row.means.rests_in(inside)) => {
                job = match row.means {
                    Means::Pool => in_job(JobKind::Pool),
                    // Nothing but the lock is taken in there: those who wait for it are at rest, too.
                    Means::Loop { leads: true } => None,
                    _ => in_job(JobKind::Callback),
                };
                break;
            }
            // A service thread that does something else than wait for work: what started it runs no job.
            Means::Says(Rest::Idle) if !(is_direct && is_open) => break,
            // The functions of a library call each other: the one that the program has called knows the lock best.
            Means::Lock(_) if is_direct && inside.is_some_and(Means::is_part_of_a_lock) => {
                told = Some(Told { row, by: this.to_owned() });
            }
            Means::Once(_) if !inside.is_none_or(Means::is_bare) => {}
            _ if is_direct && is_open && row.means.strength() >= inside.map_or(0, Means::strength) => {
                told = Some(Told { row, by: this.to_owned() });
                if row.means.is_idle() {
                    break;
                }
            }
            _ => {}
        }
    }
    let Told { row, by } = told?;
    let rest = match row.means {
        Means::Call => job.as_ref().map(|_| Rest::Io)?,
        Means::Wait | Means::Bare if job.is_some() => Rest::Work,
        Means::Wait | Means::Bare => Rest::Condition,
        Means::Rests if job.is_some() => Rest::Work,
        Means::Says(rest) => rest,
        Means::Lock(_) | Means::Once(_) => Rest::Lock,
        Means::Rests | Means::Pool | Means::Loop { .. } | Means::Runs(_) | Means::End => Rest::Idle,
    };
    let lock = match row.means {
        Means::Lock(lock) | Means::Once(lock) => Some(lock),
        _ => None,
    };
    let leads = matches!(row.means, Means::Loop { leads: true });
    Some(Reading { rest, runtime: row.runtime, by, lock, job, leads })
}
