//! System calls as programs in the kernel see them, in processes that end, fork and forbid in unusual ways.

use beeline_tests::{Store, Target, have, object, root, target};
use std::path::{Path, PathBuf};
use std::process::Command;

fn load(store: &Store) {
    store.ok(&["load", &object("tests/programs/as_the_kernel.bpf.c").to_string_lossy()]);
}

/// The target, linked in each way that there is a compiler for.
fn targets() -> Vec<PathBuf> {
    let linked: [(&str, &[&str]); 4] = [
        ("gcc", &["-pthread"]),
        ("gcc", &["-pthread", "-static"]),
        ("musl-gcc", &["-pthread"]),
        ("musl-gcc", &["-pthread", "-static"]),
    ];
    let there = linked.into_iter().filter(|(compiler, _)| have(&[compiler]));
    there
        .map(|(compiler, flags)| {
            let variant = format!("{compiler}-{}", flags.len());
            target("tests/targets/as_the_kernel.c", &variant, compiler, flags)
        })
        .collect()
}

/// Runs all of them with this argument; each has to end well. Gives what it printed to `look`, with the store.
fn in_each(way: &str, look: impl Fn(&Path, &str, &Store)) {
    for program in targets() {
        let store = Store::new();
        load(&store);
        let output = store.output(&["start", "--no-follow", "--", &program.to_string_lossy(), way]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.ends_with("done\n"), "{program:?} {way}: {output:?}");
        look(&program, &text, &store);
    }
}

/// musl unmaps the stack of such a thread before its last call.
#[test]
fn threads_that_end_without_a_stack() {
    in_each("detached", |_, _, _| {});
}

#[test]
fn the_time_stamp_counter_is_left_alone_when_it_is_forbidden() {
    in_each("counter", |program, _, store| assert!(store.global("clock") != 0, "{program:?}"));
    in_each("strict", |_, _, _| {});
}

/// By the process before we come, or by the program that executed it.
#[test]
fn a_counter_that_was_forbidden_before() {
    const FORBIDS: &str = "import ctypes, os, sys\nctypes.CDLL(None).prctl(26, 2, 0, 0, 0)\nos.execv(sys.argv[1], sys.argv[1:])";
    for program in targets() {
        let (store, path) = (Store::new(), program.to_string_lossy());
        load(&store);
        let mut waiting = Target::spawn(Command::new(&program).args(["counter", "wait"]));
        assert_eq!(waiting.line(), "ready");
        store.ok(&["attach", &waiting.pid()]);
        waiting.send("");
        assert_eq!(waiting.finish(), "done\n", "{program:?}");
        assert!(store.global("clock") != 0, "{program:?}");
        let executed = ["python3", "-c", FORBIDS, &path, "order"];
        let untraced = Command::new(executed[0]).args(&executed[1..]).output();
        // glibc's loader reads it.
        if untraced.is_ok_and(|output| output.status.success()) {
            assert_eq!(store.ok(&[&["start", "--"], &executed[..]].concat()), "done\n", "{program:?}");
        }
    }
}

#[test]
fn calls_that_a_process_has_handed_to_itself_are_its_own() {
    let Some(program) = targets().into_iter().next() else { return };
    let untraced = Command::new(&program).arg("dispatch").output().expect("it runs");
    if !untraced.status.success() {
        println!("skipped: no syscall user dispatch");
        return;
    }
    in_each("dispatch", |_, _, _| {});
    let store = Store::new();
    load(&store);
    let mut waiting = Target::spawn(Command::new(&program).args(["dispatch", "wait"]));
    assert_eq!(waiting.line(), "ready");
    let message = store.fails(&["attach", &waiting.pid()]);
    assert!(message.contains("PR_SET_SYSCALL_USER_DISPATCH"), "{message}");
    waiting.send("");
    assert_eq!(waiting.finish(), "done\n");
}

#[test]
fn registers_behind_a_call() {
    in_each("registers", |_, _, _| {});
}

