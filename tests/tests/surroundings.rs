//! Targets in other surroundings than ours: namespaces, another root folder, another user, set-user-id programs, stopped, dead,
//! or traced by somebody else. Each works or is refused with its reason, and runs on as without us.

use beeline_tests::{Store, Target, copy, have, object, our_mappings, target, wait_until};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Somebody who is not root (`nobody` of Debian).
const NOBODY: &str = "65534";

/// A folder of one test that everybody may look into, with a copy of the worker in it.
struct Place {
    folder: PathBuf,
    program: PathBuf,
}

impl Place {
    fn new(name: &str, flags: &[&str]) -> Place {
        let folder = std::env::temp_dir().join(format!("probed-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("writable");
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).expect("ours");
        let program = folder.join("worker");
        let variant = format!("surroundings-{}-{}", flags.join(""), std::process::id());
        copy(&target("tests/targets/worker.c", &variant, "gcc", flags), &program);
        Place { folder, program }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Loads an entry and a return probe on `work` of a program.
fn load(store: &Store, program: &Path) {
    let place = format!("{}:work", program.display());
    let object = object("tests/programs/counts.bpf.c").to_string_lossy().into_owned();
    let (entry, leave) = (format!("on_entry=uprobe:{place}"), format!("on_return=uretprobe:{place}"));
    store.ok(&["load", &object, "--attach", &entry, "--attach", &leave]);
}

fn counts(store: &Store) -> [u64; 2] {
    [store.number("shared", 0), store.number("shared", 1)]
}

fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("skipped: only root can make such a target");
    }
    root
}

/// The machine lets us run a command in this way.
fn allowed(command: &[&str]) -> bool {
    let status = Command::new(command[0]).args(&command[1..]).stderr(Stdio::null()).status();
    let works = status.is_ok_and(|status| status.success());
    if !works {
        eprintln!("skipped: this machine does not run {command:?}");
    }
    works
}

/// The process that a target runs after all its wrappers: the only descendant without children.
fn innermost(pid: &str) -> String {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().next().map_or_else(|| pid.to_owned(), innermost)
}

/// Attaches, lets a worker of one thread make 100 calls, detaches; everything is as it was.
fn comes_and_goes(store: &Store, worker: &mut Target) {
    let pid = innermost(&worker.pid());
    let before = counts(store);
    store.ok(&["attach", &pid]);
    worker.send("");
    assert!(worker.line().contains("work 100"));
    assert_eq!(counts(store), before.map(|count| count + 100));
    store.ok(&["detach", &pid]);
    assert_eq!(our_mappings(&pid), Vec::<String>::new());
    worker.send("");
}

fn finish(mut worker: Target) {
    assert_eq!(worker.line(), "");
    worker.finish();
}

/// A worker begins to wait, started by these words; then it is attached to.
fn works_in(name: &str, words: &[&str], flags: &[&str]) {
    if !is_root() || !have(&[words[0]]) || !allowed(&[words, &["true"]].concat()) {
        return;
    }
    let (place, store) = (Place::new(name, flags), Store::new());
    load(&store, &place.program);
    let mut worker = Target::spawn(
        Command::new(words[0]).args(&words[1..]).arg(&place.program).args(["1", "100", "wait"]),
    );
    assert_eq!(worker.line(), "ready");
    comes_and_goes(&store, &mut worker);
    finish(worker);
}

#[test]
fn mount_and_pid_namespace() {
    works_in("mount-pid", &["unshare", "--mount", "--pid", "--fork", "--mount-proc"], &[]);
}

#[test]
fn user_namespace() {
    works_in("user", &["unshare", "--user", "--map-root-user"], &[]);
}

#[test]
fn all_namespaces_of_a_container() {
    let words = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
        "--ipc",
        "--uts",
        "--net",
        "--cgroup",
    ];
    works_in("container", &words, &[]);
}

#[test]
fn time_namespace() {
    works_in("time", &["unshare", "--time", "--boottime", "100000", "--fork"], &[]);
}

#[test]
fn another_user() {
    works_in("another-user", &["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"], &[]);
}

#[test]
fn without_capabilities_and_new_privileges() {
    let words = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"];
    works_in("no-new-privs", &words, &[]);
}

