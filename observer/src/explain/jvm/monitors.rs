//! From the list of threads to the monitors they wait for, and to whoever owns those.
//!
//! The JVM runs on while it is read, so it is looked at twice, and what both looks show is believed.

use super::vm_structs::VmStructs;
use crate::census::Pid;
use crate::explain::pieces::{Memory, TOGETHER, number, word};
use crate::proc::{RuntimeLock, RuntimeLockKind};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// More threads than any JVM has.
const MAX_THREADS: u64 = 100_000;
/// `PID_MAX_LIMIT` of a 64-bit kernel.
const MAX_TID: u32 = 1 << 22;
/// The fields we need of one object lie within so many bytes (JDK 17: 240, JDK 25: 1,064).
const MAX_SPAN: u64 = 4096;
/// `LockStack::CAPACITY`.
const LOCK_STACK: u64 = 8;
/// `ObjectMonitor::ANONYMOUS_OWNER`: a lock of the lock stack that was inflated by somebody else than its owner.
const ANONYMOUS: u64 = 1;

/// Who waits for which monitor.
pub(super) fn read(structs: &VmStructs, memory: &mut Memory<'_>) -> Result<Vec<RuntimeLock>, String> {
    let layout = Layout::new(structs)?;
    let first = layout.look(memory)?;
    let second = layout.look(memory)?;
    let first: HashMap<u64, RuntimeLock> = first.into_iter().collect();
    let both = second.into_iter().filter_map(|(thread, now)| {
        let before = first.get(&thread)?;
        let same = RuntimeLock { owner: now.owner, ..*before } == now;
        same.then(|| RuntimeLock { owner: now.owner.filter(|_| before.owner == now.owner), ..now })
    });
    Ok(both.collect())
}

/// How `ObjectMonitor::_owner` names the owner.
#[derive(Clone, Copy, Debug)]
enum OwnerKind {
    /// Its `JavaThread`, or the `BasicLock` on its stack that it locked before the monitor was needed (JDK 17).
    Pointer,
    /// The id of its `java.lang.Thread`, which is at this place of its `JavaThread` (JDK 25).
    Id(u64),
}

/// The locks of a thread that have no monitor yet, in its `JavaThread`.
#[derive(Clone, Copy, Debug)]
struct LockStack {
    top: u64,
    base: u64,
}

/// Where the fields are.
#[derive(Debug)]
struct Layout {
    /// Address of the pointer to the list of threads.
    list: u64,
    length: u64,
    threads: u64,
    os_thread: u64,
    pending: u64,
    waiting: u64,
    stack_base: u64,
    stack_size: u64,
    lock_stack: Option<LockStack>,
    tid: u64,
    owner: u64,
    owner_kind: OwnerKind,
    object: Option<u64>,
    stack_locker: Option<u64>,
    /// What is read of each `JavaThread` and `ObjectMonitor`.
    thread_span: Span,
    monitor_span: Span,
}

/// A part of an object.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u64,
    len: u32,
}

impl Span {
    /// The part that holds these words.
    fn of(words: impl IntoIterator<Item = u64>) -> Option<Self> {
        let (start, last) = words.into_iter().fold((u64::MAX, 0), |(a, b), word| (a.min(word), b.max(word)));
        let len = last.checked_sub(start)? + 8;
        (len <= MAX_SPAN).then_some(Self { start, len: len as u32 })
    }

    fn each(self, objects: &[u64], memory: &mut Memory<'_>) -> Vec<Vec<u8>> {
        memory.each(objects.iter().map(|object| object.wrapping_add(self.start)), self.len)
    }

    fn word(self, bytes: &[u8], field: u64) -> Option<u64> {
        word(bytes, field.checked_sub(self.start)?)
    }

    fn number(self, bytes: &[u8], field: u64) -> Option<u32> {
        number(bytes, field.checked_sub(self.start)?)
    }
}

/// A thread as it was read.
#[derive(Debug)]
struct Thread {
    /// Its `JavaThread`.
    address: u64,
    tid: Pid,
    pending: u64,
    waiting: u64,
    /// Lowest address of its stack, and behind the highest.
    stack: (u64, u64),
    id: Option<u64>,
    /// Objects on its lock stack.
    locked: Vec<u64>,
}

/// A monitor as it was read.
#[derive(Clone, Copy, Debug)]
struct Monitor {
    owner: u64,
    /// The `WeakHandle` of its object: the address of a reference to it.
    object: u64,
    stack_locker: u64,
}

