//! What it costs to trace system calls: a hot loop over one call, in one process.
//!
//! A round measures the process untraced, with beeline's programs attached, and with the kernel's tracepoints on; in between
//! they are taken off again. All of it is one process, because the differences that are looked for are smaller than those
//! of two copies of a process. The kernel's tracepoints are on only while they are measured: they cost every process's calls.

use crate::build;
use crate::process::{Process, Store, beeline};
use crate::samples::Samples;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which programs are there while a call is made.
struct Tracing {
    name: &'static str,
    /// Ends of calls are traced too.
    exits: bool,
    /// What is traced is another call.
    is_other: bool,
}

const TRACINGS: &[Tracing] = &[
    Tracing { name: "enter + exit", exits: true, is_other: false },
    Tracing { name: "enter", exits: false, is_other: false },
    Tracing { name: "nobody's, kill is traced", exits: true, is_other: true },
];

struct Call {
    /// Its name in `targets/system_calls.c`, which with `any_` before it goes through `syscall`.
    name: &'static str,
    /// The calls that it makes.
    numbers: &'static [&'static str],
    /// Repetitions of a part of a sample: about a millisecond.
    repeat: u64,
}

const CALLS: &[Call] = &[
    Call { name: "getppid", numbers: &["getppid"], repeat: 10_000 },
    Call { name: "read", numbers: &["read"], repeat: 5_000 },
    Call { name: "open_close", numbers: &["openat", "close"], repeat: 1_000 },
];

/// A call that the target does not make.
const OTHER: &[&str] = &["kill"];

/// Parts of a sample, of which the least counts.
const PARTS: u32 = 10;

/// Runs all cases.
pub(crate) fn run(beeline_path: &Path, rounds: u32) -> Result<()> {
    let target = build::native("system_calls", &["targets/system_calls.c"], &[])?;
    let kernel = build::native("kernel_tracepoints", &["targets/kernel_tracepoints.c"], &["-lbpf"])?;
    println!(
        "\nsystem calls, ns: min / median / max of {rounds} rounds; net = median of the rounds' differences to untraced"
    );
    println!(
        "{:60} {:>8}  {:>29}  {:>9}  {:>8}",
        "", "variant", "min    median       max", "net", "kernel/x"
    );
    for call in CALLS {
        for tracing in TRACINGS {
            let object = object(call, tracing)?;
            for (prefix, by) in [("", "libc's function"), ("any_", "syscall(2)")] {
                let title = format!("{}, {by}, {}", call.numbers.join(" + "), tracing.name);
                let case = Case { function: format!("{prefix}{}", call.name), title, repeat: call.repeat };
                let mut process = Process::spawn_pinned(&mut Command::new(&target))?;
                let variants = Variants { beeline_path, object: &object, kernel: &kernel, options: &[] };
                case.measure(&mut process, &variants, rounds).with_context(|| case.title.clone())?;
            }
        }
    }
    complete(beeline_path, &target, &kernel, rounds)
}

/// What `--complete` costs: calls of code that is made at run time, and those of libc.
fn complete(beeline_path: &Path, target: &Path, kernel: &Path, rounds: u32) -> Result<()> {
    let [call, ..] = CALLS else { return Ok(()) };
    for tracing in TRACINGS.iter().filter(|tracing| tracing.exits) {
        let object = object(call, tracing)?;
        for (prefix, by) in [("made_", "made code"), ("", "libc's function")] {
            let title = format!("{}, {by}, --complete, {}", call.name, tracing.name);
            let case = Case { function: format!("{prefix}{}", call.name), title, repeat: call.repeat / 10 };
            let mut process = Process::spawn_pinned(&mut Command::new(target))?;
            let variants = Variants { beeline_path, object: &object, kernel, options: &["--complete"] };
            case.measure(&mut process, &variants, rounds).with_context(|| case.title.clone())?;
        }
    }
    Ok(())
}

