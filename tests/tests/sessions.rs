//! Sessions: one program at the entry of a function and at its return, with a word of its own for each call.

use beeline_tests::{Store, Target, gcc, object};
use std::path::Path;
use std::process::Command;

/// `many` with one round: how often its functions are called, and the cookies that make their results come out.
const CALLS: u64 = 12 * 13 / 2;

fn load(store: &Store, attach: &str) {
    let object = object("tests/programs/session.bpf.c");
    store.ok(&["load", &object.to_string_lossy(), "--attach", attach]);
}

#[test]
fn cookies_last_from_the_entry_to_the_return() {
    let program = gcc("tests/targets/many.c");
    let store = Store::new();
    // The cookie of the link is what each function adds.
    let places: Vec<String> = (0..12).map(|n| format!("many_{n}#{n}")).collect();
    load(&store, &format!("both=uprobe.session:{}:{}", program.display(), places.join(",")));
    let links = store.json(&["link", "list"]);
    assert_eq!(
        (links.as_array().map(Vec::len), links[0]["type"].as_str()),
        (Some(1), Some("uprobe.session"))
    );
    store.ok(&["start", "--", &program.to_string_lossy(), "3"]);
    let seen = ["entries", "returns", "wrong_cookies", "wrong_results"].map(|name| store.global(name));
    assert_eq!(seen, [3 * CALLS, 3 * CALLS, 0, 0]);
    assert_eq!(store.json(&["link", "list"])[0]["missed"], 0);
}

#[test]
fn what_it_returns_at_the_entry_decides() {
    let program = gcc("tests/targets/many.c");
    let store = Store::new();
    load(&store, &format!("every_second=uprobe.session:{}:many_*", program.display()));
    store.ok(&["start", "--", &program.to_string_lossy(), "2"]);
    assert_eq!((store.global("calls"), store.global("returns")), (2 * CALLS, CALLS));
}

#[test]
fn calls_within_calls_and_threads() {
    let program = gcc("tests/targets/recursive.c");
    let store = Store::new();
    load(&store, &format!("nested=uprobe.session:{}:deep", program.display()));
    store.ok(&["start", "--", &program.to_string_lossy(), "4", "500", "50"]);
    let seen = ["entries", "returns", "wrong_cookies"].map(|name| store.global(name));
    let calls = 4 * 500 * 51;
    assert_eq!(seen, [calls, calls, 0]);
}

/// Attaches `several` to `deep` of a process four times over: three run, and the fourth is told that there is no room.
fn attach_several(store: &Store, process: &Target, program: &Path) {
    let object = object("tests/programs/session.bpf.c").to_string_lossy().into_owned();
    let places: Vec<String> =
        (0..4).map(|link| format!("several=uprobe.session:{}:deep#{link}", program.display())).collect();
    let attach = places.iter().flat_map(|place| ["--attach", place]);
    store.ok(&["load", &object].into_iter().chain(attach).collect::<Vec<_>>());
    let message = store.fails(&["attach", &process.pid()]);
    assert!(message.contains("several.4 is refused in process"), "{message}");
    assert!(message.contains("3 sessions are at"), "{message}");
}

#[test]
fn several_at_one_place() {
    let program = gcc("tests/targets/recursive.c");
    let store = Store::new();
    let mut process = Target::spawn(Command::new(&program).args(["4", "100", "20", "before"]));
    assert_eq!(process.line(), "waits");
    attach_several(&store, &process, &program);
    process.send("go");
    assert_eq!(process.line(), "done");
    process.finish();
    let seen = ["entries", "returns", "wrong_cookies"].map(|name| store.global(name));
    // Depths 0 to 20: seven of each remainder.
    let calls = 4 * 100 * 21;
    assert_eq!(seen, [3 * calls, 2 * calls, 0]);
}

