//! Observations to a file and back: one JSON document a line, the first one a header.

use crate::model::{Filter, Observation, Scope};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Name and version of the format.
pub const SCHEMA: &str = "observer.recording/v1";
/// A longer line is not from us.
const MAX_LINE: u64 = 1 << 30;

/// What a recording says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// [`SCHEMA`].
    pub schema: String,
    /// Name of the host.
    pub host_name: String,
    /// Kernel release.
    pub kernel: String,
    /// Boot id.
    pub boot_id: String,
    /// The processes looked at; `None` is the whole host.
    pub processes: Option<BTreeSet<u32>>,
    /// What narrowed the look at the whole host.
    #[serde(default)]
    pub filter: Filter,
    /// The threshold in force, nanoseconds.
    pub threshold_ns: u64,
    /// Where the rows came from.
    #[serde(default)]
    pub census: String,
    /// Rung of each probe family.
    #[serde(default)]
    pub probes: serde_json::Value,
}

impl Header {
    /// The scope to replay in.
    pub fn scope(&self) -> Scope {
        Scope { processes: self.processes.clone(), filter: self.filter.clone(), threshold_ns: self.threshold_ns }
    }
}

/// Why a recording cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum RecordingError {
    #[error("cannot write the recording {path}: {source}; choose a place that has room and that you may write to")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("cannot read the recording {path}: {source}; give a file that was made with --record")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a recording of this version ({SCHEMA}): {reason}; make one with --record FILE")]
    NotOurs { path: PathBuf, reason: String },
    #[error("line {line} of the recording {path} is damaged: {source}")]
    Damaged { path: PathBuf, line: u64, source: serde_json::Error },
}

/// Writes observations as they come.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Recorder {
    /// Creates the file (mode 0600: it holds command lines and memory of the targets) and its header.
    pub fn create(path: &Path, header: &Header) -> Result<Self, RecordingError> {
        use std::os::unix::fs::OpenOptionsExt;
        let failed = |source| RecordingError::Write { path: path.to_owned(), source };
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path).map_err(failed)?;
        let mut recorder = Self { path: path.to_owned(), file: BufWriter::new(file) };
        recorder.line(header)?;
        Ok(recorder)
    }

    /// Adds an observation.
    pub fn write(&mut self, observation: &Observation) -> Result<(), RecordingError> {
        self.line(observation)
    }

    fn line<T: Serialize>(&mut self, value: &T) -> Result<(), RecordingError> {
        let failed = |source| RecordingError::Write { path: self.path.clone(), source };
        serde_json::to_writer(&mut self.file, value).map_err(|e| failed(e.into()))?;
        self.file.write_all(b"\n").and_then(|()| self.file.flush()).map_err(failed)
    }
}

/// Reads a recording, one observation at a time.
#[derive(Debug)]
pub struct Recording<R = BufReader<File>> {
    path: PathBuf,
    lines: R,
    line: u64,
    /// What it says about itself.
    pub header: Header,
}

impl Recording {
    /// Opens a file and reads its header.
    pub fn open(path: &Path) -> Result<Self, RecordingError> {
        let failed = |source| RecordingError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        Self::new(path.to_owned(), BufReader::new(file))
    }
}

impl<R: BufRead> Recording<R> {
    /// Reads the header from any source.
    pub fn new(path: PathBuf, mut lines: R) -> Result<Self, RecordingError> {
        let first = read_line(&mut lines, &path)?;
        let not_ours = |reason: String| RecordingError::NotOurs { path: path.clone(), reason };
        let header: Header = serde_json::from_str(&first).map_err(|e| not_ours(e.to_string()))?;
        if header.schema != SCHEMA {
            return Err(not_ours(format!("its schema is {:?}", header.schema)));
        }
        Ok(Self { path, lines, line: 1, header })
    }

    /// The next observation; `None` at the end.
    pub fn next_observation(&mut self) -> Result<Option<Observation>, RecordingError> {
        let text = read_line(&mut self.lines, &self.path)?;
        if text.is_empty() {
            return Ok(None);
        }
        self.line += 1;
        let damaged = |source| RecordingError::Damaged { path: self.path.clone(), line: self.line, source };
        let mut observation: Observation = serde_json::from_str(&text).map_err(damaged)?;
        // The model relies on this order; a file may hold anything.
        observation.census.rows.sort_by_key(|row| row.tid);
        observation.census.rows.dedup_by_key(|row| row.tid);
        Ok(Some(observation))
    }
}

fn read_line<R: BufRead>(lines: &mut R, path: &Path) -> Result<String, RecordingError> {
    let mut text = String::new();
    std::io::Read::take(lines, MAX_LINE)
        .read_line(&mut text)
        .map_err(|source| RecordingError::Read { path: path.to_owned(), source })?;
    Ok(text)
}
