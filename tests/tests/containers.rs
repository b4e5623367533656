//! Containers for real, and the capabilities that a container of observer's own has.

use anyhow::{Context, Result, ensure};
use observer_tests::compile::{self, Abi};
use observer_tests::container::{self, Container};
use observer_tests::kube_stub::{self, Answer, Stub};
use observer_tests::observer::{Live, OLD_ENOUGH, Observer, binary};
use observer_tests::procfs;
use observer_tests::skip;
use observer_tests::victim::Unready;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

/// What the kubelet's cgroup paths lead to, in a report's process and in a finding.
fn expect_identity(what: &Value, container: &Container) -> Result<()> {
    ensure!(what["container"]["id"] == container.id.as_str(), "not {}: {what:#}", container.id);
    ensure!(what["pod"]["uid"] == container.pod_uid.as_str(), "not {}: {what:#}", container.pod_uid);
    // Nobody was asked for names.
    ensure!(what["pod"]["name"].is_null() && what["pod"]["namespace"].is_null(), "{what:#}");
    Ok(())
}

/// The functions of the victim that each thread of the finding is in.
fn expect_stacks(finding: &Value) -> Result<()> {
    let stacks = finding["stacks"].as_array().context("stacks")?;
    ensure!(!stacks.is_empty(), "{finding:#}");
    let text = finding["stacks"].to_string();
    for function in ["\"take\"", "\"transfer\"", "deadlock.c"] {
        ensure!(text.contains(function), "{function} is not in {:#}", finding["stacks"]);
    }
    Ok(())
}

#[test]
fn a_deadlock_in_a_container_seen_from_outside() -> Result<()> {
    if let Some(tool) = container::missing() {
        skip!("{tool} is not installed");
    }
    let mut container = Container::start("deadlock", &[])?;
    container.victim()?.older_than(OLD_ENOUGH)?;
    let (here, around) = container.pids;
    // It is really apart: namespaces of its own, and the cgroup path of a pod.
    for namespace in ["pid", "mnt", "net"] {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{namespace}"));
        ensure!(of(&here.to_string())? != of("self")?, "{namespace}");
    }
    let inside = container.victim()?.truth.pid;
    ensure!(inside != around && inside < 20, "in its own PID namespace it is {inside}, not {around}");

    let mut command = container.around(&binary()?)?;
    command.args(["watch", "--once", "--threshold", "1s", "--output", "json"]);
    let run = Observer::through(command).run()?.expect_code(1)?;
    let report: Value = serde_json::from_str(&run.stdout)?;
    let findings = report["findings"].as_array().context("findings")?;
    let [finding] = findings.as_slice() else { anyhow::bail!("one finding, not {findings:#?}") };
    ensure!(finding["kind"] == "deadlock" && finding["confidence"] == "certain", "{finding:#}");
    ensure!(finding["pid"] == around, "by its id where observer runs: {finding:#}");
    expect_identity(finding, &container)?;
    let processes = report["processes"].as_array().context("processes")?;
    let process = processes.iter().find(|process| process["pid"] == around).context("the victim's process")?;
    expect_identity(process, &container)?;
    expect_stacks(finding)
}

/// The daemon in the PID namespace around the container.
fn daemon_around(container: &mut Container, extra: &[&str]) -> Result<Live> {
    let mut command = container.around(&binary()?)?;
    command.args(["daemon", "--threshold=1s", "--interval=200ms", "--listen=none"]).args(extra);
    Observer::through(command).start()
}

#[test]
fn the_daemon_and_its_filters_know_containers() -> Result<()> {
    if let Some(tool) = container::missing() {
        skip!("{tool} is not installed");
    }
    let mut container = Container::start("deadlock", &[])?;
    let finding = daemon_around(&mut container, &[])?.finding(SOON, |finding| finding["kind"] == "deadlock")?;
    expect_identity(&finding, &container)?;
    expect_stacks(&finding)?;
    let start = finding["container"]["id"].as_str().context("an id")?[..12].to_owned();
    let chosen = format!("--container={start}");
    daemon_around(&mut container, &[&chosen])?.finding(SOON, |finding| finding["kind"] == "deadlock")?;
    // Another container's id: nothing for as long as it took to find it, and a while more.
    let mut other = daemon_around(&mut container, &["--container=ffff"])?;
    let found = other.finding(Duration::from_secs(4), |_| true);
    ensure!(found.is_err(), "{found:?}");
    ensure!(procfs::comm(other.guard.pid(), other.guard.pid()).is_ok(), "it looks still");
    Ok(())
}

/// Exactly these, of uid 0: what the chart gives.
const CAPABILITIES: &str = "bpf,perfmon,sys_ptrace,dac_read_search,syslog,checkpoint_restore";

