//! Stacks that programs see, against those that the target sees itself: with and without frame pointers, by the tables of
//! compilers and linkers, through libc, signals and frames of any size, and with return addresses that were replaced.

use beeline_tests::{Store, Target, gcc, have, object, root, target};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the target printed: for each visit of `leaf`, its address and the return addresses.
type Stacks = Vec<Vec<u64>>;

/// A target that has printed its stacks, and lives.
struct Visited {
    process: Target,
    stacks: Stacks,
}

fn hexadecimal(line: &str) -> Vec<u64> {
    line.split(' ').map(|word| u64::from_str_radix(word, 16).expect("hexadecimal")).collect()
}

/// Attaches the store to the program and lets it work.
fn visit(store: &Store, program: &Path) -> Visited {
    let mut process = Target::spawn(Command::new(program).arg("wait"));
    assert_eq!(process.line(), "ready");
    store.ok(&["attach", &process.pid()]);
    process.send("go");
    let mut stacks = Stacks::new();
    loop {
        let line = process.line();
        if line.starts_with("done") {
            break;
        }
        stacks.push(hexadecimal(&line));
    }
    assert!(stacks.len() >= 4);
    Visited { process, stacks }
}

impl Visited {
    fn end(mut self, store: &Store) {
        store.ok(&["detach", &self.process.pid()]);
        self.process.send("end");
        self.process.finish();
    }
}

fn load(store: &Store, attach: &[String]) {
    let object = object("tests/programs/stacks.bpf.c").to_string_lossy().into_owned();
    let mut arguments = vec!["load", &object];
    for place in attach {
        arguments.extend(["--attach", place]);
    }
    store.ok(&arguments);
}

/// The first `count` stacks that a map holds.
fn kept(store: &Store, map: &str, count: usize) -> Stacks {
    let entries: BTreeMap<u64, Value> =
        store.entries(map).into_iter().map(|(key, value)| (key.as_u64().expect("a number"), value)).collect();
    let stack = |value: &Value| {
        let bytes = value["bytes"].as_i64().expect("a number");
        assert!(bytes > 0, "bpf_get_stack said {bytes}");
        let ips = value["ips"].as_array().expect("a list").iter();
        ips.take(bytes as usize / 8).map(|ip| ip.as_u64().expect("an address")).collect()
    };
    entries.values().take(count).map(stack).collect()
}

/// As hexadecimal, for messages.
fn shown(stacks: &Stacks) -> Vec<String> {
    stacks.iter().map(|stack| format!("{stack:x?}")).collect()
}

/// The entry of `leaf` and a return into it, with return probes below, show what the target shows.
fn agrees(program: &Path) {
    let store = Store::new();
    let path = program.display();
    load(
        &store,
        &[
            format!("enter=uprobe:{path}:leaf"),
            format!("leave=uretprobe:{path}:mark"),
            format!("nothing=uretprobe.multi:{path}:deep,wide,work,aligned"),
        ],
    );
    let visited = visit(&store, program);
    let count = visited.stacks.len();
    assert_eq!(shown(&kept(&store, "at_entry", count)), shown(&visited.stacks), "at the entry, {path}");
    // `mark` returns into `leaf`.
    let mut returns = kept(&store, "at_return", count);
    for (stack, expected) in returns.iter_mut().zip(&visited.stacks) {
        assert!(stack[0] > expected[0] && stack[0] < expected[0] + 64, "{:x} is in leaf", stack[0]);
        stack[0] = expected[0];
    }
    assert_eq!(shown(&returns), shown(&visited.stacks), "at the return, {path}");
    visited.end(&store);
}

#[test]
fn c_without_frame_pointers() {
    agrees(&gcc("tests/targets/stacks.c"));
}

#[test]
fn c_by_other_compilers_and_linkers() {
    for (name, compiler, flags) in [
        ("clang", "clang", &["-fomit-frame-pointer"][..]),
        ("lld", "gcc", &["-fuse-ld=lld"]),
        ("mold", "gcc", &["-fuse-ld=mold"]),
        ("static", "gcc", &["-static"]),
        ("fixed", "gcc", &["-no-pie"]),
        ("frame-pointers", "gcc", &["-fno-omit-frame-pointer"]),
        ("no-protection", "gcc", &["-fcf-protection=none"]),
        ("stripped", "gcc", &["-Wl,--export-dynamic", "-s"]),
        ("cplusplus", "g++", &["-x", "c++"]),
    ] {
        let needed: &[&str] = if flags == ["-fuse-ld=mold"] { &["mold"] } else { &[compiler] };
        if have(needed) && (name != "lld" || have(&["ld.lld"])) {
            agrees(&target("tests/targets/stacks.c", name, compiler, flags));
        }
    }
}

/// A Go program of this process alone.
fn go(source: &str) -> PathBuf {
    let output = std::env::temp_dir().join(format!("beeline-stacks-go-{}", std::process::id()));
    let mut build = Command::new("go");
    let status = build.args(["build", "-o"]).arg(&output).arg(root().join(source)).status();
    assert!(status.expect("go runs").success());
    output
}

/// Go writes no tables, and keeps frame pointers. A function that is asked to make room for others, or for more stack, at its
/// entry begins anew afterwards, and is hit twice.
#[test]
fn go_by_frame_pointers() {
    if !have(&["go"]) {
        return;
    }
    let program = go("tests/targets/stacks.go");
    let store = Store::new();
    load(&store, &[format!("enter=uprobe:{}:main.leaf", program.display())]);
    let visited = visit(&store, &program);
    let hits = store.global("entries") as usize;
    let mut seen = kept(&store, "at_entry", hits).into_iter();
    let mut last = Vec::new();
    for theirs in &visited.stacks {
        // Where Go's own list ends, the runtime's outermost frame may have no caller.
        let same = |ours: &Vec<u64>| ours.len() <= theirs.len() + 1 && ours.starts_with(theirs);
        let ours = seen.find(|ours| same(ours) || *ours != last);
        let ours = ours.unwrap_or_else(|| panic!("{theirs:x?} was not seen"));
        assert!(same(&ours), "{ours:x?} {theirs:x?}");
        last = ours;
    }
    assert!(seen.all(|ours| ours == last), "nothing else was seen");
    visited.end(&store);
    std::fs::remove_file(program).expect("it is ours");
}

