//! Programs at system calls, in real targets.

use beeline_tests::{Store, Target, have, object, our_mappings, rounds, target, text_of};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
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
    load(&store, "system_calls");
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

/// Number and result of the calls of each process that `strace -f` shows, in the order in which they ended, by process in the order
/// in which they appeared.
fn strace(command: &[&str]) -> Option<Vec<Vec<(String, i64)>>> {
    let log = std::env::temp_dir().join(format!("beeline-strace-{}", std::process::id()));
    let output = Command::new("strace")
        .args(["-f", "-qq", "-X", "raw", "-e", "signal=none", "-o"])
        .arg(&log)
        .args(command)
        .stdin(Stdio::null())
        .output();
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let _ = std::fs::remove_file(&log);
    if !output.is_ok_and(|output| output.status.success()) || text.is_empty() {
        return None;
    }
    let mut processes: Vec<(String, Vec<(String, i64)>)> = Vec::new();
    for line in text.lines() {
        let (pid, rest) = line.split_once(' ')?;
        let rest = rest.trim_start();
        let name = match rest.strip_prefix("<... ") {
            Some(resumed) => resumed.split(' ').next(),
            None => rest.split('(').next(),
        };
        let result = rest.rsplit_once(" = ").and_then(|(_, result)| result.split(' ').next());
        let (Some(name), Some(result)) = (name, result) else { continue };
        let value = match result.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).map_or(0, |it| it as i64),
            None => result.parse().unwrap_or(0),
        };
        let failed = if value == -1 { errno(rest) } else { value };
        let index = processes.iter().position(|(known, _)| known == pid);
        let index = index.unwrap_or_else(|| {
            processes.push((pid.to_owned(), Vec::new()));
            processes.len() - 1
        });
        processes[index].1.push((name.to_owned(), failed));
    }
    Some(processes.into_iter().map(|(_, calls)| calls).collect())
}

/// The error of a line of strace, as the kernel returns it.
fn errno(line: &str) -> i64 {
    const KNOWN: [(&str, i32); 12] = [
        ("ENOENT", libc::ENOENT),
        ("ENOTTY", libc::ENOTTY),
        ("EINVAL", libc::EINVAL),
        ("ECHILD", libc::ECHILD),
        ("EBADF", libc::EBADF),
        ("EAGAIN", libc::EAGAIN),
        ("ENODATA", libc::ENODATA),
        ("EOPNOTSUPP", libc::EOPNOTSUPP),
        ("ENXIO", libc::ENXIO),
        ("ESPIPE", libc::ESPIPE),
        ("ENOSYS", libc::ENOSYS),
        ("EEXIST", libc::EEXIST),
    ];
    let name = line.rsplit_once(" = -1 ").and_then(|(_, rest)| rest.split(' ').next()).unwrap_or_default();
    KNOWN.iter().find(|(known, _)| *known == name).map_or(-1, |(_, number)| -i64::from(*number))
}

/// Calls whose results depend on where things happen to lie, or on who runs.
fn is_comparable(name: &str) -> bool {
    [
        "read",
        "pread64",
        "write",
        "openat",
        "close",
        "lseek",
        "fcntl",
        "ioctl",
        "dup2",
        "newfstatat",
        "access",
        "readlink",
    ]
    .contains(&name)
}

