//! The shape of files: what they begin with, how long they are, how they silence lints.

use std::path::Path;

use super::Violation;
use super::tokens::Token;

const MAX_LINES: usize = 600;
const MAX_MAIN_LINES: usize = 120;

/// Whether one of the first lines says that a program wrote this file.
pub(crate) fn is_generated(text: &str) -> bool {
    text.lines().take(5).any(|line| line.starts_with("//") && line.contains("@generated"))
}

/// Refuses a file without module documentation, and one too long to read.
pub(crate) fn check_text(path: &Path, text: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    if !text.starts_with("//!") {
        let fix = "say in one `//!` line what the module holds and what it is not for";
        violations.push(Violation::new(path, 1, "the file does not begin with module documentation", fix));
    }
    let is_main = path.file_name().is_some_and(|name| name == "main.rs");
    let (limit, fix) = if is_main {
        (MAX_MAIN_LINES, "a main parses, dispatches and ends: move the rest to modules")
    } else {
        (MAX_LINES, "split it by subject; a generated file says `// @generated` at its top")
    };
    let lines = text.lines().count();
    if lines > limit {
        violations.push(Violation::new(path, limit + 1, format!("{lines} lines, more than {limit}"), fix));
    }
    violations
}

/// Refuses `allow(…)` and an `expect(…)` that gives no reason.
pub(crate) fn check_attributes(path: &Path, tokens: &[Token]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let bracket = match tokens.get(at + 1) {
            Some(next) if tokens[at].is('#') && next.is('[') => at + 1,
            Some(next) if tokens[at].is('#') && next.is('!') => at + 2,
            _ => {
                at += 1;
                continue;
            }
        };
        let end = end_of_group(tokens, bracket);
        let attribute = tokens.get(bracket..end).unwrap_or_default();
        let calls = |lint: &str| attribute.windows(2).find(|pair| pair[0].word() == Some(lint) && pair[1].is('('));
        if let Some(pair) = calls("allow") {
            let fix = "write #[expect(lint, reason = \"why\")]: it fails once it is no longer needed";
            violations.push(Violation::new(path, pair[0].line, "a lint is silenced with `allow`", fix));
        }
        if let Some(pair) = calls("expect").filter(|_| !attribute.iter().any(|token| token.word() == Some("reason"))) {
            violations.push(Violation::new(path, pair[0].line, "`expect` gives no reason", "add reason = \"why\""));
        }
        at = end.max(at + 1);
    }
    violations
}

/// The position behind the bracket that closes the one at `open`.
fn end_of_group(tokens: &[Token], open: usize) -> usize {
    let mut nesting = 0;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        if token.is('[') {
            nesting += 1;
        } else if token.is(']') {
            nesting -= 1;
            if nesting == 0 {
                return at + 1;
            }
        }
    }
    tokens.len()
}

/// Refuses a crate that does not inherit the workspace's lint table.
pub(crate) fn check_manifest(path: &Path, text: &str) -> Vec<Violation> {
    let refuse = |what: String, fix: &str| vec![Violation::new(path, 1, what, fix)];
    let manifest: toml::Table = match text.parse() {
        Ok(manifest) => manifest,
        Err(error) => return refuse(format!("not TOML: {error}"), "correct the syntax"),
    };
    let inherits = manifest.get("lints").and_then(|lints| lints.get("workspace"));
    if manifest.contains_key("package") && inherits != Some(&toml::Value::Boolean(true)) {
        return refuse("the crate has lints of its own or none".to_owned(), "add [lints] workspace = true");
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::super::tokens::lex;
    use super::*;

    const NONE: [usize; 0] = [];

    fn attribute_lines(source: &str) -> Vec<usize> {
        let tokens = lex(source).unwrap_or_default();
        check_attributes(Path::new("a.rs"), &tokens).iter().map(|violation| violation.line).collect()
    }

    #[test]
    fn refuses_a_file_without_module_documentation() {
        assert_eq!(check_text(Path::new("a.rs"), "fn a() {}\n").len(), 1);
        assert_eq!(check_text(Path::new("a.rs"), "/// A.\nfn a() {}\n").len(), 1);
        assert!(check_text(Path::new("a.rs"), "//! A.\nfn a() {}\n").is_empty());
    }

    #[test]
    fn refuses_files_longer_than_their_limit() {
        let long = |lines: usize| format!("//! A.\n{}", "// a\n".repeat(lines - 1));
        assert!(check_text(Path::new("a.rs"), &long(MAX_LINES)).is_empty());
        assert_eq!(check_text(Path::new("a.rs"), &long(MAX_LINES + 1)).len(), 1);
        assert!(check_text(Path::new("observer/src/main.rs"), &long(MAX_MAIN_LINES)).is_empty());
        assert_eq!(check_text(Path::new("observer/src/main.rs"), &long(MAX_MAIN_LINES + 1)).len(), 1);
    }

    #[test]
    fn only_a_file_that_says_so_is_generated() {
        assert!(is_generated("//! Syscalls.\n// @generated by xtask\n"));
        assert!(!is_generated("//! Syscalls.\nlet a = \"@generated\";\n"));
    }

    #[test]
    fn refuses_allow_and_expect_without_reason() {
        assert_eq!(attribute_lines("#[allow(dead_code)]\nfn a() {}"), [1]);
        assert_eq!(attribute_lines("//! A.\n#![allow(dead_code)]"), [2]);
        assert_eq!(attribute_lines("#[cfg_attr(test, allow(dead_code))]\nfn a() {}"), [1]);
        assert_eq!(attribute_lines("#[expect(dead_code)]\nfn a() {}"), [1]);
    }

    #[test]
    fn accepts_expect_with_reason_and_calls_of_that_name() {
        assert_eq!(attribute_lines("#[expect(dead_code, reason = \"read by tests\")]\nfn a() {}"), NONE);
        assert_eq!(attribute_lines("fn a() { policy.allow(x); result.expect(\"b\"); }"), NONE);
    }

    #[test]
    fn refuses_a_crate_with_lints_of_its_own() {
        let path = Path::new("a/Cargo.toml");
        assert_eq!(check_manifest(path, "[package]\nname = \"a\"\n").len(), 1);
        assert_eq!(check_manifest(path, "[package]\nname = \"a\"\n[lints.rust]\nx = \"warn\"\n").len(), 1);
        assert!(check_manifest(path, "[package]\nname = \"a\"\n[lints]\nworkspace = true\n").is_empty());
        assert!(check_manifest(path, "[workspace]\nmembers = []\n").is_empty());
    }
}
