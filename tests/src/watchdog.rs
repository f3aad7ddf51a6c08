//! A test that hangs says where everybody is, and fails.
//!
//! Tests here stop processes and wait for them. When one never comes back, what each thread was doing is worth more than
//! the end of somebody's patience. The limit is far above what a loaded machine needs: it only keeps a hang from staying.

use std::collections::HashMap;
use std::fs;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// Time without a sign of life after which a test hangs.
const LIMIT: Duration = Duration::from_secs(300);

/// Watches over one test until it is dropped.
#[derive(Debug)]
pub struct Watchdog {
    signs: Sender<()>,
}

impl Watchdog {
    /// Begins to watch.
    pub fn new(name: &str) -> Watchdog {
        Watchdog::with_limit(name, LIMIT)
    }

    /// The same, with another time that may pass without a sign of life.
    pub fn with_limit(name: &str, limit: Duration) -> Watchdog {
        let (signs, received) = channel();
        let name = name.to_owned();
        std::thread::spawn(move || {
            loop {
                match received.recv_timeout(limit) {
                    Ok(()) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => end(&name, limit),
                }
            }
        });
        Watchdog { signs }
    }

    /// A sign of life: the time begins anew.
    pub fn alive(&self) {
        // The other end is there as long as we are.
        let _ = self.signs.send(());
    }
}

/// Says what this process and its descendants do, and ends them all.
fn end(name: &str, limit: Duration) -> ! {
    let family = family(std::process::id());
    eprintln!("\n== {name} hangs: no progress for {} s", limit.as_secs());
    family.iter().for_each(|&pid| describe(pid));
    let children = family[1..].iter().map(u32::to_string);
    // Those that ended by themselves since are reported by `kill`; that is of no interest.
    let _ = Command::new("kill").arg("-KILL").args(children).stderr(Stdio::null()).status();
    std::process::exit(1)
}

/// A process and its descendants, parents first.
fn family(pid: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let number = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        if let Some((pid, parent)) = number.and_then(|pid| Some((pid, parent_of(pid)?))) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(parent) = family.get(next) {
        family.extend(children.remove(parent).unwrap_or_default());
        next += 1;
    }
    family
}

/// The field behind the state in `/proc/PID/stat`.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

/// Prints where each thread of a process is: in the kernel, and in the program where gdb is there and can look.
fn describe(pid: u32) {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    eprintln!("\n-- process {pid}: {}", read("cmdline").replace('\0', " ").trim_end());
    for entry in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let tid = entry.file_name().to_string_lossy().into_owned();
        let read = |name: &str| read(&format!("task/{tid}/{name}"));
        let wanted = ["Name:", "State:", "TracerPid:", "SigBlk:", "SigPnd:"];
        let status = read("status");
        let is_wanted = |line: &&str| wanted.iter().any(|start| line.starts_with(start));
        let status: Vec<&str> = status.lines().filter(is_wanted).collect();
        eprintln!("thread {tid}: {} syscall: {}", status.join(", "), read("syscall").trim());
        read("stack").lines().for_each(|line| eprintln!("    {line}"));
    }
    if pid != std::process::id() {
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
