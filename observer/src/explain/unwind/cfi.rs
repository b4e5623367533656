//! Call frame information of one image: how to get from a frame to its caller.
//!
//! Rules are looked up by svma and kept with the image, so that every process that maps it shares them.

use crate::explain::image::Image;
use gimli::{
    BaseAddresses, CfaRule, DebugFrame, EhFrame, EhFrameHdr, EndianSlice, Evaluation, EvaluationResult, LittleEndian,
    ParsedEhFrameHdr, Register, RegisterRule, UnwindContext, UnwindSection, Value, X86_64,
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// Rules kept per image.
const MAX_RULES: usize = 64 << 10;
/// Entries of an index that is made here, for an image that brings none.
const MAX_ENTRIES: usize = 4 << 20;
/// Bytes of one entry: every one of them may be an instruction to go through.
const LONGEST_ENTRY: usize = 64 << 10;
/// Bytes of what several entries share: it is gone through again for each of them.
const LONGEST_SHARED: u32 = 1 << 10;
/// Steps of one DWARF expression.
const MAX_STEPS: u32 = 256;
/// Expressions longer than this are not evaluated.
const MAX_EXPRESSION: usize = 256;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In memory, so far from the canonical frame address.
    AtCfa(i64),
    /// The canonical frame address itself, plus this.
    Cfa(i64),
    /// In memory, at the address an expression gives.
    AtExpression(Arc<[u8]>),
    /// The value an expression gives.
    Expression(Arc<[u8]>),
}

/// The canonical frame address: the caller's stack pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cfa {
    /// The stack pointer plus this.
    Sp(i64),
    /// The frame pointer register plus this.
    Bp(i64),
    /// What an expression gives.
    Expression(Arc<[u8]>),
}

/// How to leave a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// The outermost function: it has no return address.
    Outermost,
    /// To the caller.
    Caller {
        /// The caller's stack pointer.
        cfa: Cfa,
        /// The return address.
        ra: Place,
        /// The caller's frame pointer register; `None` if it is unchanged.
        bp: Option<Place>,
        /// A signal handler's return trampoline: the caller was interrupted, it did not call.
        signal: bool,
    },
    /// There is information, but of a kind that cannot be followed from outside.
    Unsupported(&'static str),
}

/// Call frame information of one image.
#[derive(Debug)]
pub(crate) struct Cfi {
    image: Arc<Image>,
    tables: Tables,
    /// `.debug_frame`, unpacked; looked at only where `.eh_frame` says nothing.
    debug_frame: OnceLock<Option<Vec<u8>>>,
    index: OnceLock<Index>,
    debug_index: OnceLock<Index>,
    rules: Mutex<HashMap<u64, Option<Rule>>>,
}

/// (first svma, offset of the entry), sorted.
type Index = Vec<(u64, usize)>;

/// Which tables an image has: ranges of its bytes, and where they are in memory.
#[derive(Debug, Default)]
struct Tables {
    eh_frame: Option<(std::ops::Range<usize>, u64)>,
    header: Option<(std::ops::Range<usize>, u64)>,
    text: u64,
    got: u64,
}

impl Tables {
    fn find(image: &Image) -> Self {
        let base = image.bytes().as_ptr() as usize;
        let place = |bytes: &[u8], svma: u64| {
            let start = bytes.as_ptr() as usize - base;
            (start..start + bytes.len(), svma)
        };
        let section = |name: &str| image.section(name).filter(|s| !s.bytes.is_empty()).map(|s| place(s.bytes, s.svma));
        let mut tables = Self {
            eh_frame: section(".eh_frame"),
            header: section(".eh_frame_hdr"),
            text: image.section(".text").map_or(0, |s| s.svma),
            got: image.section(".got").map_or(0, |s| s.svma),
        };
        if tables.header.is_none() {
            // Stripped of its section headers: the program header still tells.
            let header = image.program_header(object::elf::PT_GNU_EH_FRAME);
            tables.header = header.and_then(|(svma, size)| {
                let bytes = image.at(svma)?;
                Some(place(bytes.get(..usize::try_from(size).ok()?)?, svma))
            });
        }
        if tables.eh_frame.is_none()
            && let Some((range, svma)) = &tables.header
            && let Some(bytes) = image.bytes().get(range.clone())
            && let Ok(parsed) =
                EhFrameHdr::new(bytes, LittleEndian).parse(&BaseAddresses::default().set_eh_frame_hdr(*svma), 8)
            && let gimli::Pointer::Direct(frame) = parsed.eh_frame_ptr()
        {
            // How long it is nobody says; its entries do.
            tables.eh_frame = image.at(frame).map(|bytes| place(bytes, frame));
        }
        tables
    }

