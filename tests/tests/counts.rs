//! Exact counts: equal to what the program itself knows, or to the kernel's uprobe with the same object.

use beeline_tests::{Store, Target, copy, gcc, have, object, root, target};
use std::path::Path;
use std::process::{Command, Stdio};

const CALLS: u64 = 5000;
const THREADS: u64 = 4;

/// What `worker` computes: the sums of all first arguments and of all results of its calls, both wrapping.
fn expected_sums(threads: u64, calls: u64) -> (u64, u64) {
    let (mut arguments, mut results) = (0u64, 0u64);
    for thread in 0..threads {
        let mut sum = thread;
        for i in 0..calls {
            arguments = arguments.wrapping_add(sum);
            sum = sum.wrapping_mul(3).wrapping_add(i);
            results = results.wrapping_add(sum);
        }
    }
    (arguments, results)
}

/// Loads `counts` on a function's entry and return.
fn load_counts(store: &Store, program: &Path, function: &str) {
    let object = object("tests/programs/counts.bpf.c");
    let place = format!("{}:{function}", program.display());
    store.ok(&[
        "load",
        &object.to_string_lossy(),
        "--attach",
        &format!("on_entry=uprobe:{place}"),
        "--attach",
        &format!("on_return=uretprobe:{place}"),
    ]);
}

fn check_counts(store: &Store, calls: u64, sums: Option<(u64, u64)>) {
    for which in [0, 1] {
        assert_eq!(store.number("shared", which), calls, "shared atomic counter {which}");
        assert_eq!(store.percpu_sum("percpu", which), calls, "per-CPU counter {which}");
    }
    if let Some((arguments, results)) = sums {
        assert_eq!(store.global("argument_sum"), arguments, "arguments at entry");
        assert_eq!(store.global("result_sum"), results, "results at return");
    }
}

fn check_worker(program: &Path) {
    let sums = expected_sums(THREADS, CALLS);
    let arguments = [THREADS.to_string(), CALLS.to_string()];

    let store = Store::new();
    load_counts(&store, program, "work");
    let printed = store.ok(&["start", "--", &program.to_string_lossy(), &arguments[0], &arguments[1]]);
    assert!(printed.contains(&format!("work {}", THREADS * CALLS)), "{printed}");
    check_counts(&store, THREADS * CALLS, Some(sums));

    let store = Store::new();
    load_counts(&store, program, "work");
    let mut worker = Target::spawn(Command::new(program).args(&arguments).arg("wait"));
    assert_eq!(worker.line(), "ready");
    store.ok(&["attach", &worker.pid()]);
    worker.send("go");
    assert!(worker.line().contains("work"));
    check_counts(&store, THREADS * CALLS, Some(sums));
    let pid: u64 = worker.pid().parse().expect("a number");
    assert_eq!(store.number("by_pid", pid), THREADS * CALLS);
    store.ok(&["detach", &worker.pid()]);
    worker.send("end");
    worker.finish();
}

/// A run that a handler has left by `siglongjmp` is over: later hits at the same depth and below are not taken for nested ones.
#[test]
fn after_jumps_out_of_programs() {
    let store = Store::new();
    let program = gcc("tests/targets/left_by_jump.c");
    let path = program.to_string_lossy();
    let object = object("tests/programs/counts.bpf.c");
    // The one program takes the time, the other counts.
    let work = format!("on_return=uprobe:{path}:work");
    let after = format!("on_entry=uprobe:{path}:after");
    store.ok(&["load", &object.to_string_lossy(), "--attach", &work, "--attach", &after]);
    assert_eq!(store.ok(&["start", "--", &path]), "2000\n");
    assert_eq!(store.number("shared", 0), 2000);
}

#[test]
fn glibc_dynamic() {
    check_worker(&gcc("tests/targets/worker.c"));
}

#[test]
fn glibc_without_pie() {
    check_worker(&target("tests/targets/worker.c", "nopie", "gcc", &["-no-pie"]));
}

#[test]
fn glibc_static() {
    check_worker(&target("tests/targets/worker.c", "static", "gcc", &["-static"]));
}

