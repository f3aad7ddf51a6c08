//! Processes and their descendants: where they are, and the end of them.

use std::fs;
use std::process::{Command, Stdio};

/// A process and its descendants, parents first.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        family.extend(children_of(parent));
        next += 1;
    }
    family
}

pub(crate) fn children_of(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| parent_of(pid) == Some(parent)).collect()
}

/// The field behind the state in `/proc/PID/stat`.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

/// Prints where each thread of a process is: in the kernel, and in the program where gdb is there and can look.
pub(crate) fn describe(pid: u32) {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let command_line = read("cmdline").replace('\0', " ");
    eprintln!("\n-- process {pid}: {}", command_line.trim_end());
    for entry in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let tid = entry.file_name().to_string_lossy().into_owned();
        let read = |name: &str| read(&format!("task/{tid}/{name}"));
        let status = read("status");
        let field = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("?").trim().to_owned()
        };
        eprintln!(
            "thread {tid} ({}), state {}, tracer {}, blocked signals {}, in system call {}",
            field("Name:"),
            field("State:"),
            field("TracerPid:"),
            field("SigBlk:"),
            read("syscall").trim(),
        );
        for line in read("stack").lines() {
            eprintln!("    {line}");
        }
    }
    let traced = read("status").lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"));
    if !traced && pid != std::process::id() {
        // Without gdb the kernel's side has to do. It has a limit of its own: the process may be past stopping.
        let _ = Command::new("timeout")
            .args(["--signal=KILL", "20", "gdb", "-nx", "-batch", "-p", &pid.to_string()])
            .args(["-ex", "set pagination off", "-ex", "thread apply all backtrace 20"])
            .stdin(Stdio::null())
            .stdout(std::io::stderr())
            .stderr(Stdio::null())
            .status();
    }
}

/// Ends a process and its descendants. Each is stopped before its children are looked up, so that none is missed.
pub(crate) fn kill(pid: u32) {
    signal("-STOP", pid);
    for child in children_of(pid) {
        kill(child);
    }
    signal("-KILL", pid);
}

fn signal(signal: &str, pid: u32) {
    // One that ended by itself since is reported by `kill`; that is of no interest.
    let _ = Command::new("kill").args([signal, &pid.to_string()]).stderr(Stdio::null()).status();
}
