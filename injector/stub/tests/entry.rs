//! Entry stubs, executed: what programs see, what the probed code keeps, what is counted.

#[path = "harness/mod.rs"]
mod harness;
#[path = "harness/programs.rs"]
mod programs;

use beeline_abi::code::ContextUse;
use beeline_stub::ThreadKey;
use harness::World;
use programs::{REGISTERS, counter, pattern, recorder, surround};
use std::sync::atomic::Ordering;

/// A function that changes nothing: `nop dword [rax+rax]` (5 bytes), `ret`.
const QUIET: [u8; 6] = [0x0f, 0x1f, 0x44, 0x00, 0x00, 0xc3];
/// Status flags in all states that a program can leave: none, all, each alone. Bit 1 is always set, bit 9 is IF.
const STATUS: [u64; 8] = [0x202, 0xad7, 0x203, 0x206, 0x212, 0x242, 0x282, 0xa02];
const STATUS_MASK: u64 = 0x8d5;

fn words(at: *const u64, count: usize) -> Vec<u64> {
    // SAFETY: the tests pass blocks of the world's data.
    unsafe { std::slice::from_raw_parts(at, count).to_vec() }
}

fn check_registers(small_stacks: bool, key: ThreadKey, is_entry: bool, context: ContextUse) {
    for flags in STATUS {
        let mut world = World::with(small_stacks, key);
        let (record, from, to) = (world.data(32), world.data(REGISTERS), world.data(REGISTERS));
        let program = recorder(&mut world, record);
        let quiet = world.code(&QUIET);
        let run = surround(&mut world, quiet, from, to);
        pattern(from, flags);
        let link = world.link(program, context, false);
        let plan = world.plan(quiet, QUIET.len(), 0, is_entry);
        world.probe(&plan, quiet, &[link]);
        world.run();
        let stack = vec![0u64; 4096];
        world.slot().stack_top = if small_stacks { (stack.as_ptr() as u64 + 4096 * 8) & !15 } else { 0 };
        for round in 1..=3u64 {
            world.call(run, 0, 0);
            let (before, after) = (words(from, REGISTERS), words(to, REGISTERS));
            for i in (0..REGISTERS).filter(|&i| i != 4 && i != 16) {
                assert_eq!(before[i], after[i], "register {i}, flags {flags:#x}");
            }
            assert_eq!(after[4], 0, "stack pointer");
            if !is_entry {
                assert_eq!(after[16] & STATUS_MASK, flags & STATUS_MASK, "flags");
            }
            let seen = words(record, 25);
            assert_eq!(seen[0], round, "hits");
            assert_eq!(world.slot().guard.load(Ordering::Relaxed), 0);
            check_context(&seen[1..22], &before, quiet, context, flags);
            assert_eq!(seen[22], link.runtime, "run.link");
            assert_eq!(seen[23] % 16, 8, "stack alignment at the program's entry");
            if small_stacks {
                let on_it = seen[23] >= stack.as_ptr() as u64 && seen[23] < world.slot().stack_top;
                assert!(on_it, "programs run on the slot's stack");
            }
        }
    }
}

/// `seen` is a `pt_regs`; `before` is in the order of `surround`.
fn check_context(seen: &[u64], before: &[u64], site: u64, used: ContextUse, flags: u64) {
    let order = [15, 14, 13, 12, 5, 3, 11, 10, 9, 8, 0, 1, 2, 6, 7];
    for (word, register) in order.into_iter().enumerate().filter(|(w, _)| used.reads(8 * *w as u32)) {
        assert_eq!(seen[word], before[register], "pt_regs word {word}");
    }
    let expected = [(15, u64::MAX), (16, site), (17, 0x33), (20, 0x2b)];
    for (word, value) in expected.into_iter().filter(|(w, _)| used.reads(8 * *w as u32)) {
        assert_eq!(seen[word], value, "pt_regs word {word}");
    }
    if used.reads(144) {
        assert_eq!(seen[18] & STATUS_MASK, flags & STATUS_MASK, "pt_regs flags");
    }
}

