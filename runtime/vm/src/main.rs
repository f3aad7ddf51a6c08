//! `bpf-vm [MEMORY] [--interpreter] [--repeat N] [--compile-time]`: runs a program from standard input.
//!
//! The program is hexadecimal bytes, as is the memory; r0 is printed in hexadecimal. Measurements and errors go to
//! standard error.

use beeline_vm::engine::{Engine, Machine, Setup};
use beeline_vm::hex;
use std::error::Error;
use std::io::Read;
use std::process::ExitCode;
use std::time::Instant;

const USAGE: &str = "usage: bpf-vm [MEMORY] [--interpreter] [--repeat N] [--compile-time] <PROGRAM

  PROGRAM         instructions as hexadecimal bytes, on standard input
  MEMORY          buffer as hexadecimal bytes; the program gets its address in r1 and its length in r2
  --interpreter   interpret; else the program is compiled
  --repeat N      also run it N times and print `ns_per_run: X` on standard error
  --compile-time  also print `compile_us: X` (and `compile_first_us: X`, the first in a process) on standard error";

#[derive(Default)]
struct Arguments {
    memory: Option<String>,
    interpreter: bool,
    repeat: Option<u32>,
    compile_time: bool,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bpf-vm: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let Some(arguments) = arguments(std::env::args().skip(1))? else {
        println!("{USAGE}");
        return Ok(());
    };
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let insns = hex::instructions(&text)?;
    let buffer = hex::bytes(arguments.memory.as_deref().unwrap_or(""))?;

    let setup = Setup::conformance();
    if arguments.compile_time {
        let first = microseconds(|| setup.compile(&insns).map(drop))?;
        let later = (0..9)
            .map(|_| microseconds(|| setup.compile(&insns).map(drop)))
            .collect::<Result<Vec<_>, _>>()?;
        let best = later.into_iter().fold(first, f64::min);
        eprintln!("compile_first_us: {first:.1}");
        eprintln!("compile_us: {best:.1}");
    }
    let engine = if arguments.interpreter { Engine::Interpreter } else { Engine::Compiled };
    // SAFETY: whoever runs this binary answers for the program, as for any other that they start.
    let machine = unsafe { Machine::new(engine, &insns, setup) }?;
    println!("{:x}", machine.run(&mut buffer.clone())?);
    if let Some(count) = arguments.repeat {
        let mut buffer = buffer;
        let start = Instant::now();
        for _ in 0..count {
            std::hint::black_box(machine.run(std::hint::black_box(&mut buffer))?);
        }
        let each = start.elapsed().as_nanos() as f64 / f64::from(count.max(1));
        eprintln!("ns_per_run: {each:.2}");
    }
    Ok(())
}

fn microseconds<E>(action: impl FnOnce() -> Result<(), E>) -> Result<f64, E> {
    let start = Instant::now();
    action()?;
    Ok(start.elapsed().as_nanos() as f64 / 1000.0)
}

/// None: help is wanted.
fn arguments(mut words: impl Iterator<Item = String>) -> Result<Option<Arguments>, String> {
    let mut arguments = Arguments::default();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--help" | "-h" => return Ok(None),
            "--interpreter" => arguments.interpreter = true,
            "--compile-time" => arguments.compile_time = true,
            "--repeat" => {
                let count = words.next().ok_or("--repeat wants a number")?;
                let count = count.parse().map_err(|_| format!("--repeat {count}: not a number"))?;
                arguments.repeat = Some(count);
            }
            flag if flag.starts_with('-') => return Err(format!("unknown option {flag}\n{USAGE}")),
            _ if arguments.memory.is_some() => return Err(format!("more than one MEMORY\n{USAGE}")),
            _ => arguments.memory = Some(word),
        }
    }
    Ok(Some(arguments))
}
