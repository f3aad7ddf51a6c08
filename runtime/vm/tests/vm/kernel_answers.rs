//! What the machine's own kernel says of the same programs: helpers that it has, and its log, line by line.
//!
//! The kernel is asked through `../shared/oracle/koracle`. Without it, or without permission to load programs, the tests say
//! so and pass.

use crate::conformance::shared;
use beeline_vm::corpus::answer;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The kernel's answers to these rows; none where it cannot be asked.
fn kernel(rows: &[Value], name: &str) -> Option<Vec<Value>> {
    let shared = std::env::var_os("BEELINE_SHARED")
        .map_or(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"), PathBuf::from);
    let oracle = shared.join("oracle/koracle");
    if !oracle.exists() {
        println!("skipped: no {}", oracle.display());
        return None;
    }
    let file = std::env::temp_dir().join(format!("beeline-{name}-{}.jsonl", std::process::id()));
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(&file, lines).expect("a temporary file");
    let output =
        Command::new(&oracle).arg("--no-run").arg("--jsonl").arg(&file).stdin(Stdio::null()).output();
    let _ = std::fs::remove_file(&file);
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            println!("skipped: {}: {error}", oracle.display());
            return None;
        }
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let answers: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let unable = |answer: &Value| answer["verdict"] == "error" || answer["errno"] == "EPERM";
    if answers.len() != rows.len() || answers.iter().all(unable) {
        println!("skipped: no permission to load eBPF programs");
        return None;
    }
    Some(answers)
}

/// bpftrace's and aya's way to tell: the program `call N; exit` does not load, and its log does not name the helper as unknown.
fn exists(answer: &Value) -> bool {
    let reason = answer["reason"].as_str().unwrap_or_default();
    answer["verdict"] == "accept" || !(reason.contains("invalid func ") || reason.contains("unknown func "))
}

/// Helpers that a loader finds here are in the kernel too, and what is said of them is what the kernel says.
#[test]
fn helpers_that_are_found() {
    let row = |prog_type: &str, id: u8| {
        let insns = format!("85000000{id:02x}000000 9500000000000000");
        json!({"id": format!("{prog_type} {id}"), "insns": insns, "prog_type": prog_type, "run": false})
    };
    let types = ["kprobe", "tracepoint", "perf_event", "raw_tracepoint", "socket_filter", "xdp"];
    let rows: Vec<Value> = types.iter().flat_map(|kind| (1..=215).map(move |id| row(kind, id))).collect();
    let ours: Vec<Value> = rows.iter().map(|row| answer(&row.to_string())).collect();
    // These are what clients execute: they must be found whoever asks.
    for id in [1, 2, 3, 4, 5, 6, 14, 15, 16, 25, 27, 35, 45, 67, 112, 113, 114, 115, 125, 130, 131, 132, 174]
    {
        let found = ours.iter().find(|answer| answer["id"] == format!("kprobe {id}")).expect("a row");
        assert!(exists(found), "helper {id}: {found}");
    }
    let Some(theirs) = kernel(&rows, "helpers") else { return };
    let (mut same, mut missing, mut invented, mut other) = (0, 0, Vec::new(), Vec::new());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        match (exists(ours), exists(theirs)) {
            (true, false) => invented.push(ours["id"].to_string()),
            (false, true) => missing += 1,
            _ if ours["verdict"] == theirs["verdict"] && theirs["reason"] == last(ours) => same += 1,
            _ => other.push(format!("{}: {} / kernel {}", ours["id"], ours["reason"], theirs["reason"])),
        }
    }
    println!("{same} the same, {missing} the kernel's alone, {} differ:\n{}", other.len(), other.join("\n"));
    assert!(invented.is_empty(), "the kernel does not have {}", invented.join(", "));
    assert!(same * 10 >= rows.len() * 5, "{same} of {} the same", rows.len());
}

/// The reason, in the form that the oracle gives it in: an empty text for an accepted program.
fn last(answer: &Value) -> Value {
    if answer["reason"].is_null() && answer["verdict"] == "accept" {
        Value::Null
    } else {
        answer["reason"].clone()
    }
}

