//! Many cases on several threads: what was found, and how much of the verifier was reached.

use crate::cases::{Case, Origin, hex, listing};
use crate::compiled;
use crate::kernel::{Kernel, Verdict};
use crate::maps;
use crate::numbers::Numbers;
use crate::shrink::shrink;
use crate::trial::{Bench, Outcome, Work};
use beeline_verifier::{Options, Program};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Which family of cases.
    pub seed: u64,
    /// First case.
    pub first: u64,
    /// How many cases.
    pub count: u64,
    /// Threads that work.
    pub threads: usize,
    /// Runs of each accepted program.
    pub runs: u32,
    /// Compare verdicts with this machine's kernel.
    pub kernel: bool,
    /// Compile so many of a hundred accepted programs, and compare the results.
    pub compiled: u64,
}

/// A case in which the verifier is wrong.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Its number.
    pub index: u64,
    /// What is wrong.
    pub what: String,
    /// The program, made as small as it stays wrong.
    pub program: Program,
}

impl Finding {
    /// True when it says the same in other numbers.
    fn says(&self, what: &str) -> bool {
        let first = |text: &str| words_of(text.lines().next().unwrap_or_default());
        first(&self.what) == first(what)
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Program { prog_type, insns, .. } = &self.program;
        writeln!(f, "case {}: {}", self.index, self.what)?;
        write!(f, "program type {}\n{}hex: {}", prog_type.0, listing(insns), hex(insns))
    }
}

/// Sums over cases.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Cases by origin, and how many of them were accepted.
    pub cases: BTreeMap<Origin, (u64, u64)>,
    /// Accepted programs of which ten instructions or more were executed.
    pub substantial: u64,
    /// Runs that were cut off.
    pub cut: u64,
    /// Instructions executed, and looked at by the verifier in accepted programs.
    pub executed: u64,
    /// See `executed`.
    pub processed: u64,
    /// Refusals by their words, numbers left out.
    pub refusals: BTreeMap<String, u64>,
    /// Programs that the kernel accepts and we refuse, by the words of our refusal; with one case each.
    pub missed: BTreeMap<String, (u64, u64)>,
    /// Verdicts that were compared with the kernel's, and how many of them it accepts.
    pub compared: (u64, u64),
    /// Programs that were compiled and gave the same.
    pub compiled: u64,
    /// The slowest case: its time and number.
    pub slowest: (Duration, u64),
    /// Cases in which the verifier is wrong.
    pub findings: Vec<Finding>,
    /// More of them, not kept.
    pub more_findings: u64,
}

/// Most findings that are kept and made small.
const FINDINGS_MAX: usize = 12;

impl Tally {
    /// All cases, and accepted ones.
    pub fn total(&self) -> (u64, u64) {
        self.cases.values().fold((0, 0), |sum, &(all, accepted)| (sum.0 + all, sum.1 + accepted))
    }

    fn merge(&mut self, other: Tally) {
        for (origin, (all, accepted)) in other.cases {
            let entry = self.cases.entry(origin).or_default();
            *entry = (entry.0 + all, entry.1 + accepted);
        }
        for (reason, count) in other.refusals {
            *self.refusals.entry(reason).or_default() += count;
        }
        for (reason, (count, case)) in other.missed {
            let entry = self.missed.entry(reason).or_insert((0, case));
            entry.0 += count;
        }
        self.compared = (self.compared.0 + other.compared.0, self.compared.1 + other.compared.1);
        self.substantial += other.substantial;
        self.cut += other.cut;
        self.compiled += other.compiled;
        self.executed += other.executed;
        self.processed += other.processed;
        self.slowest = self.slowest.max(other.slowest);
        self.more_findings += other.more_findings;
        for finding in other.findings {
            self.keep(finding);
        }
    }

    fn keep(&mut self, finding: Finding) {
        if self.findings.len() < FINDINGS_MAX && !self.knows(&finding.what) {
            self.findings.push(finding);
        } else {
            self.more_findings += 1;
        }
    }

    /// True when a finding says the same in other numbers.
    fn knows(&self, what: &str) -> bool {
        self.findings.iter().any(|known| known.says(what))
    }

    /// The most frequent rows of a table.
    pub fn top<V: Ord + Copy>(rows: &BTreeMap<String, V>, most: usize) -> Vec<(&str, V)> {
        let mut rows = rows.iter().map(|(reason, &value)| (reason.as_str(), value)).collect::<Vec<_>>();
        rows.sort_by_key(|&(_, value)| std::cmp::Reverse(value));
        rows.truncate(most);
        rows
    }

