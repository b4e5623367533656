//! Data flows one way through the rooms of `observer`: a room may name only the rooms before it, and
//! `model` and `detect` do no I/O and read no clock.

use std::path::Path;

use super::Violation;
use super::tests_wait::is_test_file;
use super::tokens::Token;

/// The rooms in the order data flows through them.
const ROOMS: &[&str] = &[
    "host",
    "settings",
    "census",
    "proc",
    "kube",
    "model",
    "recording",
    "detect",
    "explain",
    "report",
    "export",
    "session",
    "daemon",
    "cli",
];

/// Rooms that are functions of their arguments only.
const PURE: &[&str] = &["model", "detect"];

/// What a pure room must not name, as paths; each also forbids what lies beneath it.
const IMPURE: &[&[&str]] = &[
    &["std", "fs"],
    &["std", "net", "TcpStream"],
    &["std", "net", "TcpListener"],
    &["std", "net", "UdpSocket"],
    &["std", "os", "unix", "net"],
    &["std", "process"],
    &["std", "thread"],
    &["std", "env"],
    &["Instant", "now"],
    &["SystemTime", "now"],
    &["Timestamp", "now"],
    &["Zoned", "now"],
    &["nix"],
    &["aya"],
];

/// Checks one file of `observer/src`; files elsewhere, `lib.rs` and `main.rs` have no room.
pub(crate) fn check(path: &Path, tokens: &[Token]) -> Vec<Violation> {
    let Some((room, depth)) = room_of(path) else {
        return Vec::new();
    };
    let mut violations = Vec::new();
    for (named, line) in crate_paths(tokens, depth) {
        if position(&named) > position(&room) && position(&room).is_some() {
            violations.push(Violation::new(
                path,
                line,
                format!("room `{room}` names `{named}`, which comes after it"),
                format!("move what both need to `{room}` or before it, or hand it over as an argument"),
            ));
        }
    }
    if position(&room).is_none() {
        violations.push(Violation::new(
            path,
            1,
            format!("`{room}` is no room of observer"),
            "put the file in a room, or add the room to ROOMS in xtask/src/tidy/rooms.rs and to docs/architecture.md",
        ));
    }
    if PURE.contains(&room.as_str()) && !is_test_file(path) {
        violations.extend(check_purity(path, &room, tokens));
    }
    violations
}

fn position(room: &str) -> Option<usize> {
    ROOMS.iter().position(|known| *known == room)
}

/// The room a file belongs to, and how many modules deep the file's own module is.
fn room_of(path: &Path) -> Option<(String, usize)> {
    let inside = path.strip_prefix("observer/src").ok()?;
    let mut parts: Vec<String> =
        inside.with_extension("").components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    if matches!(parts.as_slice(), [only] if only == "lib" || only == "main") {
        return None;
    }
    if parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    Some((parts.first()?.clone(), parts.len()))
}

/// The first names after `crate::` (also in `crate::{…}`) and after enough `super::` to reach the top.
fn crate_paths(tokens: &[Token], depth: usize) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let mut next = at;
        let mut supers = 0;
        while word_at(tokens, next) == Some("super") && is_path_separator(tokens, next + 1) {
            supers += 1;
            next += 3;
        }
        let reaches_top = if supers > 0 {
            supers >= depth
        } else if word_at(tokens, at) == Some("crate") && is_path_separator(tokens, at + 1) {
            next = at + 3;
            true
        } else {
            next = at + 1;
            false
        };
        if reaches_top {
            first_names(tokens, next, &mut found);
        }
        at = next;
    }
    found
}

/// The name at `at`, or every first name of the group `{a::…, b::{…}}` there.
fn first_names(tokens: &[Token], at: usize, found: &mut Vec<(String, usize)>) {
    if let Some(name) = word_at(tokens, at) {
        found.push((name.to_owned(), tokens[at].line));
        return;
    }
    if !tokens.get(at).is_some_and(|token| token.is('{')) {
        return;
    }
    let mut nesting = 0;
    let mut expects_name = false;
    for token in &tokens[at..] {
        if token.is('{') {
            nesting += 1;
            expects_name = nesting == 1;
        } else if token.is('}') {
            nesting -= 1;
            if nesting == 0 {
                return;
            }
        } else if token.is(',') {
            expects_name = nesting == 1;
        } else if let Some(name) = token.word() {
            if expects_name {
                found.push((name.to_owned(), token.line));
            }
            expects_name = false;
        }
    }
}

fn check_purity(path: &Path, room: &str, tokens: &[Token]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (words, line) in paths_outside_tests(tokens) {
        let broken = IMPURE.iter().find(|forbidden| {
            let names: Vec<&str> = words.iter().map(String::as_str).collect();
            match forbidden.first() {
                Some(&("Instant" | "SystemTime" | "Timestamp" | "Zoned")) => {
                    names.windows(forbidden.len()).any(|window| window == **forbidden)
                }
                _ => names.starts_with(forbidden),
            }
        });
        if let Some(forbidden) = broken {
            violations.push(Violation::new(
                path,
                line,
                format!("`{room}` is pure, but names `{}`", forbidden.join("::")),
                "take the fact or the time as an argument; the session reads it",
            ));
        }
    }
    violations
}

