//! What `/proc` and the cgroup file systems tell of why a process is stopped: the cgroup that is frozen, the shell whose job it is.

use super::cgroup::MAX_TEXT;
use super::stat::{Identity, identity, read_bounded};
use crate::census::{Pid, ProcessId};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Why a process does not run, as far as that is written down somewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopFact {
    /// The process.
    pub process: ProcessId,
    /// The topmost cgroup above it that somebody has frozen: its path in the hierarchy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<String>,
    /// The leader of its session, if it is a job that is not in the foreground of its terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<Pid>,
}

/// Reads what is known of a stopped process; `None` if it is gone.
pub fn stop_fact(process: ProcessId) -> Option<StopFact> {
    let text = |name: &str| read_text(Path::new(&format!("/proc/{}/{name}", process.pid)));
    let groups = text("cgroup").unwrap_or_default();
    let mounts = read_text(Path::new("/proc/self/mountinfo")).unwrap_or_default();
    let frozen = hierarchies(&mounts).iter().find_map(|hierarchy| hierarchy.frozen(&groups));
    let shell = text("stat").and_then(|stat| background_of(&stat)).filter(|shell| *shell != process.pid);
    (identity(process) == Identity::Same).then_some(StopFact { process, frozen, shell })
}

/// The session's leader, if the process has a terminal and is not in its foreground (fields 5 to 8 of proc(5)).
fn background_of(stat: &str) -> Option<Pid> {
    let fields = stat.get(stat.rfind(')')? + 1..)?;
    let numbers: Vec<i64> = fields.split_ascii_whitespace().skip(2).take(4).map_while(|f| f.parse().ok()).collect();
    let [group, session, terminal, foreground] = numbers.try_into().ok()?;
    let in_background = terminal != 0 && foreground > 0 && group > 0 && group != foreground;
    in_background.then(|| Pid::try_from(session).ok()).flatten().filter(|session| *session != 0)
}

/// A mounted hierarchy that can freeze.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    /// Version 2; otherwise version 1 with the freezer.
    unified: bool,
    /// Path of the cgroup that is mounted.
    root: String,
    /// Where.
    at: PathBuf,
}

/// From the lines of `/proc/self/mountinfo`: `id parent device root mount-point options … - type source super-options`.
fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let hierarchy = |line: &str| {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(3);
        let (root, at) = (front.next()?, front.next()?);
        let mut back = back.split(' ');
        let unified = match back.next()? {
            "cgroup2" => true,
            "cgroup" if back.nth(1)?.split(',').any(|option| option == "freezer") => false,
            _ => return None,
        };
        Some(Hierarchy { unified, root: root.to_owned(), at: PathBuf::from(at) })
    };
    mountinfo.lines().filter_map(hierarchy).collect()
}

impl Hierarchy {
    /// The topmost frozen cgroup above a process, by its `/proc/PID/cgroup`.
    fn frozen(&self, groups: &str) -> Option<String> {
        let path = groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let is_this = if self.unified { id == "0" } else { controllers.split(',').any(|name| name == "freezer") };
            is_this.then_some(path)
        })?;
        // Outside of what is mounted here, or not for us to know.
        let below = if self.root == "/" { path } else { path.strip_prefix(self.root.as_str())? };
        if below.split('/').any(|part| part == "..") {
            return None;
        }
        let mut at = self.at.clone();
        let mut name = self.root.trim_end_matches('/').to_owned();
        let parts = below.split('/').filter(|part| !part.is_empty());
        for part in parts {
            at.push(part);
            name = format!("{name}/{part}");
            if self.is_frozen_itself(&at) {
                return Some(name);
            }
        }
        None
    }

    /// Whether somebody has frozen this very cgroup, not one above it.
    fn is_frozen_itself(&self, at: &Path) -> bool {
        let file = if self.unified { "cgroup.freeze" } else { "freezer.self_freezing" };
        read_text(&at.join(file)).is_some_and(|text| text.trim() == "1")
    }
}

fn read_text(path: &Path) -> Option<String> {
    Some(String::from_utf8_lossy(&read_bounded(path, MAX_TEXT).ok()?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_that_can_freeze() {
        let text = "25 20 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                    31 25 0:30 / /sys/fs/cgroup/freezer rw,relatime shared:9 - cgroup cgroup rw,freezer\n\
                    32 25 0:31 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                    33 25 0:32 /pod7 /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n nonsense - \n";
        let found = hierarchies(text);
        let of = |unified, root: &str, at: &str| Hierarchy { unified, root: root.to_owned(), at: at.into() };
        assert_eq!(found, [of(false, "/", "/sys/fs/cgroup/freezer"), of(true, "/pod7", "/sys/fs/cgroup/unified")]);
    }

    #[test]
    fn the_topmost_frozen_cgroup_is_named() -> std::io::Result<()> {
        let root = tempfile::tempdir()?;
        let below = root.path().join("a/b/c");
        std::fs::create_dir_all(&below)?;
        let hierarchy = Hierarchy { unified: true, root: "/".to_owned(), at: root.path().to_owned() };
        let groups = "3:freezer:/x\n0::/a/b/c\n";
        assert_eq!(hierarchy.frozen(groups), None);
        for (dir, state) in [("a", "0\n"), ("a/b", "1\n"), ("a/b/c", "1\n")] {
            std::fs::write(root.path().join(dir).join("cgroup.freeze"), state)?;
        }
        assert_eq!(hierarchy.frozen(groups).as_deref(), Some("/a/b"));
        let part = Hierarchy { root: "/pod".to_owned(), ..hierarchy.clone() };
        assert_eq!(part.frozen("0::/pod/a/b/c").as_deref(), Some("/pod/a/b"));
        assert_eq!(part.frozen("0::/elsewhere/a/b"), None);
        assert_eq!(hierarchy.frozen("0::/../a/b"), None);
        std::fs::write(root.path().join("a/freezer.self_freezing"), "1\n")?;
        let first = Hierarchy { unified: false, ..hierarchy };
        assert_eq!(first.frozen("7:cpu,freezer:/a/b/c\n0::/\n").as_deref(), Some("/a"));
        Ok(())
    }

    #[test]
    fn jobs_in_the_background_of_a_terminal() {
        assert_eq!(background_of("7 (a) b) T 1 700 600 34816 650 4194304"), Some(600));
        assert_eq!(background_of("7 (a) T 1 700 600 34816 700 4194304"), None, "in the foreground");
        assert_eq!(background_of("7 (a) T 1 700 600 0 -1 4194304"), None, "no terminal");
        for text in ["", ")", "7 (a) T", "7 (a) T 1 x y z"] {
            assert_eq!(background_of(text), None);
        }
    }
}
