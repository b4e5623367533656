//! Every program of the kernel object, loaded by itself: what the running kernel takes, and what its verifier
//! paid for it.

use super::object::{self, reason};
use super::source::CensusError;
use crate::host::KernelTypes;
use ::object::{Object, ObjectSection, ObjectSymbol};
use aya::programs::{Program, ProgramError};
use aya::{BtfError, Ebpf};
use observer_ebpf::{ABI_VERSION, FILTER_LISTED, Globals, Offsets};
use std::collections::BTreeMap;

/// One program and what came of loading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramLoad {
    /// Its name in the object.
    pub name: String,
    /// Its section, which says of what kind it is: `fentry`, `tp_btf/sys_enter`.
    pub section: String,
    /// What came of it.
    pub outcome: LoadOutcome,
}

/// What the kernel did with a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadOutcome {
    /// Taken. Instructions the verifier walked through, over all paths; `None` before 5.16, which does not say.
    Loaded(Option<u32>),
    /// The kernel has no such function or tracepoint: what is missing.
    Absent(String),
    /// Refused: why.
    Refused(String),
}

/// Loads every program, by name, and takes it out again; none is attached. `before` is called with each name
/// before it is tried.
pub fn load_each(mut before: impl FnMut(&str)) -> Result<Vec<ProgramLoad>, CensusError> {
    let types = KernelTypes::get();
    let offsets = types.map_or(Offsets::NONE, |types| types.offsets);
    let types = types.ok();
    let globals = Globals {
        abi: ABI_VERSION,
        filter: FILTER_LISTED,
        view_pidns: 0,
        // With all that can be asked for: the most that the verifier may have to walk.
        sites: 1,
        wakes: 1,
        habit_after: 64,
        long_wait_ns: 1_000_000_000,
        slow_connect_ns: 1_000_000_000,
    };
    let mut ebpf = object::load(&offsets, &globals, 0, &[("AYA_LOGS", 4096)])
        .map_err(|error| CensusError::Load { reason: reason(&error) })?;
    let sections = sections().map_err(|error| CensusError::Load { reason: error.to_string() })?;
    let loads = sections.into_iter().filter_map(|(name, section)| {
        // Functions that programs call are symbols, too.
        ebpf.program(&name)?;
        before(&name);
        let outcome = load(&mut ebpf, &name, &section, types);
        Some(ProgramLoad { name, section, outcome })
    });
    Ok(loads.collect())
}

/// Names of functions and the sections they lie in.
fn sections() -> Result<BTreeMap<String, String>, ::object::Error> {
    let file = ::object::File::parse(object::OBJECT)?;
    let mut sections = BTreeMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.is_definition() && symbol.is_global()) {
        if let Some(index) = symbol.section_index() {
            sections.insert(symbol.name()?.to_owned(), file.section_by_index(index)?.name()?.to_owned());
        }
    }
    Ok(sections)
}

fn load(ebpf: &mut Ebpf, name: &str, section: &str, types: Option<&KernelTypes>) -> LoadOutcome {
    let hook = section.split_once('/').map_or("", |(_, hook)| hook);
    let function = |kind: &str| match hook {
        "" => format!("__x64_sys_{}", name.strip_prefix(kind).unwrap_or(name).trim_start_matches('_')),
        hook => hook.to_owned(),
    };
    let refused = |why: &str| LoadOutcome::Refused(why.to_owned());
    let Some(program) = ebpf.program_mut(name) else { return refused("not in the object") };
    let typed =
        matches!(program, Program::Iter(_) | Program::BtfTracePoint(_) | Program::FEntry(_) | Program::FExit(_));
    let btf = match types {
        Some(types) => Some(&types.btf),
        None if typed => return refused("the kernel's BTF is not known"),
        None => None,
    };
    let loaded = match (&mut *program, btf) {
        (Program::Iter(program), Some(btf)) => program.load(hook, btf),
        (Program::BtfTracePoint(program), Some(btf)) => program.load(hook, btf),
        (Program::FEntry(program), Some(btf)) => program.load(&function("fentry"), btf),
        (Program::FExit(program), Some(btf)) => program.load(&function("fexit"), btf),
        (Program::KProbe(program), _) => program.load(),
        (Program::TracePoint(program), _) => program.load(),
        (Program::RawTracePoint(program), _) => program.load(),
        (other, _) => return LoadOutcome::Refused(format!("a kind that is not known: {:?}", other.prog_type())),
    };
    match loaded {
        Ok(()) => {}
        Err(error @ ProgramError::Btf(BtfError::UnknownBtfTypeName { .. })) => {
            return LoadOutcome::Absent(reason(&error));
        }
        Err(error) => return LoadOutcome::Refused(reason(&error)),
    }
    let count = program.info().ok().and_then(|info| info.verified_instruction_count());
    // What it took stays counted; the program itself is not needed.
    unload(program);
    LoadOutcome::Loaded(count)
}

fn unload(program: &mut Program) {
    // An error would say that it is not loaded.
    let _ = match program {
        Program::Iter(program) => program.unload(),
        Program::BtfTracePoint(program) => program.unload(),
        Program::FEntry(program) => program.unload(),
        Program::FExit(program) => program.unload(),
        Program::KProbe(program) => program.unload(),
        Program::TracePoint(program) => program.unload(),
        Program::RawTracePoint(program) => program.unload(),
        _ => Ok(()),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_of_the_object_has_a_section_that_says_its_kind() {
        let sections = sections().unwrap_or_default();
        for (name, section) in [("census", "iter/task"), ("btf_enter", "tp_btf/sys_enter"), ("fentry_poll", "fentry")] {
            assert_eq!(sections.get(name).map(String::as_str), Some(section));
        }
    }
}
