//! Jumps to computed addresses: no window has a target inside, whether the table is understood or not.

use beeline_site::{Binary, Refusal, plan};
use object::{Object, ObjectSection, ObjectSymbol};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Four targets, some of them shortly behind each other.
const CASES: &str = "1: mov $1,%eax\n ret\n2: mov $2,%al\n3: mov $0,%ah\n movzbl %al,%eax\n ret\n.skip 7,0x90\n4: mov $4,%eax\n ret\n";

/// A function `sw`, and where its targets are: a section that is not loaded.
fn source(jump: &str, inside: &str, behind: &str) -> String {
    format!(
        ".text\n.globl sw\n.type sw,@function\n.p2align 4\nsw: .cfi_startproc\n and $3,%edi\n{jump}\n{inside}\n{CASES}.cfi_endproc\n.size sw,.-sw\n\
         .p2align 4\n.globl main\n.type main,@function\nmain: .cfi_startproc\n xor %eax,%eax\n ret\n.cfi_endproc\n.size main,.-main\n\
         .section truth,\"\"\n.long 1b-sw,2b-sw,3b-sw,4b-sw\n{behind}\n.section .note.GNU-stack,\"\",@progbits\n"
    )
}

fn built(directory: &Path, text: &str, arguments: &[&str]) -> Option<PathBuf> {
    std::fs::write(directory.join("a.s"), text).expect("writable");
    let output = directory.join("out");
    let done = Command::new("gcc").current_dir(directory).args(["a.s", "-o", "out"]).args(arguments).output();
    if !done.is_ok_and(|done| done.status.success()) {
        println!("skipped: gcc {arguments:?}");
        return None;
    }
    Some(output)
}

/// Where the function lies, and offsets of the targets in it.
fn truth(data: &[u8]) -> (Range<u64>, Vec<u64>) {
    let file = object::File::parse(data).expect("an object");
    let bytes = file.section_by_name("truth").expect("in the source").data().expect("in the file");
    let offsets = bytes.chunks_exact(4).map(|it| u32::from_le_bytes(it.try_into().expect("four")));
    let at = |name: &str| {
        let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name));
        symbol.expect("in the source").address()
    };
    (at("sw")..at("main"), offsets.map(u64::from).collect())
}

/// Without section headers the whole executable segment is code.
fn without_sections(mut data: Vec<u8>) -> Vec<u8> {
    for range in [0x28..0x30, 0x3c..0x40] {
        data[range].fill(0);
    }
    data
}

/// Every window in the function has no target inside.
fn check(what: &str, data: Vec<u8>, function: Range<u64>, targets: &[u64], is_opaque: bool) {
    let binary = Binary::from_bytes(data).expect("an object");
    let Range { start, end } = function;
    assert!(plan(&binary, start).is_ok(), "{what}: the entry");
    let mut refused = 0;
    for vaddr in start..end {
        match plan(&binary, vaddr) {
            Ok(plan) => {
                let window = vaddr + 1..vaddr + u64::from(plan.jump_len).max(u64::from(plan.code_len));
                let inside = targets.iter().find(|&&target| window.contains(&(start + target)));
                assert_eq!(inside, None, "{what}: the window at {:#x}", vaddr - start);
            }
            Err(Refusal::UnknownTargets { .. }) => refused += 1,
            Err(_) => {}
        }
    }
    assert_eq!(refused > 0, is_opaque, "{what}: {refused} windows refused");
}

#[test]
fn no_window_has_a_target_inside() {
    const OFFSETS: &str = ".section .rodata\n.p2align 3\n9: .long 1b-9b,2b-9b,3b-9b,4b-9b";
    const LONG: &str = ".section .rodata\n.p2align 3\n9: .quad 1b-9b,2b-9b,3b-9b,4b-9b";
    const FROM_LABEL: &str = ".section .rodata\n.p2align 3\n9: .long 0,2b-1b,3b-1b,4b-1b";
    const ADDRESSES: &str = ".p2align 3\n9: .quad 1f,2f,3f,4f";
    const INSIDE: &str = "9: .long 1f-9b,2f-9b,3f-9b,4f-9b";
    const BYTES: &str = "9: .byte 1f-9b,2f-9b,3f-9b,4f-9b";
    let by_itself = "lea 9f(%rip),%rdx\n movslq (%rdx,%rdi,4),%rax\n add %rdx,%rax\n jmp *%rax";
    let by_got = "lea _GLOBAL_OFFSET_TABLE_(%rip),%rcx\n movabs $9f@GOTOFF,%rsi\n add %rcx,%rsi\n\
                  movslq (%rsi,%rdi,4),%rdx\n add %rsi,%rdx\n jmp *%rdx";
    let long = "lea 9f(%rip),%rax\n add (%rax,%rdi,8),%rax\n jmp *%rax";
    let added = "movslq 9f(,%rdi,4),%rdx\n add $1f,%rdx\n jmp *%rdx";
    let loaded = "movslq 9f(,%rdi,4),%rdx\n lea 1f(%rdx),%rdx\n jmp *%rdx";
    let bytes = "lea 9f(%rip),%rdx\n movzbl (%rdx,%rdi),%eax\n add %rdx,%rax\n jmp *%rax";
    let counted = "lea 1f(%rip),%rax\n lea (%rax,%rdi,2),%rax\n jmp *%rax";
    let words = "jmp *9f(,%rdi,8)";
    let cases: [(&str, &str, &str, &[&str], bool); 10] = [
        (by_itself, "", OFFSETS, &["-pie"], false),
        (by_itself, INSIDE, "", &["-pie"], true),
        (by_got, "", OFFSETS, &["-pie"], false),
        (long, "", LONG, &["-pie"], false),
        (added, "", FROM_LABEL, &["-no-pie"], false),
        (loaded, "", FROM_LABEL, &["-no-pie"], false),
        (bytes, BYTES, "", &["-pie"], true),
        (counted, "", "", &["-pie"], true),
        (words, ADDRESSES, "", &["-no-pie"], true),
        (by_itself, "", OFFSETS, &["-shared", "-Wl,-z,noseparate-code"], false),
    ];
    for (jump, inside, behind, arguments, is_opaque) in cases {
        let directory = tempfile::tempdir().expect("writable");
        let text = source(jump, inside, behind);
        let Some(path) = built(directory.path(), &text, arguments) else { continue };
        let data = std::fs::read(path).expect("just built");
        let (function, targets) = truth(&data);
        check(&text, data.clone(), function.clone(), &targets, is_opaque);
        if arguments.contains(&"-shared") {
            check(&text, without_sections(data), function, &targets, is_opaque);
        }
    }
}
