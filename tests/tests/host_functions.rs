//! Functions of the target that programs call: what they get and give, what of the thread they may not change, and how they can end.

use beeline_tests::{Store, Target, gcc, object, root, target};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The host functions of `host.bpf.c`, all in the program.
const FUNCTIONS: [&str; 9] = [
    "host_twice",
    "host_narrow",
    "host_fill",
    "host_length",
    "rate",
    "host_escape",
    "host_block",
    "host_end_thread",
    "host_fork",
];

/// A program with functions for programs, and a store with programs at some of its places.
struct Host {
    path: PathBuf,
    store: Store,
}

impl Host {
    /// `PROG=KIND:SYMBOL` for each program.
    fn with(programs: &[&str]) -> Host {
        let host = Host { path: gcc("tests/targets/host.c"), store: Store::new() };
        let object = object("tests/programs/host.bpf.c");
        let mut words = vec!["load".to_owned(), object.to_string_lossy().into_owned()];
        for name in FUNCTIONS {
            words.extend(["--host-function".to_owned(), format!("{name}={}:{name}", host.path.display())]);
        }
        for program in programs {
            let (start, symbol) = program.rsplit_once(':').expect("PROG=KIND:SYMBOL");
            words.extend(["--attach".to_owned(), format!("{start}:{}:{symbol}", host.path.display())]);
        }
        host.store.ok(&words.iter().map(String::as_str).collect::<Vec<_>>());
        host
    }

    /// A process of it, which carries the programs.
    fn attached(&self) -> Target {
        let mut process = Target::spawn(&mut Command::new(&self.path));
        assert_eq!(process.line(), "ready");
        self.store.ok(&["attach", &process.pid()]);
        process
    }

    fn missed(&self, link: &str) -> u64 {
        self.store.json(&["link", "show", link])[0]["missed"].as_u64().expect("a number")
    }
}

/// One test of the program, and its answer.
fn ask(process: &mut Target, test: &str) -> String {
    process.send(test);
    process.line()
}

fn end(mut process: Target) {
    process.send("quit");
    process.finish();
}

/// Two processes, which have the function at different addresses.
#[test]
fn results_and_what_is_kept() {
    let host = Host::with(&["twice=uprobe:probe_here", "twice=uprobe:sum", "twice_at_return=uretprobe:sum"]);
    let mut processes = [host.attached(), host.attached()];
    for process in &mut processes {
        assert_eq!(ask(process, "errno"), "5", "errno is the target's");
        assert_eq!(ask(process, "vectors"), "0 2", "vector registers, x87 and mxcsr are the target's");
        assert_eq!(ask(process, "sum"), "23");
    }
    let seen = ["calls", "result"].map(|name| host.store.global(name));
    assert_eq!(seen, [2 * 4, 46]);
    let shown = host.store.ok(&["link", "show", "twice"]);
    let line = format!("calls host function host_twice = {}:host_twice", host.path.display());
    assert!(shown.contains(&line), "{shown}");
    let shown = host.store.json(&["prog", "show", "fill"]);
    assert_eq!(shown[0]["host_functions"][0]["name"], "host_fill", "{shown}");
    let listed = host.store.ok(&["prog", "dump", "xlated", "fill"]);
    assert!(listed.contains("call host_fill#"), "{listed}");
    for process in &processes {
        host.store.ok(&["detach", &process.pid()]);
    }
    for mut process in processes {
        assert_eq!(ask(&mut process, "vectors"), "0 4", "nothing is called any more");
        end(process);
    }
}

/// While signal handlers hit the same probes every 100 microseconds.
#[test]
fn under_signals() {
    let host = Host::with(&["twice=uprobe:probe_here", "twice=uprobe:sum"]);
    let mut process = host.attached();
    assert_eq!(ask(&mut process, "signals"), "0");
    host.store.ok(&["detach", &process.pid()]);
    end(process);
}