#[test]
fn registers_survive_and_the_context_is_theirs() {
    check_registers(false, ThreadKey::FsSelf, true, ContextUse::ALL);
    check_registers(false, ThreadKey::FsSelf, false, ContextUse::ALL);
}

#[test]
fn a_part_of_the_context() {
    for word in 0..21 {
        let used = ContextUse::NONE.with_access(8 * word, 8);
        check_registers(false, ThreadKey::FsSelf, word % 2 == 0, used);
    }
    check_registers(false, ThreadKey::FsSelf, false, ContextUse::NONE);
}

#[test]
fn small_stacks_and_the_other_key() {
    check_registers(true, ThreadKey::FsSelf, true, ContextUse::ALL);
    check_registers(true, ThreadKey::FsSelf, false, ContextUse::ALL);
    if has_fsgsbase() {
        check_registers(false, ThreadKey::FsBase, false, ContextUse::ALL);
        check_registers(true, ThreadKey::FsBase, true, ContextUse::ALL);
    } else {
        println!("skipped: this machine has no rdfsbase");
    }
}

/// AT_HWCAP2 bit 1: the kernel allows the fsgsbase instructions.
fn has_fsgsbase() -> bool {
    // SAFETY: reads the auxiliary vector.
    unsafe { libc::getauxval(libc::AT_HWCAP2) & 2 != 0 }
}

#[test]
fn the_stack_pointer_of_the_context_is_the_probed_code_s() {
    let mut world = World::new();
    let record = world.data(32);
    let program = recorder(&mut world, record);
    // lea rax, [rsp]; nop; ret
    let code = [0x48, 0x8d, 0x04, 0x24, 0x90, 0xc3];
    let at = world.code(&code);
    let link = world.link(program, ContextUse::ALL, false);
    let plan = world.plan(at, code.len(), 0, true);
    world.probe(&plan, at, &[link]);
    world.run();
    let sp = world.call(at, 0, 0);
    assert_eq!(words(record, 25)[20], sp);
}

#[test]
fn the_red_zone_survives() {
    let mut world = World::new();
    let record = world.data(32);
    let program = recorder(&mut world, record);
    // mov [rsp-8],rdi; mov [rsp-128],rsi; site: nop5; mov rax,[rsp-8]; sub rax,[rsp-128]; ret
    let code = [
        0x48, 0x89, 0x7c, 0x24, 0xf8, 0x48, 0x89, 0x74, 0x24, 0x80, 0x0f, 0x1f, 0x44, 0x00, 0x00, 0x48, 0x8b,
        0x44, 0x24, 0xf8, 0x48, 0x2b, 0x44, 0x24, 0x80, 0xc3,
    ];
    let at = world.code(&code);
    let link = world.link(program, ContextUse::ALL, false);
    let plan = world.plan(at, code.len(), 10, false);
    world.probe(&plan, at + 10, &[link]);
    world.run();
    assert_eq!(world.call(at, 77, 7), 70);
    assert_eq!(words(record, 1)[0], 1);
    assert_eq!(words(record, 25)[17], at + 10, "ip is the site");
}

#[test]
fn a_disabled_link_is_skipped() {
    let mut world = World::new();
    let (first, second) = (world.data(1), world.data(1));
    let (a, b) = (counter(&mut world, first), counter(&mut world, second));
    let quiet = world.code(&QUIET);
    let links = [world.link(a, ContextUse::NONE, false), world.link(b, ContextUse::NONE, false)];
    let plan = world.plan(quiet, QUIET.len(), 0, true);
    world.probe(&plan, quiet, &links);
    world.run();
    world.call(quiet, 0, 0);
    assert_eq!((words(first, 1)[0], words(second, 1)[0]), (1, 1));
    world.shared(&links[0]).enable(false);
    world.call(quiet, 0, 0);
    assert_eq!((words(first, 1)[0], words(second, 1)[0]), (1, 2));
    world.shared(&links[1]).enable(false);
    world.call(quiet, 0, 0);
    assert_eq!((words(first, 1)[0], words(second, 1)[0]), (1, 2));
    assert_eq!(world.shared(&links[0]).missed() + world.shared(&links[1]).missed(), 0);
}

