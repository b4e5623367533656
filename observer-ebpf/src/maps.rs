//! Every map, in one place, its size reasoned.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use observer_ebpf::{
    ACCOUNT_ENTRIES, Attempt, Call, FAMILIES, ProcessKey, ProcessWaits, SETTLED_SLOTS, Settled, SiteKey, SiteRecord,
    ThreadState, Wakes, WordKey, WordRecord,
};

/// Threads (view ids) whose kernel stack is wanted. A report shows a few dozen threads; 1,024 is
/// what one pass can answer without its output outgrowing the census itself.
#[map]
pub(crate) static WANTED: HashMap<u32, u8> = HashMap::with_max_entries(1024, 0);

/// Sleepers that an earlier census wrote whole, by the low bits of the thread id: slots of 32 bytes, 1 MiB. Thread ids
/// are handed out in order, so few share a slot.
#[map]
pub(crate) static SETTLED: Array<Settled> = Array::with_max_entries(SETTLED_SLOTS, 0);

/// Which entries of `SETTLED` the reader knows of; 0 to have every thread written whole.
#[map]
pub(crate) static GENERATION: Array<u32> = Array::with_max_entries(1, 0);

/// Initial process ids to observe under `FILTER_LISTED`: an operator names a handful, `--children`
/// makes it some hundreds.
#[map]
pub(crate) static FILTER: HashMap<u32, u8> = HashMap::with_max_entries(4096, 0);

/// The call each thread is in and the timeouts it passed, by `pid_tgid`. An entry goes with the thread (or with the
/// call, where thread ends are not seen), so it follows the number of threads of observed processes:
/// 32,768 entries of about 320 bytes are 10 MiB. User space may ask for another size before load; overflow is
/// counted.
#[map]
pub(crate) static IN_FLIGHT: HashMap<u64, ThreadState> = HashMap::with_max_entries(32_768, 0);

/// A zeroed thread to insert from: too large for the stack.
#[map]
pub(crate) static ZERO_THREAD: Array<ThreadState> = Array::with_max_entries(1, 0);

/// A call of a thread for which there is no room, while its event is sent.
#[map]
pub(crate) static CALL: PerCpuArray<Call> = PerCpuArray::with_max_entries(1, 0);

/// By family: how its calls are sampled (`SAMPLE_MASK`; see `ProbePlane::set_sampling`). From `GAP_SHIFT` on: how often the
/// family was put back.
#[map]
pub(crate) static SAMPLE: Array<u32> = Array::with_max_entries(FAMILIES as u32, 0);

/// `CLOCK_REALTIME - CLOCK_MONOTONIC`, nanoseconds, as of the last census: the clock may be set meanwhile, and a machine that was
/// suspended comes back with another one.
#[map]
pub(crate) static REALTIME: Array<i64> = Array::with_max_entries(1, 0);

/// Call sites of the audited processes. One entry unless sites are told apart, else 8,192 of about 240 bytes: a
/// program has some hundreds of places that wait. Where frame pointers are missing a thread's stack
/// makes sites of its own, and the least used go.
#[map]
pub(crate) static SITES: LruHashMap<SiteKey, SiteRecord> = LruHashMap::with_max_entries(8192, 0);

/// A zeroed site to insert from.
#[map]
pub(crate) static ZERO_SITE: Array<SiteRecord> = Array::with_max_entries(1, 0);

/// User stacks at bad timeouts, changes of habit and new sites: 31 of them between two drains, eight times
/// as many where sites are told apart.
#[map]
pub(crate) static STACKS: RingBuf = RingBuf::with_byte_size(512 * 1024, 0);

/// By CPU: the second (of the monotonic clock) and the stacks taken in it.
#[map]
pub(crate) static STACK_LIMIT: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);

/// Who wakes which futex word: 16,384 contended words on a host. One entry unless asked for.
#[map]
pub(crate) static WORDS: LruHashMap<WordKey, WordRecord> = LruHashMap::with_max_entries(16_384, 0);

/// Who wakes which thread, by `pid_tgid`. One entry unless asked for.
#[map]
pub(crate) static WOKEN: LruHashMap<u64, Wakes> = LruHashMap::with_max_entries(16_384, 0);

/// Aggregates by process and family: 4,096 processes that use two families each, 8,192 entries of
/// about 480 bytes, 4 MiB.
#[map]
pub(crate) static PROCESSES: HashMap<ProcessKey, ProcessWaits> = HashMap::with_max_entries(8192, 0);

/// A zeroed aggregate to insert from: 408 bytes are too many for the 512-byte stack.
#[map]
pub(crate) static ZERO: Array<ProcessWaits> = Array::with_max_entries(1, 0);

/// TCP sockets in SYN-SENT, by address of the socket. Half-open attempts are bounded by the local
/// port range (28,232 by default); 16,384 at once is already an incident.
#[map]
pub(crate) static SOCKETS: HashMap<u64, Attempt> = HashMap::with_max_entries(16_384, 0);

/// Rare events. 256 KiB hold 1,400 events between two drains.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// What was seen, used and lost, per CPU so that counting costs no shared cache line.
#[map]
pub(crate) static ACCOUNT: PerCpuArray<u64> = PerCpuArray::with_max_entries(ACCOUNT_ENTRIES as u32, 0);

/// Bit mask of families (`1 << FAMILY_*`) that the `sys_enter`/`sys_exit` pair serves, and `THREAD_EXIT`.
#[map]
pub(crate) static ENABLED: Array<u32> = Array::with_max_entries(1, 0);