    /// One line.
    pub fn summary(&self) -> String {
        let (all, accepted) = self.total();
        let share = |origin| {
            let (all, accepted) = self.cases.get(&origin).copied().unwrap_or_default();
            100.0 * accepted as f64 / all.max(1) as f64
        };
        let mut text = format!(
            "{all} programs, {accepted} accepted ({:.1} % of structured, {:.1} % of mutated, {:.1} % of noise), {} of them \
             substantial, {} instructions executed, {} runs cut off",
            share(Origin::Structured),
            share(Origin::Mutated),
            share(Origin::Noise),
            self.substantial,
            self.executed,
            self.cut,
        );
        if self.compared.0 > 0 {
            let missed: u64 = self.missed.values().map(|row| row.0).sum();
            let (compared, accepted) = self.compared;
            let _ = write!(
                text,
                "; compared with the kernel: {compared}, it accepts {accepted}, of them {missed} refused here"
            );
        }
        if self.compiled > 0 {
            let _ = write!(text, "; {} compiled", self.compiled);
        }
        let _ = write!(text, "; {} findings", self.findings.len() as u64 + self.more_findings);
        text
    }
}

/// Where each thread is, for whoever watches.
#[derive(Debug)]
pub struct Progress {
    next: AtomicU64,
    end: u64,
    /// By thread: the case that it works on, and since when, in milliseconds from the start.
    current: Vec<(AtomicU64, AtomicU64)>,
    start: Instant,
    done: Mutex<Tally>,
}

/// Cases that a thread takes at a time.
const CHUNK: u64 = 64;

impl Progress {
    /// Nothing done yet.
    pub fn new(plan: &Plan) -> Progress {
        let current = (0..plan.threads).map(|_| (AtomicU64::new(u64::MAX), AtomicU64::new(0))).collect();
        Progress {
            next: AtomicU64::new(plan.first),
            end: plan.first + plan.count,
            current,
            start: Instant::now(),
            done: Mutex::default(),
        }
    }

    /// Cases begun so far.
    pub fn begun(&self, plan: &Plan) -> u64 {
        self.next.load(Ordering::Relaxed).min(self.end) - plan.first
    }

    /// A case that has been worked on for longer than `limit`.
    pub fn stuck(&self, limit: Duration) -> Option<u64> {
        let now = self.start.elapsed().as_millis() as u64;
        let stuck = self.current.iter().find(|(case, since)| {
            case.load(Ordering::Relaxed) != u64::MAX
                && now.saturating_sub(since.load(Ordering::Relaxed)) > limit.as_millis() as u64
        });
        stuck.map(|(case, _)| case.load(Ordering::Relaxed))
    }

    /// What came of the cases so far.
    pub fn so_far(&self) -> Tally {
        self.done.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    fn add(&self, tally: Tally) {
        self.done.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).merge(tally);
    }

    fn take(&self) -> Option<std::ops::Range<u64>> {
        let first = self.next.fetch_add(CHUNK, Ordering::Relaxed);
        (first < self.end).then(|| first..(first + CHUNK).min(self.end))
    }

    fn at(&self, thread: usize, case: u64) {
        let (current, since) = &self.current[thread];
        since.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
        current.store(case, Ordering::Relaxed);
    }
}

/// Runs a plan to its end.
///
/// # Errors
/// The kernel is asked for and cannot be used.
pub fn run(plan: &Plan, progress: &Progress) -> Result<Tally, std::io::Error> {
    if plan.kernel {
        Kernel::new(&maps::all())?;
    }
    std::thread::scope(|scope| {
        for thread in 0..plan.threads {
            scope.spawn(move || work(plan, progress, thread));
        }
    });
    Ok(progress.so_far())
}

fn work(plan: &Plan, progress: &Progress, thread: usize) {
    let mut worker = Worker::new(plan);
    while let Some(cases) = progress.take() {
        for index in cases {
            progress.at(thread, index);
            let start = Instant::now();
            worker.try_case(plan, index);
            worker.tally.slowest = worker.tally.slowest.max((start.elapsed(), index));
        }
        let tally = std::mem::take(&mut worker.tally);
        worker.known.extend(tally.findings.iter().cloned());
        progress.add(tally);
    }
    progress.at(thread, u64::MAX);
}

/// One thread's tools.
pub struct Worker {
    bench: Bench,
    maps: Vec<beeline_verifier::MapInfo>,
    kernel: Option<Kernel>,
    /// What came of its cases since it last reported.
    pub tally: Tally,
    /// Findings that it reported.
    known: Vec<Finding>,
}

impl Worker {
    /// A worker for a plan.
    pub fn new(plan: &Plan) -> Worker {
        let maps = maps::all();
        let kernel = if plan.kernel { Kernel::new(&maps).ok() } else { None };
        Worker {
            bench: Bench::new(&maps, plan.runs),
            maps,
            kernel,
            tally: Tally::default(),
            known: Vec::new(),
        }
    }

