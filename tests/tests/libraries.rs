//! Libraries that a followed process loads and unloads: probes come with them, before their constructors run, and go with them.

use beeline_tests::{Store, Target, have, object, our_mappings, rounds, target, text_of};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

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

/// Runs the words under a follower; what they say.
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

/// A thread that waits for a new program does not stop before its follower has let that go on.
#[test]
fn while_programs_are_run() {
    let (made, store, cycles) = (Made::with("spawns", "gcc", &[3]), Store::new(), rounds(30));
    load(&store, &made.libraries);
    start(&store, &made.words(cycles, &["spawn"]));
    assert_eq!(counts(&store), [cycles * EACH; 2]);
}

/// Threads are in the midst of probes whenever something is mapped or taken out.
#[test]
fn while_other_threads_hit_probes() {
    let (made, store, cycles) = (Made::with("busy", "gcc", &[3, 5]), Store::new(), rounds(60));
    let object = object("tests/programs/counts.bpf.c").to_string_lossy().into_owned();
    let places = made.libraries.iter().map(|it| format!("{}:loaded_work", it.display()));
    let places: Vec<String> = places.chain([format!("{}:busy_work", made.program.display())]).collect();
    let attach =
        |place: &String| [format!("on_entry=uprobe:{place}"), format!("on_return=uretprobe:{place}")];
    let attach: Vec<String> = places.iter().flat_map(attach).collect();
    let words = attach.iter().flat_map(|it| ["--attach", it.as_str()]);
    store.ok(&["load", &object].into_iter().chain(words).collect::<Vec<_>>());
    let said = start(&store, &made.words(cycles, &["busy"]));
    let calls = said.trim().strip_prefix("calls ").and_then(|calls| calls.parse::<u64>().ok());
    assert!(calls.is_some_and(|calls| calls > cycles * EACH), "{said}");
    assert_eq!(counts(&store).map(Some), [calls; 2]);
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
    let follower = follow(&store, &pid);
    target.send("");
    assert_eq!(target.line(), format!("calls {}", cycles * EACH));
    assert_eq!(counts(&store), [cycles * EACH; 2]);
    // What was mapped for a library goes with it: not all, because the tables of the last one stay until the next comes.
    assert!(our_mappings(&pid).len() < 64, "{:#?}", our_mappings(&pid));
    follower.kill();
    store.ok(&["detach", &pid]);
    assert_eq!(our_mappings(&pid), Vec::<String>::new());
    assert!(text_of(&pid) == before, "the text is as it was");
    target.send("");
    target.finish();
}

/// A stop by a signal stays one, whatever is being loaded.
#[test]
fn a_process_that_is_stopped_and_continued() {
    let (made, store, cycles) = (Made::with("stopped", "gcc", &[3]), Store::new(), rounds(60));
    load(&store, &made.libraries);
    let mut target = Target::spawn(&mut made.command(cycles, &["wait"]));
    assert_eq!(target.line(), "ready");
    let pid = target.pid();
    let follower = follow(&store, &pid);
    target.send("");
    for round in 0..20 {
        for signal in [libc::SIGSTOP, libc::SIGCONT] {
            // SAFETY: a plain system call; the process is a child of this test.
            assert_eq!(unsafe { libc::kill(pid.parse().expect("a number"), signal) }, 0);
            std::thread::sleep(Duration::from_micros(700 * (round % 5)));
        }
    }
    assert_eq!(target.line(), format!("calls {}", cycles * EACH));
    assert_eq!(counts(&store), [cycles * EACH; 2]);
    follower.kill();
    target.send("");
    target.finish();
}

#[test]
fn nobody_follows() {
    let (made, store) = (Made::with("alone", "gcc", &[3]), Store::new());
    load(&store, &made.libraries);
    let words = made.words(5, &[]);
    let words: Vec<&str> =
        ["start", "--no-follow", "--"].into_iter().chain(words.iter().map(String::as_str)).collect();
    assert_eq!(store.ok(&words).trim(), format!("calls {}", 5 * EACH));
    assert_eq!(counts(&store), [0; 2]);
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
        let follower = follow(&store, &pid);
        follower.kill();
    }
    let mut last = follow(&store, &pid);
    target.send("");
    assert_eq!(target.line(), format!("calls {}", 10 * EACH));
    target.send("");
    target.finish();
    last.child.wait().expect("a child of ours");
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
        let follower = follow(&store, &pid);
        target.send("");
        std::thread::sleep(Duration::from_micros(round.wrapping_mul(7919) % 60_000));
        follower.kill();
        assert_eq!(target.line(), format!("calls {}", cycles * EACH));
        // What the killed one has left is found and taken out.
        let output = store.output(&["detach", &pid]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(our_mappings(&pid), Vec::<String>::new());
        target.send("");
        target.finish();
    }
}

/// `attach --follow`.
struct Follower {
    child: Child,
    /// What it says, kept open.
    _said: BufReader<ChildStderr>,
}

/// Follows a process that has loaded nothing yet; returns when it does.
fn follow(store: &Store, pid: &str) -> Follower {
    let mut command = store.command(&["attach", "--follow", pid]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("beeline runs");
    let mut said = BufReader::new(child.stderr.take().expect("piped"));
    let mut line = String::new();
    while !line.contains("without probes so far") {
        line.clear();
        assert_ne!(said.read_line(&mut line).expect("text"), 0, "it ended");
    }
    Follower { child, _said: said }
}

impl Follower {
    fn kill(mut self) {
        self.child.kill().expect("a child of ours");
        self.child.wait().expect("a child of ours");
    }
}
