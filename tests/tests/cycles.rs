//! Probes come and go while programs work at full load: no request fails, nobody crashes, text and mappings are as they were.
//!
//! `BEELINE_SOAK` is the number of cycles; CI runs a few on each. How long the threads stood still is printed.

use beeline_tests::servers::{self, Load, Server};
use beeline_tests::{
    Store, Target, can_be_complete, gcc, have, load_counts, object, our_mappings, rounds, text_of,
};
use beeline_watchdog::Watchdog;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Cycles of each kind in CI.
const SLICE: u64 = 10;

/// This is a long run, on a machine that has nothing else to do.
fn is_soak() -> bool {
    std::env::var_os("BEELINE_SOAK").is_some()
}

/// How long threads stood still, in nanoseconds.
#[derive(Default)]
struct Pauses {
    attach: Vec<u64>,
    detach: Vec<u64>,
    /// Attempts at which a probe was refused for the moment.
    again: u64,
    /// Of `attach`.
    options: &'static [&'static str],
}

impl Pauses {
    /// Attaches and detaches once, and looks at what is left.
    fn cycle(&mut self, store: &Store, pids: &[String]) {
        let pids: Vec<&str> = pids.iter().map(String::as_str).collect();
        for (command, pauses) in [("attach", &mut self.attach), ("detach", &mut self.detach)] {
            let options = if command == "attach" { self.options } else { &[] };
            let (report, again) = report(store, &[&[command], options, &pids].concat());
            self.again += again;
            let processes = report.as_array().expect("a list");
            assert_eq!(processes.len(), pids.len(), "{report}");
            let stopped = |process: &Value| process["stopped_ns"].as_u64().expect("a number");
            pauses.extend(processes.iter().map(stopped));
            if command == "detach" {
                assert!(processes.iter().all(|process| process["left"].is_null()), "{report}");
                assert!(processes.iter().all(|it| it["foreign"] == Value::Array(Vec::new())), "{report}");
            }
        }
        for pid in pids {
            assert_eq!(our_mappings(pid), Vec::<String>::new(), "mappings of ours after detach");
        }
    }
}

/// What the command says, and how often it had to be said again: where a signal handler is about to return into a window, or an old
/// word on a stack looks like it, the probe is refused for the moment.
fn report(store: &Store, command: &[&str]) -> (Value, u64) {
    const AGAIN_MAX: u64 = 50;
    let arguments = [&["--json"], command].concat();
    let mut again = 0;
    loop {
        let output = store.output(&arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        if again < AGAIN_MAX && !output.status.success() && errors.contains("try again") {
            again += 1;
            continue;
        }
        assert!(output.status.success(), "{arguments:?} ended with {}: {errors}", output.status);
        return (serde_json::from_slice(&output.stdout).expect("JSON"), again);
    }
}

impl std::fmt::Display for Pauses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, pauses) in [("attach", &self.attach), ("detach", &self.detach)] {
            let mut sorted = pauses.clone();
            sorted.sort_unstable();
            let at = |index: usize| sorted.get(index).copied().unwrap_or(0) as f64 / 1e6;
            let (min, median, max) = (at(0), at(sorted.len() / 2), at(sorted.len().saturating_sub(1)));
            write!(f, ", stopped for {name} {min:.2} / {median:.2} / {max:.2} ms")?;
        }
        if self.again > 0 {
            write!(f, ", {} attempts again", self.again)?;
        }
        Ok(())
    }
}

/// What may not change in a process: the code, and the files that are mapped.
#[derive(PartialEq)]
struct Fixed {
    text: Vec<(u64, Vec<u8>)>,
    files: Vec<String>,
}

fn fixed(pids: &[String]) -> Vec<Fixed> {
    let files = |pid: &String| {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        maps.lines().filter(|line| line.contains(" /")).map(str::to_owned).collect()
    };
    pids.iter().map(|pid| Fixed { text: text_of(pid), files: files(pid) }).collect()
}

/// Cycles on a server under load, with these places probed; `entries_only` where returns cannot be.
fn cycles(name: &str, server: Server, places: &[&str], entries_only: bool) {
    let store = Store::new();
    if entries_only {
        load_entries(&store, places);
    } else {
        load_counts(&store, places);
    }
    cycles_of(&store, name, server, &[], || store.number("shared", 0));
}

/// Cycles on a server under load, every system call of which is traced.
fn cycles_with_calls(name: &str, server: Server) {
    let store = Store::new();
    load_calls(&store);
    cycles_of(&store, name, server, &[], || calls(&store));
}

/// The same with calls of code that is made at run time, which these programs make much of.
fn complete_cycles(name: &str, server: Server) {
    let store = Store::new();
    load_calls(&store);
    cycles_of(&store, name, server, &["--complete"], || calls(&store));
}

fn load_calls(store: &Store) {
    store.ok(&["load", &object("tests/programs/call_counts.bpf.c").to_string_lossy()]);
}

/// System calls that were seen.
fn calls(store: &Store) -> u64 {
    store.entries("enters").iter().filter_map(|(_, value)| value.as_u64()).sum()
}

fn cycles_of(
    store: &Store,
    name: &str,
    mut server: Server,
    options: &'static [&'static str],
    hits: impl Fn() -> u64,
) {
    let watchdog = Watchdog::new(name);
    let pids = server.pids().to_vec();
    // What is loaded at the first request is there.
    servers::assert_clean(&server.client().output().expect("the client runs"));
    let before = fixed(&pids);
    let mut load = Load::new(&server);
    let mut pauses = Pauses { options, ..Pauses::default() };
    let total = rounds(SLICE);
    for _ in 0..total {
        load.keep_up();
        pauses.cycle(store, &pids);
        watchdog.alive();
    }
    let clients = load.finish();
    let hits = hits();
    assert!(hits > 0, "no probe was hit");
    assert!(fixed(&pids) == before, "text and mapped files are as they were");
    assert!(server.is_alive(), "{name} ended");
    println!("{name}: {total} cycles, {clients} clients without an error, {hits} hits{pauses}");
}

