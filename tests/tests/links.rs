//! Links: several places, cookies, order, one process alone, counts.

use beeline_tests::{Store, Target, gcc, object};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// What `many` says: address and calls of each function.
fn functions(lines: &str) -> BTreeMap<String, (u64, u64)> {
    let functions = lines.lines().filter_map(|line| line.strip_prefix("many_").map(|_| line));
    let parse = |line: &str| {
        let mut words = line.split(' ');
        let mut next = || words.next().expect("three words").to_owned();
        let (name, address, calls) = (next(), next(), next());
        (name, (u64::from_str_radix(&address, 16).expect("hex"), calls.parse().expect("a number")))
    };
    functions.map(parse).collect()
}

fn sum(lines: &str) -> u64 {
    lines.lines().find_map(|line| line.strip_prefix("sum ")?.parse().ok()).expect("it prints its sum")
}

/// A map of counts by number.
fn counts(store: &Store, map: &str) -> BTreeMap<u64, u64> {
    let number = |value: &serde_json::Value| value.as_u64().expect("a number");
    store.entries(map).iter().map(|(key, value)| (number(key), number(value))).collect()
}

fn load(store: &Store, arguments: &[&str]) {
    let object = object("tests/programs/multi.bpf.c");
    store.ok(&[&["load", &object.to_string_lossy()], arguments].concat());
}

fn many() -> (std::path::PathBuf, String) {
    let program = gcc("tests/targets/many.c");
    let text = program.to_string_lossy().into_owned();
    (program, text)
}

#[test]
fn a_pattern_covers_each_function_once() {
    let (_, path) = many();
    let store = Store::new();
    load(
        &store,
        &[
            "--attach",
            &format!("on_entry=uprobe.multi:{path}:many_*"),
            "--attach",
            &format!("on_return=uretprobe.multi:{path}:many_?"),
            "--cookie",
            "on_return=0x1000000000000001",
        ],
    );
    let printed = store.ok(&["start", "--", &path, "100"]);
    let functions = functions(&printed);
    assert_eq!(functions.len(), 12);
    let expected: BTreeMap<u64, u64> = functions.values().copied().collect();
    assert_eq!(counts(&store, "entries_by_address"), expected);
    let total: u64 = expected.values().sum();
    assert_eq!(counts(&store, "entries_by_cookie"), BTreeMap::from([(0, total)]));
    // `many_?` leaves two of them out.
    let short: BTreeMap<u64, u64> =
        functions.iter().filter(|(name, _)| name.len() == 6).map(|(_, it)| *it).collect();
    assert_eq!(short.len(), 10);
    assert_eq!(counts(&store, "returns_by_address"), short);
    let total: u64 = short.values().sum();
    assert_eq!(counts(&store, "returns_by_cookie"), BTreeMap::from([(0x1000_0000_0000_0001, total)]));
    assert_eq!(store.global("wrong_ip"), 0);
    let links = store.json(&["link", "list"]);
    assert_eq!(
        (links[0]["type"].as_str(), links[1]["type"].as_str()),
        (Some("uprobe.multi"), Some("uretprobe.multi"))
    );
    assert_eq!(links[0]["places"].as_array().map(Vec::len), Some(12));
}

#[test]
fn places_have_cookies_of_their_own() {
    let (_, path) = many();
    let store = Store::new();
    load(
        &store,
        &[
            "--attach",
            &format!("on_entry=uprobe.multi:{path}:many_1#11,many_2,many_3#33"),
            "--attach",
            &format!("on_return=uretprobe.multi:{path}:many_3#34,many_11#12"),
            "--cookie",
            "5",
        ],
    );
    let mut process = Target::spawn(Command::new(&path).args(["50", "wait"]));
    assert_eq!(process.line(), "ready");
    store.ok(&["attach", &process.pid()]);
    process.send("go");
    let mut printed = String::new();
    while !printed.contains("sum") {
        printed += &process.line();
        printed += "\n";
    }
    let functions = functions(&printed);
    let calls = |n: u32| functions[&format!("many_{n}")].1;
    let expected = BTreeMap::from([(11, calls(1)), (5, calls(2)), (33, calls(3))]);
    assert_eq!(counts(&store, "entries_by_cookie"), expected);
    assert_eq!(counts(&store, "returns_by_cookie"), BTreeMap::from([(34, calls(3)), (12, calls(11))]));
    store.ok(&["detach", &process.pid()]);
    process.send("end");
    process.finish();
}

