//! Links: several places, cookies, order, one process alone, counts.

use beeline_tests::{Store, Target, gcc, have, object};
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

/// A process that calls `step` when it is told to, or all the time.
fn endless() -> Target {
    let program = gcc("tests/targets/endless.c");
    let mut process = Target::spawn(&mut Command::new(program));
    assert_eq!(process.line(), "ready");
    process
}

/// Makes the target call `step` so often; the calls that it has made by now.
fn calls(process: &mut Target, count: u64) -> u64 {
    process.send(&count.to_string());
    process.line().parse().expect("it says how many")
}

fn step(process: &Target) -> String {
    let path = std::fs::read_link(format!("/proc/{}/exe", process.pid())).expect("it runs");
    format!("{}:step", path.display())
}

/// The jump stands at `step`.
fn is_probed(store: &Store, process: &Target) -> bool {
    let listed = store.json(&["ps"]);
    let pid: u64 = process.pid().parse().expect("a number");
    let of_it = listed.as_array().expect("a list").iter().find(|it| it["pid"] == pid).cloned();
    of_it.is_some_and(|it| {
        it["sites"]
            .as_array()
            .expect("a list")
            .iter()
            .any(|site| !site["links"].as_array().expect("a list").is_empty())
    })
}

#[test]
fn a_link_gets_another_program_while_it_is_hit() {
    let mut process = endless();
    let store = Store::new();
    let object = object("tests/programs/digits.bpf.c");
    let path = object.to_string_lossy().into_owned();
    let place = step(&process);
    store.ok(&["load", &path, "--name", "one", "--attach", &format!("ones=uprobe:{place}"), "--count-hits"]);
    store.ok(&["load", &path, "--name", "two"]);
    store.ok(&["attach", &process.pid()]);
    assert_eq!(calls(&mut process, 100), 100);
    // The target calls all the time, and the program is replaced again and again.
    process.send("0");
    for round in 0..8 {
        let program = if round % 2 == 0 { "two/tens" } else { "one/ones" };
        let said = store.ok(&["link", "update", "one/ones", program]);
        assert!(said.contains("in 1 process"), "{said}");
    }
    process.send("stop");
    let made: u64 = process.line().parse().expect("a number");
    assert_eq!(calls(&mut process, 1000), made + 1000);
    let (ones, tens) = (store.number("digits", 0), store.number("digits", 1));
    assert_eq!(ones + tens, made + 1000, "no hit is lost, none is counted by both");
    assert!(tens > 0 && ones >= 1100, "{ones} {tens}");
    let link = &store.json(&["link", "show", "one/ones"])[0];
    assert_eq!(link["hits"].as_u64(), Some(made + 1000));
    assert_eq!(link["processes"][0]["places"].as_u64(), Some(1));
    // What a link has cannot be unloaded away from it.
    store.ok(&["link", "update", "one/ones", "two/tens"]);
    let refused = store.fails(&["unload", "two"]);
    assert!(refused.contains("its program tens is that of link one/ones"), "{refused}");
    store.ok(&["link", "update", "one/ones", "one/ones"]);
    store.ok(&["unload", "two"]);
    store.ok(&["detach", &process.pid()]);
    process.send("end");
    process.finish();
}

#[test]
fn a_link_that_is_detached_leaves_the_others() {
    let mut process = endless();
    let store = Store::new();
    let object = object("tests/programs/digits.bpf.c");
    let place = step(&process);
    let attach = ["ones", "tens"].map(|program| format!("{program}=uprobe:{place}"));
    let returns = format!("hundreds=uretprobe:{place}");
    store.ok(&[
        "load",
        &object.to_string_lossy(),
        "--attach",
        &attach[0],
        "--attach",
        &attach[1],
        "--attach",
        &returns,
    ]);
    store.ok(&["attach", &process.pid()]);
    calls(&mut process, 100);
    store.ok(&["link", "detach", "ones"]);
    calls(&mut process, 10);
    assert_eq!([0, 1, 2].map(|digit| store.number("digits", digit)), [100, 110, 110]);
    store.ok(&["link", "detach", "hundreds"]);
    store.ok(&["link", "disable", "tens"]);
    calls(&mut process, 1000);
    store.ok(&["link", "enable", "tens"]);
    calls(&mut process, 1);
    assert_eq!([0, 1, 2].map(|digit| store.number("digits", digit)), [100, 111, 110]);
    assert!(is_probed(&store, &process));
    store.ok(&["link", "detach", "tens"]);
    calls(&mut process, 5);
    assert_eq!(store.number("digits", 1), 111);
    assert!(!is_probed(&store, &process), "the jump is out again");
    let gone = store.fails(&["link", "detach", "tens"]);
    assert!(gone.contains("there is no link"), "{gone}");
    store.ok(&["detach", &process.pid()]);
    process.send("end");
    process.finish();
}

#[test]
fn unloading_takes_the_jumps_out() {
    let mut process = endless();
    let store = Store::new();
    let object = object("tests/programs/digits.bpf.c");
    let attach = format!("ones=uprobe:{}", step(&process));
    store.ok(&["load", &object.to_string_lossy(), "--attach", &attach]);
    store.ok(&["attach", &process.pid()]);
    calls(&mut process, 3);
    assert!(is_probed(&store, &process));
    store.ok(&["unload", "digits"]);
    assert!(!is_probed(&store, &process));
    calls(&mut process, 3);
    // And in again.
    store.ok(&["load", &object.to_string_lossy(), "--attach", &attach]);
    store.ok(&["attach", &process.pid()]);
    calls(&mut process, 4);
    assert_eq!(store.number("digits", 0), 7, "the pinned map is the same");
    store.ok(&["detach", &process.pid()]);
    process.send("end");
    process.finish();
}

