//! Return probes, executed: pairing of calls and returns, recursion, tail calls, abandoned frames, threads.

#[path = "harness/mod.rs"]
mod harness;
#[path = "harness/programs.rs"]
mod programs;

use beeline_abi::code::ContextUse;
use beeline_abi::thread::{RETURN_SLOTS, ReturnSlot};
use beeline_stub::{LinkCode, Stub, ThreadKey};
use harness::World;
use iced_x86::code_asm::*;
use programs::{REGISTERS, counter, pattern, recorder, surround};
use std::sync::atomic::Ordering;

/// `nop dword [rax+rax]` (5 bytes), `ret`.
const QUIET: [u8; 6] = [0x0f, 0x1f, 0x44, 0x00, 0x00, 0xc3];

fn words(at: *const u64, count: usize) -> Vec<u64> {
    // SAFETY: the tests pass blocks of the world's data.
    unsafe { std::slice::from_raw_parts(at, count).to_vec() }
}

/// Outstanding returns of the calling thread.
fn depth(world: &mut World) -> u64 {
    let slot = world.slot();
    (slot.returns_top - slot.returns_base) / size_of::<ReturnSlot>() as u64
}

/// Probes the return of the function at `at`, whose code is `len` bytes.
fn probe_return(world: &mut World, at: u64, len: usize, program: u64) -> (LinkCode, Stub) {
    let link = world.link(program, ContextUse::ALL, true);
    let plan = world.plan(at, len, 0, true);
    let stub = world.probe(&plan, at, &[link]);
    (link, stub)
}

/// f(n) = n == 0 ? 0 : f(n - 1) + n, recursive through the probe.
fn sum(world: &mut World) -> (u64, usize) {
    let start = world.next_code();
    let at = world.assemble(|asm| {
        let mut zero = asm.create_label();
        asm.push(rbx).unwrap();
        asm.mov(rbx, rdi).unwrap();
        asm.nop().unwrap();
        asm.test(rdi, rdi).unwrap();
        asm.je(zero).unwrap();
        asm.sub(rdi, 1).unwrap();
        asm.call(start).unwrap();
        asm.add(rbx, rax).unwrap();
        asm.set_label(&mut zero).unwrap();
        asm.mov(rax, rbx).unwrap();
        asm.pop(rbx).unwrap();
        asm.ret().unwrap();
    });
    (at, (world.next_code() - at) as usize)
}

fn check_registers(small_stacks: bool) {
    let mut world = World::with(small_stacks, ThreadKey::FsSelf);
    let (record, from, to) = (world.data(32), world.data(REGISTERS), world.data(REGISTERS));
    let program = recorder(&mut world, record);
    let quiet = world.code(&QUIET);
    let run = surround(&mut world, quiet, from, to);
    pattern(from, 0x202);
    let (link, _) = probe_return(&mut world, quiet, QUIET.len(), program);
    world.run();
    let stack = vec![0u64; 4096];
    world.slot().stack_top = if small_stacks { (stack.as_ptr() as u64 + 4096 * 8) & !15 } else { 0 };
    // The first hit makes the return stack; the agent of the tests does not keep vector registers, the real one does.
    world.call(quiet, 0, 0);
    for round in 2..=4u64 {
        world.call(run, 0, 0);
        let (before, after) = (words(from, REGISTERS), words(to, REGISTERS));
        for i in (0..REGISTERS).filter(|&i| i != 4 && i != 16) {
            assert_eq!(before[i], after[i], "register {i}");
        }
        assert_eq!(after[4], 0, "stack pointer");
        let seen = words(record, 25);
        assert_eq!(seen[0], round);
        let order = [15, 14, 13, 12, 5, 3, 11, 10, 9, 8, 0, 1, 2, 6, 7];
        for (word, register) in order.into_iter().enumerate() {
            assert_eq!(seen[1 + word], before[register], "pt_regs word {word}");
        }
        assert_eq!((seen[16], seen[18], seen[21]), (u64::MAX, 0x33, 0x2b));
        assert!(seen[17] > run && seen[17] < run + 2048, "ip is the return address");
        assert_eq!(seen[22], link.runtime);
        assert_eq!(seen[23] % 16, 8);
        assert_eq!(world.slot().guard.load(Ordering::Relaxed), 0);
        assert_eq!(depth(&mut world), 0);
    }
    assert_eq!(world.shared(&link).missed(), 0);
}

