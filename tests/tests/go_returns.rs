//! Return probes in Go programs: at every `ret`, on stacks that grow and move, on goroutines that change threads. Each hit is a
//! return that the program has counted itself, with the value that it saw.

use beeline_tests::{Store, Target, comes, have, load_counts, object, root};
use std::path::PathBuf;
use std::process::Command;

/// Compiles the program into a folder of its own.
fn program() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("returns");
    let mut build = Command::new("go");
    build.env("GO111MODULE", "off").env("CGO_ENABLED", "0").args(["build", "-o"]).arg(&path);
    let built = build.arg(root().join("tests/targets/returns.go")).status();
    assert!(built.is_ok_and(|status| status.success()), "returns.go does not compile");
    (folder, path)
}

/// Calls of a function and the sum of its results, as the program says.
fn counted(said: &str, function: &str) -> (u64, u64) {
    let line = said.lines().find_map(|line| line.strip_prefix(&format!("{function} ")));
    let words: Vec<u64> = line.unwrap_or_default().split(' ').filter_map(|word| word.parse().ok()).collect();
    assert_eq!(words.len(), 2, "{function} in {said}");
    (words[0], words[1])
}

#[test]
fn every_return_is_seen_with_its_value() {
    if !have(&["go"]) {
        return;
    }
    let (_folder, program) = program();
    let path = program.to_string_lossy().into_owned();
    for function in ["choose", "recovers", "waits", "deep"] {
        let store = Store::new();
        let object = object("tests/programs/counts.bpf.c").to_string_lossy().into_owned();
        let place = format!("on_return=uretprobe:{path}:main.{function}");
        store.ok(&["load", &object, "--attach", &place]);
        let said = store.ok(&["start", "--", &path, "100"]);
        let (calls, results) = counted(&said, function);
        let missed = store.json(&["link", "list"])[0]["missed"].as_u64().expect("a number");
        assert_eq!(store.number("shared", 1) + missed, calls, "returns of {function}");
        if missed == 0 {
            assert_eq!(store.global("result_sum"), results, "results of {function}");
        }
    }
}

#[test]
fn what_is_left_otherwise_is_refused_as_a_whole() {
    if !have(&["go"]) {
        return;
    }
    let (_folder, program) = program();
    let path = program.to_string_lossy().into_owned();
    let object = object("tests/programs/counts.bpf.c").to_string_lossy().into_owned();
    let reasons = [
        // A `ret` between two labels: no jump fits, and the function's other returns are not counted either.
        ("main.table", "has no room for a jump"),
        ("runtime.cmpstring", "is also left at"),
        ("runtime.panicwrap", "does not return"),
        // Its flags are those of the instruction that a signal has interrupted.
        ("runtime.asyncPreempt.abi0", "is made to run in the middle of other functions"),
    ];
    for (function, reason) in reasons {
        let store = Store::new();
        store.ok(&["load", &object, "--attach", &format!("on_return=uretprobe:{path}:{function}")]);
        let output = store.output(&["start", "--", &path, "3"]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.contains(reason), "{function}: {errors}");
        assert_eq!(store.number("shared", 1), 0, "{function}");
    }
}

#[test]
fn probes_at_returns_come_and_go() {
    if !have(&["go"]) {
        return;
    }
    let (_folder, program) = program();
    let path = program.to_string_lossy().into_owned();
    let store = Store::new();
    load_counts(&store, &[&format!("{path}:main.choose"), &format!("{path}:main.deep")]);
    let target = Target::spawn(Command::new(&path).arg("4000"));
    let pid = target.pid();
    for _ in 0..10 {
        let before = store.number("shared", 1);
        store.ok(&["attach", &pid]);
        assert!(comes(|| store.number("shared", 1) > before), "returns are counted");
        store.ok(&["detach", &pid]);
    }
    let said = target.finish();
    assert_eq!(counted(&said, "choose").0, 32_000);
    assert_eq!(counted(&said, "deep").1, 8 * 3000 * 3001 / 2);
}
