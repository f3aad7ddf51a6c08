//! The code through which programs call functions of the target, executed.

#[path = "harness/mod.rs"]
mod harness;

use beeline_abi::code::HostValue;
use beeline_abi::run::RunContext;
use beeline_abi::thread::ThreadSlot;
use beeline_stub::{HOST_CALL_MAX, HostCall};
use harness::World;
use iced_x86::code_asm::*;
use std::mem::offset_of;
use std::sync::atomic::Ordering::Relaxed;

const RUN: i32 = offset_of!(ThreadSlot, run) as i32;
const DIRECTION: i32 = 1 << 10;

fn value(size: u8, signed: bool) -> HostValue {
    HostValue { size, signed }
}

fn word(at: *const u64, index: usize) -> u64 {
    // SAFETY: a word of the world's data.
    unsafe { at.add(index).read_volatile() }
}

/// A function that writes down what it finds, clobbers what it may, and returns `result`:
/// rdi, rsi, rdx, rcx, r8, flags, guard - rsp, whether the return address is what the slot says.
fn witness(world: &mut World, slot: u64, seen: *mut u64, result: u64) -> u64 {
    world.assemble(|asm| {
        asm.mov(rax, seen as u64).unwrap();
        for (index, register) in [rdi, rsi, rdx, rcx, r8].into_iter().enumerate() {
            asm.mov(qword_ptr(rax + 8 * index as i32), register).unwrap();
        }
        asm.pushfq().unwrap();
        asm.pop(rdx).unwrap();
        asm.mov(qword_ptr(rax + 40), rdx).unwrap();
        asm.mov(rcx, slot).unwrap();
        asm.mov(rdx, qword_ptr(rcx + offset_of!(ThreadSlot, guard) as i32)).unwrap();
        asm.sub(rdx, rsp).unwrap();
        asm.mov(qword_ptr(rax + 48), rdx).unwrap();
        asm.mov(rdx, qword_ptr(rcx + offset_of!(ThreadSlot, host_return) as i32)).unwrap();
        asm.sub(rdx, qword_ptr(rsp)).unwrap();
        asm.mov(qword_ptr(rax + 56), rdx).unwrap();
        // What a program in a hit that takes this run for abandoned leaves.
        asm.mov(qword_ptr(rcx + offset_of!(ThreadSlot, guard) as i32), 0).unwrap();
        asm.mov(qword_ptr(rcx + offset_of!(ThreadSlot, host_return) as i32), 0).unwrap();
        asm.mov(qword_ptr(rcx + RUN + offset_of!(RunContext, link) as i32), 1).unwrap();
        asm.mov(qword_ptr(rcx + RUN + offset_of!(RunContext, regs) as i32), 2).unwrap();
        asm.mov(dword_ptr(rcx + RUN + offset_of!(RunContext, flags) as i32), 3).unwrap();
        asm.mov(qword_ptr(rcx + RUN + offset_of!(RunContext, session_cookies) as i32 + 16), 4).unwrap();
        for register in [xmm0, xmm1, xmm7, xmm15] {
            asm.pcmpeqd(register, register).unwrap();
        }
        asm.fninit().unwrap();
        asm.fldz().unwrap();
        for register in [rdi, rsi, rdx, rcx, r8, r9, r10, r11] {
            asm.mov(register, -1i64).unwrap();
        }
        asm.mov(rax, result).unwrap();
        asm.ret().unwrap();
    })
}

/// `f(a, b)`: what a program does: calls with r1 to r5 = b. xmm7 and st0 are kept in `after`, with the flags.
fn caller(world: &mut World, bridge: u64, slot: u64, after: *mut u64) -> u64 {
    world.assemble(|asm| {
        asm.push(rbx).unwrap();
        asm.mov(rbx, rsi).unwrap();
        asm.movq(xmm7, rbx).unwrap();
        asm.fninit().unwrap();
        asm.fldpi().unwrap();
        for register in [rdi, rsi, rdx, rcx, r8] {
            asm.mov(register, rbx).unwrap();
        }
        asm.mov(r9, slot + RUN as u64).unwrap();
        asm.mov(rax, bridge).unwrap();
        asm.std().unwrap();
        asm.call(rax).unwrap();
        asm.pushfq().unwrap();
        asm.pop(rdx).unwrap();
        asm.cld().unwrap();
        asm.mov(rcx, after as u64).unwrap();
        asm.mov(qword_ptr(rcx), rdx).unwrap();
        asm.movq(rdx, xmm7).unwrap();
        asm.mov(qword_ptr(rcx + 8), rdx).unwrap();
        asm.fstp(qword_ptr(rcx + 16)).unwrap();
        asm.pop(rbx).unwrap();
        asm.ret().unwrap();
    })
}

