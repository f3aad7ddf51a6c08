//! `--complete`: system calls of code that is made at run time. What they are is compared with strace's in `same_calls`; here is that no
//! process is harmed, whatever it does with the signal, and whenever commands come, go and are killed.

use beeline_tests::{
    Random, Store, Target, can_be_complete, comes, have, object, our_mappings, rounds, run_and_kill, target,
    text_of,
};
use beeline_watchdog::Watchdog;
use std::process::{Command, Stdio};
use std::time::Duration;

const SOURCE: &str = "tests/targets/generated.c";

fn generated() -> String {
    target(SOURCE, "glibc", "gcc", &[]).to_string_lossy().into_owned()
}

fn store() -> Store {
    let store = Store::new();
    store.ok(&["load", &object("tests/programs/call_counts.bpf.c").to_string_lossy()]);
    store
}

/// What the program says and how it ends.
fn said(command: &mut Command) -> (String, Option<i32>, Option<i32>) {
    use std::os::unix::process::ExitStatusExt;
    let output = command.stdin(Stdio::null()).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (text.into_owned(), output.status.code(), output.status.signal())
}

#[test]
fn programs_do_what_they_do_without() {
    if !can_be_complete() {
        return;
    }
    let (program, store) = (generated(), store());
    for words in [
        &["kinds"][..],
        &["interrupted"],
        // More places than there are slots.
        &["many", "2000"],
        &["signals"],
        &["storm", &rounds(20).to_string()],
        &["int80"],
        &["hidden"],
        &["sent"],
    ] {
        let (text, code, signal) = said(Command::new(&program).args(words));
        assert!(!text.is_empty(), "{words:?}");
        let arguments = [&["start", "--complete", "--", &program], words].concat();
        // What a signal ends is told as shells do.
        let expected = (text, code.or(signal.map(|signal| 128 + signal)), None);
        assert_eq!(said(&mut store.command(&arguments)), expected, "{words:?}");
    }
}

/// As on a kernel that does not know of it: nobody could tell whose a call is.
#[test]
fn no_calls_are_handed_to_the_process_itself() {
    if !can_be_complete() {
        return;
    }
    let (program, store) = (generated(), store());
    assert_eq!(said(Command::new(&program).arg("dispatches")).0, "-1\n0\nanother's handed 1\n0\n1\n0\n");
    let arguments = ["start", "--complete", "--", &program, "dispatches"];
    assert_eq!(said(&mut store.command(&arguments)).0, "-1\n-1\nright handed 0\n0\n1\n0\n");
}

#[test]
fn static_programs_and_go() {
    if !can_be_complete() {
        return;
    }
    let store = store();
    let program = target(SOURCE, "static", "gcc", &["-static"]).to_string_lossy().into_owned();
    let expected = said(Command::new(&program).arg("kinds"));
    assert_eq!(said(&mut store.command(&["start", "--complete", "--", &program, "kinds"])), expected);
    if !have(&["go"]) {
        return;
    }
    let hello = std::env::temp_dir().join(format!("beeline-hello-{}.go", std::process::id()));
    std::fs::write(&hello, "package main\nimport (\"fmt\"; \"os\")\nfunc main() { c := make(chan int); go func() { c <- os.Getppid() * 0 }(); fmt.Println(\"hello\", <-c) }\n").expect("writable");
    let built = hello.with_extension("");
    let go =
        Command::new("go").args(["build", "-o"]).arg(&built).arg(&hello).env("GO111MODULE", "off").status();
    assert!(go.is_ok_and(|status| status.success()));
    let output = store.ok(&["start", "--complete", "--", &built.to_string_lossy()]);
    assert_eq!(output, "hello 0\n");
    for path in [&hello, &built] {
        std::fs::remove_file(path).expect("ours");
    }
}

fn started(words: &[&str]) -> Target {
    let mut target = Target::spawn(Command::new(generated()).args(words));
    assert!(["ready", "waiting"].contains(&target.line().as_str()));
    target
}

