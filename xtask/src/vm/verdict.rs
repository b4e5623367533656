//! What the guest printed, judged.

use std::fmt;

use serde_json::Value;

use super::Kernel;

/// Above the rows.
pub(super) const HEADING: &str = "kernel                        census     poll futex connect tcp_state          \
    deadlock  bad timeout by fentry, kprobe, tp_btf, tracepoint";

const RUNGS: [&str; 4] = ["fentry", "kprobe", "tp_btf", "tracepoint"];
const FAMILIES: [&str; 4] = ["poll", "futex", "connect", "tcp_state"];

/// A row of the table.
pub(super) struct Verdict {
    release: String,
    census: String,
    families: String,
    deadlock: String,
    rungs: Vec<String>,
    /// What should be otherwise.
    pub(super) wrong: Vec<String>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { release, census, families, deadlock, rungs, wrong } = self;
        write!(f, "{release:29} {census:10} {families:34} {deadlock:9} {}", rungs.join(", "))?;
        wrong.iter().try_for_each(|wrong| write!(f, "\n    WRONG: {wrong}"))
    }
}

/// Judges one boot.
pub(super) fn judge(kernel: &Kernel, output: &str) -> Verdict {
    let mut wrong = Vec::new();
    let release = section(output, "uname").map_or_else(|| kernel.version.to_owned(), |text| text.trim().to_owned());
    let doctor = document(output, "doctor");
    let census = doctor["census"]["source"].as_str().unwrap_or("none").to_owned();
    if census != "iter_task" {
        wrong.push(format!("the census comes from {census}: {}", doctor["census"]));
    }
    let mut families = Vec::new();
    for family in FAMILIES {
        let rung = doctor["probes"]["rungs"][family].as_str().unwrap_or("none");
        if rung.starts_with("none") {
            wrong.push(format!("{family}: {rung}"));
        }
        families.push(rung.split(':').next().unwrap_or_default());
    }
    let deadlock = confidence(&document(output, "deadlock"), "deadlock");
    if deadlock == "missed" {
        wrong.push("the deadlock was not found".to_owned());
    }
    let mut rungs = Vec::new();
    for rung in RUNGS {
        let report = document(output, rung);
        let attached = report["capability"]["probes"]["poll"].as_str().unwrap_or("no report");
        let found = confidence(&report, "bad_timeout");
        let word = if attached != rung {
            "refused"
        } else if found == "missed" || !counted(&report, "poll") || !counted(&report, "futex") {
            "blind"
        } else {
            "yes"
        };
        if word != if kernel.lacks.contains(&rung) { "refused" } else { "yes" } {
            wrong.push(format!("{rung} is {word}: poll {attached}, bad timeout {found}"));
        }
        rungs.push(word.to_owned());
    }
    if output.contains("Kernel panic") {
        wrong.push(
            "the guest's kernel died: see target/vm/guest.log, and run it again (emulation does that to 6.12)"
                .to_owned(),
        );
    }
    if wrong.len() > 1 {
        let last: Vec<&str> = output.lines().rev().take(5).collect();
        wrong.extend(last.into_iter().rev().map(|line| format!("console: {line}")));
    }
    Verdict { release, census, families: families.join(" "), deadlock, rungs, wrong }
}

/// Whether the probes counted calls and finished waits of a family.
fn counted(report: &Value, family: &str) -> bool {
    let sum = |counts: &Value| -> u64 { counts.as_array().into_iter().flatten().filter_map(Value::as_u64).sum() };
    let processes = report["processes"].as_array().into_iter().flatten();
    processes
        .flat_map(|process| process["waits"].as_array().into_iter().flatten())
        .any(|waits| waits["family"] == family && sum(&waits["calls"]) > 0 && sum(&waits["waits"]) > 0)
}

/// How sure the report is of a finding of `kind`; `missed` if it has none.
fn confidence(report: &Value, kind: &str) -> String {
    let mut findings = report["findings"].as_array().into_iter().flatten();
    let found = findings.find(|finding| finding["kind"] == kind);
    found.and_then(|finding| finding["confidence"].as_str()).unwrap_or("missed").to_owned()
}

fn section<'a>(output: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = output.split_once(&format!("@@@BEGIN {name}\n"))?;
    Some(rest.split_once(&format!("@@@END {name}\n"))?.0)
}

/// The first document of a section; null if there is none.
fn document(output: &str, name: &str) -> Value {
    let text = section(output, name).unwrap_or_default();
    let begin = text.find('{').unwrap_or(text.len());
    let mut documents = serde_json::Deserializer::from_str(&text[begin..]).into_iter::<Value>();
    documents.next().and_then(Result::ok).unwrap_or(Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: Kernel = Kernel { version: "9.9", suite: "none", lacks: &["kprobe"] };

    fn report(rung: &str, kind: &str) -> String {
        let waits = |family| format!(r#"{{"family":"{family}","calls":[0,2],"waits":[2]}}"#);
        format!(
            "@@@BEGIN {rung}\n{{\"capability\":{{\"probes\":{{\"poll\":\"{rung}\"}}}},\"findings\":[{{\"kind\":\"{kind}\",\
             \"confidence\":\"certain\"}}],\"processes\":[{{\"waits\":[{},{}]}}]}}\n@@@END {rung}\n",
            waits("poll"),
            waits("futex")
        )
    }

    #[test]
    fn a_kernel_that_does_all_it_can_is_well_and_a_silent_one_is_not() {
        let mut output =
            "noise\n@@@BEGIN uname\n9.9.1\n@@@END uname\n@@@BEGIN doctor\n{\"census\":{\"source\":\"iter_task\"},\
                          \"probes\":{\"rungs\":{\"poll\":\"fentry\",\"futex\":\"fentry\",\"connect\":\"fentry\",\
                          \"tcp_state\":\"tp_btf\"}}}\n@@@END doctor\n"
                .to_owned();
        output += &report("deadlock", "deadlock");
        for rung in ["fentry", "tp_btf", "tracepoint"] {
            output += &report(rung, "bad_timeout");
        }
        let verdict = judge(&KERNEL, &output);
        assert_eq!(verdict.wrong, Vec::<String>::new());
        assert_eq!(verdict.rungs, ["yes", "refused", "yes", "yes"]);
        assert!(judge(&KERNEL, "Kernel panic\n").wrong.len() > 5);
    }
}
