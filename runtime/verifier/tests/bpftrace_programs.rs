//! What bpftrace 0.17 makes of the scripts in `bpftrace/scripts`, recorded by `cargo xtask record`: all of it is accepted,
//! and it is as much work as for a 6.18 kernel.

#[path = "support/rows.rs"]
mod rows;

use beeline_verifier::{Options, verify};
use rows::{number, program, rows};
use std::collections::BTreeSet;

const CORPUS: &str = include_str!("bpftrace/programs.jsonl");

/// How many times the kernel's number of instructions or states is still as much work as the kernel's.
const WORK_FACTOR_MAX: u32 = 2;

#[test]
fn all_programs_are_accepted() {
    let mut refused = Vec::new();
    for row in rows(CORPUS) {
        assert_eq!(row["verdict"], "accept", "the kernel's verdict on {} {}", row["script"], row["name"]);
        if let Err(rejection) = verify(program(&row), &Options::default()) {
            refused.push(format!("{} {}: {rejection}", row["script"], row["name"]));
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[test]
fn the_work_is_the_kernels() {
    let (mut ours, mut kernels) = (0, 0);
    for row in rows(CORPUS) {
        let verified = verify(program(&row), &Options::default()).expect("accepted");
        let (stats, kernel) = (verified.stats(), &row["kernel"]);
        let (insns, states) = (number(kernel, "insns"), number(kernel, "states"));
        let place = format!("{} {}", row["script"], row["name"]);
        assert!(stats.insns_processed <= WORK_FACTOR_MAX * insns, "{place}: {stats:?}, kernel {kernel}");
        assert!(stats.states <= WORK_FACTOR_MAX * states.max(2), "{place}: {stats:?}, kernel {kernel}");
        ours += stats.insns_processed;
        kernels += insns;
    }
    println!("{ours} instructions processed, {kernels} by the kernel");
    // Single programs may differ, all of them together hardly.
    assert!(
        f64::from(ours) < 1.1 * f64::from(kernels),
        "{ours} instructions processed, {kernels} by the kernel"
    );
}

#[test]
fn every_script_was_recorded() {
    let recorded: BTreeSet<_> =
        rows(CORPUS).map(|row| row["script"].as_str().expect("a name").to_owned()).collect();
    let folder = format!("{}/tests/bpftrace/scripts", env!("CARGO_MANIFEST_DIR"));
    let scripts = std::fs::read_dir(folder).expect("the scripts");
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.expect("an entry").path();
        path.file_stem().expect("a name").to_string_lossy().into_owned()
    };
    assert_eq!(recorded, scripts.map(name).collect::<BTreeSet<_>>(), "run `cargo xtask record`");
}
