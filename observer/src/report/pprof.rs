//! Goroutines as a profile that `go tool pprof` reads: gzip over the messages of
//! `github.com/google/pprof/proto/profile.proto`, of which the needed ones are written down here.

use super::goroutines::doing;
use crate::proc::{Frame, Goroutines};
use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;
use std::collections::HashMap;
use std::io::Write;

#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    mapping: Vec<Mapping>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    text: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Mapping {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "5")]
    filename: i64,
    #[prost(int64, tag = "6")]
    build_id: i64,
    #[prost(bool, tag = "7")]
    has_functions: bool,
    #[prost(bool, tag = "8")]
    has_filenames: bool,
    #[prost(bool, tag = "9")]
    has_line_numbers: bool,
    #[prost(bool, tag = "10")]
    has_inline_frames: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    mapping_id: u64,
    #[prost(uint64, tag = "3")]
    address: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    filename: i64,
}

/// What tells places apart: address, line and name of each function there.
type Place = Vec<(u64, Option<u32>, Option<String>)>;

/// The profile under construction: everything in it is named by its number.
#[derive(Default)]
struct Builder {
    profile: Profile,
    strings: HashMap<String, i64>,
    mappings: HashMap<String, u64>,
    functions: HashMap<(i64, i64), u64>,
    locations: HashMap<Place, u64>,
}

impl Builder {
    fn string(&mut self, text: &str) -> i64 {
        if let Some(known) = self.strings.get(text) {
            return *known;
        }
        let id = self.profile.string_table.len() as i64;
        self.profile.string_table.push(text.to_owned());
        self.strings.insert(text.to_owned(), id);
        id
    }

    fn mapping(&mut self, frame: &Frame) -> u64 {
        let path = frame.module.clone().unwrap_or_default();
        if let Some(known) = self.mappings.get(&path) {
            return *known;
        }
        let (filename, build_id) = (self.string(&path), self.string(frame.build_id.as_deref().unwrap_or_default()));
        let id = self.profile.mapping.len() as u64 + 1;
        self.profile.mapping.push(Mapping {
            id,
            filename,
            build_id,
            has_functions: true,
            has_filenames: true,
            has_line_numbers: true,
            has_inline_frames: true,
        });
        self.mappings.insert(path, id);
        id
    }

    fn function(&mut self, frame: &Frame) -> u64 {
        let name = frame.function.clone().unwrap_or_else(|| format!("{:#x}", frame.address));
        let key = (self.string(&name), self.string(frame.file.as_deref().unwrap_or_default()));
        if let Some(known) = self.functions.get(&key) {
            return *known;
        }
        let id = self.profile.function.len() as u64 + 1;
        self.profile.function.push(Function { id, name: key.0, system_name: key.0, filename: key.1 });
        self.functions.insert(key, id);
        id
    }

    /// A place in the code: the functions inlined there, and the one that holds it.
    fn location(&mut self, frames: &[Frame]) -> u64 {
        let key: Place = frames.iter().map(|frame| (frame.address, frame.line, frame.function.clone())).collect();
        if let Some(known) = self.locations.get(&key) {
            return *known;
        }
        let line = |builder: &mut Self, frame: &Frame| Line {
            function_id: builder.function(frame),
            line: i64::from(frame.line.unwrap_or(0)),
        };
        let lines = frames.iter().map(|frame| line(self, frame)).collect();
        let (mapping_id, address) = frames.first().map_or((0, 0), |frame| (self.mapping(frame), frame.address));
        let id = self.profile.location.len() as u64 + 1;
        self.profile.location.push(Location { id, mapping_id, address, line: lines });
        self.locations.insert(key, id);
        id
    }
}

/// The goroutines, each group one sample with its state as a label. `time_ns`: since 1970.
///
/// # Errors
/// None that the compression of bytes in memory can have.
pub fn of_goroutines(census: &Goroutines, with_system: bool, time_ns: i64) -> std::io::Result<Vec<u8>> {
    let mut builder = Builder::default();
    // The first string must be empty.
    builder.string("");
    let kind = ValueType { kind: builder.string("goroutine"), unit: builder.string("count") };
    builder.profile.sample_type = vec![kind];
    builder.profile.period_type = Some(kind);
    builder.profile.period = 1;
    builder.profile.time_nanos = time_ns;
    for group in census.groups.iter().filter(|group| with_system || !group.is_system) {
        let frames = &group.stack.frames;
        let mut location_id: Vec<u64> =
            frames.split_inclusive(|frame| !frame.inlined).map(|frames| builder.location(frames)).collect();
        if location_id.is_empty() {
            let function = group.function.clone().unwrap_or_else(|| "unknown".to_owned());
            location_id.push(builder.location(&[Frame { function: Some(function), ..Frame::default() }]));
        }
        let mut label = vec![Label { key: builder.string("state"), text: builder.string(doing(group)) }];
        if let Some((function, file, line)) = &group.created_by {
            let (key, text) = (builder.string("created_by"), format!("{function} {file}:{line}"));
            label.push(Label { key, text: builder.string(&text) });
        }
        builder.profile.sample.push(Sample { location_id, value: vec![group.members.len() as i64], label });
    }
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&builder.profile.encode_to_vec())?;
    gzip.finish()
}
