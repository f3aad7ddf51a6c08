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
mod counts;
mod probed;
#[path = "../support/mod.rs"]
mod support;
mod workloads;

use cases::Verdict;
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
    let is_wanted = |name: &str, by_default: bool| {
        let named = filter.iter().any(|part| name.contains(part.as_str()));
        named || (filter.is_empty() || *filter[0] == "everything") && by_default
    };
    let mut tally = Tally::default();
    for round in 0..rounds.unwrap_or(1) {
        for case in
            cases::all().iter().filter(|case| is_wanted(&case.name, rounds.is_some() || case.in_slice))
        {
            tally.enter(&case.name, round, cases::run(case, rounds.is_some()));
        }
        if is_wanted(counts::NAME, true) {
            tally.enter(counts::NAME, round, cases::in_folder(counts::run));
        }
    }
    let Tally { passed, failed, skipped } = tally;
    println!("\neverything at once: {passed} passed, {} failed, {skipped} skipped {failed:?}", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How the cases went.
#[derive(Default)]
struct Tally {
    passed: u32,
    failed: Vec<String>,
    skipped: u32,
}

impl Tally {
    fn enter(&mut self, name: &str, round: u64, verdict: Verdict) {
        match verdict {
            Verdict::Passed(summary) => {
                println!("{name}: {summary}");
                self.passed += 1;
            }
            Verdict::Skipped(reason) => {
                println!("skipped: {name}: {reason}");
                self.skipped += 1;
            }
            Verdict::Failed(reason) => {
                println!("{name} FAILED in round {round}: {reason}");
                self.failed.push(name.to_owned());
            }
        }
    }
}
