//! The programs of a system call.
//!
//! ```text
//! stub:   registers into a pt_regs ─▶ slot, guard ─▶ enter ─▶ call ─▶ slot, guard ─▶ exit
//! ```
//!
//! Nothing is kept on the stack over the call: a `clone` returns on another one, a child of `vfork` on the same. The number, which
//! the kernel's record of the exit has, is a constant of most call sites; where it is not, the stub before the call notes it in the
//! slot with the stack pointer.

use crate::{cpu, process, seccomp, slot};
use beeline_abi::link::{LinkRuntime, LinkShared};
use beeline_abi::process::{ForkPage, ProcessBlock};
use beeline_abi::regs::PtRegs;
use beeline_abi::run::RunContext;
use beeline_abi::system_call::{
    CLONES, EnterRecord, ExitRecord, FILTERING, List, NUMBERS, PENDING, PendingCall, REGISTERING,
    RawArguments, SHARING, SystemCalls,
};
use beeline_abi::thread::ThreadSlot;
use beeline_helpers::{identity, read};
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};

/// Before a call. 0: make it, with the registers as they are in `registers` now; 1: do not, its result is `registers.ax`.
///
/// # Safety
///
/// `slot` is the calling thread's, with its guard set; `registers` are those at the call, `calls` its process's.
pub unsafe extern "sysv64" fn enter(
    registers: *mut PtRegs,
    slot: *mut ThreadSlot,
    calls: *const SystemCalls,
) -> u64 {
    // SAFETY: the caller's contract.
    unsafe {
        let called = as_int((*registers).orig_ax);
        let index = list_index(called);
        let run = &raw mut (*slot).run;
        (*run).flags = 0;
        if FILTERING.contains(&called) {
            seccomp::examine(run, called, [(*registers).di, (*registers).si, (*registers).dx]);
        }
        let list = list(&(*calls).entered, index);
        if list.count != 0 {
            let record = EnterRecord { common: 0, id: called, arguments: arguments(registers) };
            let raw: RawArguments = [registers as u64, called];
            each(calls, list, run, registers, &raw const record as u64, &raw const raw as u64);
        }
        if REGISTERING.contains(&called) {
            cpu::leave_rseq(slot);
        }
        if shares_thread_pointer(run, registers) {
            slot::share(slot);
        }
        if (*run).flags & RunContext::OVERRIDE == 0 {
            return 0;
        }
        (*registers).ax = (*run).override_value;
        1
    }
}

/// The call makes a thread, or a process with the same memory, that runs beside the calling thread with its thread pointer.
unsafe fn shares_thread_pointer(run: *mut RunContext, registers: *const PtRegs) -> bool {
    /// `CLONE_VM` (`include/uapi/linux/sched.h`).
    const SHARED: u64 = 0x100;
    /// `CLONE_VFORK`, `CLONE_SETTLS`.
    const APART: u64 = 0x4000 | 0x8_0000;
    // SAFETY: the caller's run and registers; what cannot be read gives an error, as in the kernel.
    unsafe {
        let [clone, clone3] = SHARING;
        let called = (*registers).orig_ax;
        let mut flags = 0u64;
        if called == clone {
            flags = (*registers).di;
        } else if called == clone3 {
            read::copy(run, (&raw mut flags).cast(), 8, (*registers).di);
        }
        flags & (SHARED | APART) == SHARED
    }
}

