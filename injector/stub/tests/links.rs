//! What links can ask of a stub, executed: functions that are skipped, one process alone, hits that are counted.

#[path = "harness/mod.rs"]
mod harness;
#[path = "harness/programs.rs"]
mod programs;

use beeline_abi::code::ContextUse;
use beeline_abi::link::LinkRuntime;
use beeline_abi::regs::PtRegs;
use beeline_abi::run::RunContext;
use beeline_abi::thread::ReturnSlot;
use beeline_stub::{LinkCode, OnlyIn, SiteCode, StubError, ThreadKey};
use harness::World;
use iced_x86::code_asm::*;
use programs::{counter, recorder};
use std::mem::offset_of;

/// Asks for the function to be skipped, with 100 times its first argument, when that is odd.
fn skipper(world: &mut World) -> u64 {
    world.assemble(|asm| {
        let mut even = asm.create_label();
        asm.mov(rax, qword_ptr(rdi + offset_of!(PtRegs, di) as i32)).unwrap();
        asm.test(rax, 1).unwrap();
        asm.je(even).unwrap();
        asm.imul_3(rax, rax, 100).unwrap();
        asm.mov(qword_ptr(rsi + offset_of!(RunContext, override_value) as i32), rax).unwrap();
        asm.or(dword_ptr(rsi + offset_of!(RunContext, flags) as i32), RunContext::OVERRIDE).unwrap();
        asm.set_label(&mut even).unwrap();
        asm.xor(eax, eax).unwrap();
        asm.ret().unwrap();
    })
}

/// `f(a, b) = a + b`; counts its calls in `data`. Its address and length.
fn adder(world: &mut World, data: *mut u64) -> (u64, usize) {
    let at = world.assemble(|asm| {
        asm.push(rbx).unwrap();
        asm.mov(rbx, rdi).unwrap();
        asm.nop().unwrap();
        asm.mov(rax, data as u64).unwrap();
        asm.inc(qword_ptr(rax)).unwrap();
        asm.lea(rax, qword_ptr(rbx + rsi)).unwrap();
        asm.pop(rbx).unwrap();
        asm.ret().unwrap();
    });
    (at, (world.next_code() - at) as usize)
}

fn word(at: *const u64) -> u64 {
    // SAFETY: a word of the world's data.
    unsafe { at.read_volatile() }
}

/// Calls with 0, 1, 2 ... from this thread; the sum of what came back.
fn sum_of_calls(world: &World, at: u64, count: u64) -> u64 {
    (0..count).map(|a| world.call(at, a, 7)).sum()
}

const CALLS: u64 = 100;

/// Every odd one is skipped.
fn expected() -> u64 {
    (0..CALLS).map(|a| if a % 2 == 1 { a * 100 } else { a + 7 }).sum()
}

fn warm_stack(world: &mut World) -> Vec<u64> {
    let stack = vec![0u64; 4096];
    world.slot().stack_top = (stack.as_ptr() as u64 + 4096 * 8) & !15;
    stack
}

#[test]
fn a_function_is_skipped() {
    for small_stacks in [false, true] {
        let mut world = World::with(small_stacks, ThreadKey::FsSelf);
        let calls = world.data(1);
        let (at, len) = adder(&mut world, calls);
        let program = skipper(&mut world);
        let link = LinkCode { overrides: true, ..world.link(program, ContextUse::ALL, false) };
        let plan = world.plan(at, len, 0, true);
        world.probe(&plan, at, &[link]);
        world.run();
        let _stack = warm_stack(&mut world);
        assert_eq!(sum_of_calls(&world, at, CALLS), expected());
        assert_eq!(word(calls), CALLS / 2);
        world.shared(&link).enable(false);
        assert_eq!(world.call(at, 3, 4), 7);
        // What an earlier program left behind does not count.
        world.shared(&link).enable(true);
        world.slot().run.flags = RunContext::OVERRIDE;
        assert_eq!(world.call(at, 2, 4), 6);
    }
}