/// The others move up when one goes, and what is on its way keeps its words.
#[test]
fn one_of_several_goes() {
    let program = gcc("tests/targets/recursive.c");
    let store = Store::new();
    let mut process = Target::spawn(Command::new(&program).args(["1", "11", "20", "within"]));
    assert_eq!(process.line(), "waits");
    attach_several(&store, &process, &program);
    process.send("go");
    assert_eq!(process.line(), "waits");
    store.ok(&["link", "detach", "several"]);
    process.send("go");
    assert_eq!(process.line(), "done");
    process.finish();
    let seen = ["entries", "returns", "wrong_cookies"].map(|name| store.global(name));
    // The first ten rounds, of which the last returns without the first session; one round of two sessions.
    assert_eq!(seen, [(10 * 3 + 2) * 21, (9 * 3 + 2 + 2) * 14, 0]);
}

/// In a process that runs, beside other probes of the same place, turned off and taken out.
#[test]
fn beside_other_links() {
    let program = gcc("tests/targets/many.c");
    let store = Store::new();
    load(&store, &format!("every_second=uprobe.session:{}:many_3", program.display()));
    let others = object("tests/programs/multi.bpf.c");
    let place = |kind: &str, name: &str| format!("{name}={kind}:{}:many_3", program.display());
    store.ok(&[
        "load",
        &others.to_string_lossy(),
        "--attach",
        &place("uprobe", "on_entry"),
        "--attach",
        &place("uretprobe", "on_return"),
    ]);
    let mut process = Target::spawn(Command::new(&program).args(["10", "wait"]));
    assert_eq!(process.line(), "ready");
    store.ok(&["attach", &process.pid()]);
    let shown = store.json(&["link", "show", "every_second"]);
    assert_eq!(shown[0]["processes"][0]["places"], 1, "{shown}");
    process.send("go");
    while !process.line().starts_with("sum") {}
    let total = |map: &str| -> u64 {
        store.entries(map).iter().map(|(_, value)| value.as_u64().expect("a number")).sum()
    };
    // `many_3` is called four times a round.
    let session = || ["calls", "returns"].map(|name| store.global(name));
    assert_eq!((session(), total("entries_by_address"), total("returns_by_address")), ([40, 20], 40, 40));
    store.ok(&["detach", &process.pid()]);
    process.send("end");
    process.finish();
}

/// The kernel refuses the same.
#[test]
fn refused() {
    let load = |name: &str, flags: &[&str]| {
        let source = beeline_tests::root().join("tests/programs/session_refused.bpf.c");
        let output = std::env::temp_dir().join(format!("beeline-{name}-{}.o", std::process::id()));
        let mut clang = Command::new("clang");
        clang.args(["-g", "-O2", "-target", "bpf", "-D__TARGET_ARCH_x86", "-I"]);
        clang.arg(format!("/usr/include/{}-linux-gnu", std::env::consts::ARCH));
        let status = clang.args(flags).arg("-c").arg(&source).arg("-o").arg(&output).status();
        assert!(status.expect("clang runs").success());
        let message = Store::new().fails(&["load", &output.to_string_lossy()]);
        std::fs::remove_file(output).expect("it is ours");
        message
    };
    let message = load("session-no", &[]);
    assert!(message.contains("calling kernel function bpf_session_cookie is not allowed"), "{message}");
    let message = load("session-two", &["-DRETURNS_TWO"]);
    assert!(
        message
            .contains("At program exit the register R0 has unknown scalar value should have been in [0, 1]"),
        "{message}"
    );
    let program = gcc("tests/targets/many.c");
    let attach = |source: &str, program_name: &str, kind: &str| {
        let object = object(source).to_string_lossy().into_owned();
        let place = format!("{program_name}={kind}:{}:many_3", program.display());
        Store::new().fails(&["load", &object, "--attach", &place])
    };
    let message = attach("tests/programs/session.bpf.c", "both", "uprobe");
    assert!(message.contains("it can be attached as uprobe.session only"), "{message}");
    let message = attach("tests/programs/multi.bpf.c", "on_entry", "uprobe.session");
    assert!(message.contains("not as a session"), "{message}");
}
