//! Reads of memory by a compiled program, on the stack and beside it: what the target itself finds there.

use beeline_tests::{Store, Target, gcc, object};
use std::process::Command;

/// `include/uapi/asm-generic/errno-base.h`.
const EFAULT: u64 = 14;

#[test]
fn words_on_the_stack_at_its_end_and_elsewhere() {
    let program = gcc("tests/targets/reads.c");
    let mut target = Target::spawn(&mut Command::new(&program));
    assert_eq!(target.line(), "ready");
    let store = Store::new();
    let link = format!("read=uprobe:{}:look", program.display());
    let object = object("tests/programs/reads.bpf.c");
    store.ok(&["load", &object.to_string_lossy(), "--attach", &link]);
    store.ok(&["attach", &target.pid()]);
    target.send("go");
    let line = target.line();
    let expected: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(expected.len(), 4 * 16);
    assert!(expected.iter().filter(|&&word| word == "none").count() > 4 * 3, "{line}");
    for (key, &expected) in (0u64..).zip(&expected) {
        let (value, error) = (store.number("values", key), store.number("errors", key));
        match expected {
            "none" => assert_eq!((value, error), (0, EFAULT), "{key}"),
            value_there => assert_eq!((value.to_string(), error), (value_there.to_owned(), 0), "{key}"),
        }
    }
    target.send("end");
    target.finish();
}
