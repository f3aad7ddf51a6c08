//! What is run, and how it is told that the probes have changed nothing.

use crate::probed::{COMMAND, NOT_STARTED};
use crate::workloads;
use beeline_watchdog::Watchdog;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

/// What is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probes {
    Entries,
    Returns,
    Both,
    /// Every so many instructions, and all entries.
    Inside(usize),
    /// Entries and returns, by breakpoints.
    Breakpoints,
}

/// Makes the command line of a program in the given folder; without something that it needs, the reason.
pub(crate) type Prepare = Box<dyn Fn(&Path) -> Result<Vec<String>, String>>;

/// A program and the files all of whose functions are probed while it runs.
pub(crate) struct Case {
    pub(crate) name: String,
    /// Names or paths of the probed files.
    pub(crate) files: &'static [&'static str],
    /// The program with its arguments.
    pub(crate) command: Prepare,
    /// What of the output does not depend on time.
    pub(crate) essence: fn(&str) -> String,
    /// What works with the program from outside until it ends, and what it found.
    pub(crate) driver: Option<Driver>,
    /// Least number of hits.
    pub(crate) hits: u64,
    /// Some of what it does may fail, without probes too, as long as the same fails with them; and not every time, so that one
    /// of several runs without probes has to come to what the run with them did.
    pub(crate) may_fail: bool,
    /// It is part of every test run.
    pub(crate) in_slice: bool,
    /// What is planted in a long run.
    pub(crate) rounds: &'static [Round],
}

/// What is planted, and whether the programs want all of the context and change every register that they may change.
pub(crate) type Round = (Probes, bool);

/// Uses a program that serves in the given folder, ends it, and tells what it answered.
pub(crate) type Driver = fn(&Path) -> Result<String, String>;

/// How a case went.
pub(crate) enum Verdict {
    Passed(String),
    Skipped(String),
    Failed(String),
}

pub(crate) fn all() -> Vec<Case> {
    workloads::cases()
}

/// All ways to plant probes. A test run has the first two.
pub(crate) const ROUNDS: &[Round] = &[
    (Probes::Both, true),
    (Probes::Inside(29), true),
    (Probes::Breakpoints, true),
    (Probes::Entries, false),
    (Probes::Returns, false),
    (Probes::Both, false),
    (Probes::Inside(7), false),
];
const ROUNDS_OF_SLICE: usize = 2;

pub(crate) fn run(case: &Case, soak: bool) -> Verdict {
    let rounds = if soak { case.rounds } else { &ROUNDS[..ROUNDS_OF_SLICE] };
    in_folder(|folder| run_in(case, folder, rounds))
}

/// Runs something in a scratch folder of its own.
pub(crate) fn in_folder(run: impl FnOnce(&Path) -> Verdict) -> Verdict {
    let folder =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("everything-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a scratch folder");
    let verdict = run(&folder);
    let _ = std::fs::remove_dir_all(&folder);
    verdict
}

fn run_in(case: &Case, folder: &Path, rounds: &[Round]) -> Verdict {
    let command = match (case.command)(folder) {
        Ok(command) => command,
        Err(reason) => return Verdict::Skipped(reason),
    };
    let alone = execute(case, &command, folder);
    if !alone.succeeded() && (!case.may_fail || alone.essence(case).is_empty()) {
        return Verdict::Skipped(format!("fails without probes: {}", alone.shown()));
    }
    let mut expected = vec![alone.result(case)];
    let mut summary = String::new();
    for &round in rounds {
        match run_round(case, folder, &command, round, &mut expected) {
            Ok(done) => summary += &done,
            Err(reason) => return Verdict::Failed(reason),
        }
    }
    Verdict::Passed(summary)
}

/// Runs the program with probes once; what was placed and hit. `expected` is what it does without.
fn run_round(
    case: &Case,
    folder: &Path,
    command: &[String],
    (probes, heavy): Round,
    expected: &mut Vec<Results>,
) -> Result<String, String> {
    let report_file = folder.join("report");
    let _ = std::fs::remove_file(&report_file);
    let output = execute(case, &probed(case, command, probes, heavy, &report_file), folder);
    let what = format!("{probes:?}{}", if heavy { ", whole context" } else { "" });
    if output.status.code() == Some(i32::from(NOT_STARTED)) {
        return Err(format!("{what}: {}", output.shown()));
    }
    let report = std::fs::read_to_string(&report_file).unwrap_or_default();
    let found = output.result(case);
    if output.driven.is_err()
        || !is_among(&found, expected, || execute(case, command, folder).result(case), case)
    {
        let difference = difference(&expected[0].essence, &found.essence);
        return Err(format!("{what}: {}\n{report}{difference}", output.shown()));
    }
    let hits: u64 = line(&report, "hits: ").split(' ').filter_map(|n| n.parse::<u64>().ok()).sum();
    if hits < case.hits {
        return Err(format!("{what}: only {hits} hits\n{report}"));
    }
    if std::env::var_os("BEELINE_REPORT").is_some() {
        println!("{report}");
    }
    let (entries, returns) = (line(&report, "Entry: "), line(&report, "Return: "));
    Ok(format!("[{what}: {entries}/{returns} sites, {hits} hits] "))
}

