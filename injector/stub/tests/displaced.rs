//! Displaced instructions, executed: each kind gives the same results with and without the probe, and each hit counts.

#[path = "harness/mod.rs"]
mod harness;
#[path = "harness/programs.rs"]
mod programs;

use beeline_abi::code::ContextUse;
use harness::World;
use iced_x86::code_asm::*;
use programs::recorder;

/// Arguments that take every path of the functions below.
const ARGUMENTS: [(u64, u64); 7] = [(0, 0), (1, 0), (0, 1), (5, 3), (3, 5), (7, 7), (40, 2)];

/// Assembles a function, probes it `offset` bytes in, and compares. `hits` says how often the site is reached for given arguments.
fn check(
    name: &str,
    offset: u64,
    is_entry: bool,
    write: impl FnOnce(&mut CodeAssembler, u64),
    hits: impl Fn(u64, u64) -> u64,
) {
    let mut world = World::new();
    let record = world.data(32);
    let program = recorder(&mut world, record);
    // callee(a, b) = 3 a + b
    let callee = world.assemble(|asm| {
        asm.lea(rax, qword_ptr(rdi + rdi * 2)).unwrap();
        asm.add(rax, rsi).unwrap();
        asm.ret().unwrap();
    });
    let start = world.next_code();
    let function = world.assemble(|asm| write(asm, callee));
    assert_eq!(function, start);
    let len = (world.next_code() - function) as usize;
    world.run();
    let expected: Vec<u64> = ARGUMENTS.iter().map(|&(a, b)| world.call(function, a, b)).collect();
    world.edit();
    let plan = world.plan(function, len, offset, is_entry);
    let link = world.link(program, ContextUse::ALL, false);
    let stub = world.probe(&plan, function + offset, &[link]);
    world.run();
    let mut total = 0;
    for (&(a, b), expected) in ARGUMENTS.iter().zip(expected) {
        assert_eq!(world.call(function, a, b), expected, "{name}({a}, {b})");
        total += hits(a, b);
        // SAFETY: the recorder's count.
        assert_eq!(unsafe { *record }, total, "{name}({a}, {b}): hits");
    }
    assert_eq!(stub.displaced[0].original, function + offset);
    assert_eq!(world.shared(&link).missed(), 0);
}

fn always(_: u64, _: u64) -> u64 {
    1
}

#[test]
fn a_prologue() {
    check(
        "prologue",
        0,
        true,
        |asm, _| {
            asm.endbr64().unwrap();
            asm.push(rbp).unwrap();
            asm.mov(rbp, rsp).unwrap();
            asm.lea(rax, qword_ptr(rdi + rsi)).unwrap();
            asm.pop(rbp).unwrap();
            asm.ret().unwrap();
        },
        always,
    );
}

#[test]
fn operands_relative_to_rip() {
    check(
        "rip",
        0,
        true,
        |asm, _| {
            let mut data = asm.create_label();
            asm.mov(rax, qword_ptr(data)).unwrap();
            asm.add(rax, rdi).unwrap();
            asm.ret().unwrap();
            asm.set_label(&mut data).unwrap();
            asm.dq(&[0x1234_5678_9abc]).unwrap();
        },
        always,
    );
    check(
        "rip lea and immediate",
        0,
        false,
        |asm, _| {
            let mut data = asm.create_label();
            asm.cmp(dword_ptr(data), 0x1234).unwrap();
            asm.sete(al).unwrap();
            asm.movzx(eax, al).unwrap();
            asm.add(rax, rdi).unwrap();
            asm.ret().unwrap();
            asm.set_label(&mut data).unwrap();
            asm.dd(&[0x1234]).unwrap();
        },
        always,
    );
}

#[test]
fn calls() {
    check(
        "call rel32",
        4,
        false,
        |asm, callee| {
            asm.sub(rsp, 8).unwrap();
            asm.call(callee).unwrap();
            asm.add(rsp, 8).unwrap();
            asm.ret().unwrap();
        },
        always,
    );
    check(
        "call register",
        10,
        false,
        |asm, callee| {
            asm.mov(rax, callee).unwrap();
            asm.sub(rsp, 8).unwrap();
            asm.mov(rcx, rax).unwrap();
            asm.call(rcx).unwrap();
            asm.add(rsp, 8).unwrap();
            asm.ret().unwrap();
        },
        always,
    );
    check(
        "call [rsp+8]",
        18,
        false,
        |asm, callee| {
            asm.mov(rax, callee).unwrap();
            asm.sub(rsp, 24).unwrap();
            asm.mov(qword_ptr(rsp), rax).unwrap();
            asm.mov(qword_ptr(rsp + 8), rax).unwrap();
            asm.mov(qword_ptr(rsp), 0).unwrap();
            asm.call(qword_ptr(rsp + 8)).unwrap();
            asm.add(rsp, 24).unwrap();
            asm.ret().unwrap();
        },
        always,
    );
    check(
        "call [rip]",
        0,
        false,
        |asm, callee| {
            let mut pointer = asm.create_label();
            asm.call(qword_ptr(pointer)).unwrap();
            asm.add(rax, 1).unwrap();
            asm.ret().unwrap();
            asm.set_label(&mut pointer).unwrap();
            asm.dq(&[callee]).unwrap();
        },
        always,
    );
}

