//! Makes the corpus of programs that bpftrace generates: `runtime/verifier/tests/bpftrace/programs.jsonl`.
//!
//! Each script of the folder is run with `record.c` preloaded, which writes down what the tool hands to bpf(2) and what
//! the kernel says of it, and attaches nothing. Needs root, kernel BPF and bpftrace.

use crate::workspace::{root, run, target_dir};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// What a script may take; when it is over the tool has loaded its programs.
const SECONDS: &str = "4";

/// Instructions of the largest program by which tools find out what the kernel can do.
const PROBE_INSNS_MAX: usize = 4;

/// Records all scripts anew.
pub(crate) fn run_all() -> Result<()> {
    let folder = root().join("runtime/verifier/tests/bpftrace");
    let scratch = target_dir().join("record");
    fs::create_dir_all(&scratch)?;
    let recorder = scratch.join("record.so");
    run(Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&recorder)
        .arg(folder.join("record.c")))?;
    let mut scripts: Vec<_> =
        fs::read_dir(folder.join("scripts"))?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    scripts.sort();
    let (mut seen, mut rows) = (BTreeSet::new(), Vec::new());
    for script in &scripts {
        let name = script.file_stem().context("a name")?.to_string_lossy().into_owned();
        let record = scratch.join(format!("{name}.jsonl"));
        let _ = fs::remove_file(&record);
        bpftrace(script, &recorder, &record)?;
        let before = rows.len();
        for line in fs::read_to_string(&record).unwrap_or_default().lines() {
            let row: Value = serde_json::from_str(line).with_context(|| format!("{name}: {line}"))?;
            let insns = row["insns"].as_str().context("instructions")?.to_owned();
            let program = (insns, row["prog_type"].to_string(), row["maps"].to_string());
            if program.0.len() > 16 * PROBE_INSNS_MAX && seen.insert(program) {
                rows.push((name.clone(), row));
            }
        }
        println!("{name}: {} programs", rows.len() - before);
        if rows.len() == before {
            bail!(
                "{name}: nothing was loaded; bpftrace's own words are in {}",
                record.with_extension("log").display()
            );
        }
    }
    let corpus = folder.join("programs.jsonl");
    let lines = rows.into_iter().enumerate().map(|(id, (script, row))| {
        let mut line = json!({ "id": id, "script": script });
        line.as_object_mut().context("an object")?.extend(row.as_object().context("an object")?.clone());
        Ok(format!("{line}\n"))
    });
    fs::write(&corpus, lines.collect::<Result<String>>()?)?;
    println!("{}", corpus.display());
    Ok(())
}

/// Runs a script where tracefs is mounted for it alone.
fn bpftrace(script: &Path, recorder: &Path, record: &Path) -> Result<()> {
    const COMMAND: &str = "[ -d /sys/kernel/tracing/events ] || mount -t tracefs tracefs /sys/kernel/tracing; \
        LD_PRELOAD=\"$1\" exec timeout --signal INT \"$2\" bpftrace --unsafe \"$3\" 100 shell";
    let log = fs::File::create(record.with_extension("log"))?;
    // That it is interrupted is no failure.
    Command::new("unshare")
        .args(["--mount", "sh", "-c", COMMAND, "sh"])
        .args([recorder.as_os_str(), SECONDS.as_ref(), script.as_os_str()])
        .env("RECORD", record)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .context("unshare is missing")?;
    Ok(())
}
