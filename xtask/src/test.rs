//! Every check that a change has to pass, in the order in which they fail fastest.

use crate::workspace::{cargo, shown};
use crate::{objects, setup, workspace};
use anyhow::{Context, Result, bail};
use std::time::{Duration, Instant};

/// What a step of tests may take. None takes a quarter of it on two busy cores; building is not a part of it.
const TESTS_MAX: Duration = Duration::from_secs(20 * 60);

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Leave out the end-to-end tests
    #[arg(long)]
    fast: bool,
    /// Only tests whose name contains this
    filter: Option<String>,
}

/// Formatting, lints, unit tests, end-to-end tests.
pub(crate) fn run_all(options: &Options) -> Result<()> {
    setup::ensure(setup::Purpose::Test)?;
    if options.filter.is_none() {
        step("formatting", fmt_check)?;
        step("lints", lint)?;
    }
    step("build", || {
        workspace::beeline()?;
        workspace::run(cargo().args(["build", "--release", "--package", "beeline-vm"]))?;
        objects::build_all().map(drop)
    })?;
    step("unit tests", || test(&["--workspace", "--exclude", "beeline-tests"], options))?;
    if !options.fast {
        // One at a time: they measure whole processes, and two cores are enough for one such test.
        step("end-to-end tests", || {
            test(&["--package", "beeline-tests", "--", "--test-threads=1"], options)
        })?;
    }
    Ok(())
}

fn test(selection: &[&str], options: &Options) -> Result<()> {
    let mut command = cargo();
    command.args(["test", "--release", "--no-fail-fast"]).args(selection);
    if let Some(filter) = &options.filter {
        if !selection.contains(&"--") {
            command.arg("--");
        }
        command.arg(filter);
    }
    workspace::run(cargo().args(["test", "--release", "--no-run", "--quiet"]).args(packages(selection)))?;
    let status = beeline_watchdog::run(&mut command, TESTS_MAX).with_context(|| shown(&command))?;
    if !status.success() {
        bail!("{} ended with {status}", shown(&command));
    }
    Ok(())
}

/// What is said to cargo, not to the tests.
fn packages<'a>(selection: &'a [&'a str]) -> &'a [&'a str] {
    selection.split(|&word| word == "--").next().unwrap_or_default()
}

/// `cargo fmt --check` over the workspace.
pub(crate) fn fmt_check() -> Result<()> {
    run_step(cargo().args(["fmt", "--all", "--check"]), "run `cargo fmt --all`")
}

/// clippy with warnings as errors.
pub(crate) fn lint() -> Result<()> {
    let mut command = cargo();
    command.args(["clippy", "--workspace", "--all-targets", "--release", "--quiet", "--", "-D", "warnings"]);
    run_step(&mut command, "clippy found something")
}

fn run_step(command: &mut std::process::Command, advice: &str) -> Result<()> {
    if !command.status()?.success() {
        bail!("{}: {advice}", shown(command));
    }
    Ok(())
}

fn step(name: &str, action: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("== {name}");
    let start = Instant::now();
    action()?;
    eprintln!("== {name}: passed in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}
