//! The census through `iter/task`: one pass in the kernel, nothing attached anywhere.

use super::decode::{self, Decoder};
use super::object::{self, reason};
use super::row::{Census, Clocks, Pid, SocketLimits, ThreadRow};
use super::socket_files::SocketFiles;
use super::source::{CensusError, Source};
use crate::host::{KernelTypes, clock};
use aya::Ebpf;
use aya::maps::{Array, HashMap as BpfHashMap, MapData};
use aya::programs::Iter;
use observer_ebpf::{ABI_VERSION, ABSENT, FILTER_LISTED, Globals};
use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// The kernel hands out at most 32 KiB a read (eight pages); a buffer that is larger never splits one.
const BUFFER: usize = 64 * 1024;
/// Sleep before a census, so that the reader's last switch-in is "now".
const SETTLE: Duration = Duration::from_micros(50);
/// Threads whose stack one pass can return (size of the map `WANTED`).
const MOST_WANTED: usize = 1024;

/// Why a thread has no row: the kernel takes it for known, and it is not. The next census has it again.
const UNKNOWN: &str = "settled_unknown";

/// Census source over the kernel's task iterator.
pub struct IterSource {
    ebpf: Ebpf,
    program: &'static str,
    refused: Option<String>,
    stacks: Extra,
    sockets: Extra,
    socket_files: Extra,
    buffer: Box<[u8]>,
    /// Of the threads that the kernel leaves out because it wrote them earlier; 0 if it is to write all of them.
    generation: u32,
    /// Rows that the last pass handed out.
    given: usize,
}

/// A program that is loaded when it is first needed.
enum Extra {
    NotTried,
    Loaded,
    Refused(String),
}

impl IterSource {
    /// Loads the iterator: with the kernel's helper for argument registers (5.15), else with our own way
    /// to them.
    pub fn load() -> Result<Self, CensusError> {
        let types = KernelTypes::get().map_err(CensusError::Types)?;
        let globals = Globals {
            abi: ABI_VERSION,
            filter: FILTER_LISTED,
            view_pidns: 0,
            sites: 0,
            wakes: 0,
            habit_after: u32::MAX,
            long_wait_ns: u64::MAX,
            slow_connect_ns: u64::MAX,
        };
        // The probes' maps are not used here.
        let sizes = [
            ("IN_FLIGHT", 1),
            ("PROCESSES", 1),
            ("SOCKETS", 1),
            ("FILTER", 1),
            ("SITES", 1),
            ("WORDS", 1),
            ("WOKEN", 1),
            ("EVENTS", 4096),
            ("STACKS", 4096),
            ("AYA_LOGS", 4096),
        ];
        let mut ebpf = object::load(&types.offsets, &globals, 0, &sizes)
            .map_err(|error| CensusError::Load { reason: reason(&error) })?;
        let (program, refused) = match load(&mut ebpf, "census", "task", types) {
            Ok(()) => ("census", None),
            Err(first) => {
                load(&mut ebpf, "census_by_stack", "task", types)?;
                log::debug!("{first}; registers are found on the kernel stacks");
                ("census_by_stack", (types.offsets.task_stack == ABSENT).then(|| first.to_string()))
            }
        };
        Ok(Self {
            ebpf,
            program,
            refused,
            stacks: Extra::NotTried,
            sockets: Extra::NotTried,
            socket_files: Extra::NotTried,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            generation: 0,
            given: 0,
        })
    }

