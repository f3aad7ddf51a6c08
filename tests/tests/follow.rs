//! Children of a started or attached process: they carry the probes, and so does what they execute.

use beeline_tests::{Store, Target, gcc, have, object, root, rounds, target, wait_until};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// Entry and return probes on `work` of the target program.
fn load(store: &Store, program: &Path) {
    let place = format!("{}:work", program.display());
    let object = object("tests/programs/counts.bpf.c").to_string_lossy().into_owned();
    let (entry, leave) = (format!("on_entry=uprobe:{place}"), format!("on_return=uretprobe:{place}"));
    store.ok(&["load", &object, "--attach", &entry, "--attach", &leave]);
}

/// Entries and returns that were counted.
fn counts(store: &Store) -> [u64; 2] {
    [store.number("shared", 0), store.number("shared", 1)]
}

/// The target, compiled once for all tests: a new file would be another one than that of the probes.
fn worker() -> PathBuf {
    static COMPILED: OnceLock<PathBuf> = OnceLock::new();
    let variant = format!("follow-{}", std::process::id());
    COMPILED.get_or_init(|| target("tests/targets/worker.c", &variant, "gcc", &[])).clone()
}

#[test]
fn a_shell_script_that_forks_and_executes() {
    let (program, store, children) = (worker(), Store::new(), rounds(100));
    load(&store, &program);
    let script = format!(
        "for i in $(seq {children}); do {0} 1 10 >/dev/null || exit 1; done; ({0} 1 5; {0} 1 5) | cat >/dev/null; exit 3",
        program.display()
    );
    let output = store.output(&["start", "--", "/bin/bash", "-c", &script]);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(counts(&store), [10 * children + 10; 2]);
}

#[test]
fn children_that_are_not_followed() {
    let (program, store) = (worker(), Store::new());
    load(&store, &program);
    let script = format!("{0} 1 10; {0} 1 10", program.display());
    store.ok(&["start", "--no-follow", "--", "/bin/sh", "-c", &script]);
    assert_eq!(counts(&store), [0; 2]);
    // What is started itself carries its probes all the same, and so does its fork.
    let program = program.to_string_lossy();
    store.ok(&["start", "--no-follow", "--", &program, "2", "10", "fork"]);
    let own = counts(&store);
    assert!(own[0] >= 20 && own[0] == own[1], "{own:?}");
}

