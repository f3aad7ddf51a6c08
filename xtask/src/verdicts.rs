//! `cargo xtask verdicts`: the verifier's verdict on each program of a corpus, as lines of JSON.

use crate::workspace::{self, cargo};
use anyhow::{Result, bail};
use std::path::PathBuf;
use std::process::Command;

/// Options of `cargo xtask verdicts`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Files with a program a line, in JSON; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// Cargo's messages go to standard error, the answers to standard output.
pub(crate) fn run(options: &Options) -> Result<()> {
    let build = ["build", "--release", "--quiet", "--package", "beeline-vm", "--bin", "verdicts"];
    workspace::run(cargo().args(build))?;
    let status =
        Command::new(workspace::target_dir().join("release/verdicts")).args(&options.files).status()?;
    if !status.success() {
        bail!("verdicts ended with {status}");
    }
    Ok(())
}
