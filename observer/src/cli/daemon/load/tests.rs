//! Settings from their four places, and every way to get them wrong.

use super::*;
use crate::settings::{Only, Protocol, Silence};
use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().expect("a file");
    file.write_all(text.as_bytes()).expect("written");
    file
}

fn load(text: &str, variables: &[(&str, &str)], flags: &[&str]) -> Result<Settings, String> {
    let file = file(text);
    let matches = command().try_get_matches_from(flags).expect("flags");
    let sources = Sources {
        file: Some(file.path().to_owned()),
        variables: variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        flags: Keys::from_arg_matches(&matches).expect("keys"),
        standard: None,
    };
    let path = file.path().display().to_string();
    sources.load().map_err(|error| error.to_string().replace(&path, "FILE"))
}

#[track_caller]
fn refused(text: &str, variables: &[(&str, &str)], flags: &[&str], expected: &str) {
    let error = load(text, variables, flags).expect_err("must be refused");
    assert_eq!(error, expected, "of {text:?} {variables:?} {flags:?}");
    assert_eq!(error.lines().count(), 1, "one line: {error}");
}

#[test]
fn nothing_given_is_the_default() {
    assert_eq!(load("", &[], &[]), Ok(Settings::default()));
    // An empty variable is none.
    assert_eq!(load("", &[("OBSERVER_THRESHOLD", "")], &[]), Ok(Settings::default()));
}

#[test]
fn flag_over_environment_over_file_over_default() {
    let text = "threshold = \"2s\"\ninterval = \"2s\"\nmetrics-interval = \"2s\"\n";
    let settings = load(text, &[("OBSERVER_THRESHOLD", "3s"), ("OBSERVER_INTERVAL", "3s")], &["--threshold=4s"])
        .expect("settings");
    assert_eq!(settings.threshold, Duration::from_secs(4));
    assert_eq!(settings.interval, Duration::from_secs(3));
    assert_eq!(settings.metrics_interval, Duration::from_secs(2));
    assert_eq!(settings.top_processes, Settings::default().top_processes);
    // Also where the flag says what the default says.
    assert_eq!(load("stdout = false", &[], &["--stdout"]).map(|settings| settings.stdout), Ok(true));
}

