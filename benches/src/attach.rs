//! How long `attach` takes, and how long it holds the target, with 1, 50 and 500 threads.

use crate::build;
use crate::process::{Process, beeline};
use crate::samples::Samples;
use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// Runs all sizes.
pub(crate) fn run(beeline_path: &Path, rounds: u32) -> Result<()> {
    let sleepers = build::native("sleepers", &["../tests/targets/sleepers.c"], &["-pthread"])?;
    let object = build::object("programs/bench.bpf.c")?.to_string_lossy().into_owned();
    let store = format!("bench-{}", std::process::id());
    let attach = format!("count_percpu=uprobe:{}:work", sleepers.display());
    beeline(beeline_path, &store, &["load", &object, "--attach", &attach])?;
    println!("\nattach, ms: min / median / max of {rounds} rounds");
    println!("{:12} {:>16}  {:>29}", "threads", "", "min    median       max");
    for threads in [1u32, 50, 500] {
        // One of the threads is the busy one; the main thread waits for input.
        let blocked = threads.saturating_sub(2).to_string();
        let target = Process::spawn(Command::new(&sleepers).arg(blocked))?;
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
    let microseconds = first["stopped_us"].as_f64().context("attach --json names stopped_us")?;
    Ok(microseconds / 1e3)
}