#[test]
fn registers_survive() {
    check_registers(false);
    check_registers(true);
}

#[test]
fn the_context_holds_the_value_and_the_caller_s_stack_pointer() {
    let mut world = World::new();
    let record = world.data(32);
    let program = recorder(&mut world, record);
    // lea rax,[rsp+rdi]; nop; ret
    let code = [0x48, 0x8d, 0x04, 0x3c, 0x90, 0xc3];
    let at = world.code(&code);
    probe_return(&mut world, at, code.len(), program);
    world.run();
    let value = world.call(at, 16, 0);
    let seen = words(record, 25);
    assert_eq!(seen[1 + 10], value, "ax");
    assert_eq!(seen[1 + 19], value - 16 + 8, "sp is what it is after the return");
}

#[test]
fn entry_and_return_on_one_site() {
    let mut world = World::new();
    let (a, b, c) = (world.data(1), world.data(1), world.data(32));
    let (first, second, third) = (counter(&mut world, a), counter(&mut world, b), recorder(&mut world, c));
    let (at, len) = sum(&mut world);
    let links = [
        world.link(first, ContextUse::NONE, false),
        world.link(second, ContextUse::NONE, true),
        world.link(third, ContextUse::ALL, true),
    ];
    let plan = world.plan(at, len, 0, true);
    world.probe(&plan, at, &links);
    world.run();
    assert_eq!(world.call(at, 4, 0), 10);
    assert_eq!((words(a, 1)[0], words(b, 1)[0], words(c, 1)[0]), (5, 5, 5));
    assert_eq!(words(c, 25)[1 + 10], 10, "the outermost return comes last");
    world.shared(&links[1]).enable(false);
    assert_eq!(world.call(at, 4, 0), 10);
    assert_eq!((words(a, 1)[0], words(b, 1)[0], words(c, 1)[0]), (10, 5, 10));
    world.shared(&links[2]).enable(false);
    assert_eq!(world.call(at, 4, 0), 10);
    assert_eq!((words(a, 1)[0], words(b, 1)[0], words(c, 1)[0]), (15, 5, 10));
    assert_eq!(depth(&mut world), 0);
}

#[test]
fn deep_recursion_misses_what_does_not_fit() {
    let mut world = World::new();
    let count = world.data(1);
    let program = counter(&mut world, count);
    let (at, len) = sum(&mut world);
    let (link, _) = probe_return(&mut world, at, len, program);
    world.run();
    let n = RETURN_SLOTS + 88;
    assert_eq!(world.call(at, n - 1, 0), n * (n - 1) / 2);
    assert_eq!(words(count, 1)[0], RETURN_SLOTS);
    assert_eq!(world.shared(&link).missed(), 88);
    assert_eq!(depth(&mut world), 0);
    assert_eq!(world.call(at, 2, 0), 3);
    assert_eq!(words(count, 1)[0], RETURN_SLOTS + 3);
}

#[test]
fn tail_calls_share_a_stack_word() {
    let mut world = World::new();
    let (a, b) = (world.data(1), world.data(1));
    let (first, second) = (counter(&mut world, a), counter(&mut world, b));
    let inner = world.code(&[0x48, 0x8d, 0x44, 0x37, 0x01, 0xc3]); // lea rax,[rdi+rsi+1]; ret
    let outer = world.assemble(|asm| {
        asm.add(rdi, 1000).unwrap();
        asm.jmp(inner).unwrap();
    });
    let len = (world.next_code() - outer) as usize;
    let (one, _) = probe_return(&mut world, inner, 6, first);
    let (two, _) = probe_return(&mut world, outer, len, second);
    world.run();
    for round in 1..=3 {
        assert_eq!(world.call(outer, 2, 3), 1006);
        assert_eq!((words(a, 1)[0], words(b, 1)[0]), (round, round));
        assert_eq!(depth(&mut world), 0);
    }
    assert_eq!(world.shared(&one).missed() + world.shared(&two).missed(), 0);
}

