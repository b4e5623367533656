//! What a guest did, judged.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use super::Kernel;
use super::boot::{Done, Said};
use super::plan::{FAMILIES, Part};
use super::record::{KernelRecord, Program, Record};

/// What the guest prints before it runs a test once more: some are about time, and an emulated machine may be slow.
const SECOND_TRY: &str = "SECOND TRY";

/// What was found on one kernel.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) record: KernelRecord,
    /// How often the guest died and was started again.
    restarts: usize,
    /// Tests that needed a second try.
    again: Vec<String>,
    /// What should be otherwise.
    pub(super) wrong: Vec<String>,
}

/// A line about restarts, and one for each thing that is wrong.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { record, restarts, again, wrong } = self;
        let state = if wrong.is_empty() { "ok" } else { "NOT WELL" };
        writeln!(f, "kernel {} ({}): {state}, {restarts} restarts", record.version, record.release)?;
        again.iter().try_for_each(|test| writeln!(f, "    {test}: passed at the second try only"))?;
        wrong.iter().try_for_each(|wrong| writeln!(f, "    WRONG: {wrong}"))
    }
}

/// Judges one kernel by what its guests did of `parts`, and by what was `recorded` of it.
pub(super) fn judge(kernel: &Kernel, parts: &[Part], done: &Done, recorded: &Record) -> Verdict {
    let mut record = KernelRecord { version: kernel.version.to_owned(), ..KernelRecord::default() };
    let (mut wrong, mut again) = (Vec::new(), Vec::new());
    if let Some(why) = &done.gave_up {
        wrong.push(format!("not all parts were done: {why}"));
    }
    record.release = done.parts.get("uname").map_or_else(String::new, |said| said.output.trim().to_owned());
    for part in parts {
        let Some(said) = done.parts.get(&part.name()) else {
            wrong.push(format!("{} was not done", part.name()));
            continue;
        };
        match part {
            Part::Doctor => doctor(said, &mut record, &mut wrong),
            Part::Programs => {
                record.programs = programs(&said.output);
                let before = recorded.of(kernel.version);
                let known =
                    |name| before.is_some_and(|kernel| kernel.programs.get(name).is_some_and(Program::is_refused));
                if record.programs.is_empty() {
                    wrong.push(format!("no program was tried: {}", said.complaints.trim()));
                }
                for (name, program) in &record.programs {
                    let Some(refused) = &program.refused else { continue };
                    let expected = kernel.lacks.iter().any(|rung| name.starts_with(rung))
                        || kernel.lacks.contains(&"fentry") && name.starts_with("fexit")
                        || known(name);
                    if !expected {
                        wrong.push(format!("the program {name} is refused: {refused}"));
                    }
                }
            }
            Part::Rung(rung) => {
                let families = rung_families(rung, said);
                let lacked = kernel.lacks.contains(rung);
                for (family, outcome) in &families {
                    let may_be_blind = kernel.blind.contains(rung) && outcome.starts_with("blind");
                    if (outcome == "ok") == lacked && !may_be_blind {
                        wrong.push(format!("{family} by {rung}: {outcome}"));
                    }
                }
                record.rungs.insert((*rung).to_owned(), families);
            }
            Part::Test(file, test) => {
                let outcome = test_outcome(said);
                if outcome != "failed" && said.output.contains(SECOND_TRY) {
                    again.push(format!("{file}::{test}"));
                }
                if outcome == "failed" {
                    let words = said.complaints.lines().chain(said.output.lines()).filter(|line| !line.is_empty());
                    let words: Vec<&str> = words.take(30).collect();
                    wrong.push(format!("{file}::{test}: {}", words.join("\n        ")));
                }
                record.tests.insert(format!("{file}::{test}"), outcome);
            }
        }
    }
    Verdict { record, restarts: done.restarts, again, wrong }
}

/// The census and the rung of each family, as `observer doctor` sees them.
fn doctor(said: &Said, record: &mut KernelRecord, wrong: &mut Vec<String>) {
    let doctor: Value = serde_json::from_str(&said.output).unwrap_or_default();
    record.census = doctor["census"]["source"].as_str().unwrap_or("none").to_owned();
    if record.census != "iter_task" {
        wrong.push(format!("the census comes from {}: {} {}", record.census, doctor["census"], said.complaints));
    }
    for family in FAMILIES {
        let rung = doctor["probes"]["rungs"][family].as_str().unwrap_or("none: doctor does not say");
        if rung.starts_with("none") {
            wrong.push(format!("{family}: {rung}"));
        }
        record.ladder.insert(family.to_owned(), rung.to_owned());
    }
    if said.status != 0 || doctor["can_look"] != true {
        wrong.push(format!("doctor ended with {}: {}", said.status, said.complaints.trim()));
    }
}

