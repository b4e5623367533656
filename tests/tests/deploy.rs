//! What is under `deploy/`, judged by real Helm, Kubernetes' strict schemas, and observer itself.

use anyhow::{Context, Result, ensure};
use observer_tests::helm::{Helm, checkout, only, strings, text, xtask};
use observer_tests::observer::Observer;
use observer_tests::skip;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const ENDPOINT: &str = "tests/deploy-values/endpoint.yaml";

/// Every values file of the tests.
fn values_files() -> Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(checkout().join("tests/deploy-values"))? {
        files.push(format!("tests/deploy-values/{}", entry?.file_name().to_string_lossy()));
    }
    files.sort();
    ensure!(files.len() >= 4, "{files:?}");
    Ok(files)
}

macro_rules! helm {
    () => {
        match Helm::get() {
            Ok(helm) => helm,
            Err(why) => skip!("Helm cannot be set up here: {why:#}"),
        }
    };
}

fn container(daemon_set: &Value) -> &Value {
    &daemon_set["spec"]["template"]["spec"]["containers"][0]
}

/// The value of a variable of the container.
fn variable<'a>(daemon_set: &'a Value, name: &str) -> Option<&'a str> {
    let all = container(daemon_set)["env"].as_array()?;
    all.iter().find(|one| one["name"] == name)?["value"].as_str()
}

/// `CAP_…` of a capability list, sorted.
fn capabilities<'a>(names: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    names.into_iter().map(|name| format!("CAP_{}", name.trim_start_matches("CAP_"))).collect()
}

#[test]
fn the_chart_lints_with_every_values_file() -> Result<()> {
    let helm = helm!();
    for file in values_files()? {
        let said = helm.ask(&["lint", "deploy/helm/observer", &file])?.map_err(anyhow::Error::msg)?;
        ensure!(said["Errors"].is_null(), "{file}: {said}");
        // 1 is information (a chart without an icon), 2 a warning, 3 an error. The library lints without a namespace, so ours has no name.
        let mut messages = said["Messages"].as_array().context("messages")?.iter();
        let is_fine = |one: &Value| one["Severity"] == 1 || one["Path"] == "templates/namespace.yaml";
        ensure!(messages.all(is_fine), "{file}: {said}");
    }
    Ok(())
}

#[test]
fn every_object_fits_the_oldest_and_the_newest_kubernetes() -> Result<()> {
    let helm = helm!();
    let [oldest, newest] = helm.oldest_and_newest()?;
    ensure!(oldest != newest, "{oldest}");
    for file in values_files()? {
        for version in [&oldest, &newest] {
            let installed =
                helm.install(version, &[&file])?.map_err(|why| anyhow::anyhow!("{file}, {version}: {why}"))?;
            let daemon_set = installed.only("DaemonSet")?;
            let pod = &daemon_set["spec"]["template"]["spec"];
            ensure!(pod["hostPID"] == true, "{file}: {pod}");
            let security = &container(daemon_set)["securityContext"];
            ensure!(security["readOnlyRootFilesystem"] == true && security["runAsUser"] == 0, "{file}: {security}");
            let is_refused =
                security["privileged"] == true || strings(&security["capabilities"]["add"]).contains(&"SYS_ADMIN");
            ensure!(!is_refused || security["allowPrivilegeEscalation"] != false, "the API server refuses {security}");
            for volume in pod["volumes"].as_array().into_iter().flatten() {
                let host = &volume["hostPath"];
                ensure!(host.is_null() || host["type"] == "Directory", "never made by us: {volume}");
            }
            for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                ensure!(container(daemon_set)[probe]["httpGet"]["port"] == "http", "{file}: {probe}");
            }
        }
    }
    Ok(())
}

