//! Which system calls are found in real files, and which are not traced.

use beeline_site::{Binary, Refusal, SystemCalls};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program with much of the C library in it, if there is such a compiler.
fn built(directory: &Path, compiler: &str, arguments: &[&str]) -> Option<PathBuf> {
    let source = directory.join("a.c");
    let text = "#include <pthread.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\n\
                static void *run(void *it) { sleep(1); return it; }\n\
                int main(void) { pthread_t thread; pthread_create(&thread, 0, run, 0); pthread_cancel(thread);\n\
                pthread_join(thread, 0); FILE *file = popen(\"true\", \"r\"); return pclose(file) + system(\"true\"); }\n";
    std::fs::write(&source, text).expect("writable");
    let output = directory.join("out");
    let done = Command::new(compiler).args(arguments).arg("-O2").arg(&source).arg("-o").arg(&output).output();
    if !done.is_ok_and(|done| done.status.success()) {
        println!("skipped: {compiler} {arguments:?}");
        return None;
    }
    Some(output)
}

/// Places at which no jump may be put.
fn is_left_alone(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::SignalReturn { .. } | Refusal::CancellableCall { .. } | Refusal::NoStack { .. }
    )
}

fn places(calls: &SystemCalls) -> BTreeSet<u64> {
    calls.sites.iter().map(|site| site.vaddr).chain(calls.refused.iter().map(|it| it.0)).collect()
}

/// The `syscall` instructions that a disassembler sees in functions.
fn disassembled(path: &Path) -> Option<BTreeSet<u64>> {
    let output = Command::new("objdump").args(["-d", "--no-show-raw-insn"]).arg(path).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let calls = lines.filter(|(_, instruction)| instruction.trim() == "syscall");
    Some(calls.filter_map(|(address, _)| u64::from_str_radix(address.trim(), 16).ok()).collect())
}

#[test]
fn all_are_found_with_symbols_and_without() {
    let cases: [(&str, &[&str]); 4] = [
        ("gcc", &["-static", "-pthread"]),
        ("gcc", &["-static-pie", "-pthread"]),
        ("musl-gcc", &["-static"]),
        ("musl-gcc", &["-static-pie"]),
    ];
    for (compiler, arguments) in cases {
        let directory = tempfile::tempdir().expect("writable");
        let Some(path) = built(directory.path(), compiler, arguments) else { continue };
        let calls = Binary::open(&path).expect("an executable").system_calls().clone();
        if let Some(expected) = disassembled(&path) {
            assert_eq!(places(&calls), expected, "{compiler} {arguments:?}");
        }
        assert!(calls.refused.iter().all(|(_, refusal)| is_left_alone(refusal)), "{:x?}", calls.refused);
        let stripped = directory.path().join("stripped");
        let done = Command::new("strip").arg("-o").arg(&stripped).arg(&path).status();
        if !done.is_ok_and(|status| status.success()) {
            println!("skipped: no strip");
            continue;
        }
        let without = Binary::open(&stripped).expect("an executable");
        let (found, all) = (places(without.system_calls()), places(&calls));
        assert!(found.is_subset(&all), "{compiler} {arguments:?}: {:x?}", found.difference(&all));
        // musl has no unwind entries either: two functions that nobody calls are not known to be code.
        let missing: Vec<_> = all.difference(&found).collect();
        let bearable = if compiler == "gcc" { 0 } else { 2 };
        assert!(missing.len() <= bearable, "{compiler} {arguments:?}: {missing:x?}");
        let refused = &without.system_calls().refused;
        assert!(refused.iter().all(|(_, refusal)| is_left_alone(refusal)), "{refused:x?}");
    }
}

/// Libraries and a static program without symbols, where they are installed; and files that make no call themselves but have the bytes of
/// some.
#[test]
fn those_of_the_machine() {
    let with_calls = [
        "/lib/x86_64-linux-gnu/libc.so.6",
        "/lib64/ld-linux-x86-64.so.2",
        "/lib/ld-musl-x86_64.so.1",
        "/bin/busybox",
    ];
    let without = [
        "/usr/lib/x86_64-linux-gnu/libcrypto.so.3",
        "/usr/lib/x86_64-linux-gnu/libstdc++.so.6",
        "/usr/bin/python3",
        "/bin/bash",
    ];
    let all = with_calls.map(|path| (path, true)).into_iter().chain(without.map(|path| (path, false)));
    for (path, has_calls) in all {
        let Ok(binary) = Binary::open(path) else {
            println!("skipped: no {path}");
            continue;
        };
        let calls = binary.system_calls();
        println!("{path}: {} traced, {} not", calls.sites.len(), calls.refused.len());
        assert_eq!(!calls.sites.is_empty(), has_calls, "{path}");
        let refused: Vec<_> = calls.refused.iter().filter(|(_, refusal)| !is_left_alone(refusal)).collect();
        assert!(refused.is_empty(), "{path}: {refused:x?}");
        if let Some(seen) = disassembled(Path::new(path)) {
            // What is no code for a disassembler is none.
            let more: Vec<_> = places(calls).difference(&seen).copied().collect();
            assert!(more.is_empty(), "{path}: {more:x?}");
        }
    }
}
