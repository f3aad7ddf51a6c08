//! The guard in this process: masks, the record of an action, and the signal itself.

use beeline_abi::calls::CallGate;
use beeline_abi::errno::{EFAULT, EINVAL};
use beeline_abi::guard::{
    Action, Breakpoint, GUARD_MAGIC, Guard, RT_SIGACTION, RT_SIGPROCMASK, SIGTRAP, bit,
};
use beeline_abi::regs::PtRegs;
use beeline_abi::system_call::SystemCalls;
use beeline_abi::thread::ThreadSlot;
use beeline_agent_core::guard::{decide, enter, exit};
use std::sync::atomic::Ordering::Relaxed;

unsafe extern "sysv64" fn agent_enter(_: *mut PtRegs, _: *mut ThreadSlot, _: *const SystemCalls) -> u64 {
    0
}
unsafe extern "sysv64" fn agent_exit(_: *mut PtRegs, _: *mut ThreadSlot, _: *const SystemCalls, _: u64) {}

/// A guard of no process in particular: its handler is none.
fn guard() -> (Box<Guard>, Box<CallGate>) {
    let gate = Box::new(CallGate::new());
    // SAFETY: all fields may be zero.
    let mut guard: Box<Guard> = unsafe { Box::new(core::mem::zeroed()) };
    guard.magic = GUARD_MAGIC;
    guard.call_gate = &raw const *gate as u64;
    guard.enter = agent_enter as *const () as u64;
    guard.exit = agent_exit as *const () as u64;
    guard.signals = bit(SIGTRAP).into();
    (guard, gate)
}

/// A call as the gate shows it; whether it is skipped.
fn call(guard: &Guard, registers: &mut PtRegs) -> u64 {
    // SAFETY: registers and guard are valid; the functions above look at nothing else.
    unsafe { enter(registers, std::ptr::null_mut(), std::ptr::null(), guard) }
}

fn end(guard: &Guard, registers: &mut PtRegs, number: u64) {
    // SAFETY: as above.
    unsafe { exit(registers, std::ptr::null_mut(), std::ptr::null(), number, guard) };
}

#[test]
fn a_mask_with_the_signal_is_replaced_until_the_call_ends() {
    let (guard, _gate) = guard();
    let (full, none) = (u64::MAX, 0x80u64);
    let address = &raw const full as u64;
    let block = PtRegs { orig_ax: RT_SIGPROCMASK, si: address, r10: 8, sp: 0x7000, ..PtRegs::default() };
    let mut outer = block;
    assert_eq!(call(&guard, &mut outer), 0);
    assert_ne!(outer.si, address);
    // SAFETY: the entry is the guard's.
    assert_eq!(unsafe { *(outer.si as *const u64) }, !bit(SIGTRAP));
    // A handler on top of it has an entry of its own.
    let mut inner = PtRegs { sp: 0x6000, ..block };
    call(&guard, &mut inner);
    assert!(inner.si != address && inner.si != outer.si);
    let copy = outer.si;
    end(&guard, &mut inner, RT_SIGPROCMASK);
    end(&guard, &mut outer, RT_SIGPROCMASK);
    assert_eq!((inner.si, outer.si), (address, address));
    // What did not come to its end is used again.
    let mut again = block;
    call(&guard, &mut again);
    let mut left = block;
    call(&guard, &mut left);
    assert_eq!((again.si, left.si), (copy, copy));
    for other in [
        PtRegs { si: &raw const none as u64, ..block },
        PtRegs { di: 1, ..block },
        PtRegs { r10: 16, ..block },
        PtRegs { si: 8, ..block },
        PtRegs { si: 0, ..block },
    ] {
        let mut registers = other;
        assert_eq!(call(&guard, &mut registers), 0);
        assert_eq!(registers.si, other.si, "the kernel is to answer");
    }
}