/// The empty programs.
fn object(call: &Call, tracing: &Tracing) -> Result<PathBuf> {
    let numbers = if tracing.is_other { OTHER } else { call.numbers };
    let mut defines: Vec<String> = ["FIRST", "SECOND"]
        .iter()
        .zip(numbers)
        .map(|(macro_name, call)| format!("-D{macro_name}={call}"))
        .collect();
    if tracing.exits {
        defines.push("-DEXITS".to_owned());
    }
    let name = format!("{}{}", numbers.join("_"), if tracing.exits { "_exits" } else { "" });
    build::object_variant("programs/system_calls.bpf.c", &name, &defines)
}

/// Who traces, and what.
pub(crate) struct Variants<'a> {
    /// The `beeline` command.
    pub(crate) beeline_path: &'a Path,
    /// Programs for both sides.
    pub(crate) object: &'a Path,
    /// `targets/kernel_tracepoints.c`.
    pub(crate) kernel: &'a Path,
    /// Of `attach`.
    pub(crate) options: &'a [&'a str],
}

/// The figures of one case.
#[derive(Default)]
pub(crate) struct Figures {
    /// Without programs.
    pub(crate) base: Samples,
    /// With the kernel's tracepoints; empty where they cannot be had.
    pub(crate) kernel: Samples,
    /// With beeline's.
    pub(crate) ours: Samples,
}

impl Variants<'_> {
    /// Takes a sample of each variant in each round. `pid` is the process that beeline traces.
    pub(crate) fn measure(
        &self,
        store: &str,
        pid: &str,
        rounds: u32,
        mut sample: impl FnMut() -> Result<f64>,
    ) -> Result<Figures> {
        beeline(self.beeline_path, store, &["load", &self.object.to_string_lossy()])?;
        let mut kernel = Process::spawn(Command::new(self.kernel).arg(self.object));
        let mut figures = Figures::default();
        for _ in 0..rounds {
            figures.base.push(sample()?);
            beeline(self.beeline_path, store, &[&["attach"], self.options, &[pid]].concat())?;
            figures.ours.push(sample()?);
            beeline(self.beeline_path, store, &["detach", pid])?;
            if let Ok(kernel) = &mut kernel {
                kernel.ask("on")?;
                figures.kernel.push(sample()?);
                kernel.ask("off")?;
            }
        }
        Ok(figures)
    }
}

struct Case {
    function: String,
    title: String,
    repeat: u64,
}

impl Case {
    fn measure(&self, process: &mut Process, variants: &Variants<'_>, rounds: u32) -> Result<()> {
        let store = Store::new();
        let pid = process.pid();
        let figures = variants.measure(&store, &pid, rounds, || self.sample(process))?;
        self.report(&figures);
        Ok(())
    }

    /// Nanoseconds of one time.
    fn sample(&self, process: &mut Process) -> Result<f64> {
        let mut least = f64::INFINITY;
        for _ in 0..PARTS {
            let answer = process.ask(&format!("{} {}", self.function, self.repeat))?;
            let (thousandths, results) = answer.split_once(' ').context("two numbers")?;
            ensure!(!results.starts_with('-'), "calls fail: {answer}");
            least = least.min(thousandths.parse::<f64>()? / 1000.0);
        }
        Ok(least)
    }

    fn report(&self, Figures { base, kernel, ours }: &Figures) {
        println!("{:60} {:>8}  {}", self.title, "none", base.spread());
        let (kernels, net) = (kernel.less(base).median(), ours.less(base).median());
        if kernel.is_empty() {
            println!(
                "{:60} {:>8}  not measured: this kernel or user may not attach to tracepoints",
                "", "kernel"
            );
        } else {
            println!("{:60} {:>8}  {}  {kernels:9.2}", "", "kernel", kernel.spread());
        }
        // Where the cost is none at all the differences are noise, and their ratio means nothing.
        let ratio =
            if net >= RATIO_NS_MIN { format!("{:8.1}", kernels / net) } else { format!("{:>8}", "-") };
        println!("{:60} {:>8}  {}  {net:9.2}  {ratio}", "", "beeline", ours.spread());
    }
}

/// The least cost that a ratio is made of.
const RATIO_NS_MIN: f64 = 0.5;