/// As the kernel: file offsets and build ids where the file is known.
#[test]
fn build_ids() {
    let program = gcc("tests/targets/stacks.c");
    let store = Store::new();
    load(&store, &[format!("enter=uprobe:{}:leaf", program.display())]);
    let visited = visit(&store, &program);
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", visited.process.pid())).expect("it lives");
    let offset_of = |address: u64| {
        maps.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            let (start, end) = words.next()?.split_once('-')?;
            let number = |text| u64::from_str_radix(text, 16).expect("hexadecimal");
            let offset = words.nth(1)?;
            let range = number(start)..number(end);
            range.contains(&address).then(|| number(offset) + (address - range.start))
        })
    };
    let entries = store.entries("by_build_id");
    for (index, stack) in visited.stacks.iter().enumerate() {
        let (_, value) = entries.iter().find(|(key, _)| key.as_u64() == Some(index as u64)).expect("kept");
        assert_eq!(value["bytes"].as_u64(), Some(32 * stack.len() as u64));
        for (frame, &address) in value["frames"].as_array().expect("a list").iter().zip(stack) {
            assert_eq!(frame["status"].as_i64(), Some(1), "{frame}");
            let text = frame.to_string();
            let offset = offset_of(address).expect("a file is mapped there");
            assert!(text.contains(&format!("\"offset\":{offset}")), "{text} {offset}");
        }
    }
    let id = beeline_build_id(&program);
    let first = &entries[0].1["frames"][0]["build_id"];
    let bytes: Vec<u8> =
        first.as_array().expect("bytes").iter().map(|it| it.as_i64().expect("a byte") as u8).collect();
    assert_eq!(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), id);
    visited.end(&store);
}

/// As `readelf` prints it.
fn beeline_build_id(program: &Path) -> String {
    let output = Command::new("readelf").arg("-n").arg(program).output().expect("readelf runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let id = text.lines().find_map(|line| line.trim().strip_prefix("Build ID: ").map(str::to_owned));
    id.expect("it has a build id")
}

/// The names of a line of `--folded`, and its count.
fn folded_line(line: &str) -> (Vec<&str>, u64) {
    let (names, count) = line.rsplit_once(' ').expect("a count");
    (names.split(';').collect(), count.parse().expect("a number"))
}

/// Stacks by their functions' names: counted by keys, and a map of stacks by itself.
#[test]
fn names_and_folded_lines() {
    let program = gcc("tests/targets/stacks.c");
    let store = Store::new();
    load(&store, &[format!("count=uprobe:{}:leaf", program.display())]);
    let visited = visit(&store, &program);
    let text = store.ok(&["map", "dump", "counts", "--folded"]);
    let lines: Vec<_> = text.lines().map(folded_line).collect();
    assert_eq!(lines.iter().map(|(_, count)| count).sum::<u64>(), visited.stacks.len() as u64, "{text}");
    for (names, _) in &lines {
        assert_eq!((names[0], names.last()), ("stacks-glibc", Some(&"leaf")), "{text}");
        assert!(names.contains(&"main") && names.contains(&"_start"), "{text}");
        assert!(!names.iter().any(|name| name.starts_with("0x")), "{text}");
    }
    let has = |wanted: &[&str]| {
        let found = |names: &Vec<&str>| names.windows(wanted.len()).any(|some| some == wanted);
        lines.iter().any(|(names, _)| found(names))
    };
    let deep = ["deep"; 6];
    assert!(has(&[&["work"], &deep[..], &["leaf"]].concat()), "{text}");
    assert!(has(&["wide", "deep", "deep", "deep", "leaf"]) && has(&["aligned", "leaf"]), "{text}");
    // From `raise`, through the signal's frame in libc, to its handler.
    let raised = |names: &[&str]| names.contains(&"raise") || names.contains(&"gsignal");
    assert!(
        lines.iter().any(|(names, _)| raised(names) && names.ends_with(&["deep", "deep", "leaf"])),
        "{text}"
    );
    // The map of stacks holds each once; its process is the only one that carries probes.
    let own = store.ok(&["map", "dump", "stacks", "--folded"]);
    assert_eq!(own.lines().count(), lines.len(), "{own}");
    let stacks = store.json(&["map", "dump", "counts", "--symbols"]);
    let first = &stacks[0];
    assert_eq!(first["pid"].to_string(), visited.process.pid());
    assert_eq!((&first["frames"][0]["symbol"], &first["frames"][0]["offset"]), (&"leaf".into(), &0.into()));
    assert_eq!(first["frames"][0]["file"], "stacks-glibc");
    let shown = store.ok(&["map", "dump", "counts", "--symbols"]);
    assert!(shown.contains(" leaf+0x0 (stacks-glibc)") && shown.contains("(libc.so.6)"), "{shown}");
    let refused = store.fails(&["map", "dump", "at_entry", "--folded", "--stacks", "counts"]);
    assert!(refused.contains("no map of stacks"), "{refused}");
    visited.end(&store);
    // Whoever has ended has no names any more.
    let gone = store.ok(&["map", "dump", "counts", "--folded"]);
    assert!(gone.lines().all(|line| folded_line(line).0[1].starts_with("0x")), "{gone}");
}
