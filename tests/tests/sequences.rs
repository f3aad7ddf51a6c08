//! Stubs leave a thread's `struct rseq` naming their sequence (`stub::cpu`): when code goes, nobody names it any more, threads that have
//! ended included. The kernel kills a thread whose sequence is not there.

use beeline_tests::{Store, Target, gcc, object, our_mappings};
use std::process::Command;

/// A target with a store that counts per CPU at `work`; none where the C library registers no `struct rseq`.
fn attached() -> Option<(Store, Target, String)> {
    let program = gcc("tests/targets/sequences.c");
    let mut target = Target::spawn(&mut Command::new(&program));
    if target.line() != "ready" {
        println!("skipped: libc registers no struct rseq");
        return None;
    }
    let store = Store::new();
    let place = format!("{}:work", program.display());
    load(&store, "work", &place);
    store.ok(&["attach", &target.pid()]);
    Some((store, target, program.display().to_string()))
}

/// Loads the counters under a name of their own.
fn load(store: &Store, name: &str, place: &str) {
    let object = object("tests/programs/percpu.bpf.c");
    let link = format!("count=uprobe:{place}");
    store.ok(&["load", &object.to_string_lossy(), "--name", name, "--attach", &link]);
}

fn ask(target: &mut Target, what: &str) -> String {
    target.send(what);
    target.line()
}

#[test]
fn nobody_names_a_sequence_of_what_was_detached() {
    let Some((store, mut target, _)) = attached() else { return };
    for _ in 0..3 {
        assert_eq!(ask(&mut target, "work"), "1 1", "the thread that has ended, and the main one");
        store.ok(&["detach", &target.pid()]);
        assert_eq!(ask(&mut target, "look"), "0 0");
        store.ok(&["attach", &target.pid()]);
    }
    target.send("end");
    target.finish();
}

#[test]
fn nobody_names_a_sequence_of_what_was_swept_out() {
    let Some((store, mut target, program)) = attached() else { return };
    for _ in 0..3 {
        load(&store, "other", &format!("{program}:other"));
        store.ok(&["attach", &target.pid()]);
        let mapped = our_mappings(&target.pid()).len();
        assert_eq!(ask(&mut target, "other"), "1 1", "the thread that has ended, and the main one");
        store.ok(&["unload", "other"]);
        store.ok(&["attach", &target.pid()]);
        // What the second attach has mapped goes at the latest by one more.
        store.ok(&["attach", &target.pid()]);
        assert!(our_mappings(&target.pid()).len() < mapped, "its code is out");
        assert_eq!(ask(&mut target, "look"), "0 0");
    }
    assert_eq!(ask(&mut target, "work"), "1 1", "the first probe is there");
    target.send("end");
    target.finish();
}
