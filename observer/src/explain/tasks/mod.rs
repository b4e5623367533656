//! The tasks of a tokio program, from outside: it has no table of them that could be found without symbols, but each task
//! begins with a header that names the table of functions of its type.
//!
//! So the types are searched in the files ([`vtables`]), once per file, and then one pass over the memory of the process
//! looks for their addresses ([`memory`], [`header`]). What was found is read a second time, all together: what is a task
//! with the same id then, is one. Tasks that come and go meanwhile are missed or left out, none is invented.
//!
//! Nothing is stopped, nothing is fetched from swap. Not here: the future of `block_on` (no task), jobs of the blocking
//! pool (owned by no list), tasks before tokio 1.40 (not tried; what differs in shape is not found).

mod header;
mod memory;
mod name;
mod vtables;

#[cfg(any(test, fuzzing))]
pub(in crate::explain) mod made_up;

pub(in crate::explain) use name::Kept as KeptNames;
pub(in crate::explain) use vtables::Tables;

use super::address_space::AddressSpace;
use super::library::Loaded;
use super::pieces::word;
use crate::census::{Pid, ProcessId};
use crate::host::clock;
use crate::proc::maps::Mapping;
use crate::proc::pieces::{Pieces, is_still, read_pieces};
use crate::proc::pool::Steps;
use crate::proc::{MemoryRange, ProcessTasks, Task, TaskGroup};
use header::{ALIGNMENT, Header, VTABLE};
use nix::errno::Errno;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vtables::Vtable;

/// Tasks that are kept; of more only the number.
const MAX_TASKS: usize = 200_000;
/// No more memory is looked through after this.
const LONGEST: Duration = Duration::from_secs(1);
/// The largest groups are named.
const NAMED: usize = 500;
/// Tasks that are read for the second time at once.
const TOGETHER: usize = 512;

/// A type of tasks at its place in a process.
#[derive(Clone, Copy, Debug)]
struct Type {
    /// Where its table is, avma.
    avma: u64,
    vtable: Vtable,
    /// Number of the file: ids are told apart within one.
    module: usize,
}

/// Where something that looks like a task was seen.
#[derive(Clone, Copy, Debug)]
struct Sighting {
    address: u64,
    /// Index of its type.
    of: usize,
    /// Its id, where that was in the same piece.
    id: Option<u64>,
}

/// The tasks of a process; what cannot be read says so in it. `via`: a thread of it.
///
/// May block for as long as the target likes: call it on a reader of the pool.
pub(super) fn read(
    process: ProcessId,
    via: Pid,
    mappings: &[Mapping],
    space: &AddressSpace,
    steps: &Steps,
) -> ProcessTasks {
    let cpu_ns = clock::thread_cpu_ns();
    let mut answer = look(process, via, mappings, space, steps);
    answer.cpu_ns = clock::thread_cpu_ns().saturating_sub(cpu_ns);
    answer
}

fn look(process: ProcessId, via: Pid, mappings: &[Mapping], space: &AddressSpace, steps: &Steps) -> ProcessTasks {
    // A long look at files is no sign of a stuck target.
    steps.compute();
    let mut answer = ProcessTasks::new(process);
    let modules = space.modules();
    let mut types: Vec<Type> = Vec::new();
    let mut unknown = None;
    for (module, (loaded, bias)) in modules.iter().enumerate() {
        let tables = loaded.tasks();
        if answer.version.is_none() {
            answer.version.clone_from(&tables.version);
        }
        if tables.has_runtime && tables.vtables.is_empty() {
            unknown = Some(&tables.version);
        }
        let at_its_place = |vtable: &Vtable| Type { avma: vtable.svma.wrapping_add(*bias), vtable: *vtable, module };
        types.extend(tables.vtables.iter().map(at_its_place));
    }
    if types.is_empty() {
        answer.none = unknown.is_none();
        answer.missing = Some(match unknown {
            None => "it has no tasks of tokio".to_owned(),
            Some(version) => {
                let version = version.as_deref().unwrap_or("of an unknown version");
                format!("tokio {version}: the shape of its tasks is not known")
            }
        });
        return answer;
    }
    types.sort_unstable_by_key(|one| one.avma);
    answer.types = types.len() as u64;
    steps.begin("tasks");
    // The time of the target's own reading: what is learnt of files is learnt once.
    let began = Instant::now();
    answer.taken_ns = clock::monotonic_ns();
    let found = take(via, mappings, &types, began + LONGEST, &mut answer);
    answer.took_ns = clock::whole_ns(began.elapsed());
    steps.compute();
    let found = found.map_err(|errno| match errno {
        Errno::EPERM | Errno::EACCES => {
            "its memory may not be read (EPERM): observer needs CAP_SYS_PTRACE, or root".to_owned()
        }
        errno => format!("its memory cannot be read: {errno:?}"),
    });
    match found.and_then(|found| is_still(process).map(|()| found).map_err(str::to_owned)) {
        Ok(found) => answer.groups = groups(&types, &modules, found),
        Err(why) => answer.missing = Some(why),
    }
    answer
}