#[test]
fn arguments_and_results_are_of_their_types() {
    let host = Host::with(&["narrow=uprobe:narrows", "fill=uprobe:fills", "length=uprobe:text_length"]);
    let mut process = host.attached();
    assert_eq!(ask(&mut process, "narrow"), "ffffffffffffffff ffff ff 1 ffffffffffffffff");
    assert_eq!(host.store.global("result") as i64, -128);
    assert_eq!(ask(&mut process, "fill"), "filled");
    assert_eq!(host.store.global("filled"), 1);
    assert_eq!(ask(&mut process, "text"), "20", "an address of the target");
    end(process);
}

/// A function that is replaced by a program: by what it was itself and something more, by a structure, by a truth value.
#[test]
fn replaced_functions() {
    let host = Host::with(&["replaced=uprobe:rate", "make=uprobe:structure", "allow=uprobe:allowed"]);
    let mut process = host.attached();
    for calls in 1..=20 {
        assert_eq!(ask(&mut process, "original"), "13");
        assert_eq!(host.missed("replaced"), calls, "the original, called by its replacement");
    }
    assert_eq!(ask(&mut process, "structure"), "1 20 30");
    assert_eq!(ask(&mut process, "allowed"), "1");
    host.store.ok(&["detach", &process.pid()]);
    assert_eq!(ask(&mut process, "original"), "12");
    assert_eq!(ask(&mut process, "structure"), "1 1 1");
    assert_eq!(ask(&mut process, "allowed"), "0");
    end(process);
}

/// A function that leaves by `longjmp`, a hundred times, one that ends its thread, one that forks.
#[test]
fn functions_that_do_not_come_back() {
    let host = Host::with(&["escape=uprobe:escapes", "end_thread=uprobe:ends_thread", "forks=uprobe:forks"]);
    let mut process = host.attached();
    assert_eq!(ask(&mut process, "escape"), "101");
    assert_eq!((host.store.global("escapes"), host.missed("escape")), (100, 0));
    assert_eq!(ask(&mut process, "end-thread"), "7");
    assert_eq!(ask(&mut process, "fork"), "9");
    assert_eq!(host.store.global("forked"), 1);
    assert_eq!(ask(&mut process, "escape"), "101");
    host.store.ok(&["detach", &process.pid()]);
    assert_eq!(ask(&mut process, "fork"), "-1", "it does not fork any more");
    end(process);
}

/// A thread waits in a function: the probes go, and what the thread comes back to stays until it has.
#[test]
fn detach_while_a_function_waits() {
    let host = Host::with(&["block=uprobe:blocks_here", "twice=uprobe:sum"]);
    let mut process = host.attached();
    assert_eq!(ask(&mut process, "block"), "blocked");
    let message = host.store.fails(&["detach", &process.pid()]);
    assert!(message.contains("runs a program"), "{message}");
    assert_eq!(ask(&mut process, "sum"), "23");
    assert_eq!(host.store.global("result"), 0, "no probe is in force");
    assert_eq!(ask(&mut process, "release"), "released");
    assert_eq!(host.store.global("calls"), 1, "the program went on");
    host.store.ok(&["detach", &process.pid()]);
    end(process);
}

/// Its link goes, and others come and go, while the function waits: what the thread comes back to is there.
#[test]
fn links_go_while_a_function_waits() {
    let host = Host::with(&["block=uprobe:blocks_here", "twice=uprobe:sum"]);
    let mut process = host.attached();
    assert_eq!(ask(&mut process, "block"), "blocked");
    host.store.ok(&["link", "detach", "block"]);
    let object = object("tests/programs/multi.bpf.c").to_string_lossy().into_owned();
    let attach = format!("on_entry=uprobe:{}:probe_here", host.path.display());
    for _ in 0..5 {
        host.store.ok(&["load", &object, "--attach", &attach]);
        host.store.ok(&["attach", &process.pid()]);
        host.store.ok(&["unload", "multi"]);
    }
    assert_eq!(ask(&mut process, "release"), "released");
    assert_eq!(ask(&mut process, "sum"), "23");
    assert_eq!((host.store.global("calls"), host.store.global("result")), (2, 42));
    host.store.ok(&["detach", &process.pid()]);
    end(process);
}

