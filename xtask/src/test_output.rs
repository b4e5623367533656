//! Reads what cargo test prints: counts, skips and their reasons.
//!
//! A test that cannot run here says `SKIPPED: <test>: why` and passes as far as libtest knows; it is
//! counted as skipped, not as passed. So is an ignored one.

use std::collections::BTreeMap;

/// What one or more runs of cargo test came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    passed: usize,
    failed: usize,
    skips: BTreeMap<String, String>,
    ignored: usize,
    showing_successes: bool,
}

impl Tally {
    /// Takes one line of output; says whether to show it. Lines that passing tests printed are not shown
    /// (we ask for them only to learn of skips).
    pub(crate) fn take(&mut self, line: &str) -> bool {
        if let Some((_, skip)) = line.split_once("SKIPPED: ") {
            let (test, why) = skip.split_once(": ").unwrap_or((skip, "no reason given"));
            self.skips.insert(test.trim().to_owned(), why.trim().to_owned());
        } else if let Some(ignored) = line.strip_prefix("test ").and_then(ignored_test) {
            self.ignored += 1;
            self.skips.insert(ignored.0, ignored.1);
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.showing_successes = false;
            self.passed += counted(result, "passed");
            self.failed += counted(result, "failed");
        } else if line == "successes:" {
            self.showing_successes = true;
        } else if line == "failures:" {
            self.showing_successes = false;
        }
        !self.showing_successes
    }

    /// Counts a check that is not a test of cargo's, such as formatting.
    pub(crate) fn check(&mut self, passed: bool) {
        if passed { self.passed += 1 } else { self.failed += 1 }
    }

    /// Counts a test that was not even started.
    pub(crate) fn skip(&mut self, test: &str, why: &str) {
        self.skips.insert(test.to_owned(), why.to_owned());
        // libtest did not count it as passed, just as it does not count an ignored one.
        self.ignored += 1;
    }

    /// Tests that ran and passed, without those that skipped themselves.
    pub(crate) fn passed(&self) -> usize {
        self.passed.saturating_sub(self.skips.len().saturating_sub(self.ignored))
    }

    /// Tests and checks that failed.
    pub(crate) fn failed(&self) -> usize {
        self.failed
    }

    /// Skipped and ignored tests with their reasons, by name.
    pub(crate) fn skips(&self) -> &BTreeMap<String, String> {
        &self.skips
    }

    /// Whether nothing at all was run or skipped.
    pub(crate) fn is_empty(&self) -> bool {
        self.passed + self.failed + self.skips.len() == 0
    }
}

/// The number before `word` in `ok. 5 passed; 0 failed; …`.
fn counted(result: &str, word: &str) -> usize {
    let mut words = result.split([' ', ';', '.']).filter(|part| !part.is_empty()).peekable();
    while let Some(part) = words.next() {
        if words.peek() == Some(&word) {
            return part.parse().unwrap_or(0);
        }
    }
    0
}

/// Name and reason from `name ... ignored` or `name ... ignored, reason`.
fn ignored_test(rest: &str) -> Option<(String, String)> {
    let (name, outcome) = rest.split_once(" ... ignored")?;
    let why = outcome.strip_prefix(", ").unwrap_or("ignored in the source");
    Some((name.to_owned(), why.to_owned()))
}

/// The skips that `allowed` does not list. Each of its lines is `test` or `test: part of the reason`, where `*end` stands for
/// all tests whose name ends like that; `#` begins a comment.
pub(crate) fn not_allowed<'a>(skips: &'a BTreeMap<String, String>, allowed: &str) -> Vec<(&'a str, &'a str)> {
    let entries: Vec<(&str, &str)> = allowed
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
        .map(|line| line.split_once(": ").unwrap_or((line, "")))
        .collect();
    let is_named = |name: &str, test: &str| match name.strip_prefix('*') {
        Some(end) => !end.is_empty() && test.ends_with(end),
        None => name == test,
    };
    let is_allowed =
        |test: &str, why: &str| entries.iter().any(|(name, part)| is_named(name, test) && why.contains(part.trim()));
    skips.iter().map(|(test, why)| (test.as_str(), why.as_str())).filter(|(test, why)| !is_allowed(test, why)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
running 4 tests
test model::cycle ... ok
test victims::vm ... ignored, needs a nested VM
test victims::pi ... ok
SKIPPED: victims::dstate: no vfork here: old kernel
test victims::dstate ... ok
test victims::poll ... FAILED

successes:

---- victims::pi stdout ----
noise of a passing test
SKIPPED: victims::pi: the C library has no PI mutexes


successes:
    model::cycle
    victims::pi

failures:

---- victims::poll stdout ----
expected bad_timeout

test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s
test result: ok. 7 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.01s";

    fn tally(output: &str) -> (Tally, String) {
        let mut tally = Tally::default();
        let shown: Vec<&str> = output.lines().filter(|line| tally.take(line)).collect();
        (tally, shown.join("\n"))
    }

    #[test]
    fn counts_passes_failures_and_skips_each_once() {
        let (tally, _) = tally(OUTPUT);
        assert_eq!((tally.passed(), tally.failed(), tally.skips().len()), (8, 1, 3));
        assert_eq!(tally.skips()["victims::dstate"], "no vfork here: old kernel");
        assert_eq!(tally.skips()["victims::vm"], "needs a nested VM");
    }

    #[test]
    fn shows_failures_and_closing_lines_but_not_the_noise_of_passing_tests() {
        let (_, shown) = tally(OUTPUT);
        assert!(!shown.contains("noise of a passing test"));
        assert!(shown.contains("expected bad_timeout"));
        assert!(shown.contains("test result: FAILED. 3 passed"));
    }

    #[test]
    fn a_test_not_started_is_skipped_and_takes_nothing_from_the_passed() {
        let (mut tally, _) = tally("test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured");
        tally.skip("e2e", "needs root");
        tally.check(true);
        tally.check(false);
        assert_eq!((tally.passed(), tally.failed(), tally.skips().len()), (3, 1, 1));
    }

    #[test]
    fn an_allowed_skip_needs_its_name_and_its_reason() {
        let skips = BTreeMap::from([
            ("a".to_owned(), "no cgroup v2".to_owned()),
            ("b".to_owned(), "not root".to_owned()),
            ("c".to_owned(), "whatever".to_owned()),
        ]);
        let allowed = "# skips\na: cgroup v2 # old hosts\nb: no BTF\nc\n";
        assert_eq!(not_allowed(&skips, allowed), [("b", "not root")]);
        assert_eq!(not_allowed(&skips, "").len(), 3);
        let rungs = BTreeMap::from([
            ("a::by_kprobe".to_owned(), "no kprobes".to_owned()),
            ("b::by_kprobe".to_owned(), "out of memory".to_owned()),
            ("b::by_fentry".to_owned(), "no kprobes".to_owned()),
        ]);
        let left = [("b::by_fentry", "no kprobes"), ("b::by_kprobe", "out of memory")];
        assert_eq!(not_allowed(&rungs, "*::by_kprobe: no kprobes\n*\n"), left);
    }

    #[test]
    fn nothing_run_is_noticed() {
        let (tally, _) = tally("test result: ok. 0 passed; 0 failed; 0 ignored; 9 filtered out");
        assert!(tally.is_empty());
    }
}
