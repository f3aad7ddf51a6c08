//! What has to be on the machine beside Rust, and how it gets there.

use crate::workspace;
use anyhow::{Result, bail};
use std::path::Path;
use std::process::{Command, Stdio};

/// What the tools are wanted for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// Compile eBPF programs and trace something.
    Demo,
    /// Every test and benchmark.
    Test,
}

/// One thing that must be there: a program on the path, or a file.
struct Need {
    probe: Probe,
    package: &'static str,
    from: Purpose,
}

enum Probe {
    Program(&'static str),
    File(&'static str),
}

use Probe::{File, Program};
use Purpose::{Demo, Test};

/// Debian and Ubuntu package names.
const NEEDS: &[Need] = &[
    Need { probe: Program("clang"), package: "clang", from: Demo },
    Need { probe: File("/usr/include/bpf/bpf_helpers.h"), package: "libbpf-dev", from: Demo },
    Need { probe: File("/usr/include/linux/bpf.h"), package: "linux-libc-dev", from: Demo },
    Need { probe: Program("gcc"), package: "gcc", from: Demo },
    Need { probe: File("/usr/bin/python3"), package: "python3", from: Demo },
    Need { probe: Program("redis-server"), package: "redis-server", from: Test },
    Need { probe: Program("g++"), package: "g++", from: Test },
    Need { probe: Program("make"), package: "make", from: Test },
    Need { probe: Program("pkg-config"), package: "pkg-config", from: Test },
    Need { probe: File("/usr/include/libelf.h"), package: "libelf-dev", from: Test },
    Need { probe: File("/usr/include/zlib.h"), package: "zlib1g-dev", from: Test },
    Need { probe: File("/usr/include/openssl/ssl.h"), package: "libssl-dev", from: Test },
    Need { probe: Program("openssl"), package: "openssl", from: Test },
    Need { probe: File("/usr/include/x86_64-linux-gnu/sys/sdt.h"), package: "systemtap-sdt-dev", from: Test },
    Need { probe: Program("musl-gcc"), package: "musl-tools", from: Test },
    Need { probe: Program("go"), package: "golang-go", from: Test },
    Need { probe: Program("nginx"), package: "nginx-light", from: Test },
    Need { probe: Program("wrk"), package: "wrk", from: Test },
    Need { probe: Program("ld.lld"), package: "lld", from: Test },
    Need { probe: Program("mold"), package: "mold", from: Test },
    Need { probe: Program("bpftool"), package: "bpftool", from: Test },
    Need { probe: Program("gdb"), package: "gdb", from: Test },
    Need { probe: Program("strace"), package: "strace", from: Test },
    Need { probe: Program("git"), package: "git", from: Test },
    Need { probe: Program("ssh-keygen"), package: "openssh-client", from: Test },
    Need { probe: Program("busybox"), package: "busybox-static", from: Test },
];

impl Need {
    fn is_met(&self) -> bool {
        match self.probe {
            Program(name) => on_path(name),
            File(path) => Path::new(path).exists(),
        }
    }
}

/// Directories that hold system programs but are not on every user's path.
const SYSTEM_DIRS: &str = "/usr/sbin:/sbin";

fn on_path(name: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    std::env::split_paths(&format!("{path}:{SYSTEM_DIRS}")).any(|dir| dir.join(name).is_file())
}

/// Installs what is missing for `purpose`, or fails with the command that would.
pub(crate) fn ensure(purpose: Purpose) -> Result<()> {
    let missing: Vec<&str> =
        NEEDS.iter().filter(|need| need.from <= purpose && !need.is_met()).map(|need| need.package).collect();
    if missing.is_empty() { Ok(()) } else { install(&missing) }
}

/// Installs Debian packages, or fails with the command that would.
fn install(missing: &[&str]) -> Result<()> {
    let advice = format!("sudo apt-get install -y {}", missing.join(" "));
    if !on_path("apt-get") {
        bail!("these Debian packages, or what your system calls them, are missing: {}", missing.join(" "));
    }
    let Some(mut apt) = apt_get() else {
        bail!(
            "something is missing, and only root may install it. Run this, then try again:\n\n    {advice}\n"
        );
    };
    eprintln!("installing: {}", missing.join(" "));
    // A stale package list is the usual reason for a failed install, and refreshing it is cheap.
    let _ = apt(&["update", "-qq"]).stdout(Stdio::null()).status();
    let mut install = apt(&["install", "-y", "--no-install-recommends"]);
    install.args(missing).stdout(Stdio::null());
    if workspace::run(&mut install).is_err() {
        bail!("apt could not install what is missing. Run this to see why:\n\n    {advice}\n");
    }
    Ok(())
}

/// Installs the test suite of the system's Python, where it is Debian's: the long run says what it skips without.
pub(crate) fn python_tests() -> Result<()> {
    let asked = Command::new("/usr/bin/python3")
        .args(["-c", "import sys; print('%d.%d' % sys.version_info[:2])"])
        .output();
    let Ok(asked) = asked else { return Ok(()) };
    let version = String::from_utf8_lossy(&asked.stdout).trim().to_owned();
    if version.is_empty() || Path::new(&format!("/usr/lib/python{version}/test/test_grammar.py")).exists() {
        return Ok(());
    }
    install(&[&format!("libpython{version}-testsuite")])
}

/// How apt-get can be run without asking anybody: as root, or by sudo without a password.
fn apt_get() -> Option<impl FnMut(&[&str]) -> Command> {
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout.trim_ascii() == b"0");
    let quiet = |command: &mut Command| {
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    if !is_root && !quiet(Command::new("sudo").args(["-n", "true"])) {
        return None;
    }
    Some(move |arguments: &[&str]| {
        let mut command = if is_root { Command::new("apt-get") } else { Command::new("sudo") };
        if !is_root {
            command.args(["-n", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        }
        command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments);
        command
    })
}