/// Runs without probes that a run with them may be like, where not every run is like the other.
const RUNS_MAX: usize = 4;

/// `found` is one of the `expected`, or what another run without probes comes to.
fn is_among(found: &Results, expected: &mut Vec<Results>, again: impl Fn() -> Results, case: &Case) -> bool {
    while !expected.contains(found) {
        if !case.may_fail || expected.len() >= RUNS_MAX {
            return false;
        }
        expected.push(again());
    }
    true
}

/// The command that runs `command` with probes.
fn probed(case: &Case, command: &[String], probes: Probes, heavy: bool, report: &Path) -> Vec<String> {
    let own = std::env::current_exe().expect("this binary");
    let mut words = vec![own.display().to_string(), COMMAND.to_owned()];
    if probes != Probes::Returns {
        words.push("--entry".to_owned());
    }
    match probes {
        Probes::Entries => {}
        Probes::Returns | Probes::Both => words.push("--return".to_owned()),
        Probes::Breakpoints => words.extend(["--return", "--breakpoints"].map(str::to_owned)),
        Probes::Inside(step) => words.extend(["--inside".to_owned(), step.to_string()]),
    }
    if heavy {
        words.push("--heavy".to_owned());
    }
    for file in case.files {
        words.extend(["--file".to_owned(), (*file).to_owned()]);
    }
    words.extend(["--report".to_owned(), report.display().to_string(), "--".to_owned()]);
    words.extend(command.iter().cloned());
    words
}

/// What is compared of two runs.
#[derive(PartialEq, Eq)]
struct Results {
    status: Option<i32>,
    essence: String,
}

/// What a program did.
struct Outcome {
    status: ExitStatus,
    text: String,
    driven: Result<String, String>,
}

impl Outcome {
    fn succeeded(&self) -> bool {
        self.status.success() && self.driven.is_ok()
    }

    fn result(&self, case: &Case) -> Results {
        Results { status: self.status.code(), essence: self.essence(case) }
    }

    fn essence(&self, case: &Case) -> String {
        (case.essence)(&self.text) + self.driven.as_deref().unwrap_or_default()
    }

    /// The end of what it said.
    fn shown(&self) -> String {
        let from = self.text.char_indices().rev().nth(1500).map_or(0, |(at, _)| at);
        let driven = self.driven.as_ref().err().map(String::as_str).unwrap_or_default();
        format!("{}\n{}\n{driven}", self.status, &self.text[from..])
    }
}

/// A test suite under probes that want the whole context takes half an hour on a busy machine.
const LIMIT: Duration = Duration::from_secs(3 * 3600);

fn execute(case: &Case, command: &[String], folder: &Path) -> Outcome {
    let _watchdog = Watchdog::with_limit(&case.name, LIMIT);
    let mut child = Command::new(&command[0]);
    child.args(&command[1..]).current_dir(folder).stdin(Stdio::null()).env("LC_ALL", "C.UTF-8");
    child.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = child.spawn().unwrap_or_else(|error| panic!("{}: {error}", command[0]));
    let pid = child.id();
    let output = std::thread::spawn(move || child.wait_with_output());
    let driven = case.driver.map_or(Ok(String::new()), |drive| drive(folder));
    if driven.is_err() {
        // What serves does not end by itself. The probed program is our grandchild, which goes when it is told.
        let _ = Command::new("kill").args(["-TERM", &pid.to_string()]).status();
    }
    let output = output.join().expect("no panic").expect("a child's output");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Outcome { status: output.status, text, driven }
}

fn line<'a>(report: &'a str, start: &str) -> &'a str {
    report.lines().find_map(|line| line.strip_prefix(start)).unwrap_or_default()
}

/// The first lines that differ.
fn difference(expected: &str, found: &str) -> String {
    let pairs = expected.lines().zip(found.lines()).enumerate();
    let first = pairs.filter(|(_, (a, b))| a != b).take(3);
    let mut text: String = first.map(|(n, (a, b))| format!("line {n}:\n- {a}\n+ {b}\n")).collect();
    text += &format!("{} lines expected, {} found\n", expected.lines().count(), found.lines().count());
    text
}
