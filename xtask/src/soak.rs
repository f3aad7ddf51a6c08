//! Long runs: the bounded slices of the test suite, with counts or durations of one's choice.

use crate::workspace::cargo;
use crate::{objects, setup, workspace};
use anyhow::{Result, bail};

/// Options of `cargo xtask soak`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// What to run
    #[arg(value_enum)]
    what: What,
    /// How many rounds
    #[arg(default_value_t = 1000)]
    rounds: u64,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum What {
    /// kill -9 of the command at random moments of load, attach, detach and unload
    Kill,
    /// attach and detach on a server under load
    Cycles,
    /// kill -9 of the injector alone, at random moments of attach and detach
    Inject,
    /// kill -9 of processes that use a map
    Maps,
    /// Every function of whole libraries probed while CPython's tests, OpenSSL, shells, tools and redis work
    Everything,
    /// Random programs in the interpreter and in the compiler
    Vm,
    /// Damaged object files
    Object,
}

/// The tests read their count from the environment; each ends with a summary line and fails when anything was lost.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure(setup::Purpose::Test)?;
    workspace::beeline()?;
    objects::build_all()?;
    let (package, filter, count) = match options.what {
        What::Kill => ("beeline-tests", "kill", "BEELINE_SOAK"),
        What::Cycles => ("beeline-tests", "cycles", "BEELINE_SOAK"),
        What::Inject => ("beeline-inject", "kill", "BEELINE_SOAK"),
        What::Maps => ("beeline-maps", "survive_kills", "BEELINE_KILL_ROUNDS"),
        What::Everything => ("beeline-inject", "everything", "BEELINE_SOAK"),
        What::Vm => ("beeline-vm", "differential", "BEELINE_DIFFERENTIAL"),
        What::Object => ("beeline-object", "mutated", "BEELINE_FUZZ_CASES"),
    };
    let mut command = cargo();
    command
        .args(["test", "--release", "--package", package, "--", filter, "--nocapture", "--test-threads=1"])
        .env(count, options.rounds.to_string());
    if crate::workspace::run(&mut command).is_err() {
        bail!("soak failed");
    }
    Ok(())
}