/// An owner that is killed takes its links with it, at once and everywhere; nobody has to notice.
#[test]
fn links_end_with_their_owner() {
    let mut processes = [endless(), endless()];
    for signal in ["KILL", "TERM"] {
        let store = Store::new();
        let object = object("tests/programs/digits.bpf.c");
        let attach = format!("ones=uprobe:{}", step(&processes[0]));
        // A map that outlives the object tells what was counted.
        let mut owner = Target::spawn(&mut store.command(&[
            "load",
            &object.to_string_lossy(),
            "--own",
            "--attach",
            &attach,
        ]));
        assert!(owner.line().starts_with("loaded digits"));
        while !owner.line().contains("link") {}
        for process in &mut processes {
            store.ok(&["attach", &process.pid()]);
            calls(process, 10);
        }
        assert_eq!(store.number("digits", 0), 20);
        let link = &store.json(&["link", "show", "ones"])[0];
        assert_eq!((link["enabled"].as_bool(), link["owner"].is_u64()), (Some(true), true));
        // Off and on again is still the owner's.
        store.ok(&["link", "disable", "ones"]);
        calls(&mut processes[0], 1);
        store.ok(&["link", "enable", "ones"]);
        calls(&mut processes[0], 1);
        assert_eq!(store.number("digits", 0), 21);
        let killed = Command::new("kill").args(["-s", signal, &owner.pid()]).status().expect("kill runs");
        assert!(killed.success());
        while owner.is_alive() {
            std::thread::yield_now();
        }
        for process in &mut processes {
            calls(process, 10);
        }
        assert_eq!(store.number("digits", 0), 21, "off at once after SIG{signal}");
        assert_eq!(store.json(&["link", "list"]).as_array().map(Vec::len), Some(0));
        let gone = store.fails(&["unload", "digits"]);
        assert!(gone.contains("digits"), "{gone}");
        for process in &mut processes {
            store.ok(&["detach", &process.pid()]);
            calls(process, 1);
        }
    }
    for mut process in processes {
        process.send("end");
        process.finish();
    }
}

#[test]
fn each_process_and_what_became_of_the_link_there() {
    let (_, path) = many();
    let store = Store::new();
    let elsewhere = gcc("tests/targets/endless.c");
    load(
        &store,
        &[
            "--attach",
            &format!("on_entry=uprobe:{}:step", elsewhere.display()),
            // A return probe would break it.
            "--attach",
            "on_return=uretprobe.multi:libc.so.6:vfork,getpid",
        ],
    );
    let mut carries = Target::spawn(Command::new(&path).args(["1", "wait"]));
    assert_eq!(carries.line(), "ready");
    store.fails(&["attach", &carries.pid()]);
    let shown = store.json(&["link", "show", "on_entry"]);
    let processes = shown[0]["processes"].as_array().expect("a list");
    assert_eq!(processes.len(), 1, "{shown}");
    assert_eq!((&processes[0]["state"], &processes[0]["not_mapped"]), (&"not mapped".into(), &1.into()));
    let shown = store.json(&["link", "show", "on_return"]);
    let process = &shown[0]["processes"][0];
    assert_eq!(process["pid"].to_string(), carries.pid());
    assert_eq!((&process["state"], &process["places"]), (&"in force".into(), &1.into()), "{shown}");
    assert_eq!(
        (&process["refused"][0]["place"], process["refused"][0]["reason"].is_string()),
        (&"vfork".into(), true)
    );
    let text = store.ok(&["link", "show"]);
    let pid = carries.pid();
    assert!(text.contains(&format!("process {pid}: not mapped")), "{text}");
    assert!(text.contains(&format!("process {pid}: refused at vfork: ")), "{text}");
    // A second attach says the same; one that ended is not spoken of.
    store.fails(&["attach", &pid]);
    assert_eq!(store.ok(&["link", "show"]), text);
    store.ok(&["detach", &pid]);
    assert!(!store.ok(&["link", "show"]).contains("process"), "nothing is known of it any more");
    store.fails(&["attach", &pid]);
    assert!(store.ok(&["link", "show"]).contains("refused at vfork"));
    carries.send("go");
    while !carries.line().starts_with("sum") {}
    carries.send("end");
    carries.finish();
    assert!(!store.ok(&["link", "show"]).contains("process"), "it has ended");
}

/// A process that is refused as a whole: a 64-bit one under another tracer.
#[test]
fn a_process_that_is_refused() {
    let mut process = endless();
    let store = Store::new();
    let object = object("tests/programs/digits.bpf.c");
    store.ok(&["load", &object.to_string_lossy(), "--attach", &format!("ones=uprobe:{}", step(&process))]);
    if !have(&["strace"]) {
        return;
    }
    let mut tracer = Command::new("strace");
    let mut tracer = tracer.args(["-o", "/dev/null", "-p", &process.pid()]).spawn().expect("strace runs");
    let traced = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("it lives");
        !status.contains("TracerPid:\t0\n")
    };
    while !traced() {
        std::thread::yield_now();
    }
    store.fails(&["attach", &process.pid()]);
    let shown = store.json(&["link", "show", "ones"]);
    let known = &shown[0]["processes"][0];
    assert_eq!(known["state"], "refused", "{shown}");
    let reason = known["refused"][0]["reason"].as_str().expect("a reason");
    assert!(reason.contains(&tracer.id().to_string()), "it names the tracer: {reason}");
    // When it can be attached to, nothing is refused any more.
    tracer.kill().expect("ours");
    tracer.wait().expect("ours");
    store.ok(&["attach", &process.pid()]);
    assert_eq!(store.json(&["link", "show", "ones"])[0]["processes"][0]["state"], "in force");
    store.ok(&["detach", &process.pid()]);
    process.send("end");
    process.finish();
}
