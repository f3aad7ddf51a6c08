//! Stubs at system calls, executed: what programs see, what the caller keeps, what becomes of the call.

#[path = "harness/mod.rs"]
mod harness;
#[path = "harness/programs.rs"]
mod programs;

use beeline_abi::code::ContextUse;
use beeline_abi::regs::PtRegs;
use beeline_abi::system_call::{CodeAt, Hooks, PendingCall, SystemCalls};
use beeline_abi::thread::ThreadSlot;
use beeline_stub::{
    CallContext, CallLink, LinkCode, ProgramUse, Stub, SystemCallCode, SystemCallTarget, ThreadKey, hook,
};
use harness::{CODE_VADDR, World};
use iced_x86::code_asm::{AsmRegister64, CodeAssembler, dl, eax, qword_ptr, r11, rax, rcx, rdx};
use programs::{REGISTERS, counter, overrider, pattern, record_words, surround};
use std::sync::atomic::{AtomicU64, Ordering};

const GETPID: u32 = 39;
const STATUS_MASK: u64 = 0x8d5;

fn words(at: *const u64, count: usize) -> Vec<u64> {
    // SAFETY: the tests pass blocks of the world's data.
    unsafe { std::slice::from_raw_parts(at, count).to_vec() }
}

/// A function that makes the call GETPID.
struct Function {
    address: u64,
    len: usize,
    form: Form,
    /// What the stubs look at; the agent's functions.
    target: SystemCallTarget,
}

/// What a call is like.
#[derive(Clone, Copy, Debug)]
struct Form {
    /// Nobody behind the call looks at the flags.
    flags_dead: bool,
    /// The call is displaced.
    is_over: bool,
    /// The number is a constant.
    is_known: bool,
}

impl Form {
    const USUAL: Form = Form { flags_dead: true, is_over: false, is_known: true };

    fn all() -> impl Iterator<Item = Form> {
        (0..8).map(|bits| Form { flags_dead: bits & 1 != 0, is_over: bits & 2 != 0, is_known: bits & 4 != 0 })
    }
}

/// Offset of the call: behind `mov $39, %eax`.
const CALL: u64 = 5;

impl Function {
    fn new(world: &mut World, form: Form) -> Function {
        let mut asm = CodeAssembler::new(64).unwrap();
        asm.mov(eax, GETPID).unwrap();
        asm.syscall().unwrap();
        if form.flags_dead {
            asm.cmp(rax, -4096).unwrap();
        }
        // Long enough for a jump, without a change of flags.
        asm.lea(rax, qword_ptr(rax)).unwrap();
        asm.lea(rax, qword_ptr(rax)).unwrap();
        if !form.flags_dead {
            asm.setc(dl).unwrap();
        }
        asm.ret().unwrap();
        let bytes = asm.assemble(CODE_VADDR).unwrap();
        // SAFETY: a table of zeroes is one in which nobody wants anything.
        let calls: Box<SystemCalls> = unsafe { Box::new(std::mem::zeroed()) };
        let calls = std::ptr::from_mut(Box::leak(calls)) as u64;
        let target = SystemCallTarget { calls, enter: 1, exit: searched as *const () as u64, missed: 1 };
        Function { address: world.code(&bytes), len: bytes.len(), form, target }
    }

    /// Puts jumps to stubs there that run these programs before and behind the call.
    fn trace(&self, world: &mut World, links: [&[CallLink]; 2]) {
        let (environment, target) = (world.environment, self.target);
        let mut hooked = [None; 2];
        for (index, links) in links.iter().enumerate().filter(|(_, links)| !links.is_empty()) {
            let made = world.arena.add_chain(&environment, &target, links, index == 1, false);
            hooked[index] = Some(made.unwrap());
        }
        if !self.form.is_known {
            self.enter_in_table(hooked);
            hooked = [None, Some(world.arena.exit_dispatch(&environment, &target).unwrap())];
        }
        let number = Some(GETPID).filter(|_| self.form.is_known);
        let windows = if self.form.is_over { &[CALL][..] } else { &[0, CALL + 2] };
        for &offset in windows {
            let plan = world.plan(self.address, self.len, offset, false);
            let code = SystemCallCode {
                plan: &plan,
                address: self.address + offset,
                call: self.address + CALL,
                number,
                flags_dead: self.form.flags_dead,
                hooked,
            };
            let near = if self.form.is_known { links } else { [&[][..]; 2] };
            let made = world.arena.add_system_call_with(&environment, &target, &code, near).unwrap();
            assert_eq!(made.behind != 0, self.form.is_over);
            let is_short = near.concat().iter().all(|link| link.code.uses == short());
            check_trailer(&made.stub, number, hooked, is_short);
            world.patch(&plan, self.address + offset, &made.stub);
        }
    }

