//! Programs at system calls, in real targets.

use beeline_tests::{Store, Target, gcc, object, our_mappings, rounds, target, text_of};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The target, compiled once for all tests.
fn calls() -> PathBuf {
    static COMPILED: OnceLock<PathBuf> = OnceLock::new();
    let variant = format!("calls-{}", std::process::id());
    COMPILED.get_or_init(|| target("tests/targets/calls.c", &variant, "gcc", &["-pthread"])).clone()
}

fn load(store: &Store, program: &str) {
    let object = object(&format!("tests/programs/{program}.bpf.c"));
    store.ok(&["load", &object.to_string_lossy()]);
}

/// Loads programs that change calls.
fn load_changing(store: &Store) {
    let object = object("tests/programs/system_calls.bpf.c");
    store.ok(&["load", "--allow-override", &object.to_string_lossy()]);
}

/// What is in an array, by index.
fn array(store: &Store, map: &str) -> BTreeMap<u64, u64> {
    let number = |value: &Value| value.as_u64().or(value.as_i64().map(|it| it as u64));
    let entries = store.entries(map);
    entries.iter().filter_map(|(key, value)| Some((number(key)?, number(value)?))).collect()
}

const READ: u64 = 0;
const KILL: u64 = 62;
const GETPPID: u64 = 110;

#[test]
fn every_kind_of_section() {
    let (program, store) = (calls(), Store::new());
    let program = program.to_string_lossy();
    load_changing(&store);
    let output = store.ok(&["start", "--", &program, "kinds"]);
    // Two calls that are not made, two with another result, by functions of their own and by `syscall`; an argument that is changed.
    assert_eq!(output, "4242 77 4242 77 5 5\n");
    let seen = array(&store, "seen");
    let pid = seen[&13];
    let enosys = -38i64 as u64;
    let expected = [
        (0, KILL),
        (1, pid),
        (2, 0),
        (3, KILL),
        (4, 0),
        (5, pid),
        (6, 0),
        (7, KILL),
        (8, enosys),
        (9, 0),
        (10, 0),
        (11, pid),
        (12, 0),
        (14, 0),
        (15, 4242),
    ];
    for (key, value) in expected {
        assert_eq!(seen[&key], value, "{key}: {seen:?}");
    }
}