    /// Why rows lack argument registers; `None` if they have them.
    pub fn degraded(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    fn want(
        &mut self,
        change: impl FnOnce(&mut BpfHashMap<&mut MapData, u32, u8>) -> Result<(), aya::maps::MapError>,
    ) -> Result<(), CensusError> {
        let failed = |reason: String| CensusError::Refused { program: "stacks", reason };
        let map = self.ebpf.map_mut("WANTED").ok_or_else(|| failed("no map WANTED".to_owned()))?;
        BpfHashMap::try_from(map).and_then(|mut map| change(&mut map)).map_err(|error| failed(reason(&error)))
    }

    /// Runs one iterator for what is wanted.
    fn pass_for(&mut self, program: &'static str, wanted: &[Pid]) -> Result<Pass, CensusError> {
        self.want(|map| wanted.iter().try_for_each(|id| map.insert(id, 1, 0)))?;
        let pass = self.pass(program, Vec::new());
        self.want(|map| {
            for id in wanted {
                // Twice in the list: the second removal finds nothing.
                let _ = map.remove(id);
            }
            Ok(())
        })?;
        pass
    }

    /// Runs one iterator to its end.
    fn pass(&mut self, program: &'static str, before: Vec<ThreadRow>) -> Result<Pass, CensusError> {
        let refused =
            |error: &(dyn std::error::Error + 'static)| CensusError::Refused { program, reason: reason(error) };
        let iter = iterator(&mut self.ebpf, program)?;
        let link = iter.attach().map_err(|error| refused(&error))?;
        let link = iter.take_link(link).map_err(|error| refused(&error))?;
        let mut file = link.into_file().map_err(|error| refused(&error))?;
        let mut decoder = Decoder::after(before);
        std::thread::sleep(SETTLE);
        let began = Instant::now();
        let mut kernel = Duration::ZERO;
        loop {
            let asked = Instant::now();
            let answer = file.read(&mut self.buffer);
            kernel += asked.elapsed();
            match answer {
                Ok(0) => break,
                Ok(len) => decoder.push(&self.buffer[..len])?,
                // EAGAIN: the kernel gives the CPU back after a million objects.
                Err(error)
                    if matches!(error.kind(), std::io::ErrorKind::Interrupted | std::io::ErrorKind::WouldBlock) => {}
                Err(error) => {
                    return Err(CensusError::Read { what: "the task iterator".to_owned(), error });
                }
            }
        }
        decoder.finish()?;
        Ok(Pass { decoded: decoder, began, kernel })
    }
}

impl Extra {
    fn load(&mut self, ebpf: &mut Ebpf, program: &'static str, over: &str) -> Result<(), CensusError> {
        if matches!(self, Self::NotTried) {
            let types = KernelTypes::get().map_err(CensusError::Types)?;
            *self = match load(ebpf, program, over, types) {
                Ok(()) => Self::Loaded,
                Err(error) => Self::Refused(error.to_string()),
            };
        }
        match self {
            Self::Refused(reason) => Err(CensusError::Refused { program, reason: reason.clone() }),
            _ => Ok(()),
        }
    }
}

/// One pass over all threads.
struct Pass {
    decoded: Decoder,
    began: Instant,
    /// Time inside the kernel.
    kernel: Duration,
}

fn iterator<'a>(ebpf: &'a mut Ebpf, program: &'static str) -> Result<&'a mut Iter, CensusError> {
    let missing = || CensusError::Refused { program, reason: "not in the object".to_owned() };
    ebpf.program_mut(program).ok_or_else(missing)?.try_into().map_err(|_| missing())
}

fn load(ebpf: &mut Ebpf, program: &'static str, over: &str, types: &KernelTypes) -> Result<(), CensusError> {
    iterator(ebpf, program)?
        .load(over, &types.btf)
        .map_err(|error| CensusError::Refused { program, reason: reason(&error) })
}

impl Source for IterSource {
    /// Kernel stacks of threads (ids of observer's PID namespace), return addresses, innermost first.
    /// A thread that is gone or running is missing or has an empty stack; beyond 1,024 threads the rest
    /// is left out.
    fn kernel_stacks(&mut self, tids: &[Pid]) -> Result<HashMap<Pid, Vec<u64>>, CensusError> {
        self.stacks.load(&mut self.ebpf, "stacks", "task")?;
        let wanted = &tids[..tids.len().min(MOST_WANTED)];
        let pass = self.pass_for("stacks", wanted)?;
        Ok(pass
            .decoded
            .stacks
            .iter()
            .map(|stack| {
                let frames = usize::try_from(stack.frames).unwrap_or(0).min(stack.ips.len());
                (stack.view_tid, stack.ips[..frames].to_vec())
            })
            .collect())
    }

    /// Time limits of the sockets of a process; empty without the kernel's help (`bpf_sock_from_file`, 5.11).
    fn socket_limits(&mut self, pid: Pid) -> Result<BTreeMap<i32, SocketLimits>, CensusError> {
        self.sockets.load(&mut self.ebpf, "socket_limits", "task_file")?;
        let pass = self.pass_for("socket_limits", &[pid])?;
        let limits = pass.decoded.sockets.iter().filter(|socket| socket.view_tgid == pid);
        let limits = limits.filter_map(|socket| Some((i32::try_from(socket.fd).ok()?, decode::socket_limits(socket)?)));
        Ok(limits.collect())
    }

    fn socket_files(&mut self) -> Result<SocketFiles, String> {
        const PROGRAM: &str = "socket_files";
        let offsets = KernelTypes::get().map_err(|error| error.to_string())?.offsets;
        if [offsets.file_inode, offsets.inode_ino, offsets.inode_sb, offsets.sb_magic].contains(&ABSENT) {
            return Err("this kernel's BTF does not tell the inode of a file".to_owned());
        }
        let why = |error: CensusError| match error {
            CensusError::Refused { reason, .. } => reason,
            other => other.to_string(),
        };
        self.socket_files.load(&mut self.ebpf, PROGRAM, "task_file").map_err(why)?;
        let program = iterator(&mut self.ebpf, PROGRAM).map_err(why)?;
        SocketFiles::over(program.fd().map_err(|error| reason(&error))?.as_fd())
    }

    fn take(&mut self) -> Result<Census, CensusError> {
        self.expect(0)?;
        self.census(Vec::new())
    }

    fn take_again(&mut self, before: Vec<ThreadRow>) -> Result<Census, CensusError> {
        if self.generation == 0 || before.len() != self.given {
            // These are not the rows that the kernel knows we have.
            self.expect(self.generation.wrapping_add(1).max(1))?;
        }
        let census = self.census(before);
        if !census.as_ref().is_ok_and(|census| !census.lost.contains_key(UNKNOWN)) {
            self.given = usize::MAX;
        }
        census
    }

    fn name(&self) -> &'static str {
        if self.refused.is_none() { "iter_task" } else { "iter_task without registers" }
    }
}

impl IterSource {
    /// Tells the kernel which threads are known here; with 0 it writes all of them.
    fn expect(&mut self, generation: u32) -> Result<(), CensusError> {
        if self.generation != generation {
            let failed = |reason| CensusError::Refused { program: "census", reason };
            let map = self.ebpf.map_mut("GENERATION").ok_or_else(|| failed("no map GENERATION".to_owned()))?;
            Array::try_from(map)
                .and_then(|mut map: Array<_, u32>| map.set(0, generation, 0))
                .map_err(|error| failed(reason(&error)))?;
            self.generation = generation;
        }
        Ok(())
    }