/// Nothing of us can be reached by a path there: no store, no `/proc`, no library.
#[test]
fn another_root_folder() {
    if !is_root() || !have(&["chroot"]) {
        return;
    }
    let (place, store) = (Place::new("chroot", &["-static"]), Store::new());
    load(&store, &place.program);
    let mut worker =
        Target::spawn(Command::new("chroot").arg(&place.folder).args(["/worker", "1", "100", "wait"]));
    assert_eq!(worker.line(), "ready");
    comes_and_goes(&store, &mut worker);
    finish(worker);
    // And from its first instruction on.
    let output =
        store.output(&["start", "--", "chroot", &place.folder.to_string_lossy(), "/worker", "1", "50"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(counts(&store), [150; 2]);
}

/// What is started makes its own namespaces: its children are followed into them.
#[test]
fn followed_into_namespaces() {
    let unshare = ["unshare", "--mount", "--pid", "--fork", "--mount-proc"];
    if !is_root() || !have(&["unshare"]) || !allowed(&[&unshare[..], &["true"]].concat()) {
        return;
    }
    let (place, store) = (Place::new("into", &[]), Store::new());
    load(&store, &place.program);
    let program = place.program.to_string_lossy();
    let words = [&["start", "--"], &unshare[..], &[&*program, "2", "30", "fork"]].concat();
    store.ok(&words);
    assert_eq!(counts(&store), [120; 2]);
}

#[test]
fn processes_of_others_are_refused_to_users() {
    if !is_root() || !have(&["setpriv"]) {
        return;
    }
    let (place, store) = (Place::new("refused", &[]), Store::new());
    // The command and the program lie where everybody can read them; the store is that of the user.
    let beeline = place.folder.join("beeline");
    copy(&beeline_tests::beeline_path(), &beeline);
    let object = place.folder.join("counts.o");
    copy(&beeline_tests::object("tests/programs/counts.bpf.c"), &object);
    std::fs::set_permissions(&object, std::fs::Permissions::from_mode(0o644)).expect("ours");
    let as_user = |words: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]).arg(&beeline);
        command.env("NO_COLOR", "1").args(["--store", store.name()]).args(words);
        command.output().expect("it runs")
    };
    let entry = format!("on_entry=uprobe:{}:work", place.program.display());
    let loaded = as_user(&["load", &object.to_string_lossy(), "--attach", &entry]);
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));

    let mut worker = Target::spawn(Command::new(&place.program).args(["1", "100", "wait"]));
    assert_eq!(worker.line(), "ready");
    let refused = as_user(&["attach", &worker.pid()]);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{message}");
    assert!(message.contains("not permitted") && message.contains("root"), "{message}");
    assert_eq!(our_mappings(&worker.pid()), Vec::<String>::new());
    worker.send("");
    assert!(worker.line().contains("work 100"));
    worker.send("");
    finish(worker);

    // A set-user-id program would not get its rights under trace: it is not started, and its running instance is not theirs.
    let set_id = place.folder.join("set-id");
    copy(&place.program, &set_id);
    std::fs::set_permissions(&set_id, std::fs::Permissions::from_mode(0o4755)).expect("ours");
    let started = as_user(&["start", "--", &set_id.to_string_lossy(), "1", "100"]);
    let message = String::from_utf8_lossy(&started.stderr).into_owned();
    assert_eq!((started.status.code(), started.stdout.len()), (Some(1), 0), "{message}");
    assert!(message.contains("set-user-id"), "{message}");
    assert!(as_user(&["unload", "counts"]).status.success());
    let _ = std::fs::remove_dir_all(format!("/dev/shm/beeline-{NOBODY}/{}", store.name()));
}

/// A user's instance of a set-user-id program, seen by root; and what a user's shell starts under root's eyes.
#[test]
fn set_user_id_programs() {
    if !is_root() || !have(&["setpriv"]) {
        return;
    }
    let (place, store) = (Place::new("set-id", &[]), Store::new());
    std::fs::set_permissions(&place.program, std::fs::Permissions::from_mode(0o4755)).expect("ours");
    load(&store, &place.program);
    let as_user = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"];
    let mut worker = Target::spawn(
        Command::new(as_user[0]).args(&as_user[1..]).arg(&place.program).args(["1", "100", "wait"]),
    );
    assert_eq!(worker.line(), "ready");
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).expect("it lives");
    if !status.contains(&format!("Uid:\t{NOBODY}\t0\t0\t0")) {
        eprintln!("skipped: the folder for temporary files does not honour set-user-id");
        return;
    }
    comes_and_goes(&store, &mut worker);
    finish(worker);
    let program = place.program.to_string_lossy();
    store.ok(&[&["start", "--"], &as_user[..], &[&*program, "1", "50"]].concat());
    assert_eq!(counts(&store), [150; 2]);
}

