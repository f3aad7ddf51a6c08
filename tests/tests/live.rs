//! Attach and detach on real servers under load, and on processes with many blocked threads.

use beeline_tests::servers::{self, Server, assert_clean, redis_benchmark, redis_cli};
use beeline_tests::{Store, Target, gcc, have, load_counts, object, rounds, target, text_of};
use std::process::Command;
use std::time::Duration;

#[test]
fn counts_on_redis_are_those_of_its_commands() {
    if !have(&["redis-server", "redis-cli", "redis-benchmark"]) {
        return;
    }
    let server = servers::redis(1);
    let store = Store::new();
    // Redis has an allocator of its own, so libc's malloc() would count nothing; every command goes through call().
    let program = std::fs::read_link(format!("/proc/{}/exe", server.pid())).expect("it runs");
    load_counts(&store, &[&format!("{}:call", program.display())]);
    // What asking costs is known from asking twice.
    let (first, second) = (commands_processed(&server), commands_processed(&server));
    let asking = second - first;
    store.ok(&["attach", &server.pid()]);
    assert_clean(&redis_benchmark(&server, 10_000).output().expect("redis-benchmark runs"));
    store.ok(&["detach", &server.pid()]);
    let commands = commands_processed(&server) - second - asking;
    assert!(commands >= 30_000, "three commands, 10,000 times each: {commands}");
    assert_eq!(store.number("shared", 0), commands, "entries against what redis says it processed");
    assert_eq!(store.number("shared", 1), commands, "returns");
    assert_eq!(store.percpu_sum("percpu", 0), commands, "per-CPU counter");
}

/// What redis itself says: commands processed since it started, without the one that asks.
fn commands_processed(server: &Server) -> u64 {
    let mut ask = redis_cli(server);
    let text = String::from_utf8(ask.args(["info", "stats"]).output().expect("redis-cli runs").stdout)
        .expect("text");
    let line = text.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or_else(|| panic!("no count in: {text}"))
}

