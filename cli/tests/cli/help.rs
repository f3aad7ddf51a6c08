//! Help, completions, man pages, wrong command lines.

use crate::{Store, beeline};

fn help(arguments: &[&str]) -> String {
    let output = beeline().args(arguments).output().expect("the command runs");
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn help_of_every_command() {
    insta::assert_snapshot!("help", help(&["--help"]));
    for command in [
        "load", "unload", "start", "attach", "detach", "ps", "prog", "map", "link", "events", "trace",
        "verify",
    ] {
        insta::assert_snapshot!(format!("help_{command}"), help(&[command, "-h"]));
    }
    insta::assert_snapshot!("help_map_update", help(&["map", "update", "--help"]));
}

#[test]
fn wrong_command_lines_end_with_2() {
    for line in [
        &["nonsense"][..],
        &["load"],
        &["attach"],
        &["attach", "x"],
        &["detach", "--all", "1"],
        &["map", "dump"],
    ] {
        let output = beeline().args(line).output().expect("the command runs");
        assert_eq!(output.status.code(), Some(2), "{line:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{line:?}");
    }
}

#[test]
fn completions_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(help(&["completions", shell]).contains("unload"), "{shell}");
    }
}

#[test]
fn man_pages() {
    assert!(help(&["man"]).contains(".TH"));
    let folder = tempfile::tempdir().expect("a folder");
    let pages = folder.path().join("man1");
    assert!(help(&["man", &pages.to_string_lossy()]).is_empty());
    for page in ["beeline.1", "beeline-load.1", "beeline-map-update.1"] {
        assert!(pages.join(page).exists(), "{page}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    use std::process::Stdio;
    let mut child = beeline()
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn an_empty_store_is_no_error_for_lists() {
    let store = Store::new();
    for list in [&["prog", "list"][..], &["map", "list"], &["link", "list"]] {
        assert_eq!(store.json(list), serde_json::json!([]), "{list:?}");
        assert_eq!(store.ok(list), "");
    }
    assert_eq!(store.ok(&["trace", "--no-follow"]), "");
    assert_eq!(store.ok(&["unload", "--all"]), "");
    assert!(!store.path().exists(), "looking makes no store");
    for command in [
        &["map", "dump", "x"][..],
        &["prog", "show", "x"],
        &["unload", "x"],
        &["attach", "1"],
        &["events", "x"],
    ] {
        let message = store.fails(command);
        assert!(message.contains("beeline load"), "{command:?}: {message}");
    }
}

#[test]
fn the_store_from_the_environment() {
    let store = Store::new();
    let run = |value: &std::ffi::OsStr| {
        beeline().env("BEELINE_STORE", value).args(["trace"]).args(["--no-follow"]).output().expect("it runs")
    };
    assert!(run(store.path().as_os_str()).status.success());
    assert!(run(std::ffi::OsStr::new("")).status.success(), "an empty variable is none");
    assert_eq!(run(std::ffi::OsStr::new("a b")).status.code(), Some(1));
}

#[test]
fn stores_that_are_not_to_be_used() {
    let bad = |store: &str| {
        let output = beeline().args(["--store", store, "map", "list"]).output().expect("the command runs");
        assert_eq!(output.status.code(), Some(1), "{store}");
        String::from_utf8(output.stderr).expect("text")
    };
    insta::assert_snapshot!("store_name", bad("a b"));
    insta::assert_snapshot!("store_not_tmpfs", bad("/proc"));
    insta::assert_snapshot!("store_not_a_directory", bad("/proc/self/maps"));
}
