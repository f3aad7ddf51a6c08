//! `verdicts`: the whole corpus of the kernel's verifier suite, each answer compared with what the kernel said and returned.
//! Skipped where the suite is not at hand.

use crate::conformance::shared;
use beeline_isa::opcode::{CALL, JMP};
use beeline_vm::corpus::answer;
use beeline_vm::hex;
use serde_json::{Value, json};

/// Programs that return what is not theirs alone: an address, a byte of stack that nobody wrote.
const INCOMPARABLE: [(u64, &str); 11] = [
    (124, "returns a byte of stack that nobody wrote"),
    (232, "returns the context's address"),
    (278, "returns part of a packet's address"),
    (910, "returns a word of stack that nobody wrote"),
    (1012, "returns an address"),
    (1013, "returns an address"),
    (1062, "returns the context's address"),
    (1067, "returns part of the context's address"),
    (1068, "returns part of the context's address"),
    (1149, "returns an address"),
    (733, "was given a packet that the corpus does not have"),
];

/// Helpers that give the same whenever they are called: on maps, in loops. Others tell time, random numbers, ids.
const REPEATABLE: [i32; 8] = [1, 2, 3, 6, 12, 25, 164, 181];

/// True when no call of the program gives another result the next time.
fn is_repeatable(row: &Value) -> bool {
    let insns = hex::instructions(row["insns"].as_str().expect("instructions")).expect("instructions");
    let mut calls = insns.iter().filter(|insn| insn.code == JMP | CALL && insn.src() == 0);
    calls.all(|call| REPEATABLE.contains(&call.imm))
}

/// Programs with several results were run on packets that the corpus does not have.
fn expected(row: &Value) -> Option<u64> {
    let comparable = INCOMPARABLE.iter().all(|(id, _)| row["id"] != *id) && is_repeatable(row);
    match row["retvals"].as_array()?.as_slice() {
        [one] if comparable => one.as_u64(),
        _ => None,
    }
}

#[test]
fn accepted_programs_return_what_the_kernel_says() {
    let Some(rows) = shared("verifier/tests.jsonl") else { return };
    let (mut compared, mut not_run, mut failures) = (0, Vec::new(), Vec::new());
    for row in rows.iter().filter(|row| row["verdict"] == "accept" && row["cls"] != "skb_ctx") {
        let Some(expected) = expected(row) else { continue };
        let answer = answer(&row.to_string());
        let place = format!("{} {}", row["id"], row["name"]);
        match (answer["verdict"].as_str(), answer["retval"].as_u64()) {
            (Some("accept"), Some(returned)) => {
                compared += 1;
                if returned != expected {
                    failures.push(format!("{place}: r0 = {returned:#x}, kernel {expected:#x}"));
                }
            }
            (Some("accept"), None)
                if answer["not_run"].as_str().is_some_and(|why| why.contains("compiled")) =>
            {
                failures.push(format!("{place}: {}", answer["not_run"]));
            }
            (Some("accept"), None) => not_run.push(format!("{place}: {}", answer["not_run"])),
            // Verdicts are the verifier's tests.
            _ => {}
        }
    }
    println!("compared {compared}, not run {}:\n{}", not_run.len(), not_run.join("\n"));
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(compared >= COMPARED_MIN, "only {compared} compared");
    assert!(not_run.len() <= NOT_RUN_MAX, "{} not run:\n{}", not_run.len(), not_run.join("\n"));
}

/// How many results there are to compare at least, and how many programs need what only a kernel has.
const COMPARED_MIN: usize = 350;
const NOT_RUN_MAX: usize = 40;

/// Rows are answered whatever they hold.
#[test]
fn rows_that_are_none_are_errors() {
    let reason = |line: &str| {
        let answer = answer(line);
        assert_eq!(answer["verdict"], "error", "{line}");
        answer["reason"].as_str().expect("a reason").to_owned()
    };
    assert!(reason("{").starts_with("not JSON"));
    assert_eq!(reason("{}"), "\"insns\" is missing or not what it should be");
    assert_eq!(reason(r#"{"insns": "95"}"#), "insns: 1 bytes are not whole instructions of eight bytes");
    let exit = "9500000000000000";
    let with = |key: &str, value: Value| json!({"insns": exit, key: value}).to_string();
    assert_eq!(reason(&with("prog_type", "probe".into())), "unknown program type probe");
    assert_eq!(reason(&with("fixups", json!({"map_tree": [0]}))), "unsupported fixup map_tree");
    assert_eq!(reason(&with("fixups", json!({"prog1": [1]}))), "no instruction 1 to take a map");
}

/// Rows in the form that the kernel's oracle takes: maps of one's own, packets, contexts.
#[test]
fn rows_bring_maps_packets_and_contexts() {
    let check = |row: Value, verdict: &str, retval: Value| {
        let answer = answer(&row.to_string());
        assert_eq!((&answer["verdict"], &answer["retval"]), (&verdict.into(), &retval), "{row}\n{answer}");
        assert_eq!(answer["id"], row["id"]);
    };
    // r0 = 42.
    check(json!({"id": "a", "insns": "b70000002a000000 9500000000000000"}), "accept", 42.into());
    // r0 = *(u32 *)(r1 + 0): the length of the packet behind its header.
    let length = "6110000000000000 9500000000000000";
    check(json!({"id": 1, "insns": length}), "accept", 50.into());
    check(
        json!({"id": 2, "insns": length, "prog_type": "sched_cls", "pkt": "00".repeat(20)}),
        "accept",
        20.into(),
    );
    check(
        json!({"id": 3, "insns": length, "prog_type": "raw_tracepoint", "ctx": "07000000"}),
        "accept",
        7.into(),
    );
    check(json!({"id": 4, "insns": length, "prog_type": "tracepoint"}), "reject", Value::Null);
    // The first word of element 0 of a map.
    let element = "1821000000000000 0000000000000000 6110000000000000 9500000000000000";
    let map = json!({"type": "array", "key": 4, "value": 8, "init": [["00000000", "0b00000000000000"]]});
    check(json!({"id": 5, "insns": element, "maps": {"m": map}, "fixups": {"m": [0]}}), "accept", 11.into());
    check(
        json!({"id": 6, "insns": element, "maps": {"m": "array:4:8:1"}, "fixups": {"m": [0]}}),
        "accept",
        0.into(),
    );
    // Not run when that is not wanted.
    check(json!({"id": 7, "insns": length, "run": false}), "accept", Value::Null);
}
