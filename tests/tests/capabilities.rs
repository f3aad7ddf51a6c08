//! Iterators, dynptrs and loads through pointers of kernel objects, in a real target.

use beeline_tests::{Store, have, object};

#[test]
fn newer_programs_run_in_a_target() {
    if !have(&["clang", "perl"]) {
        return;
    }
    if !std::path::Path::new("/sys/kernel/btf/vmlinux").exists() {
        println!("skipped: kernel functions are found in the kernel's BTF, and there is none");
        return;
    }
    let store = Store::new();
    let object = object("tests/programs/objects.bpf.c");
    store.ok(&["load", &object.to_string_lossy(), "--attach", "on_entry=uprobe:libc.so.6:getppid"]);
    // The shell stays to be the parent: perl is not its last command.
    let script = "echo $$; perl -e 'print getppid(), \"\\n\", $$, \"\\n\"'; true";
    let printed = store.ok(&["start", "--", "/bin/sh", "-c", script]);
    let ids: Vec<u64> = printed.lines().filter_map(|line| line.trim().parse().ok()).collect();
    let [shell, parent, perl] = ids[..] else { panic!("{printed}") };
    assert_eq!(shell, parent);
    assert_eq!(store.number("found", 0), 4950, "the numbers below 100");
    assert_eq!(store.number("found", 1), perl, "the process");
    assert_eq!(store.number("found", 2), shell, "its parent");
    assert_eq!(store.number("found", 3), 1, "what is not there is 0");
    assert_eq!(store.number("found", 4), 42, "written through a dynptr");
}
