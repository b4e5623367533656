//! Real Helm and Kubernetes' own schemas, as `cargo xtask manifests` sets them up.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The top of the checkout.
pub fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The text of a file of the checkout.
pub fn text(path: &str) -> Result<String> {
    std::fs::read_to_string(checkout().join(path)).with_context(|| path.to_owned())
}

/// A cargo alias of this checkout, such as `manifests --check`.
pub fn xtask(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(checkout()).args(["run", "--quiet", "--package", "xtask", "--"]).args(arguments);
    // xtask is built for itself, not with this test's settings.
    command.env_remove("OBSERVER_BIN");
    command
}

/// What Helm and the schemas make of `deploy/helm/observer`.
#[derive(Clone, Debug)]
pub struct Helm {
    python: PathBuf,
}

impl Helm {
    /// Installs what is missing; an error says why that cannot be done here.
    pub fn get() -> Result<Self> {
        let output = xtask(&["manifests", "--python"]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(Self { python: PathBuf::from(String::from_utf8(output.stdout)?.trim()) })
    }

    /// `helm.py ARGUMENTS…`; `Err` of the inner result is why Helm or a schema refused.
    pub fn ask(&self, arguments: &[&str]) -> Result<Result<Value, String>> {
        let script = checkout().join("xtask/src/manifests/helm.py");
        let output = Command::new(&self.python).arg(script).args(arguments).current_dir(checkout()).output()?;
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            Some(0) => Ok(Ok(serde_json::from_slice(&output.stdout)?)),
            Some(3) => Ok(Err(complaint)),
            _ => bail!("helm.py {arguments:?}: {complaint}"),
        }
    }

    /// Installs the chart with these values files in a cluster of that version that accepts everything; every object is
    /// checked against the version's strict schema.
    pub fn install(&self, version: &str, values: &[&str]) -> Result<Result<Installed, String>> {
        let mut arguments = vec!["install", "deploy/helm/observer", "observer", "observability", version];
        arguments.extend(values);
        Ok(self.ask(&arguments)?.map(|all| Installed { all }))
    }

    /// The oldest and the newest version of Kubernetes there are schemas of.
    pub fn oldest_and_newest(&self) -> Result<[String; 2]> {
        let versions = self.ask(&["versions"])?.map_err(anyhow::Error::msg)?;
        let at = |value: Option<&Value>| Some(value?.as_str()?.to_owned());
        let all = versions.as_array().context("versions")?;
        Ok([at(all.first()).context("oldest")?, at(all.last()).context("newest")?])
    }
}

/// What an installation would put into the cluster.
#[derive(Clone, Debug)]
pub struct Installed {
    all: Value,
}

impl Installed {
    /// What the user is told.
    pub fn notes(&self) -> String {
        self.all["made"]["notes"].as_str().or(self.all["made"]["info"]["notes"].as_str()).unwrap_or_default().to_owned()
    }

    /// The kinds of its objects, in Helm's order.
    pub fn kinds(&self) -> Vec<&str> {
        self.objects().iter().filter_map(|object| object["kind"].as_str()).collect()
    }

    /// The objects.
    pub fn objects(&self) -> &[Value] {
        self.all["objects"].as_array().map(Vec::as_slice).unwrap_or_default()
    }

    /// The only object of this kind.
    pub fn only(&self, kind: &str) -> Result<&Value> {
        only(self.objects(), kind)
    }
}

/// The only object of this kind.
pub fn only<'a>(objects: &'a [Value], kind: &str) -> Result<&'a Value> {
    let all: Vec<&Value> = objects.iter().filter(|object| object["kind"] == kind).collect();
    match all.as_slice() {
        [one] => Ok(one),
        _ => bail!("{} objects of kind {kind}", all.len()),
    }
}

/// The strings of a list.
pub fn strings(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}
