//! What this machine lacks and tests, benches or the demonstration need.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::{dist, invoke, tools, workspace};

/// A program or library that is not Rust's, the packages that bring it, and who needs it.
struct Need {
    name: &'static str,
    packages: &'static [&'static str],
    for_what: Purpose,
    present: fn() -> bool,
}

/// The dearer purposes include the cheaper ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// `cargo xtask run`.
    Demonstration,
    /// `cargo xtask test`.
    Tests,
    /// `cargo xtask bench`.
    Benches,
}

/// Everything, in one place. Debian package names.
const NEEDS: &[Need] = &[
    Need {
        name: "a C compiler with the C library's headers",
        packages: &["gcc", "libc6-dev"],
        for_what: Purpose::Demonstration,
        present: has_c_compiler,
    },
    Need {
        name: "unshare and nsenter",
        packages: &["util-linux"],
        for_what: Purpose::Tests,
        present: || invoke::is_installed("unshare") && invoke::is_installed("nsenter"),
    },
    Need {
        name: "the compiler's 32-bit libraries",
        packages: &["gcc-multilib"],
        for_what: Purpose::Tests,
        present: has_32_bit_libraries,
    },
    Need {
        name: "bpftool",
        packages: &["bpftool"],
        for_what: Purpose::Tests,
        // It lives in a directory that only root's path has.
        present: || ["/usr/sbin/bpftool", "/usr/bin/bpftool"].iter().any(|path| Path::new(path).exists()),
    },
    Need {
        name: "Python with venv",
        packages: &["python3", "python3-venv"],
        for_what: Purpose::Tests,
        present: || invoke::succeeds(Command::new("python3").args(["-c", "import venv, ensurepip"])),
    },
    Need {
        name: "pip, for tools that come as wheels",
        packages: &["python3-pip", "libpython3-dev"],
        for_what: Purpose::Tests,
        present: || invoke::succeeds(Command::new("python3").args(["-m", "pip", "--version"])),
    },
    Need {
        name: "a Java development kit",
        packages: &["default-jdk-headless"],
        for_what: Purpose::Tests,
        present: || invoke::is_installed("javac"),
    },
    Need { name: "Node.js", packages: &["nodejs"], for_what: Purpose::Tests, present: || invoke::is_installed("node") },
    Need { name: "Go", packages: &["golang-go"], for_what: Purpose::Tests, present: || invoke::is_installed("go") },
    Need {
        name: "a C++ compiler",
        packages: &["g++"],
        for_what: Purpose::Tests,
        present: || invoke::is_installed("c++") && invoke::is_installed("g++"),
    },
    Need {
        name: "a C compiler for musl",
        packages: &["musl-tools"],
        for_what: Purpose::Tests,
        present: || invoke::is_installed("musl-gcc"),
    },
    Need {
        name: "the LLVM linker",
        packages: &["lld"],
        for_what: Purpose::Tests,
        present: || invoke::is_installed("ld.lld"),
    },
    Need {
        name: "an emulator for other kernels, and what their file system is made with",
        packages: &["qemu-system-x86", "cpio", "xz-utils", "binutils"],
        for_what: Purpose::Tests,
        present: || ["qemu-system-x86_64", "cpio", "xz", "strip"].into_iter().all(invoke::is_installed),
    },
    Need {
        name: "runc and busybox, the latter without libraries: it goes into guests",
        packages: &["runc", "busybox-static"],
        for_what: Purpose::Tests,
        present: || {
            ["/usr/sbin/runc", "/usr/bin/runc"].iter().any(|path| Path::new(path).exists()) && has_static_busybox()
        },
    },
    Need { name: "gdb", packages: &["gdb"], for_what: Purpose::Tests, present: || invoke::is_installed("gdb") },
    Need {
        name: "systemd, which need not be running",
        packages: &["systemd"],
        for_what: Purpose::Tests,
        present: || invoke::is_installed("systemd-analyze") && Path::new("/lib/systemd/systemd").exists(),
    },
    Need {
        name: "the servers whose debts are observed",
        packages: &[
            "postgresql",
            "postgresql-client",
            "redis-server",
            "redis-tools",
            "nginx-light",
            "haproxy",
            "memcached",
            "mosquitto",
        ],
        for_what: Purpose::Tests,
        present: has_servers,
    },
    Need {
        name: "ip and ss",
        packages: &["iproute2"],
        for_what: Purpose::Tests,
        present: || invoke::is_installed("ip") && invoke::is_installed("ss"),
    },
    Need {
        name: "certificate authorities",
        packages: &["ca-certificates"],
        for_what: Purpose::Tests,
        present: || Path::new("/etc/ssl/certs/ca-certificates.crt").exists(),
    },
    Need {
        name: "eu-stack",
        packages: &["elfutils"],
        for_what: Purpose::Benches,
        present: || invoke::is_installed("eu-stack"),
    },
    Need { name: "Delve", packages: &["delve"], for_what: Purpose::Benches, present: || invoke::is_installed("dlv") },
    Need {
        name: "strace",
        packages: &["strace"],
        for_what: Purpose::Benches,
        present: || invoke::is_installed("strace"),
    },
    Need {
        name: "bpftrace",
        packages: &["bpftrace"],
        for_what: Purpose::Benches,
        present: || invoke::is_installed("bpftrace"),
    },
    Need {
        name: "gdb and eu-stack",
        packages: &["gdb", "elfutils"],
        for_what: Purpose::Benches,
        present: || invoke::is_installed("gdb") && invoke::is_installed("eu-stack"),
    },
];

fn has_static_busybox() -> bool {
    ["/bin/busybox", "/usr/bin/busybox"].iter().any(|path| dist::ensure_static(Path::new(path)).is_ok())
}