    fn census(&mut self, before: Vec<ThreadRow>) -> Result<Census, CensusError> {
        let Pass { decoded, began, kernel } = self.pass(self.program, before)?;
        let head = decoded.head.ok_or(CensusError::Malformed { at: 0, what: "no head" })?;
        let tail = decoded.tail.ok_or(CensusError::Malformed { at: 0, what: "no tail" })?;
        let mut rows = decoded.rows;
        rows.sort_unstable_by_key(|row| row.tid);
        self.given = rows.len();
        let mut lost = BTreeMap::new();
        for (reason, count) in [
            ("outside_view", decoded.outside_view),
            ("not_written", tail.visited.saturating_sub(tail.written)),
            (UNKNOWN, decoded.unknown),
        ] {
            if count > 0 {
                lost.insert(reason.to_owned(), count);
            }
        }
        let shift = head.mono_ns as i64;
        let now = clock::now();
        Ok(Census {
            clocks: Clocks {
                mono_ns: head.mono_ns,
                boot_ns: if head.boot_ns != 0 { head.boot_ns } else { now.boot_ns },
                real_ns: (now.real_ns as i64 - (now.mono_ns as i64 - shift)).max(0) as u64,
            },
            took_ns: began.elapsed().as_nanos() as u64,
            kernel_ns: kernel.as_nanos() as u64,
            rows,
            lost,
        })
    }
}
