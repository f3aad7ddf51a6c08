//! gdb goes through frames of functions whose return is probed, with the script that `beeline gdb` prints.

use beeline_tests::{Store, Target, gcc, have, load_counts, wait_until};
use std::process::Command;

#[test]
fn a_backtrace_goes_to_main() {
    if !have(&["gdb"]) {
        return;
    }
    let (program, store) = (gcc("tests/targets/frames.c"), Store::new());
    let path = program.to_string_lossy();
    let places = ["outer", "middle", "inner"].map(|name| format!("{path}:{name}"));
    load_counts(&store, &places.each_ref().map(String::as_str));
    let mut target = Target::spawn(Command::new(&program).arg("4"));
    assert_eq!(target.line(), "ready");
    store.ok(&["attach", &target.pid()]);
    target.send("go");
    // All three are entered; it waits in the innermost then.
    wait_until(|| store.number("shared", 0) == 3);
    wait_until(|| {
        std::fs::read_to_string(format!("/proc/{}/status", target.pid()))
            .is_ok_and(|text| text.contains("State:\tS"))
    });
    let script = std::env::temp_dir().join(format!("beeline-gdb-{}.py", std::process::id()));
    std::fs::write(&script, store.ok(&["gdb"])).expect("writable");
    let output = Command::new("gdb")
        .args(["-nx", "-batch", "-iex", "set debuginfod enabled off", "-p", &target.pid(), "-x"])
        .arg(&script)
        .args(["-ex", "bt", "-ex", "frame function outer", "-ex", "info locals"])
        .output()
        .expect("gdb runs");
    std::fs::remove_file(&script).expect("ours");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("ptrace: Operation not permitted")
        || errors.contains("Python scripting is not supported")
    {
        eprintln!("skipped: gdb may not attach, or has no Python: {errors}");
        return;
    }
    let frames: Vec<&str> = ["inner", "middle", "outer", "main"]
        .into_iter()
        .filter(|name| said.contains(&format!("{name} (")))
        .collect();
    assert_eq!(frames, ["inner", "middle", "outer", "main"], "{said}{errors}");
    assert!(!said.contains("corrupt stack"), "{said}");
    // What a caller keeps in registers is found, too.
    assert!(said.contains("kept = 1004"), "{said}");
    target.send("end");
    assert!(target.finish().contains("result 1004"));
}
