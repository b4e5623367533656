//! Who waits for which lock of `sync`, and who may have it. Go's locks record no owner, so a holder is inferred from where
//! the others stand: never more than likely.

use super::site::package;
use super::{GoClass, GoProcess, Place, site};
use crate::model::Confidence;
use crate::proc::{GoWait, Goroutine, GoroutineGroup, Stack};
use std::collections::BTreeMap;

/// How a holder was found that stands inside of what takes the lock.
const BY_FUNCTION: &str = "stands inside of the function that takes this lock";
/// How one was found that stands in a method of the same type.
const BY_TYPE: &str = "stands in a method of the type whose method takes this lock";
/// How one was found when nobody else is left.
const BY_ELIMINATION: &str =
    "is the only other one of this package that has not come to rest; it waits for another lock";

/// Goroutines that wait for one lock.
#[derive(Debug)]
pub struct LockQueue<'a> {
    /// Address of the semaphore inside of the lock; without one the line that takes it tells locks apart.
    pub address: Option<u64>,
    /// Whether it is a lock for readers and writers.
    pub is_rw: bool,
    /// The function that wants it, in the largest group.
    pub taker: Place,
    /// The largest group.
    pub group: &'a GoroutineGroup,
    /// All that wait.
    pub waiters: Vec<&'a Goroutine>,
    /// First sight of the wait that has lasted longest, `CLOCK_MONOTONIC` nanoseconds.
    pub since_ns: u64,
}

/// Who seems to have a lock.
#[derive(Clone, Copy, Debug)]
pub struct GoHolder<'a> {
    /// Its group.
    pub group: &'a GoroutineGroup,
    /// The goroutine.
    pub goroutine: &'a Goroutine,
    /// How sure.
    pub confidence: Confidence,
    /// What that rests on.
    pub how: &'static str,
    /// So many others stand there, too.
    pub others: usize,
}

/// The innermost frame that is not part of the lock itself: the function that takes it.
fn taker(stack: &Stack) -> Option<Place> {
    let is_lock = |name: &str| matches!(package(name), "runtime" | "sync" | "internal/sync" | "sync/atomic");
    stack.frames.iter().find(|frame| frame.function.as_deref().is_some_and(|name| !is_lock(name))).and_then(Place::of)
}

/// `main.(*Cache)` of `main.(*Cache).Get`.
fn receiver(function: &str) -> Option<&str> {
    let package = package(function).len();
    let rest = function.get(package..)?;
    if let Some(close) = rest.strip_prefix(".(").and_then(|_| rest.find(')')) {
        return function.get(..package + close + 1);
    }
    None
}

