//! Profiles as receivers read them: every index is followed.

use super::super::fixtures::{NOW, entity};
use super::*;
use crate::detect::Moment;
use crate::export::Entity;
use crate::model::Class;
use crate::proc::{Stack as Walked, StackEnd};
use prost::Message as _;
use std::sync::Arc;

/// A sample with all that it refers to, as text.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) struct Read {
    pub(in super::super) executable: String,
    pub(in super::super) value: i64,
    pub(in super::super) attributes: Vec<String>,
    /// `function@file:line`, innermost first; inlined ones follow each other with ` < `; then module, address.
    pub(in super::super) frames: Vec<String>,
}

/// Follows the indices of a message.
pub(in super::super) fn read(request: &ExportProfilesServiceRequest) -> Vec<Read> {
    let tables = request.dictionary.as_ref().expect("a dictionary");
    assert_eq!(tables.string_table[0], "");
    assert_eq!(tables.mapping_table[0], Mapping::default());
    assert_eq!(tables.location_table[0], Location::default());
    assert_eq!(tables.function_table[0], Function::default());
    assert_eq!(tables.link_table, [Link::default()]);
    assert_eq!(tables.attribute_table[0], KeyValueAndUnit::default());
    assert_eq!(tables.stack_table[0], Stack::default());
    let text = |at: i32| tables.string_table[at as usize].as_str();
    let attribute = |at: &i32| {
        let one = &tables.attribute_table[*at as usize];
        let value = match one.value.as_ref().and_then(|value| value.value.as_ref()) {
            Some(Value::StringValue(text)) => text.clone(),
            Some(Value::IntValue(number)) => number.to_string(),
            Some(Value::BoolValue(is)) => is.to_string(),
            other => panic!("{other:?}"),
        };
        format!("{}={value}", text(one.key_strindex))
    };
    let line = |line: &Line| {
        let function = &tables.function_table[line.function_index as usize];
        format!("{}@{}:{}", text(function.name_strindex), text(function.filename_strindex), line.line)
    };
    let frame = |at: &i32| {
        let location = &tables.location_table[*at as usize];
        let mapping = &tables.mapping_table[location.mapping_index as usize];
        let lines: Vec<String> = location.lines.iter().map(line).collect();
        let ids: Vec<String> = mapping.attribute_indices.iter().map(attribute).collect();
        let module = text(mapping.filename_strindex);
        format!("{} {module} {:#x} {}", lines.join(" < "), location.address, ids.join(",")).trim().to_owned()
    };
    let mut list = Vec::new();
    for about in &request.resource_profiles {
        let attributes = &about.resource.as_ref().expect("a resource").attributes;
        let name = attributes.iter().find(|one| one.key == "process.executable.name").and_then(|one| one.value.clone());
        let Some(Value::StringValue(executable)) = name.and_then(|name| name.value) else { panic!("{attributes:?}") };
        assert!(attributes.iter().all(|one| one.key != "process.pid"), "it would make a resource per process");
        for profile in about.scope_profiles.iter().flat_map(|scope| &scope.profiles) {
            let kind = profile.sample_type.expect("a type");
            assert_eq!((text(kind.type_strindex), text(kind.unit_strindex)), ("off_cpu", "nanoseconds"));
            assert_eq!((profile.time_unix_nano, profile.duration_nano), (NOW - 15_000_000_000, 15_000_000_000));
            for sample in &profile.samples {
                let [value] = sample.values.as_slice() else { panic!("{sample:?}") };
                let stack = &tables.stack_table[sample.stack_index as usize];
                list.push(Read {
                    executable: executable.clone(),
                    value: *value,
                    attributes: sample.attribute_indices.iter().map(attribute).collect(),
                    frames: stack.location_indices.iter().map(frame).collect(),
                });
            }
        }
    }
    list
}

pub(in super::super) fn frame(function: &str, line: u32, offset: u64) -> Frame {
    Frame {
        address: 0x7000_0000 + offset,
        function: Some(function.to_owned()),
        file: Some("shop.c".to_owned()),
        line: Some(line),
        module: Some("/usr/bin/shop".to_owned()),
        build_id: Some("ab12".to_owned()),
        offset,
        ..Frame::default()
    }
}