/// The callee of a displaced call finds the original return address on the stack.
#[test]
fn a_displaced_call_pushes_the_original_address() {
    let mut world = World::new();
    let record = world.data(32);
    let program = recorder(&mut world, record);
    let callee = world.assemble(|asm| {
        asm.mov(rax, qword_ptr(rsp)).unwrap();
        asm.ret().unwrap();
    });
    let function = world.assemble(|asm| {
        asm.call(callee).unwrap();
        asm.ret().unwrap();
    });
    let plan = world.plan(function, 6, 0, true);
    let link = world.link(program, ContextUse::ALL, false);
    world.probe(&plan, function, &[link]);
    world.run();
    assert_eq!(world.call(function, 0, 0), function + 5);
}

#[test]
fn branches() {
    // test rdi,rdi; je zero (near enough for two bytes): both in the window
    check(
        "jcc short",
        0,
        true,
        |asm, _| {
            let mut zero = asm.create_label();
            asm.test(rdi, rdi).unwrap();
            asm.je(zero).unwrap();
            asm.lea(rax, qword_ptr(rsi + 100)).unwrap();
            asm.ret().unwrap();
            asm.set_label(&mut zero).unwrap();
            asm.mov(eax, 9).unwrap();
            asm.ret().unwrap();
        },
        always,
    );
    check(
        "live flags into a jcc",
        3,
        false,
        |asm, _| {
            let mut below = asm.create_label();
            asm.cmp(rdi, rsi).unwrap();
            asm.jb(below).unwrap();
            asm.lea(rax, qword_ptr(rsi + 100)).unwrap();
            asm.ret().unwrap();
            asm.set_label(&mut below).unwrap();
            asm.mov(eax, 9).unwrap();
            asm.ret().unwrap();
        },
        always,
    );
    check(
        "jmp short and padding",
        0,
        true,
        |asm, _| {
            let mut on = asm.create_label();
            asm.mov(rax, rdi).unwrap();
            asm.jmp(on).unwrap();
            asm.db(&[0xcc; 7]).unwrap();
            asm.set_label(&mut on).unwrap();
            asm.add(rax, rsi).unwrap();
            asm.ret().unwrap();
        },
        always,
    );
    check(
        "jmp register",
        10,
        false,
        |asm, callee| {
            asm.mov(rax, callee).unwrap();
            asm.mov(rcx, rax).unwrap();
            asm.jmp(rcx).unwrap();
            asm.nop().unwrap();
        },
        always,
    );
}

#[test]
fn counted_branches() {
    check(
        "jrcxz",
        5,
        false,
        |asm, _| {
            let mut none = asm.create_label();
            asm.mov(rcx, rdi).unwrap();
            asm.nop().unwrap();
            asm.nop().unwrap();
            asm.jrcxz(none).unwrap();
            asm.lea(rax, qword_ptr(rcx + rsi)).unwrap();
            asm.ret().unwrap();
            asm.set_label(&mut none).unwrap();
            asm.mov(eax, 77).unwrap();
            asm.ret().unwrap();
        },
        always,
    );
    // The site is the loop instruction itself: reached once for each round.
    check(
        "loop",
        10,
        false,
        |asm, _| {
            let mut again = asm.create_label();
            asm.lea(rcx, qword_ptr(rdi + 1)).unwrap();
            asm.xor(eax, eax).unwrap();
            asm.set_label(&mut again).unwrap();
            asm.add(rax, rsi).unwrap();
            asm.nop().unwrap();
            asm.loop_(again).unwrap();
            asm.add(rax, 1).unwrap();
            asm.ret().unwrap();
        },
        |a, _| a + 1,
    );
}

#[test]
fn a_loop_to_the_site_hits_again() {
    check(
        "dec; jne site",
        4,
        false,
        |asm, _| {
            let mut again = asm.create_label();
            asm.lea(rax, qword_ptr(rdi + 1)).unwrap();
            asm.set_label(&mut again).unwrap();
            asm.dec(rax).unwrap();
            asm.jg(again).unwrap();
            asm.add(rax, rsi).unwrap();
            asm.ret().unwrap();
        },
        |a, _| a.max(1) + u64::from(a > 0),
    );
}

#[test]
fn short_functions_use_their_padding() {
    check(
        "ret",
        3,
        false,
        |asm, _| {
            asm.mov(rax, rdi).unwrap();
            asm.ret().unwrap();
            asm.db(&[0xcc; 12]).unwrap();
        },
        always,
    );
    check(
        "xor; ret; nop",
        0,
        true,
        |asm, _| {
            asm.xor(eax, eax).unwrap();
            asm.ret().unwrap();
            asm.nops_with_size(13).unwrap();
        },
        always,
    );
}

#[test]
fn a_system_call() {
    check(
        "getppid",
        0,
        true,
        |asm, _| {
            asm.mov(eax, 110).unwrap();
            asm.syscall().unwrap();
            asm.ret().unwrap();
        },
        always,
    );
    check(
        "syscall at the site",
        5,
        false,
        |asm, _| {
            asm.mov(eax, 110).unwrap();
            asm.syscall().unwrap();
            asm.mov(rdx, rax).unwrap();
            asm.ret().unwrap();
        },
        always,
    );
}
