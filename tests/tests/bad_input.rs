//! What is wrong is said clearly, nothing is half-done, the target is untouched.

use beeline_tests::{Store, Target, copy, gcc, load_counts, object, target};
use std::path::PathBuf;
use std::process::Command;

fn file(name: &str, contents: &[u8]) -> PathBuf {
    let path = std::env::temp_dir().join(format!("beeline-{}-{name}", std::process::id()));
    std::fs::write(&path, contents).expect("writable");
    path
}

/// `load` fails, names what is wrong, and leaves the store empty.
fn load_fails(path: &std::path::Path, words: &[&str]) {
    let store = Store::new();
    let message = store.fails(&["load", &path.to_string_lossy()]);
    for word in words {
        assert!(message.to_lowercase().contains(&word.to_lowercase()), "{word:?} is not in: {message}");
    }
    for list in ["prog", "map", "link"] {
        assert_eq!(store.json(&[list, "list"]).as_array().map(Vec::len), Some(0), "{list} list is not empty");
    }
}

#[test]
fn a_file_that_is_not_elf() {
    load_fails(&file("text.o", b"this is no object file"), &["ELF", "text.o"]);
    load_fails(&file("empty.o", b""), &["empty.o"]);
    load_fails(&PathBuf::from("/nonexistent/x.bpf.o"), &["/nonexistent/x.bpf.o"]);
    load_fails(&PathBuf::from("/"), &["/"]);
}

#[test]
fn an_object_of_another_machine() {
    load_fails(&gcc("tests/targets/worker.c"), &["x86"]);
}

#[test]
fn a_truncated_object() {
    let bytes = std::fs::read(object("tests/programs/counts.bpf.c")).expect("readable");
    for length in [64, 200, bytes.len() / 2, bytes.len() - 1] {
        load_fails(&file("truncated.o", &bytes[..length]), &["truncated.o"]);
    }
}

#[test]
fn an_object_without_btf() {
    let source = file("nobtf.bpf.c", NO_BTF.as_bytes());
    let output = source.with_extension("o");
    let status = Command::new("clang")
        .args(["-O2", "-target", "bpf", "-I/usr/include/x86_64-linux-gnu", "-c"])
        .arg(&source)
        .arg("-o")
        .arg(&output)
        .status()
        .expect("clang runs");
    assert!(status.success());
    load_fails(&output, &["BTF"]);
}

const NO_BTF: &str = r#"
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
char LICENSE[] SEC("license") = "GPL";
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, __u32); __type(value, __u64); } m SEC(".maps");
SEC("uprobe") int f(void *ctx) { __u32 k = 0; return bpf_map_lookup_elem(&m, &k) != 0; }
"#;

#[test]
fn an_unknown_map_type() {
    let text = NO_BTF.replace("BPF_MAP_TYPE_ARRAY", "777");
    load_fails(&bpf(&file("badmap.bpf.c", text.as_bytes())), &["777"]);
}

#[test]
fn a_program_that_cannot_be_proven_safe() {
    let text = NO_BTF
        .replace("return bpf_map_lookup_elem(&m, &k) != 0", "return *(int *)bpf_map_lookup_elem(&m, &k)")
        // In an array the kernel knows that a constant index is there.
        .replace("BPF_MAP_TYPE_ARRAY", "BPF_MAP_TYPE_HASH");
    load_fails(&bpf(&file("unsafe.bpf.c", text.as_bytes())), &["map_value_or_null"]);
}

fn bpf(source: &std::path::Path) -> PathBuf {
    object(&source.to_string_lossy())
}

#[test]
fn a_symbol_that_does_not_exist() {
    let store = Store::new();
    let program = gcc("tests/targets/worker.c");
    let object = object("tests/programs/counts.bpf.c");
    let attach = format!("on_entry=uprobe:{}:wrok", program.display());
    let message = store.fails(&["load", &object.to_string_lossy(), "--attach", &attach]);
    assert!(message.contains("wrok") && message.contains("work"), "near matches are named: {message}");
    assert_eq!(store.json(&["prog", "list"]).as_array().map(Vec::len), Some(0));
}

