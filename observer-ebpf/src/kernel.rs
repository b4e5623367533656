//! Typed readers over kernel structures at injected offsets: the only raw pointer arithmetic here.
//!
//! Two ways to read. `Btf` pointers (handed over by the verifier with their type) are read by plain
//! loads, which the verifier checks against BTF and the kernel guards against faults. Everything
//! else goes through `bpf_probe_read_kernel`. A field whose offset is `ABSENT` reads as zero.

use aya_ebpf::helpers::generated;
use aya_ebpf::helpers::{bpf_get_current_task, bpf_probe_read_kernel, bpf_probe_read_user};
use observer_ebpf::{ABSENT, Globals, Offsets};

/// Offsets of the running kernel, written by the loader.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets::NONE;

/// Settings, written by the loader.
#[unsafe(no_mangle)]
static GLOBALS: Globals = Globals {
    abi: 0,
    filter: 0,
    view_pidns: 0,
    sites: 0,
    wakes: 0,
    habit_after: 0,
    long_wait_ns: 0,
    slow_connect_ns: 0,
};

/// Reads one injected offset; volatile, so that the compiler does not fold the built-in value.
macro_rules! off {
    ($field:ident) => {
        // SAFETY: a field of a static that nothing writes while the program runs.
        unsafe { core::ptr::read_volatile(&raw const $crate::kernel::offsets().$field) }
    };
}
pub(crate) use off;

/// Reads one setting.
macro_rules! setting {
    ($field:ident) => {
        // SAFETY: a field of a static that nothing writes while the program runs.
        unsafe { core::ptr::read_volatile(&raw const $crate::kernel::globals().$field) }
    };
}
pub(crate) use setting;

#[inline(always)]
pub(crate) fn offsets() -> &'static Offsets {
    &OFFSETS
}

#[inline(always)]
pub(crate) fn globals() -> &'static Globals {
    &GLOBALS
}

/// A kernel structure whose type the verifier knows: plain loads.
#[derive(Clone, Copy)]
pub(crate) struct Btf(*const u8);

impl Btf {
    /// Wraps a pointer that the verifier tracks; `None` if null.
    #[inline(always)]
    pub(crate) fn new<T>(ptr: *const T) -> Option<Self> {
        if ptr.is_null() { None } else { Some(Self(ptr.cast())) }
    }

    /// The pointer, for helpers that want one.
    #[inline(always)]
    pub(crate) fn as_ptr<T>(self) -> *mut T {
        self.0.cast_mut().cast()
    }

    /// The field at `offset`, zero if the kernel has none.
    #[inline(always)]
    fn load<T: Copy + Default>(self, offset: u32) -> T {
        if offset == ABSENT {
            return T::default();
        }
        // SAFETY: the verifier refuses the program unless this is a field of the structure.
        unsafe { core::ptr::read_volatile(self.0.add(offset as usize).cast::<T>()) }
    }

    /// A 32-bit field.
    #[inline(always)]
    pub(crate) fn u32(self, offset: u32) -> u32 {
        self.load(offset)
    }

    /// A 64-bit field.
    #[inline(always)]
    pub(crate) fn u64(self, offset: u32) -> u64 {
        self.load(offset)
    }

    /// A 16-bit field.
    #[inline(always)]
    pub(crate) fn u16(self, offset: u32) -> u16 {
        self.load(offset)
    }

    /// The structure a pointer field points to.
    #[inline(always)]
    pub(crate) fn follow(self, offset: u32) -> Option<Self> {
        if offset == ABSENT {
            return None;
        }
        // SAFETY: the verifier refuses the program unless this is a pointer field.
        Self::new(unsafe { core::ptr::read_volatile(self.0.add(offset as usize).cast::<*const u8>()) })
    }

    /// The same structure for reading at computed offsets.
    #[inline(always)]
    pub(crate) fn raw(self) -> Raw {
        Raw(self.0)
    }
}