#[test]
fn every_key_in_every_way() {
    let ca = file("x");
    let ca_path = ca.path().display().to_string();
    // In the file, as a flag, and the value again as `--check` shows it.
    let table: Vec<(&str, String, String)> = [
        ("threshold", "\"1s\"", "1s"),
        ("interval", "\"2s\"", "2s"),
        ("probes", "\"none\"", "none"),
        ("cpu-budget", "\"0.5%\"", "0.5%"),
        ("comm", "[\"a\", \"b*\"]", "a,b*"),
        ("cgroup", "[\"/x\"]", "/x"),
        ("container", "[\"3f\"]", "3f"),
        ("exclude", "[\"c\", \"7\"]", "c,7"),
        ("stdout", "false", "false"),
        ("listen", "\"none\"", "none"),
        ("metrics-interval", "\"1m\"", "1m"),
        ("top-processes", "3", "3"),
        ("export-command-line", "true", "true"),
        ("otlp-endpoint", "\"https://c:4318\"", "https://c:4318"),
        ("otlp-protocol", "\"http/protobuf\"", "http/protobuf"),
        ("otlp-compression", "\"none\"", "none"),
        ("otlp-timeout", "\"3s\"", "3s"),
        ("otlp-headers", "{ k = \"v,w\" }", "k=v%2Cw"),
        ("otlp-ca-file", "\"CA\"", "CA"),
        ("otlp-cert-file", "\"CA\"", "CA"),
        ("otlp-key-file", "\"CA\"", "CA"),
        ("otlp-queue", "9", "9"),
        ("otlp-events", "false", "false"),
        ("otlp-metrics", "false", "false"),
        ("otlp-profiles", "true", "true"),
        ("otlp-resource", "{ a = \"1\", b = \"2\" }", "a=1,b=2"),
        ("node-name", "\"n1\"", "n1"),
        ("kubeconfig", "\"CA\"", "CA"),
        ("silence", "[{ kind = \"deadlock\", up-to = \"1h\" }, { exe = \"x\" }]", "kind=deadlock,up-to=1h;exe=x"),
    ]
    .into_iter()
    .map(|(key, in_file, flag)| (key, in_file.replace("CA", &ca_path), flag.replace("CA", &ca_path)))
    .collect();
    assert_eq!(table.iter().map(|(key, ..)| (*key).to_owned()).collect::<Vec<_>>(), names(), "one row a key");

    let text: String = table.iter().map(|(key, value, _)| format!("{key} = {value}\n")).collect();
    let by_file = load(&text, &[], &[]).expect("file");
    let flags: Vec<String> = table.iter().map(|(key, _, value)| format!("--{key}={value}")).collect();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    assert_eq!(load("", &[], &flags), Ok(by_file.clone()), "flags");
    let variables: Vec<(String, &str)> = table.iter().map(|(key, _, value)| (variable(key), value.as_str())).collect();
    let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    assert_eq!(load("", &variables, &[]), Ok(by_file.clone()), "variables");

    // None of them is forgotten on the way: each differs from the default.
    let otlp = Otlp { endpoint: String::new(), ..Otlp::to("") };
    let default = Settings { otlp: Some(otlp), ..Settings::default() };
    let (got, default) = (super::table(&Keys::of(&by_file)), super::table(&Keys::of(&default)));
    for key in names() {
        assert!(got.contains_key(&key) && got.get(&key) != default.get(&key), "{key}");
    }
    assert_eq!(by_file.only.excludes, ["c", "7"]);
    assert_eq!(by_file.otlp.as_ref().map(|otlp| otlp.protocol), Some(Protocol::HttpProtobuf));
    assert_eq!(by_file.silences.len(), 2);
    assert_eq!(
        by_file.silences[0],
        Silence { kind: Some("deadlock".into()), up_to: Some(Duration::from_secs(3600)), ..Silence::default() }
    );

    // What `--check` prints makes the same settings again, but for the secrets.
    let shown = show(&by_file);
    assert!(!shown.contains("v,w"), "{shown}");
    let mut again = load(&shown, &[], &[]).expect("shown");
    let headers = again.otlp.as_mut().map(|otlp| std::mem::take(&mut otlp.headers)).expect("otlp");
    assert_eq!(headers, [("k".to_owned(), "<redacted>".to_owned())]);
    let mut bare = by_file;
    bare.otlp.as_mut().expect("otlp").headers.clear();
    assert_eq!(again, bare);
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_and_the_line() {
    refused("\n\ntreshold = \"1s\"\n", &[], &[], "FILE:3: unknown key `treshold`; did you mean `threshold`?");
    refused(
        "metrics_interval = \"1s\"",
        &[],
        &[],
        "FILE:1: unknown key `metrics_interval`; did you mean `metrics-interval`?",
    );
    refused(
        "zzz = 1",
        &[],
        &[],
        "FILE:1: unknown key `zzz`; `observer help daemon` and docs/configuration.md list the keys",
    );
    refused(
        "[[silence]]\nkind = \"deadlock\"\nupto = \"1h\"",
        &[],
        &[],
        "FILE:3: unknown key `upto`; did you mean `up-to`?",
    );
    assert!(
        load("[otlp]\nendpoint = \"http://x\"", &[], &[])
            .is_err_and(|error| error.starts_with("FILE:1: unknown key `otlp`"))
    );
}

#[test]
fn wrong_values_are_refused_with_place_and_remedy() {
    refused(
        "# a\nthreshold = \"soon\"",
        &[],
        &[],
        "FILE:2: threshold: expected number at 0; write a duration such as 5s",
    );
    refused(
        "threshold = 5",
        &[],
        &[],
        "FILE:1: threshold: invalid type: integer `5`, expected a duration in quotes, such as \"5s\"",
    );
    refused("interval = \"1ms\"", &[], &[], "FILE:1: interval: 1ms is not between 50ms and 1h");
    refused("", &[("OBSERVER_INTERVAL", "1ms")], &[], "OBSERVER_INTERVAL: 1ms is not between 50ms and 1h");
    refused("", &[], &["--interval=1ms"], "--interval: 1ms is not between 50ms and 1h");
    refused("top-processes = 100000", &[], &[], "FILE:1: top-processes: 100000 is not between 0 and 1000");
    refused(
        "otlp-endpoint = \"collector:4317\"",
        &[],
        &[],
        "FILE:1: otlp-endpoint: `collector:4317` is no address of a receiver; write http://HOST:4317 or https://HOST:4317",
    );
    refused(
        "otlp-endpoint = \"http://c\"\n\notlp-cert-file = \"/dev/null\"",
        &[],
        &[],
        "FILE:3: otlp-cert-file: /dev/null is not a file",
    );
    refused(
        "otlp-endpoint = \"http://c\"\notlp-ca-file = \"/no/such\"",
        &[],
        &[],
        "FILE:2: otlp-ca-file: cannot read /no/such: No such file or directory (os error 2)",
    );
    let one = file("x");
    let path = one.path().display();
    refused(
        &format!("otlp-endpoint = \"http://c\"\notlp-key-file = \"{path}\""),
        &[],
        &[],
        "FILE:2: otlp-key-file: needs otlp-cert-file beside it",
    );
    refused(
        "[[silence]]\nkind = \"dead_lock\"",
        &[],
        &[],
        "FILE:2: no kind of finding is called `dead_lock`; did you mean `deadlock`?",
    );
    let syntax = load("threshold = \n", &[], &[]).expect_err("syntax");
    assert!(syntax.starts_with("FILE:1: "), "{syntax}");
    let variable = load("", &[("OBSERVER_OTLP_PROTOCOL", "grcp")], &[]).expect_err("a wrong variable");
    assert!(variable.starts_with("OBSERVER_OTLP_PROTOCOL: ") && variable.contains("grpc"), "{variable}");
    assert_eq!(variable.lines().count(), 1, "{variable}");
}

#[test]
fn secrets_are_not_in_messages() {
    let error = load("otlp-endpoint = \"http://c\"\notlp-headers = { k = \"hunter2\\n\" }", &[], &[])
        .expect_err("a line break");
    assert!(!error.contains("hunter2"), "{error}");
    let error = load("otlp-endpoint = \"ftp://me:hunter2@c\"", &[], &[]).expect_err("ftp");
    assert!(!error.contains("hunter2"), "{error}");
    let shown = show(&load("otlp-endpoint = \"http://me:hunter2@c:1/x@y\"", &[], &[]).expect("settings"));
    assert!(shown.contains("http://<redacted>@c:1/x@y") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn the_file_must_be_a_file() {
    let load = |path: &str| {
        let sources =
            Sources { file: Some(path.into()), variables: BTreeMap::new(), flags: Keys::default(), standard: None };
        sources.load().expect_err(path).to_string()
    };
    assert!(load("/no/such.toml").contains("/no/such.toml: No such file"));
    assert!(load("/dev/zero").contains("not a regular file"));
    let long = file(&"#".repeat(2 << 20));
    assert!(load(&long.path().display().to_string()).contains("longer than"));
}

#[test]
fn the_example_file_parses_and_has_every_key() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/observer.toml");
    let text = std::fs::read_to_string(path).expect("deploy/observer.toml");
    assert_eq!(load(&text, &[], &[]), Ok(Settings::default()), "as it is, it changes nothing");
    let certificate = file("x");
    let mut keys = Vec::new();
    // `#key = value` is a key, `# words` are words.
    let live: String = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => {
                keys.extend(rest.split([' ', '=']).next().map(str::to_owned));
                format!("{rest}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    let live = ["ca.pem", "cert.pem", "key.pem", "kubeconfig"].iter().fold(live, |text, name| {
        text.replace(&format!("/etc/observer/{name}"), &certificate.path().display().to_string())
    });
    let settings = load(&live, &[], &[]).expect(&live);
    assert_eq!(settings.silences.len(), 1);
    for key in names() {
        assert!(keys.contains(&key) || keys.contains(&format!("[[{key}]]")), "{key} is not in it");
    }
}

#[test]
fn what_needs_a_restart_is_said_and_kept() {
    let old = Settings::default();
    let new = Settings {
        threshold: Duration::from_secs(9),
        listen: None,
        only: Only { excludes: vec!["x".into()], ..Only::default() },
        otlp: Some(Otlp::to("http://c")),
        ..Settings::default()
    };
    let (kept, later) = without_restart(&old, new.clone());
    assert_eq!(kept.threshold, new.threshold);
    assert_eq!(kept.only, new.only);
    assert_eq!((kept.listen, kept.otlp), (old.listen, None));
    assert!(later.contains(&"listen".to_owned()) && later.contains(&"otlp-endpoint".to_owned()), "{later:?}");
    assert!(!later.contains(&"threshold".to_owned()) && !later.contains(&"exclude".to_owned()), "{later:?}");
    assert_eq!(without_restart(&old, old.clone()).1, Vec::<String>::new());
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let moved = Settings { listen: Some(address), ..old.clone() };
    assert_eq!(without_restart(&old, moved).1, ["listen"]);
}

#[test]
fn standard_variables_fill_what_is_left_open() {
    let standard = Otlp { gzip: false, headers: vec![("k".into(), "v".into())], ..Otlp::to("http://standard:4317") };
    let load = |flags: &[&str]| {
        let matches = command().try_get_matches_from(flags).expect("flags");
        let flags = Keys::from_arg_matches(&matches).expect("keys");
        let sources = Sources { file: None, variables: BTreeMap::new(), flags, standard: Some(standard.clone()) };
        sources.load().expect("settings").otlp.expect("otlp")
    };
    assert_eq!(load(&[]), standard);
    let own = load(&["--otlp-endpoint=http://own:1", "--otlp-compression=gzip"]);
    assert_eq!(own, Otlp { endpoint: "http://own:1".into(), gzip: true, ..standard.clone() });
}

#[test]
fn misspelt_variables_are_noticed_and_those_of_others_are_not() {
    let of = |names: &[&str]| {
        let variables = names.iter().map(|name| ((*name).to_owned(), "x".to_owned())).collect();
        misspelt(&variables).into_iter().map(|(name, near)| format!("{name} {near}")).collect::<Vec<_>>()
    };
    assert_eq!(of(&["OBSERVER_TRESHOLD"]), ["OBSERVER_TRESHOLD OBSERVER_THRESHOLD"]);
    // What Kubernetes sets for a service called `observer`, and our own.
    let others =
        ["OBSERVER_SERVICE_HOST", "OBSERVER_PORT", "OBSERVER_PORT_9465_TCP_ADDR", "OBSERVER_LOG", "OBSERVER_LISTEN"];
    assert_eq!(of(&others), Vec::<String>::new());
}