/// What each family did on one rung: it must be attached there, and count calls and waits of the program that makes them.
fn rung_families(rung: &str, said: &Said) -> BTreeMap<String, String> {
    let report: Value = serde_json::from_str(&said.output).unwrap_or_default();
    let mut families = BTreeMap::new();
    for family in FAMILIES {
        // Changes of TCP states have no function of their own.
        if family == "tcp_state" && matches!(rung, "fentry" | "kprobe") {
            continue;
        }
        let attached = report["capability"]["probes"][family].as_str().unwrap_or("no report");
        let outcome = if attached != rung {
            without_times(attached.trim_start_matches("none: "))
        } else if family == "poll" && !has_finding(&report, "bad_timeout") {
            "blind: attached, and misses a negative timeout".to_owned()
        } else if matches!(family, "poll" | "futex") && !counted(&report, family) {
            "blind: attached, and counts nothing".to_owned()
        } else {
            "ok".to_owned()
        };
        families.insert(family.to_owned(), outcome);
    }
    families
}

/// Whether the probes counted calls and finished waits of a family.
fn counted(report: &Value, family: &str) -> bool {
    let sum = |counts: &Value| -> u64 { counts.as_array().into_iter().flatten().filter_map(Value::as_u64).sum() };
    let processes = report["processes"].as_array().into_iter().flatten();
    processes
        .flat_map(|process| process["waits"].as_array().into_iter().flatten())
        .any(|waits| waits["family"] == family && sum(&waits["calls"]) > 0 && sum(&waits["waits"]) > 0)
}

fn has_finding(report: &Value, kind: &str) -> bool {
    report["findings"].as_array().into_iter().flatten().any(|finding| finding["kind"] == kind)
}

/// `ok`, `skipped: why` or `failed`.
fn test_outcome(said: &Said) -> String {
    let skipped = said.complaints.lines().chain(said.output.lines()).find_map(|line| line.split_once("SKIPPED: "));
    if said.status != 0 || !said.output.contains("1 passed") {
        "failed".to_owned()
    } else if let Some((_, skip)) = skipped {
        format!("skipped: {}", skip.split_once(": ").map_or(skip, |(_, why)| why))
    } else {
        "ok".to_owned()
    }
}

/// From `# NAME`, what the verifier said of it (`= processed …`), and the lines of JSON at the end.
fn programs(output: &str) -> BTreeMap<String, Program> {
    let mut programs: BTreeMap<String, Program> = BTreeMap::new();
    let mut current = String::new();
    let mut said: BTreeMap<String, (Option<u64>, Option<u64>)> = BTreeMap::new();
    for line in output.lines() {
        if let Some(name) = line.strip_prefix("# ") {
            current = name.to_owned();
        } else if let Some(words) = line.strip_prefix("= ") {
            said.insert(current.clone(), (after(words, "processed"), after(words, "total_states")));
        } else if let Ok(load) = serde_json::from_str::<Value>(line)
            && let Some(name) = load["program"].as_str()
        {
            let (processed, states) = said.get(name).copied().unwrap_or_default();
            let text = |key: &str| load[key].as_str().map(str::to_owned);
            let (absent, refused) = (text("absent"), text("refused").map(|why| without_times(&why)));
            let instructions = processed.or_else(|| load["instructions"].as_u64());
            // What was walked through before a refusal is no cost.
            let is_loaded = absent.is_none() && refused.is_none();
            let (instructions, states) = if is_loaded { (instructions, states) } else { (None, None) };
            programs.insert(name.to_owned(), Program { instructions, states, absent, refused });
        }
    }
    programs
}

/// A refusal without what differs from run to run.
fn without_times(why: &str) -> String {
    let differs = |part: &&str| part.starts_with("verification time") || part.starts_with("stack depth");
    why.split(" | ").filter(|part| !differs(part)).collect::<Vec<_>>().join(" | ")
}