/// Integers and arrays of them: zeros are a value.
///
/// # Safety
///
/// Any bit pattern is valid.
pub(crate) unsafe trait Integers: Copy {
    /// All zeros.
    const ZERO: Self;
}
// SAFETY: an integer.
unsafe impl Integers for u16 {
    const ZERO: Self = 0;
}
// SAFETY: an integer.
unsafe impl Integers for u32 {
    const ZERO: Self = 0;
}
// SAFETY: an integer.
unsafe impl Integers for i32 {
    const ZERO: Self = 0;
}
// SAFETY: an integer.
unsafe impl Integers for u64 {
    const ZERO: Self = 0;
}
// SAFETY: integers.
unsafe impl<const N: usize> Integers for [u8; N] {
    const ZERO: Self = [0; N];
}

/// A kernel address of which the verifier knows nothing: every read is a guarded copy.
#[derive(Clone, Copy)]
pub(crate) struct Raw(*const u8);

impl Raw {
    /// The calling thread's `task_struct`.
    #[inline(always)]
    pub(crate) fn current_task() -> Self {
        // SAFETY: the helper has no preconditions.
        Self(unsafe { bpf_get_current_task() } as *const u8)
    }

    /// Wraps an address.
    #[inline(always)]
    pub(crate) fn new<T>(ptr: *const T) -> Self {
        Self(ptr.cast())
    }

    /// The address itself, to tell structures apart.
    #[inline(always)]
    pub(crate) fn address(self) -> u64 {
        self.0 as u64
    }

    /// Copies the field at `offset`; `None` if absent or unreadable.
    #[inline(always)]
    pub(crate) fn read<T: Copy>(self, offset: u32) -> Option<T> {
        if offset == ABSENT {
            return None;
        }
        // SAFETY: the helper checks the address and reports a fault.
        unsafe { bpf_probe_read_kernel(self.0.wrapping_add(offset as usize).cast::<T>()) }.ok()
    }

    /// Copies the field at `offset`; zero if absent or unreadable.
    ///
    /// Where the difference does not matter, this spares the verifier two ways to go on from each read:
    /// six reads of a system call's arguments with `read` were 64 ways, and kernel 6.1 refused the kprobe
    /// after a million instructions.
    #[inline(always)]
    pub(crate) fn get<T: Integers>(self, offset: u32) -> T {
        if offset == ABSENT {
            return T::ZERO;
        }
        let mut value = core::mem::MaybeUninit::<T>::uninit();
        // SAFETY: the helper checks the address and fills the whole destination with zeros on a fault.
        unsafe {
            generated::bpf_probe_read_kernel(
                value.as_mut_ptr().cast(),
                size_of::<T>() as u32,
                self.0.wrapping_add(offset as usize).cast(),
            );
            value.assume_init()
        }
    }

    /// The address a pointer field holds; `None` if null or unreadable.
    #[inline(always)]
    pub(crate) fn follow(self, offset: u32) -> Option<Self> {
        let address: u64 = self.get(offset);
        if address == 0 { None } else { Some(Self(address as *const u8)) }
    }
}

/// `struct upid`: an id and its namespace. The layout is asserted against BTF by the loader.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Upid {
    /// The id.
    pub(crate) nr: u32,
    pad: u32,
    /// `struct pid_namespace *`.
    pub(crate) ns: u64,
}

impl Upid {
    /// `pid->numbers[level]`.
    #[inline(always)]
    pub(crate) fn at(pid: Raw, level: u32) -> Option<Self> {
        // 32 levels at most (MAX_PID_NS_LEVEL); the mask bounds the offset for the verifier.
        let offset = off!(pid_numbers);
        if offset == ABSENT {
            return None;
        }
        pid.read((level & 63) * 16 + offset)
    }

    /// Inode number of the namespace.
    #[inline(always)]
    pub(crate) fn inum(&self) -> u32 {
        Raw(self.ns as *const u8).get(off!(pidns_inum))
    }
}

