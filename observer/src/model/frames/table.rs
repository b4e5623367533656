//! The frames that say something about a wait, as data.
//!
//! A pattern is matched against a normalised name (see [`super::name`]): with `::` it is the end of a path, without it
//! is a whole name of C or Go. `a < b` is a frame `a` called by `b`. Groups say how their rows are known: looked at in a
//! running program of that version, or read in the source of the project.

use super::{JobKind, LockFrame, Place, Rest};
use crate::model::wait::ResourceKind;
use std::collections::HashMap;
use std::sync::LazyLock;

mod managed;
mod native;
mod rust;
mod servers;

/// What a frame means for the wait inside of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Means {
    /// A system call whose class says all there is to say.
    Call,
    /// A condition, semaphore, channel or park: says nothing by itself.
    Wait,
    /// The wait that all of these are made of.
    Bare,
    /// Rest, unless a job is found further out.
    Rests,
    /// This, for sure.
    Says(Rest),
    /// A lock somebody holds.
    Lock(LockFrame),
    /// Whoever runs it and whoever waits for that stand in the same function: a lock, if the wait is its own.
    Once(LockFrame),
    /// The loop of a pool's thread: a wait of its own is rest, everything else it has called is a job.
    Pool,
    /// An event loop: a poll of its own is rest, everything else it has called is a callback. `leads`: its servers enter
    /// it with a lock held, on purpose.
    Loop {
        /// See above.
        leads: bool,
    },
    /// Runs a job.
    Runs(JobKind),
    /// What is further out does not matter.
    End,
}

impl Means {
    /// How much it says about the wait.
    pub(super) fn strength(self) -> u8 {
        match self {
            Self::Call => 0,
            Self::Wait | Self::Bare => 1,
            Self::Rests => 2,
            _ => 3,
        }
    }

    /// No frame further out can say better what is waited for.
    pub(super) fn is_final(self) -> bool {
        self.strength() == 3
    }

    /// Nothing is known of what it waits for but that it waits.
    pub(super) fn is_bare(self) -> bool {
        self == Self::Bare
    }

    /// The inner function of some lock, which does not know where that begins.
    pub(super) fn is_part_of_a_lock(self) -> bool {
        matches!(self, Self::Lock(lock) if lock.place == Place::Unknown)
    }

    /// Whether a pool or a loop that waits like this, by itself, waits for work: a loop does so in a poll.
    pub(super) fn rests_in(self, inside: Option<Self>) -> bool {
        match self {
            Self::Pool => inside.is_some_and(|inside| !inside.is_final()),
            _ => inside == Some(Self::Call),
        }
    }

    /// The thread is between two jobs: nothing further out changes that.
    pub(super) fn is_idle(self) -> bool {
        matches!(self, Self::Says(Rest::Idle) | Self::Pool | Self::Loop { .. })
    }
}

/// How the rows of a group are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Looked at in running programs: versions.
    Measured(&'static str),
    /// Read in the source of the project.
    Source(&'static str),
}

/// Rows of one runtime, known in the same way.
#[derive(Debug)]
pub(super) struct Group {
    /// The name of the runtime, for reports.
    pub(super) runtime: &'static str,
    /// How its rows are known.
    #[cfg_attr(not(test), expect(dead_code, reason = "provenance is for the reader, and for a test"))]
    pub(super) known: Known,
    /// Patterns and what they mean.
    pub(super) rows: &'static [(&'static str, Means)],
}

/// A row that was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// The pattern.
    pub(super) pattern: &'static str,
    /// The name of the runtime.
    pub(super) runtime: &'static str,
    /// What it means.
    pub(super) means: Means,
}

const TABLES: [&[Group]; 4] = [native::GROUPS, rust::GROUPS, managed::GROUPS, servers::GROUPS];