/// Behind a call, whose result is `registers.ax`: a program may have put another one there. Its number, where it is known, is in
/// `registers.orig_ax` afterwards.
///
/// # Safety
///
/// As for [`enter`].
pub unsafe extern "sysv64" fn exit(
    registers: *mut PtRegs,
    slot: *mut ThreadSlot,
    calls: *const SystemCalls,
    number: u64,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let number = if number == PendingCall::UNKNOWN {
            match recall(slot, registers) {
                Some(number) => number,
                None => return,
            }
        } else {
            number
        };
        let was_noted = number & PendingCall::NOTED != 0;
        let number = as_int(number);
        let run = &raw mut (*slot).run;
        if CLONES.contains(&number) && identity::enter_child(run, (*registers).ax as i64) && was_noted {
            // The parent will ask for it as well.
            note(slot, (*registers).sp | PendingCall::IN_CHILD, number);
        }
        (*registers).orig_ax = number;
        let list = list(&(*calls).left, list_index(number));
        if list.count == 0 {
            return;
        }
        (*run).flags = 0;
        let record = ExitRecord { common: 0, id: number, result: (*registers).ax as i64 };
        let raw: RawArguments = [registers as u64, (*registers).ax];
        each(calls, list, run, registers, &raw const record as u64, &raw const raw as u64);
        if (*run).flags & RunContext::OVERRIDE != 0 {
            (*registers).ax = (*run).override_value;
        }
    }
}

/// A call, or its end, at which no program could run: a program runs below, or the thread has no slot. Counts a miss on each link
/// that it would have been for; nothing where the number is not known. 0: the call is to be made.
///
/// # Safety
///
/// `calls` is the process's.
pub unsafe extern "sysv64" fn missed(calls: *const SystemCalls, number: u64, is_exit: u64) -> u64 {
    if number == PendingCall::UNKNOWN {
        return 0;
    }
    let number = as_int(number);
    if is_exit == 0 && FILTERING.contains(&number) {
        // Whatever is being installed was not seen.
        // SAFETY: the process's block.
        unsafe { seccomp::not_seen(process::block()) }
    }
    // SAFETY: the injector wrote the lists, and the links that they name.
    unsafe {
        let lists = if is_exit != 0 { &(*calls).left } else { &(*calls).entered };
        let list = list(lists, list_index(number));
        let first = ((*calls).links as *const u64).add(list.first as usize);
        let mut index = 0;
        while index < list.count {
            let link = (*first.add(index as usize)) as *const LinkRuntime;
            if applies(link, process::block()) {
                process::count_miss(link);
            }
            index += 1;
        }
    }
    0
}

/// A number as the kernel sees it and records it (`arch/x86/entry/syscall_64.c`: `do_syscall_64`).
fn as_int(number: u64) -> u64 {
    i64::from(number as i32) as u64
}

/// Which list a call with this number has. The kernel looks at the lower half only (`do_syscall_64`).
fn list_index(number: u64) -> usize {
    (number as u32 as usize).min(NUMBERS)
}

fn list(lists: &[List; NUMBERS + 1], index: usize) -> List {
    lists.get(index).copied().unwrap_or_default()
}

/// The arguments, in the kernel's order.
unsafe fn arguments(registers: *const PtRegs) -> [u64; 6] {
    // SAFETY: the caller's registers.
    let registers = unsafe { &*registers };
    [registers.di, registers.si, registers.dx, registers.r10, registers.r8, registers.r9]
}

/// Runs the programs of a list, each with the context that it wants.
unsafe fn each(
    calls: *const SystemCalls,
    list: List,
    run: *mut RunContext,
    registers: *mut PtRegs,
    record: u64,
    raw: u64,
) {
    // SAFETY: the injector wrote the list, and the links that it names.
    unsafe {
        let first = ((*calls).links as *const u64).add(list.first as usize);
        let mut index = 0;
        while index < list.count {
            let link = (*first.add(index as usize)) as *const LinkRuntime;
            index += 1;
            if !applies(link, (*run).process as *const ProcessBlock) {
                continue;
            }
            let flags = (*link).flags;
            let before = ((*run).flags, (*run).override_value);
            if flags & LinkRuntime::RECORD != 0 {
                call(link, run, record);
            } else if flags & LinkRuntime::RAW != 0 {
                call(link, run, raw);
            } else {
                let outer = outer(registers, flags);
                call(link, run, &raw const outer as u64);
            }
            if flags & LinkRuntime::OVERRIDES == 0 {
                // A program that it has called has no right to.
                ((*run).flags, (*run).override_value) = before;
            }
        }
    }
}