#[test]
fn results_of_all_functions() {
    let (_, path) = many();
    let store = Store::new();
    load(&store, &["--attach", &format!("on_return=uretprobe.multi:{path}:many_*")]);
    let printed = store.ok(&["start", "--", &path, "200"]);
    assert_eq!(store.global("result_sum"), sum(&printed));
}

#[test]
fn links_of_one_place_run_in_the_order_in_which_they_came() {
    let (program, path) = many();
    let place = |path: &Path| format!("{}:many_0", path.display());
    for (order, expected) in [(["first", "second"], 12), (["second", "first"], 21)] {
        let store = Store::new();
        let attach = order.map(|name| format!("{name}=uprobe:{}", place(&program)));
        load(&store, &["--attach", &attach[0], "--attach", &attach[1]]);
        store.ok(&["start", "--", &path, "1"]);
        assert_eq!(store.number("order", 0), expected);
    }
    // A link that comes later runs later.
    let store = Store::new();
    load(&store, &["--attach", &format!("second=uprobe:{}", place(&program))]);
    let mut process = Target::spawn(Command::new(&path).args(["1", "wait"]));
    assert_eq!(process.line(), "ready");
    store.ok(&["attach", &process.pid()]);
    load(&store, &["--name", "later", "--attach", &format!("first=uprobe:{}", place(&program))]);
    store.ok(&["attach", &process.pid()]);
    process.send("go");
    assert!(process.line().starts_with("many_0"));
    assert_eq!(store.number("order", 0), 21);
    store.ok(&["detach", &process.pid()]);
    process.send("end");
    process.finish();
}

#[test]
fn a_link_of_one_process_is_not_its_childs() {
    let (_, path) = many();
    let mut process = Target::spawn(Command::new(&path).args(["30", "fork"]));
    assert_eq!(process.line(), "ready");
    let store = Store::new();
    load(
        &store,
        &[
            "--attach",
            &format!("on_entry=uprobe.multi:{path}:many_*"),
            "--pid",
            &process.pid(),
            "--count-hits",
        ],
    );
    load(
        &store,
        &[
            "--name",
            "everywhere",
            "--attach",
            &format!("on_return=uretprobe.multi:{path}:many_*"),
            "--count-hits",
        ],
    );
    store.ok(&["attach", &process.pid()]);
    process.send("go");
    let mut printed = String::new();
    while !printed.contains("sum") {
        printed += &process.line();
        printed += "\n";
    }
    let calls: u64 = functions(&printed).values().map(|(_, calls)| calls).sum();
    let links = store.json(&["link", "show"]);
    let of = |object: &str| {
        let links = links.as_array().expect("a list");
        links.iter().find(|link| link["object"] == object).expect("it is loaded").clone()
    };
    assert_eq!(of("multi")["hits"].as_u64(), Some(calls), "the child is another process");
    assert_eq!(of("everywhere")["hits"].as_u64(), Some(2 * calls), "the child inherits the probe");
    assert_eq!((of("multi")["missed"].as_u64(), of("everywhere")["missed"].as_u64()), (Some(0), Some(0)));
    // A filter on another process.
    let other = store.fails(&["attach", "--object", "multi", &std::process::id().to_string()]);
    assert!(other.contains("no links that apply here"), "{other}");
    process.send("end");
    process.finish();
}
