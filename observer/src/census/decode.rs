//! The census stream, record by record, into rows. Bytes in, rows out; no I/O.

use super::object::read;
use super::row::{ProcessId, Registers, SocketLimit, SocketLimits, SyscallInProgress, ThreadRow};
use super::source::CensusError;
use observer_ebpf::{
    CensusHead, CensusTail, RECORD_HEAD, RECORD_SETTLED, RECORD_SOCKET, RECORD_SOCKET_FILE, RECORD_STACK, RECORD_TAIL,
    RECORD_TASK, RecordPrefix, SettledRecord, SocketFileRecord, SocketRecord, StackRecord, TASK_COMPAT, TASK_REGS,
    TASK_STINT, TaskRecord,
};

/// Takes the stream in pieces of any size.
#[derive(Default)]
pub(super) struct Decoder {
    /// The beginning of a record whose end has not come yet.
    rest: Vec<u8>,
    at: u64,
    pub(super) head: Option<CensusHead>,
    pub(super) tail: Option<CensusTail>,
    pub(super) rows: Vec<ThreadRow>,
    pub(super) stacks: Vec<StackRecord>,
    pub(super) sockets: Vec<SocketRecord>,
    /// Descriptors that are sockets, each with its inode.
    pub(super) socket_files: Vec<(i32, u32)>,
    /// Threads without an id in observer's PID namespace: on their way out, or never inside.
    pub(super) outside_view: u64,
    /// Rows of the pass before that are still ahead of us, in its order.
    before: std::vec::IntoIter<ThreadRow>,
    /// Settled threads of which no earlier row is there.
    pub(super) unknown: u64,
}

impl Decoder {
    /// A decoder that knows the rows of the pass before, in the order in which they came.
    pub(super) fn after(before: Vec<ThreadRow>) -> Self {
        let rows = Vec::with_capacity(before.len() + before.len() / 8);
        Self { rows, before: before.into_iter(), ..Self::default() }
    }

    /// Takes the next piece.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), CensusError> {
        let joined;
        let mut piece = piece;
        if !self.rest.is_empty() {
            let mut bytes = std::mem::take(&mut self.rest);
            bytes.extend_from_slice(piece);
            joined = bytes;
            piece = &joined;
        }
        while let Some(prefix) = read::<RecordPrefix>(piece) {
            let len = prefix.len as usize;
            if len < size_of::<RecordPrefix>() || len > 4096 {
                return Err(self.malformed("a record of impossible length"));
            }
            let Some(record) = piece.get(..len) else {
                break;
            };
            self.record(prefix.kind, record)?;
            piece = &piece[len..];
            self.at += len as u64;
        }
        self.rest = piece.to_vec();
        Ok(())
    }

    /// Takes a row over from the pass before. Threads come in the same order in every pass, by their id.
    fn settle(&mut self, tid: u32) {
        match self.before.as_slice().iter().position(|row| row.initial.0 == tid) {
            Some(at) => self.rows.extend(self.before.nth(at)),
            None => self.unknown += 1,
        }
    }

    /// The stream has ended.
    pub(super) fn finish(&self) -> Result<(), CensusError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.malformed("it ends inside a record")) }
    }

    fn malformed(&self, what: &'static str) -> CensusError {
        CensusError::Malformed { at: self.at, what }
    }

    fn record(&mut self, kind: u32, bytes: &[u8]) -> Result<(), CensusError> {
        match kind {
            RECORD_HEAD => {
                self.head = Some(read(bytes).ok_or_else(|| self.malformed("a short head"))?);
            }
            RECORD_TASK => {
                let task = read(bytes).ok_or_else(|| self.malformed("a short task record"))?;
                let head = self.head.ok_or_else(|| self.malformed("a task before the head"))?;
                match row(&head, &task) {
                    Some(row) => self.rows.push(row),
                    None => self.outside_view += 1,
                }
            }
            RECORD_SETTLED => {
                let settled: SettledRecord = read(bytes).ok_or_else(|| self.malformed("a short settled record"))?;
                self.settle(settled.tid);
            }
            RECORD_TAIL => {
                self.tail = Some(read(bytes).ok_or_else(|| self.malformed("a short tail"))?);
            }
            RECORD_STACK => {
                let stack = read(bytes).ok_or_else(|| self.malformed("a short stack"))?;
                self.stacks.push(stack);
            }
            RECORD_SOCKET => {
                let socket = read(bytes).ok_or_else(|| self.malformed("a short socket"))?;
                self.sockets.push(socket);
            }
            RECORD_SOCKET_FILE => {
                let SocketFileRecord { fd, inode, .. } =
                    read(bytes).ok_or_else(|| self.malformed("a short socket file"))?;
                let fd = i32::try_from(fd).map_err(|_| self.malformed("a descriptor of impossible size"))?;
                self.socket_files.push((fd, inode));
            }
            _ => return Err(self.malformed("a record of unknown kind")),
        }
        Ok(())
    }
}

