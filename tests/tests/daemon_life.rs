//! The daemon from its settings to its end: refusals, reload, the service manager, signals.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use observer_tests::deadline::wait_until;
use observer_tests::kube_stub::{self, Answer, Stub};
use observer_tests::observer::{Live, Observer, binary};
use observer_tests::procfs;
use observer_tests::victim::{Unready, Victim};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(20);

/// `observer daemon ARGS…` beside a victim, in the victim's PID namespace.
fn daemon_inside(victim: &mut Victim, args: &[&str], socket: Option<&Path>) -> Result<Live> {
    let unshare = victim.guard().pid();
    let (first, _) = *procfs::descendants(unshare).first().context("nothing runs in the namespace")?;
    let mut command = Command::new("nsenter");
    command.args(["--target", &first.to_string(), "--pid", "--mount", "--"]).arg(binary()?);
    command.args(["-v", "daemon", "--listen=none"]).args(args).env_remove("RUST_LOG");
    if let Some(socket) = socket {
        command.env("NOTIFY_SOCKET", socket).env("WATCHDOG_USEC", "400000");
    }
    Observer::through(command).start()
}

/// The observer that nsenter started.
fn observer_of(live: &Live) -> Result<Pid> {
    let (pid, _) = *procfs::descendants(live.guard.pid()).first().context("no observer runs")?;
    Ok(Pid::from_raw(pid))
}

fn until_logged(live: &mut Live, what: &str) -> Result<String> {
    wait_until(what, SOON, || Ok(Some(live.stderr()?).filter(|log| log.contains(what))))
}

/// What the service manager hears next that begins like this, with everything heard before it.
fn hear(socket: &UnixDatagram, wanted: &str, heard: &mut Vec<String>) -> Result<()> {
    let until = Instant::now() + SOON;
    let mut buffer = [0; 4096];
    while Instant::now() < until {
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        let text = String::from_utf8(buffer[..length].to_vec())?;
        let found = text.lines().any(|line| line.starts_with(wanted));
        heard.push(text);
        if found {
            return Ok(());
        }
    }
    anyhow::bail!("no {wanted}; heard {heard:#?}")
}

#[test]
fn wrong_settings_are_refused_in_one_line() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("observer.toml");
    let shown = path.display().to_string();
    for (text, expected) in [
        ("\ntreshold = \"1s\"\n", ":2: unknown key `treshold`; did you mean `threshold`?"),
        ("threshold = \"soon\"\n", ":1: threshold: "),
        ("otlp-endpoint = \"collector\"\n", ":1: otlp-endpoint: `collector` is no address of a receiver"),
        ("threshold: 5s\n", ":1: "),
    ] {
        std::fs::write(&path, text)?;
        for check in [&["--check"] as &[&str], &[]] {
            let run = Observer::new(&["daemon", "--config", &shown])?.args(check).run()?;
            let line = run.expect_refusal()?;
            ensure!(line.starts_with(&format!("observer: {shown}{expected}")), "{text}: {line}");
        }
    }
    for args in [&["--treshold=1s"] as &[&str], &["--threshold=soon"], &["--silence=kind=dead"], &["--config=/no/such"]]
    {
        Observer::new(&["daemon"])?.args(args).run()?.expect_refusal()?;
    }
    let line = Observer::new(&["daemon"])?.env("OBSERVER_INTERVAL", "1ms").run()?.expect_refusal()?;
    ensure!(line == "observer: OBSERVER_INTERVAL: 1ms is not between 50ms and 1h", "{line}");
    Ok(())
}

#[test]
fn check_prints_what_holds_without_secrets() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("observer.toml");
    std::fs::write(
        &path,
        "threshold = \"2s\"\ninterval = \"2s\"\notlp-endpoint = \"http://c:4317\"\notlp-headers = { k = \"hunter2\" }\n",
    )?;
    let shown = path.display().to_string();
    let run = Observer::new(&["daemon", "--check", "--interval", "4s"])?
        .env("OBSERVER_CONFIG", &shown)
        .env("OBSERVER_INTERVAL", "3s")
        .env("OBSERVER_TRESHOLD", "3s")
        .run()?
        .expect_code(0)?;
    for line in
        ["threshold = \"2s\"", "interval = \"4s\"", "otlp-headers = { k = \"<redacted>\" }", "# node-name is not set"]
    {
        ensure!(run.stdout.lines().any(|shown| shown == line), "{line} is not in {}", run.stdout);
    }
    ensure!(!run.stdout.contains("hunter2") && !run.stderr.contains("hunter2"), "{run:#?}");
    ensure!(run.stderr.contains("did you mean OBSERVER_THRESHOLD"), "{}", run.stderr);
    // What it prints is a file that says the same.
    std::fs::write(&path, &run.stdout)?;
    let again = Observer::new(&["daemon", "--check", "--config", &shown])?.run()?.expect_code(0)?;
    ensure!(again.stdout == run.stdout, "{}\n{}", run.stdout, again.stdout);
    Ok(())
}

