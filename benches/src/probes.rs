//! What a probe costs: a hot loop over one function, in three copies of one process.
//!
//! One copy has no probe, one has the kernel's uprobe, one has beeline's. A round measures each copy once. The cost of a
//! probe is the median of its copy less the median of the copy without.

use crate::build;
use crate::process::{Process, Store, beeline};
use crate::samples::Samples;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What runs at the probe.
struct Case {
    name: &'static str,
    function: &'static str,
    /// Programs; `:ret` marks a return probe.
    programs: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case { name: "empty uprobe, first insn push", function: "first_push", programs: &["empty"] },
    Case { name: "empty uprobe, 5-byte nop", function: "first_nop", programs: &["empty"] },
    Case { name: "empty uprobe, single-stepped", function: "first_sub", programs: &["empty"] },
    Case { name: NO_ROOM, function: "no_room", programs: &["empty"] },
    Case { name: "the whole pt_regs", function: "first_push", programs: &["whole_regs"] },
    Case { name: "8 bytes by probe_read_user", function: "first_push", programs: &["read_user"] },
    Case { name: "per-CPU counter", function: "first_push", programs: &["count_percpu"] },
    Case { name: "atomic counter", function: "first_push", programs: &["count_atomic"] },
    Case { name: "hash update", function: "first_push", programs: &["update_hash"] },
    Case { name: "32-byte ring-buffer event", function: "first_push", programs: &["send_event"] },
    Case { name: "uretprobe", function: "first_push", programs: &["on_return:ret"] },
    Case { name: "entry+return histogram", function: "first_push", programs: &["enter", "leave:ret"] },
    Case { name: "  its entry alone", function: "first_push", programs: &["enter"] },
    Case { name: "  its clock alone, once", function: "first_push", programs: &["clock"] },
];

/// Where no jump fits and an `int3` stands.
const NO_ROOM: &str = "empty uprobe, no room for a jump";

/// Calls of one sample: about a millisecond without a probe, and few enough for the ring buffer.
const CALLS: u64 = 200_000;
/// Calls of one sample under the kernel, which is up to a thousand times slower.
const CALLS_KERNEL: u64 = 5_000;

struct Programs {
    calls: PathBuf,
    kernel_probe: PathBuf,
    object: PathBuf,
}

/// Runs all cases.
pub(crate) fn run(beeline_path: &Path, rounds: u32) -> Result<()> {
    let programs = Programs {
        calls: build::native("calls", &["targets/calls.c"], &[])?,
        kernel_probe: build::native("kernel_probe", &["targets/kernel_probe.c"], &["-lbpf"])?,
        object: build::object("programs/bench.bpf.c")?,
    };
    println!(
        "\nprobe cost, ns a call: min / median / max of {rounds} rounds, net = median less un-probed median"
    );
    println!(
        "{:32} {:>8}  {:>29}  {:>9}  {:>8}",
        "", "variant", "min    median       max", "net", "kernel/x"
    );
    for case in CASES {
        measure(case, &programs, beeline_path, rounds).with_context(|| case.name)?;
    }
    measure_many(&programs, beeline_path, rounds).context(MANY)
}

const MANY: &str = "4096 probes in random order";

/// As many different functions, each with a probe of its own, called in random order: the stubs are not at hand.
fn measure_many(programs: &Programs, beeline_path: &Path, rounds: u32) -> Result<()> {
    let many = build::native("many", &["targets/many.c"], &[])?;
    let spawn = || Process::spawn_pinned(&mut Command::new(&many));
    for program in ["empty", "count_percpu"] {
        let (mut plain, mut ours) = (spawn()?, spawn()?);
        let store = Store::new();
        let object = programs.object.to_string_lossy();
        let link = format!("{program}=uprobe.multi:{}:many_*", many.display());
        beeline(beeline_path, &store, &["load", &object, "--attach", &link])?;
        beeline(beeline_path, &store, &["attach", &ours.pid()])?;
        let [mut base, mut with_ours] = [(); 2].map(|()| Samples::default());
        for _ in 0..rounds {
            base.push(sample(&mut plain, "many", CALLS)?);
            with_ours.push(sample(&mut ours, "many", CALLS)?);
        }
        beeline(beeline_path, &store, &["detach", &ours.pid()])?;
        beeline(beeline_path, &store, &["unload", "bench"])?;
        report(&format!("{MANY}, {program}"), &base, &Samples::default(), &with_ours);
    }
    Ok(())
}

