//! How long the verifier takes for real programs, and for those that nobody writes.

use anyhow::{Context, Result};
use beeline_object::embedded;
use beeline_verifier::{Options, Program, verify};
use beeline_vm::corpus::row::Row;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[path = "../../runtime/verifier/tests/support/pathological.rs"]
mod pathological;

/// What one program took, the best of the rounds.
struct Sample {
    name: String,
    is_accepted: bool,
    micros: f64,
    insns: u64,
    states: u64,
    /// Bytes of states, where they are known.
    bytes: Option<usize>,
}

/// Measures all sets of programs that are there.
pub(crate) fn run(beeline: &Path, rounds: u32) -> Result<()> {
    println!("\nverifier, us a program: min / median / max of the best of {rounds} rounds each");
    println!(
        "{:22} {:>8} {:>8} {:>29}  {:>7} {:>6} {:>6}  slowest",
        "", "programs", "accepted", "min    median       max", "insns", "states", "kB"
    );
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let examples = beeline.with_file_name("").join("../examples");
    print("examples", objects_in(&examples, rounds)?);
    print("libbpf-tools", tools(rounds)?);
    print("bpftrace scripts", rows(&root.join("runtime/verifier/tests/bpftrace/programs.jsonl"), rounds)?);
    let shared = std::env::var_os("BEELINE_SHARED").map_or(root.join("../shared"), PathBuf::from);
    print("the kernel's own suite", rows(&shared.join("verifier/tests.jsonl"), rounds)?);
    let bad = pathological::all().into_iter();
    print(
        "as much as they can",
        bad.map(|(name, program)| sample(name.into(), &program, &Options::default(), 1)).collect(),
    );
    Ok(())
}

fn sample(name: String, program: &Program, options: &Options, rounds: u32) -> Sample {
    let mut sample =
        Sample { name, is_accepted: false, micros: f64::INFINITY, insns: 0, states: 0, bytes: None };
    for _ in 0..rounds {
        let program = program.clone();
        let start = Instant::now();
        let verdict = verify(program, options);
        sample.micros = sample.micros.min(start.elapsed().as_nanos() as f64 / 1000.0);
        if let Ok(verified) = verdict {
            let stats = verified.stats();
            sample.is_accepted = true;
            (sample.insns, sample.states) = (stats.insns_processed.into(), stats.states.into());
            sample.bytes = Some(stats.state_bytes_peak);
        }
    }
    sample
}

/// The programs of a corpus; none when it is not there.
fn rows(path: &Path, rounds: u32) -> Result<Vec<Sample>> {
    let Ok(text) = std::fs::read_to_string(path) else { return Ok(Vec::new()) };
    let mut samples = Vec::new();
    for line in text.lines() {
        let value: serde_json::Value = serde_json::from_str(line)?;
        // What a row cannot bring (contexts of other program types, BTF) is not measured.
        if let Ok(row) = Row::parse(&value) {
            let name = [&value["id"], &value["script"], &value["name"]]
                .map(|part| part.to_string().replace("null", ""));
            samples.push(sample(name.join(" "), &row.program, &row.options(), rounds));
        }
    }
    Ok(samples)
}

/// The objects in a folder, as `cargo xtask examples` makes them.
fn objects_in(folder: &Path, rounds: u32) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(".bpf.o") {
                samples.extend(object(&path, rounds)?);
            }
        }
    }
    Ok(samples)
}

/// The objects that the commands of `libbpf-tools` carry; none when it is not installed.
fn tools(rounds: u32) -> Result<Vec<Sample>> {
    let scratch = std::env::current_exe()?.with_file_name("bench-targets");
    std::fs::create_dir_all(&scratch)?;
    let mut samples = Vec::new();
    let listed = std::process::Command::new("dpkg").args(["-L", "libbpf-tools"]).output();
    let listed =
        listed.map_or_else(|_| String::new(), |output| String::from_utf8_lossy(&output.stdout).into_owned());
    for tool in listed.lines().filter(|path| path.starts_with("/usr/sbin/")).map(Path::new) {
        // Other names of the same command.
        if tool.is_symlink() {
            continue;
        }
        let file = std::fs::read(tool)?;
        let name = tool.file_name().context("a name")?.to_string_lossy();
        let path = scratch.join(format!("{name}.bpf.o"));
        for range in embedded::objects(&file) {
            std::fs::write(&path, &file[range])?;
            samples.extend(object(&path, rounds)?);
        }
    }
    Ok(samples)
}

/// The programs of an object.
fn object(path: &Path, rounds: u32) -> Result<Vec<Sample>> {
    let mut best: Vec<Sample> = Vec::new();
    for round in 0..rounds {
        for (index, verdict) in beeline_engine::verify(path, None, &[], 0)?.into_iter().enumerate() {
            let (is_accepted, stats) =
                verdict.result.map_or((false, Default::default()), |stats| (true, stats));
            let micros = stats.time_ns as f64 / 1000.0;
            if round == 0 {
                let name =
                    format!("{} {}", path.file_name().unwrap_or_default().to_string_lossy(), verdict.program);
                let (insns, states) = (stats.insns_processed, stats.states);
                best.push(Sample { name, is_accepted, micros, insns, states, bytes: None });
            } else {
                best[index].micros = best[index].micros.min(micros);
            }
        }
    }
    // How long it took to refuse one is not known.
    best.retain(|sample| sample.is_accepted);
    Ok(best)
}

fn print(set: &str, mut samples: Vec<Sample>) {
    samples.sort_by(|a, b| a.micros.total_cmp(&b.micros));
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else {
        println!("{set:22} not there");
        return;
    };
    let accepted = samples.iter().filter(|sample| sample.is_accepted).count();
    let insns = samples.iter().map(|sample| sample.insns).max().unwrap_or_default();
    let states = samples.iter().map(|sample| sample.states).max().unwrap_or_default();
    let bytes = samples.iter().filter_map(|sample| sample.bytes).max();
    println!(
        "{set:22} {:8} {accepted:8} {:9.1} {:9.1} {:9.1}  {insns:7} {states:6} {:>6}  {}",
        samples.len(),
        first.micros,
        samples[samples.len() / 2].micros,
        last.micros,
        bytes.map_or("-".into(), |bytes| (bytes >> 10).to_string()),
        last.name
    );
}
