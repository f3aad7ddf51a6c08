//! Which file a probe means: the inode, as for the kernel, or the same build under the same name. Files that are deleted,
//! replaced, changed, or there under several names.

use beeline_tests::{Store, Target, copy, object, our_mappings, target};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A folder of one test, removed with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("probed-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("writable");
        Folder(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().expect("in the folder")).expect("writable");
        path
    }

    /// A copy of the worker.
    fn worker(&self, name: &str) -> PathBuf {
        self.built(name, "one", &[])
    }

    /// The worker, built in another way.
    fn built(&self, name: &str, variant: &str, flags: &[&str]) -> PathBuf {
        let variant = format!("files-{variant}-{}", std::process::id());
        let path = self.path(name);
        copy(&target("tests/targets/worker.c", &variant, "gcc", flags), &path);
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn store_with_probe(file: &Path) -> Store {
    let store = Store::new();
    let object = object("tests/programs/counts.bpf.c").to_string_lossy().into_owned();
    let entry = format!("on_entry=uprobe:{}:work", file.display());
    store.ok(&["load", &object, "--attach", &entry]);
    store
}

/// A running worker, which waits.
fn waiting(program: &Path) -> Target {
    let mut worker = Target::spawn(Command::new(program).args(["1", "100", "wait"]));
    assert_eq!(worker.line(), "ready");
    worker
}

/// Attaches, and lets the worker make its 100 calls; how many were counted. The message when nothing was placed.
fn counted(store: &Store, mut worker: Target) -> Result<u64, String> {
    let (pid, before) = (worker.pid(), store.number("shared", 0));
    let output = store.output(&["attach", &pid]);
    worker.send("");
    assert!(worker.line().contains("work 100"));
    let result = if output.status.success() {
        store.ok(&["detach", &pid]);
        Ok(store.number("shared", 0) - before)
    } else {
        assert_eq!(output.status.code(), Some(1));
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(our_mappings(&pid), Vec::<String>::new());
    worker.send("");
    worker.finish();
    result
}

fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("skipped: only root can open a file that was deleted, or mount one");
    }
    root
}

#[test]
fn a_deleted_program() {
    if !is_root() {
        return;
    }
    let folder = Folder::new("deleted");
    let program = folder.worker("worker");
    let (store, worker) = (store_with_probe(&program), waiting(&program));
    std::fs::remove_file(&program).expect("it was there");
    assert_eq!(counted(&store, worker), Ok(100));
}

/// A package is upgraded: processes of the old version run on, new ones run the new version.
#[test]
fn a_replaced_program() {
    if !is_root() {
        return;
    }
    let folder = Folder::new("replaced");
    let program = folder.worker("worker");
    let (of_old, old, other_old) = (store_with_probe(&program), waiting(&program), waiting(&program));
    let new_version = folder.built("new", "two", &["-O1"]);
    std::fs::rename(&new_version, &program).expect("one folder");
    let (of_new, new) = (store_with_probe(&program), waiting(&program));
    // The link means the old file, and the new one is none of its.
    assert_eq!(counted(&of_old, old), Ok(100));
    let message = counted(&of_old, new).expect_err("another file");
    assert!(message.contains("worker") && message.contains("another file of that name"), "{message}");
    // And the other way round.
    let message = counted(&of_new, other_old).expect_err("another file");
    assert!(message.contains("another file of that name"), "{message}");
    assert_eq!(counted(&of_new, waiting(&program)), Ok(100));
}

/// The same build was installed again.
#[test]
fn a_program_that_was_installed_again() {
    let folder = Folder::new("again");
    let program = folder.worker("worker");
    let store = store_with_probe(&program);
    let again = folder.worker("again");
    std::fs::rename(again, &program).expect("one folder");
    assert_eq!(counted(&store, waiting(&program)), Ok(100));
}

/// The file was written anew in its place: what the link was made from is not there any more.
#[test]
fn a_program_that_was_changed_in_place() {
    let folder = Folder::new("changed");
    let program = folder.worker("worker");
    let store = store_with_probe(&program);
    let other = folder.built("other", "two", &["-O1"]);
    copy(&other, &program);
    let message = counted(&store, waiting(&program)).expect_err("other contents");
    assert!(message.contains("changed since"), "{message}");
}

/// One build id, and not the same code.
#[test]
fn a_build_id_that_lies() {
    let folder = Folder::new("lies");
    let program = folder.built("worker", "lie-one", &["-Wl,--build-id=0x1234567890abcdef"]);
    let store = store_with_probe(&program);
    let other = folder.built("elsewhere/worker", "lie-two", &["-Wl,--build-id=0x1234567890abcdef", "-O0"]);
    let message = counted(&store, waiting(&other)).expect_err("other code");
    assert!(message.contains("other code"), "{message}");
    assert_eq!(counted(&store, waiting(&program)), Ok(100));
}

/// The kernel means the inode: hard links, symbolic links and other mounts are the file, a copy is not. Here a copy is it where
/// it has the same name, as a file has in another container.
#[test]
fn one_file_with_several_names() {
    let folder = Folder::new("names");
    let program = folder.worker("worker");
    let store = store_with_probe(&program);
    let (hard, soft) = (folder.path("hard"), folder.path("soft"));
    std::fs::hard_link(&program, &hard).expect("one file system");
    symlink(&program, &soft).expect("writable");
    assert_eq!(counted(&store, waiting(&hard)), Ok(100));
    assert_eq!(counted(&store, waiting(&soft)), Ok(100));
    assert_eq!(counted(&store, waiting(&folder.worker("elsewhere/worker"))), Ok(100));
    let message = counted(&store, waiting(&folder.worker("copied"))).expect_err("a copy");
    assert!(message.contains("none of the probed files"), "{message}");
    // A link that was made for another name of the file.
    let store = store_with_probe(&soft);
    assert_eq!(counted(&store, waiting(&program)), Ok(100));
}

#[test]
fn a_file_on_another_mount() {
    let mounts = ["unshare", "--mount", "sh", "-c"];
    let status = Command::new(mounts[0]).args(&mounts[1..]).arg("true").stderr(Stdio::null()).status();
    if !status.is_ok_and(|status| status.success()) || !is_root() {
        eprintln!("skipped: this machine does not run {mounts:?}");
        return;
    }
    let folder = Folder::new("mount");
    let program = folder.worker("worker");
    let store = store_with_probe(&program);
    // The folder is hidden afterwards: no path of ours leads to the file.
    let (seen, root) = (folder.path("seen/nothing"), folder.0.to_string_lossy().into_owned());
    let seen = seen.parent().expect("it has one").to_string_lossy().into_owned();
    let script = format!(
        "mount --bind {root} {seen} && cd {seen} && mount -t tmpfs none {root} && exec ./worker 1 100 wait"
    );
    let mut worker = Target::spawn(Command::new(mounts[0]).args(&mounts[1..]).arg(&script));
    assert_eq!(worker.line(), "ready");
    assert_eq!(counted(&store, worker), Ok(100));
}
