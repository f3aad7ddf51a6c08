//! The main job on real programs: malloc() calls of one that is started, then of one that runs already.

use crate::workspace::{self, run, shown};
use crate::{objects, setup};
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

/// Store of the demonstration, apart from the user's own.
const STORE: &str = "demo";

/// A program that everybody has.
const PYTHON: &str = "/usr/bin/python3";

/// Builds, loads, starts, attaches, shows, cleans up.
pub(crate) fn run_demo() -> Result<()> {
    setup::ensure(setup::Purpose::Demo)?;
    let demo = Demo { beeline: workspace::beeline()? };
    let object = objects::bpf_object(&workspace::root().join("examples/malloc-counter/malloc.bpf.c"))?;
    let _ = demo.command(&["unload", "malloc"]).stdout(Stdio::null()).stderr(Stdio::null()).status();

    demo.show("Register the program, its maps and its probe:", &["load", &object.to_string_lossy()])?;
    demo.show(
        "Run a program with the probe in it:",
        &[
            "start",
            "--",
            "/usr/bin/python3",
            "-c",
            "print('python3 says hello', len(['x' * (1000 + i % 9) for i in range(10000)]))",
        ],
    )?;

    let mut python = Interpreter::start()?;
    let pid = python.child.id().to_string();
    demo.show("Put it into another python3 that is already running:", &["attach", &pid])?;
    println!("\n# It makes {} long strings, with a malloc() for each:", python.work(20_000)?);
    demo.show("Which processes carry probes:", &["ps"])?;
    demo.show("malloc() calls and bytes of each process:", &["map", "dump", "by_process"])?;
    demo.show("All calls, by CPU:", &["map", "dump", "total"])?;
    demo.show("Take the probe out again:", &["detach", &pid])?;
    println!(
        "\n# The program runs on as if nothing had been, and makes {} strings more.",
        python.work(10_000)?
    );
    demo.show("And forget the program:", &["unload", "malloc"])
}

struct Demo {
    beeline: PathBuf,
}

impl Demo {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.beeline);
        command.env("BEELINE_STORE", STORE).args(arguments);
        command
    }

    /// Prints what is done and the command, then runs it.
    fn show(&self, what: &str, arguments: &[&str]) -> Result<()> {
        let mut command = self.command(arguments);
        let typed = shown(&command).replacen(&*self.beeline.to_string_lossy(), "beeline", 1);
        let target = workspace::target_dir();
        let typed = typed.replace(&*target.to_string_lossy(), "target");
        println!("\n# {what}\n$ {typed}");
        run(&mut command)
    }
}

/// A python3 that makes as many long strings as each line of its input says, ended with the demonstration.
struct Interpreter {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Interpreter {
    fn start() -> Result<Interpreter> {
        const PROGRAM: &str = "import sys\nfor line in sys.stdin: print(len(['x' * (1000 + i % 9) for i in range(int(line))]), flush=True)";
        let mut child = Command::new(PYTHON)
            .args(["-c", PROGRAM])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start python3")?;
        let answers = BufReader::new(child.stdout.take().context("its output is a pipe")?);
        let mut interpreter = Interpreter { child, answers };
        interpreter.work(1)?;
        Ok(interpreter)
    }

    /// Lets it make strings, with a malloc() for each; returns how many it says it made.
    fn work(&mut self, count: u32) -> Result<u32> {
        let input = self.child.stdin.as_mut().context("its input is a pipe")?;
        writeln!(input, "{count}")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        line.trim().parse().with_context(|| format!("python3 answered {line:?}"))
    }
}

impl Drop for Interpreter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