/// Both readings: the tasks by the index of their type.
fn take(
    via: Pid,
    mappings: &[Mapping],
    types: &[Type],
    until: Instant,
    answer: &mut ProcessTasks,
) -> Result<Vec<(usize, Task)>, Errno> {
    let mut sightings = Vec::new();
    let mut beyond = 0;
    let extent = memory::each(via, mappings, until, &mut |base, bytes| {
        scan(base, bytes, types, &mut |sighting| match sightings.len() < MAX_TASKS {
            true => sightings.push(sighting),
            false => beyond += 1,
        });
    })?;
    (answer.scanned_bytes, answer.absent_bytes, answer.cut_bytes) =
        (extent.scanned_bytes, extent.absent_bytes, extent.cut_bytes);
    lose(&mut answer.lost, "limit", beyond);
    confirm(&sightings, types, &mut |ranges, pieces| read_pieces(via, ranges, pieces), &mut answer.lost)
}

/// Looks for addresses of tables where tasks have them. `base` is a multiple of [`ALIGNMENT`].
fn scan(base: u64, bytes: &[u8], types: &[Type], found: &mut dyn FnMut(Sighting)) {
    let (Some(first), Some(last)) = (types.first(), types.last()) else { return };
    let all = first.avma..=last.avma;
    for (number, line) in bytes.chunks(ALIGNMENT as usize).enumerate() {
        let Some(pointer) = word(line, VTABLE).filter(|pointer| all.contains(pointer)) else { continue };
        let Ok(of) = types.binary_search_by_key(&pointer, |one| one.avma) else { continue };
        let Some(one) = types.get(of) else { continue };
        let at = number as u64 * ALIGNMENT;
        let task = bytes.get(at as usize..).unwrap_or_default();
        let id = match (task.len() as u64) < Header::len(&one.vtable) {
            // It goes on in the next piece.
            true => None,
            false => match Header::of(task, &one.vtable, one.avma) {
                Some(header) => Some(header.id),
                None => continue,
            },
        };
        found(Sighting { address: base + at, of, id });
    }
}

type ReadPieces<'a> = dyn FnMut(&[MemoryRange], &mut Pieces) -> Result<(), Errno> + 'a;

/// Reads what was seen once more.
fn confirm(
    sightings: &[Sighting],
    types: &[Type],
    read: &mut ReadPieces<'_>,
    lost: &mut BTreeMap<String, u64>,
) -> Result<Vec<(usize, Task)>, Errno> {
    let mut tasks = Vec::with_capacity(sightings.len());
    let mut pieces = Pieces::default();
    // Of the copies of a task in memory only one is it.
    let mut ids: HashSet<(usize, u64)> = HashSet::new();
    for together in sightings.chunks(TOGETHER) {
        let len = |seen: &Sighting| types.get(seen.of).map_or(0, |one| Header::len(&one.vtable));
        let ranges: Vec<MemoryRange> =
            together.iter().map(|seen| MemoryRange { addr: seen.address, len: len(seen) as u32 }).collect();
        read(&ranges, &mut pieces)?;
        for (index, seen) in together.iter().enumerate() {
            let Some(one) = types.get(seen.of) else { continue };
            let header = Header::of(pieces.get(index), &one.vtable, one.avma);
            let Some(header) = header.filter(|header| seen.id.is_none_or(|id| id == header.id)) else {
                // Without an id it may never have been one.
                lose(lost, "changed", u64::from(seen.id.is_some()));
                continue;
            };
            if !ids.insert((one.module, header.id)) {
                lose(lost, "duplicate", 1);
                continue;
            }
            let Header { id, state, cancelled } = header;
            tasks.push((seen.of, Task { id, address: seen.address, state, cancelled }));
        }
    }
    Ok(tasks)
}

fn lose(lost: &mut BTreeMap<String, u64>, why: &str, count: u64) {
    if count > 0 {
        *lost.entry(why.to_owned()).or_default() += count;
    }
}

/// Tasks of the same type together, named; the largest groups first.
fn groups(types: &[Type], modules: &[(&Arc<Loaded>, u64)], tasks: Vec<(usize, Task)>) -> Vec<TaskGroup> {
    let mut by_type: BTreeMap<usize, Vec<Task>> = BTreeMap::new();
    for (of, task) in tasks {
        by_type.entry(of).or_default().push(task);
    }
    let mut by_type: Vec<(usize, Vec<Task>)> = by_type.into_iter().collect();
    by_type.sort_by_key(|(of, members)| (std::cmp::Reverse(members.len()), *of));
    let mut groups = Vec::with_capacity(by_type.len());
    for (number, (of, mut members)) in by_type.into_iter().enumerate() {
        let Some(one) = types.get(of) else { continue };
        let Some((loaded, _)) = modules.get(one.module) else { continue };
        members.sort_unstable_by_key(|task| task.id);
        let name = if number < NAMED { name::of(loaded, &one.vtable) } else { name::Name::default() };
        groups.push(TaskGroup {
            future: name.future,
            shared: name.shared,
            vtable: one.avma,
            module: loaded.path.clone(),
            poll: one.vtable.poll,
            function: name.function,
            bytes: one.vtable.trailer,
            members,
        });
    }
    groups
}

#[cfg(test)]
mod tests;