/// The registers as the kernel's function for the call sees them: its argument is the address of the caller's registers, its result
/// that of the call (`arch/x86/include/asm/syscall_wrapper.h`).
#[inline(never)]
unsafe fn outer(registers: *const PtRegs, flags: u32) -> PtRegs {
    // SAFETY: the caller's registers.
    let ax = if flags & LinkRuntime::RETURN != 0 { unsafe { (*registers).ax } } else { 0 };
    PtRegs { di: registers as u64, ax, orig_ax: u64::MAX, ..PtRegs::default() }
}

/// The link is on, and for this process.
unsafe fn applies(link: *const LinkRuntime, block: *const ProcessBlock) -> bool {
    // SAFETY: a link of the injector's, and the process's block.
    unsafe {
        let Some(shared) = ((*link).shared as *const LinkShared).as_ref() else { return false };
        if shared.enabled.load(Relaxed) & LinkShared::ON == 0 {
            return false;
        }
        if (*link).pid == 0 {
            return true;
        }
        let Some(block) = block.as_ref() else { return true };
        let page = block.fork_page as *const ForkPage;
        page.as_ref().is_none_or(|page| AtomicU32::load(&page.attached, Relaxed) == (*link).pid)
    }
}

/// Runs one program.
unsafe fn call(link: *const LinkRuntime, run: *mut RunContext, context: u64) {
    // SAFETY: the link's entry is that of a program, whose conventions are those of `abi::code`.
    unsafe {
        (*run).link = link as u64;
        (*run).tail_calls = 0;
        let needs_cpu = (*link).flags & LinkRuntime::NEEDS_CPU != 0;
        if !needs_cpu {
            // A stub leaves there what it claimed last.
            (*run).access.cpu = RunContext::NO_CPU;
        } else if cpu::claim(run) == 0 {
            process::count_miss(link);
            return;
        }
        if (*link).flags & LinkRuntime::COUNTS_HITS != 0 {
            AtomicU64::from_ptr((&raw const (*link).hits).cast_mut()).fetch_add(1, Relaxed);
            (*((*link).shared as *const LinkShared)).hits.fetch_add(1, Relaxed);
        }
        let program = core::mem::transmute::<u64, Program>((*link).entry);
        program(context as *mut u8, run);
        if needs_cpu {
            cpu::release(run);
        }
    }
}

type Program = unsafe extern "sysv64" fn(context: *mut u8, run: *mut RunContext) -> u64;

/// Notes a call of which only the stub before it knew the number.
#[cold]
#[inline(never)]
unsafe fn note(slot: *mut ThreadSlot, sp: u64, number: u64) {
    // SAFETY: the calling thread's slot.
    unsafe {
        let top = (*slot).pending_top;
        if let Some(place) = (*slot).pending.get_mut(top as usize % PENDING) {
            *place = PendingCall { sp, number };
        }
        (*slot).pending_top = top.wrapping_add(1);
    }
}