#[test]
fn all_that_is_promised() {
    if !std::arch::is_x86_feature_detected!("xsave") {
        eprintln!("skipped: this CPU has no xsave");
        return;
    }
    let mut world = World::new();
    let (seen, after) = (world.data(8), world.data(3));
    let slot = std::ptr::from_mut(world.slot()) as u64;
    let args = [value(1, true), value(2, false), value(4, true), value(4, false), value(8, false)];
    let results = [
        (value(1, true), 0x80, -128i64 as u64),
        (value(1, false), 0xff80, 0x80),
        (value(2, true), 0x1_8000, -32768i64 as u64),
        (value(2, false), 0x1_8000, 0x8000),
        (value(4, true), 0x1_8000_0000, -0x8000_0000i64 as u64),
        (value(4, false), 0x1_8000_0000, 0x8000_0000),
        (value(8, false), u64::MAX, u64::MAX),
    ];
    let mut callers = Vec::new();
    for (returns, returned, wanted) in results {
        let function = witness(&mut world, slot, seen, returned);
        let call = HostCall { function, args: args.to_vec(), returns, errno_location: 0 };
        let (before, bridge) = (world.arena.free(), world.arena.add_host_call(&call).expect("there is room"));
        assert!(before - world.arena.free() <= HOST_CALL_MAX);
        callers.push((caller(&mut world, bridge, slot, after), wanted));
    }
    let run = &mut world.slot().run;
    (run.link, run.regs, run.flags, run.tail_calls) = (10, 20, 30, 40);
    run.session_cookies = [50, 60, 70];
    world.slot().guard.store(80, Relaxed);
    world.run();
    for (caller, wanted) in callers {
        let given = 0x0123_4567_89ab_cdef;
        assert_eq!(world.call(caller, 0, given), wanted);
        let [first, second, third, fourth, fifth] = [0, 1, 2, 3, 4].map(|index| word(seen, index));
        assert_eq!((first as i64, second), (-17, 0xcdef));
        assert_eq!((third, fourth, fifth), (0xffff_ffff_89ab_cdef, 0x89ab_cdef, given));
        assert_eq!(word(seen, 5) & DIRECTION as u64, 0, "forwards, as the ABI has it");
        assert_eq!(word(seen, 6), 8, "the guard is the function's frame");
        assert_eq!(word(seen, 7), 0, "its return address is known");
        assert_ne!(word(after, 0) & DIRECTION as u64, 0, "the flags are as before");
        assert_eq!(word(after, 1), given, "vector registers are as before");
        assert_eq!(f64::from_bits(word(after, 2)), std::f64::consts::PI, "so is x87");
        let slot = world.slot();
        assert_eq!((slot.guard.load(Relaxed), slot.host_return), (80, 0));
        let run = &slot.run;
        assert_eq!((run.link, run.regs, run.flags, run.tail_calls), (10, 20, 30, 40));
        assert_eq!(run.session_cookies, [50, 60, 70]);
    }
}

/// The function may change `errno`, and the thread does not see it.
#[test]
fn errno_is_kept() {
    let mut world = World::new();
    let data = world.data(1);
    let slot = std::ptr::from_mut(world.slot()) as u64;
    let location = world.assemble(|asm| {
        asm.mov(rax, data as u64).unwrap();
        asm.ret().unwrap();
    });
    let function = world.assemble(|asm| {
        asm.mov(rax, data as u64).unwrap();
        asm.inc(dword_ptr(rax)).unwrap();
        asm.mov(eax, dword_ptr(rax)).unwrap();
        asm.ret().unwrap();
    });
    let call = HostCall { function, args: Vec::new(), returns: value(4, true), errno_location: location };
    let bridge = world.arena.add_host_call(&call).expect("there is room");
    let after = world.data(3);
    let caller = caller(&mut world, bridge, slot, after);
    // SAFETY: a word of the world's data.
    unsafe { data.write_volatile(5) };
    world.run();
    assert_eq!(world.call(caller, 0, 0), 6, "it saw its own");
    assert_eq!(word(data, 0), 5);
}