/// The number behind a word.
fn after(words: &str, word: &str) -> Option<u64> {
    words.split(' ').skip_while(|found| *found != word).nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::plan::RUNGS;
    use super::*;

    const KERNEL: Kernel = Kernel { version: "9.9", suite: "none", lacks: &["kprobe"], blind: &["tracepoint"] };

    fn said(output: &str, status: i32) -> Said {
        Said { output: output.to_owned(), complaints: String::new(), status }
    }

    fn rung(rung: &str) -> Said {
        let waits = |family: &str| format!("{{\"family\":\"{family}\",\"calls\":[0,2],\"waits\":[1]}}");
        said(
            &format!(
                "{{\"capability\":{{\"probes\":{{\"poll\":\"{rung}\",\"futex\":\"{rung}\",\"connect\":\"{rung}\",\
                 \"tcp_state\":\"{rung}\"}}}},\"findings\":[{{\"kind\":\"bad_timeout\"}}],\
                 \"processes\":[{{\"waits\":[{},{}]}}]}}",
                waits("poll"),
                waits("futex")
            ),
            1,
        )
    }

    fn whole() -> Done {
        let doctor = "{\"can_look\":true,\"census\":{\"source\":\"iter_task\"},\"probes\":{\"rungs\":{\"poll\":\"fentry\",\
                      \"futex\":\"fentry\",\"connect\":\"fentry\",\"tcp_state\":\"tp_btf\"}}}";
        let programs = "# census\n= processed 12 insns (limit 1000000) max_states_per_insn 1 total_states 3 peak_states 3\n\
                        # kprobe_enter\n= nothing\n\
                        {\"program\":\"census\",\"section\":\"iter/task\",\"instructions\":12}\n\
                        {\"program\":\"kprobe_enter\",\"section\":\"kprobe\",\"refused\":\"no\"}\n";
        let mut done = Done::default();
        let mut put = |name: &str, what: Said| done.parts.insert(name.to_owned(), what);
        put("uname", said("9.9.1\n", 0));
        put("doctor", said(doctor, 0));
        put("programs", said(programs, 2));
        for name in RUNGS {
            put(&format!("rung {name}"), if name == "kprobe" { rung("none: kprobe: no") } else { rung(name) });
        }
        put("test a::b", said("test b ... ok\ntest result: ok. 1 passed; 0 failed", 0));
        done
    }

    fn parts() -> Vec<Part> {
        let mut parts = vec![Part::Doctor, Part::Programs, Part::Test("a", "b")];
        parts.extend(RUNGS.map(Part::Rung));
        parts
    }

    #[test]
    fn a_kernel_that_does_all_it_can_is_well() {
        let verdict = judge(&KERNEL, &parts(), &whole(), &Record::default());
        assert_eq!(verdict.wrong, Vec::<String>::new());
        assert_eq!(verdict.record.release, "9.9.1");
        assert_eq!(verdict.record.rungs["fentry"]["poll"], "ok");
        assert_eq!(verdict.record.rungs["kprobe"]["poll"], "kprobe: no");
        assert_eq!(verdict.record.tests["a::b"], "ok");
        let census = &verdict.record.programs["census"];
        assert_eq!((census.instructions, census.states), (Some(12), Some(3)));
    }

    #[test]
    fn what_is_missing_blind_refused_or_failed_is_wrong() {
        let wrong = |name: &str, what: Said| {
            let mut done = whole();
            done.parts.insert(name.to_owned(), what);
            judge(&KERNEL, &parts(), &done, &Record::default()).wrong
        };
        assert_eq!(wrong("rung fentry", rung("none: fentry: no")).len(), 3);
        // A rung that is said to be missing there and is not: the page would be wrong.
        assert_eq!(wrong("rung kprobe", rung("kprobe")).len(), 3);
        assert_eq!(wrong("rung tp_btf", said("", 2)).len(), 4);
        assert_eq!(wrong("test a::b", said("test result: FAILED. 0 passed; 1 failed", 101)).len(), 1);
        assert_eq!(wrong("programs", said("{\"program\":\"census\",\"refused\":\"too long\"}\n", 2)).len(), 1);
        assert!(wrong("doctor", said("", 2)).len() > 4);
        let nothing = judge(&KERNEL, &parts(), &Done::default(), &Record::default());
        assert_eq!(nothing.wrong.len(), parts().len());
    }

    #[test]
    fn a_refusal_that_is_recorded_is_no_news() {
        let mut recorded = Record::default();
        recorded.put(judge(&KERNEL, &parts(), &whole(), &Record::default()).record);
        recorded.kernel[0]
            .programs
            .insert("census".to_owned(), Program { refused: Some("no helper".to_owned()), ..Program::default() });
        let mut done = whole();
        let refused = said("{\"program\":\"census\",\"refused\":\"no helper\"}\n", 2);
        done.parts.insert("programs".to_owned(), refused);
        assert_eq!(judge(&KERNEL, &parts(), &done, &recorded).wrong, Vec::<String>::new());
    }

    #[test]
    fn a_hook_that_is_not_there_is_no_refusal() {
        let programs = programs("{\"program\":\"fentry_futex_wait\",\"absent\":\"unknown BTF type\"}\n");
        let program = &programs["fentry_futex_wait"];
        assert!(program.absent.is_some() && !program.is_refused());
        assert_eq!(
            without_times("load: no | call x | verification time 9 usec | stack depth 4+0"),
            "load: no | call x"
        );
    }

    #[test]
    fn a_test_that_skips_itself_is_not_ok() {
        let output = Said {
            output: "test result: ok. 1 passed; 0 failed".to_owned(),
            complaints: "SKIPPED: b: no gdb\n".to_owned(),
            status: 0,
        };
        assert_eq!(test_outcome(&output), "skipped: no gdb");
        let mut done = whole();
        let again = "test result: FAILED\nSECOND TRY\ntest result: ok. 1 passed; 0 failed";
        done.parts.insert("test a::b".to_owned(), said(again, 0));
        let verdict = judge(&KERNEL, &parts(), &done, &Record::default());
        assert!(verdict.wrong.is_empty() && verdict.to_string().contains("second try only"));
    }
}
