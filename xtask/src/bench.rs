//! Runs the benchmarks of `benches/`.

use crate::workspace::{cargo, run};
use crate::{objects, setup, workspace};
use anyhow::Result;

/// Options of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Which benchmarks (probes, syscalls, nginx, vm, verifier, attach); all when none is named
    names: Vec<String>,
    /// Rounds of the interleaved run
    #[arg(long, default_value_t = 15)]
    rounds: u32,
}

/// Builds and runs them.
pub(crate) fn run_all(options: &Options) -> Result<()> {
    setup::ensure(setup::Purpose::Test)?;
    let beeline = workspace::beeline()?;
    run(cargo().args(["build", "--release", "--package", "beeline-vm"]))?;
    objects::build_all()?;
    run(cargo()
        .args(["run", "--release", "--quiet", "--package", "beeline-benches", "--"])
        .arg("--beeline")
        .arg(&beeline)
        .args(["--rounds", &options.rounds.to_string()])
        .args(&options.names))
}