/// Every path `a::b::c` outside test code, groups `a::{b, c::d}` expanded.
fn paths_outside_tests(tokens: &[Token]) -> Vec<(Vec<String>, usize)> {
    let mut paths = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match word_at(tokens, at) {
            Some(_) if !tokens[at].in_test => at = read_path(tokens, at, &[], &mut paths),
            _ => at += 1,
        }
    }
    paths
}

/// Reads the path at `at` beneath `prefix`, appends it or what its group expands to; the next position.
fn read_path(tokens: &[Token], at: usize, prefix: &[String], paths: &mut Vec<(Vec<String>, usize)>) -> usize {
    let mut words = prefix.to_vec();
    let mut next = at;
    let line = tokens[at].line;
    while let Some(word) = word_at(tokens, next) {
        words.push(word.to_owned());
        next += 1;
        if !is_path_separator(tokens, next) {
            paths.push((words, line));
            return next;
        }
        next += 2;
    }
    if !tokens.get(next).is_some_and(|token| token.is('{')) {
        paths.push((words, line));
        return next.max(at + 1);
    }
    next += 1;
    while next < tokens.len() && !tokens[next].is('}') {
        next = match word_at(tokens, next) {
            Some(_) => read_path(tokens, next, &words, paths),
            None => next + 1,
        };
    }
    next + 1
}

fn word_at(tokens: &[Token], at: usize) -> Option<&str> {
    tokens.get(at).and_then(Token::word)
}

fn is_path_separator(tokens: &[Token], at: usize) -> bool {
    tokens.get(at).is_some_and(|token| token.is(':')) && tokens.get(at + 1).is_some_and(|token| token.is(':'))
}

#[cfg(test)]
mod tests {
    use super::super::{NONE, lines_of};
    use super::*;

    fn lines(path: &str, source: &str) -> Vec<usize> {
        lines_of(check, path, source)
    }

    #[test]
    fn refuses_a_backward_edge_in_every_spelling() {
        assert_eq!(lines("observer/src/census/row.rs", "use crate::detect::Finding;"), [1]);
        assert_eq!(lines("observer/src/model/mod.rs", "use crate::{\n census::Row,\n report::{A, B}};"), [3]);
        assert_eq!(lines("observer/src/host/mod.rs", "fn a() -> crate::session::Session {}"), [1]);
        assert_eq!(lines("observer/src/recording.rs", "pub(crate) use super::cli;"), [1]);
        assert_eq!(lines("observer/src/model/lock.rs", "use super::super::detect::A;"), [1]);
    }

    #[test]
    fn accepts_forward_edges_and_what_only_looks_like_an_edge() {
        assert_eq!(lines("observer/src/detect/mod.rs", "use crate::{model::Host, census::Row};"), NONE);
        assert_eq!(lines("observer/src/census/row.rs", "//! [`crate::detect`]\nuse super::event;"), NONE);
        assert_eq!(lines("observer/src/census/row.rs", "let a = \"crate::cli\"; detect::x();"), NONE);
        assert_eq!(lines("observer/src/model/mod.rs", "use crate::model::{report, cli};"), NONE);
        assert_eq!(lines("observer/src/lib.rs", "use crate::cli;"), NONE);
        assert_eq!(lines("xtask/src/main.rs", "use crate::cli;"), NONE);
    }

    #[test]
    fn refuses_io_and_clocks_in_pure_rooms() {
        assert_eq!(lines("observer/src/detect/a.rs", "use std::{collections::BTreeMap,\n fs::File};"), [2]);
        assert_eq!(lines("observer/src/model/a.rs", "let now = std::time::Instant::now();"), [1]);
        assert_eq!(lines("observer/src/model/a.rs", "use nix::unistd::Pid;"), [1]);
        assert_eq!(lines("observer/src/model/mod.rs", "std::thread::spawn(f);"), [1]);
    }

    #[test]
    fn accepts_pure_code_and_test_code_that_reads_recordings() {
        assert_eq!(lines("observer/src/model/a.rs", "use std::net::Ipv4Addr; use std::time::Duration;"), NONE);
        assert_eq!(lines("observer/src/detect/a.rs", "#[cfg(test)]\nmod tests { use std::fs; }"), NONE);
        assert_eq!(lines("observer/src/proc/a.rs", "use std::fs; let t = Instant::now();"), NONE);
    }

    #[test]
    fn refuses_a_file_outside_the_rooms() {
        assert_eq!(lines("observer/src/cellar.rs", "fn a() {}"), [1]);
    }
}
