//! Compiles what is measured, and says what it is measured on.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

fn output_dir() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let dir = program.parent().context("a program lies in a folder")?.join("bench-targets");
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// Compiles to a file that is not there until it is complete: benchmarks may run beside each other.
fn compile(command: &mut Command, output: &Path) -> Result<()> {
    let mut incomplete = output.as_os_str().to_owned();
    incomplete.push(format!(".{}", std::process::id()));
    run(command.arg("-o").arg(&incomplete))?;
    std::fs::rename(&incomplete, output).with_context(|| format!("cannot write {}", output.display()))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Compiles C files of `benches/` for this machine; the first names the result.
pub(crate) fn native(name: &str, sources: &[&str], libraries: &[&str]) -> Result<PathBuf> {
    let output = output_dir()?.join(name);
    let sources = sources.iter().map(|source| root().join(source));
    compile(Command::new("gcc").arg("-O2").args(sources).args(libraries), &output)?;
    Ok(output)
}

/// Compiles an eBPF object of `benches/programs`.
pub(crate) fn object(source: &str) -> Result<PathBuf> {
    let name = Path::new(source).with_extension("o");
    compile_object(source, &output_dir()?.join(name.file_name().context("a file name")?), &[])
}

/// The same under a name of its own, with macros (`-DNAME=VALUE`).
pub(crate) fn object_variant(source: &str, name: &str, defines: &[String]) -> Result<PathBuf> {
    compile_object(source, &output_dir()?.join(name).with_extension("bpf.o"), defines)
}

fn compile_object(source: &str, output: &Path, defines: &[String]) -> Result<PathBuf> {
    let machine = format!("/usr/include/{}-linux-gnu", std::env::consts::ARCH);
    let mut command = Command::new("clang");
    command.args(["-g", "-O2", "-target", "bpf", "-D__TARGET_ARCH_x86", "-I", &machine]);
    compile(command.args(defines).arg("-c").arg(root().join(source)), output)?;
    Ok(output.to_path_buf())
}

/// CPU, number of CPUs, kernel: what the figures hold for.
pub(crate) fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map(|(_, name)| name);
    let cpus = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{} x {cpus}, Linux {}", model.unwrap_or("unknown CPU"), kernel.trim())
}