#[test]
fn make_with_parallel_jobs() {
    if !have(&["make"]) {
        return;
    }
    let (program, store) = (worker(), Store::new());
    load(&store, &program);
    let folder = std::env::temp_dir().join(format!("beeline-make-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("writable");
    let rule =
        format!("all: $(addprefix job-,$(shell seq 40))\njob-%:\n\t@{} 2 25 >/dev/null\n", program.display());
    std::fs::write(folder.join("Makefile"), rule).expect("writable");
    store.ok(&["start", "--", "make", "-j", "4", "-C", &folder.to_string_lossy()]);
    assert_eq!(counts(&store), [40 * 50; 2]);
    std::fs::remove_dir_all(folder).expect("ours");
}

#[test]
fn python_with_processes() {
    if !have(&["python3"]) {
        return;
    }
    let (program, store) = (worker(), Store::new());
    load(&store, &program);
    // posix_spawn or vfork, fork, and processes that execute while others begin.
    let script = format!(
        "import subprocess, multiprocessing, os, threading\n\
         def run(n): return subprocess.run(['{0}', '1', str(n)], stdout=subprocess.DEVNULL).returncode\n\
         if __name__ == '__main__':\n\
         \x20with multiprocessing.get_context('fork').Pool(4) as pool: assert pool.map(run, [10] * 20) == [0] * 20\n\
         \x20threads = [threading.Thread(target=run, args=(10,)) for _ in range(8)]\n\
         \x20[t.start() for t in threads]; [t.join() for t in threads]\n\
         \x20for _ in range(5): assert os.waitpid(os.posix_spawn('{0}', ['{0}', '1', '10'], os.environ), 0)[1] == 0\n",
        program.display()
    );
    store.ok(&["start", "--", "python3", "-c", &script]);
    assert_eq!(counts(&store), [330; 2]);
}

#[test]
fn a_process_that_is_attached_to_and_followed() {
    let (program, store) = (worker(), Store::new());
    load(&store, &program);
    let mut shell = Target::spawn(
        Command::new("/bin/bash")
            .args(["-c", "echo ready; while read n; do $1 1 $n; done", "-"])
            .arg(&program),
    );
    assert_eq!(shell.line(), "ready");
    let mut follower = store
        .command(&["-v", "attach", "--follow", &shell.pid()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("beeline runs");
    // It is followed as soon as it is traced.
    wait_until(|| {
        std::fs::read_to_string(format!("/proc/{}/status", shell.pid()))
            .is_ok_and(|text| !text.contains("TracerPid:\t0"))
    });
    for _ in 0..20 {
        shell.send("10");
        assert!(shell.line().contains("work 10"));
    }
    shell.finish();
    assert!(follower.wait().expect("a child of ours").success(), "what bash executes is what was wanted");
    assert_eq!(counts(&store), [200; 2]);
}

/// A killed command leaves everything running.
#[test]
fn the_follower_is_killed() {
    let (program, store) = (worker(), Store::new());
    load(&store, &program);
    let marker = std::env::temp_dir().join(format!("beeline-follow-{}", std::process::id()));
    let begun = marker.with_extension("begun");
    for round in 0..rounds(5) {
        let _ = std::fs::remove_file(&marker);
        let _ = std::fs::remove_file(&begun);
        let script = format!(
            ": > {2}; for i in 1 2 3 4 5 6 7 8 9 10; do {0} 2 100 >/dev/null || exit 1; done; echo done > {1}.new; mv {1}.new {1}",
            program.display(),
            marker.display(),
            begun.display()
        );
        let mut command = store.command(&["start", "--", "/bin/bash", "-c", &script]);
        let mut follower = command.stdout(Stdio::null()).spawn().expect("beeline runs");
        // Killed before that, it starts nothing.
        wait_until(|| begun.exists());
        std::thread::sleep(Duration::from_micros(round.wrapping_mul(7919) % 30_000));
        follower.kill().expect("a child of ours");
        follower.wait().expect("a child of ours");
        wait_until(|| marker.exists());
    }
    let _ = std::fs::remove_file(&marker);
    let _ = std::fs::remove_file(&begun);
}

/// Stops, continues, signals and exit statuses are what they are without us.
#[test]
fn signals_and_job_control() {
    let (program, store) = (worker(), Store::new());
    load(&store, &program);
    let script = format!(
        "trap 'echo usr' USR1; kill -USR1 $$; {0} 1 10 wait </dev/null >/dev/null & sleep 60 & p=$!; \
         kill -STOP $p; until grep -q 'State:.[Tt]' /proc/$p/status; do sleep 0.01; done; echo stopped; \
         kill -CONT $p; until grep -q 'State:.S' /proc/$p/status; do sleep 0.01; done; echo sleeps; \
         kill -TERM $p; wait $p; echo $?; (kill -KILL $BASHPID); echo $?; exit 9",
        program.display()
    );
    let output = store.output(&["start", "--", "/bin/bash", "-c", &script]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "usr\nstopped\nsleeps\n143\n137\n");
    assert_eq!(output.status.code(), Some(9));
}

/// Signals for the command are the program's, whoever of the command's threads the kernel would give them to.
#[test]
fn signals_for_the_command_reach_the_program() {
    let (program, store) = (worker(), Store::new());
    load(&store, &program);
    for more in [&["--"][..], &["--no-follow", "--"]] {
        let script = "trap 'echo usr1' USR1; trap 'echo usr2' USR2; trap 'echo term; exit 6' TERM; echo ready; \
                      while :; do read -t 1 line; done";
        let arguments = [&["start"], more, &["/bin/bash", "-c", script]].concat();
        let mut command = Target::spawn(&mut store.command(&arguments));
        assert_eq!(command.line(), "ready");
        for (signal, said) in [("USR1", "usr1"), ("USR2", "usr2"), ("TERM", "term")] {
            assert!(
                Command::new("kill")
                    .args([&format!("-{signal}"), &command.pid()])
                    .status()
                    .expect("kill")
                    .success()
            );
            assert_eq!(command.line(), said);
        }
        assert_eq!(command.status().code(), Some(6));
    }
}

/// What other commands want of a process that is followed, its follower does: it alone can.
#[test]
fn a_followed_process_is_attached_to_updated_and_detached() {
    let (program, store) = (worker(), Store::new());
    let place = format!("{}:work", program.display());
    let objects = ["one", "two"].map(|name| {
        let object = object("tests/programs/counts.bpf.c").to_string_lossy().into_owned();
        (name, object)
    });
    let entry = format!("on_entry=uprobe:{place}");
    let load = |(name, object): &(&str, String)| {
        store.ok(&["load", object, "--name", name, "--attach", &entry]);
    };
    load(&objects[0]);
    let path = program.to_string_lossy();
    let mut command = Target::spawn(&mut store.command(&["start", "--", &path, "1", "100", "wait"]));
    assert_eq!(command.line(), "ready");
    let pid = store.json(&["ps"]).as_array().expect("a list").iter().find_map(|it| {
        let pid = it["pid"].as_u64()?;
        descends(pid, &command.pid()).then_some(pid.to_string())
    });
    let pid = pid.expect("the program carries probes");
    // An object that was loaded later.
    load(&objects[1]);
    let said = store.ok(&["attach", &pid]);
    assert!(said.contains("by its follower: 1 probe, 1 were in force"), "{said}");
    // Another program for a link: from both places it is the second object's.
    store.ok(&["link", "update", "one/on_entry", "two/on_entry"]);
    command.send("go");
    assert!(command.line().contains("work 100"));
    let count = |object: &str| store.number(&format!("{object}/shared"), 0);
    assert_eq!((count("one"), count("two")), (0, 200));
    // It is let go, and as it was.
    store.ok(&["detach", &pid]);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    assert!(status.contains("TracerPid:\t0"), "{status}");
    assert_eq!(beeline_tests::our_mappings(&pid), Vec::<String>::new());
    command.send("end");
    assert_eq!(command.status().code(), Some(0), "its end is still that of the command");
}

/// The process's parent is this one.
fn descends(pid: u64, parent: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status"))
        .is_ok_and(|text| text.contains(&format!("PPid:\t{parent}\n")))
}

/// A program that traces others has its probes, and is not kept from it: started itself, or executed by what is followed.
#[test]
fn programs_that_trace_others_are_not_in_our_way() {
    let (program, store) = (gcc("tests/targets/tracer.c"), Store::new());
    load(&store, &program);
    let path = program.to_string_lossy();
    assert_eq!(store.ok(&["start", "--", &path]).trim(), "traced 5");
    assert_eq!(store.ok(&["start", "--", "/bin/sh", "-c", &format!("{path}; exit 0")]).trim(), "traced 5");
    assert_eq!(counts(&store), [2; 2], "what it forks has its probes");
    if have(&["strace"]) {
        let output = store.ok(&["start", "--", "strace", "-o", "/dev/null", "/bin/echo", "said"]);
        assert_eq!(output.trim(), "said");
    }
}

/// LeakSanitizer is the tracer of its own process at the end; ThreadSanitizer wants nothing mapped where it does not expect it.
#[test]
fn sanitized_programs_end_as_without_us() {
    for sanitizer in ["address", "thread", "leak", "undefined"] {
        let source = root().join("tests/targets/tracer.c");
        let output = std::env::temp_dir().join(format!("beeline-{sanitizer}-{}", std::process::id()));
        let compiled = Command::new("gcc")
            .arg(format!("-fsanitize={sanitizer}"))
            .arg("-o")
            .arg(&output)
            .arg(&source)
            .output();
        if !compiled.is_ok_and(|compiled| compiled.status.success()) {
            eprintln!("skipped: gcc has no {sanitizer} sanitizer");
            continue;
        }
        let store = Store::new();
        load(&store, &output);
        let run = |command: &mut Command| {
            let output = command.stdin(Stdio::null()).output().expect("it runs");
            (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let without = run(&mut Command::new(&output));
        let with = run(&mut store.command(&["start", "--", &output.to_string_lossy()]));
        assert_eq!(with, without, "{sanitizer}");
        assert_eq!(counts(&store)[0], 1, "{sanitizer}");
        std::fs::remove_file(&output).expect("ours");
    }
}

/// Valgrind executes translations of the code: its tools are left alone, and run.
#[test]
fn tools_of_valgrind_are_left_alone() {
    if !have(&["valgrind"]) {
        return;
    }
    let (program, store) = (worker(), Store::new());
    load(&store, &program);
    let path = program.to_string_lossy();
    let output = store.output(&["start", "--", "valgrind", "-q", "--error-exitcode=7", &path, "1", "10"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.contains("tool of valgrind"), "{errors}");
    let mut target = Target::spawn(Command::new("valgrind").args(["-q", &path, "1", "10", "wait"]));
    assert_eq!(target.line(), "ready");
    let message = store.fails(&["attach", &target.pid()]);
    assert!(message.contains("tool of valgrind"), "{message}");
    target.send("go");
    assert!(target.line().contains("work 10"));
    target.send("end");
    target.finish();
}
