//! A victim in a real container: runc, a root file system made here, namespaces and cgroups of its own.

use crate::compile::{self, Abi};
use crate::procfs;
use crate::victim::{Unready, Victim};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

/// What is missing here to run a container.
pub fn missing() -> Option<&'static str> {
    ["runc", "busybox", "ldd"].into_iter().find(|tool| !compile::installed(tool))
}

/// A container with a victim in it. Dropping it ends both and removes its cgroups.
#[derive(Debug)]
pub struct Container {
    /// The victim; its truth has the ids it sees itself.
    pub victim: Option<Victim>,
    /// 64 hexadecimal digits.
    pub id: String,
    /// UID of the pod in the cgroup path.
    pub pod_uid: String,
    /// Process id of the victim here, and in the PID namespace that runc runs in.
    pub pids: (i32, i32),
    bundle: TempDir,
}

impl Container {
    /// Starts `victims/<name>.c` under a shell in a container whose cgroup path looks like the kubelet's.
    pub fn start(name: &str, args: &[&str]) -> Result<Self> {
        // Other than every other container that was ever started here: cgroups outlive who made them.
        let number = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let hex = format!("{number:032x}");
        let id = format!("{hex}{hex}");
        let tail = &hex[20..];
        let pod_uid = format!("{:08x}-0d4e-4f5a-8b6c-{tail}", std::process::id());
        let bundle = tempfile::tempdir()?;
        let program = compile::victim(name, Abi::Native)?;
        fill_root(&bundle.path().join("rootfs"), &program, name)?;
        let command = std::iter::once(format!("/{name}")).chain(args.iter().map(|arg| (*arg).to_owned()));
        let script = format!("{}; exit $?", command.collect::<Vec<_>>().join(" "));
        let cgroup = format!("/kubepods/burstable/pod{pod_uid}/{id}");
        fs::write(bundle.path().join("config.json"), config(&script, &cgroup).to_string())?;

        // In a PID namespace with a /proc of its own, so that observer sees only what is ours.
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork", "--mount-proc", "--kill-child", "--", "runc", "--root"]);
        unshare.arg(bundle.path().join("state")).arg("run").arg("--bundle").arg(bundle.path()).arg(&id);
        let mut this = Self { victim: None, id, pod_uid, pids: (0, 0), bundle };
        let mut victim = Unready::start_command(unshare, format!("runc … {name}"))?.ready()?;
        let family = procfs::descendants(victim.guard().pid());
        this.victim = Some(victim);
        let of_victim = |pid: &&i32| procfs::comm(**pid, **pid).is_ok_and(|comm| comm == name);
        let pids: Vec<i32> = family.into_iter().map(|(pid, _)| pid).collect();
        let pid = *pids.iter().find(of_victim).context("the victim does not run")?;
        let levels = procfs::status_numbers(pid, pid, "NSpid")?;
        ensure!(levels.len() >= 3, "not in a PID namespace of its own: {levels:?}");
        this.pids = (pid, i32::try_from(levels[levels.len() - 2])?);
        Ok(this)
    }

    /// The victim.
    pub fn victim(&mut self) -> Result<&mut Victim> {
        self.victim.as_mut().context("it runs while this lives")
    }

    /// A command in the PID namespace around the container, where nothing else runs.
    pub fn around(&mut self, program: &Path) -> Result<Command> {
        let (first, _) = *procfs::descendants(self.victim()?.guard().pid()).first().context("runc does not run")?;
        let mut command = Command::new("nsenter");
        command.args(["--target", &first.to_string(), "--pid", "--mount", "--"]).arg(program);
        Ok(command)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // The processes first: a cgroup with somebody in it cannot be removed.
        drop(self.victim.take());
        let Ok(hierarchies) = fs::read_dir("/sys/fs/cgroup") else { return };
        let tops = hierarchies.flatten().map(|entry| entry.path()).chain([PathBuf::from("/sys/fs/cgroup")]);
        for top in tops {
            let pod = top.join("kubepods/burstable").join(format!("pod{}", self.pod_uid));
            // The last process may still be on its way out.
            let _ = crate::deadline::wait_until("the cgroup to empty", std::time::Duration::from_secs(2), || {
                let _ = fs::remove_dir(pod.join(&self.id));
                Ok((!pod.join(&self.id).exists()).then_some(()))
            });
            // Others may have theirs in the upper ones: then these stay.
            let burstable = top.join("kubepods/burstable");
            for dir in [pod.as_path(), &burstable, &top.join("kubepods")] {
                let _ = fs::remove_dir(dir);
            }
        }
        let _ = fs::remove_dir_all(self.bundle.path().join("state"));
    }
}

/// Busybox, the victim, and the libraries that it needs.
fn fill_root(root: &Path, program: &Path, name: &str) -> Result<()> {
    for dir in ["bin", "proc", "dev", "tmp"] {
        fs::create_dir_all(root.join(dir))?;
    }
    let busybox = compile::find("busybox")?;
    copy(&busybox, &root.join("bin/busybox"))?;
    std::os::unix::fs::symlink("busybox", root.join("bin/sh"))?;
    copy(program, &root.join(name))?;
    for program in [program, &busybox] {
        let listed = Command::new("ldd").arg(program).output()?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`.
        for library in listed.split_whitespace().filter(|word| word.starts_with('/')) {
            let inside = root.join(library.trim_start_matches('/'));
            fs::create_dir_all(inside.parent().unwrap_or(root))?;
            copy(Path::new(library), &inside)?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).with_context(|| format!("copy {} to {}", from.display(), to.display()))
}

/// What runc is to do (OCI runtime specification 1.0).
fn config(script: &str, cgroup: &str) -> serde_json::Value {
    let namespaces = ["pid", "mount", "network", "ipc", "uts"].map(|kind| json!({ "type": kind }));
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["/bin/sh", "-c", script],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "victim",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" },
        ],
        "linux": { "cgroupsPath": cgroup, "namespaces": namespaces },
    })
}
