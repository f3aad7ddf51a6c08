//! Libraries that a followed process loads and unloads: probes come with them, before their constructors run, and go with them.

use beeline_tests::{Store, Target, have, object, our_mappings, rounds, target, text_of};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Threads of the target and calls of each, for one cycle.
const THREADS: &str = "2";
const CALLS: &str = "10";
/// Calls of a cycle: those of the threads, one of the constructor, one of the destructor.
const EACH: u64 = 22;

fn variant(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

/// A program that loads, and libraries.
struct Made {
    program: PathBuf,
    libraries: Vec<PathBuf>,
}

impl Made {
    fn with(name: &str, compiler: &str, numbers: &[u32]) -> Made {
        let library = |number: &u32| {
            let flags = ["-shared", "-fPIC", &format!("-DNUMBER={number}")];
            target("tests/targets/loaded.c", &variant(&format!("{name}-{number}")), compiler, &flags)
        };
        Made {
            program: target("tests/targets/loads.c", &variant(name), compiler, &[]),
            libraries: numbers.iter().map(library).collect(),
        }
    }

    /// Words that run it.
    fn words(&self, cycles: u64, options: &[&str]) -> Vec<String> {
        let mut words = vec![self.program.to_string_lossy().into_owned(), cycles.to_string()];
        words.extend([THREADS, CALLS].iter().chain(options).map(|&word| word.to_owned()));
        words.extend(self.libraries.iter().map(|it| it.to_string_lossy().into_owned()));
        words
    }

    fn command(&self, cycles: u64, options: &[&str]) -> Command {
        let words = self.words(cycles, options);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in self.libraries.iter().chain([&self.program]) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Entry and return probes on the function of each library.
fn load(store: &Store, libraries: &[PathBuf]) {
    let object = object("tests/programs/counts.bpf.c").to_string_lossy().into_owned();
    let mut words = vec!["load".to_owned(), object];
    for library in libraries {
        for program in ["on_entry=uprobe", "on_return=uretprobe"] {
            words.extend(["--attach".to_owned(), format!("{program}:{}:loaded_work", library.display())]);
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    store.ok(&words);
}

fn counts(store: &Store) -> [u64; 2] {
    [store.number("shared", 0), store.number("shared", 1)]
}

/// Hits that were not counted by a program, by the links' own account.
fn start(store: &Store, words: &[String]) -> String {
    let words: Vec<&str> = ["start", "--"].into_iter().chain(words.iter().map(String::as_str)).collect();
    store.ok(&words)
}

#[test]
fn a_program_that_loads_and_unloads() {
    let (made, store, cycles) = (Made::with("cycles", "gcc", &[3]), Store::new(), rounds(1000));
    load(&store, &made.libraries);
    let said = start(&store, &made.words(cycles, &[]));
    assert_eq!(said.trim(), format!("calls {}", cycles * EACH));
    assert_eq!(counts(&store), [cycles * EACH; 2]);
}

/// One library comes to where the other was.
#[test]
fn libraries_that_take_turns() {
    let (made, store, cycles) = (Made::with("turns", "gcc", &[3, 5, 7]), Store::new(), rounds(300));
    load(&store, &made.libraries);
    start(&store, &made.words(cycles, &[]));
    assert_eq!(counts(&store), [cycles * EACH; 2]);
    // And where nobody probes the other one.
    let (only, store) = (Store::new(), store);
    drop(store);
    load(&only, &made.libraries[..1]);
    start(&only, &made.words(cycles, &[]));
    assert_eq!(counts(&only), [cycles / 3 * EACH; 2]);
}

#[test]
fn name_spaces_of_the_loader() {
    let (made, store, cycles) = (Made::with("spaces", "gcc", &[3]), Store::new(), rounds(30));
    load(&store, &made.libraries);
    start(&store, &made.words(cycles, &["new"]));
    assert_eq!(counts(&store), [cycles * EACH; 2]);
}

#[test]
fn forked_children_that_load() {
    let (made, store, cycles) = (Made::with("forked", "gcc", &[3]), Store::new(), rounds(50));
    load(&store, &made.libraries);
    start(&store, &made.words(cycles, &["fork"]));
    assert_eq!(counts(&store), [2 * cycles * EACH; 2]);
}

/// musl unloads nothing: its libraries come once.
#[test]
fn the_loader_of_musl() {
    if !have(&["musl-gcc"]) {
        return;
    }
    let (made, store) = (Made::with("musl", "musl-gcc", &[3, 5]), Store::new());
    load(&store, &made.libraries);
    start(&store, &made.words(20, &[]));
    // Constructors run once, and destructors at the end of the program.
    assert_eq!(counts(&store), [20 * (EACH - 2) + 4; 2]);
}

/// The thread that calls is another one for its process than for the follower.
#[test]
fn a_pid_namespace() {
    let unshare = ["unshare", "--pid", "--fork", "--mount-proc"];
    let works = Command::new(unshare[0]).args(&unshare[1..]).arg("true").stderr(Stdio::null()).status();
    if !works.is_ok_and(|status| status.success()) {
        eprintln!("skipped: this machine does not run {unshare:?}");
        return;
    }
    let (made, store, cycles) = (Made::with("namespace", "gcc", &[3]), Store::new(), 20);
    load(&store, &made.libraries);
    let words: Vec<String> =
        unshare.iter().map(|word| word.to_string()).chain(made.words(cycles, &[])).collect();
    start(&store, &words);
    assert_eq!(counts(&store), [cycles * EACH; 2]);
}

/// Attached to while it runs; afterwards nothing is left in it.
#[test]
fn a_process_that_is_attached_to() {
    let (made, store, cycles) = (Made::with("attached", "gcc", &[3]), Store::new(), rounds(100));
    load(&store, &made.libraries);
    let mut target = Target::spawn(&mut made.command(cycles, &["wait"]));
    assert_eq!(target.line(), "ready");
    let pid = target.pid();
    let before = text_of(&pid);
    let mut follower = follow(&store, &pid);
    target.send("");
    assert_eq!(target.line(), format!("calls {}", cycles * EACH));
    assert_eq!(counts(&store), [cycles * EACH; 2]);
    follower.kill().expect("a child of ours");
    follower.wait().expect("a child of ours");
    store.ok(&["detach", &pid]);
    assert_eq!(our_mappings(&pid), Vec::<String>::new());
    assert!(text_of(&pid) == before, "the text is as it was");
    target.send("");
    target.finish();
}

/// Another follower takes over where one was killed.
#[test]
fn followers_one_after_the_other() {
    let (made, store) = (Made::with("successors", "gcc", &[3]), Store::new());
    load(&store, &made.libraries);
    let mut target = Target::spawn(&mut made.command(10, &["wait"]));
    assert_eq!(target.line(), "ready");
    let pid = target.pid();
    for _ in 0..4 {
        let mut follower = follow(&store, &pid);
        follower.kill().expect("a child of ours");
        follower.wait().expect("a child of ours");
    }
    let mut last = follow(&store, &pid);
    target.send("");
    assert_eq!(target.line(), format!("calls {}", 10 * EACH));
    target.send("");
    target.finish();
    last.wait().expect("a child of ours");
    assert_eq!(counts(&store), [10 * EACH; 2]);
}

/// The follower is killed at any moment: the process goes on, and nobody waits for the dead.
#[test]
fn the_follower_is_killed() {
    let (made, store) = (Made::with("killed", "gcc", &[3, 5]), Store::new());
    load(&store, &made.libraries);
    let cycles = 40;
    for round in 0..rounds(12) {
        let mut target = Target::spawn(&mut made.command(cycles, &["wait"]));
        assert_eq!(target.line(), "ready");
        let pid = target.pid();
        let mut follower = follow(&store, &pid);
        target.send("");
        std::thread::sleep(Duration::from_micros(round.wrapping_mul(7919) % 60_000));
        follower.kill().expect("a child of ours");
        follower.wait().expect("a child of ours");
        assert_eq!(target.line(), format!("calls {}", cycles * EACH));
        // What the killed one has left is found and taken out.
        let output = store.output(&["detach", &pid]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(our_mappings(&pid), Vec::<String>::new());
        target.send("");
        target.finish();
    }
}

/// `attach --follow`, when it follows.
fn follow(store: &Store, pid: &str) -> std::process::Child {
    let mut command = store.command(&["attach", "--follow", pid]);
    let follower = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("beeline runs");
    let id = follower.id().to_string();
    wait_until(|| is_followed_by(pid, &id));
    follower
}

/// All threads of the process are traced by threads of that one, which waits for what they do.
fn is_followed_by(pid: &str, follower: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:\t")).unwrap_or("0").to_owned();
    if !Path::new(&format!("/proc/{follower}/task/{tracer}")).exists() {
        return false;
    }
    // An attach traces, too, for a moment: what follows waits.
    let place = std::fs::read_to_string(format!("/proc/{follower}/task/{tracer}/wchan")).unwrap_or_default();
    place.contains("do_wait")
}

fn wait_until(condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(120), "waited in vain");
        std::thread::sleep(Duration::from_millis(2));
    }
}
