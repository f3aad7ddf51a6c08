//! `beeline verify`: verdicts without a store, for people and as JSON.

use beeline_tests::{Store, object};
use std::path::PathBuf;

fn rejected() -> PathBuf {
    object("tests/programs/refused.bpf.c")
}

fn arguments<'a>(file: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    ["verify", file].into_iter().chain(more.iter().copied()).collect()
}

#[test]
fn an_accepted_object() {
    let store = Store::new();
    let file = object("tests/programs/counts.bpf.c");
    let file = file.to_string_lossy();
    let text = store.ok(&arguments(&file, &[]));
    assert!(
        text.lines().all(|line| line.contains("accepted; ") && line.contains("bytes of stack")),
        "{text}"
    );
    let report = store.json(&arguments(&file, &[]));
    let programs = report.as_array().expect("a list");
    assert!(!programs.is_empty());
    for program in programs {
        assert_eq!(program["accepted"], true);
        assert!(program["verified_insns"].as_u64() > Some(0) && program["stack_bytes"].is_u64(), "{program}");
        assert!(program.get("log").is_none(), "{program}");
    }
}

#[test]
fn a_rejected_program_is_shown_where_it_fails() {
    let store = Store::new();
    let file = rejected();
    let file = file.to_string_lossy();
    let output = store.output(&arguments(&file, &[]));
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let words = [
        "forgotten_check (uprobe/): rejected at insn ",
        "refused.bpf.c:",
        "R0 invalid mem access 'map_value_or_null'",
        "compare the pointer with 0 before it is used",
        "harmless (uprobe/): accepted; ",
    ];
    words.into_iter().for_each(|words| assert!(text.contains(words), "{words:?} is not in\n{text}"));
    let output = store.output(&arguments(&file, &["--json"]));
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let program = report.as_array().expect("a list").iter().find(|program| program["accepted"] == false);
    let program = program.expect("a rejected program");
    assert_eq!(program["name"], "forgotten_check");
    assert_eq!(program["reason"], "R0 invalid mem access 'map_value_or_null'");
    assert!(program["source_line"].as_str().is_some_and(|line| line.contains("refused.bpf.c:")), "{program}");
}

#[test]
fn logs_of_each_level() {
    let store = Store::new();
    let file = rejected();
    let file = file.to_string_lossy();
    let log = |level: &str| {
        let output = store.output(&arguments(&file, &["--log-level", level]));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let (path, every, stats) = (log("1"), log("2"), log("stats"));
    assert!(path.contains("0: R1=ctx() R10=fp0\n") && path.contains("\nprocessed "), "{path}");
    assert!(!path.contains("func#0 @0"), "{path}");
    assert!(every.contains("func#0 @0\nLive regs before insn:\n"), "{every}");
    assert!(stats.contains("verification time ") && stats.contains("\nstack depth "), "{stats}");
    assert!(!stats.contains("R10=fp0"), "{stats}");
}