/// A log without what must differ: addresses of maps, and the blanks behind them.
fn comparable(log: &str) -> Vec<String> {
    let line = |line: &str| {
        let Some((start, rest)) = line.split_once("(18) r") else { return line.to_owned() };
        let (insn, touched) =
            rest.split_once(';').map_or((rest, None), |(insn, touched)| (insn, Some(touched)));
        let register = insn.split(' ').next().unwrap_or_default();
        format!("{start}(18) r{register};{}", touched.unwrap_or_default())
    };
    log.trim_end().lines().map(line).collect()
}

/// Lines that only the kernel's way of working makes: how it goes back to find what must be precise, which stack slots are live,
/// strongly connected parts. With them goes where a state is printed, in a line of its own or behind the instruction.
fn without_workings(lines: &[String]) -> Vec<String> {
    let workings = |line: &str| {
        line.starts_with("mark_precise: ")
            || line.starts_with("SCC ")
            || line.contains("propagating")
            || line.starts_with("processed ")
            || line.starts_with('(')
                && line
                    .split_once(") ")
                    .is_some_and(|(_, rest)| rest.starts_with("frame") || rest.starts_with("live stack"))
    };
    let mut kept: Vec<String> = Vec::new();
    for line in lines.iter().filter(|line| !workings(line)) {
        let state =
            line.split_once(':').filter(|(pc, state)| pc.parse::<u32>().is_ok() && !state.starts_with(" ("));
        match (state, kept.last_mut()) {
            (Some((_, state)), Some(insn)) if insn.contains(": (") && !insn.contains(';') => {
                *insn = format!("{insn};{state}");
            }
            _ => kept.push(
                line.split_whitespace().collect::<Vec<_>>().join(" ").replace(" ;", ";").replace("; ", ";"),
            ),
        }
    }
    kept.iter().map(|line| line.replace("; ", ";").replace(" ;", ";")).collect()
}

/// The share of programs whose log is the kernel's to the letter, and where only those lines differ that tell of its workings.
#[test]
fn logs_are_the_kernels() {
    let Some(corpus) = shared("verifier/tests.jsonl") else { return };
    // A part of the suite, spread over all of it; BEELINE_LOGS=1 takes all.
    let step = if std::env::var_os("BEELINE_LOGS").is_some() { 1 } else { 8 };
    for (level, floors) in [(1, LEVEL_1), (2, LEVEL_2)] {
        let wanted = corpus.iter().filter(|row| row["cls"] != "skb_ctx").step_by(step);
        let rows: Vec<Value> = wanted
            .map(|row| {
                let mut row = row.clone();
                row["log_level"] = level.into();
                row["run"] = false.into();
                row
            })
            .collect();
        let Some(theirs) = kernel(&rows, "logs") else { return };
        let (mut compared, mut identical, mut but_for_workings) = (0u32, 0u32, 0u32);
        for (row, theirs) in rows.iter().zip(&theirs) {
            let ours = answer(&row.to_string());
            let whole = theirs["log"].as_str().filter(|log| log.len() < 1 << 19);
            let (Some(log), Some(whole)) = (ours["log"].as_str(), whole) else { continue };
            if ours["verdict"] != theirs["verdict"] {
                continue;
            }
            let (log, whole) = (comparable(log), comparable(whole));
            compared += 1;
            identical += u32::from(log == whole);
            but_for_workings += u32::from(without_workings(&log) == without_workings(&whole));
        }
        let percent = |count: u32| count * 100 / compared.max(1);
        let found = (percent(identical), percent(but_for_workings));
        println!(
            "level {level}: {compared} compared, {} % identical, {} % but for the kernel's workings",
            found.0, found.1
        );
        assert!(compared >= 80, "only {compared} compared");
        assert!(
            found.0 >= floors.0 && found.1 >= floors.1,
            "level {level}: {found:?} percent, not {floors:?}"
        );
    }
}

/// Percent of logs that are identical, and that are but for lines that tell of the kernel's workings.
const LEVEL_1: (u32, u32) = (78, 92);
const LEVEL_2: (u32, u32) = (38, 82);
