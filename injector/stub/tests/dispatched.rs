//! The code at calls that the kernel has handed to the process, executed: from where the handler of `SIGSYS` leaves them, through a slot, to
//! behind the call.

#[path = "harness/mod.rs"]
mod harness;
#[path = "harness/programs.rs"]
mod programs;

use beeline_abi::code::ContextUse;
use beeline_abi::dispatch::DispatchEntry;
use beeline_abi::regs::PtRegs;
use beeline_abi::system_call::{PendingCall, SystemCalls};
use beeline_abi::thread::ThreadSlot;
use beeline_stub::{CallContext, CallLink, LinkCode, SystemCallTarget, slot_bytes};
use harness::{CODE_VADDR, World};
use iced_x86::code_asm::{CodeAssembler, al, eax, r11, rcx};
use programs::{REGISTERS, overrider, pattern, record_words, surround};
use std::sync::atomic::{AtomicU64, Ordering};

const GETPID: u32 = 39;
const STATUS_MASK: u64 = 0x8d5;

fn words(at: *const u64, count: usize) -> Vec<u64> {
    // SAFETY: the tests pass blocks of the world's data.
    unsafe { std::slice::from_raw_parts(at, count).to_vec() }
}

/// Ends for which the agent was asked.
static SEARCHED: AtomicU64 = AtomicU64::new(0);

/// The instruction pointer that the agent saw last.
static BEHIND: AtomicU64 = AtomicU64::new(0);

/// The agent's part behind a call: counts those whose number has to be searched for.
extern "sysv64" fn searched(registers: *mut PtRegs, _: *mut ThreadSlot, _: *const SystemCalls, number: u64) {
    // SAFETY: the gate's frame.
    BEHIND.store(unsafe { (*registers).ip }, Ordering::Relaxed);
    SEARCHED.fetch_add(u64::from(number == PendingCall::UNKNOWN), Ordering::Relaxed);
}

/// A function with a call that was handed over, as the handler leaves it: it goes on at `enter`, or in the slot, with rcx = entry.
struct Handed {
    function: u64,
    entry: *mut u64,
}

/// What becomes of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Traced,
    Plain,
}

impl Handed {
    /// The call with this number. Programs run before and behind it, where it is [`Kind::Traced`].
    fn new(world: &mut World, number: u32, kind: Kind, links: [&[CallLink]; 2]) -> Handed {
        // SAFETY: a table of zeroes is one in which nobody wants anything.
        let calls: &mut SystemCalls = Box::leak(unsafe { Box::new(std::mem::zeroed()) });
        let at = std::ptr::from_mut(calls) as u64;
        let target = SystemCallTarget { calls: at, enter: 1, exit: searched as *const () as u64, missed: 1 };
        let environment = world.environment;
        for (is_exit, links) in [false, true].into_iter().zip(links).filter(|(_, links)| !links.is_empty()) {
            let made = world.arena.add_chain(&environment, &target, links, is_exit, false).unwrap();
            let code = &mut calls.code[number as usize];
            let (place, bit) = match is_exit {
                false => (&mut code.before, SystemCalls::ENTER),
                true => (&mut code.behind, SystemCalls::EXIT),
            };
            *place = made;
            calls.wanted[number as usize] |= bit;
        }
        let made = world.arena.add_dispatched(&environment, &target).unwrap();
        let data = world.data(8);
        // The entry, and the word that says where its slot goes on.
        let (entry, left) = (data as u64, data as u64 + 32);
        let left_at = made.left[usize::from(kind == Kind::Plain)];
        let slot = world.next_code();
        world.code(&slot_bytes(slot, entry, left).expect("near"));
        let to = if kind == Kind::Traced { made.enter } else { slot };
        let mut asm = CodeAssembler::new(64).unwrap();
        asm.mov(eax, number).unwrap();
        asm.mov(rcx, entry).unwrap();
        asm.mov(r11, to).unwrap();
        asm.jmp(r11).unwrap();
        let behind = asm.assemble(CODE_VADDR).unwrap().len() as u64;
        asm.setc(al).unwrap();
        asm.ret().unwrap();
        let function = world.code(&asm.assemble(CODE_VADDR).unwrap());
        let fields = [function + behind, 1, slot, 0, left_at];
        // SAFETY: eight words, of which an entry has four.
        unsafe { data.copy_from_nonoverlapping(fields.as_ptr(), fields.len()) };
        const _: () = assert!(size_of::<DispatchEntry>() == 32);
        Handed { function, entry: data }
    }

