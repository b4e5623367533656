//! The places observer is deployed to: an empty root, the container of the DaemonSet, the sandbox of the systemd unit.

use crate::compile::{self, Abi, installed};
use crate::deadline::wait_until;
use crate::guard::Guard;
use crate::helm::{checkout, text, xtask};
use crate::victim::{Unready, Victim};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// `nobody`.
const NOBODY: u32 = 65534;
/// systemd starts, runs one service, and its observer detaches.
const SANDBOX_LIMIT: Duration = Duration::from_secs(120);

/// Two deadlocked threads of another user, in a program that nobody but this user may read.
pub fn foreign_deadlock(directory: &Path) -> Result<Victim> {
    let program = private_deadlock(directory)?;
    let mut command = Command::new(program);
    command.uid(NOBODY).gid(NOBODY);
    Unready::start_command(command, "deadlock of nobody".to_owned())?.ready()
}

fn private_deadlock(directory: &Path) -> Result<PathBuf> {
    // Everybody may pass; root is not the owner, and needs a capability to read.
    fs::set_permissions(directory, fs::Permissions::from_mode(0o711))?;
    let program = directory.join("deadlock");
    fs::copy(compile::victim("deadlock", Abi::Native)?, &program)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o500))?;
    std::os::unix::fs::chown(&program, Some(NOBODY), Some(NOBODY))?;
    Ok(program)
}

/// `target/dist-quick`, made now: the static binary and what belongs to it.
pub fn dist() -> Result<PathBuf> {
    // Two at a time would pack what the other one is writing.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let output = xtask(&["dist", "--quick"]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    let archive = PathBuf::from(String::from_utf8(output.stdout)?.trim());
    Ok(archive.parent().context("an archive lies somewhere")?.to_owned())
}

/// The image's root file system: what the Containerfile copies from `dist`, and no more.
pub fn image(dist: &Path, into: &Path) -> Result<()> {
    let containerfile = text("deploy/Containerfile")?;
    let copies = containerfile.lines().filter_map(|line| line.strip_prefix("COPY "));
    for line in copies {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (to, sources) = words.split_last().context("COPY of nothing")?;
        let place = into.join(to.trim_start_matches('/'));
        for source in sources {
            let place = if to.ends_with('/') { place.join(source) } else { place.clone() };
            fs::create_dir_all(place.parent().context("a directory")?)?;
            fs::copy(dist.join(source), place).with_context(|| format!("COPY {source}"))?;
        }
    }
    Ok(())
}

/// The words of a line such as `ENTRYPOINT ["/observer"]`.
pub fn instruction(name: &str) -> Result<Vec<String>> {
    let containerfile = text("deploy/Containerfile")?;
    let line = containerfile.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
    Ok(serde_json::from_str(line)?)
}

/// What runc needs to run `arguments` as the container of this DaemonSet: its capabilities, its namespaces, its read-only
/// root, its limit of memory.
pub fn container(daemon_set: &Value, arguments: &[&str]) -> Result<Value> {
    let pod = &daemon_set["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let security = &container["securityContext"];
    let capabilities: Vec<String> = security["capabilities"]["add"]
        .as_array()
        .context("capabilities")?
        .iter()
        .filter_map(|name| Some(format!("CAP_{}", name.as_str()?)))
        .collect();
    let memory = container["resources"]["limits"]["memory"].as_str().and_then(|text| text.strip_suffix("Mi"));
    let memory: i64 = memory.context("a limit of memory")?.parse()?;
    let mut namespaces = vec![json!({"type": "mount"}), json!({"type": "ipc"}), json!({"type": "uts"})];
    if pod["hostPID"] != true {
        namespaces.push(json!({"type": "pid"}));
    }
    if pod["hostNetwork"] != true {
        namespaces.push(json!({"type": "network"}));
    }
    // What container runtimes hide and protect by default (containerd's lists).
    let masked = [
        "/proc/asound",
        "/proc/acpi",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/proc/sched_debug",
        "/sys/firmware",
        "/sys/devices/virtual/powercap",
        "/proc/scsi",
    ];
    let protected = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
    let options = ["nosuid", "noexec", "nodev"];
    let mut args = instruction("ENTRYPOINT ")?;
    args.extend(arguments.iter().map(|&argument| argument.to_owned()));
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false, "user": {"uid": security["runAsUser"], "gid": security["runAsGroup"]},
            "args": args, "env": ["PATH=/"], "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": security["allowPrivilegeEscalation"] == false,
        },
        "root": {"path": "rootfs", "readonly": security["readOnlyRootFilesystem"]},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": options},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "cgroupsPath": format!("/observer-test-{}", std::process::id()),
            "resources": {"memory": {"limit": memory << 20}},
            "namespaces": namespaces, "maskedPaths": masked, "readonlyPaths": protected,
        },
    }))
}

