//! Which system calls are found in real files, and which are not traced.

use beeline_site::{Binary, Refusal, SystemCalls, WINDOW_MIN, Windows};
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
    calls.sites.iter().map(|site| site.vaddr).chain(calls.refused.iter().map(|it| it.vaddr)).collect()
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
        assert!(calls.refused.iter().all(|it| is_left_alone(&it.refusal)), "{:x?}", calls.refused);
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
        assert!(refused.iter().all(|it| is_left_alone(&it.refusal)), "{refused:x?}");
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
        let refused: Vec<_> = calls.refused.iter().filter(|it| !is_left_alone(&it.refusal)).collect();
        assert!(refused.is_empty(), "{path}: {refused:x?}");
        if let Some(seen) = disassembled(Path::new(path)) {
            // What is no code for a disassembler is none.
            let more: Vec<_> = places(calls).difference(&seen).copied().collect();
            assert!(more.is_empty(), "{path}: {more:x?}");
        }
    }
}

/// A library with these functions, in assembler.
fn assembled(functions: &[(&str, &str)]) -> Option<Binary> {
    let directory = tempfile::tempdir().expect("writable");
    let (source, output) = (directory.path().join("a.s"), directory.path().join("out"));
    let function = |(name, code): &(&str, &str)| {
        format!(".globl {name}\n.type {name},@function\n{name}: {code}\n.size {name},.-{name}\n")
    };
    let text: String = functions.iter().map(function).collect();
    let text = format!(".text\n{text}.section .note.GNU-stack,\"\",@progbits\n");
    std::fs::write(&source, text).expect("writable");
    let done = Command::new("gcc").args(["-shared", "-nostdlib", "-o"]).arg(&output).arg(&source).status();
    if !done.is_ok_and(|status| status.success()) {
        println!("skipped: no gcc");
        return None;
    }
    Some(Binary::open(output).expect("a library"))
}

#[test]
fn numbers_are_known_however_they_are_written() {
    let cases = [
        ("plain", "mov $39,%eax\n syscall\n ret", Some(39)),
        ("low", "xor %eax,%eax\n mov $56,%al\n mov %rdx,%rdi\n syscall\n ret", Some(56)),
        ("low_of_another", "mov $0x1234,%eax\n mov $0x56,%al\n syscall\n ret", Some(0x1256)),
        ("pushed", "push $110\n pop %rax\n syscall\n ret", Some(110)),
        ("low_alone", "mov $56,%al\n syscall\n ret", None),
        ("popped", "pop %rax\n syscall\n ret", None),
        ("argument", "mov %edi,%eax\n syscall\n ret", None),
    ];
    let Some(binary) = assembled(&cases.map(|(name, code, _)| (name, code))) else { return };
    for (name, _, number) in cases {
        let function = binary.symbols().named(name).pop().expect("exported");
        let range = function.vaddr..function.vaddr + function.size;
        let site = binary.system_calls().sites.iter().find(|site| range.contains(&site.vaddr));
        assert_eq!(site.expect(name).number, number, "{name}");
    }
}

/// Behind the call there is no room: it is displaced, together with what is before it. What is longer than two bytes is told of.
#[test]
fn every_call_has_room_or_a_reason() {
    let functions = [
        ("tail", "mov $110,%eax\n syscall\n jmp last"),
        ("last", "ret"),
        ("prefixed", "mov $110,%eax\n .byte 0x48\n syscall\n ret"),
    ];
    let Some(binary) = assembled(&functions) else { return };
    let calls = binary.system_calls();
    let [site] = &calls.sites[..] else { panic!("{:x?}", calls.sites) };
    let Windows::Over(plan) = &site.windows else { panic!("{:x?}", site.windows) };
    assert_eq!((plan.vaddr + 5, usize::from(plan.jump_len)), (site.vaddr, WINDOW_MIN));
    assert!(plan.references.system_call && plan.falls_through);
    let prefixed = binary.symbols().named("prefixed").pop().expect("exported").vaddr + 6;
    let refused: Vec<_> = calls.refused.iter().map(|call| (call.vaddr, call.refusal.clone())).collect();
    assert_eq!(refused, [(prefixed, Refusal::PrefixedCall { vaddr: prefixed })]);
}
