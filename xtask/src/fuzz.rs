//! Random programs against the verifier: the slices of the test suite, as long as one likes.

use crate::workspace::{cargo, run};
use anyhow::Result;

/// Options of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Programs that it accepts are run, and compared with all that was claimed of them
    Verifier(Verifier),
}

#[derive(clap::Args)]
struct Verifier {
    /// How many programs
    #[arg(default_value_t = 1_000_000)]
    count: u64,
    /// Which family of programs
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of the first program
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Threads that work; one for each CPU when not given
    #[arg(long)]
    threads: Option<usize>,
    /// Compare verdicts with this machine's kernel (root)
    #[arg(long)]
    kernel: bool,
    /// Compile so many of a hundred accepted programs too, and compare results
    #[arg(long, default_value_t = 1)]
    compiled: u64,
    /// Print one program and what comes of it, instead
    #[arg(long, value_name = "CASE")]
    show: Option<u64>,
}

/// Runs it to its end; it fails when anything was found.
pub(crate) fn run_all(options: &Options) -> Result<()> {
    let What::Verifier(verifier) = &options.what;
    let mut command = cargo();
    command.args(["run", "--release", "--quiet", "--package", "beeline-adversary", "--"]);
    for (name, value) in [
        ("--seed", Some(verifier.seed)),
        ("--first", Some(verifier.first)),
        ("--compiled", Some(verifier.compiled)),
        ("--threads", verifier.threads.map(|threads| threads as u64)),
        ("--show", verifier.show),
    ] {
        if let Some(value) = value {
            command.args([name, &value.to_string()]);
        }
    }
    if verifier.kernel {
        command.arg("--kernel");
    }
    command.arg(verifier.count.to_string());
    run(&mut command)
}
