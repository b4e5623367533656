//! Where the runtime keeps its goroutines: found in the code that reads them, so that a stripped program has them too.
//!
//! Everything here comes from the file, not from a process: what one process does to its memory misleads nobody about another.

use super::PcLineTable;
use super::table::u32_at;
use object::{Object, ObjectSymbol};

/// Bytes of a function that are searched.
const MAX_CODE: u64 = 4096;
/// Places that may be the table of semaphores.
const MAX_CANDIDATES: usize = 16;
/// Bytes of `gcControllerState` that come before what counts from 1.19 to 1.27, and some more.
const CONTROLLER: u64 = 256;
/// Symbols of a file that are looked through.
const MAX_SYMBOLS: usize = 1 << 21;

/// Why the runtime of a Go program was not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum GoRuntimeError {
    #[error("it has Go's tables, and no runtime in them (a plugin)")]
    NoRuntime,
    #[error("its moduledata was not found")]
    NoModule,
    #[error("the code that goes through its goroutines (runtime.forEachGRace) is not as in the versions known")]
    UnknownCode,
}

/// Addresses (svma) of variables of the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchors {
    /// `runtime.allglen`: slots in the table of goroutines.
    pub allglen: u64,
    /// `runtime.allgptr`: pointer to the table.
    pub allgptr: u64,
    /// What may be `runtime.semtable`, the likeliest first. Who uses it has to check.
    pub semtables: Vec<u64>,
    /// `runtime.gcController.heapLive`; `None` if the code that compares it was not recognised.
    pub heap_live: Option<u64>,
}

impl Anchors {
    /// Finds them in a file.
    pub(super) fn find(table: &PcLineTable) -> Result<Self, GoRuntimeError> {
        let lines = table.table();
        let names = ["runtime.forEachGRace", "runtime.semacquire1", "runtime.semrelease1", "runtime.gcTrigger.test"];
        let [each, acquire, release, trigger] = lines.entries_of(names);
        let each = each.ok_or(GoRuntimeError::NoRuntime)?;
        let module = table.module().ok_or(GoRuntimeError::NoModule)?;
        let zeroed = |address: &u64| {
            (module.bss..module.ebss).contains(address) || (module.noptrbss..module.enoptrbss).contains(address)
        };
        // `mov disp(%rip), %reg`: first `allglen`, then `allgptr`, in all of Go 1.19 to 1.27.
        let mut loads = relative(table, each, 0x8b).filter(zeroed);
        let (Some(allglen), Some(allgptr)) = (loads.next(), loads.next()) else {
            return Err(GoRuntimeError::UnknownCode);
        };
        // `lea disp(%rip), %reg`: `semtable.rootFor` is inlined into both.
        let code = [acquire, release].into_iter().flatten().flat_map(|entry| relative(table, entry, 0x8d));
        let mut semtables: Vec<u64> = symbol(table, "runtime.semtable").into_iter().collect();
        for address in code.filter(zeroed) {
            if !semtables.contains(&address) && semtables.len() < MAX_CANDIDATES {
                semtables.push(address);
            }
        }
        let heap_live = trigger.and_then(|entry| heap_live(table, entry, &zeroed));
        Ok(Self { allglen, allgptr, semtables, heap_live })
    }
}

/// `gcTrigger.test` asks whether `gcController.heapLive` has come to what `gcController.trigger()` says: of all that it
/// loads, the only word inside of that whose address it passes.
fn heap_live(table: &PcLineTable, entry: u64, zeroed: &dyn Fn(&u64) -> bool) -> Option<u64> {
    let controllers: Vec<u64> = relative(table, entry, 0x8d).filter(zeroed).collect();
    let is_inside =
        |at: &u64| controllers.iter().any(|controller| (1..CONTROLLER).contains(&at.wrapping_sub(*controller)));
    let mut found: Vec<u64> = relative(table, entry, 0x8b).filter(is_inside).collect();
    found.sort_unstable();
    found.dedup();
    <[u64; 1]>::try_from(found).ok().map(|[at]| at)
}

/// The addresses that instructions with this opcode, a 64-bit register and a distance from `%rip` name, in the order of
/// the code. The bytes are not decoded from the begin on: who asks has to check what he gets.
fn relative(table: &PcLineTable, entry: u64, opcode: u8) -> impl Iterator<Item = u64> {
    let end = table.function(entry).map_or(entry, |function| function.end);
    let code = table.image().at(entry).unwrap_or_default();
    let len = usize::try_from(end.saturating_sub(entry).min(MAX_CODE)).unwrap_or_default();
    let code = code.get(..len).unwrap_or(code);
    code.windows(7).enumerate().filter_map(move |(at, bytes)| {
        let fits = matches!(bytes[0], 0x48 | 0x4c) && bytes[1] == opcode && bytes[2] & 0xc7 == 0x05;
        let distance = u32_at(bytes, 3)?.cast_signed();
        fits.then(|| entry.wrapping_add(at as u64 + 7).wrapping_add_signed(i64::from(distance)))
    })
}

fn symbol(table: &PcLineTable, name: &str) -> Option<u64> {
    let elf = table.image().elf().ok()?;
    let mut symbols = elf.symbols().take(MAX_SYMBOLS);
    symbols
        .find(|symbol| symbol.name_bytes().is_ok_and(|found| found == name.as_bytes()))
        .map(|symbol| symbol.address())
}