/// Probes come and go while threads make such calls at full speed; what stands behind libc's code is as before.
#[test]
fn they_come_and_go_under_load() {
    if !can_be_complete() {
        return;
    }
    let (target, store) = (started(&["loop", "6"]), store());
    let pid = target.pid();
    let watchdog = Watchdog::new("--complete comes and goes");
    let text = text_of(&pid);
    for round in 0..rounds(15) {
        watchdog.alive();
        store.ok(&["attach", "--complete", &pid]);
        assert!(comes(|| dispatched(&store, &pid) > Some(1000)), "round {round}: threads go on");
        if round % 3 == 0 {
            // What is there stays complete.
            store.ok(&["attach", &pid]);
        }
        store.ok(&["detach", &pid]);
        assert_eq!(our_mappings(&pid), Vec::<String>::new());
        assert!(text_of(&pid) == text, "round {round}: code as before");
    }
    drop(watchdog);
    assert_eq!(target.finish(), "made, 0 wrong\n");
}

/// Calls at which programs could run so far, of which none were missed; none when the process's are not dispatched.
fn dispatched(store: &Store, pid: &str) -> Option<u64> {
    let listed = store.json(&["-v", "ps"]);
    let pid: u64 = pid.parse().expect("a number");
    let mut processes = listed.as_array().expect("a list").iter();
    let found = &processes.find(|it| it["pid"] == pid)?["system_calls"]["dispatched"];
    assert_eq!(found["missed"].as_u64().unwrap_or(0), 0, "{listed}");
    found["calls"].as_u64()
}

#[test]
fn a_wait_that_began_before_and_one_that_ends_after() {
    if !can_be_complete() {
        return;
    }
    let (mut target, store) = (started(&["wait"]), store());
    store.ok(&["attach", "--complete", &target.pid()]);
    assert_eq!(target.line(), "0 whole");
    store.ok(&["detach", &target.pid()]);
    drop(target);
    let mut target = Target::spawn(&mut store.command(&["start", "--complete", "--", &generated(), "wait"]));
    assert_eq!(target.line(), "waiting");
    store.ok(&["detach", "--all"]);
    assert_eq!(target.line(), "0 whole");
    assert!(target.is_alive());
}

/// A thread that blocks all signals is traced like any other, and blocks them all again.
#[test]
fn threads_that_block_the_signal() {
    if !can_be_complete() {
        return;
    }
    let (target, store) = (started(&["blocked"]), store());
    let pid = target.pid();
    let mask = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        status.lines().find(|line| line.starts_with("SigBlk")).expect("a mask").to_owned()
    };
    let before = mask();
    assert!(before.contains("fffffffe"), "{before}");
    store.ok(&["attach", "--complete", &pid]);
    assert!(comes(|| dispatched(&store, &pid) > Some(1000)));
    assert_ne!(mask(), before);
    store.ok(&["detach", &pid]);
    assert_eq!(mask(), before);
    assert_eq!(target.finish(), "made, 0 wrong\n");
}

/// Threads that block all signals for a moment, as each that makes another does, block none afterwards.
#[test]
fn masks_that_change_while_probes_come_and_go() {
    if !can_be_complete() {
        return;
    }
    let (target, store) = (started(&["creators"]), store());
    let pid = target.pid();
    for _ in 0..rounds(15) {
        store.ok(&["attach", "--complete", &pid]);
        store.ok(&["detach", &pid]);
    }
    assert_eq!(target.finish(), "0 block it\n");
}

/// A signal handler is to return into a call, from where nobody sees it: up a large stack, or on a stack that no thread is on. What it
/// returns to stays until it has.
#[test]
fn calls_that_are_returned_to_from_out_of_sight() {
    if !can_be_complete() {
        return;
    }
    for way in ["1", "2"] {
        let store = store();
        let mut target = Target::spawn(&mut store.command(&[
            "start",
            "--no-follow",
            "--complete",
            "--",
            &generated(),
            "covered",
            way,
        ]));
        assert_eq!(target.line(), "waiting");
        let pid = store.json(&["ps"])[0]["pid"].to_string();
        let message = store.fails(&["detach", &pid]);
        assert!(
            message.contains("will return to a system call of code made at run time"),
            "{way}: {message}"
        );
        target.send("");
        assert_eq!(target.line(), "-4", "{way}: interrupted, as by any handler");
        store.ok(&["detach", &pid]);
        assert_eq!(our_mappings(&pid), Vec::<String>::new());
        assert!(target.is_alive());
    }
}