#[test]
fn every_entry_can_be_in_use() {
    let (guard, _gate) = guard();
    let full = u64::MAX;
    let address = &raw const full as u64;
    let mut copies = std::collections::BTreeSet::new();
    for sp in 1..=beeline_abi::guard::MASKED as u64 {
        let mut registers =
            PtRegs { orig_ax: RT_SIGPROCMASK, si: address, r10: 8, sp: sp << 12, ..PtRegs::default() };
        call(&guard, &mut registers);
        assert!(registers.si != address && copies.insert(registers.si));
    }
    let mut registers = PtRegs { orig_ax: RT_SIGPROCMASK, si: address, r10: 8, sp: 8, ..PtRegs::default() };
    call(&guard, &mut registers);
    assert_eq!(registers.si, address, "made as it is");
}

#[test]
fn actions_are_recorded_and_told() {
    let (guard, _gate) = guard();
    let set = |action: u64, old: u64, size: u64| {
        let mut registers = PtRegs {
            orig_ax: RT_SIGACTION,
            di: SIGTRAP,
            si: action,
            dx: old,
            r10: size,
            ..PtRegs::default()
        };
        let skipped = call(&guard, &mut registers);
        (skipped == 1).then_some(registers.ax as i64)
    };
    let mut old = [u64::MAX; 4];
    let old_at = &raw mut old as u64;
    assert_eq!(set(0, old_at, 8), Some(0));
    assert_eq!(old, [0; 4]);
    assert_eq!(set(8, 0, 8), Some(-EFAULT));
    assert_eq!(set(0, 8, 8), Some(-EFAULT));
    assert_eq!(set(0, 0, 4), None, "the kernel says {}", -EINVAL);
    // A child on its parent's memory does not change what is recorded; who owns no page is no such child. Its handler is none, so the
    // kernel keeps the default action.
    for version in 0..50u64 {
        let new = [0x1000 + version, 0x1000_0004, 0x2000, u64::MAX];
        assert_eq!(set(&raw const new as u64, old_at, 8), Some(0));
        assert_eq!(set(0, old_at, 8), Some(0));
        assert_eq!(old, [0x1000 + version, 0x1000_0004, 0x2000, !(bit(9) | bit(19))]);
    }
}

/// `siginfo_t` and `struct ucontext`, as far as the handler looks.
fn signal(guard: &Guard, code: i32, pc: u64) -> (u64, u64) {
    let mut info = [0i32; 32];
    info[2] = code;
    let mut context = [0u64; 64];
    context[21] = pc;
    // SAFETY: both are larger than what the handler looks at.
    let next = unsafe { decide(SIGTRAP, info.as_ptr() as u64, context.as_mut_ptr() as u64, guard) };
    (next, context[21])
}

#[test]
fn breakpoints_are_found_and_the_rest_is_passed_on() {
    #[repr(C)]
    struct Table(u64, [Breakpoint; 3]);
    const KERNEL: i32 = 0x80;
    let (guard, _gate) = guard();
    let at = |address: u64| Breakpoint { address, stub: address + 0x10_0000 };
    let table = Table(3, [at(0x1000), at(0x1001), at(0x5000)]);
    guard.breakpoints.store(&raw const table as u64, Relaxed);
    for address in [0x1000, 0x1001, 0x5000] {
        assert_eq!(signal(&guard, KERNEL, address + 1), (0, address + 0x10_0000));
    }
    let handler = [0xabcd, Action::NO_DEFER, 0, 0u64];
    let mut registers = PtRegs {
        orig_ax: RT_SIGACTION,
        di: SIGTRAP,
        si: &raw const handler as u64,
        r10: 8,
        ..PtRegs::default()
    };
    assert_eq!((call(&guard, &mut registers), registers.ax), (1, 0));
    assert_eq!(signal(&guard, KERNEL, 0x1003), (0xabcd, 0x1003), "an int3 of its own");
    assert_eq!(signal(&guard, -6, 0x1001), (0xabcd, 0x1001), "sent while it stands behind a breakpoint");
    let ignored = [Action::IGNORE, 0, 0, 0];
    registers.si = &raw const ignored as u64;
    assert_eq!(call(&guard, &mut registers), 1);
    assert_eq!(signal(&guard, 0, 0x1001), (0, 0x1001));
}
