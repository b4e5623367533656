//! Goroutines from outside, against what the runtime of the same program says of them.

use anyhow::{Context, Result, ensure};
use observer_tests::deadline::wait_until;
use observer_tests::golang::{Build, Toolchain, bare, is_shown, parse_trace};
use observer_tests::observer::Observer;
use observer_tests::skip;
use observer_tests::victim::{Unready, Victim};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

fn start(program: &Path, arguments: &[&str]) -> Result<Victim> {
    Unready::start_program(program, arguments)?.ready()
}

/// What it answers to a word.
fn ask(victim: &mut Victim, word: &str) -> Result<Value> {
    victim.guard().tell(word)?;
    Ok(serde_json::from_str(&victim.guard().line(LIMIT)?.context("it ended")?)?)
}

fn observe(victim: &Victim, extra: &[&str]) -> Result<String> {
    let pid = victim.truth.pid.to_string();
    Ok(Observer::new(&["goroutines", &pid])?.args(extra).run()?.expect_code(0)?.stdout)
}

fn census(victim: &Victim) -> Result<Value> {
    Ok(serde_json::from_str(&observe(victim, &["--output", "json", "--interval", "0s"])?)?)
}

fn groups(census: &Value) -> Result<&Vec<Value>> {
    census["groups"].as_array().context("groups")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Function, file and line of what Go itself would show.
fn shown(group: &Value) -> Vec<(String, String, u64)> {
    let frames = group["stack"].as_array().into_iter().flatten();
    let places = frames.map(|frame| {
        (bare(text(&frame["function"])), text(&frame["file"]).to_owned(), frame["line"].as_u64().unwrap_or(0))
    });
    places.filter(|(name, ..)| is_shown(name)).collect()
}

/// Compares a census with the program's own account, goroutine by goroutine.
fn compare(victim: &mut Victim) -> Result<()> {
    let own = ask(victim, "dump")?;
    let traced = parse_trace(text(&own["dump"]))?;
    let census = census(victim)?;
    let counted = census["total"].as_u64().context("total")? - census["system"].as_u64().context("system")?;
    ensure!(own["count"] == counted, "runtime.NumGoroutine is {}, the census has {counted}", own["count"]);
    ensure!(census["lost"] == serde_json::json!({}), "something was lost: {}", census["lost"]);
    let mut seen = BTreeSet::new();
    for group in groups(&census)?.iter().filter(|group| group["is_system"] == false) {
        ensure!(group["stack_end"] == "root", "{group:#}");
        let state = group["wait_reason"].as_str().unwrap_or(text(&group["state"]));
        let frames = shown(group);
        for goid in group["goroutines"].as_array().context("goroutines")? {
            let goid = goid.as_u64().context("a number")?;
            ensure!(seen.insert(goid), "goroutine {goid} is in two groups");
            let own = traced.get(&goid).with_context(|| format!("there is no goroutine {goid}: {group:#}"))?;
            if goid == 1 {
                // It writes the trace, and reads its input when observer looks.
                ensure!(frames.iter().any(|(name, ..)| name == "main.main"), "{group:#}");
                ensure!(group["created_by"].is_null(), "{group:#}");
                continue;
            }
            ensure!(own.state == state, "goroutine {goid}: {} instead of {state}", own.state);
            // What a `go` statement with arguments starts is a function that Go made, which it does not show. Before 1.22 its
            // name does not tell.
            let is_made =
                frames.len() == own.frames.len() + 1 && frames.last().is_some_and(|at| at.0 == group["function"]);
            let frames = &frames[..frames.len() - usize::from(is_made)];
            ensure!(own.frames == frames, "goroutine {goid}: {:#?} instead of {frames:#?}", own.frames);
            let by = &group["created_by"];
            let by = (bare(text(&by["function"])), text(&by["file"]).to_owned(), by["line"].as_u64().unwrap_or(0));
            ensure!(own.created_by.as_ref() == Some(&by), "goroutine {goid}: {:?} instead of {by:?}", own.created_by);
        }
    }
    let all: BTreeSet<u64> = traced.keys().copied().collect();
    ensure!(seen == all, "not seen: {:?}", all.difference(&seen));
    expect_waits(&census)
}

/// What is waited on is one thing where it is one, and the right kind.
fn expect_waits(census: &Value) -> Result<()> {
    let mut things: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut kinds = BTreeSet::new();
    for group in groups(census)? {
        for wait in group["waits_for"].as_array().context("waits_for")? {
            kinds.insert(text(&wait["kind"]).to_owned());
            let innermost = shown(group).into_iter().rfind(|(name, ..)| name.starts_with("main.")).map(|at| at.2);
            let place = format!("{}:{}", text(&group["function"]), innermost.unwrap_or(0));
            things.entry(place).or_default().insert(text(&wait["address"]).to_owned());
            if wait["kind"] == "channel" {
                ensure!(wait["closed"] == false && wait["len"].as_u64() <= wait["capacity"].as_u64(), "{group:#}");
            }
            if wait["capacity"] == 3 {
                ensure!(wait["len"] == 3 && group["wait_reason"] == "chan send", "{group:#}");
            }
        }
        let of_sync = text(&group["wait_reason"]);
        if of_sync.starts_with("sync.") && of_sync != "sync.Cond.Wait" || of_sync == "semacquire" {
            let waiters: u64 =
                group["waits_for"].as_array().into_iter().flatten().filter_map(|w| w["waiters"].as_u64()).sum();
            ensure!(group["count"] == waiters, "each waits for a semaphore: {group:#}");
            ensure!(group["waits_for"].as_array().is_some_and(|waits| waits.len() == 1), "the same one: {group:#}");
        }
    }
    ensure!(kinds == ["channel", "semaphore"].map(str::to_owned).into(), "{kinds:?} of {things:#?}");
    Ok(())
}

fn compare_all(go: Result<Toolchain, String>, builds: &[Build]) -> Result<()> {
    let go = match go {
        Ok(go) => go,
        Err(why) => skip!("{why}"),
    };
    for build in builds {
        let mut victim = start(&go.build("goroutines.go", *build)?, &[])?;
        compare(&mut victim).with_context(|| format!("{} {build:?}", go.name))?;
    }
    Ok(())
}

#[test]
fn census_is_the_programs_own_debian() -> Result<()> {
    compare_all(Toolchain::debian(), &Build::ALL)
}

#[test]
fn census_is_the_programs_own_1_21() -> Result<()> {
    compare_all(Toolchain::wheel("1.21.13"), &Build::ALL)
}

#[test]
fn census_is_the_programs_own_1_24() -> Result<()> {
    compare_all(Toolchain::wheel("1.24.11"), &Build::ALL)
}

#[test]
fn census_is_the_programs_own_1_26() -> Result<()> {
    compare_all(Toolchain::wheel("1.26.6"), &Build::ALL)
}

#[test]
fn census_is_the_programs_own_1_27() -> Result<()> {
    compare_all(Toolchain::wheel("1.27.3"), &Build::ALL)
}

/// Why frames of a stack that does not fit together are left out.
const TORN: [&str; 2] = ["an address that is in no function of Go", "frame sizes and frame pointers disagree"];

#[test]
fn while_goroutines_come_and_go_none_is_invented() -> Result<()> {
    for go in [Toolchain::debian(), Toolchain::wheel("1.26.6")] {
        let go = match go {
            Ok(go) => go,
            Err(why) => skip!("{why}"),
        };
        let victim = start(&go.build("goroutines.go", Build::Stripped)?, &["churn"])?;
        let (mut walked, mut torn) = (0, 0);
        for _ in 0..10 {
            let census = census(&victim)?;
            // Main, and four that each have up to twenty at once, and as many again that are about to end.
            let counted = census["total"].as_u64().context("total")? - census["system"].as_u64().context("system")?;
            ensure!((5..=245).contains(&counted), "{counted} goroutines");
            for group in groups(&census)? {
                let end = text(&group["stack_end"]);
                if end != "root" {
                    let is_torn = TORN.contains(&end) && group["stack"] == serde_json::json!([]);
                    torn += u64::from(is_torn);
                    ensure!(is_torn || ["running", "changed"].contains(&end), "{group:#}");
                    continue;
                }
                walked += group["count"].as_u64().context("count")?;
                // A torn stack would not lead from here to there.
                let (frames, function) = (group["stack"].as_array().context("stack")?, text(&group["function"]));
                let outermost = frames.last().map(|frame| text(&frame["function"])).unwrap_or_default();
                ensure!(bare(outermost) == bare(function), "{group:#}");
                let known = ["main.main", "main.churn", "main.brief", "runtime."];
                let is_known = |name: &str| known.iter().any(|prefix| name.starts_with(prefix));
                ensure!(is_known(function), "{group:#}");
            }
        }
        ensure!(walked > 100, "{walked} stacks");
        // One that parks at the same place twice while it is read, and again when it is read once more.
        ensure!(torn <= walked / 50, "{torn} of {walked} stacks were torn, and were left out");
    }
    Ok(())
}

#[test]
fn profiles_are_read_by_gos_own_tool_and_by_flame_graphs() -> Result<()> {
    let go = match Toolchain::debian() {
        Ok(go) => go,
        Err(why) => skip!("{why}"),
    };
    let victim = start(&go.build("goroutines.go", Build::StrippedPie)?, &["many", "400"])?;
    let folded = observe(&victim, &["--output", "folded"])?;
    let sum = |wanted: &dyn Fn(&str) -> bool| -> u64 {
        let lines = folded.lines().filter(|line| wanted(line));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    };
    ensure!(sum(&|line| line.contains(";main.deep;")) == 200, "{folded}");
    ensure!(sum(&|line| line.contains("main.inlined;") && line.contains(";[chan send] ")) == 200, "{folded}");
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("goroutines.pb.gz");
    let out = std::fs::File::create(&file)?;
    let mut observer = Command::new(observer_tests::observer::binary()?);
    observer.args(["goroutines", &victim.truth.pid.to_string(), "--output", "pprof"]);
    ensure!(observer.stdout(out).stdin(Stdio::null()).status()?.success(), "no profile");
    let top = go.command(&["tool", "pprof", "-top", "-cum", "-nodecount=50"]).arg(&file).output()?;
    let report = String::from_utf8_lossy(&top.stdout);
    ensure!(top.status.success(), "{}", String::from_utf8_lossy(&top.stderr));
    let cumulative = |name: &str| {
        let line = report.lines().find(|line| line.split_whitespace().nth(5) == Some(name))?;
        line.split_whitespace().nth(3)?.parse::<u64>().ok()
    };
    ensure!(cumulative("main.deep") == Some(200), "{report}");
    ensure!(cumulative("main.inlined") == Some(200), "{report}");
    ensure!(report.contains("Type: goroutine"), "{report}");
    Ok(())
}

#[test]
fn what_grows_is_told() -> Result<()> {
    let go = match Toolchain::debian() {
        Ok(go) => go,
        Err(why) => skip!("{why}"),
    };
    let victim = start(&go.build("goroutines.go", Build::Plain)?, &["many", "100"])?;
    let census: Value = serde_json::from_str(&observe(&victim, &["--output", "json", "--interval", "200ms"])?)?;
    let group = groups(&census)?.iter().find(|group| group["count"] == 50).context("half of them")?;
    ensure!(group["growth_per_minute"] == 0.0, "{group:#}");
    let waited = group["longest_wait_ns"].as_u64().context("longest_wait_ns")?;
    ensure!((100_000_000..20_000_000_000).contains(&waited), "{group:#}");
    let text = observe(&victim, &["--interval", "200ms"])?;
    ensure!(text.contains("chan send, ≥") && text.contains("created by main.many ("), "{text}");
    Ok(())
}

#[test]
fn a_go_library_in_a_c_program() -> Result<()> {
    let go = match Toolchain::debian() {
        Ok(go) => go,
        Err(why) => skip!("{why}"),
    };
    let library = go.build_library("go_library.go")?;
    let host = observer_tests::compile::victim("go_host", observer_tests::compile::Abi::Native)?;
    let victim = start(&host, &[library.to_str().context("a path")?])?;
    let shows = |group: &&Value, name: &str| {
        group["stack"].as_array().into_iter().flatten().any(|frame| frame["function"] == name)
    };
    let asleep = |group: &&Value| shows(group, "main.Wait") && group["wait_reason"] == "chan receive";
    let census = wait_until("its second thread to wait in Go", LIMIT, || {
        let census = census(&victim)?;
        Ok(groups(&census)?.iter().any(|group| asleep(&group)).then_some(census))
    })?;
    let parked =
        groups(&census)?.iter().find(|group| group["function"] == "main.Start.func1").context("its goroutines")?;
    ensure!(parked["count"] == 7 && parked["wait_reason"] == "chan receive", "{parked:#}");
    ensure!(parked["created_by"]["function"] == "main.Start", "{parked:#}");
    Ok(())
}

/// Who has run between two censuses, and what is on the heap: as the program itself says.
fn pulse(go: Result<Toolchain, String>, builds: &[Build]) -> Result<()> {
    let go = match go {
        Ok(go) => go,
        Err(why) => skip!("{why}"),
    };
    for build in builds {
        let mut victim = start(&go.build("pulse.go", *build)?, &[])?;
        let told = ask(&mut victim, "heap")?["heap"].as_f64().context("heap")?;
        let census: Value = serde_json::from_str(&observe(&victim, &["--output", "json", "--interval", "300ms"])?)?;
        let read = census["heap_bytes"].as_f64().with_context(|| format!("{} {build:?}: no heap", go.name))?;
        // What is free in spans that are in use counts as live.
        ensure!((told * 0.95..told * 1.2).contains(&read), "{} {build:?}: {read} bytes, it says {told}", go.name);
        let of = |function: &str| -> Result<Vec<&Value>> {
            let all = groups(&census)?.iter().filter(|group| group["wait_reason"] == "chan receive");
            Ok(all.filter(|group| shown(group).iter().any(|(name, ..)| name == function)).collect())
        };
        let ran: u64 = of("main.beat")?.into_iter().filter_map(|group| group["ran_again"].as_u64()).sum();
        ensure!((3..=5).contains(&ran), "{} {build:?}: {census:#}", go.name);
        let [resting] = of("main.rest")?[..] else { anyhow::bail!("{} {build:?}: {census:#}", go.name) };
        ensure!(resting["count"] == 5 && resting["ran_again"] == 0, "{} {build:?}: {resting:#}", go.name);
    }
    Ok(())
}

#[test]
fn runs_and_heap_debian() -> Result<()> {
    pulse(Toolchain::debian(), &Build::ALL)
}

#[test]
fn runs_and_heap_1_21() -> Result<()> {
    pulse(Toolchain::wheel("1.21.13"), &[Build::Plain, Build::StrippedPie])
}

#[test]
fn runs_and_heap_1_24() -> Result<()> {
    pulse(Toolchain::wheel("1.24.11"), &[Build::Stripped, Build::StrippedPie])
}

#[test]
fn runs_and_heap_1_26() -> Result<()> {
    pulse(Toolchain::wheel("1.26.6"), &[Build::Stripped, Build::StrippedPie])
}

#[test]
fn runs_and_heap_1_27() -> Result<()> {
    pulse(Toolchain::wheel("1.27.3"), &[Build::Plain, Build::StrippedPie])
}

#[test]
fn goroutines_in_c_show_the_wait_of_their_thread() -> Result<()> {
    let go = match Toolchain::debian() {
        Ok(go) => go,
        Err(why) => skip!("{why}"),
    };
    for arguments in [&["-buildmode=exe"][..], &["-buildmode=pie", "-ldflags=-s -w"]] {
        let victim = start(&go.build_cgo("cgo_calls.go", arguments)?, &[])?;
        let census = census(&victim)?;
        let calling: Vec<&Value> = groups(&census)?.iter().filter(|group| group["function"] == "main.call").collect();
        let [calling] = calling[..] else { anyhow::bail!("{calling:#?}") };
        ensure!(calling["count"] == 3 && calling["state"] == "syscall", "{calling:#}");
        ensure!(
            calling["stack"].as_array().context("stack")?.iter().any(|one| one["function"] == "main._Cfunc_nap"),
            "{calling:#}"
        );
        let tids: Vec<i64> =
            calling["threads"].as_array().context("threads")?.iter().filter_map(Value::as_i64).collect();
        ensure!(tids.len() == 3, "{calling:#}");
        // The same threads in a look at the process: what they are in, with its timeout.
        let report = Observer::attach(&[victim.truth.pid], &["--once", "--output", "json"])?.run()?.report()?;
        let process = report.process(victim.truth.pid)?;
        for tid in tids {
            let thread = process["threads"].as_array().context("threads")?.iter().find(|one| one["tid"] == tid);
            let wait = &thread.with_context(|| format!("no thread {tid}"))?["wait"];
            ensure!(wait["syscall"] == "poll" && wait["timeout"]["kind"] == "infinite", "{wait:#}");
        }
    }
    Ok(())
}

#[test]
fn frames_of_a_plugin_are_named() -> Result<()> {
    let go = match Toolchain::debian() {
        Ok(go) => go,
        Err(why) => skip!("{why}"),
    };
    let part = go.build_plugin("plugin_part.go")?;
    let victim = start(&go.build_cgo("plugin_host.go", &[])?, &[part.to_str().context("a path")?])?;
    let census = census(&victim)?;
    ensure!(census["lost"] == serde_json::json!({}), "{}", census["lost"]);
    let is_of = |value: &Value, ending: &str| text(value).starts_with("plugin/") && text(value).ends_with(ending);
    let group = groups(&census)?.iter().find(|group| is_of(&group["function"], ".Start.func1"));
    let group = group.with_context(|| format!("{census:#}"))?;
    ensure!(group["count"] == 5 && group["wait_reason"] == "chan receive" && group["stack_end"] == "root", "{group:#}");
    let frames = shown(group);
    let line = frames.iter().find(|(name, ..)| name.ends_with(".forgotten")).with_context(|| format!("{group:#}"))?;
    ensure!(line.1.ends_with("plugin_part.go") && line.2 > 0, "{group:#}");
    ensure!(is_of(&group["created_by"]["function"], ".Start"), "{group:#}");
    Ok(())
}

#[test]
fn what_is_not_go_is_refused_with_the_reason() -> Result<()> {
    let victim = Victim::start("healthy_waits", &["nanosleep"])?;
    let pid = victim.truth.pid.to_string();
    let why = Observer::new(&["goroutines", &pid])?.run()?.expect_refusal()?;
    ensure!(why.contains("no Go program") && why.contains("packed"), "{why}");
    let why = Observer::new(&["goroutines", &pid, "--watch", "--output", "pprof"])?.run()?.expect_refusal()?;
    ensure!(why.contains("--watch"), "{why}");
    let why = Observer::new(&["goroutines", "4194304"])?.run()?.expect_refusal()?;
    ensure!(why.contains("4194304"), "{why}");
    Ok(())
}