/// Killed in a function, with and without a detach that waits for it.
#[test]
fn killed_while_a_function_waits() {
    let host = Host::with(&["block=uprobe:blocks_here"]);
    let mut process = host.attached();
    assert_eq!(ask(&mut process, "block"), "blocked");
    drop(process);
    let mut other = host.attached();
    assert_eq!(ask(&mut other, "block"), "blocked");
    assert_eq!(ask(&mut other, "release"), "released");
    end(other);
}

#[test]
fn exceptions_within() {
    let program = target("tests/targets/host_throw.cc", "glibc", "g++", &[]);
    let place = |name: &str| format!("{name}={}:{name}", program.display());
    let object = object("tests/programs/host_cxx.bpf.c").to_string_lossy().into_owned();
    let load = |store: &Store, attach: &str| {
        let hosts = [place("host_catches"), place("host_throws")];
        let attach = format!("{attach}=uprobe:{}:work", program.display());
        store.ok(&[
            "load",
            &object,
            "--host-function",
            &hosts[0],
            "--host-function",
            &hosts[1],
            "--attach",
            &attach,
        ]);
    };
    let store = Store::new();
    load(&store, "catches");
    let printed = store.ok(&["start", "--", &program.to_string_lossy()]);
    // Eleven frames of each call by the program, four of each of its own.
    assert_eq!(printed, format!("{}\n", 100 * (11 + 4)));
    let seen = ["caught", "last"].map(|name| store.global(name));
    assert_eq!(seen, [100, 100 * 11 + 99 * 4]);
    // Out of the function it finds nobody, as out of a function that is `noexcept`.
    let store = Store::new();
    load(&store, "throws");
    let ended = store.output(&["start", "--", &program.to_string_lossy()]);
    let message = String::from_utf8_lossy(&ended.stderr);
    assert!(message.contains("terminate called after throwing"), "{message}");
}

