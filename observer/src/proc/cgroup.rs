//! From the text of `/proc/PID/cgroup` to container and pod. Pure: no file is read here.
//!
//! Shapes are those of containerd, CRI-O, Docker, Podman, nerdctl and ECS under both cgroup drivers
//! (`systemd`: `….slice/cri-containerd-ID.scope`, `cgroupfs`: `/kubepods/…/podUID/ID`), in version 1, hybrid and version 2
//! hierarchies, also nested (kind, Docker in a pod). The rightmost container wins: it is the innermost.

use super::{Container, Pod};

/// Longest text that is looked at.
pub(crate) const MAX_TEXT: u64 = 64 * 1024;

/// What a cgroup file tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// The path that names the container; else that of the version 2 hierarchy; else the first that is not `/`.
    pub path: Option<String>,
    /// The container.
    pub container: Option<Container>,
    /// The pod.
    pub pod: Option<Pod>,
}

/// Reads the text of `/proc/PID/cgroup`: lines of `hierarchy:controllers:path`.
///
/// The paths are relative to the *reader's* cgroup root, so `0::/` alone says nothing: the process is on the
/// host, or in the container observer itself is in.
pub fn parse(text: &str) -> Cgroup {
    let mut paths: Vec<(bool, &str)> = text
        .lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let unified = id == "0" && controllers.is_empty();
            path.starts_with('/').then_some((unified, path))
        })
        .collect();
    // Version 2 first, otherwise in the order of the file.
    paths.sort_by_key(|(unified, _)| !unified);

    let located = paths.iter().find_map(|&(_, path)| Some((path, container(path)?)));
    let pod = paths.iter().find_map(|&(_, path)| pod(path));
    let path = located
        .as_ref()
        .map(|(path, _)| *path)
        .or_else(|| paths.iter().map(|p| p.1).find(|p| self::pod(p).is_some()))
        .or_else(|| paths.iter().map(|p| p.1).find(|p| *p != "/"))
        .or_else(|| paths.first().map(|p| p.1));
    Cgroup { path: path.map(str::to_owned), container: located.map(|(_, container)| container), pod }
}

/// Prefixes of a scope's name, and the runtime that uses them.
const PREFIXES: [(&str, &str); 6] = [
    ("cri-containerd", "containerd"),
    ("containerd", "containerd"),
    ("nerdctl", "containerd"),
    ("docker", "docker"),
    ("crio", "cri-o"),
    ("libpod", "podman"),
];

fn runtime_of(prefix: &str) -> Option<&'static str> {
    PREFIXES.iter().find(|(name, _)| *name == prefix).map(|(_, runtime)| *runtime)
}

fn container(path: &str) -> Option<Container> {
    let segments: Vec<&str> = path.split('/').collect();
    segments.iter().enumerate().rev().find_map(|(at, segment)| {
        let above = || segments[..at].iter().rev().copied();
        container_segment(segment, above)
    })
}

/// One segment, with those above it, nearest first.
fn container_segment<'a, I: Iterator<Item = &'a str>>(segment: &str, above: impl Fn() -> I) -> Option<Container> {
    let name = segment.strip_suffix(".scope").unwrap_or(segment);
    // The monitor beside the container: not in it.
    if name.contains("conmon") {
        return None;
    }
    let found = |id: &str, runtime: &str| Some(Container { id: id.to_owned(), runtime: runtime.to_owned() });
    // `SLICE:PREFIX:ID`: the systemd notation, used literally by a cgroupfs driver.
    if let Some((before, id)) = name.rsplit_once(':') {
        let prefix = before.rsplit(':').next().unwrap_or(before);
        return if is_id(id) { found(id, runtime_of(prefix).unwrap_or("unknown")) } else { None };
    }
    if is_id(name) {
        // The nearest above decides: a pod's cgroup names no runtime, whatever is further up (kind runs in Docker).
        let runtime = above().find_map(|up| match up {
            "docker" => Some("docker"),
            "libpod_parent" => Some("podman"),
            "ecs" => Some("ecs"),
            up => pod_uid(up).map(|_| "unknown"),
        });
        return found(name, runtime.unwrap_or("unknown"));
    }
    if let Some((prefix, id)) = name.rsplit_once('-')
        && is_id(id)
        && let Some(runtime) = runtime_of(prefix)
    {
        return found(id, runtime);
    }
    // Fargate: `/ecs/TASK/TASK-NUMBER`, where the task's id is 32 hexadecimal digits.
    let (task, number) = name.split_once('-')?;
    let fargate = task.len() == 32
        && is_hex(task)
        && !number.is_empty()
        && number.bytes().all(|b| b.is_ascii_digit())
        && above().any(|up| up == "ecs");
    if fargate { found(name, "ecs") } else { None }
}

