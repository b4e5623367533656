//! Where the fields of `g`, `m` and `sudog` are, by version, and whether what is read with them looks like goroutines.
//!
//! Sources: the debug information of Go 1.19 and 1.21 to 1.27 (linux/amd64). Of 1.18 and 1.20 none was at hand: they are
//! tried like an unknown version.

use crate::explain::pieces::{number, word};
use std::collections::BTreeSet;

/// Bytes of a `g` that are read to look for its fields.
pub(super) const SAMPLE: u32 = 384;
/// Statuses up to this are known (`_Gdeadextra`).
const LAST_STATUS: u32 = 11;
/// `_Gscan`, set while the collector looks at the stack.
const SCAN: u32 = 0x1000;
/// Larger ones are refused by the runtime.
const LARGEST_STACK: u64 = 1 << 30;

pub(super) const IDLE: u32 = 0;
pub(super) const RUNNABLE: u32 = 1;
pub(super) const RUNNING: u32 = 2;
pub(super) const SYSCALL: u32 = 3;
pub(super) const WAITING: u32 = 4;
pub(super) const DEAD: u32 = 6;
pub(super) const COPYSTACK: u32 = 8;
pub(super) const PREEMPTED: u32 = 9;
pub(super) const LEAKED: u32 = 10;
pub(super) const DEAD_EXTRA: u32 = 11;

/// Offsets, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) sched_bp: u64,
    pub(super) syscall_sp: u64,
    pub(super) syscall_pc: u64,
    pub(super) syscall_bp: Option<u64>,
    pub(super) status: u64,
    pub(super) goid: u64,
    pub(super) reason: u64,
    pub(super) parent: Option<u64>,
    pub(super) gopc: u64,
    pub(super) startpc: u64,
    /// `trackingSeq`: counts up whenever it stops running.
    pub(super) ran: Option<u64>,
    pub(super) waiting: u64,
    pub(super) m_procid: u64,
    pub(super) m_curg: u64,
    pub(super) sudog_elem: u64,
    pub(super) sudog_waitlink: u64,
    pub(super) sudog_c: u64,
    /// A `sudog` of a wait for a semaphore is in `g.waiting` as well.
    pub(super) semaphores_in_g: bool,
    /// The statuses 10 and 11 exist.
    pub(super) newer_statuses: bool,
}

/// The same in all versions.
pub(super) const M: u64 = 48;
pub(super) const SCHED_SP: u64 = 56;
pub(super) const SCHED_PC: u64 = 64;

impl Layout {
    /// What is in `g` follows from the places of two fields and the version.
    fn of(minor: u32, goid: u64, startpc: u64) -> Self {
        let (sched_bp, syscall_sp) = if minor >= 25 { (96, 104) } else { (104, 112) };
        let newest = minor >= 26;
        Self {
            sched_bp,
            syscall_sp,
            syscall_pc: syscall_sp + 8,
            syscall_bp: (minor >= 23).then_some(syscall_sp + 16),
            status: goid - 8,
            goid,
            reason: goid + 24,
            parent: (minor >= 21).then_some(startpc - 24),
            gopc: startpc - 16,
            startpc,
            ran: ran(minor).map(|behind| goid + 24 + behind),
            waiting: startpc + 16,
            m_procid: if minor >= 25 { 64 } else { 72 },
            m_curg: if minor >= 25 { 184 } else { 192 },
            sudog_elem: if newest { 32 } else { 24 },
            sudog_waitlink: if newest { 72 } else { 64 },
            sudog_c: if newest { 96 } else { 80 },
            semaphores_in_g: newest,
            newer_statuses: newest,
        }
    }

    /// The layout of Go 1.`minor`.
    pub(super) fn known(minor: u32) -> Option<Self> {
        let (goid, startpc) = match minor {
            19 => (152, 312),
            21 | 22 => (152, 296),
            23 | 24 => (160, 304),
            25 => (152, 296),
            26 | 27 => (152, 304),
            _ => return None,
        };
        Some(Self::of(minor, goid, startpc))
    }

    /// Looks for the fields in goroutines themselves: the first two have the numbers 1 and 2, and each was started at the
    /// entry of a function.
    pub(super) fn search(minor: u32, sample: &[&[u8]], is_entry: &mut dyn FnMut(u64) -> bool) -> Option<Self> {
        let is_numbered = |goid: &u64| {
            let numbers: Vec<u64> = sample.iter().filter_map(|g| word(g, *goid)).collect();
            let statuses =
                sample.iter().all(|g| number(g, goid - 8).is_some_and(|status| status & !SCAN <= LAST_STATUS));
            let different: BTreeSet<&u64> = numbers.iter().collect();
            numbers.get(..2) == Some(&[1, 2]) && different.len() == sample.len() && statuses
        };
        let mut goids = (128..=256).step_by(8).filter(is_numbered);
        let goid = goids.next().filter(|_| goids.next().is_none())?;
        let lives =
            |g: &&&[u8]| number(g, goid - 8).is_some_and(|status| !matches!(status & !SCAN, IDLE | DEAD | DEAD_EXTRA));
        let mut starts = (goid + 96..=goid + 208).step_by(8);
        let startpc = starts.find(|&at| {
            let mut living = sample.iter().filter(lives).peekable();
            living.peek().is_some() && living.all(|g| word(g, at).is_some_and(&mut *is_entry))
        })?;
        // What lies between the reason and the count is told by nothing.
        Some(Self { ran: None, ..Self::of(minor, goid, startpc) })
    }