#[test]
fn the_service_manager_hears_of_a_whole_life() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("observer.toml");
    std::fs::write(&config, "threshold = \"1s\"\ninterval = \"200ms\"\n")?;
    let socket_path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&socket_path)?;
    let mut heard = Vec::new();

    let mut victim = Unready::start_inside("deadlock", &[])?.ready()?;
    let config_arg = config.display().to_string();
    let mut live = daemon_inside(&mut victim, &["--config", &config_arg], Some(&socket_path))?;
    hear(&socket, "READY=1", &mut heard)?;
    let before = &heard[..heard.len() - 1];
    ensure!(before.iter().all(|text| text == "WATCHDOG=1\n"), "signs of life at most come before it: {heard:#?}");
    let finding = live.finding(SOON, |finding| finding["kind"] == "deadlock")?;
    ensure!(finding["state"] == "open", "{finding:#}");
    ensure!(
        heard.last().is_some_and(|text| text.contains("STATUS=") && text.contains("threads watched")),
        "{heard:#?}"
    );
    hear(&socket, "WATCHDOG=1", &mut heard)?;
    hear(&socket, "WATCHDOG=1", &mut heard)?;

    // Wrong settings: the old ones stay.
    let observer = observer_of(&live)?;
    std::fs::write(&config, "threshold = \"1s\"\nexclud = [\"x\"]\n")?;
    kill(observer, Signal::SIGHUP)?;
    heard.clear();
    hear(&socket, "RELOADING=1", &mut heard)?;
    ensure!(heard.last().is_some_and(|text| text.contains("MONOTONIC_USEC=")), "{heard:#?}");
    hear(&socket, "READY=1", &mut heard)?;
    let log = until_logged(&mut live, "the old settings stay")?;
    ensure!(log.contains(":2: unknown key `exclud`; did you mean `exclude`?"), "{log}");

    // Right ones: the victim is left out, so its finding is over. What cannot change says so.
    std::fs::write(&config, "threshold = \"1s\"\ninterval = \"100ms\"\nexclude = [\"deadlock\"]\nstdout = false\n")?;
    kill(observer, Signal::SIGHUP)?;
    let over = live.finding(SOON, |finding| finding["kind"] == "deadlock")?;
    ensure!(over["state"] == "resolved" && over["id"] == finding["id"], "{over:#}");
    until_logged(&mut live, "only with the next start: stdout")?;

    let asked = Instant::now();
    heard.clear();
    kill(observer, Signal::SIGTERM)?;
    hear(&socket, "STOPPING=1", &mut heard)?;
    let output = live.finish(SOON)?.expect_code(0)?;
    ensure!(asked.elapsed() < Duration::from_secs(15), "{output:#?}");
    Ok(())
}

#[test]
fn a_silence_ends_with_the_age_it_is_good_for() -> Result<()> {
    let mut victim = Unready::start_inside("deadlock", &[])?.ready()?;
    let args = ["--threshold=1s", "--interval=200ms", "--silence", "kind=deadlock,exe=*deadlock,up-to=4s"];
    let mut live = daemon_inside(&mut victim, &args, None)?;
    let finding = live.finding(SOON, |finding| finding["kind"] == "deadlock")?;
    let instant = |key: &str| -> Result<jiff::Timestamp> { Ok(finding[key].as_str().context("a time")?.parse()?) };
    let age = instant("last_seen")?.duration_since(instant("since")?);
    ensure!(age.as_millis() >= 4000, "told at {age:?}: {finding:#}");
    kill(observer_of(&live)?, Signal::SIGINT)?;
    live.finish(SOON)?.expect_code(0)?;
    Ok(())
}

#[test]
fn a_silence_for_ever_keeps_quiet() -> Result<()> {
    let mut victim = Unready::start_inside("deadlock", &[])?.ready()?;
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("observer.toml");
    std::fs::write(&config, "threshold = \"1s\"\ninterval = \"200ms\"\n[[silence]]\nkind = \"deadlock\"\n")?;
    let mut live = daemon_inside(&mut victim, &["--config", &config.display().to_string()], None)?;
    let log = |live: &mut Live| until_logged(live, "settings loaded again");
    // It has had time to find it: findings of the same age are told as soon as the silence is gone.
    victim.older_than(Duration::from_secs(3))?;
    std::fs::write(&config, "threshold = \"1s\"\ninterval = \"200ms\"\n")?;
    let reloaded = jiff::Timestamp::now();
    kill(observer_of(&live)?, Signal::SIGHUP)?;
    log(&mut live)?;
    let finding = live.finding(SOON, |finding| finding["kind"] == "deadlock")?;
    let seen: jiff::Timestamp = finding["last_seen"].as_str().context("a time")?.parse()?;
    ensure!(seen >= reloaded, "told before the silence was gone: {finding:#}");
    let first: jiff::Timestamp = finding["first_seen"].as_str().context("a time")?.parse()?;
    ensure!(first < reloaded, "known before: {finding:#}");
    Ok(())
}

#[test]
fn an_api_server_that_refuses_is_named_once_and_done_without() -> Result<()> {
    let mut victim = Unready::start_inside("deadlock", &[])?.ready()?;
    let message = "pods is forbidden: User \"observer\" cannot list resource \"pods\" in API group \"\"";
    let stub = Stub::start(move |_| Answer::Document(403, kube_stub::status(403, "Forbidden", message)))?;
    let dir = tempfile::tempdir()?;
    let kubeconfig = format!("--kubeconfig={}", stub.kubeconfig(dir.path())?.display());
    let args = ["--threshold=1s", "--interval=200ms", "--node-name=n1", &kubeconfig];
    let mut live = daemon_inside(&mut victim, &args, None)?;
    live.finding(SOON, |finding| finding["kind"] == "deadlock")?;
    let log = until_logged(&mut live, "refuses to list and watch pods")?;
    ensure!(log.matches("refuses to list").count() == 1 && log.contains("RBAC: get, list, watch"), "{log}");
    ensure!(log.contains("pods is forbidden") && !log.contains("Status {"), "{log}");
    Ok(())
}
