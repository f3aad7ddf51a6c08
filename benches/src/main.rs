//! Benchmarks: the un-probed call, the kernel's uprobe and beeline in one interleaved run.
//!
//! Every figure is printed with what it was measured on. Targets are pinned to one CPU; each round measures every
//! variant once, so that a disturbance hits all of them alike; medians are compared.

mod attach;
mod build;
mod probes;
mod process;
mod samples;
mod server;
mod system_calls;
mod verifier;
mod vm;

use anyhow::Result;
use clap::Parser;
use std::path::PathBuf;

#[derive(Parser)]
struct Arguments {
    /// The `beeline` command to measure
    #[arg(long)]
    beeline: PathBuf,
    /// Rounds of each interleaved run
    #[arg(long, default_value_t = 15)]
    rounds: u32,
    /// probes, syscalls, nginx (the end of syscalls), vm, verifier, attach; all when none is named
    names: Vec<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let wanted = |name: &str| arguments.names.is_empty() || arguments.names.iter().any(|it| it == name);
    println!("{}", build::machine());
    if wanted("probes") {
        probes::run(&arguments.beeline, arguments.rounds)?;
    }
    if wanted("syscalls") {
        system_calls::run(&arguments.beeline, arguments.rounds)?;
    }
    if wanted("syscalls") || wanted("nginx") {
        server::run(&arguments.beeline, arguments.rounds)?;
    }
    if wanted("vm") {
        vm::run(&arguments.beeline, arguments.rounds)?;
    }
    if wanted("verifier") {
        verifier::run(&arguments.beeline, arguments.rounds)?;
    }
    if wanted("attach") {
        attach::run(&arguments.beeline, arguments.rounds)?;
    }
    Ok(())
}
