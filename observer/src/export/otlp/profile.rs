//! Blocked stacks as OTLP profiles (development status). Pure.
//!
//! A message has one dictionary: tables that refer to each other by index, each beginning with the zero value, which means "none".

use super::encode::{Encoder, scope};
use super::resource::{Attributes, resource};
use crate::export::{BlockedStack, Profile as Measured};
use crate::proc::Frame;
use opentelemetry_proto::tonic::collector::profiles::v1development::ExportProfilesServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, any_value::Value};
use opentelemetry_proto::tonic::profiles::v1development::{
    Function, KeyValueAndUnit, Line, Link, Location, Mapping, Profile, ProfilesDictionary, ResourceProfiles, Sample,
    ScopeProfiles, Stack, ValueType,
};
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// Frames of one stack at most, the innermost: an interpreter's recursion can be deeper than a request may be large.
const DEEPEST: usize = 1024;
/// Bytes of a name at most.
const LONGEST_NAME: usize = 4096;

impl Encoder {
    /// These stacks of a profile: one resource per kind of process, as for the other signals; processes that look the same are told apart by
    /// an attribute of the sample.
    pub(super) fn profiles(&self, profile: &Measured, stacks: &[BlockedStack]) -> ExportProfilesServiceRequest {
        let mut by_resource: BTreeMap<Attributes, Vec<&BlockedStack>> = BTreeMap::new();
        for blocked in stacks {
            by_resource.entry(self.own.of(&blocked.entity)).or_default().push(blocked);
        }
        let mut dictionary = Dictionary::new();
        let resource_profiles = by_resource
            .into_iter()
            .map(|(attributes, stacks)| {
                let samples = stacks.into_iter().map(|blocked| dictionary.sample(blocked)).collect();
                let kind = ValueType {
                    type_strindex: dictionary.text("off_cpu"),
                    unit_strindex: dictionary.text("nanoseconds"),
                };
                let profile = Profile {
                    sample_type: Some(kind),
                    samples,
                    time_unix_nano: profile.since.0,
                    duration_nano: profile.at.0.saturating_sub(profile.since.0),
                    ..Profile::default()
                };
                ResourceProfiles {
                    resource: Some(resource(&attributes)),
                    scope_profiles: vec![ScopeProfiles {
                        scope: Some(scope()),
                        profiles: vec![profile],
                        ..ScopeProfiles::default()
                    }],
                    ..ResourceProfiles::default()
                }
            })
            .collect();
        ExportProfilesServiceRequest { resource_profiles, dictionary: Some(dictionary.finish()) }
    }
}

/// One table: each value once.
struct Table<K, T> {
    list: Vec<T>,
    places: HashMap<K, i32>,
}

impl<K: Hash + Eq, T: Default> Table<K, T> {
    fn new() -> Self {
        Self { list: vec![T::default()], places: HashMap::new() }
    }

    fn place(&mut self, key: K, make: impl FnOnce(&K) -> T) -> i32 {
        if let Some(place) = self.places.get(&key) {
            return *place;
        }
        // Stacks and frames are bounded far below it: "none" is only for the compiler.
        let Ok(place) = i32::try_from(self.list.len()) else { return 0 };
        self.list.push(make(&key));
        self.places.insert(key, place);
        place
    }
}

/// The value of an attribute.
#[derive(PartialEq, Eq, Hash)]
enum Told {
    Text(String),
    Number(i64),
    Is(bool),
}

struct Dictionary {
    strings: Table<String, String>,
    functions: Table<Function, Function>,
    mappings: Table<Mapping, Mapping>,
    locations: Table<(i32, u64, Vec<Line>), Location>,
    stacks: Table<Vec<i32>, Stack>,
    attributes: Table<(i32, Told), KeyValueAndUnit>,
}

impl Dictionary {
    fn new() -> Self {
        Self {
            strings: Table::new(),
            functions: Table::new(),
            mappings: Table::new(),
            locations: Table::new(),
            stacks: Table::new(),
            attributes: Table::new(),
        }
    }