    /// Threads on their way through the slot.
    fn threads(&self) -> u64 {
        words(self.entry, 2)[1]
    }
}

fn record(code: LinkCode) -> CallLink {
    CallLink { code, context: CallContext::Record, asks_registers: false }
}

#[test]
fn registers_flags_and_records() {
    for kind in [Kind::Traced, Kind::Plain] {
        for flags in [0x202u64, 0xad7, 0x203, 0x642] {
            let mut world = World::new();
            let (entered, left) = (world.data(16), world.data(16));
            let (from, to) = (world.data(REGISTERS), world.data(REGISTERS));
            let programs = [record_words(&mut world, entered, 8), record_words(&mut world, left, 3)];
            let enter = record(world.link(programs[0], ContextUse::NONE.with_access(8, 56), false));
            let exit = record(world.link(programs[1], ContextUse::NONE.with_access(8, 16), true));
            let handed = Handed::new(&mut world, GETPID, kind, [&[enter], &[exit]]);
            let run = surround(&mut world, handed.function, from, to);
            pattern(from, flags);
            world.run();
            world.call(run, 0, 0);
            let (before, after) = (words(from, REGISTERS), words(to, REGISTERS));
            // rax is the result, and the carry flag in its lowest byte; a call changes rcx and r11; rsp and flags stand apart.
            for i in (0..REGISTERS).filter(|i| ![0, 1, 4, 11, 16].contains(i)) {
                assert_eq!(before[i], after[i], "register {i}, flags {flags:#x}");
            }
            let pid = u64::from(std::process::id());
            assert_eq!((after[0], after[4]), (pid & !0xff | flags & 1, 0), "result and carry, stack pointer");
            assert_eq!(after[16] & STATUS_MASK, flags & STATUS_MASK, "flags");
            assert_eq!(after[1], words(handed.entry, 1)[0], "rcx is where the kernel returns to");
            assert_eq!(after[11] & STATUS_MASK, flags & STATUS_MASK, "r11 has the flags");
            assert_eq!(handed.threads(), 0, "the slot is free");
            let (entered, left) = (words(entered, 9), words(left, 4));
            let runs = u64::from(kind == Kind::Traced);
            assert_eq!((entered[0], left[0]), (runs, runs));
            if kind == Kind::Traced {
                let arguments = [7, 6, 2, 10, 8, 9].map(|register| before[register]);
                assert_eq!(entered[2..], [&[u64::from(GETPID)], &arguments[..]].concat());
                assert_eq!(left[2..], [u64::from(GETPID), pid]);
                assert_eq!(world.slot().guard.load(Ordering::Relaxed), 0);
            }
        }
    }
}

#[test]
fn a_call_that_is_skipped_frees_its_slot() {
    let mut world = World::new();
    let program = overrider(&mut world, 0x1100);
    let mut code = world.link(program, ContextUse::NONE, false);
    code.overrides = true;
    let handed = Handed::new(&mut world, GETPID, Kind::Traced, [&[record(code)], &[]]);
    world.run();
    assert_eq!(world.call(handed.function, 0, 0) & !0xff, 0x1100);
    assert_eq!(handed.threads(), 0);
}

/// A thread may begin behind a call whose result is 0, with no note of it.
#[test]
fn behind_a_result_of_0_the_agent_is_asked() {
    const GETUID: u32 = 102;
    let mut world = World::new();
    let handed = Handed::new(&mut world, GETUID, Kind::Traced, [&[], &[]]);
    world.run();
    let before = SEARCHED.load(Ordering::Relaxed);
    // SAFETY: it has no arguments.
    let uid = unsafe { libc::getuid() };
    assert_eq!(world.call(handed.function, 0, 0) & !0xff, u64::from(uid) & !0xff);
    assert_eq!(SEARCHED.load(Ordering::Relaxed) - before, u64::from(uid == 0));
    if uid == 0 {
        assert_eq!(
            BEHIND.load(Ordering::Relaxed),
            words(handed.entry, 1)[0],
            "it is told where the call was"
        );
    }
    assert_eq!(handed.threads(), 0);
}