fn measure(case: &Case, programs: &Programs, beeline_path: &Path, rounds: u32) -> Result<()> {
    let spawn = || Process::spawn_pinned(&mut Command::new(&programs.calls));
    let (mut plain, mut in_kernel, mut ours) = (spawn()?, spawn()?, spawn()?);
    let mut kernel = kernel_probe(case, programs, &in_kernel);
    let store = Store::new();
    attach_ours(case, programs, beeline_path, &store, &ours)?;

    let [mut base, mut with_kernel, mut with_ours] = [(); 3].map(|()| Samples::default());
    for _ in 0..rounds {
        base.push(sample(&mut plain, case.function, CALLS)?);
        if let Ok(kernel) = &mut kernel {
            with_kernel.push(sample(&mut in_kernel, case.function, CALLS_KERNEL)?);
            kernel.ask("empty")?;
        }
        // A breakpoint costs as much as the kernel's.
        let calls = if case.name == NO_ROOM { CALLS_KERNEL } else { CALLS };
        with_ours.push(sample(&mut ours, case.function, calls)?);
        if case.programs.contains(&"send_event") {
            beeline(beeline_path, &store, &["events", "ring", "--no-follow", "--json"])?;
        }
    }
    beeline(beeline_path, &store, &["detach", &ours.pid()])?;
    beeline(beeline_path, &store, &["unload", "bench"])?;
    report(case.name, &base, &with_kernel, &with_ours);
    Ok(())
}

fn kernel_probe(case: &Case, programs: &Programs, target: &Process) -> Result<Process> {
    let mut command = Command::new(&programs.kernel_probe);
    command
        .arg(&programs.object)
        .arg(target.pid())
        .arg(&programs.calls)
        .arg(case.function)
        .args(case.programs);
    Process::spawn(&mut command)
}

fn attach_ours(case: &Case, programs: &Programs, path: &Path, store: &str, target: &Process) -> Result<()> {
    let object = programs.object.to_string_lossy().into_owned();
    let mut arguments = vec!["load".to_owned(), object];
    for program in case.programs {
        let (name, kind) = match program.strip_suffix(":ret") {
            Some(name) => (name, "uretprobe"),
            None => (*program, "uprobe"),
        };
        arguments.push("--attach".to_owned());
        arguments.push(format!("{name}={kind}:{}:{}", programs.calls.display(), case.function));
    }
    beeline(path, store, &arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
    // Only where no jump fits: the others have jumps all the same.
    beeline(path, store, &["attach", "--breakpoints", &target.pid()])?;
    Ok(())
}

/// Nanoseconds of one call.
fn sample(target: &mut Process, function: &str, calls: u64) -> Result<f64> {
    let answer = target.ask(&format!("{function} {calls}"))?;
    let thousandths: f64 = answer.split(' ').next().unwrap_or_default().parse()?;
    Ok(thousandths / 1000.0)
}

fn report(name: &str, base: &Samples, kernel: &Samples, ours: &Samples) {
    println!("{name:32} {:>8}  {}", "none", base.spread());
    let net = |samples: &Samples| samples.median() - base.median();
    if kernel.is_empty() {
        println!("{:32} {:>8}  not measured (see benches/README.md)", "", "kernel");
    } else {
        println!("{:32} {:>8}  {}  {:9.2}", "", "kernel", kernel.spread(), net(kernel));
    }
    let ratio = if kernel.is_empty() { "-".to_owned() } else { format!("{:.0}", net(kernel) / net(ours)) };
    println!("{:32} {:>8}  {}  {:9.2}  {ratio:>8}", "", "beeline", ours.spread(), net(ours));
}
