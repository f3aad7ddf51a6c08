//! Child processes that are spoken to by lines, pinned, and ended with the benchmark.

use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A child with pipes.
pub(crate) struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    /// Starts it and waits until it says "ready".
    pub(crate) fn spawn(command: &mut Command) -> Result<Process> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("piped")?;
        let output = BufReader::new(child.stdout.take().context("piped")?);
        let mut process = Process { child, input, output };
        if process.line()? != "ready" {
            bail!("{command:?} did not get ready");
        }
        Ok(process)
    }

    /// The same on one CPU, at real-time priority where that is allowed: its loops are bounded and short.
    pub(crate) fn spawn_pinned(command: &mut Command) -> Result<Process> {
        let process = Process::spawn(command)?;
        let pid = process.child.id() as libc::pid_t;
        // SAFETY: plain system calls on a child of ours, with structures that live through the call.
        unsafe {
            let mut cpus: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(PINNED_CPU, &mut cpus);
            libc::sched_setaffinity(pid, size_of_val(&cpus), &cpus);
            libc::sched_setscheduler(pid, libc::SCHED_FIFO, &libc::sched_param { sched_priority: 1 });
        }
        Ok(process)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// Its next line.
    pub(crate) fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("process {} ended early", self.child.id());
        }
        Ok(line.trim_end().to_owned())
    }

    /// Gives it a line and reads the answer.
    pub(crate) fn ask(&mut self, line: &str) -> Result<String> {
        writeln!(self.input, "{line}")?;
        self.input.flush()?;
        self.line()
    }
}

/// The CPU that targets run on: the last of two, which is less busy with interrupts.
pub(crate) const PINNED_CPU: usize = 1;

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A store of the benchmark's own, gone with it.
pub(crate) struct Store(String);

impl Store {
    /// A folder that nobody else uses, where tmpfs is on every Linux.
    pub(crate) fn new() -> Store {
        Store(format!("/dev/shm/beeline-bench-{}", std::process::id()))
    }
}

impl std::ops::Deref for Store {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs `beeline` with a store of the benchmark's; returns what it printed.
pub(crate) fn beeline(path: &std::path::Path, store: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(path).args(["--store", store]).args(arguments).output()?;
    if !output.status.success() {
        bail!("beeline {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