impl Layout {
    fn new(structs: &VmStructs) -> Result<Self, String> {
        const THREAD: &[&str] = &["JavaThread", "Thread"];
        let owner_kind = match structs.type_string("ObjectMonitor", "_owner") {
            None => OwnerKind::Pointer,
            Some(name) if name.ends_with(b"*") => OwnerKind::Pointer,
            Some(b"int64_t" | b"jlong") => {
                // JDK 24 is said to call it by the second name; none was at hand.
                let id = structs.offset(THREAD, "_monitor_owner_id").or_else(|why| {
                    let older = structs.optional_offset(THREAD, "_lock_id");
                    older.ok_or(why)
                })?;
                OwnerKind::Id(id)
            }
            Some(name) => return Err(format!("ObjectMonitor::_owner is of a new type, {}", name.escape_ascii())),
        };
        let lock_stack = structs.optional_offset(THREAD, "_lock_stack").and_then(|at| {
            let top = at + structs.optional_offset(&["LockStack"], "_top")?;
            Some(LockStack { top, base: at + structs.optional_offset(&["LockStack"], "_base[0]")? })
        });
        let (os_thread, pending) =
            (structs.offset(THREAD, "_osthread")?, structs.offset(THREAD, "_current_pending_monitor")?);
        let waiting = structs.offset(THREAD, "_current_waiting_monitor")?;
        let (stack_base, stack_size) = (structs.offset(THREAD, "_stack_base")?, structs.offset(THREAD, "_stack_size")?);
        let owner = structs.offset(&["ObjectMonitor"], "_owner")?;
        let object = structs.optional_offset(&["ObjectMonitor"], "_object");
        let stack_locker = structs.optional_offset(&["ObjectMonitor"], "_stack_locker");
        let thread_words = [os_thread, pending, waiting, stack_base, stack_size]
            .into_iter()
            .chain(if let OwnerKind::Id(id) = owner_kind { Some(id) } else { None })
            .chain(lock_stack.iter().flat_map(|stack| [stack.top, stack.base, stack.base + (LOCK_STACK - 1) * 8]));
        let monitor_words = std::iter::once(owner).chain(object).chain(stack_locker);
        const SPREAD: &str = "the fields of this JVM's objects lie further apart than in any JDK";
        Ok(Self {
            list: structs.address("ThreadsSMRSupport", "_java_thread_list")?,
            length: structs.offset(&["ThreadsList"], "_length")?,
            threads: structs.offset(&["ThreadsList"], "_threads")?,
            tid: structs.offset(&["OSThread"], "_thread_id")?,
            thread_span: Span::of(thread_words).ok_or(SPREAD)?,
            monitor_span: Span::of(monitor_words).ok_or(SPREAD)?,
            os_thread,
            pending,
            waiting,
            stack_base,
            stack_size,
            lock_stack,
            owner,
            owner_kind,
            object,
            stack_locker,
        })
    }

    /// Who waits, by the address of its `JavaThread`, in the order of the list.
    fn look(&self, memory: &mut Memory<'_>) -> Result<Vec<(u64, RuntimeLock)>, String> {
        let threads = self.threads(memory)?;
        let wanted: BTreeSet<u64> = threads.iter().flat_map(|thread| [thread.pending, thread.waiting]).collect();
        let wanted: Vec<u64> = wanted.into_iter().filter(|monitor| *monitor != 0).collect();
        let monitors = self.monitors(&wanted, memory);
        let owners = Owners::new(&threads);
        let handles = monitors.values().filter(|monitor| monitor.owner == ANONYMOUS).map(|monitor| monitor.object);
        let handles: BTreeSet<u64> = handles.filter(|handle| *handle != 0).collect();
        let objects: HashMap<u64, Option<u64>> =
            handles.iter().copied().zip(memory.words(handles.iter().copied())).collect();
        let waits = threads.iter().filter_map(|thread| {
            let entering = thread.pending != 0;
            let address = if entering { thread.pending } else { thread.waiting };
            let monitor = monitors.get(&address)?;
            let object = objects.get(&monitor.object).copied().flatten();
            let owner = owners.of(monitor, self.owner_kind, object);
            let (waiter, kind) = (thread.tid, RuntimeLockKind::Monitor);
            let row = RuntimeLock { waiter, address, kind, owner, entering, turns: 0 };
            // Who owns it does not wait for it any more.
            (owner != Some(thread.tid)).then_some((thread.address, row))
        });
        Ok(waits.collect())
    }

    fn threads(&self, memory: &mut Memory<'_>) -> Result<Vec<Thread>, String> {
        const UNREADABLE: &str = "the JVM's list of threads cannot be read";
        let list = memory.word(self.list).ok_or(UNREADABLE)?;
        let fields = [list.wrapping_add(self.length), list.wrapping_add(self.threads)];
        let [Some(length), Some(array)] = memory.words(fields.into_iter())[..] else {
            return Err(UNREADABLE.to_owned());
        };
        // It is a `uint`.
        let length = length & u64::from(u32::MAX);
        if length > MAX_THREADS {
            return Err(format!("the JVM claims {length} threads"));
        }
        let array = memory.bytes(array, length * 8);
        let mut addresses = Vec::with_capacity(length as usize);
        let mut seen = BTreeSet::new();
        for index in 0..length {
            let address = word(&array, index * 8).ok_or(UNREADABLE)?;
            if address != 0 && seen.insert(address) {
                addresses.push(address);
            }
        }
        let mut threads = Vec::with_capacity(addresses.len());
        for together in addresses.chunks(TOGETHER) {
            let pieces = self.thread_span.each(together, memory);
            let at_tid = |bytes: &Vec<u8>| self.thread_span.word(bytes, self.os_thread).unwrap_or_default();
            let tids = memory.each(pieces.iter().map(|bytes| at_tid(bytes).wrapping_add(self.tid)), 4);
            for ((address, bytes), tid) in together.iter().zip(&pieces).zip(tids) {
                threads.extend(number(&tid, 0).and_then(|tid| self.thread(*address, bytes, tid)));
            }
        }
        if threads.is_empty() {
            return Err("none of the JVM's threads can be read".to_owned());
        }
        Ok(threads)
    }