    /// The code for the number before and behind the call.
    fn enter_in_table(&self, [enter, exit]: [Option<u64>; 2]) {
        // SAFETY: made by `new`, and no stub runs.
        let calls = unsafe { &mut *(self.target.calls as *mut SystemCalls) };
        let number = GETPID as usize;
        calls.code[number] = CodeAt { before: enter.unwrap_or(0), behind: exit.unwrap_or(0) };
        calls.wanted[number] =
            (u8::from(enter.is_some()) * SystemCalls::ENTER) | (u8::from(exit.is_some()) * SystemCalls::EXIT);
    }
}

/// Ends for which the agent was asked.
static SEARCHED: AtomicU64 = AtomicU64::new(0);

/// The instruction pointer that the agent saw last behind a call.
static BEHIND: AtomicU64 = AtomicU64::new(0);

/// The agent's part behind a call: counts those whose number has to be searched for.
extern "sysv64" fn searched(registers: *mut PtRegs, _: *mut ThreadSlot, _: *const SystemCalls, number: u64) {
    // SAFETY: the gate's frame.
    BEHIND.store(unsafe { (*registers).ip }, Ordering::Relaxed);
    SEARCHED.fetch_add(u64::from(number == PendingCall::UNKNOWN), Ordering::Relaxed);
}

/// The last bytes of a stub say where its hooks are. They call `hooked`, or what stands in the stub for programs that are short.
fn check_trailer(stub: &Stub, number: Option<u32>, hooked: [Option<u64>; 2], is_short: bool) {
    let (bytes, at) = (&stub.bytes[..], stub.address);
    let trailer = bytes.last_chunk::<{ Hooks::LEN }>().unwrap();
    let hooks = Hooks::from_bytes(*trailer);
    assert_eq!(hooks.number, number.unwrap_or(Hooks::NO_NUMBER));
    let places = [hooks.enter, hooks.exit];
    assert!(number.is_none() || places.iter().any(|&place| place != Hooks::NONE));
    for (place, target) in places.into_iter().zip(hooked).filter(|(place, _)| *place != Hooks::NONE) {
        let expected = hook(at + u64::from(place), target).unwrap();
        let found = &bytes[usize::from(place)..][..expected.len()];
        let within = |target| hook(at + u64::from(place), Some(target)).is_some_and(|bytes| bytes == found);
        let is_within = number.is_some() && (at..at + bytes.len() as u64).any(within);
        assert!(is_within || found == expected, "{found:x?}");
        assert!(is_within || !is_short || number.is_none() || target.is_none(), "{found:x?}");
    }
}

fn record(code: LinkCode) -> CallLink {
    CallLink { code, context: CallContext::Record, asks_registers: false }
}

fn enter_words() -> ContextUse {
    ContextUse::NONE.with_access(8, 56)
}

fn exit_words() -> ContextUse {
    ContextUse::NONE.with_access(8, 16)
}

