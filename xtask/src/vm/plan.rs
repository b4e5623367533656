//! What a guest is asked to do.

/// Ways to attach, as `--probes` names them.
pub(super) const RUNGS: [&str; 4] = ["fentry", "kprobe", "tp_btf", "tracepoint"];

/// Families of probes.
pub(super) const FAMILIES: [&str; 4] = ["poll", "futex", "connect", "tcp_state"];

/// The end-to-end tests that make sense in a guest, as test file and test. Those that need compilers, runtimes or
/// containers run on the host only.
pub(super) const TESTS: &[(&str, &str)] = &[
    ("deadlocks", "two_threads_two_mutexes"),
    ("deadlocks", "across_two_processes"),
    ("timeouts", "negative_and_absurd_timeouts_are_findings_even_when_they_began_before_us"),
    ("timeouts", "timeouts_that_the_kernel_refuses_are_seen_by_the_probe"),
    ("timeouts", "timeouts_that_are_right_are_decoded_and_left_alone"),
    ("timeouts", "a_time_of_day_on_the_monotonic_clock_is_a_warning"),
    ("timeouts", "numbers_of_32_bit_calls_are_not_taken_for_others_by_the_probes"),
    ("other_hangs", "a_connect_nobody_answers"),
    ("other_hangs", "a_stopped_process_somebody_waits_for"),
    ("other_hangs", "a_vfork_parent_is_uninterruptible"),
    ("other_hangs", "a_32_bit_process_is_said_to_be_one"),
    ("lock_waits", "a_lock_held_too_long_names_holder_and_waiters"),
    ("file_locks", "two_processes_and_two_files_are_a_deadlock"),
    ("lost_wakeups", "a_wakeup_that_got_lost"),
    ("stops", "a_frozen_cgroup_of_version_2"),
    ("kernel_threads", "a_kernel_thread"),
    ("descriptors", "few_of_every_kind"),
    ("descriptors", "more_than_one_read_of_the_iterator"),
    ("degraded", "without_btf_the_census_falls_back_to_proc"),
    ("degraded", "without_tracefs_the_better_rungs_still_hold"),
    ("degraded", "without_probes_the_census_alone_finds_it"),
    ("healthy", "idle_programs"),
];

/// Programs the tests above start, from `tests/victims`.
pub(super) const VICTIMS: &[&str] = &[
    "connects",
    "deadlock",
    "dstate",
    "file_locks",
    "file_tables",
    "healthy_pool",
    "healthy_server",
    "healthy_waits",
    "held",
    "lost_wakeup",
    "processes",
    "stopped",
    "timeouts",
];

/// Those that are 32-bit programs without a C library.
pub(super) const VICTIMS_OF_32_BITS: &[&str] = &["timeouts32", "tiny32"];

/// One thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Doctor,
    Programs,
    Rung(&'static str),
    Test(&'static str, &'static str),
}

impl Part {
    /// The line of `/plan` that asks for it, and the name its output is marked with.
    pub(super) fn name(self) -> String {
        match self {
            Self::Doctor => "doctor".to_owned(),
            Self::Programs => "programs".to_owned(),
            Self::Rung(rung) => format!("rung {rung}"),
            Self::Test(file, test) => format!("test {file}::{test}"),
        }
    }
}

/// The files whose tests are used.
pub(super) fn test_files() -> Vec<&'static str> {
    let mut files: Vec<&str> = TESTS.iter().map(|(file, _)| *file).collect();
    files.dedup();
    files
}

/// Everything; or, given words, `doctor` and the tests whose name contains one of them.
pub(super) fn parts(filters: &[&str]) -> Vec<Part> {
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter));
    let mut parts = vec![Part::Doctor];
    if filters.is_empty() {
        parts.push(Part::Programs);
        parts.extend(RUNGS.map(Part::Rung));
    }
    let tests = TESTS.iter().filter(|(file, test)| wanted(&format!("{file}::{test}")));
    parts.extend(tests.map(|(file, test)| Part::Test(file, test)));
    parts
}

/// The contents of `/plan`.
pub(super) fn text(parts: &[Part]) -> String {
    parts.iter().map(|part| part.name() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_choose_tests() {
        assert_eq!(text(&parts(&["frozen"])), "doctor\ntest stops::a_frozen_cgroup_of_version_2\n");
        assert_eq!(parts(&[]).len(), 2 + RUNGS.len() + TESTS.len());
        assert_eq!(parts(&["no such test"]), [Part::Doctor]);
    }

    #[test]
    fn the_tests_exist() {
        for (file, test) in TESTS {
            let source = crate::workspace::root().join("tests/tests").join(file).with_extension("rs");
            let text = std::fs::read_to_string(&source).unwrap_or_default();
            assert!(text.contains(&format!("#[test]\nfn {test}()")), "{file} has no test {test}");
        }
    }
}