fn pod(path: &str) -> Option<Pod> {
    // `:` for the systemd notation, see above.
    path.rsplit(['/', ':']).find_map(pod_uid).map(|uid| Pod { uid, ..Pod::default() })
}

/// `podUID`, `kubepods-burstable-podUID.slice`: what follows the last `pod` that starts a word.
fn pod_uid(segment: &str) -> Option<String> {
    let segment = segment.split(':').next().unwrap_or(segment);
    let name = segment.strip_suffix(".slice").unwrap_or(segment);
    let (at, _) = name.rmatch_indices("pod").find(|(at, _)| *at == 0 || name.as_bytes()[at - 1] == b'-')?;
    let uid = &name[at + 3..];
    // Static pods: the hash of their manifest.
    if uid.len() == 32 && is_hex(uid) {
        return Some(uid.to_owned());
    }
    // systemd has `-` for the levels of slices, so UIDs come with `_`.
    let uid = uid.replace('_', "-");
    let groups: Vec<&str> = uid.split('-').collect();
    let shape = groups.iter().map(|g| g.len()).eq([8, 4, 4, 4, 12]) && groups.iter().all(|g| is_hex(g));
    shape.then_some(uid)
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && is_hex(text)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "a3f1e0b2c4d5968778695a4b3c2d1e0fa3f1e0b2c4d5968778695a4b3c2d1e0f";
    const B: &str = "b3f1e0b2c4d5968778695a4b3c2d1e0fa3f1e0b2c4d5968778695a4b3c2d1e0f";
    const UID: &str = "3f2a6b1c-0d4e-4f5a-8b6c-7d8e9f0a1b2c";
    const STATIC: &str = "0123456789abcdef0123456789abcdef";

    /// Text, container (id and runtime), UID of the pod.
    type Shape<'a> = (&'a str, Option<(&'a str, &'a str)>, Option<&'a str>);

    /// `{A}`, `{B}`, `{U}` (UID), `{u}` (UID with `_`), `{S}` (static pod) are filled in.
    fn check(text: &str, container: Option<(&str, &str)>, pod: Option<&str>, path: Option<&str>) {
        let fill = |t: &str| {
            t.replace("{A}", A)
                .replace("{B}", B)
                .replace("{U}", UID)
                .replace("{u}", &UID.replace('-', "_"))
                .replace("{S}", STATIC)
        };
        let found = parse(&fill(text));
        let got = found.container.as_ref().map(|c| (c.id.as_str(), c.runtime.as_str()));
        assert_eq!(got, container, "container of {text}");
        assert_eq!(found.pod.as_ref().map(|p| p.uid.as_str()), pod, "pod of {text}");
        assert_eq!(found.path, path.map(fill), "path of {text}");
    }

    #[test]
    fn every_shape() {
        let table: &[Shape<'_>] = &[
            // Kubernetes, systemd driver, version 2.
            (
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{u}.slice/cri-containerd-{A}.scope",
                Some((A, "containerd")),
                Some(UID),
            ),
            (
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{u}.slice/docker-{A}.scope",
                Some((A, "docker")),
                Some(UID),
            ),
            (
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{u}.slice/crio-{A}.scope",
                Some((A, "cri-o")),
                Some(UID),
            ),
            ("0::/kubepods.slice/kubepods-pod{u}.slice/cri-containerd-{A}.scope", Some((A, "containerd")), Some(UID)),
            // CRI-O puts a `container` cgroup inside; systemd in the container an `init.scope`.
            ("0::/kubepods.slice/kubepods-pod{u}.slice/crio-{A}.scope/container", Some((A, "cri-o")), Some(UID)),
            ("0::/kubepods.slice/kubepods-pod{u}.slice/crio-{A}.scope/init.scope", Some((A, "cri-o")), Some(UID)),
            // Kubernetes, cgroupfs driver.
            ("0::/kubepods/burstable/pod{U}/{A}", Some((A, "unknown")), Some(UID)),
            ("0::/kubepods/burstable/pod{U}/crio-{A}", Some((A, "cri-o")), Some(UID)),
            ("0::/kubepods/pod{U}/{A}", Some((A, "unknown")), Some(UID)),
            // Version 1.
            ("11:memory:/kubepods/besteffort/pod{U}/{A}", Some((A, "unknown")), Some(UID)),
            // systemd notation taken literally.
            (
                "0::/system.slice/containerd.service/kubepods-besteffort-pod{u}.slice:cri-containerd:{A}",
                Some((A, "containerd")),
                Some(UID),
            ),
            // kind: a node in a container.
            (
                "0::/system.slice/docker-{B}.scope/kubelet/kubepods/besteffort/pod{U}/{A}",
                Some((A, "unknown")),
                Some(UID),
            ),
            ("0::/docker/{B}/kubelet/kubepods/besteffort/pod{U}/{A}", Some((A, "unknown")), Some(UID)),
            ("0::/system.slice/docker-{B}.scope/kubelet", Some((B, "docker")), None),
            // Docker in a pod.
            ("0::/kubepods/burstable/pod{U}/{A}/docker/{B}", Some((B, "docker")), Some(UID)),
            // Relative to a cgroup namespace.
            ("0::/../cri-containerd-{A}.scope", Some((A, "containerd")), None),
            ("0::/../../pod{S}/{A}", Some((A, "unknown")), Some(STATIC)),
            ("0::/../../kubepods-burstable-pod{u}.slice/crio-{A}.scope", Some((A, "cri-o")), Some(UID)),
            ("0::/../../../system.slice/sshd.service", None, None),
            // kind since 0.12: slices of the kubelet's own.
            (
                "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{u}.slice/cri-containerd-{A}.scope",
                Some((A, "containerd")),
                Some(UID),
            ),
            // systemd inside of a container.
            ("0::/docker/{A}/system.slice/app.service", Some((A, "docker")), None),
            // Static pods.
            ("11:memory:/kubepods/burstable/pod{S}/{A}", Some((A, "unknown")), Some(STATIC)),
            (
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{S}.slice/cri-containerd-{A}.scope",
                Some((A, "containerd")),
                Some(STATIC),
            ),
            // Without Kubernetes.
            ("0::/machine.slice/libpod-{A}.scope/container", Some((A, "podman")), None),
            ("0::/machine.slice/libpod-{A}.scope", Some((A, "podman")), None),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope/container",
                Some((A, "podman")),
                None,
            ),
            ("9:pids:/libpod_parent/libpod-{A}", Some((A, "podman")), None),
            ("0::/system.slice/docker-{A}.scope", Some((A, "docker")), None),
            ("12:cpu,cpuacct:/docker/{A}", Some((A, "docker")), None),
            ("0::/system.slice/nerdctl-{A}.scope", Some((A, "containerd")), None),
            ("0::/system.slice/containerd-{A}.scope", Some((A, "containerd")), None),
            ("0::/default/{A}", Some((A, "unknown")), None),
            ("9:memory:/ecs/0f0e0d0c0b0a09080706050403020100/{A}", Some((A, "ecs")), None),
            (
                "9:memory:/ecs/0f0e0d0c0b0a09080706050403020100/0f0e0d0c0b0a09080706050403020100-2534567890",
                Some(("0f0e0d0c0b0a09080706050403020100-2534567890", "ecs")),
                None,
            ),
            // Monitors are beside the container, the pod is still theirs.
            ("0::/machine.slice/libpod-conmon-{A}.scope", None, None),
            ("0::/kubepods.slice/kubepods-pod{u}.slice/crio-conmon-{A}.scope", None, Some(UID)),
            // Nothing to find.
            ("0::/", None, None),
            ("0::/user.slice/user-0.slice/session-1.scope", None, None),
            ("0::/system.slice/tripod-{A}.service", None, None),
            ("0::/kubepods/burstable/podnot-a-uid", None, None),
            ("0::/system.slice/docker-abc.scope", None, None),
        ];
        for (text, container, pod) in table {
            check(text, *container, *pod, text.splitn(3, ':').nth(2));
        }
    }

    #[test]
    fn the_useful_line_of_many() {
        // Hybrid: the version 2 line says nothing.
        check(
            "12:cpu:/\n11:memory:/kubepods/besteffort/pod{U}/{A}\n1:name=systemd:/x\n0::/\n",
            Some((A, "unknown")),
            Some(UID),
            Some("/kubepods/besteffort/pod{U}/{A}"),
        );
        // Version 2 wins over the order of the file.
        check(
            "3:pids:/docker/{A}\n0::/system.slice/docker-{B}.scope\n",
            Some((B, "docker")),
            None,
            Some("/system.slice/docker-{B}.scope"),
        );
        check("9:name=systemd:/\n4:memory:/jobs/7\n0::/\n", None, None, Some("/jobs/7"));
        check("0::/\n", None, None, Some("/"));
    }

    #[test]
    fn hostile_text() {
        for text in [
            "",
            ":",
            "::",
            "0:",
            "0::",
            "0::relative",
            "0::/\u{1f600}/pod\u{1f600}-",
            "0:::::",
            "\0\n\n0::/-",
            "0::/pod",
            "0::/:",
            "0::/-pod{U}:",
        ] {
            let _ = parse(text);
        }
        check("0::", None, None, None);
        // A cgroup may have a colon in its name.
        check("0::/a:b/docker-{A}.scope", Some((A, "docker")), None, Some("/a:b/docker-{A}.scope"));
    }
}