fn has_servers() -> bool {
    // Servers lie in a directory that only root's path has, PostgreSQL's programs in one of their own.
    let servers = ["nginx", "haproxy", "mosquitto", "memcached", "redis-server", "redis-benchmark"];
    let is_there = |name: &str| ["/usr/sbin", "/usr/bin"].iter().any(|place| Path::new(place).join(name).exists());
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().filter_map(Result::ok);
    let has_database = versions
        .map(|entry| entry.path().join("bin"))
        .any(|bin| ["postgres", "initdb", "psql", "pgbench"].iter().all(|name| bin.join(name).exists()));
    has_database && servers.into_iter().all(is_there)
}

fn has_c_compiler() -> bool {
    // Headers come in a package of their own: only a compilation shows that both are there.
    invoke::succeeds(Command::new("cc").args([
        "-include",
        "pthread.h",
        "-include",
        "stdio.h",
        "-fsyntax-only",
        "-x",
        "c",
        "/dev/null",
    ]))
}

fn has_32_bit_libraries() -> bool {
    invoke::succeeds(Command::new("cc").args([
        "-m32",
        "-include",
        "pthread.h",
        "-fsyntax-only",
        "-x",
        "c",
        "/dev/null",
    ]))
}

/// Installs what is missing for `purpose`; changes nothing when nothing is.
pub(crate) fn prepare(purpose: Purpose) -> Result<()> {
    let missing: Vec<&Need> = NEEDS.iter().filter(|need| need.for_what <= purpose && !(need.present)()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|need| need.name).collect();
    let packages: Vec<&str> = missing.iter().flat_map(|need| need.packages).copied().collect();
    let advice = format!("missing: {}. On Debian or Ubuntu: apt-get install {}", names.join(", "), packages.join(" "));
    if !invoke::is_root() || !invoke::is_installed("apt-get") {
        bail!("{advice}");
    }
    eprintln!("xtask: installing {} (for {})", packages.join(" "), names.join(", "));
    install_packages(&packages)?;
    match missing.iter().find(|need| !(need.present)()) {
        Some(need) => bail!("{} is still missing after installing {:?}", need.name, need.packages),
        None => Ok(()),
    }
}

/// Installs Debian packages as root. The package lists of a fresh machine may be empty or old: they are renewed only
/// if the first try fails.
pub(crate) fn install_packages(packages: &[&str]) -> Result<()> {
    if install(packages).is_err() {
        invoke::run(Command::new("apt-get").args(["update", "--quiet=2"]))?;
        install(packages)?;
    }
    Ok(())
}

/// While it exists, no package starts the service it brings: tests start their own.
struct NoServices(bool);

impl NoServices {
    /// What maintainer scripts ask; see `invoke-rc.d(8)`.
    const POLICY: &str = "/usr/sbin/policy-rc.d";

    /// A policy that is there already stays as it is.
    fn begin() -> Result<Self> {
        if Path::new(Self::POLICY).exists() {
            return Ok(Self(false));
        }
        std::fs::write(Self::POLICY, "#!/bin/sh\nexit 101\n")?;
        std::fs::set_permissions(Self::POLICY, Permissions::from_mode(0o755))?;
        Ok(Self(true))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.0
            && let Err(error) = std::fs::remove_file(Self::POLICY)
        {
            eprintln!("xtask: {} is to be removed by hand: {error}", Self::POLICY);
        }
    }
}

fn install(packages: &[&str]) -> Result<()> {
    let _policy = NoServices::begin()?;
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command.args(["install", "--yes", "--quiet=2", "--no-install-recommends"]).args(packages);
    invoke::run(command.stdout(std::process::Stdio::null()))
}

/// The parts of the Rust toolchain that the checks use and a minimal installation lacks.
pub(crate) fn cargo_components() -> Result<()> {
    let parts = [("fmt", "rustfmt"), ("clippy", "clippy")];
    let is_missing = |part: &str| !invoke::succeeds(&mut workspace::cargo(&[part, "--version"]));
    let missing: Vec<&str> =
        parts.into_iter().filter(|(part, _)| is_missing(part)).map(|(_, component)| component).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !invoke::is_installed("rustup") {
        let names = missing.join(" and ");
        bail!("this Rust lacks {names}: install the packages of that name beside your cargo");
    }
    eprintln!("xtask: adding {} to the Rust toolchain", missing.join(" and "));
    let mut rustup = Command::new("rustup");
    rustup.current_dir(workspace::root()).args(["component", "add"]);
    invoke::run(rustup.args(missing))
}

/// Mounts tracefs when it is not: without it no tracepoint can be attached. Only a warning, since
/// observer falls to another rung without it.
pub(crate) fn mount_tracefs() {
    let mounted = ["/sys/kernel/tracing/events", "/sys/kernel/debug/tracing/events"];
    if mounted.iter().any(|path| Path::new(path).is_dir()) {
        return;
    }
    let command = "mount -t tracefs tracefs /sys/kernel/tracing";
    let mounted = invoke::as_root("mount")
        .map(|mut mount| mount.args(["-t", "tracefs", "tracefs", "/sys/kernel/tracing"]).status());
    match mounted {
        Ok(Ok(status)) if status.success() => eprintln!("xtask: mounted tracefs"),
        _ => eprintln!("xtask: tracefs is not mounted; as root: {command}"),
    }
}

/// `cargo xtask toolchain`.
pub(crate) fn toolchain() -> Result<()> {
    prepare(Purpose::Benches)?;
    cargo_components()?;
    tools::unpack();
    mount_tracefs();
    for need in NEEDS {
        println!("present: {} ({})", need.name, need.packages.join(" "));
    }
    Ok(())
}
