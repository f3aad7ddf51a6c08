//! Everything at once: an entry probe and a return probe on every function of whole libraries, while real programs do their
//! own work and have to come to the same results as without.
//!
//! ```text
//! main ─▶ for each case:  the program alone                       ─▶ output, exit status  ─┐
//!                         this binary as `run …` ─start─▶ program ─▶ output, exit status  ─┴▶ the same?
//!                                              └─▶ report: placed, refused and why, hits
//! ```
//!
//! Its own `main`: probes are put in by a child of ours, whose output is that of the program.
//! `BEELINE_SOAK` is the number of rounds; without it a slice of the cases runs once. An argument chooses cases by name.
//! `BEELINE_REPORT` prints which probes are placed, and why others are refused. CPython's own tests are Debian's
//! `libpython3.11-testsuite`; a case whose program is not there says that it is skipped.

mod cases;
mod probed;
#[path = "../support/mod.rs"]
mod support;
mod workloads;

use cases::{Case, Verdict};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == probed::COMMAND) {
        return probed::main(&arguments[1..]);
    }
    if arguments.iter().any(|argument| argument == "--list") {
        println!("everything_at_once: test");
        return ExitCode::SUCCESS;
    }
    let filter: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let rounds: Option<u64> = std::env::var("BEELINE_SOAK").ok().and_then(|text| text.parse().ok());
    let all = cases::all();
    let chosen = |case: &&Case| {
        let named = filter.iter().any(|part| case.name.contains(part.as_str()));
        named || (filter.is_empty() || *filter[0] == "everything") && (rounds.is_some() || case.in_slice)
    };
    let (mut passed, mut failed, mut skipped) = (0, Vec::new(), 0);
    for round in 0..rounds.unwrap_or(1) {
        for case in all.iter().filter(chosen) {
            match cases::run(case, rounds.is_some()) {
                Verdict::Passed(summary) => {
                    println!("{}: {summary}", case.name);
                    passed += 1;
                }
                Verdict::Skipped(reason) => {
                    println!("skipped: {}: {reason}", case.name);
                    skipped += 1;
                }
                Verdict::Failed(reason) => {
                    println!("{} FAILED in round {round}: {reason}", case.name);
                    failed.push(case.name);
                }
            }
        }
    }
    println!("\neverything at once: {passed} passed, {} failed, {skipped} skipped {failed:?}", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
