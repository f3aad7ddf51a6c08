//! The system calls of real programs, their arguments and results, as a recording program sees them and as `strace -f` does.

mod calls;
mod made_code;
mod servers;

use beeline_tests::{Store, can_be_complete, have, object, root, rounds, target};
use calls::{Call, Images, names, recorded_threads, shown_threads};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether a recorded thread is one of strace's. Else how many calls are, and where they part.
type Likeness = fn(&Images, &Images) -> Result<(), (usize, String)>;

/// A folder of one test, removed with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("same-calls-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("writable");
        Folder(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// From here on a number may be an address, which differs from run to run.
const ADDRESSES: u64 = 0x40_0000;

/// The command's threads as `strace -ff` shows them, and what it said itself. None, where strace does not work.
fn strace(folder: &Folder, command: &mut Command) -> Option<(Vec<Images>, Output)> {
    let logs = folder.0.join("strace");
    let _ = std::fs::remove_dir_all(&logs);
    std::fs::create_dir_all(&logs).expect("writable");
    let mut strace = Command::new("strace");
    strace.args(["-ff", "-qq", "-e", "raw=all", "-e", "signal=none", "-o"]).arg(logs.join("of"));
    let output = run(&mut strace, command);
    let threads: Vec<Images> = shown_threads(&logs).into_values().collect();
    if threads.iter().flatten().all(Vec::is_empty) {
        println!("skipped: strace does not work here");
        return None;
    }
    Some((threads, output))
}

/// Runs the command as an argument of another.
fn run(outer: &mut Command, inner: &Command) -> Output {
    outer.arg(inner.get_program()).args(inner.get_args()).stdin(Stdio::null());
    for (name, value) in inner.get_envs() {
        outer.env(name, value.unwrap_or_default());
    }
    if let Some(folder) = inner.get_current_dir() {
        outer.current_dir(folder);
    }
    outer.output().expect("it runs")
}

/// The command's threads as a recording program sees them, and what it said itself.
fn recorded(command: &mut Command, options: &[&str]) -> (Vec<Images>, Output) {
    let store = Store::new();
    store.ok(&["load", &object("tests/programs/call_record.bpf.c").to_string_lossy()]);
    let output = run(&mut store.command(&[&["start"], options, &["--"]].concat()), command);
    (recorded_threads(&store).into_values().collect(), output)
}

/// Two numbers mean the same: they are equal, or each may be an address.
fn alike(one: u64, other: u64) -> bool {
    one == other || (one >= ADDRESSES && other >= ADDRESSES && (one >> 47, other >> 47) == (0, 0))
}

/// Process ids are positive, and differ from run to run.
fn names_process(name: &str) -> bool {
    [
        "clone",
        "clone3",
        "fork",
        "getpgrp",
        "getpgid",
        "getpid",
        "getppid",
        "getsid",
        "gettid",
        "kill",
        "set_tid_address",
        "setpgid",
        "setsid",
        "tgkill",
        "tkill",
        "vfork",
        "wait4",
        "waitid",
    ]
    .contains(&name)
}

/// The same call: name, arguments and result.
fn matches(ours: &Call, theirs: &Call) -> bool {
    let process = names_process(&ours.name);
    let both = |one: u64, other: u64| {
        alike(one, other) || (process && (one as i32 as i64).signum() == (other as i32 as i64).signum())
    };
    let arguments = theirs.arguments.iter().zip(&ours.arguments).all(|(theirs, ours)| both(*ours, *theirs));
    ours.name == theirs.name && arguments && both(ours.result as u64, theirs.result as u64)
}

/// Whether one thread is the other: the same programs, and of each the same calls. Else how many calls are the same, and where they
/// part.
fn same(ours: &Images, theirs: &Images) -> Result<(), (usize, String)> {
    let mut matched = 0;
    if ours.len() != theirs.len() {
        return Err((0, format!("{} images, not {}", ours.len(), theirs.len())));
    }
    for (index, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        for at in 0..ours.len().max(theirs.len()) {
            let (ours, theirs) = (ours.get(at), theirs.get(at));
            if !ours.zip(theirs).is_some_and(|(ours, theirs)| matches(ours, theirs)) {
                let part = format!("image {index}, call {at}: {ours:x?} is {theirs:x?} for strace");
                return Err((matched, part));
            }
            matched += 1;
        }
    }
    Ok(())
}

/// As [`same`], but for memory from the kernel: of how much of it python's hash tables make use depends on where things happen to lie.
fn same_but_memory(ours: &Images, theirs: &Images) -> Result<(), (usize, String)> {
    same_without(&["brk", "madvise", "mmap", "mremap", "munmap"], ours, theirs)
}

/// As [`same`], but for what threads wait for: it is up to which is faster.
fn same_but_waiting(ours: &Images, theirs: &Images) -> Result<(), (usize, String)> {
    same_without(&["futex"], ours, theirs)
}

fn same_without(names: &[&str], ours: &Images, theirs: &Images) -> Result<(), (usize, String)> {
    let without = |images: &Images| -> Images {
        let others = |image: &Vec<Call>| {
            image.iter().filter(|it| !names.contains(&it.name.as_str())).cloned().collect()
        };
        images.iter().map(others).collect()
    };
    same(&without(ours), &without(theirs))
}

/// Every thread has its like.
fn all_alike(ours: Vec<Images>, theirs: Vec<Images>, like: Likeness) {
    let calls = |images: &Images| images.iter().map(Vec::len).sum::<usize>();
    let mut left: Vec<Images> = theirs.into_iter().filter(|it| calls(it) > 0).collect();
    let mut ours: Vec<Images> = ours.into_iter().filter(|it| calls(it) > 0).collect();
    ours.sort_by_key(|it| std::cmp::Reverse(calls(it)));
    left.sort_by_key(calls);
    println!("{} threads, {} calls", ours.len(), ours.iter().map(calls).sum::<usize>());
    for thread in &ours {
        let results: Vec<_> = left.iter().map(|theirs| like(thread, theirs)).collect();
        match results.iter().position(Result::is_ok) {
            Some(index) => drop(left.remove(index)),
            None => {
                let nearest = results.into_iter().filter_map(Result::err).max_by_key(|it| it.0);
                panic!("no thread of strace's is like this one, of {} calls: {nearest:?}", calls(thread));
            }
        }
    }
    assert!(left.is_empty(), "strace has {} threads more, one is {:x?}", left.len(), left.first());
}

/// Runs the command with either, from the same beginning, which `prepare` makes.
fn compare(folder: &Folder, like: Likeness, prepare: impl Fn() -> Command, after: impl Fn() -> String) {
    compare_with(&[], folder, like, prepare, after);
}

/// The same with options of `start`.
fn compare_with(
    options: &[&str],
    folder: &Folder,
    like: Likeness,
    prepare: impl Fn() -> Command,
    after: impl Fn() -> String,
) {
    let Some((theirs, expected)) = strace(folder, &mut prepare()) else { return };
    let left = after();
    let (ours, output) = recorded(&mut prepare(), options);
    assert_eq!(output.status, expected.status, "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&expected.stdout));
    assert_eq!(String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&expected.stderr));
    assert_eq!(after(), left, "files");
    all_alike(ours, theirs, like);
}

/// A command that finds its way about.
fn command(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).env("LC_ALL", "C").env("PATH", "/usr/bin:/bin");
    command
}