/// Assembles `base(n)`, which calls `descend(n)`, which calls itself n times and then leaves all of it behind, as `longjmp` does.
/// Returns base, its length, descend, its length.
fn jumper(world: &mut World) -> (u64, usize, u64, usize) {
    let saved = world.data(3) as u64;
    let descend = world.next_code();
    world.assemble(|asm| {
        let mut jump = asm.create_label();
        asm.push(rbx).unwrap();
        asm.mov(rbx, rdi).unwrap();
        asm.nop().unwrap();
        asm.test(rdi, rdi).unwrap();
        asm.je(jump).unwrap();
        asm.sub(rdi, 1).unwrap();
        asm.call(descend).unwrap();
        asm.pop(rbx).unwrap();
        asm.ret().unwrap();
        asm.set_label(&mut jump).unwrap();
        asm.mov(rcx, saved).unwrap();
        asm.mov(rsp, qword_ptr(rcx)).unwrap();
        asm.mov(rbx, qword_ptr(rcx + 8)).unwrap();
        asm.jmp(qword_ptr(rcx + 16)).unwrap();
    });
    let descend_len = (world.next_code() - descend) as usize;
    let base = world.assemble(|asm| {
        let mut landing = asm.create_label();
        asm.mov(rcx, saved).unwrap();
        asm.mov(qword_ptr(rcx), rsp).unwrap();
        asm.mov(qword_ptr(rcx + 8), rbx).unwrap();
        asm.lea(rax, qword_ptr(landing)).unwrap();
        asm.mov(qword_ptr(rcx + 16), rax).unwrap();
        asm.call(descend).unwrap();
        asm.set_label(&mut landing).unwrap();
        asm.mov(eax, 5).unwrap();
        asm.ret().unwrap();
    });
    let base_len = (world.next_code() - base) as usize;
    (base, base_len, descend, descend_len)
}

#[test]
fn abandoned_frames_are_dropped_by_the_next_return() {
    let mut world = World::new();
    let count = world.data(1);
    let program = counter(&mut world, count);
    let (base, base_len, descend, descend_len) = jumper(&mut world);
    let (at, sum_len) = sum(&mut world);
    let links = [
        probe_return(&mut world, descend, descend_len, program).0,
        probe_return(&mut world, base, base_len, program).0,
        probe_return(&mut world, at, sum_len, program).0,
    ];
    world.run();
    for round in 0..2000 {
        assert_eq!(world.call(base, round % 7, 0), 5);
        assert_eq!(depth(&mut world), 0, "round {round}");
        if round % 3 == 0 {
            assert_eq!(world.call(at, 3, 0), 6);
        }
    }
    assert_eq!(words(count, 1)[0], 2000 + 667 * 4);
    for link in links {
        assert_eq!(world.shared(&link).missed(), 0);
    }
}

#[test]
fn abandoned_frames_are_dropped_by_the_next_call() {
    let mut world = World::new();
    let count = world.data(1);
    let program = counter(&mut world, count);
    let (base, _, descend, descend_len) = jumper(&mut world);
    let (at, sum_len) = sum(&mut world);
    let links = [
        probe_return(&mut world, descend, descend_len, program).0,
        probe_return(&mut world, at, sum_len, program).0,
    ];
    world.run();
    for round in 0..2000 {
        assert_eq!(world.call(base, round % 7, 0), 5);
        assert!(depth(&mut world) <= 8, "round {round}: stale returns do not pile up");
    }
    assert_eq!(world.call(at, 3, 0), 6);
    assert_eq!(words(count, 1)[0], 4);
    for link in links {
        assert_eq!(world.shared(&link).missed(), 0);
    }
}

