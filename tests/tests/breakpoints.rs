//! Breakpoints through the command: only when asked for, said by the lists, inherited by what is started, with system calls traced as
//! well, and with commands killed in the middle.

use beeline_tests::{
    Random, Store, Target, comes, gcc, load_counts, object, our_mappings, rounds, run_and_kill, target,
};
use beeline_watchdog::Watchdog;
use std::process::{Command, Stdio};
use std::time::Duration;

const SOURCE: &str = "injector/inject/tests/breakpoints/target.c";

/// A process, and a store with probes of its functions; no jump fits at `looped`.
fn started() -> (Target, Store, String) {
    let program = gcc(SOURCE);
    let store = Store::new();
    let place = |function: &str| format!("{}:{function}", program.display());
    load_counts(&store, &[&place("looped"), &place("probed")]);
    let mut target = Target::spawn(&mut Command::new(&program));
    assert_eq!(target.line(), "ready");
    (target, store, program.display().to_string())
}

fn say(target: &mut Target, what: &str) {
    target.send(what);
    assert_eq!(target.line(), "0", "{what}: the line of the target at which something went wrong");
}

const EVERYTHING: [&str; 5] = ["masks", "errors", "actions", "children", "10"];

#[test]
fn only_when_asked_for_and_told_of() {
    let (mut target, store, _) = started();
    let pid = target.pid();
    let message = store.fails(&["attach", &pid]);
    assert!(message.contains("--breakpoints puts an int3 there"), "{message}");
    assert!(!store.ok(&["ps", "-v"]).contains("int3"));
    store.ok(&["attach", "--breakpoints", &pid]);
    assert!(store.ok(&["ps", "-v"]).contains("1 site is an int3; SIGTRAP is kept deliverable"));
    let links = store.ok(&["link", "show"]);
    assert!(links.contains("1 place (1 int3)") && links.contains("1 place  missed"), "{links}");
    for what in EVERYTHING {
        say(&mut target, what);
    }
    store.ok(&["detach", &pid]);
    assert_eq!(our_mappings(&pid), Vec::<String>::new());
    for what in EVERYTHING {
        say(&mut target, what);
    }
}

#[test]
fn what_is_started_and_its_children() {
    let (_, store, program) = started();
    let mut command = store.command(&["start", "--breakpoints", "--", &program]);
    let mut target = Target::spawn(&mut command);
    assert_eq!(target.line(), "ready");
    for what in EVERYTHING {
        say(&mut target, what);
    }
    let before = store.number("shared", 0);
    say(&mut target, "10");
    assert_eq!(store.number("shared", 0) - before, 30 * 4);
    // What a shell executes has them, too.
    let script = format!("(echo 10; echo masks) | {program}");
    let output = store.output(&["start", "--breakpoints", "--", "sh", "-c", &script]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ready\n0\n0\n");
}

#[test]
fn with_system_calls_traced() {
    let (mut target, store, _) = started();
    let pid = target.pid();
    store.ok(&["attach", "--breakpoints", &pid]);
    say(&mut target, "masks");
    // Traced later, and before.
    store.ok(&["load", &object("tests/programs/call_counts.bpf.c").to_string_lossy()]);
    for _ in 0..2 {
        store.ok(&["attach", "--breakpoints", &pid]);
        for what in EVERYTHING {
            say(&mut target, what);
        }
        store.ok(&["detach", &pid]);
    }
    say(&mut target, "actions");
}

#[test]
fn commands_killed_at_any_moment() {
    let (mut target, store, _) = started();
    let pid = target.pid();
    let watchdog = Watchdog::new("breakpoints and killed commands");
    let mut random = Random::new(0x9E37_79B9_7F4A_7C15);
    let mut killed = 0;
    for round in 0..rounds(30) {
        watchdog.alive();
        let attach = ["attach", "--breakpoints", &pid];
        let arguments: &[&str] = if round % 2 == 0 { &attach } else { &["detach", &pid] };
        if round % 2 == 1 {
            store.ok(&attach);
        }
        say(&mut target, "run");
        let delay = Duration::from_micros(random.below(25_000));
        killed += u64::from(run_and_kill(&store, arguments, delay));
        say(&mut target, "stop");
        say(&mut target, "actions");
        say(&mut target, "masks");
        store.ok(&attach);
        let before = store.number("shared", 0);
        say(&mut target, "10");
        assert!(comes(|| store.number("shared", 0) >= before + 120), "round {round}");
        store.ok(&["detach", &pid]);
        say(&mut target, "actions");
    }
    println!("{killed} found the command running");
}

#[test]
fn a_follower_killed_while_breakpoints_are_hit() {
    let (mut target, store, _) = started();
    let pid = target.pid();
    for _ in 0..rounds(10) {
        say(&mut target, "hit");
        let before = store.number("shared", 0);
        let mut command = store.command(&["attach", "--follow", "--breakpoints", &pid]);
        let mut follower = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("beeline runs");
        assert!(comes(|| store.number("shared", 0) > before + 1000));
        follower.kill().expect("it runs");
        follower.wait().expect("a child of ours");
        say(&mut target, "stop");
        say(&mut target, "masks");
    }
    store.ok(&["detach", &pid]);
    say(&mut target, "actions");
}

#[test]
fn a_program_whose_calls_a_guard_cannot_see_gets_none() {
    if !beeline_tests::have(&["musl-gcc"]) {
        return;
    }
    let program = target(SOURCE, "musl-shared", "musl-gcc", &[]);
    let store = Store::new();
    load_counts(&store, &[&format!("{}:looped", program.display())]);
    let mut target = Target::spawn(&mut Command::new(&program));
    assert_eq!(target.line(), "ready");
    let message = store.fails(&["attach", "--breakpoints", &target.pid()]);
    assert!(message.contains("can block signals and cannot be traced"), "{message}");
    say(&mut target, "10");
}