/// The id of `pid` in the namespace with inode `inum`, 0 outside it.
#[inline(always)]
pub(crate) fn id_in_namespace(pid: Raw, inum: u32) -> u32 {
    let level: u32 = pid.get(off!(pid_level));
    let mut at = 0;
    while at < 8 {
        if at > level {
            break;
        }
        if let Some(upid) = Upid::at(pid, at)
            && upid.inum() == inum
        {
            return upid.nr;
        }
        at += 1;
    }
    0
}

/// Thread and process id of the calling thread in observer's PID namespace; zeros outside it.
#[inline(always)]
pub(crate) fn current_view() -> (u32, u32) {
    let inum = setting!(view_pidns);
    let task = Raw::current_task();
    let tid = match task.follow(off!(task_thread_pid)) {
        Some(pid) => id_in_namespace(pid, inum),
        None => 0,
    };
    let tgid = match task.follow(off!(task_group_leader)) {
        Some(leader) => match leader.follow(off!(task_thread_pid)) {
            Some(pid) => id_in_namespace(pid, inum),
            None => 0,
        },
        None => 0,
    };
    (tid, tgid)
}

/// Whether the calling thread lives in observer's PID namespace or below.
#[inline(always)]
pub(crate) fn current_in_view() -> bool {
    let task = Raw::current_task();
    match task.follow(off!(task_thread_pid)) {
        Some(pid) => id_in_namespace(pid, setting!(view_pidns)) != 0,
        None => false,
    }
}

/// `THREAD_SIZE` of x86-64 without KASAN, which doubles it.
pub(crate) const STACK_SIZE: u64 = 16 * 1024;
/// `__USER32_CS` and `__USER_CS`.
pub(crate) const USER32_CS: u64 = 0x23;
pub(crate) const USER_CS: u64 = 0x33;

/// The calling thread's user registers, where a probe is not given them: the last thing on its kernel stack,
/// or (`CONFIG_X86_FRED`, 6.9 and later) 16 bytes below. The code segment proves that they are.
#[inline(always)]
pub(crate) fn current_registers() -> Option<Raw> {
    let stack: u64 = Raw::current_task().get(off!(task_stack));
    let size = off!(regs_size);
    if stack == 0 || size == ABSENT {
        return None;
    }
    let end = stack + STACK_SIZE - u64::from(size);
    let regs = Raw::new(end as *const u8);
    if regs.get::<u64>(off!(regs_cs)) & 0xffff == USER_CS {
        return Some(regs);
    }
    let regs = Raw::new((end - 16) as *const u8);
    if regs.get::<u64>(off!(regs_cs)) & 0xffff == USER_CS { Some(regs) } else { None }
}

/// Copies from the calling process's memory; `None` if it is not readable without a page fault.
#[inline(always)]
pub(crate) fn user<T: Copy>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address and reports a fault.
    unsafe { bpf_probe_read_user(address as *const T) }.ok()
}

/// Adds to a word that other CPUs change too. `core` has no read-modify-write for this target (the
/// instruction set got compare-and-swap only with version 3), so the one instruction is written out.
///
/// # Safety
///
/// `slot` points into a live map value.
#[inline(always)]
pub(crate) unsafe fn add(slot: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!("lock *(u64 *)({slot} + 0) += {value}", slot = in(reg) slot, value = in(reg) value);
    }
}

/// A word of writable memory of the object (`.bss`), kept between calls of one program.
#[repr(transparent)]
pub(crate) struct Word(core::cell::UnsafeCell<u64>);

// SAFETY: every access is one volatile 64-bit load or store.
unsafe impl Sync for Word {}

impl Word {
    /// Zero.
    pub(crate) const fn new() -> Self {
        Self(core::cell::UnsafeCell::new(0))
    }

    /// The value.
    #[inline(always)]
    pub(crate) fn get(&self) -> u64 {
        // SAFETY: a static.
        unsafe { core::ptr::read_volatile(self.0.get()) }
    }

    /// Replaces the value.
    #[inline(always)]
    pub(crate) fn set(&self, value: u64) {
        // SAFETY: a static.
        unsafe { core::ptr::write_volatile(self.0.get(), value) }
    }
}