#[test]
fn return_probes_see_the_value_of_a_skipped_function() {
    for small_stacks in [false, true] {
        let mut world = World::with(small_stacks, ThreadKey::FsSelf);
        let (calls, record, others) = (world.data(1), world.data(32), world.data(1));
        let (at, len) = adder(&mut world, calls);
        let (program, recorder) = (skipper(&mut world), recorder(&mut world, record));
        let other = counter(&mut world, others);
        let skip = LinkCode { overrides: true, ..world.link(program, ContextUse::ALL, false) };
        let returns = world.link(recorder, ContextUse::ALL, true);
        let entry = world.link(other, ContextUse::NONE, false);
        let plan = world.plan(at, len, 0, true);
        world.probe(&plan, at, &[skip, returns, entry]);
        world.run();
        let _stack = warm_stack(&mut world);
        harness::warm_returns(&mut world);
        for a in 0..CALLS {
            let result = world.call(at, a, 7);
            assert_eq!(result, if a % 2 == 1 { a * 100 } else { a + 7 });
            let seen = record.wrapping_add(1 + offset_of!(PtRegs, ax) / 8);
            assert_eq!((word(record), word(seen)), (a + 1, result), "the return probe sees the result");
        }
        assert_eq!((word(calls), word(others)), (CALLS / 2, CALLS), "every program of the entry ran");
        let slot = world.slot();
        assert_eq!((slot.returns_top - slot.returns_base) / size_of::<ReturnSlot>() as u64, 0);
        // With the return probe off a function is skipped as well.
        world.shared(&returns).enable(false);
        assert_eq!(sum_of_calls(&world, at, CALLS), expected());
        assert_eq!(word(record), CALLS);
    }
}

#[test]
fn nothing_is_skipped_in_the_middle_of_a_function() {
    let mut world = World::new();
    let calls = world.data(1);
    let (at, len) = adder(&mut world, calls);
    let program = skipper(&mut world);
    let link = LinkCode { overrides: true, ..world.link(program, ContextUse::ALL, false) };
    let plan = world.plan(at, len, 1, false);
    let site = SiteCode { plan: &plan, address: at + 1, site_runtime: 0, links: &[link] };
    let error = world.arena.add_stub(&world.environment, &site).unwrap_err();
    assert!(error.to_string().contains("no function entry"), "{error}");
    let _: StubError = StubError::OverrideNotAtEntry { at };
}

#[test]
fn one_process_alone() {
    let mut world = World::new();
    let (calls, hits, others) = (world.data(1), world.data(1), world.data(1));
    let attached = world.data(1);
    let (at, len) = adder(&mut world, calls);
    let (program, other) = (counter(&mut world, hits), counter(&mut world, others));
    let only_in = Some(OnlyIn { pid: 0x7fff_fff0, word: attached as u64 });
    let here = LinkCode { only_in, ..world.link(program, ContextUse::NONE, false) };
    let returns = LinkCode { only_in, ..world.link(program, ContextUse::NONE, true) };
    let everywhere = world.link(other, ContextUse::NONE, false);
    let plan = world.plan(at, len, 0, true);
    world.probe(&plan, at, &[here, returns, everywhere]);
    world.run();
    harness::warm_returns(&mut world);
    for (pid, expected) in [(0x7fff_fff0u64, 2), (0, 2), (5, 2), (0x7fff_fff0, 4)] {
        // SAFETY: a word of the world's data.
        unsafe { attached.write_volatile(pid) };
        assert_eq!(world.call(at, 1, 2), 3);
        assert_eq!(word(hits), expected, "in process {pid:#x}");
    }
    assert_eq!(word(others), 4);
    // A nested hit is missed only by the links that would have run.
    world.slot().guard.store(u64::MAX, std::sync::atomic::Ordering::Relaxed);
    for pid in [0, 0x7fff_fff0u64] {
        // SAFETY: as above.
        unsafe { attached.write_volatile(pid) };
        world.call(at, 1, 2);
    }
    assert_eq!((world.shared(&here).missed(), world.shared(&everywhere).missed()), (1, 2));
}

#[test]
fn hits_are_counted_here_and_for_all() {
    let mut world = World::new();
    let (calls, hits) = (world.data(1), world.data(1));
    let (at, len) = adder(&mut world, calls);
    let program = counter(&mut world, hits);
    let counts = |link: LinkCode| LinkCode { counts_hits: true, ..link };
    let entry = counts(world.link(program, ContextUse::NONE, false));
    let returns = counts(world.link(program, ContextUse::NONE, true));
    let plan = world.plan(at, len, 0, true);
    world.probe(&plan, at, &[entry, returns]);
    world.run();
    harness::warm_returns(&mut world);
    for enabled in [true, false] {
        world.shared(&entry).enable(enabled);
        sum_of_calls(&world, at, CALLS);
    }
    for (link, expected) in [(entry, CALLS), (returns, 2 * CALLS)] {
        let test = world.shared(&link);
        assert_eq!(test.shared.hits.load(std::sync::atomic::Ordering::Relaxed), expected);
        let own = (&raw const test.runtime).wrapping_byte_add(offset_of!(LinkRuntime, hits)).cast::<u64>();
        assert_eq!(word(own), expected);
    }
    assert_eq!(word(hits), 3 * CALLS);
}
