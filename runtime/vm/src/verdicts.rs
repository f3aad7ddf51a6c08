//! `verdicts FILE.jsonl`: a line of JSON for each program of a corpus, the verifier's verdict and what the program returns.
//!
//! `-` is standard input. Lines come in the order of the file; the work is divided among the CPUs.

use beeline_vm::corpus;
use std::io::{BufWriter, Read, Write};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

fn main() -> ExitCode {
    let files: Vec<String> = std::env::args().skip(1).collect();
    if files.is_empty() || files.iter().any(|file| file == "--help" || file == "-h") {
        println!("usage: verdicts FILE.jsonl ...   (- is standard input)");
        return if files.is_empty() { ExitCode::from(2) } else { ExitCode::SUCCESS };
    }
    match files.iter().try_for_each(|file| judge(file)) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads the output has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("verdicts: {error}");
            ExitCode::FAILURE
        }
    }
}

fn judge(file: &str) -> std::io::Result<()> {
    let named = |error: std::io::Error| std::io::Error::new(error.kind(), format!("{file}: {error}"));
    let mut text = String::new();
    match file {
        "-" => std::io::stdin().read_to_string(&mut text).map_err(named)?,
        _ => {
            text = std::fs::read_to_string(file).map_err(named)?;
            text.len()
        }
    };
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let answers = answers(&lines);
    let mut out = BufWriter::new(std::io::stdout().lock());
    answers.iter().try_for_each(|answer| writeln!(out, "{answer}"))?;
    out.flush()
}

/// The answers to all lines, in their order.
fn answers(lines: &[&str]) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let answers = Mutex::new(vec![String::new(); lines.len()]);
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(line) = lines.get(index) else { break };
            let answer = corpus::answer(line).to_string();
            answers.lock().unwrap_or_else(|poisoned| poisoned.into_inner())[index] = answer;
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
    std::thread::scope(|scope| {
        (0..threads).for_each(|_| {
            scope.spawn(work);
        })
    });
    answers.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
}
