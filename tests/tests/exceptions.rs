//! What leaves functions otherwise than by their own `ret`, and what runs on other stacks: exceptions, panics, `longjmp`,
//! cancelled threads, coroutines, signals, tail calls, recursion too deep to be remembered. With entry and return probes on
//! every function of the program, and on those of the libraries that do it, each says the same as without.
//!
//! The programs (`tests/targets/exceptions`) say how often their functions were called and came back. A hit more than
//! that, or one that is neither counted nor missed, is a failure.
//!
//! `BEELINE_SOAK` is the number of rounds; CI runs one.

use beeline_tests::{Store, have, object, rounds, target};
use beeline_watchdog::Watchdog;
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

/// Links that one program may have misses on: for its named functions alone.
const NAMED: &str = "multi";

/// A program and what is probed while it runs.
struct Case {
    source: &'static str,
    compiler: &'static str,
    flags: &'static [&'static str],
    /// Its argument: how much it does.
    amount: &'static str,
    /// Functions of libraries.
    libraries: &'static [&'static str],
    /// Arguments of `beeline start`.
    start: &'static [&'static str],
    /// What it does takes as long as it takes: its counts differ from run to run.
    varies: bool,
}

const C: Case =
    Case { source: "", compiler: "gcc", flags: &[], amount: "50", libraries: &[], start: &[], varies: false };

/// Runs the program without probes and with them, and compares.
fn check(name: &str, variant: &str, case: &Case) {
    if !have(&[case.compiler]) {
        return;
    }
    let program = target(case.source, variant, case.compiler, case.flags);
    let mut summary = Summary::default();
    for _ in 0..rounds(1) {
        let watchdog = Watchdog::new(name);
        let plain = Command::new(&program).arg(case.amount).output().expect("it runs");
        assert!(plain.status.success(), "{name} fails without probes");
        let plain = Said::new(&plain.stdout);
        let store = Store::new();
        load(&store, &program, &plain.functions(), case.libraries);
        let path = program.to_string_lossy();
        let mut arguments = vec!["start"];
        arguments.extend(case.start);
        arguments.extend(["--", &path, case.amount]);
        let output = store.command(&arguments).output().expect("beeline runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name} ended with {} under probes: {errors}", output.status);
        let probed = Said::new(&output.stdout);
        assert_eq!(probed.lines, plain.lines, "{name} says something else under probes: {errors}");
        if !case.varies {
            assert_eq!(probed.counted, plain.counted, "{name} counts something else under probes");
        }
        summary.add(compare(name, &store, &probed));
        drop(watchdog);
    }
    println!("{name}: {} runs, {summary}", rounds(1));
}

/// What a program prints: its results, and its functions with their calls and returns.
#[derive(PartialEq)]
struct Said {
    lines: Vec<String>,
    counted: Vec<(String, u64, u64)>,
}

impl Said {
    fn new(output: &[u8]) -> Said {
        let text = String::from_utf8_lossy(output);
        let mut said = Said { lines: Vec::new(), counted: Vec::new() };
        for line in text.lines() {
            match line.strip_prefix("counted ").map(|rest| rest.split(' ').collect::<Vec<_>>()).as_deref() {
                Some([name, calls, returns]) => {
                    let number = |text: &str| text.parse().expect("a number");
                    said.counted.push(((*name).to_owned(), number(calls), number(returns)));
                }
                _ => said.lines.push(line.to_owned()),
            }
        }
        assert!(!said.counted.is_empty(), "it counts nothing: {text}");
        said
    }

    fn functions(&self) -> Vec<&str> {
        self.counted.iter().map(|(name, ..)| name.as_str()).collect()
    }
}

/// Probes on all functions of the program, once more and apart on those that it counts, and on some of the libraries'.
fn load(store: &Store, program: &Path, functions: &[&str], libraries: &[&str]) {
    let path = program.display();
    let counts = object("tests/programs/counts.bpf.c").to_string_lossy().into_owned();
    let mut arguments = vec!["load".to_owned(), counts];
    for place in std::iter::once(format!("{path}:*")).chain(libraries.iter().map(|it| (*it).to_owned())) {
        arguments.extend(["--attach".into(), format!("on_entry=uprobe.multi:{place}")]);
        arguments.extend(["--attach".into(), format!("on_return=uretprobe.multi:{place}")]);
    }
    store.ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let multi = object("tests/programs/multi.bpf.c").to_string_lossy().into_owned();
    let named: Vec<String> = (1..).zip(functions).map(|(cookie, name)| format!("{name}#{cookie}")).collect();
    let place = format!("{path}:{}", named.join(","));
    let (entry, leave) =
        (format!("on_entry=uprobe.multi:{place}"), format!("on_return=uretprobe.multi:{place}"));
    let (first, second) = (format!("first=uprobe:{path}:quiet"), format!("second=uprobe:{path}:quiet+0"));
    let attach = [&entry, &leave, &first, &second].map(|it| ["--attach", it.as_str()]);
    store.ok(&[&["load", &multi], attach.as_flattened()].concat());
}

