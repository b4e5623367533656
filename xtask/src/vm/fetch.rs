//! A kernel from Debian's archive, kept under `target/vm`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use walkdir::WalkDir;

use super::Kernel;
use crate::{invoke, workspace};

const ARCHIVE: &str = "http://deb.debian.org/debian";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A kernel that is here.
pub(super) struct Fetched {
    /// What its packages hold, modules among it.
    pub(super) root: PathBuf,
    /// The image to boot.
    pub(super) image: PathBuf,
}

/// The packages of `kernel`; fetched when they are not here yet.
pub(super) fn kernel(kernel: &Kernel) -> Result<Fetched> {
    let home = workspace::target().join("vm").join(kernel.suite);
    let root = home.join("root");
    if let Some(image) = image_below(&root) {
        return Ok(Fetched { root, image });
    }
    // A list of its own: this machine's sources stay as they are.
    for directory in ["lists/partial", "cache/archives/partial"] {
        std::fs::create_dir_all(home.join(directory)).with_context(|| format!("cannot write {}", home.display()))?;
    }
    let list = format!("deb [signed-by={KEYRING}] {ARCHIVE} {} main\n", kernel.suite);
    std::fs::write(home.join("sources.list"), list)?;
    invoke::capture(apt("apt-get", &home).args(["--quiet", "--error-on=any", "update"]))?;
    let names = invoke::capture(apt("apt-cache", &home).args(["search", "--names-only", "^linux-.*-cloud-amd64$"]))?;
    let release = newest(&names, kernel.version)
        .with_context(|| format!("Debian {} has no cloud kernel {}", kernel.suite, kernel.version))?;
    // One package; from 7.x it is empty, and there are two with what it was.
    let mut packages = [format!("linux-binary-{release}"), format!("linux-modules-{release}")].to_vec();
    packages.retain(|package| names.lines().any(|line| line.split(' ').next() == Some(package)));
    if packages.is_empty() {
        packages.push(format!("linux-image-{release}"));
    }
    let unfinished = home.join("unfinished");
    let _ = std::fs::remove_dir_all(&unfinished);
    std::fs::create_dir_all(&unfinished).with_context(|| format!("cannot write {}", home.display()))?;
    invoke::capture(apt("apt-get", &home).current_dir(&unfinished).args(["--quiet", "download"]).args(&packages))?;
    for entry in std::fs::read_dir(&unfinished)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            invoke::capture(Command::new("dpkg").arg("-x").arg(&path).arg(unfinished.join("root")))?;
        }
    }
    // Only now: what was cut off in the middle is fetched again.
    let _ = std::fs::remove_dir_all(&root);
    std::fs::rename(unfinished.join("root"), &root).context("the packages of the kernel are empty")?;
    match image_below(&root) {
        Some(image) => Ok(Fetched { root, image }),
        None => bail!("no vmlinuz in the packages of kernel {release}: Debian packs them otherwise now"),
    }
}

fn apt(program: &str, home: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(home);
    let at = |name: &str| home.join(name).display().to_string();
    for option in [
        format!("Dir::Etc::sourcelist={}", at("sources.list")),
        "Dir::Etc::sourceparts=/dev/null".to_owned(),
        format!("Dir::State::Lists={}", at("lists")),
        "Dir::State::status=/dev/null".to_owned(),
        format!("Dir::Cache={}", at("cache")),
        "APT::Architecture=amd64".to_owned(),
        "APT::Sandbox::User=root".to_owned(),
        "Acquire::Languages=none".to_owned(),
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        "Acquire::Retries=2".to_owned(),
    ] {
        command.arg("-o").arg(option);
    }
    command
}

/// The newest release of `version` among the image packages, such as `6.1.0-50-cloud-amd64`.
fn newest<'a>(names: &'a str, version: &str) -> Option<&'a str> {
    let prefix = format!("{version}.");
    names
        .lines()
        .filter_map(|line| line.split(' ').next()?.strip_prefix("linux-image-"))
        .filter(|release| release.starts_with(&prefix))
        .max_by_key(|release| numbers(release))
}

fn numbers(release: &str) -> Vec<u32> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

fn image_below(root: &Path) -> Option<PathBuf> {
    let found = WalkDir::new(root).into_iter().filter_map(Result::ok);
    let mut images = found.filter(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz"));
    images.next().map(walkdir::DirEntry::into_path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_release_is_found_by_number() {
        let names = "linux-image-6.1.0-9-cloud-amd64 - x\nlinux-image-6.1.0-50-cloud-amd64 - x\n\
                     linux-image-6.12.1-cloud-amd64 - x\nlinux-headers-6.1.0-99-cloud-amd64 - x\n";
        assert_eq!(newest(names, "6.1"), Some("6.1.0-50-cloud-amd64"));
        assert_eq!(newest(names, "5.10"), None);
    }
}
