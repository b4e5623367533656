//! Go's own tables: functions, files, lines, frame sizes and inlined calls of a Go program, stripped or not.
//!
//! The runtime needs them for its stack traces, so `-s -w` does not remove them. Supported are Go 1.18 to 1.27 on
//! x86-64 (tried: 1.19, 1.21 to 1.27), executables and position-independent ones, with and without cgo; of Go 1.16 and
//! 1.17 the functions, files and lines of executables that are not position-independent (untried).
//!
//! Each file has a table of its own: that of a plugin names its frames, and has no runtime.
//!
//! Not for: other architectures, Go up to 1.15.

mod anchors;
pub(super) mod goroutines;
mod locate;
mod table;
#[cfg(test)]
mod tests;

use super::image::Image;
pub use anchors::{Anchors, GoRuntimeError};
pub use locate::ModuleData;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
pub use table::{Format, Function, GoFrame, Header, LineTable};

/// Why the table of a Go program cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum GoTableError {
    #[error("its Go table has {bytes} bytes, less than a header")]
    Truncated { bytes: usize },
    #[error("its Go table has the unknown magic {magic:#x} (Go older than 1.16, or newer than this program)")]
    Format { magic: u32 },
    #[error("the header of its Go table is not sound ({functions} functions in {bytes} bytes)")]
    Header { functions: u64, bytes: usize },
    #[error("the functions of its Go table are not in its code: the text base was not found")]
    TextBase,
}

/// The table of a program. It keeps the file mapped and copies nothing of it.
#[derive(Debug)]
pub struct PcLineTable {
    image: Arc<Image>,
    bytes: Range<usize>,
    inline_trees: Range<usize>,
    header: Header,
    text: u64,
    module: Option<ModuleData>,
    version: String,
    anchors: OnceLock<Result<Anchors, GoRuntimeError>>,
}

impl PcLineTable {
    /// Finds the table of a file. `None`: not a Go program, or a packed one.
    ///
    /// Reads the headers, and where no section names `moduledata` (Go up to 1.25) the writable data and the
    /// relocations; a file without section headers is searched as a whole. May block on the file: call it on a reader
    /// of the pool, once for a file.
    pub fn find(image: &Arc<Image>) -> Result<Option<Self>, GoTableError> {
        let Some(found) = locate::table(image)? else { return Ok(None) };
        let version = locate::version(image).unwrap_or_default();
        let trees = found.module.and_then(|module| locate::file_range(image, module.gofunc?)).unwrap_or_default();
        let locate::Found { range, header, text, module } = found;
        let (image, anchors) = (Arc::clone(image), OnceLock::new());
        Ok(Some(Self { image, bytes: range, inline_trees: trees, header, text, module, version, anchors }))
    }

    /// The function that holds this svma.
    pub fn function(&self, svma: u64) -> Option<Function> {
        self.table().function(svma)
    }

    /// File and line of this svma. For a return address pass the byte before it: it belongs to the call.
    ///
    /// Where calls are inlined it is the line of the innermost.
    pub fn line(&self, svma: u64) -> Option<(String, u32)> {
        self.table().line(svma)
    }

    /// Bytes between the stack pointer and the return address at this svma: the return address is at `sp + size`, the
    /// caller's stack pointer is `sp + size + 8`. `None` outside of functions that say it.
    pub fn frame_size(&self, svma: u64) -> Option<u64> {
        self.table().frame_size(svma)
    }

    /// The functions at this svma, innermost first: those inlined there, then the one that holds it.
    pub fn frames(&self, svma: u64) -> Vec<GoFrame> {
        self.table().frames(svma)
    }

    /// `go1.24.3`, possibly with experiments behind it; empty if the program does not say (Go up to 1.17).
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Where the parts of the program are; `None` if it was not found, and then no inlined calls are known.
    pub fn module(&self) -> Option<&ModuleData> {
        self.module.as_ref()
    }

    /// Where the runtime keeps its goroutines: looked for at the first call.
    ///
    /// # Errors
    /// The file holds no runtime, or one that is not understood.
    pub fn anchors(&self) -> Result<&Anchors, GoRuntimeError> {
        self.anchors.get_or_init(|| Anchors::find(self)).as_ref().map_err(|error| *error)
    }

    /// The file.
    pub(super) fn image(&self) -> &Image {
        &self.image
    }

    /// The table as a pure reader of bytes.
    pub fn table(&self) -> LineTable<'_> {
        let bytes = |range: &Range<usize>| self.image.bytes().get(range.clone()).unwrap_or_default();
        LineTable::with_header(bytes(&self.bytes), self.header, self.text, bytes(&self.inline_trees))
    }
}