#[test]
fn with_exactly_its_capabilities_it_sees_other_users() -> Result<()> {
    if !compile::installed("setpriv") {
        skip!("setpriv is not installed");
    }
    // Nobody may not enter the target directory.
    let dir = tempfile::tempdir()?;
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755))?;
    let program = dir.path().join("deadlock");
    std::fs::copy(compile::victim("deadlock", Abi::Native)?, &program)?;
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--fork", "--mount-proc", "--kill-child", "--", "setpriv"]);
    unshare.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]).arg(&program);
    let mut victim = Unready::start_command(unshare, "deadlock of another user".to_owned())?.ready()?;
    let (first, _) = *procfs::descendants(victim.guard().pid()).first().context("nothing runs in the namespace")?;
    ensure!(procfs::status_numbers(first, first, "Uid")?.iter().all(|uid| *uid == 65534), "it is nobody's");

    let bounded: String = CAPABILITIES.split(',').map(|name| format!(",+{name}")).collect();
    let mut command = Command::new("nsenter");
    command.args(["--target", &first.to_string(), "--pid", "--mount", "--", "setpriv"]);
    command.arg(format!("--bounding-set=-all{bounded}")).args(["--inh-caps=-all", "--no-new-privs"]);
    command.arg(binary()?).args(["daemon", "--threshold=1s", "--interval=200ms", "--listen=none"]);
    let mut live = Observer::through(command).start()?;
    let finding = live.finding(SOON, |finding| finding["kind"] == "deadlock")?;
    ensure!(finding["confidence"] == "certain", "{finding:#}");
    expect_stacks(&finding)?;

    // It has no more than that.
    let observers = procfs::descendants(live.guard.pid());
    let is_observer = |pid: &i32| procfs::comm(*pid, *pid).is_ok_and(|comm| comm == "observer");
    let observer = observers.iter().map(|(pid, _)| *pid).find(is_observer).context("no observer")?;
    let status = std::fs::read_to_string(format!("/proc/{observer}/status"))?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("CapEff")?;
    let mask = u64::from_str_radix(mask.trim(), 16)?;
    let wanted = [39, 38, 19, 2, 34, 40].iter().fold(0_u64, |mask, bit| mask | 1 << bit);
    ensure!(mask == wanted, "{mask:#x}, not {wanted:#x}");
    let log = live.stderr()?;
    ensure!(!log.contains("falling back") && !log.contains("no probes"), "{log}");
    Ok(())
}

#[test]
fn pods_have_the_names_that_the_api_server_knows() -> Result<()> {
    if let Some(tool) = container::missing() {
        skip!("{tool} is not installed");
    }
    let mut container = Container::start("deadlock", &[])?;
    let pod = kube_stub::pod(&container.pod_uid, "web-7d4b9c6f5-x2x9p", ("server", &container.id), 9);
    let mut answers = vec![kube_stub::list(10, std::slice::from_ref(&pod))].into_iter();
    let stub = Stub::start(move |_| answers.next().unwrap_or(Answer::Watch(Vec::new())))?;
    let dir = tempfile::tempdir()?;
    let kubeconfig = format!("--kubeconfig={}", stub.kubeconfig(dir.path())?.display());
    let mut live = daemon_around(&mut container, &["--node-name=n1", &kubeconfig])?;
    let finding = live.finding(SOON, |finding| finding["kind"] == "deadlock")?;
    let expected = serde_json::json!({
        "namespace": "shop", "name": "web-7d4b9c6f5-x2x9p", "uid": container.pod_uid, "container": "server",
    });
    ensure!(finding["pod"] == expected, "{:#}", finding["pod"]);
    drop(live);
    // A silence for the label of another pod does not concern it.
    let mut answers = vec![kube_stub::list(10, &[pod])].into_iter();
    let stub = Stub::start(move |_| answers.next().unwrap_or(Answer::Watch(Vec::new())))?;
    let kubeconfig = format!("--kubeconfig={}", stub.kubeconfig(dir.path())?.display());
    let args = ["--node-name=n1", &kubeconfig, "--silence=kind=deadlock,labels.app.kubernetes.io/name=batch"];
    daemon_around(&mut container, &args)?.finding(SOON, |finding| finding["kind"] == "deadlock")?;
    Ok(())
}

#[test]
fn a_silence_by_label_keeps_quiet() -> Result<()> {
    if let Some(tool) = container::missing() {
        skip!("{tool} is not installed");
    }
    let mut container = Container::start("deadlock", &[])?;
    let pod = kube_stub::pod(&container.pod_uid, "web", ("server", &container.id), 9);
    let mut answers = vec![kube_stub::list(10, &[pod])].into_iter();
    let stub = Stub::start(move |_| answers.next().unwrap_or(Answer::Watch(Vec::new())))?;
    let dir = tempfile::tempdir()?;
    let kubeconfig = stub.kubeconfig(dir.path())?;
    let config = dir.path().join("observer.toml");
    // The names come before the finding can: it is not ripe yet.
    let text = format!("threshold = \"4s\"\nnode-name = \"n1\"\nkubeconfig = \"{}\"\n", kubeconfig.display());
    let silence = "[[silence]]\nlabels = { \"app.kubernetes.io/name\" = \"web\" }\n";
    std::fs::write(&config, format!("{text}{silence}"))?;
    let mut command = container.around(&binary()?)?;
    command.args(["daemon", "--interval=200ms", "--listen=none", "--config"]).arg(&config);
    let mut live = Observer::through(command).start()?;
    let quiet = live.finding(Duration::from_secs(7), |finding| finding["kind"] == "deadlock");
    ensure!(quiet.is_err(), "{quiet:#?}");
    // It was only the silence.
    std::fs::write(&config, text)?;
    let observers = procfs::descendants(live.guard.pid());
    let (observer, _) = *observers.first().context("no observer runs")?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(observer), nix::sys::signal::Signal::SIGHUP)?;
    let finding = live.finding(SOON, |finding| finding["kind"] == "deadlock")?;
    ensure!(finding["pod"]["name"] == "web", "{finding:#}");
    Ok(())
}