#[test]
fn the_endpoint_is_all_one_must_say() -> Result<()> {
    let helm = helm!();
    let [oldest, newest] = helm.oldest_and_newest()?;
    let installed = helm.install(&newest, &[ENDPOINT])?.map_err(anyhow::Error::msg)?;
    let mut kinds = installed.kinds();
    kinds.sort_unstable();
    ensure!(
        kinds == ["ClusterRole", "ClusterRoleBinding", "DaemonSet", "PriorityClass", "ServiceAccount"],
        "{kinds:?}"
    );
    let daemon_set = installed.only("DaemonSet")?;
    ensure!(variable(daemon_set, "OBSERVER_OTLP_ENDPOINT") == Some("http://otel-collector.observability:4317"));
    ensure!(variable(daemon_set, "OBSERVER_NODE_NAME") == Some("$(NODE_NAME)"));
    ensure!(variable(daemon_set, "OBSERVER_LISTEN") == Some("0.0.0.0:9465"), "the kubelet must reach it");
    let pod = &daemon_set["spec"]["template"]["spec"];
    ensure!(pod["volumes"].is_null(), "no directory of the host is needed: {}", pod["volumes"]);
    ensure!(pod["tolerations"] == json!([{"operator": "Exists"}]), "{}", pod["tolerations"]);
    let rules = &installed.only("ClusterRole")?["rules"];
    ensure!(
        *rules == json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]),
        "{rules}"
    );
    // AppArmor has a field since 1.30 and had an annotation before.
    let annotation = "container.apparmor.security.beta.kubernetes.io/observer";
    let annotated = |daemon_set: &Value| daemon_set["spec"]["template"]["metadata"]["annotations"][annotation].clone();
    ensure!(
        container(daemon_set)["securityContext"]["appArmorProfile"]["type"] == "Unconfined"
            && annotated(daemon_set).is_null()
    );
    let old = helm.install(&oldest, &[ENDPOINT])?.map_err(anyhow::Error::msg)?;
    ensure!(annotated(old.only("DaemonSet")?) == "unconfined");
    Ok(())
}

#[test]
fn values_reach_where_they_belong() -> Result<()> {
    let helm = helm!();
    let [_, newest] = helm.oldest_and_newest()?;
    let everything = helm.install(&newest, &["tests/deploy-values/everything.yaml"])?.map_err(anyhow::Error::msg)?;
    let toml = &everything.only("ConfigMap")?["data"]["observer.toml"];
    let toml = toml.as_str().context("a configuration file")?;
    for line in ["threshold = \"10s\"", "top-processes = 20", "exclude = [\"backup\", \"kworker*\"]", "[[silence]]"] {
        ensure!(toml.lines().any(|have| have.trim() == line), "{line}: {toml}");
    }
    let daemon_set = everything.only("DaemonSet")?;
    ensure!(strings(&container(daemon_set)["args"]) == ["daemon", "--config=/etc/observer/observer.toml"]);
    ensure!(container(daemon_set)["ports"][0]["containerPort"] == 9466);
    let resource = variable(daemon_set, "OTEL_RESOURCE_ATTRIBUTES");
    ensure!(resource == Some("deployment.environment.name=test,k8s.cluster.name=production"), "{resource:?}");
    ensure!(everything.kinds().contains(&"PodMonitor") && everything.kinds().contains(&"Namespace"));
    let enforce = "pod-security.kubernetes.io/enforce";
    ensure!(everything.only("Namespace")?["metadata"]["labels"][enforce] == "privileged");
    let image = container(daemon_set)["image"].as_str().unwrap_or_default();
    ensure!(image.starts_with("registry.internal:5000/ops/observer@sha256:"), "{image}");

    let least = helm.install(&newest, &["tests/deploy-values/least.yaml"])?.map_err(anyhow::Error::msg)?;
    ensure!(least.kinds() == ["DaemonSet"], "{:?}", least.kinds());
    let daemon_set = least.only("DaemonSet")?;
    ensure!(daemon_set["spec"]["template"]["spec"]["automountServiceAccountToken"] == false);
    ensure!(
        variable(daemon_set, "OBSERVER_OTLP_ENDPOINT").is_none()
            && variable(daemon_set, "OBSERVER_NODE_NAME").is_none()
    );

    let privileged = helm.install(&newest, &["tests/deploy-values/privileged.yaml"])?.map_err(anyhow::Error::msg)?;
    let daemon_set = privileged.only("DaemonSet")?;
    let security = &container(daemon_set)["securityContext"];
    ensure!(security["privileged"] == true && security["capabilities"].is_null(), "{security}");
    ensure!(
        daemon_set["spec"]["updateStrategy"] == json!({"type": "OnDelete"}),
        "{}",
        daemon_set["spec"]["updateStrategy"]
    );
    Ok(())
}

