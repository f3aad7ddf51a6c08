//! Runs cases against the verifier; ends with 1 when one of them shows that it is wrong.

use beeline_adversary::campaign::{Plan, Progress, Tally, run};
use beeline_adversary::cases::{Case, listing};
use beeline_adversary::maps;
use beeline_adversary::trial::Bench;
use clap::Parser;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Random programs against the verifier
#[derive(Parser)]
struct Options {
    /// How many programs
    #[arg(default_value_t = 100_000)]
    count: u64,
    /// Which family of programs
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of the first program
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Threads that work
    #[arg(long)]
    threads: Option<usize>,
    /// Runs of each accepted program
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Compare verdicts with this machine's kernel
    #[arg(long)]
    kernel: bool,
    /// Compile so many of a hundred accepted programs, and compare the results
    #[arg(long, default_value_t = 0)]
    compiled: u64,
    /// Print one program and what comes of it, instead
    #[arg(long)]
    show: Option<u64>,
}

/// A case that takes longer hangs.
const STUCK: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(index) = options.show {
        show(&options, index);
        return ExitCode::SUCCESS;
    }
    // Panics of the verifier are findings, and reported as such.
    std::panic::set_hook(Box::new(|_| {}));
    let threads =
        options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into));
    let Options { count, seed, first, runs, kernel, compiled, .. } = options;
    let plan = Plan { seed, first, count, threads: threads.max(1), runs, kernel, compiled };
    let progress = Progress::new(&plan);
    let done = AtomicBool::new(false);
    let start = Instant::now();
    let tally = std::thread::scope(|scope| {
        scope.spawn(|| watch(&plan, &progress, &done, start));
        let tally = run(&plan, &progress);
        done.store(true, Ordering::Relaxed);
        tally
    });
    match tally {
        Ok(tally) => report(&plan, &tally, start.elapsed()),
        Err(error) => {
            eprintln!("error: the kernel cannot be asked: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints where things are, and ends the process when a case hangs.
fn watch(plan: &Plan, progress: &Progress, done: &AtomicBool, start: Instant) {
    let mut said = start;
    while !done.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
        if let Some(case) = progress.stuck(STUCK) {
            report(plan, &progress.so_far(), start.elapsed());
            println!("seed {}, case {case}: hangs", plan.seed);
            std::process::exit(1);
        }
        if said.elapsed() >= Duration::from_secs(10) {
            said = Instant::now();
            let begun = progress.begun(plan);
            let speed = begun as f64 / start.elapsed().as_secs_f64();
            let findings = progress.so_far().findings.len();
            eprintln!("{begun} of {} programs, {speed:.0} a second, {findings} findings", plan.count);
        }
    }
}

fn report(plan: &Plan, tally: &Tally, time: Duration) -> ExitCode {
    println!("refused most often:");
    for (reason, count) in Tally::top(&tally.refusals, 25) {
        println!("{count:9} {reason}");
    }
    if plan.kernel {
        println!("accepted by the kernel, refused here (and a case):");
        for (reason, (count, case)) in Tally::top(&tally.missed, 40) {
            println!("{count:9} {reason} ({case})");
        }
    }
    for finding in &tally.findings {
        println!("\nFINDING, seed {}: {finding}", plan.seed);
    }
    let speed = plan.count as f64 / time.as_secs_f64();
    let (slowest, case) = tally.slowest;
    println!(
        "\nslowest: case {case}, {:.0} ms; {speed:.0} programs a second",
        slowest.as_secs_f64() * 1000.0
    );
    println!("seed {} from {}: {}", plan.seed, plan.first, tally.summary());
    if tally.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn show(options: &Options, index: u64) {
    let maps = maps::all();
    let mut case = Case::new(options.seed, index, &maps);
    if options.kernel {
        case.program.subprograms.clear();
    }
    println!("{:?} {:?} {:?}", case.origin, case.program.prog_type, case.options);
    print!("{}", listing(&case.program.insns));
    let outcome = Bench::new(&maps, options.runs).try_program(&case.program, &case.options, case.seed);
    println!("{outcome:#?}");
    let verbose = beeline_verifier::Options { log_level: 2, ..case.options };
    match beeline_verifier::verify(case.program, &verbose) {
        Ok(verified) => println!("{}", verified.log()),
        Err(rejection) => println!("{}", rejection.log),
    }
}