/// Sums of the files under a folder.
fn sums(folder: &str) -> String {
    let find = format!("cd {folder} && find . -type f | sort | xargs -d '\\n' sha256sum");
    let output = Command::new("sh").args(["-c", &find]).output().expect("sh runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn small_commands() {
    if !have(&["strace", "tar"]) || !Path::new("/usr/bin/python3").exists() {
        return;
    }
    let folder = Folder::new("small");
    std::fs::create_dir_all(folder.path("some/files")).expect("writable");
    for index in 0..20 {
        std::fs::write(folder.path(&format!("some/files/{index}")), vec![b'x'; 1000 * index])
            .expect("writable");
    }
    let path = folder.path("");
    let code = format!(
        "import os, hashlib\nfor at in sorted(os.listdir('{path}/some/files')):\n  print(hashlib.md5(open('{path}/some/files/'+at,'rb').read()).hexdigest())"
    );
    let commands: [&[&str]; 4] = [
        &["/usr/bin/tar", "-cf", "/dev/null", "-C", &path, "some"],
        &["/usr/bin/tar", "-cf", "-", "-C", &path, "some"],
        &["/usr/bin/ls", "-lR", &folder.path("some")],
        &["/usr/bin/cat", "/etc/passwd", "/etc/group"],
    ];
    for words in commands {
        compare(&folder, same, || command(words), String::new);
    }
    let python = ["/usr/bin/python3", "-I", "-S", "-c", &code];
    compare(&folder, same_but_memory, || command(&python), String::new);
}

#[test]
fn shell() {
    if !have(&["strace"]) {
        return;
    }
    let folder = Folder::new("sh");
    let script =
        "for i in 1 2 3; do echo $i | cat; done; x=$(ls /etc | wc -l); echo $x; exec cat /etc/hostname";
    compare(&folder, same, || command(&["/bin/sh", "-c", script]), String::new);
}

#[test]
fn gcc() {
    if !have(&["strace", "gcc", "musl-gcc"]) {
        return;
    }
    let folder = Folder::new("gcc");
    let (source, program) = (folder.path("one.c"), folder.path("out/one"));
    std::fs::write(&source, "#include <stdio.h>\nint main(void) { puts(\"one\"); return 0; }\n")
        .expect("writable");
    let prepare = || {
        let _ = std::fs::remove_dir_all(folder.path("out"));
        std::fs::create_dir_all(folder.path("out")).expect("writable");
        command(&["/usr/bin/gcc", "-O2", "-o", &program, &source])
    };
    compare(&folder, same, prepare, || sums(&folder.path("out")));
}

#[test]
fn git_clone() {
    if !have(&["strace", "git"]) || !Path::new("/usr/bin/git").exists() {
        return;
    }
    let folder = Folder::new("git");
    let (from, to) = (folder.path("from"), folder.path("to"));
    let make = format!(
        "git init -q -b main {from} && cd {from} && for i in $(seq 20); do seq $i 400 > file$i; done && git add . && \
         git -c user.name=a -c user.email=a@b commit -q -m one && git gc -q"
    );
    let made = Command::new("sh").args(["-c", &make]).env("GIT_CONFIG_GLOBAL", "/dev/null").output();
    assert!(made.is_ok_and(|it| it.status.success()));
    let prepare = || {
        let _ = std::fs::remove_dir_all(&to);
        let mut command = command(&["/usr/bin/git", "clone", "-q", &from, &to]);
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
        command.env("HOME", &folder.0);
        command
    };
    let head = || {
        let found = format!("cd {to} && git rev-parse HEAD && git status --short && cat file*");
        let output = Command::new("sh").args(["-c", &found]).output().expect("sh runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    compare(&folder, same, prepare, head);
}

/// A static program without symbols.
#[test]
fn busybox() {
    if !have(&["strace", "busybox"]) {
        return;
    }
    let folder = Folder::new("busybox");
    let out = folder.path("out");
    let script = format!(
        "busybox cat /etc/passwd | busybox sort > {out}/sorted; busybox ls -la / > /dev/null; \
         busybox sha256sum {out}/sorted; busybox tar -cf {out}/tar -C {out} sorted; busybox grep -c root /etc/passwd"
    );
    let prepare = || {
        let _ = std::fs::remove_dir_all(&out);
        std::fs::create_dir_all(&out).expect("writable");
        command(&["/bin/busybox", "sh", "-c", &script])
    };
    compare(&folder, same, prepare, || sums(&out).lines().filter(|it| !it.ends_with("tar")).collect());
}

#[test]
fn ssh_keygen() {
    if !have(&["strace", "ssh-keygen"]) {
        return;
    }
    let folder = Folder::new("keys");
    let key = folder.path("key");
    let made =
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "a", "-f", &key]).status();
    assert!(made.is_ok_and(|it| it.success()));
    compare(
        &folder,
        same,
        || command(&["/usr/bin/ssh-keygen", "-l", "-v", "-f", &key]),
        || sums(&folder.path("")).lines().filter(|it| it.contains("key")).collect(),
    );
    let prepare = || {
        let _ = std::fs::remove_file(folder.path("new"));
        let _ = std::fs::remove_file(folder.path("new.pub"));
        command(&[
            "/usr/bin/ssh-keygen",
            "-q",
            "-t",
            "ed25519",
            "-N",
            "",
            "-C",
            "a",
            "-f",
            &folder.path("new"),
        ])
    };
    compare(&folder, same, prepare, String::new);
}

/// How often each call was made that has the same arguments and result, addresses aside, on whichever thread.
fn counted(threads: &[Images], wanted: impl Fn(&Call) -> bool, arguments: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for call in threads.iter().flatten().flatten().filter(|call| wanted(call)) {
        let shown = call.arguments.iter().take(arguments).map(|&it| match it {
            ADDRESSES..0x8000_0000_0000 => "address".to_owned(),
            it => format!("{it:#x}"),
        });
        let key = format!("{}({}) = {}", call.name, shown.collect::<Vec<_>>().join(", "), call.result);
        *counts.entry(key).or_default() += 1;
    }
    counts
}

/// The same with all descriptors but the standard ones alike: which number a connection gets depends on which end of the one before it
/// is closed first.
fn without_descriptors(counts: BTreeMap<String, usize>) -> BTreeMap<String, usize> {
    let mut merged = BTreeMap::new();
    for (call, count) in counts {
        let makes = ["socket(", "accept4(", "openat("].iter().any(|name| call.starts_with(name));
        let (arguments, result) = call.split_once(" = ").expect("a call and its result");
        let result = if makes { "descriptor" } else { result };
        let (name, arguments) = arguments.split_once('(').expect("a call");
        let (first, rest) = arguments.split_once(',').unwrap_or((arguments, ""));
        let is_descriptor = name != "socket"
            && u64::from_str_radix(first.trim_start_matches("0x"), 16).is_ok_and(|it| (3..100).contains(&it));
        let first = if is_descriptor { "descriptor" } else { first };
        *merged.entry(format!("{name}({first},{rest} = {result}")).or_default() += count;
    }
    merged
}

/// Which thread makes a call, and how often it waits, is up to Go's scheduler: the same calls of files and sockets, as often.
#[test]
fn go_server() {
    if !have(&["strace", "go"]) {
        return;
    }
    let folder = Folder::new("go");
    let program = folder.path("echo");
    let source = root().join("tests/targets/echo.go");
    let built = Command::new("go")
        .args(["build", "-o", &program])
        .arg(source)
        .envs([("GO111MODULE", "off"), ("CGO_ENABLED", "0")])
        .output();
    assert!(built.as_ref().is_ok_and(|it| it.status.success()), "{built:?}");
    let Some((theirs, expected)) = strace(&folder, &mut command(&[&program])) else { return };
    let (ours, output) = recorded(&mut command(&[&program]), &[]);
    assert_eq!((output.status, &output.stdout), (expected.status, &expected.stdout));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "40000\n");
    let wanted = |call: &Call| match call.name.as_str() {
        "socket" | "bind" | "listen" | "connect" | "setsockopt" | "getsockname" | "getpeername" => true,
        "openat" | "accept4" => call.result >= 0,
        // Shorter ones wake the scheduler's thread that waits for sockets.
        "read" | "write" => call.result >= 100,
        _ => false,
    };
    let (ours, theirs) = (counted(&ours, wanted, 2), counted(&theirs, wanted, 2));
    let (ours, theirs) = (without_descriptors(ours), without_descriptors(theirs));
    assert_eq!(ours, theirs);
    assert!(ours.values().sum::<usize>() > 800, "{ours:?}");
}