#[test]
fn the_schema_refuses_wrong_values() -> Result<()> {
    let helm = helm!();
    let directory = tempfile::tempdir()?;
    let wrong = [
        ("{}", "/otlp/endpoint"),
        ("otlp: {endpoint: 'collector:4317'}", "/otlp/endpoint"),
        ("otlp: {endpoint: 'http://'}", "/otlp/endpoint"),
        ("otlp: {endpoint: 'http://c:4317', url: x}", "/otlp"),
        ("otlpEndpoint: http://c:4317", "otlpEndpoint"),
        ("listen: 127.0.0.1:9465", "/listen"),
        ("listen: ':9465'", "/listen"),
        ("capabilities: [CAP_BPF]", "/capabilities"),
        ("capabilities: [ALL]", "/capabilities"),
        ("capabilities: []", "/capabilities"),
        ("privileged: 'yes'", "/privileged"),
        ("config: {listen: '0.0.0.0:1'}", "/config"),
        ("config: {Threshold: 5s}", "/config"),
        ("resourceAttributes: {a: 'b,c'}", "/resourceAttributes"),
        ("image: {repository: 'a b'}", "/image"),
        ("image: {digest: 'sha256:1'}", "/image"),
        ("livenessProbe: {failureThreshold: 0}", "/livenessProbe"),
        ("tracefs: {path: /etc}", "/tracefs"),
        ("appArmorProfile: {type: Localhost}", "/appArmorProfile"),
        ("podMonitor: {interval: often}", "/podMonitor"),
        ("priorityClass: {value: 2000000000}", "/priorityClass"),
        ("updateStrategy: {type: Recreate}", "/updateStrategy"),
    ];
    for (values, place) in wrong {
        let file = directory.path().join("values.yaml");
        std::fs::write(&file, values)?;
        let file = file.to_str().context("a path")?;
        // What is wrong about it must not be that the endpoint is missing.
        let files = if values == "{}" { vec![file] } else { vec![ENDPOINT, file] };
        match helm.install("1.37.0", &files)? {
            Ok(_) => anyhow::bail!("accepted: {values}"),
            Err(why) => ensure!(why.contains(place) && why.contains("schema"), "{values}: {why}"),
        }
    }
    Ok(())
}

#[test]
fn plain_manifests_are_what_the_chart_says() -> Result<()> {
    let helm = helm!();
    let check = xtask(&["manifests", "--check"]).output()?;
    ensure!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    let [_, newest] = helm.oldest_and_newest()?;
    for version in ["1.30.0", &newest] {
        let objects =
            helm.ask(&["objects", "deploy/kubernetes/observer.yaml", version])?.map_err(anyhow::Error::msg)?;
        let objects = objects.as_array().context("objects")?;
        let namespace = &only(objects, "Namespace")?["metadata"]["name"];
        ensure!(only(objects, "DaemonSet")?["metadata"]["namespace"] == *namespace, "{namespace}");
    }
    Ok(())
}

