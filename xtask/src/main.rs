//! `cargo xtask`: everything that is done to the project, as Rust.
//!
//! Each command is one file. A command installs what it needs with apt where it may ([`setup`]) and says exactly what
//! to install where it may not.

mod bench;
mod demo;
mod fuzz;
mod objects;
mod record;
mod setup;
mod soak;
mod test;
mod verdicts;
mod workspace;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, test and demonstration tasks of beeline")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Count malloc() calls of a real program, by `start` and by `attach`
    Demo,
    /// Run every check that a change has to pass
    Test(test::Options),
    /// Measure: un-probed call, the kernel's uprobe and beeline, interleaved
    Bench(bench::Options),
    /// Long runs: kills, attach/detach cycles, random programs
    Soak(soak::Options),
    /// Random programs against the verifier, with as many as one likes
    Fuzz(fuzz::Options),
    /// Print a line of JSON for each program of a corpus: verdict, reason, return value
    Verdicts(verdicts::Options),
    /// Install what builds and tests need (or say what is missing)
    Setup,
    /// Compile the examples' eBPF programs and their targets into target/examples
    Examples,
    /// Record anew what bpftrace makes of the scripts in the verifier's tests
    Record,
    /// Check formatting
    FmtCheck,
    /// clippy over everything, warnings are errors
    Lint,
}

fn main() -> Result<()> {
    match Arguments::parse().task {
        Task::Demo => demo::run_demo(),
        Task::Test(options) => test::run_all(&options),
        Task::Bench(options) => bench::run_all(&options),
        Task::Soak(options) => soak::run(&options),
        Task::Fuzz(options) => fuzz::run_all(&options),
        Task::Verdicts(options) => verdicts::run(&options),
        Task::Setup => setup::ensure(setup::Purpose::Test),
        Task::Examples => {
            setup::ensure(setup::Purpose::Demo)?;
            for built in objects::build_all()? {
                println!("{}", built.display());
            }
            Ok(())
        }
        Task::Record => record::run_all(),
        Task::FmtCheck => test::fmt_check(),
        Task::Lint => test::lint(),
    }
}