    fn bases(&self) -> BaseAddresses {
        let mut bases = BaseAddresses::default().set_text(self.text).set_got(self.got);
        if let Some((_, svma)) = self.eh_frame {
            bases = bases.set_eh_frame(svma);
        }
        if let Some((_, svma)) = self.header {
            bases = bases.set_eh_frame_hdr(svma);
        }
        bases
    }
}

impl Cfi {
    /// Finds the tables; reads nothing else yet.
    pub(crate) fn new(image: &Arc<Image>) -> Self {
        Self {
            tables: Tables::find(image),
            image: Arc::clone(image),
            debug_frame: OnceLock::new(),
            index: OnceLock::new(),
            debug_index: OnceLock::new(),
            rules: Mutex::default(),
        }
    }

    /// The rule at this svma (of the instruction, or of the call before a return address); `None` where no
    /// information covers it.
    pub(super) fn rule(&self, svma: u64) -> Option<Rule> {
        let rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rule) = rules.get(&svma) {
            return rule.clone();
        }
        drop(rules);
        let rule = self.find(svma);
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        if rules.len() >= MAX_RULES {
            rules.clear();
        }
        rules.insert(svma, rule.clone());
        rule
    }

    fn find(&self, svma: u64) -> Option<Rule> {
        let bases = self.tables.bases();
        self.in_eh_frame(svma, &bases).or_else(|| self.in_debug_frame(svma, &bases))
    }

    fn in_eh_frame(&self, svma: u64, bases: &BaseAddresses) -> Option<Rule> {
        let (range, start) = self.tables.eh_frame.as_ref()?;
        let bytes = self.image.bytes().get(range.clone())?;
        let section = EhFrame::new(bytes, LittleEndian);
        let header = self.header(bases);
        let offset = match header.as_ref().and_then(ParsedEhFrameHdr::table) {
            Some(table) => match table.lookup(svma, bases).ok()? {
                // Not by `pointer_to_offset`: it subtracts without a look.
                gimli::Pointer::Direct(entry) => usize::try_from(entry.checked_sub(*start)?).ok()?,
                gimli::Pointer::Indirect(_) => return None,
            },
            None => before(self.index.get_or_init(|| index(&section, bytes, bases)), svma)?,
        };
        rule_of(&section, bytes, bases, offset, svma)
    }

    fn in_debug_frame(&self, svma: u64, bases: &BaseAddresses) -> Option<Rule> {
        let unpack = || self.image.unpacked(".debug_frame").map(std::borrow::Cow::into_owned);
        let bytes = self.debug_frame.get_or_init(unpack).as_deref()?;
        let section = DebugFrame::new(bytes, LittleEndian);
        let offset = before(self.debug_index.get_or_init(|| index(&section, bytes, bases)), svma)?;
        rule_of(&section, bytes, bases, offset, svma)
    }

    fn header(&self, bases: &BaseAddresses) -> Option<ParsedEhFrameHdr<Slice<'_>>> {
        let (range, _) = self.tables.header.as_ref()?;
        let bytes = self.image.bytes().get(range.clone())?;
        // A count of entries in four bytes is what linkers write; with a larger one gimli's search would overflow.
        bytes.get(2).filter(|encoding| **encoding == gimli::DW_EH_PE_udata4.0)?;
        EhFrameHdr::new(bytes, LittleEndian).parse(bases, 8).ok()
    }
}

/// The last entry that begins at this svma or before it.
fn before(index: &Index, svma: u64) -> Option<usize> {
    let behind = index.partition_point(|(start, _)| *start <= svma);
    index.get(behind.checked_sub(1)?).map(|(_, offset)| *offset)
}

/// The common part of entries, if it is not too long. `bytes` are those of the section.
fn shared_part<'a, S: UnwindSection<Slice<'a>>>(
    bytes: &'a [u8],
) -> impl FnMut(&S, &BaseAddresses, S::Offset) -> gimli::Result<gimli::CommonInformationEntry<Slice<'a>>>
where
    S::Offset: gimli::UnwindOffset<usize>,
{
    move |section, bases, offset| {
        let at = gimli::UnwindOffset::into(offset);
        let length = bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|length| u32::from_le_bytes(*length));
        match length {
            Some(0..=LONGEST_SHARED) => section.cie_from_offset(bases, offset),
            _ => Err(gimli::Error::UnknownAugmentation),
        }
    }
}