#[test]
fn a_process_that_does_not_exist() {
    let store = Store::new();
    store.ok(&["load", &object("examples/malloc-counter/malloc.bpf.c").to_string_lossy()]);
    let mut child = Command::new("/bin/true").spawn().expect("it runs");
    let pid = child.id().to_string();
    child.wait().expect("a child of ours");
    assert!(store.fails(&["attach", &pid]).contains(&pid));
    store.fails(&["attach", "0"]);
    store.fails(&["attach", "notapid"]);
    store.fails(&["detach", &pid]);
}

#[test]
fn a_name_that_exists() {
    let store = Store::new();
    let object = object("examples/malloc-counter/malloc.bpf.c").to_string_lossy().into_owned();
    store.ok(&["load", &object]);
    let message = store.fails(&["load", &object]);
    assert!(message.contains("malloc"), "{message}");
    assert_eq!(
        store.json(&["prog", "list"]).as_array().map(Vec::len),
        Some(1),
        "the first one is still there"
    );
    store.ok(&["load", &object, "--name", "second"]);
}

/// Too few descriptors are what is wrong, not the files that could not be opened for lack of them.
#[test]
fn too_few_descriptors() {
    let store = Store::new();
    let malloc = object("examples/malloc-counter/malloc.bpf.c").to_string_lossy().into_owned();
    for name in ["a", "b", "c", "d"] {
        store.ok(&["load", &malloc, "--name", name]);
    }
    let mut limited = Command::new("/bin/sh");
    limited.args(["-c", "ulimit -n 8; exec \"$0\" \"$@\""]).arg(beeline_tests::beeline_path());
    let output =
        limited.args(["--store", store.name(), "start", "--", "/bin/true"]).output().expect("sh runs");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(message.contains("open files"), "{message}");
}

#[test]
fn an_empty_store() {
    let store = Store::new();
    let worker = gcc("tests/targets/worker.c");
    let mut target = Target::spawn(Command::new(&worker).args(["1", "10", "wait"]));
    assert_eq!(target.line(), "ready");
    let message = store.fails(&["attach", &target.pid()]);
    assert!(message.contains("load"), "says what to do first: {message}");
    store.fails(&["map", "dump", "nothing"]);
    store.fails(&["unload", "nothing"]);
    store.fails(&["detach", &target.pid()]);
    target.send("go");
    target.send("end");
    target.finish();
}

#[test]
fn a_32_bit_target() {
    let source = file("small.c", SLEEP_32.as_bytes());
    let program = std::env::temp_dir().join(format!("beeline-{}-small", std::process::id()));
    let built = Command::new("gcc")
        .args([
            "-m32",
            "-nostdlib",
            "-static",
            "-fno-pie",
            "-no-pie",
            "-ffreestanding",
            "-fno-stack-protector",
            "-o",
        ])
        .arg(&program)
        .arg(&source)
        .output()
        .is_ok_and(|output| output.status.success());
    if !built {
        eprintln!("skipped: gcc cannot build for 32 bits here");
        return;
    }
    let Ok(child) = Command::new(&program).spawn() else {
        eprintln!("skipped: the kernel does not run 32-bit programs");
        return;
    };
    let mut child = Ended(child);
    let store = Store::new();
    store.ok(&["load", &object("examples/malloc-counter/malloc.bpf.c").to_string_lossy()]);
    let message = store.fails(&["attach", &child.0.id().to_string()]);
    assert!(message.contains("32-bit"), "{message}");
    assert!(matches!(child.0.try_wait(), Ok(None)), "the target is untouched");
}

/// A child that does not outlive its test, however that ends.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sleeps for an hour by nanosleep (162 on i386), without any library.
const SLEEP_32: &str = r#"
void _start(void) {
	int time[2] = { 3600, 0 };
	for (;;) { int r; __asm__ volatile("int $0x80" : "=a"(r) : "a"(162), "b"(time), "c"(0) : "memory"); }
}
"#;