#[test]
fn one_disabled_link_touches_nothing() {
    let mut world = World::new();
    let count = world.data(1);
    let program = counter(&mut world, count);
    let quiet = world.code(&QUIET);
    let link = world.link(program, ContextUse::NONE, false);
    let plan = world.plan(quiet, QUIET.len(), 0, false);
    world.probe(&plan, quiet, &[link]);
    world.run();
    world.shared(&link).enable(false);
    world.call(quiet, 0, 0);
    assert_eq!(words(count, 1)[0], 0);
    world.shared(&link).enable(true);
    world.call(quiet, 0, 0);
    assert_eq!(words(count, 1)[0], 1);
}

#[test]
fn a_nested_hit_is_missed() {
    let mut world = World::new();
    let count = world.data(1);
    let quiet = world.code(&QUIET);
    let program = programs::caller(&mut world, count, quiet);
    let plain = world.data(1);
    let other = counter(&mut world, plain);
    let links = [world.link(program, ContextUse::NONE, false), world.link(other, ContextUse::NONE, false)];
    let plan = world.plan(quiet, QUIET.len(), 0, true);
    world.probe(&plan, quiet, &links);
    world.run();
    for round in 1..=3 {
        world.call(quiet, 0, 0);
        assert_eq!((words(count, 1)[0], words(plain, 1)[0]), (round, round));
        assert_eq!(world.shared(&links[0]).missed(), round);
        assert_eq!(world.shared(&links[1]).missed(), round);
    }
    world.shared(&links[1]).enable(false);
    world.call(quiet, 0, 0);
    assert_eq!(world.shared(&links[0]).missed(), 4);
    assert_eq!(world.shared(&links[1]).missed(), 3, "a link that is off misses nothing");
}

/// In the middle of a function that copies downwards, helpers and the agent find the direction that the ABI promises them.
#[test]
fn the_direction_flag() {
    const DIRECTION: u64 = 1 << 10;
    for (small_stacks, calls) in [(false, true), (true, true), (false, false)] {
        let mut world = World::with(small_stacks, ThreadKey::FsSelf);
        let (seen, from, to) = (world.data(1), world.data(REGISTERS), world.data(REGISTERS));
        let program = programs::flags(&mut world, seen);
        let quiet = world.code(&QUIET);
        let run = surround(&mut world, quiet, from, to);
        let mut link = world.link(program, ContextUse::NONE, false);
        link.uses.calls = calls;
        let plan = world.plan(quiet, QUIET.len(), 0, false);
        world.probe(&plan, quiet, &[link]);
        world.run();
        let stack = vec![0u64; 4096];
        world.slot().stack_top = if small_stacks { (stack.as_ptr() as u64 + 4096 * 8) & !15 } else { 0 };
        for flags in STATUS.into_iter().flat_map(|flags| [flags, flags | DIRECTION]) {
            pattern(from, flags);
            for nested in [false, true] {
                world.slot().guard.store(if nested { u64::MAX } else { 0 }, Ordering::Relaxed);
                world.call(run, 0, 0);
                let after = words(to, REGISTERS)[16];
                assert_eq!(
                    after & (STATUS_MASK | DIRECTION),
                    flags & (STATUS_MASK | DIRECTION),
                    "{flags:#x}"
                );
                assert!(!calls || words(seen, 1)[0] & DIRECTION == 0, "a program that calls helpers");
            }
            assert_eq!(world.slot().guard.swap(0, Ordering::Relaxed), u64::MAX);
        }
        assert_eq!(world.shared(&link).missed(), 2 * STATUS.len() as u64);
    }
}

