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
    /// `cycles`: on this alone
    #[arg(long, value_enum)]
    target: Option<Target>,
    /// `cycles`: with system calls traced, not functions
    #[arg(long)]
    system_calls: bool,
    /// `everything`: the programs whose names contain this alone, `go` or `python-tests: test_os`
    #[arg(long)]
    case: Option<String>,
}

/// What attach/detach cycles are made on.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Target {
    /// Four worker processes
    Nginx,
    /// Four threads for input and output
    Redis,
    /// Five hundred threads, most of them blocked
    Threads,
    /// A server of the JavaScript runtime
    Node,
    /// A server of the Java virtual machine
    Java,
    /// A server written in Go
    Go,
}

impl Target {
    /// Its name in those of tests.
    fn name(self) -> &'static str {
        match self {
            Target::Nginx => "nginx",
            Target::Redis => "redis",
            Target::Threads => "threads",
            Target::Node => "node",
            Target::Java => "java",
            Target::Go => "go",
        }
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum What {
    /// kill -9 of the command at random moments of load, attach, detach and unload, of owners of links, of targets
    Kill,
    /// attach and detach on servers under load
    Cycles,
    /// Exceptions, jumps, coroutines, signals, cancelled threads, tail calls, deep recursion under return probes
    Exceptions,
    /// fork, exec, vfork, clone, cancelled threads, signals with system calls traced
    Calls,
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
    if matches!(options.what, What::Everything) {
        setup::python_tests()?;
    }
    workspace::beeline()?;
    objects::build_all()?;
    let cycled = if options.system_calls { "system_calls_on_" } else { "cycles_on_" };
    let cycles = format!("{cycled}{}", options.target.map_or("", Target::name));
    let (package, filter, count) = match options.what {
        What::Kill => ("beeline-tests", "kill", "BEELINE_SOAK"),
        What::Cycles => ("beeline-tests", cycles.as_str(), "BEELINE_SOAK"),
        What::Calls => ("beeline-tests", "storm_of_calls", "BEELINE_SOAK"),
        What::Exceptions => ("beeline-tests", "exceptions", "BEELINE_SOAK"),
        What::Inject => ("beeline-inject", "kill", "BEELINE_SOAK"),
        What::Maps => ("beeline-maps", "survive_kills", "BEELINE_KILL_ROUNDS"),
        What::Everything => {
            ("beeline-inject", options.case.as_deref().unwrap_or("everything"), "BEELINE_SOAK")
        }
        What::Vm => ("beeline-vm", "differential", "BEELINE_DIFFERENTIAL"),
        What::Object => ("beeline-object", "mutated", "BEELINE_FUZZ_CASES"),
    };
    let mut command = cargo();
    command.args(["test", "--release", "--package", package]);
    if matches!(options.what, What::Everything) {
        // A case's name is no test's in the others.
        command.args(["--test", "everything"]);
    }
    command.args(["--", filter, "--nocapture", "--test-threads=1"]).env(count, options.rounds.to_string());
    if crate::workspace::run(&mut command).is_err() {
        bail!("soak failed");
    }
    Ok(())
}
