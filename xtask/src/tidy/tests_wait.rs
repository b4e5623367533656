//! Tests wait for a condition with a deadline; they never sleep.

use std::path::Path;

use super::Violation;
use super::tokens::Token;

const SLEEPS: &[&str] = &["sleep", "sleep_ms", "sleep_until", "usleep", "nanosleep", "clock_nanosleep"];

/// Victims are programs whose business it is to hang and to sleep.
const EXEMPT: &str = "tests/victims";

/// Whether a file holds nothing but tests: it lies under a `tests` directory, or is a test module of its own
/// (`tests.rs`, `btf_tests.rs`).
pub(crate) fn is_test_file(path: &Path) -> bool {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.iter().any(|part| part == "tests") || stem == "tests" || stem.ends_with("_tests")
}

/// Refuses calls that sleep in the tests crate, in integration tests and in test modules.
pub(crate) fn check(path: &Path, tokens: &[Token]) -> Vec<Violation> {
    if path.starts_with(EXEMPT) {
        return Vec::new();
    }
    let all_is_test = is_test_file(path);
    let mut violations = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let Some(word) = token.word().filter(|word| SLEEPS.contains(word)) else {
            continue;
        };
        let is_called = tokens.get(at + 1).is_some_and(|next| next.is('('));
        let is_defined = at > 0 && tokens[at - 1].word() == Some("fn");
        if is_called && !is_defined && (all_is_test || token.in_test) {
            violations.push(Violation::new(
                path,
                token.line,
                format!("a test calls `{word}`"),
                "wait for the condition itself with a deadline (a line of output, a /proc state, recv_timeout)",
            ));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::super::{NONE, lines_of};
    use super::*;

    fn lines(path: &str, source: &str) -> Vec<usize> {
        lines_of(check, path, source)
    }

    #[test]
    fn refuses_a_sleep_wherever_tests_are() {
        assert_eq!(lines("tests/src/guard.rs", "fn a() {\n thread::sleep(d);\n}"), [2]);
        assert_eq!(lines("tests/tests/mutex.rs", "unsafe { libc::usleep(1) }"), [1]);
        assert_eq!(lines("observer/tests/cli.rs", "std::thread::sleep(d);"), [1]);
        assert_eq!(lines("observer/src/host/btf_tests.rs", "sleep(d);"), [1]);
        assert_eq!(lines("observer/src/proc/a.rs", "#[cfg(test)]\nmod tests {\n fn a() { sleep(d) }\n}"), [3]);
    }

    #[test]
    fn accepts_a_sleep_in_programs_and_the_word_elsewhere() {
        assert_eq!(lines("tests/victims/sleeper.rs", "thread::sleep(d);"), NONE);
        assert_eq!(lines("observer/src/session.rs", "thread::sleep(d);"), NONE);
        assert_eq!(lines("tests/src/a.rs", "// sleep(1)\nlet class = \"sleep(1)\"; fn sleep() {}"), NONE);
        assert_eq!(lines("tests/src/a.rs", "assert_eq!(wait.class, Class::Sleep); let sleep = 1;"), NONE);
    }
}