#[test]
fn numbers_are_ints() {
    in_each("upper", |program, _, store| {
        assert_eq!((store.global("raw_number"), store.global("enter_number")), (110, 110), "{program:?}");
    });
    in_each("none", |program, _, store| {
        for variable in ["raw_number", "enter_number", "exit_number"] {
            let map = store.json(&["map", "list"]);
            let name = map.as_array().and_then(|maps| {
                maps.iter().filter_map(|map| map["name"].as_str()).find(|name| name.contains(".bss"))
            });
            let dump = store.ok(&["--json", "map", "dump", name.expect("there is one")]);
            assert!(dump.replace(' ', "").contains(&format!("\"{variable}\":-1")), "{program:?}: {dump}");
        }
    });
}

/// In the kernel tracepoints come before the function for a call, and behind it.
#[test]
fn order_of_programs() {
    in_each("order", |program, _, store| assert_eq!(store.global("order"), 12345, "{program:?}"));
}

const CLONES: [u64; 4] = [56, 57, 58, 435];
const GETPPID: u64 = 110;

/// Ends of calls with one of these numbers, in the process and in all others.
fn ends(store: &Store, pid: u64, numbers: &[u64]) -> (u64, u64) {
    let mut found = (0, 0);
    for (key, value) in store.entries("ends") {
        let (Some(key), Some(value)) = (key.as_u64(), value.as_u64()) else { continue };
        if numbers.contains(&(key & 0xffff_ffff)) {
            *(if key >> 32 == pid { &mut found.0 } else { &mut found.1 }) += value;
        }
    }
    found
}

/// The first line is the process's id.
fn first_number(text: &str) -> u64 {
    text.lines().next().and_then(|line| line.parse().ok()).unwrap_or_else(|| panic!("{text}"))
}

/// Children on their parent's memory are known by their own ids, and the parent by its own when it goes on.
#[test]
fn children_on_the_same_memory() {
    in_each("children", |program, text, store| {
        let pid = first_number(text);
        assert_eq!(ends(store, pid, &CLONES), (2, 2), "{program:?}");
        assert_eq!(ends(store, pid, &[GETPPID]).0, 10, "{program:?}");
    });
}

#[test]
fn children_of_go() {
    if !have(&["go"]) {
        return;
    }
    let program = std::env::temp_dir().join(format!("beeline-execs-{}", std::process::id()));
    let source = root().join("tests/targets/execs.go");
    let mut build = Command::new("go");
    let built = build.env("CGO_ENABLED", "0").args(["build", "-o"]).arg(&program).arg(source).status();
    if !built.is_ok_and(|status| status.success()) {
        println!("skipped: no Go");
        return;
    }
    let store = Store::new();
    load(&store);
    let text = store.ok(&["start", "--no-follow", "--", &program.to_string_lossy()]);
    assert!(text.ends_with("done\n"), "{text}");
    let pid = first_number(&text);
    assert_eq!(ends(&store, pid, &[GETPPID]), (60, 0));
    let (own, child) = ends(&store, pid, &CLONES);
    assert!(own > 1 && child == 1, "{own} in the parent, {child} in the child that executes");
    let _ = std::fs::remove_file(program);
}

/// What is said of programs at system calls: that they are in no file, and which one will not run.
#[test]
fn links_of_system_calls_are_described() {
    let store = Store::new();
    load(&store);
    let text = store.ok(&["link", "show", "enter_own_record"]);
    assert!(!text.contains("build-id") && !text.contains("file offset"), "{text}");
    let shown = store.json(&["link", "show", "enter_own_record"]);
    assert!(shown[0]["file_offset"].is_null(), "{shown}");
    store.ok(&["unload", "as_the_kernel"]);
    let object = object("tests/programs/as_the_kernel.bpf.c").to_string_lossy().into_owned();
    let function = "enter_own_record=uprobe:libc.so.6:getppid";
    let message = store.fails(&["load", "--attach", function, &object]);
    assert!(message.contains("runs at system calls, where its section says"), "{message}");
    let object = beeline_tests::object("tests/programs/never_runs.bpf.c");
    let output = store.output(&["load", &object.to_string_lossy()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("returns will never run"), "{output:?}");
}
