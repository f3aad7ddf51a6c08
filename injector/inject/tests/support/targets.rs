//! C programs that tests stop and look at.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

/// A running target; killed when dropped.
pub(crate) struct Target {
    pub(crate) child: Child,
    pub(crate) output: BufReader<ChildStdout>,
}

impl Target {
    /// Compiles `source` and runs it until it has printed its first line. `None` when there is no C compiler.
    pub(crate) fn start(name: &str, source: &str) -> Option<Target> {
        Some(Target::run(&compile(name, source)?))
    }

    /// Runs a program until it has printed its first line.
    pub(crate) fn run(path: &Path) -> Target {
        Target::run_with(path, &[])
    }

    /// The same with arguments.
    pub(crate) fn run_with(path: &Path, arguments: &[&str]) -> Target {
        let mut child =
            Command::new(path).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        Target { child, output }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The next line that it prints.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Compiles a C program into this test run's folder.
pub(crate) fn compile(name: &str, source: &str) -> Option<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let (c, exe) = (folder.join(format!("{name}.c")), folder.join(name));
    std::fs::write(&c, source).unwrap();
    match Command::new("gcc").arg("-O1").arg("-pthread").arg("-o").arg(&exe).arg(&c).status() {
        Ok(status) => assert!(status.success(), "gcc fails on {name}"),
        Err(_) => {
            println!("skipped: no gcc");
            return None;
        }
    }
    Some(exe)
}

/// Runs `f` on an OS thread of its own: tracees belong to it, and it has no other children.
pub(crate) fn traced<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(f).join().unwrap())
}