fn index<'a, S: UnwindSection<Slice<'a>>>(section: &S, bytes: &'a [u8], bases: &BaseAddresses) -> Index
where
    S::Offset: gimli::UnwindOffset<usize>,
{
    let mut index = Vec::new();
    let mut entries = section.entries(bases);
    // The first damaged entry ends it: what comes behind cannot be told apart from noise.
    while let Ok(Some(entry)) = entries.next() {
        if index.len() >= MAX_ENTRIES {
            break;
        }
        if let gimli::CieOrFde::Fde(partial) = entry
            && let Ok(entry) = partial.parse(shared_part(bytes))
        {
            index.push((entry.initial_address(), entry.offset()));
        }
    }
    index.sort_unstable();
    index
}

fn rule_of<'a, S: UnwindSection<Slice<'a>>>(
    section: &S,
    bytes: &'a [u8],
    bases: &BaseAddresses,
    offset: usize,
    svma: u64,
) -> Option<Rule>
where
    S::Offset: gimli::UnwindOffset<usize>,
{
    let entry = section.fde_from_offset(bases, S::Offset::from(offset), shared_part(bytes)).ok()?;
    if !entry.contains(svma) {
        return None;
    }
    if entry.entry_len() > LONGEST_ENTRY {
        return Some(Rule::Unsupported("its call frame information is too long to be true"));
    }
    let signal = entry.is_signal_trampoline();
    let mut context = UnwindContext::new();
    let Ok(row) = entry.unwind_info_for_address(section, bases, &mut context, svma) else {
        return Some(Rule::Unsupported("its call frame information is damaged"));
    };
    let expression = |expression: &gimli::UnwindExpression<usize>| {
        let expression = expression.get(section).ok()?;
        let bytes = expression.0.slice();
        (bytes.len() <= MAX_EXPRESSION).then(|| Arc::<[u8]>::from(bytes))
    };
    let place = |rule: &RegisterRule<usize>| match rule {
        RegisterRule::Offset(offset) => Some(Place::AtCfa(*offset)),
        RegisterRule::ValOffset(offset) => Some(Place::Cfa(*offset)),
        RegisterRule::Expression(e) => expression(e).map(Place::AtExpression),
        RegisterRule::ValExpression(e) => expression(e).map(Place::Expression),
        _ => None,
    };
    let ra = match row.register(X86_64::RA) {
        None | Some(RegisterRule::Undefined) => return Some(Rule::Outermost),
        Some(rule) => place(&rule),
    };
    let bp = match row.register(X86_64::RBP) {
        None | Some(RegisterRule::SameValue | RegisterRule::Undefined) => None,
        Some(rule) => match place(&rule) {
            None => return Some(Rule::Unsupported("it keeps the frame pointer in a place that cannot be read")),
            found => found,
        },
    };
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset { register: X86_64::RSP, offset } => Some(Cfa::Sp(*offset)),
        CfaRule::RegisterAndOffset { register: X86_64::RBP, offset } => Some(Cfa::Bp(*offset)),
        CfaRule::RegisterAndOffset { .. } => None,
        CfaRule::Expression(e) => expression(e).map(Cfa::Expression),
    };
    Some(match (cfa, ra) {
        (Some(cfa), Some(ra)) => Rule::Caller { cfa, ra, bp, signal },
        (None, _) => Rule::Unsupported("its frame hangs on a register that is not known from outside"),
        (_, None) => Rule::Unsupported("it keeps its return address in a place that cannot be read"),
    })
}

/// The registers an expression may ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) ip: u64,
    pub(super) sp: u64,
    pub(super) bp: Option<u64>,
}

impl Known {
    fn get(self, register: Register) -> Option<u64> {
        match register {
            X86_64::RSP => Some(self.sp),
            X86_64::RBP => self.bp,
            X86_64::RA => Some(self.ip),
            _ => None,
        }
    }
}

/// Evaluates a DWARF expression over what is known; `initial` is on its stack at the start.
pub(super) fn evaluate(
    bytes: &[u8],
    initial: Option<u64>,
    known: Known,
    read: &mut impl FnMut(u64) -> Option<u64>,
) -> Option<u64> {
    let encoding = gimli::Encoding { address_size: 8, format: gimli::Format::Dwarf32, version: 4 };
    let mut evaluation = Evaluation::new(EndianSlice::new(bytes, LittleEndian), encoding);
    evaluation.set_max_iterations(MAX_STEPS);
    if let Some(value) = initial {
        evaluation.set_initial_value(value);
    }
    let mut result = evaluation.evaluate().ok()?;
    for _ in 0..MAX_STEPS {
        result = match result {
            EvaluationResult::Complete => {
                return match evaluation.as_result() {
                    [gimli::Piece { location: gimli::Location::Address { address }, .. }] => Some(*address),
                    _ => None,
                };
            }
            EvaluationResult::RequiresRegister { register, .. } => {
                evaluation.resume_with_register(Value::Generic(known.get(register)?)).ok()?
            }
            EvaluationResult::RequiresMemory { address, size: 8, .. } => {
                evaluation.resume_with_memory(Value::Generic(read(address)?)).ok()?
            }
            _ => return None,
        };
    }
    None
}