/// The limits in a record; `None` if the length of a tick cannot be told.
pub(super) fn socket_limits(record: &SocketRecord) -> Option<SocketLimits> {
    let limit = |ticks: u64| match i64::try_from(ticks) {
        Ok(i64::MAX) | Err(_) => Some(SocketLimit::None),
        Ok(_) => Some(SocketLimit::After(ticks.saturating_mul(tick_ns(record.jiffies, record.mono_ns)?))),
    };
    Some(SocketLimits { receive: limit(record.receive)?, send: limit(record.send)? })
}

/// The length of a tick: of the usual rates the one by which the ticks so far took the time so far.
fn tick_ns(jiffies: u64, mono_ns: u64) -> Option<u64> {
    const RATES: [u64; 6] = [1000, 300, 250, 100, 500, 1200];
    let rate = RATES.into_iter().find(|rate| {
        // `INITIAL_JIFFIES` (include/linux/jiffies.h).
        let ticks = jiffies.wrapping_sub((1 << 32) - 300 * rate);
        let took = u128::from(ticks) * 1_000_000_000 / u128::from(*rate);
        took.abs_diff(u128::from(mono_ns)) < u128::from(mono_ns) / 50 + 2_000_000_000
    });
    rate.map(|rate| 1_000_000_000 / rate)
}

/// A thread name as the kernel keeps it: bytes up to NUL, not necessarily UTF-8.
pub(super) fn comm(bytes: &[u8]) -> String {
    let len = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..len]).into_owned()
}