#[test]
fn a_process_of_another_user() {
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("skipped: only root can become somebody else");
        return;
    }
    use std::os::unix::process::CommandExt;
    let mut sleep = Ended(Command::new("/bin/sleep").arg("600").spawn().expect("it runs"));
    let (uid, folder) = (65534, "/dev/shm/beeline-65534");
    let _ = std::fs::remove_dir_all(folder);
    // The command and the object have to be where nobody can read them.
    let open = std::env::temp_dir().join(format!("beeline-open-{}", std::process::id()));
    std::fs::create_dir_all(&open).expect("writable");
    let command = open.join("beeline");
    copy(beeline_tests::beeline_path().as_ref(), &command);
    let object_copy = open.join("malloc.bpf.o");
    std::fs::copy(object("examples/malloc-counter/malloc.bpf.c"), &object_copy).expect("copied");
    let as_nobody = |arguments: &[&str]| {
        Command::new(&command).uid(uid).gid(uid).args(arguments).output().expect("beeline runs")
    };
    let loaded = as_nobody(&["load", &object_copy.to_string_lossy()]);
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
    let refused = as_nobody(&["attach", &sleep.0.id().to_string()]);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success());
    assert!(message.contains("ermission") || message.contains("CAP_SYS_PTRACE"), "{message}");
    assert!(matches!(sleep.0.try_wait(), Ok(None)));
    // Root does not trust a store that somebody else can write.
    let store = Store::new();
    let foreign = store.fails(&["--store", "/dev/shm/beeline-65534/default", "map", "list"]);
    assert!(foreign.contains("owned by"), "{foreign}");
    let _ = std::fs::remove_dir_all(folder);
    let _ = std::fs::remove_dir_all(open);
}