#[test]
fn a_stale_guard_is_seen_through() {
    let mut world = World::new();
    let count = world.data(1);
    let program = counter(&mut world, count);
    let quiet = world.code(&QUIET);
    let link = world.link(program, ContextUse::NONE, false);
    let plan = world.plan(quiet, QUIET.len(), 0, true);
    world.probe(&plan, quiet, &[link]);
    world.run();
    world.slot().guard.store(0x1000, Ordering::Relaxed);
    world.call(quiet, 0, 0);
    assert_eq!(words(count, 1)[0], 1);
    assert_eq!(world.slot().guard.load(Ordering::Relaxed), 0);
    world.slot().guard.store(u64::MAX, Ordering::Relaxed);
    world.call(quiet, 0, 0);
    assert_eq!(words(count, 1)[0], 1);
    assert_eq!(world.shared(&link).missed(), 1);
    assert_eq!(world.slot().guard.load(Ordering::Relaxed), u64::MAX, "not ours to clear");
    world.slot().guard.store(0, Ordering::Relaxed);
}

#[test]
fn a_small_stack_target_without_a_stack_misses() {
    let mut world = World::with(true, ThreadKey::FsSelf);
    let count = world.data(1);
    let program = counter(&mut world, count);
    let quiet = world.code(&QUIET);
    let link = world.link(program, ContextUse::NONE, false);
    let plan = world.plan(quiet, QUIET.len(), 0, true);
    world.probe(&plan, quiet, &[link]);
    world.run();
    world.call(quiet, 0, 0);
    assert_eq!(words(count, 1)[0], 0);
    assert_eq!(world.shared(&link).missed(), 1);
    assert_eq!(world.slot().guard.load(Ordering::Relaxed), 0);
}

#[test]
fn a_program_that_needs_a_cpu_claims_and_releases_one() {
    let mut world = World::new();
    let (count, after) = (world.data(1), world.data(1));
    let (program, other) = (counter(&mut world, count), counter(&mut world, after));
    let quiet = world.code(&QUIET);
    let mut link = world.link(program, ContextUse::NONE, false);
    link.needs.cpu = true;
    let second = world.link(other, ContextUse::NONE, false);
    let plan = world.plan(quiet, QUIET.len(), 0, true);
    world.probe(&plan, quiet, &[link, second]);
    world.run();
    world.call(quiet, 0, 0);
    assert_eq!(words(count, 1)[0], 1);
    assert_eq!(harness::CPU_CLAIMS.load(Ordering::Relaxed), 1);
    assert_eq!(harness::CPU_RELEASES.load(Ordering::Relaxed), 1);
    harness::CPU_REFUSED.store(1, Ordering::Relaxed);
    world.call(quiet, 0, 0);
    harness::CPU_REFUSED.store(0, Ordering::Relaxed);
    assert_eq!(words(count, 1)[0], 1);
    assert_eq!(words(after, 1)[0], 2, "the next link runs all the same");
    assert_eq!(world.shared(&link).missed(), 1);
    assert_eq!(harness::CPU_RELEASES.load(Ordering::Relaxed), 1);
}

#[test]
fn threads_have_slots_of_their_own() {
    let mut world = World::new();
    let quiet = world.code(&QUIET);
    // Counts in the word that the first argument points to: each thread has its own.
    let program = world.assemble(|asm| {
        use iced_x86::code_asm::{qword_ptr, rax, rdi};
        asm.mov(rax, qword_ptr(rdi + 112)).unwrap();
        asm.inc(qword_ptr(rax)).unwrap();
        asm.ret().unwrap();
    });
    let link = world.link(program, ContextUse::NONE.with_access(112, 8), false);
    let plan = world.plan(quiet, QUIET.len(), 0, true);
    world.probe(&plan, quiet, &[link]);
    world.run();
    let world = SharedWorld(&world);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let mut count = 0u64;
                for _ in 0..10_000 {
                    world.0.call(quiet, std::ptr::from_mut(&mut count) as u64, 0);
                }
                assert_eq!(count, 10_000);
            });
        }
    });
    assert_eq!(world.0.shared(&link).missed(), 0);
}

/// Threads only call the code, and each uses its own slot.
struct SharedWorld<'a>(&'a World);
// SAFETY: see the type.
unsafe impl Sync for SharedWorld<'_> {}