/// A process without the function, or with one that could go away: it goes without the program, and the reason is kept.
#[test]
fn processes_without_the_function() {
    let host = gcc("tests/targets/host.c");
    let other = gcc("tests/targets/many.c");
    let store = Store::new();
    let object = object("tests/programs/host.bpf.c").to_string_lossy().into_owned();
    let mut words = vec!["load".to_owned(), object.clone()];
    for name in FUNCTIONS {
        words.extend(["--host-function".to_owned(), format!("{name}={}:{name}", host.display())]);
    }
    words.extend(["--attach".to_owned(), format!("twice=uprobe:{}:many_3", other.display())]);
    store.ok(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let mut process = Target::spawn(Command::new(&other).args(["10", "wait"]));
    assert_eq!(process.line(), "ready");
    let message = store.fails(&["attach", &process.pid()]);
    let reason = format!("calls host function host_twice: {} is not mapped", host.display());
    assert!(message.contains(&reason), "{message}");
    let shown = store.ok(&["link", "show", "twice"]);
    assert!(shown.contains(&reason), "{shown}");
    process.send("go");
    while !process.line().starts_with("sum") {}
    assert_eq!(store.global("calls"), 0);
    process.send("end");
    process.finish();
}

/// `host_refused.bpf.c`, compiled with these flags.
struct Refused(PathBuf);

impl Refused {
    fn new(name: &str, flags: &[&str]) -> Refused {
        let source = root().join("tests/programs/host_refused.bpf.c");
        let output = std::env::temp_dir().join(format!("beeline-host-{name}-{}.o", std::process::id()));
        let mut clang = Command::new("clang");
        clang.args(["-g", "-O2", "-target", "bpf", "-D__TARGET_ARCH_x86", "-I"]);
        clang.arg(format!("/usr/include/{}-linux-gnu", std::env::consts::ARCH));
        let status = clang.args(flags).arg("-c").arg(&source).arg("-o").arg(&output).status();
        assert!(status.expect("clang runs").success());
        Refused(output)
    }

    fn message(&self, host: &str) -> String {
        Store::new().fails(&["load", &self.0.to_string_lossy(), "--host-function", host])
    }
}

impl Drop for Refused {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn refused_at_load() {
    let host = gcc("tests/targets/host.c");
    let known = format!("host_twice={}:host_twice", host.display());
    #[track_caller]
    fn check(message: &str, expected: &str) {
        assert!(message.contains(expected), "{message}");
    }
    let plain = Refused::new("plain", &[]);
    check(&Store::new().fails(&["load", &plain.0.to_string_lossy()]), "register it: --host-function");
    check(&plain.message(&format!("host_twice={}:nobody", host.display())), "nobody");
    check(&plain.message("host_twice=/nowhere/at/all:f"), "host function host_twice: /nowhere/at/all");
    let path = plain.0.to_string_lossy().into_owned();
    let other = known.replacen("host_twice", "other", 1);
    let both = ["load", &path, "--host-function", &known, "--host-function", &other];
    check(&Store::new().fails(&both), "host function other: the object calls no extern function");
    check(&plain.message("host_twice"), "write NAME=PATH:SYMBOL");
    check(&Refused::new("floats", &["-DFLOATS"]).message(&known), "argument 1: a float is not supported");
    check(&Refused::new("many", &["-DMANY"]).message(&known), "it takes 6 arguments");
    check(&Refused::new("stack", &["-DSTACK"]).message(&known), "R1 type=fp expected=scalar");
    check(&Refused::new("tail", &["-DTAIL_CALLED"]).message(&known), "cannot be reached by tail calls");
    check(&Refused::new("calls", &["-DAT_CALLS"]).message(&known), "programs at system calls cannot call");
    // What can be loaded can be judged, and cannot be run here.
    let store = Store::new();
    store.ok(&["verify", &path, "--host-function", &known]);
    store.ok(&["load", &path, "--host-function", &known]);
    for interpreter in [&[][..], &["--interpreter"]] {
        let message = store.fails(&[&["prog", "run", "called"], interpreter].concat());
        check(&message, "it calls host_twice, a function of the processes that it is attached to");
    }
}

/// A library that the process has loaded by `dlopen`: it can be unloaded, unless it says that it stays. And one that the program needs.
#[test]
fn libraries() {
    let library = |name: &str, flags: &[&str]| {
        target("tests/targets/loaded.c", name, "gcc", &[&["-shared", "-fPIC"], flags].concat())
    };
    let program = gcc("tests/targets/plugin.c");
    let object = object("tests/programs/host_plugin.bpf.c").to_string_lossy().into_owned();
    let attach = |host: &str, loaded: &Path| {
        let store = Store::new();
        let (host, place) =
            (format!("loaded_work={host}"), format!("replaced=uprobe:{}:answer", program.display()));
        store.ok(&["load", &object, "--host-function", &host, "--attach", &place]);
        let mut process = Target::spawn(Command::new(&program).arg(loaded));
        assert_eq!(process.line(), "ready");
        let attached = store.output(&["attach", &process.pid()]);
        let answer = ask(&mut process, "");
        end(process);
        (answer, String::from_utf8_lossy(&attached.stderr).into_owned())
    };
    let in_library = |library: &Path| format!("{}:loaded_work", library.display());
    let leaves = library("host-leaves", &[]);
    let (answer, message) = attach(&in_library(&leaves), &leaves);
    assert_eq!(answer, "5");
    assert!(message.contains("can be unloaded under it"), "{message}");
    let stays = library("host-stays", &["-Wl,-z,nodelete"]);
    assert_eq!(attach(&in_library(&stays), &stays), ("16".to_owned(), String::new()));
    assert_eq!(attach("libc.so.6:labs", &leaves), ("5".to_owned(), String::new()));
}