#[test]
fn a_full_tmpfs() {
    let folder = std::env::temp_dir().join(format!("beeline-small-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("writable");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=600k,mode=700", "none"])
        .arg(&folder)
        .output()
        .is_ok_and(|output| output.status.success());
    if !mounted {
        eprintln!("skipped: cannot mount a tmpfs");
        return;
    }
    let store = Store::new();
    let path = folder.join("store");
    let with = |arguments: &[&str]| {
        let path = path.to_string_lossy().into_owned();
        let mut all = vec!["--store".to_owned(), path];
        all.extend(arguments.iter().map(|it| (*it).to_owned()));
        Command::new(beeline_tests::beeline_path()).args(all).output().expect("beeline runs")
    };
    let large = object("examples/malloc-counter/malloc.bpf.c").to_string_lossy().into_owned();
    let output = with(&["load", &large]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    let listed = with(&["--json", "map", "list"]);
    let unmount = Command::new("umount").arg(&folder).status();
    assert!(!output.status.success(), "10240 elements do not fit");
    assert!(message.contains("space"), "{message}");
    assert_eq!(String::from_utf8_lossy(&listed.stdout).trim(), "[]", "nothing half-registered");
    assert!(unmount.is_ok_and(|status| status.success()));
    let _ = std::fs::remove_dir_all(folder);
    drop(store);
}

#[test]
fn a_function_that_cannot_be_probed_is_named() {
    let program = target("tests/targets/worker.c", "stripped", "gcc", &["-s"]);
    let store = Store::new();
    let object = object("tests/programs/counts.bpf.c");
    let attach = format!("on_entry=uprobe:{}:work", program.display());
    let message = store.fails(&["load", &object.to_string_lossy(), "--attach", &attach]);
    assert!(message.contains("stripped") || message.contains("symbol"), "{message}");
}

/// What cannot be is an error at load, of the place that is meant.
#[test]
fn places_and_processes_that_are_none() {
    let store = Store::new();
    let path = gcc("tests/targets/worker.c").to_string_lossy().into_owned();
    let object = object("tests/programs/counts.bpf.c").to_string_lossy().into_owned();
    let fails = |place: &str, more: &[&str]| {
        let attach = format!("on_entry=uprobe{place}");
        store.fails(&[&["load", &object, "--attach", &attach], more].concat())
    };
    let message = fails(&format!(":{path}:work+1"), &[]);
    assert!(message.contains("is inside the instruction at"), "{message}");
    let message = fails(&format!(".multi:{path}:work,main,nowhere,run"), &[]);
    assert!(message.contains(&format!("{path}:nowhere: no symbol `nowhere`")), "{message}");
    assert!(!message.contains("work,main"), "{message}");
    // Process ids are smaller than 2^22.
    let message = fails(&format!(":{path}:work"), &["--pid", "4194305"]);
    assert!(message.contains("there is no process 4194305"), "{message}");
}

#[test]
fn a_store_that_is_not_there() {
    let store = Store::new();
    let message = store.fails(&["attach", "1"]);
    assert!(message.contains(&format!("there is no store {:?}", store.name())), "{message}");
    let listed = store.output(&["map", "list"]);
    assert!(listed.status.success());
    assert!(String::from_utf8_lossy(&listed.stderr).contains("there is no store"));
}

/// What could not be written is said, and the status is not that of success.
#[test]
fn a_full_disk_for_the_output() {
    let store = Store::new();
    for arguments in [&["--help"][..], &["map", "list", "--json"], &["gdb"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("there is one");
        let output = store.command(arguments).stdout(full).output().expect("beeline runs");
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {message}");
        assert!(message.contains("standard output"), "{arguments:?}: {message}");
    }
}

#[test]
fn nothing_is_left_to_be_placed() {
    let store = Store::new();
    let path = gcc("tests/targets/worker.c").to_string_lossy().into_owned();
    load_counts(&store, &[&format!("{path}:work")]);
    store.ok(&["link", "detach", "counts/on_entry"]);
    store.ok(&["link", "detach", "counts/on_return"]);
    let output = store.output(&["start", "--", &path, "1", "10"]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains("work 10"),
        "{message}"
    );
    assert!(message.contains("the command runs without probes"), "{message}");
}

/// A process that maps none of the files: no word of having attached, and what became of it in JSON.
#[test]
fn nothing_was_placed() {
    let store = Store::new();
    load_counts(&store, &[&format!("{}:work", gcc("tests/targets/worker.c").display())]);
    let mut target = Target::spawn(Command::new(gcc("tests/targets/sleepers.c")).arg("1"));
    assert_eq!(target.line(), "ready");
    let output = store.output(&["attach", &target.pid()]);
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    let output = store.output(&["--json", "attach", &target.pid()]);
    let reports = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success() && reports.contains(r#""placed":0"#), "{reports}");
    target.send("stop");
    target.finish();
}

/// Of many places of a link that are refused only some are said one by one, with their names.
#[test]
fn many_refusals_of_one_link() {
    let store = Store::new();
    let object = object("tests/programs/counts.bpf.c").to_string_lossy().into_owned();
    store.ok(&["load", &object, "--attach", "on_return=uretprobe.multi:libc.so.6:*"]);
    let output = store.output(&["start", "--", "/bin/true"]);
    let message = String::from_utf8_lossy(&output.stderr);
    let said = message.lines().filter(|line| line.contains("is refused in")).count();
    assert!(output.status.success() && said == 5, "{message}");
    assert!(message.contains("counts/on_return at "), "{message}");
    assert!(message.contains("more places; `beeline link show counts/on_return` lists them"), "{message}");
}

#[test]
fn changed_entries_in_json() {
    let store = Store::new();
    load_counts(&store, &[&format!("{}:work", gcc("tests/targets/worker.c").display())]);
    let said = store.json(&["map", "update", "shared", "key", "0", "value", "5"]);
    assert_eq!((&said["name"], &said["updated"]), (&"shared".into(), &1.into()));
    assert_eq!(store.number("shared", 0), 5);
    store.ok(&["map", "update", "by_pid", "key", "1", "value", "5"]);
    let said = store.json(&["map", "delete", "by_pid", "key", "1"]);
    assert_eq!((&said["name"], &said["deleted"]), (&"by_pid".into(), &1.into()));
}

/// Memory that cannot be had ends the command; why is said before.
#[test]
fn a_small_address_space() {
    let store = Store::new();
    let script = "ulimit -v 500000; exec \"$@\"";
    let listed = store.command(&["map", "list"]);
    let output = Command::new("sh")
        .args(["-c", script, "-"])
        .arg(listed.get_program())
        .args(listed.get_args())
        .output()
        .expect("sh runs");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("the address space is limited to 500000 kB"), "{message}");
}