/// How often redis looks at its clock is up to the time that it takes: the same bytes from and to its clients.
#[test]
fn redis() {
    if !have(&["strace", "redis-server", "redis-cli", "redis-benchmark"]) {
        return;
    }
    let folder = Folder::new("redis");
    let socket = folder.path("socket");
    let words = [
        "/usr/bin/redis-server",
        "--port",
        "0",
        "--unixsocket",
        &socket,
        "--save",
        "",
        "--dir",
        &folder.path(""),
        "--loglevel",
        "warning",
    ];
    let client = |program: &str, words: &[&str]| {
        let output = Command::new(program).args(["-s", &socket]).args(words).output().expect("it runs");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let ended = AtomicBool::new(false);
    let load = || {
        while client("redis-cli", &["ping"]) != (true, "PONG\n".to_owned()) {
            if ended.load(Ordering::Relaxed) {
                return String::new();
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert!(
            client("redis-benchmark", &["-c", "1", "-n", "300", "-q", "-t", "set,get,lpush,lrange_100"]).0
        );
        let answers =
            client("redis-cli", &["llen", "mylist"]).1 + &client("redis-cli", &["get", "key:__rand_int__"]).1;
        client("redis-cli", &["shutdown", "nosave"]);
        answers
    };
    let under = |run: &dyn Fn()| {
        std::thread::scope(|scope| {
            ended.store(false, Ordering::Relaxed);
            let load = scope.spawn(load);
            run();
            ended.store(true, Ordering::Relaxed);
            load.join().expect("it is served")
        })
    };
    let (theirs, ours) = (std::cell::RefCell::new(None), std::cell::RefCell::new(None));
    let expected = under(&|| *theirs.borrow_mut() = strace(&folder, &mut command(&words)));
    let Some((theirs, theirs_output)) = theirs.into_inner() else { return };
    let answers = under(&|| *ours.borrow_mut() = Some(recorded(&mut command(&words), &[])));
    let (ours, output) = ours.into_inner().expect("it ran");
    assert_eq!((answers, output.status), (expected, theirs_output.status));
    let wanted = |call: &Call| match call.name.as_str() {
        "socket" | "bind" | "listen" | "accept" | "accept4" | "setsockopt" => call.result >= 0,
        // Those of its clients: its own, of /proc, are of a page.
        "read" => call.result > 0 && call.arguments.get(2).is_some_and(|&it| it > 4096),
        "write" => call.arguments.first().is_some_and(|&it| it > 2) && call.result > 1,
        _ => false,
    };
    let (ours, theirs) = (counted(&ours, wanted, 1), counted(&theirs, wanted, 1));
    assert_eq!(ours, theirs);
    assert!(ours.values().sum::<usize>() > 2400, "{ours:?}");
}

#[test]
fn python_tests() {
    if !have(&["strace", "python3"]) {
        return;
    }
    let find = "import sys, test.test_bisect, test.test_heapq, test.test_textwrap; print(sys.executable)";
    let found = Command::new("python3").args(["-B", "-c", find]).output().expect("python runs");
    if !found.status.success() {
        println!("skipped: python's own tests are not installed");
        return;
    }
    let python = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    let code = "import io, unittest\n\
                names = ['test.test_bisect', 'test.test_heapq', 'test.test_textwrap']\n\
                tests = unittest.defaultTestLoader.loadTestsFromNames(names)\n\
                result = unittest.TextTestRunner(stream=io.StringIO()).run(tests)\n\
                print(result.testsRun, result.errors, result.failures)";
    let folder = Folder::new("python");
    let prepare = || {
        let mut command = command(&[&python, "-B", "-c", code]);
        command.env("PYTHONHASHSEED", "0");
        command
    };
    compare(&folder, same_but_memory, prepare, String::new);
}

/// How often strace sees each call of a command, those that do not end among them.
fn strace_counts(folder: &Folder, words: &[&str]) -> Option<BTreeMap<String, u64>> {
    let log = folder.path("counted");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-e", "raw=all", "-e", "signal=none", "-o", &log]);
    run(&mut strace, &command(words));
    let mut counts = BTreeMap::new();
    for line in std::fs::read_to_string(log).expect("strace's").lines() {
        // A process id, and a call, or the end of one that another interrupted.
        let call = line.split_once(' ')?.1.trim_start().split_once('(').map(|it| it.0);
        if let Some(name) = call.filter(|name| !name.contains(' ')) {
            *counts.entry(name.to_owned()).or_default() += 1;
        }
    }
    (!counts.is_empty()).then_some(counts)
}

/// A program at system calls may own a CPU before the C library has registered its `struct rseq`: that is registered all the same, and
/// no call of the first thread is missed. Another thread owns no CPU until its own is registered, so that the begin of that call is
/// missed, and the end of the one that made it.
#[test]
fn before_threads_are_set_up() {
    if !have(&["strace", "gcc", "musl-gcc"]) {
        return;
    }
    let folder = Folder::new("registered");
    let source = "tests/targets/registered.c";
    let build = |variant: &str, compiler: &str, flags: &[&str]| {
        let variant = format!("{variant}-{}", std::process::id());
        target(source, &variant, compiler, flags).to_string_lossy().into_owned()
    };
    let programs = [
        build("dynamic", "gcc", &["-pthread"]),
        build("static", "gcc", &["-pthread", "-static"]),
        build("stripped", "gcc", &["-pthread", "-static", "-s"]),
        build("static-pie", "gcc", &["-pthread", "-static-pie", "-s"]),
        build("musl", "musl-gcc", &["-pthread"]),
        build("musl-static", "musl-gcc", &["-pthread", "-static", "-s"]),
    ];
    let names = names();
    for program in &programs {
        let words = [program.as_str()];
        let Some(theirs) = strace_counts(&folder, &words) else { return };
        let expected = command(&words).output().expect("it runs");
        let store = Store::new();
        store.ok(&["load", &object("tests/programs/per_cpu_calls.bpf.c").to_string_lossy()]);
        let output = run(&mut store.command(&["start", "--"]), &command(&words));
        assert_eq!(
            (output.status, &output.stdout),
            (expected.status, &expected.stdout),
            "{program}: {output:?}"
        );
        for link in store.json(&["link", "list"]).as_array().expect("a list") {
            let missed = link["missed"].as_u64().expect("a number");
            assert!(missed <= 1, "{program}: {link}");
        }
        let entered = store.entries("enters");
        for (key, values) in &entered {
            let values = values.as_array().expect("one value a CPU").iter();
            let entered: u64 = values.map(|it| it["value"].as_u64().expect("a number")).sum();
            let name = names.get(&key.as_i64().expect("a number")).map_or("", String::as_str);
            if !["execve", "futex", "rseq"].contains(&name) {
                assert_eq!(entered, theirs.get(name).copied().unwrap_or(0), "{program}: {name}");
            }
        }
        let _ = std::fs::remove_file(program);
    }
}

/// Children by fork, vfork, clone and spawn, threads that end and that are cancelled, handlers: as many calls of each kind as strace
/// sees, and the same output. `BEELINE_SOAK` is the number of rounds.
#[test]
fn storm_of_calls() {
    if !have(&["strace"]) {
        return;
    }
    let folder = Folder::new("storm");
    let variant = format!("storm-{}", std::process::id());
    let program = target("tests/targets/calls.c", &variant, "gcc", &["-pthread"]);
    let rounds = rounds(30).to_string();
    let words = [&*program.to_string_lossy(), "storm", &rounds].map(str::to_owned);
    let words = words.each_ref().map(String::as_str);
    let Some(theirs) = strace_counts(&folder, &words) else { return };
    let expected = command(&words).output().expect("it runs");
    let complete = [&["--complete"][..]];
    let complete = if can_be_complete() { &complete[..] } else { &[] };
    for options in [&[][..]].iter().chain(complete) {
        as_many_as(&theirs, &expected, options, &words);
    }
    let _ = std::fs::remove_file(program);
}

/// The command makes as many calls of each kind as `theirs`, and says what is expected.
fn as_many_as(theirs: &BTreeMap<String, u64>, expected: &Output, options: &[&str], words: &[&str]) {
    let store = Store::new();
    store.ok(&["load", &object("tests/programs/call_counts.bpf.c").to_string_lossy()]);
    let output = run(&mut store.command(&[&["start"], options, &["--"]].concat()), &command(words));
    assert_eq!((output.status, &output.stdout), (expected.status, &expected.stdout), "{output:?}");
    for link in store.json(&["link", "list"]).as_array().expect("a list") {
        assert_eq!(link["missed"], 0, "{link}");
    }
    let names = names();
    let (mut calls, mut ends) = (0, store.entries("exits").into_iter());
    for (key, entered) in store.entries("enters") {
        let name = names.get(&key.as_i64().expect("a number")).map_or("", String::as_str);
        let (entered, (_, left)) = (entered.as_u64().expect("a number"), ends.next().expect("as many"));
        let left = left.as_u64().expect("a number");
        calls += entered;
        let seen = theirs.get(name).copied().unwrap_or(0);
        match name {
            // Whether somebody waits is up to the scheduler, and where a thread is when it is cancelled.
            "futex" | "read" | "madvise" | "sched_yield" | "rt_sigprocmask" | "tgkill" | "getpid" => {}
            // Never traced.
            "rt_sigreturn" => assert_eq!(entered, 0),
            // The first began in a process of the starter's.
            "execve" => assert_eq!((entered + 1, left), (seen, seen)),
            name => assert_eq!(entered, seen, "{name}"),
        }
    }
    println!("{} {options:?}: {calls} calls, as many as strace's", words.join(" "));
}