/// One record as a row; `None` for a thread without an id in observer's PID namespace.
fn row(head: &CensusHead, task: &TaskRecord) -> Option<ThreadRow> {
    if task.view_tid == 0 || task.view_tgid == 0 {
        return None;
    }
    let on_cpu = task.on_cpu != 0;
    // A thread on a CPU may be outside the kernel, with the registers of an earlier entry.
    let has_registers = task.bits & TASK_REGS != 0 && !on_cpu;
    // The reader has just been switched in: its arrival on the run-queue clock is `mono_ns`.
    let to_mono = |runqueue_ns: u64| {
        if runqueue_ns == 0 || head.reader_last_arrival == 0 {
            return None;
        }
        let shift = head.mono_ns as i64 - head.reader_last_arrival as i64;
        Some((runqueue_ns as i64).saturating_add(shift).clamp(0, head.mono_ns as i64) as u64)
    };
    let stint = if task.bits & TASK_STINT != 0 { task.stint_ns } else { 0 };
    let left_cpu = match task.last_arrival {
        0 => 0,
        arrival => arrival.saturating_add(stint),
    };
    let syscall = if has_registers { u32::try_from(task.syscall).ok() } else { None };
    Some(ThreadRow {
        tid: task.view_tid,
        process: ProcessId { pid: task.view_tgid, start_ns: task.process_start_boot_ns },
        initial: (task.tid, task.tgid),
        own: (task.own_tid, task.own_tgid),
        pidns: task.pidns,
        ppid: task.view_ppid,
        tracer: task.view_tracer,
        comm: comm(&task.comm),
        state: task.state,
        exit_state: task.exit_state,
        flags: task.flags,
        jobctl: task.jobctl,
        compat: task.bits & TASK_COMPAT != 0,
        on_cpu,
        start_ns: task.start_boot_ns,
        nvcsw: task.nvcsw,
        nivcsw: task.nivcsw,
        cpu_ns: task.cpu_ns,
        off_cpu_since_ns: if on_cpu { None } else { to_mono(left_cpu) },
        queued_since_ns: if on_cpu { None } else { to_mono(task.last_queued) },
        syscall: syscall.map(|number| SyscallInProgress { number, args: task.args }),
        registers: has_registers.then_some(Registers { ip: task.ip, sp: task.sp, bp: Some(task.bp) }),
        cgroup_id: task.cgroup_id,
        blocker: task.blocker,
        blocker_tid: task.blocker_tid,
        blocker_flags: task.blocker_flags,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_sockets() {
        let record = |receive, rate: u64, up_s: u64| SocketRecord {
            prefix: RecordPrefix { kind: RECORD_SOCKET, len: 48 },
            view_tgid: 1,
            fd: 3,
            receive,
            send: i64::MAX as u64,
            jiffies: (1 << 32) - 300 * rate + up_s * rate,
            mono_ns: up_s * 1_000_000_000,
        };
        let after = |record| socket_limits(&record).map(|limits| (limits.receive, limits.send));
        for rate in [100, 250, 300, 1000] {
            for up_s in [30, 86_400, 400 * 86_400] {
                // A third of a nanosecond is lost with 300 ticks a second.
                let tick = 1_000_000_000 / rate;
                let expected = Some((SocketLimit::After(5 * rate * tick), SocketLimit::None));
                assert_eq!(after(record(5 * rate, rate, up_s)), expected, "{rate} Hz, up {up_s} s");
            }
        }
        assert_eq!(after(record(i64::MAX as u64, 100, 30)), Some((SocketLimit::None, SocketLimit::None)));
        assert_eq!(after(SocketRecord { jiffies: 7, ..record(5, 100, 86_400) }), None, "a tick of unknown length");
    }

    fn head_bytes(mono: u64, arrival: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&RECORD_HEAD.to_ne_bytes());
        bytes.extend_from_slice(&40u32.to_ne_bytes());
        for word in [mono, mono, arrival, 7] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    fn task_bytes() -> Vec<u8> {
        let mut bytes = vec![0; size_of::<TaskRecord>()];
        let put = |bytes: &mut Vec<u8>, at: usize, word: &[u8]| bytes[at..at + word.len()].copy_from_slice(word);
        put(&mut bytes, 0, &RECORD_TASK.to_ne_bytes());
        put(&mut bytes, 4, &256u32.to_ne_bytes());
        put(&mut bytes, std::mem::offset_of!(TaskRecord, view_tid), &12u32.to_ne_bytes());
        put(&mut bytes, std::mem::offset_of!(TaskRecord, view_tgid), &11u32.to_ne_bytes());
        put(&mut bytes, std::mem::offset_of!(TaskRecord, last_arrival), &4_000u64.to_ne_bytes());
        put(&mut bytes, std::mem::offset_of!(TaskRecord, stint_ns), &500u64.to_ne_bytes());
        put(&mut bytes, std::mem::offset_of!(TaskRecord, bits), &(TASK_STINT | TASK_REGS).to_ne_bytes());
        put(&mut bytes, std::mem::offset_of!(TaskRecord, syscall), &(-1i64).to_ne_bytes());
        put(&mut bytes, std::mem::offset_of!(TaskRecord, comm), b"a) (b\n\xff");
        bytes
    }

    #[test]
    fn pieces_of_any_size_make_the_same_rows() -> Result<(), CensusError> {
        let mut stream = head_bytes(10_000, 6_000);
        stream.extend(task_bytes());
        for size in 1..stream.len() {
            let mut decoder = Decoder::default();
            for piece in stream.chunks(size) {
                decoder.push(piece)?;
            }
            decoder.finish()?;
            assert_eq!(decoder.rows.len(), 1);
            let row = &decoder.rows[0];
            assert_eq!((row.tid, row.process.pid), (12, 11));
            // Arrived at 4,000, ran 500, and the clocks are 4,000 apart.
            assert_eq!(row.off_cpu_since_ns, Some(8_500));
            assert_eq!(row.comm, "a) (b\n\u{fffd}");
            assert_eq!(row.syscall, None);
            assert!(row.registers.is_some());
        }
        Ok(())
    }

    fn socket_file_bytes(fd: u32, inode: u32) -> Vec<u8> {
        [RECORD_SOCKET_FILE, 16, fd, inode].into_iter().flat_map(u32::to_ne_bytes).collect()
    }

    #[test]
    fn sockets_in_pieces_of_any_size() -> Result<(), CensusError> {
        let expected = [(3, 4711), (i32::MAX, u32::MAX)];
        let stream: Vec<u8> =
            expected.iter().flat_map(|(fd, inode)| socket_file_bytes(fd.unsigned_abs(), *inode)).collect();
        for size in 1..=stream.len() {
            let mut decoder = Decoder::default();
            stream.chunks(size).try_for_each(|piece| decoder.push(piece))?;
            decoder.finish()?;
            assert_eq!(decoder.socket_files, expected);
        }
        let refused = |bytes: &[u8]| Decoder::default().push(bytes).is_err();
        assert!(refused(&socket_file_bytes(1 << 31, 1)), "no descriptor is negative");
        let short: Vec<u8> = [RECORD_SOCKET_FILE, 12, 3].into_iter().flat_map(u32::to_ne_bytes).collect();
        assert!(refused(&short));
        Ok(())
    }

    #[test]
    fn nonsense_is_refused() -> Result<(), CensusError> {
        assert!(Decoder::default().push(&[9, 0, 0, 0, 8, 0, 0, 0]).is_err());
        assert!(Decoder::default().push(&[1, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(Decoder::default().push(&[1, 0, 0, 0, 9, 0, 0, 0, 0]).is_err());
        assert!(Decoder::default().push(&task_bytes()).is_err(), "a task before the head");
        let mut cut = Decoder::default();
        cut.push(&head_bytes(1, 1)[..39])?;
        assert!(cut.finish().is_err());
        Ok(())
    }
}