    /// `None` for one that has no thread of the kernel (yet), or was not read completely.
    fn thread(&self, address: u64, bytes: &[u8], tid: u32) -> Option<Thread> {
        let at = |field| self.thread_span.word(bytes, field);
        let base = at(self.stack_base)?;
        let id = match self.owner_kind {
            OwnerKind::Id(field) => Some(at(field)?),
            OwnerKind::Pointer => None,
        };
        let thread = Thread {
            address,
            tid,
            pending: at(self.pending)?,
            waiting: at(self.waiting)?,
            stack: (base.checked_sub(at(self.stack_size)?)?, base),
            id,
            locked: self.locked(bytes).unwrap_or_default(),
        };
        (1..=MAX_TID).contains(&tid).then_some(thread)
    }

    fn locked(&self, bytes: &[u8]) -> Option<Vec<u64>> {
        let LockStack { top, base } = self.lock_stack?;
        // Where the next one would be, counted from the `JavaThread`.
        let end = u64::from(self.thread_span.number(bytes, top)?);
        let count = end.checked_sub(base)? / 8;
        if count > LOCK_STACK {
            return None;
        }
        (0..count).map(|index| self.thread_span.word(bytes, base + index * 8)).collect()
    }

    fn monitors(&self, addresses: &[u64], memory: &mut Memory<'_>) -> BTreeMap<u64, Monitor> {
        let mut monitors = BTreeMap::new();
        for together in addresses.chunks(TOGETHER) {
            let pieces = self.monitor_span.each(together, memory);
            for (address, bytes) in together.iter().zip(pieces) {
                let at = |field| self.monitor_span.word(&bytes, field);
                let optional = |field: Option<u64>| field.and_then(at).unwrap_or_default();
                if let Some(owner) = at(self.owner) {
                    let (object, stack_locker) = (optional(self.object), optional(self.stack_locker));
                    monitors.insert(*address, Monitor { owner, object, stack_locker });
                }
            }
        }
        monitors
    }
}

/// Threads by whatever may name an owner. What names two of them names none.
struct Owners {
    by_address: HashMap<u64, Pid>,
    by_id: HashMap<u64, Option<Pid>>,
    by_locked: HashMap<u64, Option<Pid>>,
    /// In the order of addresses.
    stacks: Vec<((u64, u64), Pid)>,
}

impl Owners {
    fn new(threads: &[Thread]) -> Self {
        let unique = |named: &mut HashMap<u64, Option<Pid>>, name, tid| {
            named.entry(name).and_modify(|known| *known = known.filter(|known| *known == tid)).or_insert(Some(tid));
        };
        let (mut by_id, mut by_locked) = (HashMap::new(), HashMap::new());
        for thread in threads {
            if let Some(id) = thread.id {
                unique(&mut by_id, id, thread.tid);
            }
            for object in &thread.locked {
                unique(&mut by_locked, *object, thread.tid);
            }
        }
        let mut stacks: Vec<_> = threads.iter().map(|thread| (thread.stack, thread.tid)).collect();
        stacks.sort_unstable();
        let by_address = threads.iter().map(|thread| (thread.address, thread.tid)).collect();
        Self { by_address, by_id, by_locked, stacks }
    }

    fn of(&self, monitor: &Monitor, kind: OwnerKind, object: Option<u64>) -> Option<Pid> {
        match (monitor.owner, kind) {
            (0, _) => None,
            // Without an object to look for, the reference to it is empty or gone.
            (ANONYMOUS, _) => {
                let by_stack = self.by_stack(monitor.stack_locker);
                by_stack.or_else(|| self.by_locked.get(&object.filter(|object| *object != 0)?).copied()?)
            }
            (id, OwnerKind::Id(_)) => self.by_id.get(&id).copied().flatten(),
            (address, OwnerKind::Pointer) => self.by_address.get(&address).copied().or_else(|| self.by_stack(address)),
        }
    }

    fn by_stack(&self, address: u64) -> Option<Pid> {
        let behind = self.stacks.partition_point(|((start, _), _)| *start <= address);
        let ((_, end), tid) = self.stacks.get(behind.checked_sub(1)?)?;
        (address < *end).then_some(*tid)
    }
}
