//! The handler of a guarded signal.
//!
//! It runs with nothing blocked, on the stack that the kernel chose, and touches neither `errno` nor a vector register. From a
//! breakpoint the thread goes on at the stub, outside of the handler; into a handler of the process it is jumped, with the stack
//! as the kernel made it: to the process, and to who walks its stack, it is as if the kernel had called that handler.

use super::actions::{end, newest, record_of, reset};
use super::dispatch;
use super::kernel::call;
use beeline_abi::dispatch::SIGSYS;
use beeline_abi::guard::{Action, Breakpoint, Breakpoints, Guard, RT_SIGPROCMASK, SIGTRAP, bit};
use core::cmp::Ordering::{Equal, Greater, Less};
use core::sync::atomic::Ordering::{Acquire, Relaxed};

/// Offset of `si_code` in `siginfo_t`.
const CODE: u64 = 8;
/// `SI_KERNEL`: of an `int3` (`arch/x86/kernel/traps.c`: `do_int3_user`).
const SI_KERNEL: i32 = 0x80;
/// `SYS_SECCOMP`, `SYS_USER_DISPATCH`: of a call that a filter has trapped; that was handed over.
const SYS_SECCOMP: i32 = 1;
const SYS_USER_DISPATCH: i32 = 2;
/// Offset of the program counter in `struct ucontext` (`arch/x86/include/uapi/asm/sigcontext.h`).
const PC: u64 = 168;
/// Bytes of `int3`.
const INT3_LEN: u64 = 1;

/// What to do with a signal: the address of the handler to go on in, 0 = return.
///
/// # Safety
///
/// The arguments are those of a signal handler with `SA_SIGINFO`; `guard` is the process's.
pub unsafe extern "sysv64" fn decide(signal: u64, info: u64, context: u64, guard: *const Guard) -> u64 {
    // SAFETY: the kernel wrote a `siginfo_t` and a `struct ucontext`.
    unsafe {
        let guard = &*guard;
        let code = *((info + CODE) as *const i32);
        let pc = (context + PC) as *mut u64;
        match (signal, code) {
            (SIGTRAP, SI_KERNEL) => {
                if let Some(stub) = stub_at(guard, (*pc).wrapping_sub(INT3_LEN)) {
                    *pc = stub;
                    return 0;
                }
            }
            (SIGSYS, SYS_USER_DISPATCH) if dispatch::take(guard, info, context) => return 0,
            (SIGSYS, SYS_SECCOMP) => dispatch::show_place(guard, info, context),
            _ => {}
        }
        pass_on(guard, signal, code > 0)
    }
}

/// Where a thread goes on that has met the breakpoint at `address`.
///
/// # Safety
///
/// The injector wrote the table.
unsafe fn stub_at(guard: &Guard, address: u64) -> Option<u64> {
    let table = guard.breakpoints.load(Acquire);
    // SAFETY: the caller's contract.
    unsafe {
        let count = (table as *const Breakpoints).as_ref()?.count;
        let first = (table + size_of::<Breakpoints>() as u64) as *const Breakpoint;
        let (mut from, mut to) = (0, count);
        while from < to {
            let middle = (from + to) / 2;
            let at = *first.add(middle as usize);
            match at.address.cmp(&address) {
                Equal => return Some(at.stub),
                Less => from = middle + 1,
                Greater => to = middle,
            }
        }
        None
    }
}

/// As the kernel does with a signal that is no concern of ours (`get_signal`, `handle_signal`). `forced`: an instruction of the process
/// has raised it, which cannot be ignored.
fn pass_on(guard: &Guard, signal: u64, forced: bool) -> u64 {
    let Some(record) = record_of(guard, signal) else { return 0 };
    let (version, action) = newest(record);
    match action.handler {
        Action::IGNORE if !forced => 0,
        Action::IGNORE | Action::DEFAULT => {
            end(guard, signal);
            0
        }
        handler => {
            if action.flags & Action::RESET_HAND != 0 {
                reset(record, version, action);
            }
            let itself = if action.flags & Action::NO_DEFER != 0 { 0 } else { bit(signal) };
            let blocked = (action.mask | itself) & !guard.signals.load(Relaxed);
            if blocked != 0 {
                const BLOCK: u64 = 0;
                let mask = (&raw const blocked) as u64;
                // SAFETY: the mask is ours. Returning from the handler puts the former one back.
                unsafe { call(guard, RT_SIGPROCMASK, [BLOCK, mask, 0, 8, 0, 0]) };
            }
            handler
        }
    }
}