    fn text(&mut self, text: &str) -> i32 {
        if text.is_empty() {
            return 0;
        }
        let end = text.floor_char_boundary(LONGEST_NAME.min(text.len()));
        self.strings.place(text.get(..end).unwrap_or_default().to_owned(), String::clone)
    }

    fn attribute(&mut self, key: &str, value: Told) -> i32 {
        let key_strindex = self.text(key);
        self.attributes.place((key_strindex, value), |(_, value)| {
            let value = match value {
                Told::Text(text) => Value::StringValue(text.clone()),
                Told::Number(number) => Value::IntValue(*number),
                Told::Is(is) => Value::BoolValue(*is),
            };
            KeyValueAndUnit { key_strindex, value: Some(AnyValue { value: Some(value) }), unit_strindex: 0 }
        })
    }

    fn sample(&mut self, blocked: &BlockedStack) -> Sample {
        let frames = &blocked.stack.frames;
        let kept = frames.get(..DEEPEST.min(frames.len())).unwrap_or(frames);
        let is_complete = blocked.stack.is_complete() && kept.len() == frames.len();
        // A function that was inlined shares the location of the one it was inlined into, which comes last.
        let location_indices: Vec<i32> =
            kept.split_inclusive(|frame| !frame.inlined).map(|frames| self.location(frames)).collect();
        let attribute_indices = vec![
            self.attribute("process.pid", Told::Number(blocked.entity.process.pid.into())),
            self.attribute("observer.wait.class", Told::Text(blocked.class.name().to_owned())),
            self.attribute("observer.stack.complete", Told::Is(is_complete)),
        ];
        Sample {
            stack_index: self.stacks.place(location_indices, |list| Stack { location_indices: list.clone() }),
            attribute_indices,
            values: vec![i64::try_from(blocked.blocked_ns).unwrap_or(i64::MAX)],
            ..Sample::default()
        }
    }

    /// The location of frames at one address, innermost first.
    fn location(&mut self, frames: &[Frame]) -> i32 {
        let Some(outer) = frames.last() else { return 0 };
        let mapping_index = outer.module.as_deref().map_or(0, |module| self.mapping(module, outer.build_id.as_deref()));
        let lines = frames.iter().filter_map(|frame| self.line(frame)).collect();
        self.locations.place((mapping_index, outer.offset, lines), |(mapping_index, address, lines)| Location {
            mapping_index: *mapping_index,
            address: *address,
            lines: lines.clone(),
            ..Location::default()
        })
    }

    /// A module. Where it is mapped is not told: addresses are in its own numbering.
    fn mapping(&mut self, module: &str, build_id: Option<&str>) -> i32 {
        let filename_strindex = self.text(module);
        let build_id = build_id.map(|id| self.attribute("process.executable.build_id.gnu", Told::Text(id.to_owned())));
        let attribute_indices = build_id.into_iter().collect();
        self.mappings.place(Mapping { filename_strindex, attribute_indices, ..Mapping::default() }, Mapping::clone)
    }

    /// `None`: the function has no name.
    fn line(&mut self, frame: &Frame) -> Option<Line> {
        let function = Function {
            name_strindex: self.text(frame.function.as_deref()?),
            filename_strindex: frame.file.as_deref().map_or(0, |file| self.text(file)),
            ..Function::default()
        };
        let function_index = self.functions.place(function, Clone::clone);
        Some(Line { function_index, line: frame.line.map_or(0, i64::from), column: 0 })
    }

    fn finish(self) -> ProfilesDictionary {
        ProfilesDictionary {
            mapping_table: self.mappings.list,
            location_table: self.locations.list,
            function_table: self.functions.list,
            link_table: vec![Link::default()],
            string_table: self.strings.list,
            attribute_table: self.attributes.list,
            stack_table: self.stacks.list,
        }
    }
}

#[cfg(test)]
#[path = "profile_tests.rs"]
pub(super) mod tests;