/// A child that shares its maker's memory, and is no thread of it, goes on when that is detached.
#[test]
fn a_process_beside() {
    if !can_be_complete() {
        return;
    }
    let (target, store) = (started(&["beside"]), store());
    let pid = target.pid();
    for _ in 0..3 {
        store.ok(&["attach", "--complete", &pid]);
        std::thread::sleep(Duration::from_millis(20));
        store.ok(&["detach", &pid]);
    }
    assert_eq!(target.finish(), "made, 0 wrong, ended with 7\n");
}

#[test]
fn threads_that_end_in_their_calls() {
    if !can_be_complete() {
        return;
    }
    let store = store();
    let command = ["start", "--no-follow", "--complete", "--", &generated(), "ends", "400"];
    let mut target = Target::spawn(&mut store.command(&command));
    assert_eq!(target.line(), "ready");
    let pid = store.json(&["ps"])[0]["pid"].to_string();
    assert!(comes(|| dispatched(&store, &pid) > Some(1400)));
    assert_eq!(target.finish(), "made, 0 wrong\n");
}

#[test]
fn many_threads_wait_in_one_call() {
    if !can_be_complete() {
        return;
    }
    let (mut target, store) = (started(&["waiters", "150"]), store());
    let pid = target.pid();
    for _ in 0..2 {
        store.ok(&["attach", "--complete", &pid]);
        store.ok(&["detach", &pid]);
    }
    store.ok(&["attach", "--complete", &pid]);
    assert_eq!(target.line(), "0 short");
}

#[test]
fn commands_killed_at_any_moment() {
    if !can_be_complete() {
        return;
    }
    let (target, store) = (started(&["loop", "3"]), store());
    let pid = target.pid();
    let watchdog = Watchdog::new("--complete and killed commands");
    let mut random = Random::new(0x9E37_79B9_7F4A_7C15);
    let mut killed = 0;
    for round in 0..rounds(30) {
        watchdog.alive();
        let attach = ["attach", "--complete", &pid];
        let arguments: &[&str] = if round % 2 == 0 { &attach } else { &["detach", &pid] };
        if round % 2 == 1 {
            store.ok(&attach);
        }
        let delay = Duration::from_micros(random.below(30_000));
        killed += u64::from(run_and_kill(&store, arguments, delay));
        store.ok(&attach);
        assert!(comes(|| dispatched(&store, &pid) > Some(100)), "round {round}");
        store.ok(&["detach", &pid]);
        assert_eq!(our_mappings(&pid), Vec::<String>::new());
    }
    println!("{killed} found the command running");
    assert_eq!(target.finish(), "made, 0 wrong\n");
}

/// What a process says of its dispatch is its word: what cannot be is refused, and nothing of it done.
#[test]
fn damaged_bookkeeping_is_refused() {
    use std::os::unix::fs::FileExt;
    if !can_be_complete() {
        return;
    }
    let (target, store) = (started(&["loop", "2"]), store());
    let pid = target.pid();
    store.ok(&["attach", "--complete", &pid]);
    let memory = std::fs::File::options().read(true).write(true).open(format!("/proc/{pid}/mem"));
    let memory = memory.expect("ours");
    let block = our_mappings(&pid).iter().filter(|line| line.contains(" rw-p ")).find_map(|line| {
        let (start, rest) = line.split_once('-')?;
        let start = u64::from_str_radix(start, 16).ok()?;
        let end = u64::from_str_radix(rest.split_once(' ')?.0, 16).ok()?;
        let mut bytes = vec![0; (end - start) as usize];
        memory.read_exact_at(&mut bytes, start).ok()?;
        let words = bytes.chunks_exact(8);
        words.enumerate().find(|(_, word)| word == b"beedisp\0").map(|(index, _)| start + 8 * index as u64)
    });
    let block = block.expect("there is one");
    // The magic word, the length, where the slots begin, how many there are.
    for offset in [0, 16, 64, 72] {
        let mut before = [0; 8];
        memory.read_exact_at(&mut before, block + offset).expect("mapped");
        memory.write_all_at(&(u64::MAX - 255).to_le_bytes(), block + offset).expect("mapped");
        let message = store.fails(&["detach", &pid]);
        assert!(message.contains("its dispatch of system calls is damaged"), "{offset}: {message}");
        memory.write_all_at(&before, block + offset).expect("mapped");
    }
    store.ok(&["detach", &pid]);
    assert_eq!(target.finish(), "made, 0 wrong\n");
}

