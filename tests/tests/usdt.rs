//! Statically defined probes: arguments in all forms, semaphores, the same counts as in the kernel.

use beeline_tests::{Store, Target, copy, gcc, have, object, target};
use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

fn has_sdt() -> bool {
    let found = Path::new("/usr/include/x86_64-linux-gnu/sys/sdt.h").exists();
    if !found {
        eprintln!("skipped: <sys/sdt.h> is not installed (cargo xtask setup)");
    }
    found
}

fn load(store: &Store, program: &Path) {
    let object = object("tests/programs/usdt.bpf.c");
    let path = program.display();
    store.ok(&[
        "load",
        &object.to_string_lossy(),
        "--attach",
        &format!("on_forms=usdt:{path}:forms:all"),
        "--attach",
        &format!("on_work=usdt:{path}:app:work"),
        "--cookie",
        "77",
        "--cookie",
        "on_work=0x500000005",
    ]);
}

/// What one of the programs saw last.
fn seen(store: &Store, which: u64) -> Value {
    let entries = store.entries("seen");
    entries.into_iter().find(|(key, _)| key.as_u64() == Some(which)).expect("an array has it").1
}

fn numbers(value: &Value) -> Vec<i64> {
    value.as_array().expect("an array").iter().map(|it| it.as_i64().expect("a number")).collect()
}

const CALLS: i64 = 500;

/// `work` and `rest` of the target: hits, sum of first arguments, sum of second arguments.
fn check_work(store: &Store) {
    assert_eq!(store.number("sums", 0), 2 * CALLS as u64);
    let sum = CALLS * (CALLS - 1) / 2;
    assert_eq!(store.number("sums", 1), (2 * sum + 1000 * CALLS) as u64);
    // -i at the first place, i at the second.
    assert_eq!(store.number("sums", 2), 0);
    let work = seen(store, 1);
    assert_eq!((work["count"].as_i64(), work["cookie"].as_i64()), (Some(3), Some(0x5_0000_0005)));
    assert_eq!(work["text"], "other text");
}

fn check_forms(store: &Store) {
    let forms = seen(store, 0);
    assert_eq!((forms["hits"].as_i64(), forms["count"].as_i64()), (Some(1), Some(12)));
    assert_eq!(forms["cookie"].as_i64(), Some(77));
    assert_eq!(numbers(&forms["error"]), [0; 12]);
    let expected =
        [0x1122_3344_5566_7788, 0x5566_7788, 0x7788, -120, 0x77, -2, 0xffff_fffe, -9, 71, 11, -14, 10];
    assert_eq!(numbers(&forms["value"]), expected);
}

#[test]
fn arguments_in_all_forms() {
    if !has_sdt() {
        return;
    }
    let calls = CALLS.to_string();
    let builds =
        [("usdt", ["-O2"]), ("usdtnopie", ["-no-pie"]), ("usdtstatic", ["-static"]), ("usdtO0", ["-O0"])];
    for (variant, flags) in builds {
        let program = target("tests/targets/usdt.c", variant, "gcc", &flags);
        let store = Store::new();
        load(&store, &program);
        store.ok(&["start", "--", &program.to_string_lossy(), &calls]);
        check_forms(&store);
        check_work(&store);
    }
}

/// An index register, and variables by name: what libbpf's older header does not know.
#[test]
fn indexed_arguments_and_variables() {
    if !has_sdt() {
        return;
    }
    let object = object("tests/programs/usdt_index.bpf.c");
    for (variant, flags) in [("usdt", "-O2"), ("usdtnopie", "-no-pie")] {
        let program = target("tests/targets/usdt.c", variant, "gcc", &[flags]);
        let store = Store::new();
        let attach = format!("on_more=usdt:{}:forms:more", program.display());
        store.ok(&["load", &object.to_string_lossy(), "--attach", &attach]);
        store.ok(&["start", "--", &program.to_string_lossy()]);
        assert_eq!((store.global("hits"), store.global("errors")), (1, 0));
        let values: Vec<i64> =
            store.entries("values").iter().map(|(_, value)| value.as_i64().expect("a number")).collect();
        assert_eq!(values[..6], [12, 13, 0, -14, 0x1234_5678, 2], "{variant}");
    }
}

/// What the target says of its semaphore: count and address.
fn semaphore(line: &str) -> (u16, u64) {
    let mut words = line.split(' ').skip(1);
    let mut next = || words.next().unwrap_or_else(|| panic!("{line:?} is no semaphore"));
    let count = next().parse().expect("a number");
    next();
    (count, u64::from_str_radix(next().trim_start_matches("0x"), 16).expect("an address"))
}