/// Why the unit cannot be tried here.
pub fn no_systemd() -> Option<&'static str> {
    if !Path::new("/lib/systemd/systemd").exists() {
        return Some("systemd is not installed");
    }
    (!installed("setpriv")).then_some("setpriv is not installed")
}

/// What a first process sets up before it becomes systemd, in namespaces of its own: only our units, and a deadlock of another user.
const BOOT: &str = r#"
set -e
mount --make-rprivate /
if [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
    mount -t tmpfs tmpfs /sys/fs/cgroup && mkdir /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
fi
mount -t tmpfs tmpfs /run
touch /run/observer && mount --bind "$OBSERVER" /run/observer
mkfifo /run/never && exec 9<>/run/never
setpriv --reuid 65534 --regid 65534 --clear-groups "$PLACE/deadlock" <&9 >"$PLACE/ready" &
echo $! >/run/victim
until [ -s "$PLACE/ready" ]; do sleep 0.05; done
exec env -i PATH="$PATH" container=other SYSTEMD_UNIT_PATH="$PLACE/units" SYSTEMD_GENERATOR_PATH=/nonexistent \
    SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/nonexistent SYSTEMD_LOG_TARGET=console \
    /lib/systemd/systemd --system --unit=observer.service --show-status=no --dump-core=no >"$PLACE/log" 2>&1
"#;

/// Starts real systemd with `deploy/systemd/observer.service`, whose program is replaced by `script` (`$VICTIM` is the process
/// of a deadlock of another user) and whose settings are followed by `more`. Answers with what it wrote, once that ends
/// with a line `END`.
pub fn in_the_units_sandbox(place: &Path, observer: &Path, script: &str, more: &str) -> Result<String> {
    private_deadlock(place)?;
    let units = place.join("units");
    fs::create_dir_all(units.join("observer.service.d"))?;
    fs::copy(checkout().join("deploy/systemd/observer.service"), units.join("observer.service"))?;
    for target in ["sysinit", "basic", "shutdown", "network-online", "multi-user"] {
        fs::write(units.join(format!("{target}.target")), "[Unit]\nDefaultDependencies=no\n")?;
    }
    let out = place.join("out");
    // `$` is systemd's own.
    let script = format!("VICTIM=`cat /run/victim`; {script}; echo; echo END").replace('$', "$$");
    let drop_in = format!(
        "[Service]\nType=oneshot\nRestart=no\nExecStart=\nExecStart=/bin/sh -c '{script}'\nStandardInput=null\n\
         StandardOutput=file:{0}\nStandardError=file:{0}\n{more}\n",
        out.display()
    );
    fs::write(units.join("observer.service.d/try.conf"), drop_in)?;
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--cgroup", "--ipc", "--uts", "--"]);
    command.args(["sh", "-c", BOOT]).env("OBSERVER", observer).env("PLACE", place);
    let mut guard = Guard::start(command, Stdio::inherit())?;
    let said = wait_until("the service to end", SANDBOX_LIMIT, || {
        let text = fs::read_to_string(&out).unwrap_or_default();
        if !text.ends_with("END\n") && guard.ended(Duration::ZERO).is_ok() {
            bail!("systemd ended: {}", fs::read_to_string(place.join("log")).unwrap_or_default());
        }
        Ok(text.ends_with("END\n").then_some(text))
    });
    guard.kill();
    sweep_cgroups();
    let said = said.with_context(|| fs::read_to_string(place.join("log")).unwrap_or_default())?;
    Ok(said.trim_end_matches("END\n").to_owned())
}

/// Removes the empty cgroups that systemd leaves below ours.
fn sweep_cgroups() {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let places = mounts.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
    for place in places {
        for path in own.lines().filter_map(|line| line.splitn(3, ':').nth(2)) {
            let ours = Path::new(place).join(path.trim_start_matches('/'));
            for left in ["system.slice/observer.service", "system.slice", "init.scope"] {
                // Its processes are killed, but may still be on their way out.
                let path = ours.join(left);
                let gone = || Ok((fs::remove_dir(&path).is_ok() || !path.exists()).then_some(()));
                // In use by somebody else after all: it stays.
                let _ = wait_until("a cgroup to be empty", Duration::from_secs(5), gone);
            }
        }
    }
}