/// The number of the call that returns with these registers, with [`PendingCall::NOTED`] when its note is gone; none when it began before
/// anybody wanted it. Calls of signal handlers that were left are forgotten with it.
#[cold]
#[inline(never)]
unsafe fn recall(slot: *mut ThreadSlot, registers: *const PtRegs) -> Option<u64> {
    // SAFETY: the calling thread's slot and registers.
    unsafe {
        let (sp, result) = ((*registers).sp, (*registers).ax);
        let is_guest = identity::guest(&raw const (*slot).run) != 0;
        let top = (*slot).pending_top;
        for back in 1..=PENDING as u64 {
            let at = top.wrapping_sub(back);
            let place = (*slot).pending.get_mut(at as usize % PENDING)?;
            let number = u64::from(place.number as u32);
            let in_child = place.sp & PendingCall::IN_CHILD != 0;
            if place.sp == sp {
                place.sp = 0;
                (*slot).pending_top = at;
                return Some(number | PendingCall::NOTED);
            }
            if in_child && !is_guest {
                // The parent goes on: behind this call, or somewhere else.
                let is_end = place.sp == sp | PendingCall::IN_CHILD;
                place.sp = 0;
                (*slot).pending_top = at;
                return is_end.then_some(number);
            }
            // A child on its parent's memory, with another stack.
            if is_guest && !in_child && place.sp != 0 && result == 0 && CLONES.contains(&number) {
                place.sp |= PendingCall::IN_CHILD;
                return Some(number);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;

    fn slot() -> Box<ThreadSlot> {
        // SAFETY: all fields may be zero.
        unsafe { Box::new(core::mem::zeroed()) }
    }

    /// The number of the call that returns there with this result.
    unsafe fn returns(slot: *mut ThreadSlot, sp: u64, ax: u64) -> Option<u64> {
        let registers = PtRegs { sp, ax, ..PtRegs::default() };
        // SAFETY: the calling thread's slot.
        unsafe { recall(slot, &registers).map(|number| u64::from(number as u32)) }
    }

    /// Calls that have returned in a child on the same memory return in the parent as well.
    #[test]
    fn numbers_of_calls_that_return_twice() {
        // SAFETY: all fields may be zero.
        let (page, mut block): (ForkPage, ProcessBlock) = unsafe { core::mem::zeroed() };
        block.fork_page = &raw const page as u64;
        let mut slot = slot();
        slot.run.process = &raw const block as u64;
        let slot = &raw mut *slot;
        let (owner, child) = (std::process::id(), std::process::id() + 1);
        // SAFETY: a slot of this thread's.
        unsafe {
            note(slot, 0x1000, 56);
            // Somebody else's memory: we are the child.
            page.tgid.store(child, Relaxed);
            assert_eq!(returns(slot, 0x2000, 5), None, "no child begins with this result");
            assert_eq!(returns(slot, 0x2000, 0), Some(56), "on another stack");
            assert_eq!(returns(slot, 0x2000, 0), None, "a child begins once");
            note(slot, 0xf00, 59);
            page.tgid.store(owner, Relaxed);
            assert_eq!(returns(slot, 0x1000, 77), Some(56), "in the parent");
            assert_eq!(returns(slot, 0x1000, 77), None);
            note(slot, 0x1000 | PendingCall::IN_CHILD, 56);
            assert_eq!(returns(slot, 0x3000, 77), None, "its end was not seen");
            assert_eq!(returns(slot, 0x1000, 77), None, "and will not come");
        }
    }

    #[test]
    fn numbers_are_remembered_by_the_stack_pointer() {
        let mut slot = slot();
        let slot = &raw mut *slot;
        // SAFETY: a slot of this thread's.
        let recall = |slot, sp| unsafe { returns(slot, sp, 1) };
        // SAFETY: a slot of this thread's.
        unsafe {
            assert_eq!(recall(slot, 0x1000), None);
            note(slot, 0x1000, 7);
            // A handler on top, which makes a call and another that it leaves by longjmp.
            note(slot, 0x800, 0);
            assert_eq!(recall(slot, 0x800), Some(0));
            note(slot, 0x700, 35);
            assert_eq!(recall(slot, 0x1000), Some(7));
            assert_eq!(recall(slot, 0x1000), None, "it has returned");
            for sp in 1..=20 {
                note(slot, 16 * sp, sp);
            }
            assert_eq!(recall(slot, 320), Some(20));
            assert_eq!(recall(slot, 48), None, "forgotten");
            assert_eq!(recall(slot, 240), Some(15));
        }
    }

    #[test]
    fn lists_by_number() {
        assert_eq!(list_index(39), 39);
        assert_eq!(list_index(u64::MAX), NUMBERS);
        assert_eq!(list_index(0x4000_0027), NUMBERS, "another ABI's");
        assert_eq!(list_index(0xffff_ffff_0000_0001), 1);
        assert_eq!(as_int(0xffff_ffff_0000_0001), 1);
        assert_eq!(as_int(0xffff_ffff), u64::MAX);
    }
}
