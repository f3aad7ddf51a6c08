//! Loading and unloading: what is said, what is refused.

use crate::{Store, object};
use serde_json::json;

/// Paths and times are not the same everywhere.
fn settled(text: &str) -> String {
    let folder = env!("CARGO_TARGET_TMPDIR");
    let words = text.replace(folder, "DIR");
    let mut lines = Vec::new();
    for line in words.lines() {
        let line = match line.split_once("verified in ") {
            Some((before, _)) => format!("{before}verified in TIME"),
            None => line.to_owned(),
        };
        let line = match (line.find(" insns, "), line.find(" bytes")) {
            (Some(from), Some(to)) => format!("{} insns, N{}", &line[..from], &line[to..]),
            _ => line,
        };
        lines.push(line);
    }
    lines.join("\n")
}

#[test]
fn what_load_prints() {
    let Some(path) = object("sample.bpf.c") else { return };
    let store = Store::new();
    let output = store.run(&["load", &path.to_string_lossy()]);
    let text = String::from_utf8_lossy(&output.stdout);
    let libc = std::fs::canonicalize("/lib/x86_64-linux-gnu/libc.so.6").unwrap_or_default();
    let text = text.replace(&*libc.to_string_lossy(), "LIBC");
    insta::assert_snapshot!("load", settled(&text));
    insta::assert_snapshot!("load_warnings", settled(&String::from_utf8_lossy(&output.stderr)));
    insta::assert_snapshot!("unload", store.ok(&["unload", "sample"]));
    assert_eq!(store.json(&["prog", "list"]), json!([]));
}

#[test]
fn a_name_is_taken_once() {
    let Some(path) = object("sample.bpf.c") else { return };
    let path = path.to_string_lossy();
    let store = Store::new();
    store.ok(&["load", &path]);
    insta::assert_snapshot!("load_twice", settled(&store.fails(&["load", &path])));
    store.ok(&["load", &path, "--name", "other"]);
    let names: Vec<_> =
        store.json(&["prog", "list"]).as_array().unwrap().iter().map(|it| it["object"].clone()).collect();
    assert_eq!(names, ["sample", "sample", "other", "other"]);
    let shared = store.json(&["map", "show", "shared"]);
    assert_eq!(shared[0]["objects"], json!(["other", "sample"]), "pinned by name: one map for both");
    insta::assert_snapshot!("ambiguous", store.fails(&["map", "dump", "usages"]));
    store.ok(&["unload", "--all"]);
    assert_eq!(store.json(&["map", "list"]).as_array().unwrap().len(), 1, "the pin keeps it");
    store.ok(&["map", "unpin", "shared"]);
    assert_eq!(store.json(&["map", "list"]), json!([]));
}

#[test]
fn what_load_refuses() {
    let (Some(sample), Some(wrong)) = (object("sample.bpf.c"), object("wrong.bpf.c")) else { return };
    let (sample, wrong) = (sample.to_string_lossy(), wrong.to_string_lossy());
    let store = Store::new();
    let case = |name: &str, arguments: &[&str]| {
        insta::assert_snapshot!(format!("load_{name}"), settled(&store.fails(arguments)));
        assert_eq!(store.json(&["map", "list"]), json!([]), "{name}");
    };
    case("rejected", &["load", &wrong]);
    case("missing_file", &["load", "/nonexistent.bpf.o"]);
    case("not_elf", &["load", "/proc/self/maps"]);
    case("no_program", &["load", &sample, "--attach", "nothing=uprobe:libc.so.6:malloc"]);
    case("no_file", &["load", &sample, "--attach", "on_return=uprobe:/nonexistent:f"]);
    case("bad_spec", &["load", &sample, "--attach", "on_return"]);
    case("kprobe_spec", &["load", &sample, "--attach", "on_return=kprobe:do_sys_open"]);
    case("two_names", &["load", &sample, &wrong, "--name", "x"]);
    case("bad_name", &["load", &sample, "--name", "a/b"]);
    case("bad_btf", &["load", &sample, "--btf", "/proc/self/maps"]);
    let message = store.fails(&["load", &sample, "--attach", "on_return=uprobe:libc.so.6:mallok"]);
    assert!(message.contains("malloc"), "near matches: {message}");
}

#[test]
fn what_the_verifier_says() {
    let (Some(sample), Some(wrong)) = (object("sample.bpf.c"), object("wrong.bpf.c")) else { return };
    let store = Store::new();
    let accepted = store.json(&["verify", &sample.to_string_lossy()]);
    assert!(accepted.as_array().unwrap().iter().all(|it| it["accepted"] == true), "{accepted}");
    let output = store.run(&["--json", "verify", &wrong.to_string_lossy()]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report[0]["name"], &report[0]["accepted"]), (&json!("wrong"), &json!(false)));
    assert!(report[0]["reason"].as_str().unwrap().contains("map_value_or_null"), "{report}");
    assert_eq!((&report[1]["name"], &report[1]["accepted"]), (&json!("right"), &json!(true)));
    assert!(!store.path().exists(), "verifying makes no store");
}