/// All rows.
pub(super) fn rows() -> impl Iterator<Item = (&'static Group, Row)> {
    let groups = TABLES.iter().flat_map(|groups| groups.iter());
    groups.flat_map(|group| {
        group.rows.iter().map(move |(pattern, means)| (group, Row { pattern, runtime: group.runtime, means: *means }))
    })
}

/// Rows by the last segment of their pattern, so that a frame is compared with a few of them only.
static INDEX: LazyLock<Index> = LazyLock::new(Index::new);

struct Index {
    by_name: HashMap<&'static str, Vec<Row>>,
    /// Those whose last segment is open at its end.
    open: Vec<Row>,
}

impl Index {
    fn new() -> Self {
        let mut index = Self { by_name: HashMap::new(), open: Vec::new() };
        for (_, row) in rows() {
            let inner = row.pattern.split(" < ").next().unwrap_or_default();
            let last = super::name::last_segment(inner);
            if last.ends_with('*') {
                index.open.push(row);
            } else {
                index.by_name.entry(last).or_default().push(row);
            }
        }
        index
    }
}

/// The row of a function called by `outside`; one that names the caller, too, comes first.
pub(super) fn row_of(function: &str, outside: Option<&str>) -> Option<Row> {
    let named = INDEX.by_name.get(super::name::last_segment(function)).map_or(&[][..], Vec::as_slice);
    let mut plain = None;
    for row in named.iter().chain(&INDEX.open) {
        match row.pattern.split_once(" < ") {
            Some((inner, outer)) => {
                let is_called = outside.is_some_and(|outside| super::name::matches(outer, outside));
                if is_called && super::name::matches(inner, function) {
                    return Some(*row);
                }
            }
            None if plain.is_none() && super::name::matches(row.pattern, function) => plain = Some(*row),
            None => {}
        }
    }
    plain
}

const IDLE: Means = Means::Says(Rest::Idle);
const IO: Means = Means::Says(Rest::Io);
const SLEEP: Means = Means::Says(Rest::Sleep);
const JOIN: Means = Means::Says(Rest::Join);
const CHILD: Means = Means::Says(Rest::Child);
const GC: Means = Means::Says(Rest::Gc);
const LOOP: Means = Means::Loop { leads: false };
const LEADERS_LOOP: Means = Means::Loop { leads: true };
const TURN: Means = Means::Runs(JobKind::Turn);
const JOB: Means = Means::Runs(JobKind::Pool);

/// A lock whose futex word is `offset` bytes behind its beginning (before it, if negative).
const fn at(kind: ResourceKind, named: &'static str, offset: i64) -> Means {
    Means::Lock(LockFrame { kind, named, place: Place::Word(offset), once: false, guarded: false })
}

/// The same, whose holders have a guard.
const fn guarded(kind: ResourceKind, named: &'static str, offset: i64) -> Means {
    Means::Lock(LockFrame { kind, named, place: Place::Word(offset), once: false, guarded: true })
}

/// A lock with guards whose waiters sleep on words of their own, its address beside them.
const fn parked(kind: ResourceKind, named: &'static str) -> Means {
    Means::Lock(LockFrame { kind, named, place: Place::Parked, once: false, guarded: true })
}

/// A lock whose waiters sleep on a word that is no part of it, or in a place of it that is not known.
const fn elsewhere(kind: ResourceKind, named: &'static str) -> Means {
    Means::Lock(LockFrame { kind, named, place: Place::Unknown, once: false, guarded: false })
}

/// Waits for something that is done once by another thread.
const fn awaits_once(named: &'static str) -> Means {
    let place = Place::Word(0);
    Means::Lock(LockFrame { kind: ResourceKind::Mutex, named, place, once: true, guarded: true })
}

/// Something that is done once: who does it marks it as done in the end, and keeps a reference until then.
const fn once(named: &'static str, place: Place) -> Means {
    Means::Once(LockFrame { kind: ResourceKind::Mutex, named, place, once: true, guarded: true })
}