/// Nothing names what we look for in glibc, so the place of a probe is given as an offset in the file.
#[test]
fn glibc_static_stripped() {
    let named = target("tests/targets/worker.c", "static", "gcc", &["-static", "-no-pie"]);
    let stripped = named.with_file_name("worker-stripped-static");
    copy(&named, &stripped);
    let run = |command: &mut Command| {
        let output = command.output().expect("binutils are there");
        assert!(output.status.success());
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    run(Command::new("strip").arg(&stripped));
    let symbols = run(Command::new("nm").arg(&named));
    let line = symbols.lines().find(|line| line.ends_with(" T work")).expect("it has work()");
    let address = u64::from_str_radix(line.split(' ').next().expect("an address"), 16).expect("hex");
    let store = Store::new();
    // Linked at 0x400000, where the file begins.
    load_counts(&store, &stripped, &format!("{:#x}", address - 0x40_0000));
    let mut worker = Target::spawn(Command::new(&stripped).args(["3", "2000", "wait"]));
    assert_eq!(worker.line(), "ready");
    store.ok(&["attach", &worker.pid()]);
    worker.send("go");
    assert!(worker.line().contains("work 6000"));
    check_counts(&store, 6000, None);
    worker.send("end");
    worker.finish();
}

#[test]
fn glibc_static_pie() {
    check_worker(&target("tests/targets/worker.c", "staticpie", "gcc", &["-static-pie"]));
}

#[test]
fn musl_static() {
    if have(&["musl-gcc"]) {
        check_worker(&target("tests/targets/worker.c", "muslstatic", "musl-gcc", &["-static"]));
    }
}

#[test]
fn musl_dynamic() {
    if have(&["musl-gcc"]) {
        check_worker(&target("tests/targets/worker.c", "musl", "musl-gcc", &[]));
    }
}

#[test]
fn linked_by_lld_and_mold() {
    if have(&["ld.lld", "clang"]) {
        check_worker(&target("tests/targets/worker.c", "lld", "clang", &["-fuse-ld=lld"]));
    }
    if have(&["mold", "clang"]) {
        check_worker(&target("tests/targets/worker.c", "mold", "clang", &["-fuse-ld=mold"]));
    }
}

#[test]
fn eight_threads_and_a_forked_child() {
    let program = gcc("tests/targets/worker.c");
    let store = Store::new();
    load_counts(&store, &program, "work");
    let mut worker = Target::spawn(Command::new(&program).args(["8", "100000", "wait", "fork"]));
    assert_eq!(worker.line(), "ready");
    store.ok(&["attach", &worker.pid()]);
    worker.send("go");
    let lines = [worker.line(), worker.line()];
    let pids =
        lines.map(|line| line.split_whitespace().nth(1).expect("pid").parse::<u64>().expect("a number"));
    check_counts(&store, 2 * 800_000, None);
    for pid in pids {
        assert_eq!(store.number("by_pid", pid), 800_000, "process {pid} is counted under its own id");
    }
    worker.send("end");
    worker.finish();
}

#[test]
fn go_function() {
    if !have(&["go"]) {
        return;
    }
    let program = go_target();
    let store = Store::new();
    let object = object("examples/go-function/gofunc.bpf.c");
    let attach = format!("on_add=uprobe:{}:main.add", program.display());
    store.ok(&["load", &object.to_string_lossy(), "--attach", &attach]);
    let printed = store.ok(&["start", "--", &program.to_string_lossy(), "3000"]);
    assert!(printed.contains("called 12000 times"), "{printed}");
    let (_, stats) = store.entries("stats").remove(0);
    assert_eq!(stats["calls"], 12000);
    // Each of four goroutines adds 1 to 0, 1, 2, ... 2999.
    assert_eq!(stats["sum_of_a"], 4 * (2999 * 3000 / 2));
    assert_eq!(stats["sum_of_b"], 12000);
}

fn go_target() -> std::path::PathBuf {
    let output = beeline_tests::build_dir().join("end-to-end/gotarget");
    let status = Command::new("go")
        .current_dir(root().join("examples/go-function/target"))
        .env("CGO_ENABLED", "0")
        .args(["build", "-o"])
        .arg(&output)
        .arg(".")
        .status()
        .expect("go runs");
    assert!(status.success());
    output
}

/// python3's malloc() calls under the kernel's uprobe and under beeline are the same number.
#[test]
fn python_as_under_the_kernel() {
    const PYTHON: &[&str] = &["-S", "-E", "-c", "print(len([str(i) for i in range(20000)]))"];
    if !have(&["python3"]) || !Path::new("/usr/bin/python3").exists() {
        return;
    }
    let object = object("examples/malloc-counter/malloc.bpf.c");
    let mut kernel = Target::spawn(
        Command::new(target("tests/targets/kernel_count.c", "glibc", "gcc", &[]))
            .arg(&object)
            .arg("by_process"),
    );
    if kernel.line() != "ready" {
        eprintln!("skipped: the kernel does not let us attach uprobes");
        return;
    }
    // The same standard streams in both runs: python3 allocates by what they are.
    let streams = |command: &mut Command| {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.env_clear().env("PYTHONHASHSEED", "0").args(PYTHON).spawn().expect("it runs")
    };
    let mut child = streams(&mut Command::new("/usr/bin/python3"));
    let pid = child.id();
    child.wait().expect("a child of ours");
    kernel.send("done");
    let counts = kernel.finish();
    let of_python = counts.lines().find_map(|line| line.strip_prefix(&format!("{pid} ")));
    let in_kernel: u64 =
        of_python.and_then(|line| line.split(' ').next()?.parse().ok()).expect("the kernel counted python3");

    let store = Store::new();
    store.ok(&["load", &object.to_string_lossy()]);
    let status =
        streams(&mut store.command(&["start", "--", "/usr/bin/python3"])).wait().expect("beeline runs");
    assert!(status.success());
    let (_, usage) = store.entries("by_process").remove(0);
    assert_eq!(usage["calls"].as_u64(), Some(in_kernel), "malloc() calls of python3");
    assert_eq!(store.percpu_sum("total", 0), in_kernel);
}
