//! Keeps the signals of breakpoints and dispatched calls deliverable, and goes on from them to stubs and slots.
//!
//! ```text
//! call that blocks signals      the kernel gets a copy of the mask without the guarded ones     (masks)
//! rt_sigaction of one of them   answered from the record, never made                            (actions)
//! int3 ─▶ SIGTRAP ─▶ one of ours? ─ yes ─▶ goes on at the stub when the handler has returned    (trap)
//!                                 └ no ─▶ what the process wants done with it
//! dispatched call ─▶ SIGSYS ─▶ goes on at a slot when the handler has returned                 (dispatch)
//! ```
//!
//! This is no part of the agent's image but of another, `agent/guard`, which is mapped where it is needed: nothing here
//! uses what has a static variable. Its functions stand between the gates of system calls and the agent's.

mod actions;
mod dispatch;
mod kernel;
mod masks;
mod trap;

pub use trap::decide;

use beeline_abi::guard::{
    CLONE3, EPOLL_PWAIT, EPOLL_PWAIT2, Guard, IO_PGETEVENTS, PPOLL, PSELECT6, RT_SIGACTION, RT_SIGPROCMASK,
    RT_SIGSUSPEND,
};
use beeline_abi::regs::PtRegs;
use beeline_abi::system_call::{CLONES, PendingCall, SystemCalls};
use beeline_abi::thread::ThreadSlot;
use core::sync::atomic::Ordering::Relaxed;

type Enter = unsafe extern "sysv64" fn(*mut PtRegs, *mut ThreadSlot, *const SystemCalls) -> u64;
type Exit = unsafe extern "sysv64" fn(*mut PtRegs, *mut ThreadSlot, *const SystemCalls, u64);
type Missed = unsafe extern "sysv64" fn(*const SystemCalls, u64, u64, *mut PtRegs) -> u64;

/// `prctl`.
const PRCTL: u64 = 157;
/// `SIG_UNBLOCK` of `rt_sigprocmask`.
const UNBLOCK: u32 = 1;

/// Before a call, in place of the agent's function, which runs first: programs see the arguments of the process.
///
/// # Safety
///
/// As for [`enter`](crate::system_calls::enter); `guard` is the process's.
pub unsafe fn enter(
    registers: *mut PtRegs,
    slot: *mut ThreadSlot,
    calls: *const SystemCalls,
    guard: *const Guard,
) -> u64 {
    // SAFETY: the injector wrote the address of the agent's function.
    unsafe {
        let agent = core::mem::transmute::<u64, Enter>((*guard).enter);
        match agent(registers, slot, calls) {
            0 => before(&*guard, &mut *registers),
            skipped => skipped,
        }
    }
}

/// Behind a call, in place of the agent's function, which runs afterwards.
///
/// # Safety
///
/// As for [`exit`](crate::system_calls::exit); `guard` is the process's.
pub unsafe fn exit(
    registers: *mut PtRegs,
    slot: *mut ThreadSlot,
    calls: *const SystemCalls,
    number: u64,
    guard: *const Guard,
) {
    // SAFETY: as in `enter`.
    unsafe {
        let agent = core::mem::transmute::<u64, Exit>((*guard).exit);
        give_back(&*guard, &mut *registers);
        if number != PendingCall::UNKNOWN {
            ended(&*guard, &mut *registers, Some(number & !PendingCall::NOTED));
            agent(registers, slot, calls, number);
            return;
        }
        // The agent finds it out, if anybody does.
        (*registers).orig_ax = u64::MAX;
        agent(registers, slot, calls, number);
        let found = (*registers).orig_ax;
        ended(&*guard, &mut *registers, (found != u64::MAX).then_some(found));
    }
}

/// A call, or its end, at which no program could run. Signals are kept deliverable all the same.
///
/// # Safety
///
/// As for [`missed`](crate::system_calls::missed); `guard` is the process's, `registers` are those at the call.
pub unsafe fn missed(
    calls: *const SystemCalls,
    number: u64,
    is_exit: u64,
    registers: *mut PtRegs,
    guard: *const Guard,
) -> u64 {
    // SAFETY: as in `enter`.
    unsafe {
        let agent = core::mem::transmute::<u64, Missed>((*guard).missed);
        agent(calls, number, is_exit, registers);
        if is_exit != 0 {
            give_back(&*guard, &mut *registers);
            let number = Some(number & !PendingCall::NOTED);
            ended(&*guard, &mut *registers, number.filter(|&number| number != PendingCall::UNKNOWN));
            return 0;
        }
        before(&*guard, &mut *registers)
    }
}

/// 1: the call is not to be made, its result is `registers.ax`.
fn before(guard: &Guard, registers: &mut PtRegs) -> u64 {
    let signals = guard.signals.load(Relaxed);
    if signals == 0 {
        return 0;
    }
    let sp = registers.sp;
    let it = registers;
    // The kernel looks at the lower half only (do_syscall_64).
    match u64::from(it.orig_ax as u32) {
        RT_SIGACTION => {
            if let Some(result) = actions::set(guard, signals, it) {
                it.ax = result as u64;
                return 1;
            }
        }
        RT_SIGPROCMASK => {
            dispatch::note_mask(guard, it);
            if it.di as u32 != UNBLOCK {
                masks::replace(guard, signals, &mut it.si, it.r10, sp);
            }
        }
        RT_SIGSUSPEND => masks::replace(guard, signals, &mut it.di, it.si, sp),
        PPOLL => masks::replace(guard, signals, &mut it.r10, it.r8, sp),
        EPOLL_PWAIT | EPOLL_PWAIT2 => masks::replace(guard, signals, &mut it.r8, it.r9, sp),
        PSELECT6 | IO_PGETEVENTS => masks::replace_behind(guard, signals, &mut it.r9, sp),
        PRCTL => return dispatch::before_prctl(guard, it),
        _ => {}
    }
    0
}

/// The arguments are the process's own again.
fn give_back(guard: &Guard, registers: &mut PtRegs) {
    let sp = registers.sp;
    let it = registers;
    for register in [&mut it.di, &mut it.si, &mut it.dx, &mut it.r10, &mut it.r8, &mut it.r9] {
        masks::give_back(guard, register, sp);
    }
}

/// A call has ended, with this number, where that is known.
fn ended(guard: &Guard, registers: &mut PtRegs, number: Option<u64>) {
    match number {
        Some(RT_SIGPROCMASK) => dispatch::show_mask(guard, registers),
        Some(RT_SIGACTION) => actions::was_set(guard, guard.signals.load(Relaxed), registers),
        _ => {}
    }
    let may_be_child = number.is_none_or(|number| CLONES.contains(&number));
    let may_clear = number.is_none_or(|number| number == CLONE3);
    if registers.ax == 0 && may_be_child && actions::in_child(guard, may_clear) {
        dispatch::in_child(guard, number, registers);
    }
}
