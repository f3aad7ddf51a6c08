//! Programs without a probe: native code, the compiler, the interpreter.

use crate::build;
use crate::samples::Samples;
use anyhow::{Context, Result, bail};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Program, length of its memory, repetitions of a sample in native and compiled code.
const CASES: &[(&str, usize, u64)] =
    &[("ret0", 0, 2_000_000), ("sum", 0, 5_000), ("prime", 0, 200), ("memory", 1024, 2_000)];

/// Runs all cases in both engines.
pub(crate) fn run(beeline_path: &Path, rounds: u32) -> Result<()> {
    let vm = beeline_path.with_file_name("bpf-vm");
    println!("\nprograms alone, ns a run: min / median / max of {rounds} rounds; over = median over native");
    println!("{:12} {:>12}  {:>29}  {:>6}", "", "engine", "min    median       max", "over");
    let mut product = 1.0;
    for &(name, memory, repeat) in CASES {
        let source = format!("programs/vm_{name}.c");
        let native = build::native(&format!("vm_{name}"), &["programs/native.c", &source], &[])?;
        let code = bytecode(&source)?;
        let [mut plain, mut compiled, mut interpreted] = [(); 3].map(|()| Samples::default());
        for _ in 0..rounds {
            plain.push(native_sample(&native, repeat, memory)?);
            compiled.push(engine_sample(&vm, &code, memory, repeat, &[])?);
            interpreted.push(engine_sample(&vm, &code, memory, (repeat / 20).max(10), &["--interpreter"])?);
        }
        println!("{name:12} {:>12}  {}", "native", plain.spread());
        for (engine, samples) in [("compiled", &compiled), ("interpreter", &interpreted)] {
            println!(
                "{:12} {engine:>12}  {}  {:6.2}",
                "",
                samples.spread(),
                samples.median() / plain.median()
            );
        }
        product *= compiled.median() / plain.median();
    }
    println!("geometric mean of compiled over native: {:.2}", product.powf(1.0 / CASES.len() as f64));
    Ok(())
}

/// The program's instructions as blank-separated hexadecimal bytes.
fn bytecode(source: &str) -> Result<String> {
    let object = build::object(source)?;
    let flat = object.with_extension("bin");
    let status = Command::new("llvm-objcopy")
        .args(["-O", "binary", "--only-section=.text"])
        .arg(&object)
        .arg(&flat)
        .status()
        .context("llvm-objcopy is missing (package llvm)")?;
    if !status.success() {
        bail!("llvm-objcopy failed on {}", object.display());
    }
    Ok(std::fs::read(flat)?.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "))
}

fn native_sample(program: &Path, repeat: u64, memory: usize) -> Result<f64> {
    let output = Command::new(program).args([repeat.to_string(), memory.to_string()]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.split(' ').next().unwrap_or_default().parse::<f64>()? / 1000.0)
}

fn engine_sample(vm: &Path, code: &str, memory: usize, repeat: u64, options: &[&str]) -> Result<f64> {
    let mut command = Command::new(vm);
    command.args(options).args(["--repeat", &repeat.to_string()]);
    if memory > 0 {
        command.arg("00".repeat(memory));
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("piped")?.write_all(code.as_bytes())?;
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("ns_per_run:"));
    Ok(line.with_context(|| format!("bpf-vm said: {text}"))?.trim().parse()?)
}