    /// Tries one case and counts it.
    pub fn try_case(&mut self, plan: &Plan, index: u64) {
        let mut case = Case::new(plan.seed, index, &self.maps);
        if plan.kernel {
            // The kernel gets no type information, and so knows of no global functions.
            case.program.subprograms.clear();
        }
        let outcome = self.bench.try_program(&case.program, &case.options, case.seed);
        let entry = self.tally.cases.entry(case.origin).or_default();
        entry.0 += 1;
        entry.1 += u64::from(!matches!(outcome, Outcome::Refused { .. }));
        self.count(&case, index, &outcome);
        self.compare(&case, index, &outcome);
        let chosen = Numbers::of(!plan.seed, index).percent(plan.compiled);
        if chosen && case.origin == Origin::Structured && matches!(outcome, Outcome::Held(_)) {
            self.compile(&case, index);
        }
    }

    fn compile(&mut self, case: &Case, index: u64) {
        let compare = |program: &Program| match beeline_verifier::verify(program.clone(), &case.options) {
            Ok(verified) => compiled::compare(&verified, case.seed),
            Err(_) => Ok(false),
        };
        match compare(&case.program) {
            Ok(compared) => self.tally.compiled += u64::from(compared),
            Err(what) => {
                let program = self.small(&case.program, |program| compare(program).is_err());
                self.tally.keep(Finding { index, what, program });
            }
        }
    }

    fn count(&mut self, case: &Case, index: u64, outcome: &Outcome) {
        match outcome {
            Outcome::Refused { reason, .. } => {
                if case.origin != Origin::Noise {
                    *self.tally.refusals.entry(words_of(reason)).or_default() += 1;
                }
            }
            Outcome::Held(Work { processed, executed, covered, cut }) => {
                self.tally.substantial += u64::from(*covered >= 10);
                self.tally.executed += executed;
                self.tally.processed += u64::from(*processed);
                self.tally.cut += u64::from(*cut);
            }
            Outcome::Broken(what) => {
                let still = |program: &Program| {
                    matches!(self.bench.try_program(program, &case.options, case.seed), Outcome::Broken(_))
                };
                let program = self.small(&case.program, still);
                let what = match self.bench.try_program(&program, &case.options, case.seed) {
                    Outcome::Broken(now) => format!("{what}\nmade small: {now}"),
                    _ => what.clone(),
                };
                self.tally.keep(Finding { index, what, program });
            }
        }
    }

    fn small(&self, program: &Program, still: impl Fn(&Program) -> bool) -> Program {
        if self.tally.findings.len() + self.known.len() < FINDINGS_MAX {
            shrink(program, still)
        } else {
            program.clone()
        }
    }

    fn compare(&mut self, case: &Case, index: u64, outcome: &Outcome) {
        let Some(kernel) = self.kernel.as_ref().filter(|_| Kernel::understands(&case.program)) else {
            return;
        };
        let Ok(verdict) = kernel.verdict(&case.program, &case.options) else { return };
        self.tally.compared.0 += 1;
        self.tally.compared.1 += u64::from(verdict == Verdict::Accepted);
        match (outcome, verdict) {
            (Outcome::Refused { reason, .. }, Verdict::Accepted) => {
                let row = self.tally.missed.entry(words_of(reason)).or_insert((0, index));
                row.0 += 1;
            }
            (Outcome::Held(_), Verdict::Refused) => {
                let log = kernel.log(&case.program, &case.options).unwrap_or_default();
                if crate::kernel::is_harmless(&log) {
                    return;
                }
                let what = format!("accepted, and the kernel says: {}", last_line(&log));
                if self.tally.knows(&what) || self.known.iter().any(|finding| finding.says(&what)) {
                    self.tally.more_findings += 1;
                    return;
                }
                let still = |program: &Program| self.accepts_beyond_kernel(kernel, program, &case.options);
                let program = self.small(&case.program, still);
                let log = kernel.log(&program, &case.options).unwrap_or_default();
                let now = last_line(&log);
                let what = if what.ends_with(now) { what } else { format!("{what}\nmade small: {now}") };
                self.tally.keep(Finding { index, what, program });
            }
            _ => {}
        }
    }

    fn accepts_beyond_kernel(&self, kernel: &Kernel, program: &Program, options: &Options) -> bool {
        let ours =
            std::panic::AssertUnwindSafe(|| beeline_verifier::verify(program.clone(), options).is_ok());
        Kernel::understands(program)
            && std::panic::catch_unwind(ours).unwrap_or(false)
            && matches!(kernel.verdict(program, options), Ok(Verdict::Refused))
            && kernel.log(program, options).is_ok_and(|log| !crate::kernel::is_harmless(&log))
    }
}

/// The last line of a kernel's log that says something.
fn last_line(log: &str) -> &str {
    let lines = log.lines().rev().filter(|line| !line.is_empty());
    lines.map(str::trim).find(|line| !line.starts_with("processed ")).unwrap_or("(nothing)")
}

/// A reason without its numbers.
fn words_of(reason: &str) -> String {
    let mut words = String::new();
    for c in reason.chars() {
        let digit = c.is_ascii_digit();
        if !digit {
            words.push(c);
        } else if !words.ends_with('#') {
            words.push('#');
        }
    }
    words
}
