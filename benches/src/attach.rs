//! How long `attach` takes, and how long it holds the target, with 1, 50 and 500 threads.

use crate::build;
use crate::process::{Process, Store, beeline};
use crate::samples::Samples;
use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// Runs all sizes.
pub(crate) fn run(beeline_path: &Path, rounds: u32) -> Result<()> {
    let sleepers = build::native("sleepers", &["../tests/targets/sleepers.c"], &["-pthread"])?;
    let object = build::object("programs/bench.bpf.c")?.to_string_lossy().into_owned();
    let store = Store::new();
    let calls = build::native("calls", &["targets/calls.c"], &[])?;
    let many = format!("count_percpu=uprobe:{}:work", sleepers.display());
    let one = format!("count_percpu=uprobe:{}:first_push", calls.display());
    beeline(beeline_path, &store, &["load", &object, "--attach", &many, "--attach", &one])?;
    println!("\nattach, ms: min / median / max of {rounds} rounds");
    println!("{:12} {:>16}  {:>29}", "threads", "", "min    median       max");
    for threads in [1u32, 50, 500] {
        // Of many threads one is the busy one, and the main thread waits for input.
        let target = match threads {
            1 => Process::spawn(&mut Command::new(&calls))?,
            _ => Process::spawn(Command::new(&sleepers).arg((threads - 2).to_string()))?,
        };
        let [mut stopped, mut whole] = [(); 2].map(|()| Samples::default());
        for _ in 0..rounds {
            let start = Instant::now();
            let report = beeline(beeline_path, &store, &["--json", "attach", &target.pid()])?;
            whole.push(start.elapsed().as_secs_f64() * 1e3);
            stopped.push(stopped_ms(&report)?);
            beeline(beeline_path, &store, &["detach", &target.pid()])?;
        }
        println!("{threads:<12} {:>16}  {}", "target stopped", stopped.spread());
        println!("{:12} {:>16}  {}", "", "whole command", whole.spread());
    }
    beeline(beeline_path, &store, &["unload", "bench"])?;
    Ok(())
}

fn stopped_ms(report: &str) -> Result<f64> {
    let report: serde_json::Value = serde_json::from_str(report)?;
    let first = if report.is_array() { &report[0] } else { &report };
    let nanoseconds = first["stopped_ns"].as_f64().context("attach --json names stopped_ns")?;
    Ok(nanoseconds / 1e6)
}