pub(in super::super) fn blocked(pid: u32, frames: Vec<Frame>, end: StackEnd, blocked_ns: u64) -> BlockedStack {
    let entity: Arc<Entity> = Arc::new(entity(pid));
    BlockedStack { entity, stack: Arc::new(Walked { frames, end }), class: Class::Lock, blocked_ns }
}

pub(in super::super) fn profile(stacks: Vec<BlockedStack>) -> Measured {
    Measured { since: Moment(NOW - 15_000_000_000), at: Moment(NOW), stacks, left_out: 0 }
}

/// What a receiver decodes.
fn sent(stacks: Vec<BlockedStack>) -> ExportProfilesServiceRequest {
    let profile = profile(stacks);
    let bytes = Encoder::default().profiles(&profile, &profile.stacks).encode_to_vec();
    ExportProfilesServiceRequest::decode(bytes.as_slice()).expect("what was encoded")
}

#[test]
fn frames_keep_their_order_and_inlined_ones_share_a_location() {
    let inlined = Frame { inlined: true, ..frame("pay_fast", 9, 0x20) };
    let nameless = Frame { function: None, file: None, line: None, ..frame("", 0, 0x30) };
    let jit = Frame { address: 0x5555, function: Some("made_later".into()), offset: 0x5555, ..Frame::default() };
    let frames = vec![frame("lock", 3, 0x10), inlined, frame("pay", 7, 0x20), nameless, jit, frame("main", 1, 0x40)];
    let request = sent(vec![blocked(42, frames, StackEnd::Root, 5)]);
    let id = "process.executable.build_id.gnu=ab12";
    let frames = [
        format!("lock@shop.c:3 /usr/bin/shop 0x10 {id}"),
        format!("pay_fast@shop.c:9 < pay@shop.c:7 /usr/bin/shop 0x20 {id}"),
        format!("/usr/bin/shop 0x30 {id}"),
        "made_later@:0  0x5555".to_owned(),
        format!("main@shop.c:1 /usr/bin/shop 0x40 {id}"),
    ];
    let attributes = ["process.pid=42", "observer.wait.class=lock", "observer.stack.complete=true"];
    let expected = Read {
        executable: "shop".to_owned(),
        value: 5,
        attributes: attributes.map(str::to_owned).to_vec(),
        frames: frames.to_vec(),
    };
    assert_eq!(read(&request), [expected]);
}

#[test]
fn every_value_is_in_its_table_once() {
    let frames = || vec![frame("lock", 3, 0x10), frame("main", 1, 0x40)];
    let other = vec![frame("poll", 3, 0x50), frame("main", 1, 0x40)];
    let request = sent(vec![
        blocked(42, frames(), StackEnd::Root, 5),
        blocked(43, frames(), StackEnd::Root, 6),
        blocked(43, other, StackEnd::Stopped("no table".into()), 7),
    ]);
    let got = read(&request);
    assert_eq!(request.resource_profiles.len(), 1, "they look the same");
    assert_eq!(got.iter().map(|one| one.value).collect::<Vec<_>>(), [5, 6, 7]);
    assert_eq!(got[2].attributes, ["process.pid=43", "observer.wait.class=lock", "observer.stack.complete=false"]);
    let tables = request.dictionary.expect("a dictionary");
    let lengths = (tables.stack_table.len(), tables.location_table.len(), tables.function_table.len());
    assert_eq!(lengths, (1 + 2, 1 + 3, 1 + 3));
    assert_eq!(tables.mapping_table.len(), 1 + 1);
    let strings: std::collections::BTreeSet<&String> = tables.string_table.iter().collect();
    assert_eq!(strings.len(), tables.string_table.len());
}

#[test]
fn what_a_target_makes_long_is_cut() {
    let name = "ä".repeat(LONGEST_NAME);
    let deep = (0..30_000).map(|at| frame(&name, at, u64::from(at))).collect();
    let request = sent(vec![blocked(42, deep, StackEnd::Root, u64::MAX)]);
    let got = read(&request);
    assert_eq!((got[0].frames.len(), got[0].value), (DEEPEST, i64::MAX));
    assert!(got[0].attributes.contains(&"observer.stack.complete=false".to_owned()));
    assert!(request.encoded_len() < 200_000, "{}", request.encoded_len());
}