#[test]
fn a_hit_inside_a_program_pushes_nothing() {
    let mut world = World::new();
    let (count, other) = (world.data(1), world.data(1));
    let quiet = world.code(&QUIET);
    let nested = programs::caller(&mut world, count, quiet);
    let plain = counter(&mut world, other);
    let entry = world.link(nested, ContextUse::NONE, false);
    let exit = world.link(plain, ContextUse::NONE, true);
    let exit_nested = world.link(nested, ContextUse::NONE, true);
    let plan = world.plan(quiet, QUIET.len(), 0, true);
    world.probe(&plan, quiet, &[entry, exit, exit_nested]);
    world.run();
    for round in 1..=3 {
        world.call(quiet, 0, 0);
        assert_eq!(depth(&mut world), 0);
        assert_eq!(words(count, 1)[0], 2 * round);
        assert_eq!(words(other, 1)[0], round);
        // Once from the entry's program, once from the return's.
        assert_eq!(world.shared(&entry).missed(), 2 * round);
        assert_eq!(world.shared(&exit).missed(), 2 * round);
    }
}

/// The guard is set when the function returns: the return is resolved all the same, and counted as missed.
#[test]
fn a_return_under_a_guard_is_resolved() {
    let mut world = World::new();
    let count = world.data(1);
    let program = counter(&mut world, count);
    let guard = std::ptr::from_ref(&world.slot().guard) as u64;
    // nop5; set the guard to the highest address (nested for every stack pointer); ret
    let at = world.assemble(|asm| {
        asm.nops_with_size(5).unwrap();
        asm.mov(rcx, guard).unwrap();
        asm.mov(qword_ptr(rcx), -1).unwrap();
        asm.mov(rax, rdi).unwrap();
        asm.ret().unwrap();
    });
    let len = (world.next_code() - at) as usize;
    let (link, _) = probe_return(&mut world, at, len, program);
    world.run();
    for round in 1..=3 {
        assert_eq!(world.call(at, 42, 0), 42);
        assert_eq!(words(count, 1)[0], 0);
        assert_eq!(world.shared(&link).missed(), round);
        assert_eq!(depth(&mut world), 0);
        world.slot().guard.store(0, Ordering::Relaxed);
    }
}

#[test]
fn a_return_without_a_stack_of_its_own_is_missed() {
    let mut world = World::with(true, ThreadKey::FsSelf);
    let count = world.data(1);
    let program = counter(&mut world, count);
    let (at, len) = sum(&mut world);
    let (link, _) = probe_return(&mut world, at, len, program);
    world.run();
    assert_eq!(world.call(at, 4, 0), 10);
    assert_eq!(words(count, 1)[0], 0);
    assert_eq!(world.shared(&link).missed(), 5);
    assert_eq!(depth(&mut world), 0);
    assert_eq!(world.slot().guard.load(Ordering::Relaxed), 0);
}

/// On the stack only the return address differs, and it is the return point.
#[test]
fn the_word_on_the_stack() {
    let mut world = World::new();
    let count = world.data(1);
    let program = counter(&mut world, count);
    // mov rax,[rsp]; nop; ret
    let code = [0x48, 0x8b, 0x04, 0x24, 0x90, 0xc3];
    let at = world.code(&code);
    let (_, stub) = probe_return(&mut world, at, code.len(), program);
    world.run();
    assert_eq!(world.call(at, 0, 0), stub.address + u64::from(stub.return_point.unwrap()));
    assert_eq!(stub.displaced.last().unwrap().original, at + 5);
}

#[test]
fn threads_return_on_their_own() {
    let mut world = World::new();
    let at = {
        let (at, len) = sum(&mut world);
        // Counts what returns from the outermost calls: adds ax to the word at the caller's r15.
        let program = world.assemble(|asm| {
            asm.mov(rax, qword_ptr(rdi + 80)).unwrap();
            asm.mov(rcx, qword_ptr(rdi + 88)).unwrap();
            asm.ret().unwrap();
        });
        probe_return(&mut world, at, len, program);
        at
    };
    world.run();
    let world = SharedWorld(&world);
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            scope.spawn(move || {
                let world = world;
                for n in 0..2000u64 {
                    let n = (n + thread) % 40;
                    assert_eq!(world.0.call(at, n, 0), n * (n + 1) / 2);
                }
            });
        }
    });
}

/// Threads only call the code, and each uses its own slot.
#[derive(Clone, Copy)]
struct SharedWorld<'a>(&'a World);
// SAFETY: see the type.
unsafe impl Sync for SharedWorld<'_> {}
// SAFETY: see the type.
unsafe impl Send for SharedWorld<'_> {}