/// A follower holds none of these signals either.
#[test]
fn a_follower_killed_while_calls_are_made() {
    if !can_be_complete() {
        return;
    }
    let (target, store) = (started(&["loop", "3"]), store());
    let pid = target.pid();
    for _ in 0..rounds(6) {
        let mut command = store.command(&["attach", "--follow", "--complete", &pid]);
        let mut follower = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("beeline runs");
        assert!(comes(|| dispatched(&store, &pid) > Some(1000)));
        follower.kill().expect("it runs");
        follower.wait().expect("a child of ours");
    }
    store.ok(&["detach", &pid]);
    assert_eq!(target.finish(), "made, 0 wrong\n");
}

#[test]
fn breakpoints_as_well() {
    if !can_be_complete() {
        return;
    }
    let (program, store) = (generated(), store());
    let breakpoints = target("injector/inject/tests/breakpoints/target.c", "glibc", "gcc", &[]);
    let place = format!("{}:looped", breakpoints.display());
    beeline_tests::load_counts(&store, &[&place]);
    let mut target = Target::spawn(&mut Command::new(&breakpoints));
    assert_eq!(target.line(), "ready");
    let pid = target.pid();
    for options in [&["--breakpoints"][..], &["--complete"], &["--complete", "--breakpoints"]] {
        store.ok(&[&["attach"], options, &[&pid]].concat());
        for what in ["masks", "errors", "actions", "children", "10"] {
            target.send(what);
            assert_eq!(target.line(), "0", "{what} with {options:?}: the line at which something went wrong");
        }
    }
    assert!(store.ok(&["ps", "-v"]).contains("SIGSYS is kept deliverable"));
    store.ok(&["detach", &pid]);
    assert_eq!(our_mappings(&pid), Vec::<String>::new());
    target.send("actions");
    assert_eq!(target.line(), "0");
    let (text, code, signal) = said(Command::new(&program).arg("signals"));
    let expected = (text, code.or(signal.map(|signal| 128 + signal)), None);
    let arguments = ["start", "--complete", "--breakpoints", "--", &program, "signals"];
    assert_eq!(said(&mut store.command(&arguments)), expected);
}

/// What a program changes it changes here, too.
#[test]
fn calls_are_changed_and_skipped() {
    if !can_be_complete() {
        return;
    }
    let store = Store::new();
    let object = object("tests/programs/system_calls.bpf.c");
    store.ok(&["load", "--allow-override", &object.to_string_lossy()]);
    let output = store.output(&["start", "--complete", "--", &generated(), "changed"]);
    // One is not made, the other has another result.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "4242 77\n");
}

#[test]
fn what_cannot_be_complete_is_refused() {
    if !can_be_complete() {
        return;
    }
    let store = store();
    let mut target = started(&["paused"]);
    let message = store.fails(&["attach", "--complete", &target.pid()]);
    assert!(message.contains("(--complete)") && message.contains("blocks SIGSYS; try again"), "{message}");
    assert_eq!(our_mappings(&target.pid()), Vec::<String>::new());
    store.ok(&["attach", &target.pid()]);
    store.ok(&["detach", &target.pid()]);
    assert!(target.is_alive());
    if !have(&["musl-gcc"]) {
        return;
    }
    let program =
        beeline_tests::target(SOURCE, "musl-shared", "musl-gcc", &[]).to_string_lossy().into_owned();
    let message = store.fails(&["start", "--complete", "--", &program, "kinds"]);
    assert!(message.contains("can block signals and cannot be traced"), "{message}");
    // What it cannot be of a child it is not; the rest is.
    let output = store.output(&["start", "--complete", "--", "sh", "-c", &format!("{program} storm 3; :")]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0 wrong\n");
    assert!(output.status.success() && errors.contains("are not traced (--complete)"), "{errors}");
    assert!(!errors.contains("without probes"), "{errors}");
}
