//! Licences and versions of everything observer is built from, against `.cargo/deny.toml`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use spdx::{Expression, Licensee, ParseMode};

use crate::{invoke, workspace};

const POLICY: &str = ".cargo/deny.toml";

#[derive(Deserialize)]
struct Policy {
    licenses: Licences,
    exact: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Licences {
    allow: Vec<String>,
}

/// What we read of `cargo metadata`.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: Vec<String>,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    req: String,
}

/// Checks every dependency and prints what the policy refuses; says whether that is nothing.
pub(crate) fn run() -> Result<bool> {
    let path = workspace::root().join(POLICY);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {POLICY}"))?;
    let policy: Policy = toml::from_str(&text).with_context(|| format!("{POLICY} is not a policy"))?;
    let allowed = licensees(&policy.licenses.allow)?;

    // Only what is built for Linux: a licence of a Windows crate binds nobody here.
    let printed = invoke::capture(&mut workspace::cargo(&[
        "metadata",
        "--format-version=1",
        "--locked",
        "--all-features",
        "--filter-platform=x86_64-unknown-linux-gnu",
    ]))?;
    let metadata: Metadata = serde_json::from_str(&printed).context("cargo metadata changed its form")?;

    let mut refusals = refused_licences(&metadata.packages, &allowed);
    refusals.extend(inexact_versions(&metadata, &policy.exact));
    for refusal in &refusals {
        println!("{POLICY}: {refusal}");
    }
    let several = several_versions(&metadata.packages);
    if !several.is_empty() {
        println!("licences: for information, in several versions: {}", several.join(", "));
    }
    println!("licences: {} packages, {} refused", metadata.packages.len(), refusals.len());
    Ok(refusals.is_empty())
}

fn licensees(allow: &[String]) -> Result<Vec<Licensee>> {
    let parse =
        |name: &String| Licensee::parse(name).map_err(|error| anyhow::anyhow!("{POLICY} allows {name:?}: {error}"));
    let licensees: Vec<Licensee> = allow.iter().map(parse).collect::<Result<_>>()?;
    if licensees.is_empty() {
        bail!("{POLICY} allows no licence at all");
    }
    Ok(licensees)
}

/// Packages whose licence expression no choice from `allowed` satisfies.
fn refused_licences(packages: &[Package], allowed: &[Licensee]) -> Vec<String> {
    let refusal = |package: &Package| {
        let Package { name, version, .. } = package;
        let Some(expression) = &package.license else {
            return Some(format!("{name} {version} names no licence: replace it, or ask its author"));
        };
        match is_satisfied(expression, allowed) {
            Ok(true) => None,
            Ok(false) => Some(format!(
                "{name} {version} is licensed {expression}, which the policy does not allow: replace it, or add the licence"
            )),
            Err(error) => Some(format!("{name} {version} has no SPDX licence: {error}")),
        }
    };
    packages.iter().filter_map(refusal).collect()
}

/// Whether the SPDX expression can be satisfied; `MIT/Apache-2.0`, the old way to write OR, included.
fn is_satisfied(expression: &str, allowed: &[Licensee]) -> Result<bool, spdx::ParseError> {
    let parsed = Expression::parse_mode(expression, ParseMode::LAX)?;
    Ok(parsed.evaluate(|requirement| allowed.iter().any(|licence| licence.satisfies(requirement))))
}

/// Requirements that are not exact, and versions that are not the ones the policy names.
fn inexact_versions(metadata: &Metadata, exact: &BTreeMap<String, String>) -> Vec<String> {
    let mut refusals = Vec::new();
    for package in &metadata.packages {
        if let Some(version) = exact.get(&package.name).filter(|version| **version != package.version) {
            refusals.push(format!(
                "{} is at {}, not {version}: cargo update {0} --precise {version}",
                package.name, package.version
            ));
        }
        if !metadata.workspace_members.contains(&package.id) {
            continue;
        }
        for Dependency { name, req } in &package.dependencies {
            if let Some(version) = exact.get(name).filter(|version| *req != format!("={version}")) {
                refusals.push(format!("{} asks for {name} {req}: write \"={version}\" in its manifest", package.name));
            }
        }
    }
    refusals
}

/// Names that occur in more than one version.
fn several_versions(packages: &[Package]) -> Vec<String> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in packages {
        versions.entry(&package.name).or_default().push(&package.version);
    }
    versions
        .into_iter()
        .filter(|(_, versions)| versions.len() > 1)
        .map(|(name, versions)| format!("{name} {}", versions.join(" and ")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str, license: Option<&str>) -> Package {
        let license = license.map(str::to_owned);
        let (name, version) = (name.to_owned(), version.to_owned());
        Package { id: name.clone(), name, version, license, dependencies: Vec::new() }
    }

    fn satisfied(expression: &str) -> Option<bool> {
        let allow = ["MIT", "Apache-2.0 WITH LLVM-exception", "Unicode-3.0"].map(str::to_owned);
        is_satisfied(expression, &licensees(&allow).ok()?).ok()
    }

    #[test]
    fn an_or_needs_one_side_and_an_and_both() {
        assert_eq!(satisfied("MIT"), Some(true));
        assert_eq!(satisfied("GPL-3.0-only OR MIT"), Some(true));
        assert_eq!(satisfied("GPL-3.0/MIT"), Some(true));
        assert_eq!(satisfied("(MIT OR GPL-2.0-only) AND Unicode-3.0"), Some(true));
        assert_eq!(satisfied("MIT AND GPL-3.0-only"), Some(false));
        assert_eq!(satisfied("LGPL-2.1-or-later"), Some(false));
    }

    #[test]
    fn an_exception_is_not_its_licence() {
        assert_eq!(satisfied("Apache-2.0 WITH LLVM-exception"), Some(true));
        assert_eq!(satisfied("Apache-2.0"), Some(false));
    }

    #[test]
    fn what_is_no_expression_or_no_licence_is_refused() -> Result<()> {
        assert_eq!(satisfied("see LICENSE.txt"), None);
        let packages = [package("a", "1.0.0", None), package("b", "1.0.0", Some("see LICENSE.txt"))];
        assert_eq!(refused_licences(&packages, &licensees(&["MIT".to_owned()])?).len(), 2);
        Ok(())
    }

    #[test]
    fn a_pinned_crate_must_be_asked_for_exactly_and_be_there() {
        let exact = BTreeMap::from([("aya".to_owned(), "0.14.0".to_owned())]);
        let refused = |req: &str, version: &str| {
            let mut member = package("observer", "0.1.0", None);
            member.dependencies.push(Dependency { name: "aya".to_owned(), req: req.to_owned() });
            let workspace_members = vec![member.id.clone()];
            let packages = vec![member, package("aya", version, None)];
            inexact_versions(&Metadata { packages, workspace_members }, &exact).len()
        };
        assert_eq!(refused("=0.14.0", "0.14.0"), 0);
        assert_eq!(refused("^0.14.0", "0.14.0"), 1);
        assert_eq!(refused("=0.15.0", "0.15.0"), 2);
    }

    #[test]
    fn several_versions_are_named() {
        let packages = [package("a", "1.0.0", None), package("a", "2.0.0", None), package("b", "1.0.0", None)];
        assert_eq!(several_versions(&packages), ["a 1.0.0 and 2.0.0"]);
    }
}