impl GoProcess {
    /// The locks that goroutines of the program wait for, those with most waiters first.
    pub fn lock_queues(&self) -> Vec<LockQueue<'_>> {
        let mut queues: BTreeMap<(Option<u64>, Option<Place>), LockQueue<'_>> = BTreeMap::new();
        let mut sizes: BTreeMap<(Option<u64>, Option<Place>), usize> = BTreeMap::new();
        for group in self.groups().filter(|group| site::class(group) == GoClass::Lock) {
            let Some(taker) = taker(&group.stack) else { continue };
            for member in &group.members {
                let address = match member.wait {
                    Some(GoWait::Semaphore { address }) => Some(address),
                    _ => None,
                };
                let key = (address, address.is_none().then(|| taker.clone()));
                let since_ns = self.waiting_since(member);
                let queue = queues.entry(key.clone()).or_insert_with(|| LockQueue {
                    address,
                    is_rw: is_rw(group),
                    taker: taker.clone(),
                    group,
                    waiters: Vec::new(),
                    since_ns,
                });
                queue.since_ns = queue.since_ns.min(since_ns);
                queue.waiters.push(member);
                let size = sizes.entry(key).or_default();
                if *size < group.members.len() {
                    *size = group.members.len();
                    (queue.group, queue.taker) = (group, taker.clone());
                }
            }
        }
        let mut queues: Vec<LockQueue<'_>> = queues.into_values().collect();
        queues.sort_by_key(|queue| std::cmp::Reverse(queue.waiters.len()));
        queues
    }

    /// Who seems to have the lock that these wait for. `None` if nobody stands where a holder would.
    pub fn holder(&self, queue: &LockQueue<'_>) -> Option<GoHolder<'_>> {
        let function = queue.taker.function.as_str();
        // A function literal runs inside of the function it is written in.
        let within = function.split_once(".func").map_or(function, |(outer, _)| outer);
        let is_inside = |name: &str| name == function || name == within && !within.ends_with("main.main");
        let by_function = self.candidates(queue, |stack| any(stack, is_inside));
        let of_type = receiver(function);
        let by_type =
            || self.candidates(queue, |stack| any(stack, |name| of_type.is_some() && receiver(name) == of_type));
        let (found, how) = match by_function.is_empty() {
            false => (by_function, BY_FUNCTION),
            true => (by_type(), BY_TYPE),
        };
        if found.is_empty() {
            return self.by_elimination(queue);
        }
        let (group, goroutine) =
            *found.iter().min_by_key(|(group, member)| (rank(group), self.waiting_since(member)))?;
        let others = found.len() - 1;
        let confidence = if others == 0 && !queue.is_rw { Confidence::Likely } else { Confidence::Possible };
        Some(GoHolder { group, goroutine, confidence, how, others })
    }

    fn candidates(&self, queue: &LockQueue<'_>, is_one: impl Fn(&Stack) -> bool) -> Vec<(&GoroutineGroup, &Goroutine)> {
        let groups = self.groups().filter(|group| is_one(&group.stack));
        let members = groups.flat_map(|group| group.members.iter().map(move |member| (group, member)));
        members.filter(|(group, member)| !is_waiter(queue, group, member)).collect()
    }

    /// The only goroutine of the same package that does anything but rest, if it waits for another lock itself.
    fn by_elimination(&self, queue: &LockQueue<'_>) -> Option<GoHolder<'_>> {
        let of_package = package(&queue.taker.function);
        let found = self.candidates(queue, |stack| any(stack, |name| package(name) == of_package));
        let is_rest = |group: &GoroutineGroup, member: &Goroutine| {
            member.goid == 1 && matches!(site::class(group), GoClass::WaitGroup | GoClass::Forever)
        };
        let mut found = found.into_iter().filter(|(group, member)| !is_rest(group, member));
        let (group, goroutine) = found.next()?;
        let is_alone = found.next().is_none() && site::class(group) == GoClass::Lock;
        let (confidence, how) = (Confidence::Possible, BY_ELIMINATION);
        is_alone.then_some(GoHolder { group, goroutine, confidence, how, others: 0 })
    }
}

/// Who is likelier to stand there with the lock in hand: in a call or at work, then at another wait.
fn rank(group: &GoroutineGroup) -> u8 {
    match site::class(group) {
        GoClass::Syscall => 0,
        GoClass::Active => 1,
        GoClass::Lock => 2,
        _ => 3,
    }
}

fn any(stack: &Stack, is_it: impl Fn(&str) -> bool) -> bool {
    stack.frames.iter().any(|frame| frame.function.as_deref().is_some_and(&is_it))
}

fn is_rw(group: &GoroutineGroup) -> bool {
    group.reason.contains("RWMutex") || any(&group.stack, |name| name.starts_with("sync.(*RWMutex)"))
}

fn is_waiter(queue: &LockQueue<'_>, group: &GoroutineGroup, member: &Goroutine) -> bool {
    if site::class(group) != GoClass::Lock {
        return false;
    }
    match (queue.address, member.wait) {
        (Some(address), Some(GoWait::Semaphore { address: other })) => address == other,
        // Without an address it may be the same lock, taken elsewhere: no holder then.
        _ => true,
    }
}