fn check_registers(small_stacks: bool, key: ThreadKey, form: Form) {
    let flags_dead = form.flags_dead;
    for flags in [0x202u64, 0xad7, 0x203, 0x242, 0xa02] {
        let mut world = World::with(small_stacks, key);
        let (entered, left) = (world.data(16), world.data(16));
        let (from, to) = (world.data(REGISTERS), world.data(REGISTERS));
        let programs = [record_words(&mut world, entered, 8), record_words(&mut world, left, 3)];
        let function = Function::new(&mut world, form);
        let run = surround(&mut world, function.address, from, to);
        pattern(from, flags);
        let enter = record(world.link(programs[0], enter_words(), false));
        let exit = record(world.link(programs[1], exit_words(), true));
        function.trace(&mut world, [&[enter], &[exit]]);
        world.run();
        let stack = vec![0u64; 4096];
        world.slot().stack_top = if small_stacks { (stack.as_ptr() as u64 + 4096 * 8) & !15 } else { 0 };
        for round in 1..=3u64 {
            world.call(run, 0, 0);
            let (before, after) = (words(from, REGISTERS), words(to, REGISTERS));
            // rax is the result; a call changes rcx and r11; rsp and flags stand apart.
            let changed = if flags_dead { &[0, 1, 4, 11, 16][..] } else { &[0, 1, 2, 4, 11, 16][..] };
            for i in (0..REGISTERS).filter(|i| !changed.contains(i)) {
                assert_eq!(before[i], after[i], "register {i}, flags {flags:#x}");
            }
            let pid = u64::from(std::process::id());
            assert_eq!((after[0], after[4]), (pid, 0), "result, stack pointer");
            if !flags_dead {
                assert_eq!(after[16] & STATUS_MASK, flags & STATUS_MASK, "flags");
                assert_eq!(after[2] & 0xff, flags & 1, "the carry flag behind the call");
            }
            let (entered, left) = (words(entered, 9), words(left, 4));
            assert_eq!((entered[0], left[0]), (round, round));
            // rdi rsi rdx r10 r8 r9
            let arguments = [7, 6, 2, 10, 8, 9].map(|register| before[register]);
            assert_eq!(entered[2..], [&[u64::from(GETPID)], &arguments[..]].concat());
            assert_eq!(left[2..], [u64::from(GETPID), pid]);
            assert_eq!(world.slot().guard.load(Ordering::Relaxed), 0);
            assert_eq!(notes(&mut world), (0, Vec::new()));
        }
    }
}

/// How many calls the slot has noted that have not returned, and the stack pointers of notes.
fn notes(world: &mut World) -> (u64, Vec<u64>) {
    let slot = world.slot();
    let noted = slot.pending.iter().map(|note| note.sp).filter(|&sp| sp != 0);
    (slot.pending_top, noted.collect())
}

/// A program that counts by a locked instruction, and changes a register besides rax.
fn atomic_counter(data: u64, changed: AsmRegister64) -> Vec<u8> {
    let mut asm = CodeAssembler::new(64).unwrap();
    asm.mov(rax, data).unwrap();
    asm.lock().inc(qword_ptr(rax)).unwrap();
    asm.mov(changed, -1i64).unwrap();
    asm.ret().unwrap();
    asm.assemble(0).unwrap()
}

/// What one does that changes rax alone.
fn short() -> ProgramUse {
    ProgramUse::of(&atomic_counter(0, rax))
}

fn counting(world: &mut World, data: *mut u64, is_exit: bool, changed: AsmRegister64) -> CallLink {
    let code = atomic_counter(data as u64, changed);
    let entry = world.arena.add_program(&code, &[], |_| None).unwrap();
    let uses = ProgramUse::of(&code);
    record(LinkCode { uses, ..world.link(entry, ContextUse::NONE, is_exit) })
}