    /// Bytes of a `g` that hold all of them.
    pub(super) fn len(&self) -> u32 {
        (self.waiting + 8) as u32
    }

    /// Whether these look like goroutines: most, since some change while they are read.
    pub(super) fn check(
        &self,
        sample: &[&[u8]],
        reasons: usize,
        is_code: &mut dyn FnMut(u64) -> bool,
        is_entry: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), String> {
        let (mut good, mut bad, mut first) = (0, 0, None);
        for g in sample {
            match self.fault(g, reasons, is_code, is_entry) {
                Ok(false) => {}
                Ok(true) => good += 1,
                Err(why) => {
                    bad += 1;
                    first = first.or(Some(why));
                }
            }
        }
        match first {
            Some(why) if good < bad * 9 => Err(format!("{why} in {bad} of {}", good + bad)),
            _ => Ok(()),
        }
    }

    /// Whether one is alive and sound; what is wrong with it.
    fn fault(
        &self,
        g: &[u8],
        reasons: usize,
        is_code: &mut dyn FnMut(u64) -> bool,
        is_entry: &mut dyn FnMut(u64) -> bool,
    ) -> Result<bool, &'static str> {
        let head = self.head(g).ok_or("it cannot be read")?;
        let status = head.status;
        if status > LAST_STATUS || status == 5 || status == 7 || status > PREEMPTED && !self.newer_statuses {
            return Err("an unknown status");
        }
        if !head.lives() {
            return Ok(false);
        }
        if head.goid == 0 || head.goid >= 1 << 48 {
            return Err("an impossible number");
        }
        if head.lo >= head.hi || head.hi - head.lo > LARGEST_STACK {
            return Err("an impossible stack");
        }
        // What came from C was not started by a function of Go.
        if head.startpc != 0 && !is_entry(head.startpc) || head.gopc != 0 && !is_code(head.gopc) {
            return Err("no function that started it");
        }
        if matches!(status, RUNNABLE | WAITING | PREEMPTED | LEAKED)
            && (!(head.lo..=head.hi).contains(&head.sp) || !is_code(head.pc))
        {
            return Err("no place where it goes on");
        }
        if matches!(status, WAITING | LEAKED) && usize::from(head.reason) >= reasons {
            return Err("an unknown reason to wait");
        }
        Ok(true)
    }

    /// The fields of one `g`.
    pub(super) fn head(&self, g: &[u8]) -> Option<Head> {
        let at = |offset| word(g, offset);
        let status = number(g, self.status)? & !SCAN;
        let (sp, pc, bp) = match status {
            SYSCALL => (at(self.syscall_sp)?, at(self.syscall_pc)?, self.syscall_bp.and_then(at).unwrap_or(0)),
            _ => (at(SCHED_SP)?, at(SCHED_PC)?, at(self.sched_bp)?),
        };
        Some(Head {
            lo: at(0)?,
            hi: at(8)?,
            m: at(M)?,
            sp,
            pc,
            bp,
            status,
            goid: at(self.goid)?,
            reason: *g.get(usize::try_from(self.reason).ok()?)?,
            parent: self.parent.and_then(at).unwrap_or(0),
            gopc: at(self.gopc)?,
            startpc: at(self.startpc)?,
            ran: self.ran.and_then(|ran| g.get(usize::try_from(ran).ok()?).copied()),
            waiting: at(self.waiting)?,
        })
    }
}

/// What is read of one `g`. Two that are equal were read of a goroutine that has not moved in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) lo: u64,
    pub(super) hi: u64,
    pub(super) m: u64,
    /// Where it goes on; in a system call, where that was called.
    pub(super) sp: u64,
    pub(super) pc: u64,
    /// 0: unknown.
    pub(super) bp: u64,
    pub(super) status: u32,
    pub(super) goid: u64,
    pub(super) reason: u8,
    pub(super) parent: u64,
    pub(super) gopc: u64,
    pub(super) startpc: u64,
    pub(super) ran: Option<u8>,
    pub(super) waiting: u64,
}

impl Head {
    pub(super) fn lives(&self) -> bool {
        !matches!(self.status, IDLE | DEAD | DEAD_EXTRA)
    }

    /// Whether its stack is at rest.
    pub(super) fn is_parked(&self) -> bool {
        matches!(self.status, RUNNABLE | WAITING | PREEMPTED | LEAKED | SYSCALL)
    }
}

/// Bytes from the reason of a wait to `trackingSeq`; of 1.22 and 1.23 it is not known.
fn ran(minor: u32) -> Option<u64> {
    match minor {
        19 => Some(13),
        21 => Some(12),
        24..=27 => Some(15),
        _ => None,
    }
}

/// The minor version in `go1.24.3`, `devel go1.27-abcdef`, `go1.22.1 X:boringcrypto`.
pub(super) fn minor(version: &str) -> Option<u32> {
    let rest = version.split("go1.").nth(1)?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