#[test]
fn semaphores_are_counted_beside_others() {
    if !has_sdt() {
        return;
    }
    let program = gcc("tests/targets/usdt.c");
    let store = Store::new();
    load(&store, &program);
    let calls = CALLS.to_string();
    let mut process = Target::spawn(Command::new(&program).args([&calls, "wait"]));
    let (count, address) = semaphore(&process.line());
    assert_eq!((count, process.line().as_str()), (0, "ready"));
    // Another tool was there first.
    let memory = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/proc/{}/mem", process.pid()))
        .expect("it is ours");
    memory.write_all_at(&7u16.to_ne_bytes(), address).expect("writable");
    store.ok(&["attach", &process.pid()]);
    store.ok(&["attach", &process.pid()]);
    process.send("go");
    assert_eq!(semaphore(&process.line()).0, 9, "two places");
    assert_eq!(process.line(), "worked");
    check_work(&store);
    check_forms(&store);
    for _ in 0..3 {
        store.ok(&["detach", &process.pid()]);
        process.send("?");
        assert_eq!(semaphore(&process.line()).0, 7, "as before");
        store.ok(&["attach", &process.pid()]);
        process.send("?");
        assert_eq!(semaphore(&process.line()).0, 9);
    }
    store.ok(&["detach", &process.pid()]);
    process.send("?");
    assert_eq!(semaphore(&process.line()).0, 7);
    process.send("end");
    process.finish();
}

/// Python's own probes under the kernel, through libbpf, and under beeline. A copy of it: the kernel's probes are in every
/// process that runs the file.
#[test]
fn python_as_under_the_kernel() {
    const SCRIPT: &str = "import gc\nfor i in range(300):\n l = []; l.append(l); del l; gc.collect(i % 3)";
    let bytes = std::fs::read("/usr/bin/python3").unwrap_or_default();
    if !have(&["python3"]) || !bytes.windows(9).any(|bytes| bytes == b"gc__start") {
        eprintln!("skipped: this python3 has no USDT probes");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let python = folder.path().join("python3");
    copy(Path::new("/usr/bin/python3"), &python);
    let python = python.to_string_lossy().into_owned();
    let object = object("tests/programs/python_gc.bpf.c");
    let mut kernel = Command::new(target("tests/targets/kernel_count.c", "glibc", "gcc", &[]));
    kernel.arg(&object).arg("by_process");
    for (program, probe) in [("on_start", "gc__start"), ("on_done", "gc__done")] {
        kernel.args([program, &python, "python", probe]);
    }
    let mut kernel = Target::spawn(&mut kernel);
    if kernel.line() != "ready" {
        eprintln!("skipped: the kernel does not let us attach uprobes");
        return;
    }
    let run = |command: &mut Command| {
        command.stdin(Stdio::null()).stdout(Stdio::null()).env_clear();
        command.env("PYTHONHASHSEED", "0").env("PYTHONHOME", "/usr").args(["-S", "-c", SCRIPT]);
        command.spawn().expect("it runs")
    };
    let mut child = run(&mut Command::new(&python));
    let pid = child.id();
    assert!(child.wait().expect("a child of ours").success());
    kernel.send("done");
    let counts = kernel.finish();
    let of_python = counts.lines().find_map(|line| line.strip_prefix(&format!("{pid} "))).expect("counted");
    let in_kernel: Vec<u64> = of_python.split(' ').map(|word| word.parse().expect("a number")).collect();
    assert!(in_kernel[0] >= 300 && in_kernel[3] >= 300, "{in_kernel:?}");

    let store = Store::new();
    let attach = |program: &str, probe: &str| format!("{program}=usdt:{python}:python:{probe}");
    store.ok(&[
        "load",
        &object.to_string_lossy(),
        "--attach",
        &attach("on_start", "gc__start"),
        "--attach",
        &attach("on_done", "gc__done"),
    ]);
    let status = run(&mut store.command(&["start", "--", &python])).wait().expect("beeline runs");
    assert!(status.success());
    let (_, counted) = store.entries("by_process").remove(0);
    let fields = ["started", "generations", "done", "objects"];
    let ours = fields.map(|field| counted[field].as_u64().expect("a number"));
    assert_eq!(ours, in_kernel[..], "{fields:?}");
}

#[test]
fn what_is_not_there_is_said() {
    if !has_sdt() {
        return;
    }
    let object = object("tests/programs/usdt.bpf.c");
    let program = gcc("tests/targets/usdt.c");
    let store = Store::new();
    let fails = |place: &str| {
        store.fails(&["load", &object.to_string_lossy(), "--attach", &format!("on_work=usdt:{place}")])
    };
    let message = fails(&format!("{}:app:none", program.display()));
    assert!(message.contains("no USDT probe app:none") && message.contains("app:work"), "{message}");
    assert!(fails("/bin/true:app:work").contains("no USDT probes"));
    assert!(fails("/nothing:app:work").contains("/nothing"));
    // An older header cannot express an index register; nothing else is wrong with the place.
    store.ok(&[
        "load",
        &object.to_string_lossy(),
        "--attach",
        &format!("on_forms=usdt:{}:forms:more", program.display()),
    ]);
}