/// Programs that need no slot run without a frame where they change free registers alone, and stand in the stub.
#[test]
fn programs_without_a_frame() {
    for (form, changed) in Form::all().flat_map(|form| [rax, rcx, rdx, r11].map(|changed| (form, changed))) {
        let mut world = World::new();
        let (entered, left) = (world.data(1), world.data(1));
        let (from, to) = (world.data(REGISTERS), world.data(REGISTERS));
        let function = Function::new(&mut world, form);
        let run = surround(&mut world, function.address, from, to);
        let enter = counting(&mut world, entered, false, changed);
        let exit = counting(&mut world, left, true, changed);
        function.trace(&mut world, [&[enter], &[exit]]);
        world.run();
        pattern(from, 0xad7);
        let call = |world: &World| {
            world.call(run, 0, 0);
            let (before, after) = (words(from, REGISTERS), words(to, REGISTERS));
            // rax is the result; a call changes rcx and r11; rsp and flags stand apart.
            let changed = if form.flags_dead { &[0, 1, 4, 11, 16][..] } else { &[0, 1, 2, 4, 11, 16][..] };
            for i in (0..REGISTERS).filter(|i| !changed.contains(i)) {
                assert_eq!(before[i], after[i], "{form:?}: register {i}");
            }
            let behind = function.address + CALL + 2;
            assert_eq!(
                (after[0], after[1], after[4]),
                (u64::from(std::process::id()), behind, 0),
                "{form:?}"
            );
            if !form.flags_dead {
                assert_eq!(after[16] & STATUS_MASK, 0xad7 & STATUS_MASK, "{form:?}");
                assert_eq!(after[11] & STATUS_MASK, 0xad7 & STATUS_MASK, "{form:?}: what the kernel leaves");
            }
        };
        call(&world);
        assert_eq!((words(entered, 1)[0], words(left, 1)[0]), (1, 1), "{form:?}");
        world.shared(&enter.code).enable(false);
        call(&world);
        assert_eq!((words(entered, 1)[0], words(left, 1)[0]), (1, 2), "{form:?}");
        assert_eq!(world.slot().guard.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn calls_that_nobody_wants_leave_no_trace() {
    for form in Form::all() {
        let mut world = World::new();
        let (from, to) = (world.data(REGISTERS), world.data(REGISTERS));
        let function = Function::new(&mut world, form);
        let run = surround(&mut world, function.address, from, to);
        function.trace(&mut world, [&[], &[]]);
        world.run();
        for flags in [0x202, 0xad7] {
            pattern(from, flags);
            world.call(run, 0, 0);
            let (before, after) = (words(from, REGISTERS), words(to, REGISTERS));
            let changed = if form.flags_dead { &[0, 1, 4, 11, 16][..] } else { &[0, 1, 2, 4, 11, 16][..] };
            for i in (0..REGISTERS).filter(|i| !changed.contains(i)) {
                assert_eq!(before[i], after[i], "{form:?}: register {i}");
            }
            assert_eq!((after[0], after[4]), (u64::from(std::process::id()), 0));
            if !form.flags_dead {
                assert_eq!(after[16] & STATUS_MASK, flags & STATUS_MASK, "{form:?}");
            }
            assert_eq!(notes(&mut world), (0, Vec::new()));
        }
    }
}

#[test]
fn notes_of_calls_that_were_left() {
    for flags_dead in [true, false] {
        let mut world = World::new();
        let left = world.data(16);
        let saw = record_words(&mut world, left, 3);
        let function = Function::new(&mut world, Form { is_known: false, flags_dead, ..Form::USUAL });
        let exit = record(world.link(saw, exit_words(), true));
        function.trace(&mut world, [&[], &[exit]]);
        world.run();
        let pid = u64::from(std::process::id());
        let call = |world: &World| assert_eq!(world.call(function.address, 0, 0), pid);
        let searches = || SEARCHED.swap(0, Ordering::Relaxed);
        // That of a handler that did not return, and of calls before it, is below: the one on top is found at once.
        world.slot().pending_top = 13;
        world.slot().pending[12 % 8] = PendingCall { sp: 0x1000, number: 1 };
        call(&world);
        let seen = words(left, 4);
        assert_eq!((seen[0], &seen[2..]), (1, &[u64::from(GETPID), pid][..]));
        assert_eq!((notes(&mut world), searches()), ((13, vec![0x1000]), 0));
        // Nobody wants the call any more that has a note on top: the agent is asked, unless a flag could tell that.
        function.enter_in_table([None, None]);
        call(&world);
        assert_eq!((words(left, 1)[0], searches()), (1, u64::from(!flags_dead)));
        if !flags_dead {
            assert_eq!(BEHIND.load(Ordering::Relaxed), function.address + CALL + 2);
        }
        assert_eq!(notes(&mut world), (13, vec![0x1000]));
    }
}

/// The flag that tells of a call whether its end is wanted has any value where the beginning was not seen.
#[test]
fn ends_of_calls_that_began_before() {
    let mut world = World::new();
    let left = world.data(16);
    let saw = record_words(&mut world, left, 3);
    let function = Function::new(&mut world, Form { is_known: false, ..Form::USUAL });
    let run = |asm: &mut CodeAssembler, carry: bool| {
        let behind = function.address + CALL + 2;
        if carry {
            asm.stc().unwrap()
        } else {
            asm.clc().unwrap()
        }
        asm.mov(rax, 77u64).unwrap();
        asm.mov(rcx, behind).unwrap();
        asm.jmp(rcx).unwrap();
    };
    let ends = [true, false].map(|carry| world.assemble(|asm| run(asm, carry)));
    let exit = record(world.link(saw, exit_words(), true));
    function.trace(&mut world, [&[], &[exit]]);
    world.run();
    for end in ends {
        assert_eq!(world.call(end, 0, 0), 77);
        assert_eq!((words(left, 1)[0], notes(&mut world)), (0, (0, Vec::new())));
    }
}

#[test]
fn registers_survive_and_the_records_are_the_kernels() {
    for form in Form::all() {
        check_registers(false, ThreadKey::FsSelf, form);
        check_registers(true, ThreadKey::FsBase, form);
    }
}

#[test]
fn a_call_is_skipped_or_gets_another_result() {
    for form in Form::all() {
        for (enter_overrides, exit_overrides) in [(true, false), (false, true), (true, true)] {
            let mut world = World::new();
            let left = world.data(16);
            let saw = record_words(&mut world, left, 3);
            let instead = [overrider(&mut world, 1111), overrider(&mut world, 2222)];
            let function = Function::new(&mut world, form);
            let mut link = |entry, words, is_return, overrides| {
                let mut code = world.link(entry, words, is_return);
                code.overrides = overrides;
                record(code)
            };
            let mut enters = Vec::new();
            let mut exits = vec![link(saw, exit_words(), true, false)];
            if enter_overrides {
                enters.push(link(instead[0], ContextUse::NONE, false, true));
            }
            if exit_overrides {
                exits.push(link(instead[1], ContextUse::NONE, true, true));
            }
            function.trace(&mut world, [&enters, &exits]);
            world.run();
            let pid = u64::from(std::process::id());
            let made = if enter_overrides { 1111 } else { pid };
            let expected = if exit_overrides { 2222 } else { made };
            assert_eq!(world.call(function.address, 0, 0), expected);
            assert_eq!(
                words(left, 4)[2..],
                [u64::from(GETPID), made],
                "the end sees what the beginning made"
            );
            assert_eq!(world.slot().guard.load(Ordering::Relaxed), 0);
        }
    }
}

#[test]
fn what_is_off_does_not_run_and_what_is_nested_is_missed() {
    let mut world = World::new();
    let (first, second) = (world.data(8), world.data(8));
    let programs = [counter(&mut world, first), counter(&mut world, second)];
    let function = Function::new(&mut world, Form::USUAL);
    let one = record(world.link(programs[0], ContextUse::NONE, false));
    let other = record(world.link(programs[1], ContextUse::NONE, false));
    function.trace(&mut world, [&[one, other], &[]]);
    world.run();
    let pid = u64::from(std::process::id());
    let call = |world: &World| assert_eq!(world.call(function.address, 0, 0), pid);
    let counts = || (words(first, 1)[0], words(second, 1)[0]);
    call(&world);
    assert_eq!(counts(), (1, 1));
    world.shared(&one.code).enable(false);
    call(&world);
    assert_eq!(counts(), (1, 2));
    // As if a program ran below.
    world.slot().guard.store(u64::MAX, Ordering::Relaxed);
    call(&world);
    assert_eq!(counts(), (1, 2));
    let missed = [one, other].map(|link| world.shared(&link.code).missed());
    assert_eq!(missed, [0, 1], "those that are on");
    assert_eq!(world.slot().guard.load(Ordering::Relaxed), u64::MAX, "it is the other's");
}

#[test]
fn raw_arguments_are_number_and_result() {
    let mut world = World::new();
    let (entered, left) = (world.data(8), world.data(8));
    let programs = [record_words(&mut world, entered, 2), record_words(&mut world, left, 2)];
    let function = Function::new(&mut world, Form::USUAL);
    let second = ContextUse::NONE.with_access(8, 8);
    let raw = |code| CallLink { code, context: CallContext::Raw, asks_registers: false };
    let enter = raw(world.link(programs[0], second, false));
    let exit = raw(world.link(programs[1], second, true));
    function.trace(&mut world, [&[enter], &[exit]]);
    world.run();
    let pid = u64::from(std::process::id());
    assert_eq!(world.call(function.address, 0, 0), pid);
    assert_eq!((words(entered, 3)[2], words(left, 3)[2]), (u64::from(GETPID), pid));
}

#[test]
fn hooks_are_calls_or_nothing() {
    assert_eq!(hook(0x1000, None), Some([0x0f, 0x1f, 0x44, 0, 0]));
    assert_eq!(hook(0x1000, Some(0x1005)), Some([0xe8, 0, 0, 0, 0]));
    assert_eq!(hook(0x1000, Some(0x1000)), Some([0xe8, 0xfb, 0xff, 0xff, 0xff]));
    assert_eq!(hook(0x1000, Some(0x1005 + (1 << 31))), None);
}