#[test]
fn one_list_of_capabilities_everywhere() -> Result<()> {
    let doctor = Observer::new(&["doctor", "--output", "json"])?.run()?;
    let doctor: Value = serde_json::from_str(&doctor.stdout).with_context(|| format!("{doctor:#?}"))?;
    let facts = doctor["capability"]["facts"].as_array().context("facts")?;
    let needed = facts.iter().filter(|fact| fact["optional"] != true).filter_map(|fact| fact["name"].as_str());
    let needed = capabilities(needed.filter(|name| name.starts_with("CAP_")));
    ensure!(needed.len() == 6, "{needed:?}");

    let unit = text("deploy/systemd/observer.service")?;
    let bounding =
        unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).context("no bounding set")?;
    ensure!(capabilities(bounding.split_whitespace()) == needed, "the unit: {bounding}");
    let operations = text("docs/operations.md")?;
    let rows = operations.lines().filter_map(|line| line.strip_prefix("| `CAP_")?.split('`').next());
    ensure!(capabilities(rows) == needed, "docs/operations.md has another table than {needed:?}");

    let helm = helm!();
    let installed = helm.install("1.37.0", &[ENDPOINT])?.map_err(anyhow::Error::msg)?;
    let security = &container(installed.only("DaemonSet")?)["securityContext"]["capabilities"];
    ensure!(capabilities(strings(&security["add"])) == needed, "the chart: {security}");
    ensure!(strings(&security["drop"]) == ["ALL"], "{security}");
    Ok(())
}

#[test]
fn versions_and_settings_are_those_of_the_program() -> Result<()> {
    let version = Observer::new(&["--version"])?.run()?.expect_code(0)?.stdout;
    let version = version.split_whitespace().nth(1).context("a version")?.to_owned();
    let chart = text("deploy/helm/observer/Chart.yaml")?;
    for key in ["version", "appVersion"] {
        ensure!(chart.lines().any(|line| line == format!("{key}: {version}")), "{key} is not {version}");
    }
    let label = format!("org.opencontainers.image.version=\"{version}\"");
    ensure!(text("deploy/Containerfile")?.contains(&label), "no {label}");

    let help = Observer::new(&["daemon", "--help"])?.run()?.expect_code(0)?.stdout;
    if !help.contains("--config") {
        skip!("this daemon takes no --config and no OBSERVER_… yet");
    }
    // What the chart and the unit set must be something the daemon knows.
    let sources = [text("deploy/helm/observer/templates/daemonset.yaml")?, text("deploy/systemd/observer.service")?];
    let names = sources.iter().flat_map(|text| text.split(|c: char| !(c.is_ascii_uppercase() || c == '_')));
    let keys: BTreeSet<String> = names
        .filter_map(|name| name.strip_prefix("OBSERVER_"))
        .map(|name| name.to_lowercase().replace('_', "-"))
        .collect();
    ensure!(keys.len() >= 3, "{keys:?}");
    for key in keys {
        ensure!(help.contains(&format!("--{key} ")), "daemon has no --{key}:\n{help}");
    }
    Ok(())
}

#[test]
fn the_collectors_pipeline_is_whole() -> Result<()> {
    let helm = helm!();
    let pipeline = helm.ask(&["yaml", "deploy/otel-collector/pipeline.yaml"])?.map_err(anyhow::Error::msg)?;
    for signal in ["logs", "metrics"] {
        let line = &pipeline["service"]["pipelines"][signal];
        let processors = strings(&line["processors"]);
        ensure!(processors.first() == Some(&"memory_limiter") && processors.last() == Some(&"batch"), "{line}");
        for part in ["receivers", "processors", "exporters"] {
            for name in strings(&line[part]) {
                ensure!(!pipeline[part][name].is_null(), "{signal}: {part} has no {name}");
            }
            ensure!(!strings(&line[part]).is_empty(), "{signal}: no {part}");
        }
    }
    let associations = pipeline["processors"]["k8sattributes"]["pod_association"].as_array().context("association")?;
    let by: Vec<&str> = associations.iter().filter_map(|one| one["sources"][0]["name"].as_str()).collect();
    ensure!(by == ["k8s.pod.uid", "container.id"], "{by:?}");
    Ok(())
}