#[test]
fn the_same_calls_as_strace() {
    if !have(&["strace", "tar"]) || !std::path::Path::new("/usr/bin/python3").exists() {
        return;
    }
    let folder = std::env::temp_dir().join(format!("beeline-same-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("some/files")).expect("writable");
    for index in 0..20 {
        std::fs::write(folder.join(format!("some/files/{index}")), vec![b'x'; 1000 * index])
            .expect("writable");
    }
    let path = folder.to_string_lossy().into_owned();
    let code = format!(
        "import os, hashlib\nfor at in sorted(os.listdir('{path}/some/files')):\n  print(hashlib.md5(open('{path}/some/files/'+at,'rb').read()).hexdigest())"
    );
    let python = ["/usr/bin/python3", "-I", "-S", "-c", &code];
    let commands: [&[&str]; 5] = [
        &["tar", "-cf", "/dev/null", "-C", &path, "some"],
        &["tar", "-cf", "-", "-C", &path, "some"],
        &["ls", "-lR", &path],
        &["cat", "/etc/passwd", "/etc/group"],
        &python,
    ];
    let names = numbers();
    for command in commands {
        let Some(theirs) = strace(command) else {
            println!("skipped: strace does not work here");
            return;
        };
        let store = Store::new();
        load(&store, "call_counts");
        store.ok(&[&["start", "--"], command].concat());
        let ours = recorded(&store);
        assert_eq!(ours.len(), theirs.len(), "{command:?}: processes");
        for (ours, theirs) in ours.iter().zip(&theirs) {
            same(command, ours, theirs, &names);
        }
    }
    std::fs::remove_dir_all(folder).expect("ours");
}

/// What was recorded, by process in the order in which they appeared.
fn recorded(store: &Store) -> Vec<Vec<(u64, i64)>> {
    let count = store.global("recorded");
    assert!(count < 16384, "{count} calls are more than there is room for");
    let mut processes: Vec<(u64, Vec<(u64, i64)>)> = Vec::new();
    let mut entries = store.entries("records");
    entries.sort_by_key(|(key, _)| key.as_u64());
    for (_, value) in entries.iter().take(count as usize) {
        let (pid, id) = (value["pid"].as_u64().unwrap(), value["id"].as_u64().unwrap());
        let result = value["ret"].as_i64().unwrap_or_else(|| value["ret"].as_u64().unwrap() as i64);
        // A child begins with the end of the call that made it, which strace does not show.
        const CLONES: [u64; 4] = [56, 57, 58, 435];
        if CLONES.contains(&id) && result == 0 {
            continue;
        }
        match processes.iter_mut().find(|(known, _)| *known == pid) {
            Some((_, calls)) => calls.push((id, result)),
            None => processes.push((pid, vec![(id, result)])),
        }
    }
    processes.into_iter().map(|(_, calls)| calls).collect()
}

/// Of each program that a process executes, its calls are the last of those that strace shows: its loader's come before. What strace
/// shows and the programs do not see: returns from signal handlers, a call of `execve` that succeeds.
fn same(command: &[&str], ours: &[(u64, i64)], theirs: &[(String, i64)], names: &BTreeMap<u64, String>) {
    const NOT_SEEN: [&str; 3] = ["rt_sigreturn", "exit_group", "exit"];
    let seen: Vec<&(String, i64)> =
        theirs.iter().filter(|(name, _)| !NOT_SEEN.contains(&name.as_str())).collect();
    let mut left = ours;
    for image in seen.split(|(name, result)| name == "execve" && *result == 0).rev() {
        let name = |call: &(u64, i64)| names.get(&call.0).map_or("unknown", String::as_str);
        let pairs = left.iter().rev().zip(image.iter().rev());
        let same = pairs.take_while(|(ours, theirs)| name(ours) == theirs.0);
        let mut matched = 0;
        for (ours, theirs) in same {
            matched += 1;
            if is_comparable(&theirs.0) {
                assert_eq!(
                    ours.1, theirs.1,
                    "{command:?}: result of {}, call {matched} from the end",
                    theirs.0
                );
            }
        }
        assert!(
            matched > 2 || image.is_empty(),
            "{command:?}: {} calls left: {:?}",
            left.len(),
            left.last().map(name)
        );
        left = &left[..left.len() - matched];
    }
    let name = left.last().and_then(|call| names.get(&call.0));
    assert!(left.is_empty(), "{command:?}: {} calls left, the last of them {name:?}", left.len());
}

/// Names of the calls as strace has them.
fn numbers() -> BTreeMap<u64, String> {
    let text = std::fs::read_to_string("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.strip_prefix("#define __NR_")?.split_once(' '));
    lines.filter_map(|(name, number)| Some((number.trim().parse().ok()?, name.to_owned()))).collect()
}
