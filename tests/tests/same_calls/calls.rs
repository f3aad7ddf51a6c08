//! System calls, as strace shows them and as a recording program sees them.

use beeline_tests::Store;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// A system call that has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) arguments: Vec<u64>,
    pub(crate) result: i64,
}

impl Call {
    /// A child begins with the end of the call that made it, which strace does not show.
    fn begins_child(&self) -> bool {
        ["clone", "clone3", "fork", "vfork"].contains(&self.name.as_str()) && self.result == 0
    }

    /// A return from a signal handler is no call of the program's, an exit does not end, and libc draws eight random bytes for the name
    /// of a temporary file as often as it takes to get some that it likes (`random_bits` of `tempname.c`).
    fn is_compared(&self) -> bool {
        match self.name.as_str() {
            "rt_sigreturn" | "exit" | "exit_group" => false,
            "getrandom" => self.arguments.get(1..3) != Some(&[8, 1]),
            _ => true,
        }
    }
}

/// What one thread calls, in order, by the programs that it executes.
pub(crate) type Images = Vec<Vec<Call>>;

/// What strace does not tell as a number: no result is this.
pub(crate) const NOT_TOLD: i64 = i64::MIN;

/// The result of a call that ends with the error that strace names.
fn errno(name: &str) -> i64 {
    static TEXT: std::sync::OnceLock<BTreeMap<String, i64>> = std::sync::OnceLock::new();
    let known = TEXT.get_or_init(|| {
        let files = ["asm-generic/errno-base.h", "asm-generic/errno.h"];
        let texts = files.map(|it| std::fs::read_to_string(format!("/usr/include/{it}")).unwrap_or_default());
        let lines = texts.iter().flat_map(|text| text.lines());
        let words = lines.filter_map(|line| {
            let mut words = line.strip_prefix("#define")?.split_whitespace();
            Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
        });
        words.collect()
    });
    known.get(name).map_or(NOT_TOLD, |number| -number)
}

/// A number as strace shows it raw.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse::<i64>().ok().map(|it| it as u64),
    }
}

/// One line of strace; none for a call that did not end.
fn shown(line: &str) -> Option<Call> {
    let (name, rest) = line.split_once('(')?;
    let (arguments, rest) = rest.split_once(')')?;
    let mut words = rest.trim_start().strip_prefix("= ")?.split(' ');
    let result = match words.next()? {
        "-1" => words.next().map_or(NOT_TOLD, errno),
        "?" => match words.next() {
            Some(restart) if restart.starts_with("ERESTART") => NOT_TOLD,
            _ => return None,
        },
        result => number(result)? as i64,
    };
    let arguments = arguments.split(", ").filter(|it| !it.is_empty());
    Some(Call { name: name.to_owned(), arguments: arguments.map_while(number).collect(), result })
}

/// Threads as `strace -ff` shows them in the files of this folder, by their ids.
pub(crate) fn shown_threads(logs: &Path) -> BTreeMap<i64, Images> {
    let files = std::fs::read_dir(logs).expect("ours").filter_map(|it| Some(it.ok()?.path()));
    let mut threads = BTreeMap::new();
    for file in files {
        let tid = file.extension().and_then(|tid| tid.to_str()?.parse().ok()).expect("strace's name");
        let mut images: Images = vec![Vec::new()];
        for call in std::fs::read_to_string(file).expect("strace's").lines().filter_map(shown) {
            if call.name.starts_with("execve") && call.result == 0 {
                images.push(Vec::new());
            } else if call.is_compared() {
                images.last_mut().expect("one").push(call);
            }
        }
        threads.insert(tid, images);
    }
    threads
}

/// Threads as `tests/programs/call_record.bpf.c` has recorded them, by their ids.
pub(crate) fn recorded_threads(store: &Store) -> BTreeMap<i64, Images> {
    let names = names();
    let count = store.global("recorded");
    assert!(count < 16384, "{count} calls are more than there is room for");
    let mut entries = store.entries("records");
    entries.sort_by_key(|(key, _)| key.as_u64());
    let signed = |value: &Value| value.as_i64().or(value.as_u64().map(|it| it as i64)).expect("a number");
    let mut threads: BTreeMap<i64, Images> = BTreeMap::new();
    for (_, value) in entries.iter().take(count as usize) {
        let images = threads.entry(signed(&value["tid"])).or_insert_with(|| vec![Vec::new()]);
        let id = signed(&value["id"]);
        let name = names.get(&id).cloned().unwrap_or_else(|| format!("unknown {id}"));
        let result = signed(&value["ret"]);
        let arguments = value["args"].as_array().expect("six").iter().map(|it| signed(it) as u64).collect();
        let call = Call { name, arguments, result };
        if call.name.starts_with("execve") && result == 0 {
            // It ends in the new program, whose registers are empty.
            assert_eq!(call.arguments, [0; 6]);
            images.push(Vec::new());
        } else if !call.begins_child() && call.is_compared() {
            images.last_mut().expect("one").push(call);
        }
    }
    threads
}

/// Names of the calls as strace has them.
pub(crate) fn names() -> BTreeMap<i64, String> {
    let text = std::fs::read_to_string("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.strip_prefix("#define __NR_")?.split_once(' '));
    lines.filter_map(|(name, number)| Some((number.trim().parse().ok()?, name.to_owned()))).collect()
}