/// What the probes counted against what the program did.
fn compare(name: &str, store: &Store, said: &Said) -> Summary {
    let entries = by_cookie(store, "entries_by_cookie");
    let returns = by_cookie(store, "returns_by_cookie");
    let missed = missed(store);
    let counted = |hits: &HashMap<u64, u64>, cookie: u64| hits.get(&cookie).copied().unwrap_or(0);
    let mut sums = Summary { entries_missed: missed.0, returns_missed: missed.1, ..Summary::default() };
    let (mut all_calls, mut all_returns) = (0, 0);
    for (cookie, (function, calls, came_back)) in (1..).zip(&said.counted) {
        let (entered, left) = (counted(&entries, cookie), counted(&returns, cookie));
        assert!(entered <= *calls, "{name}: {function} was called {calls} times, and hit {entered} times");
        assert!(left <= *came_back, "{name}: {function} returned {came_back} times, and hit {left} times");
        sums.entries += entered;
        sums.returns += left;
        all_calls += calls;
        all_returns += came_back;
    }
    let Summary { entries, entries_missed, returns, returns_missed } = sums;
    assert_eq!(entries + entries_missed, all_calls, "{name}: every call is a hit or a miss: {missed:?}");
    // A call that was left by a jump has no return; where an unwinder passed by, it is a miss.
    let known = returns + returns_missed;
    assert!(
        (all_returns..=all_calls).contains(&known),
        "{name}: {all_returns} of {all_calls} calls returned; {returns} hits, {returns_missed} missed"
    );
    sums
}

fn by_cookie(store: &Store, map: &str) -> HashMap<u64, u64> {
    let number = |value: &Value| value.as_u64().expect("a number");
    store.entries(map).iter().map(|(key, value)| (number(key), number(value))).collect()
}

/// Misses of the entry link and of the return link of the functions that the program counts.
fn missed(store: &Store) -> (u64, u64) {
    let links = store.json(&["link", "list"]);
    let of = |program: &str| {
        let named = links.as_array().into_iter().flatten();
        let mut link = named.filter(|link| link["object"] == NAMED && link["prog"] == program);
        link.next().and_then(|link| link["missed"].as_u64()).expect("a link has a count of misses")
    };
    (of("on_entry"), of("on_return"))
}

/// Hits and misses.
#[derive(Default)]
struct Summary {
    entries: u64,
    entries_missed: u64,
    returns: u64,
    returns_missed: u64,
}

impl Summary {
    fn add(&mut self, other: Summary) {
        self.entries += other.entries;
        self.entries_missed += other.entries_missed;
        self.returns += other.returns;
        self.returns_missed += other.returns_missed;
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Summary { entries, entries_missed, returns, returns_missed } = self;
        write!(f, "entries {entries} ({entries_missed} missed), returns {returns} ({returns_missed} missed)")
    }
}

#[test]
fn exceptions_thrown() {
    let case = Case {
        source: "tests/targets/exceptions/throw.cc",
        compiler: "g++",
        libraries: &[
            "libstdc++.so.6:*cxa*",
            "libstdc++.so.6:*throw*",
            "libgcc_s.so.1:*",
            "libc.so.6:*backtrace*",
            "libc.so.6:qsort*",
            "libc.so.6:*alloc",
        ],
        ..C
    };
    check("exceptions", "cxx", &case);
    check("exceptions, static", "cxxstatic", &Case { flags: &["-static"], libraries: &[], ..case });
}

/// The program's own unwinder has no name: it is found by what it does.
#[test]
fn exceptions_of_a_stripped_unwinder() {
    let case = Case {
        source: "tests/targets/exceptions/throw.cc",
        compiler: "g++",
        flags: &["-static-libgcc", "-static-libstdc++", "-rdynamic", "-Wl,--exclude-libs,ALL", "-s"],
        ..C
    };
    check("exceptions, stripped", "cxxstripped", &case);
}

#[test]
fn exceptions_rust_panics() {
    let case = Case {
        source: "tests/targets/exceptions/panic.rs",
        compiler: "rustc",
        flags: &["--edition=2024"],
        libraries: &["libgcc_s.so.1:*", "libc.so.6:*alloc"],
        ..C
    };
    check("panics", "rust", &case);
}

#[test]
fn exceptions_long_jumps() {
    let case = Case {
        source: "tests/targets/exceptions/jumps.c",
        libraries: &["libc.so.6:*jmp*", "libc.so.6:*raise", "libc.so.6:sig*"],
        ..C
    };
    check("jumps", "glibc", &case);
    check("jumps, static", "static", &Case { flags: &["-static"], libraries: &[], ..case });
}

#[test]
fn exceptions_deep_recursion() {
    let source = "tests/targets/exceptions/recursion.c";
    check("recursion", "glibc", &Case { source, amount: "2", libraries: &["libc.so.6:*jmp*"], ..C });
}

#[test]
fn exceptions_coroutines() {
    let source = "tests/targets/exceptions/contexts.c";
    check("contexts", "glibc", &Case { source, libraries: &["libc.so.6:*context*"], ..C });
}

#[test]
fn exceptions_cancelled_threads() {
    let case = Case {
        source: "tests/targets/exceptions/cancel.c",
        amount: "20",
        libraries: &["libc.so.6:*pthread*", "libc.so.6:read", "libc.so.6:*sleep*", "libgcc_s.so.1:*"],
        ..C
    };
    check("cancel", "glibc", &case);
}

#[test]
fn exceptions_signals_on_an_alternate_stack() {
    let case = Case {
        source: "tests/targets/exceptions/signals.c",
        amount: "2000",
        libraries: &["libc.so.6:*printf*", "libc.so.6:strto*", "libc.so.6:sig*"],
        varies: true,
        ..C
    };
    check("signals", "glibc", &case);
}

#[test]
fn exceptions_vfork_storms() {
    let case = Case {
        source: "tests/targets/exceptions/storm.c",
        amount: "10",
        libraries: &["libc.so.6:*fork*", "libc.so.6:exec*", "libc.so.6:*spawn*", "libc.so.6:*wait*"],
        ..C
    };
    check("storm", "glibc", &case);
}

#[test]
fn exceptions_tail_calls() {
    let source = "tests/targets/exceptions/tails.c";
    check(
        "tails",
        "glibc",
        &Case { source, amount: "200", libraries: &["libc.so.6:ato*", "libc.so.6:strto*"], ..C },
    );
}
