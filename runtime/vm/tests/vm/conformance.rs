//! The public conformance suite, where it is at hand, on both engines.

use beeline_vm::engine::{Engine, Machine, Setup};
use beeline_vm::hex;
use serde_json::Value;
use std::path::PathBuf;

/// The lines of a file of measuring data, parsed; none when it is not on this machine.
pub(crate) fn shared(file: &str) -> Option<Vec<Value>> {
    let shared = std::env::var_os("BEELINE_SHARED")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared"));
    let path = shared.join(file);
    match std::fs::read_to_string(&path) {
        Ok(text) => Some(text.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()),
        Err(error) => {
            println!("skipped: {}: {error}", path.display());
            None
        }
    }
}

fn check(test: &Value, engine: Engine) -> Result<(), String> {
    let insns =
        hex::instructions(test["insns"].as_str().expect("insns")).map_err(|error| error.to_string())?;
    let mut memory = hex::bytes(test["mem"].as_str().expect("mem")).map_err(|error| error.to_string())?;
    let expected = test["expected"].as_u64().expect("expected");
    // SAFETY: the suite's programs touch the buffer and their stack only, and end.
    let machine =
        unsafe { Machine::new(engine, &insns, Setup::conformance()) }.map_err(|error| error.to_string())?;
    match machine.run(&mut memory) {
        Ok(result) if result == expected => Ok(()),
        Ok(result) => Err(format!("r0 = {result:#x}, expected {expected:#x}")),
        Err(error) => Err(error.to_string()),
    }
}

fn check_all(engine: Engine) {
    let Some(tests) = shared("conformance/vm.jsonl") else { return };
    assert_eq!(tests.len(), 313, "the suite has another size");
    let failures: Vec<String> = tests
        .iter()
        .filter_map(|test| check(test, engine).err().map(|reason| format!("{}: {reason}", test["name"])))
        .collect();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn interpreter_passes() {
    check_all(Engine::Interpreter);
}

#[test]
fn compiler_passes() {
    check_all(Engine::Compiled);
}