#[test]
fn programs_that_read_too_much_are_refused() {
    let store = Store::new();
    let folder = std::env::temp_dir().join(format!("beeline-too-much-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("writable");
    for (section, word, fits) in [
        ("tp/syscalls/sys_enter_getppid", 2, false),
        ("tp/syscalls/sys_enter_close", 2, true),
        ("tp/syscalls/sys_enter_close", 3, false),
        ("tp/raw_syscalls/sys_enter", 7, true),
        ("tp/raw_syscalls/sys_enter", 8, false),
        ("tp/syscalls/sys_exit_close", 3, false),
        ("raw_tp/sys_enter", 1, true),
        ("raw_tp/sys_enter", 2, false),
    ] {
        let source = format!(
            "char LICENSE[] __attribute__((section(\"license\"))) = \"GPL\";\n\
             __attribute__((section(\"{section}\"))) int p(unsigned long *ctx) {{ return ctx[{word}]; }}\n"
        );
        let (c, o) = (folder.join("p.c"), folder.join("p.bpf.o"));
        std::fs::write(&c, source).expect("writable");
        let compiled =
            Command::new("clang").args(["-O2", "-target", "bpf", "-c"]).arg(&c).arg("-o").arg(&o).status();
        if !compiled.is_ok_and(|status| status.success()) {
            println!("skipped: no clang for bpf");
            return;
        }
        let o = o.to_string_lossy();
        if fits {
            store.ok(&["load", &o]);
            store.ok(&["unload", "p"]);
        } else {
            let message = store.fails(&["load", &o]);
            assert!(message.contains("of its context"), "{section}: {message}");
        }
    }
    std::fs::remove_dir_all(folder).expect("ours");
}

/// Changing calls is a right that links are made with: by their objects' load, and for good.
#[test]
fn programs_that_change_calls_need_the_right_to() {
    let store = Store::new();
    let folder = std::env::temp_dir().join(format!("beeline-rights-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("writable");
    let programs = [
        ("overrides", "ksyscall/close", "bpf_override_return(ctx, -5);", "bpf_override_return"),
        ("replaces", "kretsyscall/close", "bpf_override_return(ctx, -5);", "bpf_override_return"),
        (
            "writes",
            "raw_tp/sys_enter",
            "int none = 0; bpf_probe_write_user((void *)1, &none, 4);",
            "bpf_probe_write_user",
        ),
        ("looks", "ksyscall/close", "", ""),
        // At a function it is what it always was.
        ("function", "uprobe/libc.so.6:close", "bpf_override_return(ctx, -5);", ""),
    ];
    for (name, section, body, helper) in programs {
        let source = format!(
            "#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\nchar LICENSE[] SEC(\"license\") = \"GPL\";\n\
             SEC(\"{section}\") int {name}_program(void *ctx) {{ {body} return 0; }}\n"
        );
        let (c, o) = (folder.join(format!("{name}.c")), folder.join(format!("{name}.bpf.o")));
        std::fs::write(&c, source).expect("writable");
        let compiled = Command::new("clang")
            .args(["-O2", "-target", "bpf", "-I", "/usr/include/x86_64-linux-gnu", "-c"])
            .args([&c, Path::new("-o"), &o])
            .status();
        if !compiled.is_ok_and(|status| status.success()) {
            println!("skipped: no clang for bpf");
            return;
        }
        let o = o.to_string_lossy();
        if helper.is_empty() {
            store.ok(&["load", &o]);
            continue;
        }
        let message = store.fails(&["load", &o]);
        assert!(message.contains(helper) && message.contains("--allow-override"), "{name}: {message}");
        assert!(store.fails(&["unload", name]).contains(name), "nothing of it is there");
        store.ok(&["load", "--allow-override", &o]);
    }
    // No program comes to it by an update.
    let message = store.fails(&["link", "update", "looks/looks_program", "overrides_program"]);
    assert!(message.contains("--allow-override"), "{message}");
    store.ok(&["link", "update", "overrides/overrides_program", "looks_program"]);
    store.ok(&["link", "update", "overrides/overrides_program", "overrides_program"]);
    std::fs::remove_dir_all(folder).expect("ours");
}

#[test]
fn children_threads_handlers_and_cancellation() {
    let (program, store, rounds) = (calls(), Store::new(), rounds(40));
    load(&store, "call_counts");
    let (program, count) = (program.to_string_lossy(), rounds.to_string());
    let output = store.ok(&["start", "--no-follow", "--", &program, "storm", &count]);
    assert_eq!(output, format!("{rounds} {rounds}\n"));
    assert_eq!(store.number("enters", GETPPID), 9 * rounds);
    assert_eq!(store.number("exits", GETPPID), 9 * rounds);
    let (enters, exits) = (array(&store, "enters"), array(&store, "exits"));
    // clone, vfork and clone3 end twice, in parent and child; exit and exit_group never do.
    for twice in [56, 58, 435] {
        assert!(enters[&twice] > 0 && exits[&twice] == 2 * enters[&twice], "{twice}: {enters:?} {exits:?}");
    }
    for never in [60, 231] {
        assert!(enters[&never] > 0 && exits[&never] == 0, "{never}: {enters:?} {exits:?}");
    }
    let others = enters.keys().filter(|number| ![READ, 56, 58, 435, 59, 60, 231].contains(*number));
    // A thread that is cancelled while it reads does not come back from there.
    let cancelled = enters[&READ] - exits[&READ];
    assert!(cancelled <= rounds, "{enters:?} {exits:?}");
    for number in others {
        assert_eq!(enters[number], exits[number], "{number}");
    }
}

#[test]
fn waiting_threads_survive_attach_and_detach() {
    let (program, store, rounds) = (calls(), Store::new(), rounds(12));
    load(&store, "call_counts");
    let mut target = Target::spawn(Command::new(&program).arg("wait"));
    assert_eq!(target.line(), "ready");
    let (pid, before) = (target.pid(), text_of(&target.pid()));
    for round in 0..rounds {
        store.ok(&["attach", &pid]);
        // One byte comes through while they are traced, one while they are not.
        target.send("");
        store.ok(&["detach", &pid]);
        target.send("");
        assert_eq!(our_mappings(&pid), Vec::<String>::new(), "round {round}");
        assert!(text_of(&pid) == before, "round {round}: the text is not as it was");
    }
    assert_eq!(target.finish(), "done\n");
}

#[test]
fn programs_come_and_go_at_sites_that_are_there() {
    let (program, store, rounds) = (calls(), Store::new(), rounds(3));
    let mut target = Target::spawn(Command::new(&program).arg("lines"));
    assert_eq!(target.line(), "ready");
    let pid = target.pid();
    let before = text_of(&pid);
    target.send("");
    let untraced = target.line();
    let mut line = |expected: &str| {
        target.send("");
        assert_eq!(target.line(), expected);
    };
    let counted = || {
        let (enters, exits) = (store.number("enters", GETPPID), store.number("exits", GETPPID));
        assert_eq!(enters, exits);
        enters
    };
    for _ in 0..rounds {
        load(&store, "call_counts");
        store.ok(&["attach", &pid]);
        line(&untraced);
        assert_eq!(counted(), 20);
        // Programs that want registers, and one that skips a call, at sites that have others.
        load_changing(&store);
        store.ok(&["attach", &pid]);
        line("4242 4242");
        assert_eq!(counted(), 40);
        store.ok(&["unload", "call_counts"]);
        line("4242 4242");
        store.ok(&["attach", &pid]);
        line("4242 4242");
        load(&store, "call_counts");
        store.ok(&["attach", &pid]);
        store.ok(&["unload", "system_calls"]);
        line(&untraced);
        assert_eq!(counted(), 20);
        store.ok(&["attach", &pid]);
        line(&untraced);
        assert_eq!(counted(), 40);
        store.ok(&["unload", "call_counts"]);
        line(&untraced);
        store.ok(&["detach", &pid]);
        assert_eq!(our_mappings(&pid), Vec::<String>::new());
        assert!(text_of(&pid) == before, "the text is not as it was");
        line(&untraced);
    }
    assert_eq!(target.finish(), "");
}

/// Where the threads of a process wait: the program counters of those that do, in read(2).
fn read_from(pid: &str) -> Vec<u64> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten();
    let calls = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("syscall")).ok());
    let places = calls.filter_map(|call| {
        let words: Vec<&str> = call.split_whitespace().collect();
        let at = words.last().filter(|_| words.first() == Some(&"0"))?;
        u64::from_str_radix(at.strip_prefix("0x")?, 16).ok()
    });
    places.collect()
}

/// A call to which a branch leads does not stay in its place: threads wait in its copy, and have to be back when that is unmapped.
#[test]
fn threads_that_wait_in_displaced_calls_survive_detach() {
    const THREADS: u64 = 8;
    let (store, rounds) = (Store::new(), rounds(12));
    let variant = format!("waiting-{}", std::process::id());
    let program = target("tests/targets/displaced.c", &variant, "gcc", &["-pthread"]);
    load(&store, "call_counts");
    let mut target = Target::spawn(&mut Command::new(&program));
    assert_eq!(target.line(), "ready");
    let pid = target.pid();
    let before = text_of(&pid);
    let in_text =
        |at: &u64| before.iter().any(|(start, bytes)| (*start..start + bytes.len() as u64).contains(at));
    let wait_until = |what: &str, is_so: &dyn Fn(&[u64]) -> bool| {
        let mut places = read_from(&pid);
        while !is_so(&places) {
            assert!(Path::new(&format!("/proc/{pid}")).exists(), "{what}: it is dead");
            std::thread::yield_now();
            places = read_from(&pid);
        }
    };
    let out = |places: &[u64]| places.iter().filter(|at| !in_text(at)).count() as u64;
    for round in 0..rounds {
        wait_until("in their place", &|places| places.len() as u64 > THREADS && out(places) == 0);
        let entered = store.number("enters", READ);
        store.ok(&["attach", &pid]);
        wait_until("moved to the copy", &|places| out(places) == THREADS);
        // What comes now sends every thread through its call's copy once more, in which it waits for the next.
        target.send("");
        wait_until("in the copy", &|places| {
            out(places) == THREADS && store.number("enters", READ) >= entered + THREADS
        });
        store.ok(&["detach", &pid]);
        assert_eq!(our_mappings(&pid), Vec::<String>::new(), "round {round}");
        assert!(text_of(&pid) == before, "round {round}: the text is not as it was");
        wait_until("back", &|places| places.len() as u64 > THREADS && out(places) == 0);
        target.send("");
    }
    assert_eq!(target.finish(), format!("done {}\n", 2 * rounds * THREADS));
    let _ = std::fs::remove_file(program);
}

/// A filter that a program installs while its calls are traced kills nobody for what the agent would do by itself.
#[test]
fn filters_that_come_later_are_respected() {
    let linked: [(&str, &[&str]); 2] = [("dynamic", &["-pthread"]), ("static", &["-pthread", "-static"])];
    for (kind, flags) in linked {
        let variant = format!("{kind}-{}", std::process::id());
        let program = target("tests/targets/filtered.c", &variant, "gcc", flags);
        let path = program.to_string_lossy();
        for (object, way) in
            [("call_counts", "prctl"), ("call_counts", ""), ("per_cpu_calls", "prctl"), ("per_cpu_calls", "")]
        {
            let store = Store::new();
            load(&store, object);
            let ways: &[&str] = if way.is_empty() { &[] } else { &[way] };
            let output = store.output(&[&["start", "--", &path], ways].concat());
            assert_eq!(
                String::from_utf8_lossy(&output.stdout),
                "thread\n".repeat(3),
                "{kind} {object} {way}: {output:?}"
            );
            assert!(output.status.success(), "{kind} {object} {way}: {output:?}");
        }
        let _ = std::fs::remove_file(&program);
    }
}

#[test]
fn what_was_covered_is_told() {
    let (program, store) = (calls(), Store::new());
    load(&store, "call_counts");
    let mut target = Target::spawn(Command::new(&program).arg("wait"));
    assert_eq!(target.line(), "ready");
    store.ok(&["attach", &target.pid()]);
    let processes = store.json(&["ps", "-v"]);
    let pid: u64 = target.pid().parse().expect("a number");
    let one = processes.as_array().expect("a list").iter().find(|it| it["pid"] == pid);
    let calls = &one.expect("it is there")["system_calls"];
    let number = |name: &str| calls[name].as_u64().unwrap_or_else(|| panic!("{name}: {calls}"));
    let refused = calls["refused"].as_array().expect("a list");
    assert!(number("found") > 300, "{calls}");
    assert_eq!(number("found"), number("patched") + number("unwanted") + refused.len() as u64, "{calls}");
    // The returns from signal handlers of libc and of the loader.
    for one in refused {
        assert!(
            one["reason"].as_str().is_some_and(|it| it.contains("returns from signal handlers")),
            "{one}"
        );
    }
    store.ok(&["detach", &target.pid()]);
    assert_eq!(target.finish(), "done\n");
}

/// Threads that share a thread pointer share the slot that it finds: none of them gets one.
#[test]
fn threads_that_share_a_thread_pointer() {
    let store = Store::new();
    load(&store, "per_cpu_calls");
    load(&store, "call_counts");
    let program = gcc("tests/targets/shared_pointer.c");
    assert_eq!(store.ok(&["start", "--", &program.to_string_lossy()]), "right\n");
    let mut waiting = Target::spawn(Command::new(&program).arg("wait"));
    assert_eq!(waiting.line(), "ready");
    let reason = store.fails(&["attach", &waiting.pid()]);
    assert!(reason.contains("share a thread pointer"), "{reason}");
    waiting.send("go");
    assert_eq!(waiting.line(), "right");
}
