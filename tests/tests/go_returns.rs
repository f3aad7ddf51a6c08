//! Return probes in Go programs: at every `ret`, on stacks that grow and move, on goroutines that change threads. Each hit is a
//! return that the program has counted itself, with the value that it saw.

use beeline_tests::{Store, Target, comes, have, load_counts, object, root};
use std::path::PathBuf;
use std::process::Command;

/// Compiles a program into a folder of its own.
fn compiled(source: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("program");
    let mut build = Command::new("go");
    build.env("GO111MODULE", "off").env("CGO_ENABLED", "0").args(["build", "-o"]).arg(&path);
    let built = build.arg(root().join("tests/targets").join(source)).status();
    assert!(built.is_ok_and(|status| status.success()), "{source} does not compile");
    (folder, path)
}

fn program() -> (tempfile::TempDir, PathBuf) {
    compiled("returns.go")
}

/// Offsets of the instructions of a function, at least five bytes apart: each can have a jump.
fn instructions(program: &str, function: &str) -> Vec<u64> {
    let listed =
        Command::new("objdump").args(["-d", "--no-show-raw-insn"]).arg(program).output().expect("objdump");
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    let body = text.lines().skip_while(|line| !line.ends_with(&format!("<{function}>:"))).skip(1);
    // Behind the function is padding.
    let body = body.take_while(|line| !line.contains("int3"));
    let address = |line: &str| u64::from_str_radix(line.split_once(':')?.0.trim(), 16).ok();
    let all: Vec<u64> = body.map_while(address).collect();
    let mut chosen: Vec<u64> = Vec::new();
    for at in all.iter().map(|at| at - all[0]) {
        if chosen.last().is_none_or(|last| at >= last + 5) {
            chosen.push(at);
        }
    }
    chosen
}

#[test]
fn goroutines_stopped_in_a_window_are_waited_for() {
    if !have(&["go", "objdump"]) {
        return;
    }
    let (_folder, program) = compiled("preempted.go");
    let path = program.to_string_lossy().into_owned();
    let offsets = instructions(&path, "main.spin");
    assert!(offsets.len() > 8, "{offsets:?}");
    let object = object("tests/programs/counts.bpf.c").to_string_lossy().into_owned();
    let store = Store::new();
    let places: Vec<String> = offsets
        .iter()
        .flat_map(|at| ["--attach".to_owned(), format!("on_entry=uprobe:{path}:main.spin+{at}")])
        .collect();
    let load = [&["load", &object], &places.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat();
    store.ok(&load);
    let mut target = Target::spawn(&mut Command::new(&path));
    assert_eq!(target.line(), "ready");
    let pid = target.pid();
    for _ in 0..20 {
        // A place at which a goroutine stands is refused for the moment; so are those that a branch forbids.
        let _ = store.output(&["attach", &pid]);
        let _ = store.output(&["detach", &pid]);
    }
    assert_eq!(target.finish().trim(), "done");
    assert!(store.number("shared", 0) > 0, "probes were hit");
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