#[test]
fn nginx_under_load_counts_each_connection() {
    if !have(&["nginx", "wrk"]) {
        return;
    }
    let (server, port) = servers::nginx(2);
    let workers = server.pids();
    let store = Store::new();
    // nginx writes one line to its access log for each request, by write(2).
    load_counts(&store, &["libc.so.6:write"]);
    for worker in workers {
        store.ok(&["attach", worker]);
    }
    let log = server.folder().join("access.log");
    let lines = || std::fs::read_to_string(&log).map_or(0, |text| text.lines().count() as u64);
    let before = lines();
    assert_clean(&servers::wrk(port, 2).output().expect("wrk runs"));
    // Connections that were cut off at the end are logged when the server notices.
    for _ in 0..100 {
        if store.number("shared", 0) == lines() - before {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    for worker in workers {
        store.ok(&["detach", worker]);
    }
    let requests = lines() - before;
    assert!(requests > 0);
    assert_eq!(store.number("shared", 0), requests, "write() calls against lines in the access log");
    assert_eq!(store.number("shared", 1), requests, "returns of write()");
}

#[test]
fn blocked_threads_are_not_disturbed() {
    let program = gcc("tests/targets/sleepers.c");
    let store = Store::new();
    load_counts(&store, &[&format!("{}:work", program.display())]);
    let mut sleepers = Target::spawn(Command::new(&program).arg("50"));
    assert_eq!(sleepers.line(), "ready");
    let before = text_of(&sleepers.pid());
    for _ in 0..rounds(20) {
        store.ok(&["attach", &sleepers.pid()]);
        store.ok(&["detach", &sleepers.pid()]);
    }
    assert!(text_of(&sleepers.pid()) == before, "text is as it was");
    sleepers.send("stop");
    assert_eq!(sleepers.finish().trim(), "disturbed 0");
}

#[test]
fn load_after_attach_reaches_the_process_at_the_next_attach() {
    let program = gcc("tests/targets/worker.c");
    let store = Store::new();
    let mut worker = Target::spawn(Command::new(&program).args(["2", "1000", "wait"]));
    assert_eq!(worker.line(), "ready");
    let malloc = object("examples/malloc-counter/malloc.bpf.c");
    store.ok(&["load", &malloc.to_string_lossy()]);
    store.ok(&["attach", &worker.pid()]);
    load_counts(&store, &[&format!("{}:work", program.display())]);
    store.ok(&["attach", &worker.pid()]);
    store.ok(&["attach", &worker.pid()]);
    worker.send("go");
    assert!(worker.line().contains("work 2000"));
    assert_eq!(store.number("shared", 0), 2000, "attached once, however often it is asked for");
    store.ok(&["unload", "counts"]);
    worker.send("end");
    worker.finish();
}

#[test]
fn a_target_that_exits_or_execs_under_probes_is_not_harmed() {
    let store = Store::new();
    let malloc = object("examples/malloc-counter/malloc.bpf.c");
    store.ok(&["load", &malloc.to_string_lossy()]);
    let script = "for i in 1 2 3 4 5; do /bin/true; (exit 3); done; exec /bin/echo done";
    assert_eq!(store.ok(&["start", "--", "/bin/bash", "-c", script]).trim(), "done");
    let output = store.output(&["start", "--", "/bin/sh", "-c", "exit 7"]);
    assert_eq!(output.status.code(), Some(7), "the exit status is the program's");
}

#[test]
fn a_second_store_does_not_see_the_first() {
    let (first, second) = (Store::new(), Store::new());
    let malloc = object("examples/malloc-counter/malloc.bpf.c");
    first.ok(&["load", &malloc.to_string_lossy()]);
    assert_eq!(second.json(&["map", "list"]).as_array().map(Vec::len), Some(0));
    second.ok(&["load", &malloc.to_string_lossy()]);
    first.ok(&["start", "--", "/bin/ls", "/"]);
    assert!(first.percpu_sum("total", 0) > 0);
    assert_eq!(second.percpu_sum("total", 0), 0);
}

/// Exceptions and `backtrace()` go through frames whose return is probed as if it were not.
#[test]
fn exceptions_pass_through_return_probes() {
    if !have(&["g++"]) {
        return;
    }
    for (variant, flags) in [("cxx", &[][..]), ("cxxstatic", &["-static"][..])] {
        let program = target("tests/targets/throw.cc", variant, "g++", flags);
        let path = program.to_string_lossy().into_owned();
        let expected = Command::new(&program).arg("500").output().expect("it runs").stdout;
        let store = Store::new();
        load_counts(&store, &[&format!("{path}:work")]);
        assert_eq!(store.ok(&["start", "--", &path, "500"]), String::from_utf8_lossy(&expected));
        assert_eq!(store.number("shared", 0), 500 * 11, "every call is counted");
        // The frames that an exception leaves never return; those that a backtrace went through are misses.
        assert!(store.number("shared", 1) < 500 * 11);
    }
}

/// A process that stands still for attach may own a CPU in the middle of a program: others wait for it, and lose no hit.
#[test]
fn attaching_one_process_costs_another_no_hit() {
    let program = gcc("tests/targets/worker.c");
    let busy = gcc("tests/targets/sleepers.c");
    let store = Store::new();
    load_counts(&store, &[&format!("{}:work", program.display()), &format!("{}:work", busy.display())]);
    let mut sleepers = Target::spawn(Command::new(&busy).arg("4"));
    assert_eq!(sleepers.line(), "ready");
    let mut worker = Target::spawn(Command::new(&program).args(["4", "2000000", "wait"]));
    assert_eq!(worker.line(), "ready");
    store.ok(&["attach", &worker.pid()]);
    worker.send("go");
    for _ in 0..10 {
        store.ok(&["attach", &sleepers.pid()]);
        store.ok(&["detach", &sleepers.pid()]);
    }
    assert!(worker.line().contains("work 8000000"));
    let pid: u64 = worker.pid().parse().expect("a number");
    assert_eq!(store.number("by_pid", pid), 8_000_000);
    worker.send("end");
    worker.finish();
    sleepers.send("stop");
    assert_eq!(sleepers.finish().trim(), "disturbed 0");
}

/// A function that a coroutine has entered and one that the scheduler has entered return in any order.
#[test]
fn coroutines_return_in_any_order() {
    let program = gcc("tests/targets/coroutines.c");
    let path = program.to_string_lossy().into_owned();
    let store = Store::new();
    load_counts(&store, &[&format!("{path}:work")]);
    assert_eq!(store.ok(&["start", "--", &path, "3000"]).trim(), "runs 1000 1000 1000");
    assert_eq!(store.number("shared", 0), 6000, "each round enters twice");
    assert_eq!(store.number("shared", 1), 6000 - 3, "the last entry of each coroutine never returns");
}

/// Runs the target with a probe at its function's entry and another one `apart` bytes behind it: what the command says on
/// standard error, with the store.
fn nearby(apart: u32) -> (String, Store) {
    let program = gcc("tests/targets/nearby.c");
    let path = program.to_string_lossy().into_owned();
    let store = Store::new();
    load_counts(&store, &[&format!("{path}:nearby")]);
    let again = object("examples/tail-calls/dispatch.bpf.c").to_string_lossy().into_owned();
    store.ok(&["load", &again, "--attach", &format!("dispatch=uprobe:{path}:nearby+{apart}")]);
    let output = store.output(&["start", "--", &path, "1000"]);
    assert!(output.status.success());
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("sum 1498500"),
        "the program computes what it should"
    );
    (String::from_utf8_lossy(&output.stderr).into_owned(), store)
}

/// A short jump leaves room for a long one that begins before five bytes are over.
#[test]
fn probes_four_bytes_apart_both_count() {
    let (errors, store) = nearby(4);
    assert!(!errors.contains("overlap"), "{errors}");
    assert_eq!(store.number("shared", 0), 1000);
    assert_eq!((store.number("counts", 0), store.number("counts", 1)), (100, 900));
}

/// Two jumps cannot overlap: the place that comes first in the program is refused and named, the other works.
#[test]
fn probes_too_close_to_each_other_are_refused() {
    let (errors, store) = nearby(1);
    assert!(errors.contains("overlap"), "the refused probe is named: {errors}");
    assert_eq!(store.number("shared", 0), 0);
    assert_eq!((store.number("counts", 0), store.number("counts", 1)), (100, 900));
}

#[test]
fn statically_linked_servers_attach_as_well() {
    let program = target("tests/targets/sleepers.c", "static", "gcc", &["-static"]);
    let store = Store::new();
    load_counts(&store, &[&format!("{}:work", program.display())]);
    let mut sleepers = Target::spawn(Command::new(&program).arg("8"));
    assert_eq!(sleepers.line(), "ready");
    for _ in 0..5 {
        store.ok(&["attach", &sleepers.pid()]);
        store.ok(&["detach", &sleepers.pid()]);
    }
    sleepers.send("stop");
    assert_eq!(sleepers.finish().trim(), "disturbed 0");
}