/// It is attached to while it stands still, and goes on standing until it is told to run.
#[test]
fn a_stopped_process() {
    let (place, store) = (Place::new("stopped", &[]), Store::new());
    load(&store, &place.program);
    let mut worker = Target::spawn(Command::new(&place.program).args(["2", "50", "wait"]));
    assert_eq!(worker.line(), "ready");
    let pid = worker.pid();
    signal(&pid, libc::SIGSTOP);
    wait_until(|| state(&pid) == "T");
    for _ in 0..3 {
        // Let go, each thread stops again by itself, in the kernel.
        store.ok(&["attach", &pid]);
        wait_until(|| state(&pid) == "T");
        store.ok(&["detach", &pid]);
        wait_until(|| state(&pid) == "T");
    }
    store.ok(&["attach", &pid]);
    worker.send("");
    assert_eq!(counts(&store), [0; 2]);
    signal(&pid, libc::SIGCONT);
    assert!(worker.line().contains("work 100"));
    assert_eq!(counts(&store), [100; 2]);
    store.ok(&["detach", &pid]);
    worker.send("");
    finish(worker);
}

#[test]
fn a_dead_process() {
    let (place, store) = (Place::new("zombie", &[]), Store::new());
    load(&store, &place.program);
    let mut child = Command::new("true").spawn().expect("it runs");
    let pid = child.id().to_string();
    wait_until(|| state(&pid) == "Z");
    let message = store.fails(&["attach", &pid]);
    assert!(message.contains("has exited already"), "{message}");
    assert!(child.wait().expect("a child of ours").success());
    let message = store.fails(&["attach", &pid]);
    assert!(message.contains("no process"), "{message}");
    // Kernel threads are none of ours.
    if std::fs::read_to_string("/proc/2/comm").is_ok_and(|name| name.trim() == "kthreadd") {
        let message = store.fails(&["attach", "2"]);
        assert!(message.contains("kernel thread"), "{message}");
    }
}

/// The first thread has ended, others go on.
#[test]
fn a_process_whose_first_thread_has_ended() {
    let store = Store::new();
    let program = target("tests/targets/orphaned_threads.c", "glibc", "gcc", &[]);
    load(&store, &program);
    let mut worker = Target::spawn(&mut Command::new(&program));
    assert_eq!(worker.line(), "ready");
    let pid = worker.pid();
    wait_until(|| state(&pid) == "Z");
    store.ok(&["attach", &pid]);
    worker.send("");
    assert_eq!(worker.line(), "100");
    assert_eq!(counts(&store), [100; 2]);
    store.ok(&["detach", &pid]);
    worker.send("");
    finish(worker);
}

#[test]
fn a_process_that_somebody_else_traces() {
    if !have(&["strace"]) {
        return;
    }
    let (place, store) = (Place::new("traced", &[]), Store::new());
    load(&store, &place.program);
    let mut worker = Target::spawn(Command::new(&place.program).args(["1", "100", "wait"]));
    assert_eq!(worker.line(), "ready");
    let pid = worker.pid();
    let mut strace = Command::new("strace")
        .args(["-f", "-o", "/dev/null", "-p", &pid])
        .stderr(Stdio::null())
        .spawn()
        .expect("it runs");
    wait_until(|| tracer(&pid) != "0");
    for words in [&["attach", &pid][..], &["attach", "--follow", &pid]] {
        let message = store.fails(words);
        assert!(message.contains("being traced by") && message.contains("strace"), "{message}");
    }
    assert_eq!(tracer(&pid), strace.id().to_string());
    strace.kill().expect("a child of ours");
    strace.wait().expect("a child of ours");
    wait_until(|| tracer(&pid) == "0");
    comes_and_goes(&store, &mut worker);
    finish(worker);
}

fn status_field(pid: &str, name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|value| value.split_whitespace().next()).unwrap_or_default().to_owned()
}

fn state(pid: &str) -> String {
    status_field(pid, "State:")
}

fn tracer(pid: &str) -> String {
    status_field(pid, "TracerPid:")
}

fn signal(pid: &str, signal: i32) {
    // SAFETY: a plain system call; the process is a child of this test.
    assert_eq!(unsafe { libc::kill(pid.parse().expect("a number"), signal) }, 0);
}