fn load_entries(store: &Store, places: &[&str]) {
    let object = object("tests/programs/counts.bpf.c").to_string_lossy().into_owned();
    let attach = places.iter().flat_map(|place| ["--attach".into(), format!("on_entry=uprobe:{place}")]);
    let arguments: Vec<String> = ["load".into(), object].into_iter().chain(attach).collect();
    store.ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn cycles_on_redis() {
    if have(&["redis-server", "redis-cli", "redis-benchmark"]) {
        let server = servers::redis(if is_soak() { 4 } else { 1 });
        let program = std::fs::read_link(format!("/proc/{}/exe", server.pid())).expect("it runs");
        let call = format!("{}:call", program.display());
        cycles(
            "redis",
            server,
            &["libc.so.6:malloc", "libc.so.6:read", "libc.so.6:epoll_wait", &call],
            false,
        );
    }
}

#[test]
fn cycles_on_nginx() {
    if have(&["nginx", "wrk"]) {
        let (server, _) = servers::nginx(4);
        let places = ["libc.so.6:write", "libc.so.6:epoll_wait", "libc.so.6:recv", "libc.so.6:malloc"];
        cycles("nginx", server, &places, false);
    }
}

#[test]
fn cycles_on_node() {
    if have(&["node", "wrk"]) {
        let places = ["libc.so.6:write", "libc.so.6:epoll_pwait", "libc.so.6:read", "libc.so.6:malloc"];
        cycles("node", servers::node(), &places, false);
    }
}

#[test]
fn cycles_on_java() {
    if have(&["java", "javac", "wrk"]) {
        let places =
            ["libc.so.6:pthread_cond_timedwait", "libc.so.6:malloc", "libc.so.6:read", "libc.so.6:write"];
        cycles("java", servers::java(), &places, false);
    }
}

#[test]
fn cycles_on_go() {
    if have(&["go", "wrk"]) {
        let server = servers::go();
        let program = server.folder().join("serve").display().to_string();
        let functions = ["main.answer", "main.deep", "runtime.mallocgc", "runtime.newstack", "fmt.Sprint"];
        let places = functions.map(|name| format!("{program}:{name}"));
        cycles("go", server, &places.each_ref().map(String::as_str), true);
    }
}

#[test]
fn complete_on_nginx() {
    if can_be_complete() && have(&["nginx", "wrk"]) {
        complete_cycles("nginx, --complete", servers::nginx(4).0);
    }
}

#[test]
fn complete_on_node() {
    if can_be_complete() && have(&["node", "wrk"]) {
        complete_cycles("node, --complete", servers::node());
    }
}

#[test]
fn complete_on_java() {
    if can_be_complete() && have(&["java", "javac", "wrk"]) {
        complete_cycles("java, --complete", servers::java());
    }
}

#[test]
fn complete_on_go() {
    if can_be_complete() && have(&["go", "wrk"]) {
        complete_cycles("go, --complete", servers::go());
    }
}

#[test]
fn system_calls_on_redis() {
    if have(&["redis-server", "redis-cli", "redis-benchmark"]) {
        cycles_with_calls("redis, system calls", servers::redis(if is_soak() { 4 } else { 1 }));
    }
}

#[test]
fn system_calls_on_nginx() {
    if have(&["nginx", "wrk"]) {
        cycles_with_calls("nginx, system calls", servers::nginx(4).0);
    }
}

#[test]
fn system_calls_on_node() {
    if have(&["node", "wrk"]) {
        cycles_with_calls("node, system calls", servers::node());
    }
}

#[test]
fn system_calls_on_java() {
    if have(&["java", "javac", "wrk"]) {
        cycles_with_calls("java, system calls", servers::java());
    }
}

#[test]
fn system_calls_on_go() {
    if have(&["go", "wrk"]) {
        cycles_with_calls("go, system calls", servers::go());
    }
}

#[test]
fn cycles_on_threads() {
    let program = gcc("tests/targets/sleepers.c");
    let store = Store::new();
    load_counts(&store, &[&format!("{}:work", program.display())]);
    on_threads("threads", &program, &store, || store.number("shared", 0));
}

#[test]
fn system_calls_on_threads() {
    let store = Store::new();
    load_calls(&store);
    on_threads("threads, system calls", &gcc("tests/targets/sleepers.c"), &store, || calls(&store));
}

/// Five hundred threads, nearly all of them blocked in system calls, none of which may notice.
fn on_threads(name: &str, program: &Path, store: &Store, hits: impl Fn() -> u64) {
    let mut sleepers = Target::spawn(Command::new(program).arg("500"));
    assert_eq!(sleepers.line(), "ready");
    let watchdog = Watchdog::new(name);
    let pids = [sleepers.pid()];
    let before = fixed(&pids);
    let mut pauses = Pauses::default();
    let total = rounds(SLICE);
    for _ in 0..total {
        pauses.cycle(store, &pids);
        watchdog.alive();
    }
    assert!(fixed(&pids) == before, "text and mapped files are as they were");
    sleepers.send("stop");
    assert_eq!(sleepers.finish().trim(), "disturbed 0");
    println!("{name}: {total} cycles, 500 threads, none disturbed, {} hits{pauses}", hits());
}
