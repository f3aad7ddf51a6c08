//! Calls that the kernel hands over in place of making them.
//!
//! The handler only claims a slot with the call's address, and lets the thread go on there when it has returned: the programs run outside of
//! it, and what the call does, on which stack it returns, and whether it does, is as without us.

use super::actions::dispatch_of;
use super::kernel::{call_as, thread_id};
use beeline_abi::calls::{NOT_MADE, SET_DISPATCH_GATE};
use beeline_abi::dispatch::{Dispatch, DispatchEntry, Known, KnownRange, SLOT_LEN};
use beeline_abi::errno::EINVAL;
use beeline_abi::guard::Guard;
use beeline_abi::regs::PtRegs;
use beeline_abi::system_call::CLONES;
use beeline_abi::thread::HASH_MULTIPLIER;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

/// Offsets in `siginfo_t` of `SIGSYS` (`include/uapi/asm-generic/siginfo.h`): the call's address, its architecture.
const CALL: u64 = 16;
const ARCHITECTURE: u64 = 28;
/// `AUDIT_ARCH_X86_64`.
const X86_64: u32 = 0xc000_003e;
/// Offsets in `struct ucontext` (`arch/x86/include/uapi/asm/sigcontext.h`).
const RAX: u64 = 144;
const RCX: u64 = 152;
const PC: u64 = 168;
/// Bytes of `syscall`, and of `int 0x80`.
const CALL_LEN: u64 = 2;

/// `prctl`.
const PRCTL: u64 = 157;
/// `rt_sigreturn`.
const RT_SIGRETURN: u64 = 15;
/// `PR_SET_SYSCALL_USER_DISPATCH`, `PR_SYS_DISPATCH_OFF`, `PR_SYS_DISPATCH_ON`.
const PR_SET_DISPATCH: u64 = 59;
const OFF: u64 = 0;
const ON: u64 = 1;

/// Lets a thread go on in a slot, whose call was handed over; false when that is for the process itself.
///
/// # Safety
///
/// The arguments are those of a handler of `SIGSYS`.
pub(super) unsafe fn take(guard: &Guard, info: u64, context: u64) -> bool {
    let Some(dispatch) = dispatch_of(guard) else { return false };
    if is_foreign(guard, dispatch) {
        return false;
    }
    // SAFETY: the caller's contract.
    let (number, rcx, pc, architecture) = unsafe {
        (
            *((context + RAX) as *const u64),
            &mut *((context + RCX) as *mut u64),
            &mut *((context + PC) as *mut u64),
            *((info + ARCHITECTURE) as *const u32),
        )
    };
    let number = u64::from(number as u32);
    if number == RT_SIGRETURN && architecture == X86_64 {
        *pc = dispatch.restorer;
        return true;
    }
    // SAFETY: the injector wrote the table.
    let is_known = unsafe { is_known(dispatch, *pc) };
    let claimed = if architecture == X86_64 { claim(dispatch, *pc, is_known, number) } else { None };
    let Some((entry, traced)) = claimed else {
        dispatch.missed.fetch_add(1, Relaxed);
        set(guard, OFF, [0; 2]);
        // The call is made from its place. When nothing could be turned off it comes here again.
        *pc = pc.wrapping_sub(CALL_LEN);
        return true;
    };
    *rcx = entry as *const DispatchEntry as u64;
    *pc = if traced { dispatch.enter.load(Relaxed) } else { entry.slot };
    let count = if traced { &dispatch.calls } else { &dispatch.missed };
    if traced || !is_known {
        count.fetch_add(1, Relaxed);
    }
    true
}

/// A filter of the process has trapped a call in a slot: the process is to see where it made it.
///
/// # Safety
///
/// As for [`take`].
pub(super) unsafe fn show_place(guard: &Guard, info: u64, context: u64) {
    let Some(dispatch) = dispatch_of(guard) else { return };
    // SAFETY: the caller's contract.
    let (call, pc) = unsafe { (&mut *((info + CALL) as *mut u64), &mut *((context + PC) as *mut u64)) };
    let Some([first, ..]) = dispatch.entries.get(..slots(dispatch)) else { return };
    let index = call.wrapping_sub(first.slot + CALL_LEN) / SLOT_LEN;
    let Some(entry) = dispatch.entries.get(..slots(dispatch)).and_then(|them| them.get(index as usize))
    else {
        return;
    };
    if *call == entry.slot + CALL_LEN && *pc == *call {
        *call = entry.behind.load(Acquire);
        *pc = *call;
        entry.threads.fetch_sub(1, AcqRel);
    }
}

fn slots(dispatch: &Dispatch) -> usize {
    (dispatch.traced + dispatch.plain) as usize
}

/// An entry for the call before `behind`, and whether programs run there. Calls of known code need none; where no slot with programs is
/// free, others do without.
fn claim(dispatch: &Dispatch, behind: u64, is_known: bool, number: u64) -> Option<(&DispatchEntry, bool)> {
    // These come back in a child, too.
    let times = if CLONES.contains(&number) { 2 } else { 1 };
    let (traced, plain) =
        dispatch.entries.get(..slots(dispatch))?.split_at_checked(dispatch.traced as usize)?;
    if !is_known && let Some(entry) = claim_of(traced, behind, times) {
        return Some((entry, true));
    }
    claim_of(plain, behind, times).map(|entry| (entry, false))
}

/// The entry that has this address already, or one that nobody is on his way through.
fn claim_of(entries: &[DispatchEntry], behind: u64, times: u64) -> Option<&DispatchEntry> {
    let home = (behind.wrapping_mul(HASH_MULTIPLIER) >> 32) as usize;
    let at = |distance: usize| entries.get(home.wrapping_add(distance).checked_rem(entries.len())?);
    for entry in (0..entries.len()).map_while(at) {
        match entry.behind.load(Acquire) {
            0 => break,
            its if its != behind => continue,
            _ => {}
        }
        let before = entry.threads.fetch_add(times, AcqRel);
        if before & DispatchEntry::TAKING == 0 && entry.behind.load(Acquire) == behind {
            return Some(entry);
        }
        entry.threads.fetch_sub(times, AcqRel);
    }
    let take = |entry: &&DispatchEntry| {
        let taking = DispatchEntry::TAKING + times;
        entry.threads.load(Relaxed) == 0 && entry.threads.compare_exchange(0, taking, AcqRel, Relaxed).is_ok()
    };
    let entry = (0..entries.len()).map_while(at).find(take)?;
    entry.behind.store(behind, Release);
    entry.threads.fetch_sub(DispatchEntry::TAKING, AcqRel);
    Some(entry)
}

/// The call before this address is one of a file's, or of ours.
///
/// # Safety
///
/// The injector wrote the table.
unsafe fn is_known(dispatch: &Dispatch, behind: u64) -> bool {
    let table = dispatch.known.load(Acquire);
    // SAFETY: the caller's contract.
    unsafe {
        let Some(known) = (table as *const Known).as_ref() else { return false };
        let first = (table + size_of::<Known>() as u64) as *const KnownRange;
        let (mut from, mut to) = (0, known.count);
        while from < to {
            let middle = (from + to) / 2;
            let range = *first.add(middle as usize);
            if behind < range.start {
                to = middle;
            } else if behind >= range.end {
                from = middle + 1;
            } else {
                return true;
            }
        }
        false
    }
}

/// In a child, which begins without: its calls are dispatched as its maker's are.
pub(super) fn in_child(guard: &Guard) {
    if let Some(dispatch) = dispatch_of(guard)
        && dispatch.is_on.load(Relaxed) != 0
    {
        // One with its id may have been before.
        remove_foreigner(guard, dispatch);
        set(guard, ON, [dispatch.start, dispatch.len]);
    }
}

/// Sets it for the calling thread: the call's result.
fn set(guard: &Guard, mode: u64, [start, len]: [u64; 2]) -> i64 {
    // SAFETY: it takes no address but those of the range.
    unsafe { call_as(guard, SET_DISPATCH_GATE, PRCTL, [PR_SET_DISPATCH, mode, start, len, 0, 0]) }
}

/// Before `prctl`: a thread that wants to have its calls handed to itself gets them, and they are not ours any more, until it wants none.
/// 1: the call is not to be made, its result is `registers.ax`.
pub(super) fn before_prctl(guard: &Guard, registers: &mut PtRegs) -> u64 {
    let Some(dispatch) = dispatch_of(guard) else { return 0 };
    if registers.di as u32 != PR_SET_DISPATCH as u32 || dispatch.is_on.load(Relaxed) == 0 {
        return 0;
    }
    if registers.si != OFF {
        if add_foreigner(guard, dispatch) {
            return 0;
        }
        // Whose a call is could not be told. A kernel without this says the same.
        registers.ax = (-EINVAL) as u64;
        return 1;
    }
    // The kernel wants the others to be 0 (`kernel/entry/syscall_user_dispatch.c`).
    if registers.dx | registers.r10 | registers.r8 != 0 {
        registers.ax = (-EINVAL) as u64;
        return 1;
    }
    remove_foreigner(guard, dispatch);
    match set(guard, ON, [dispatch.start, dispatch.len]) {
        NOT_MADE => 0,
        result => {
            registers.ax = result as u64;
            1
        }
    }
}

/// The calling thread has calls handed to itself.
fn is_foreign(guard: &Guard, dispatch: &Dispatch) -> bool {
    if dispatch.foreigners.load(Relaxed) == 0 {
        return false;
    }
    let thread = thread_id(guard);
    dispatch.foreign.iter().any(|foreigner| foreigner.load(Relaxed) == thread)
}

/// False when there are too many. A call that then fails has made it one for nothing: it is not traced any more.
fn add_foreigner(guard: &Guard, dispatch: &Dispatch) -> bool {
    let thread = thread_id(guard);
    dispatch.foreigners.fetch_add(1, Relaxed);
    let is_it = |foreigner: u32| foreigner == 0 || foreigner == thread;
    dispatch.foreign.iter().any(|it| {
        is_it(it.load(Relaxed))
            && it.fetch_update(AcqRel, Relaxed, |now| is_it(now).then_some(thread)).is_ok()
    })
}

fn remove_foreigner(guard: &Guard, dispatch: &Dispatch) {
    if dispatch.foreigners.load(Relaxed) == 0 {
        return;
    }
    let thread = thread_id(guard);
    for foreigner in dispatch.foreign.iter().filter(|it| it.load(Relaxed) == thread) {
        foreigner.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;

    fn dispatch(traced: u64, plain: u64) -> Box<Dispatch> {
        // SAFETY: all fields may be zero.
        let mut dispatch: Box<Dispatch> = unsafe { Box::new(core::mem::zeroed()) };
        (dispatch.traced, dispatch.plain) = (traced, plain);
        dispatch
    }

    #[test]
    fn slots_are_shared_by_address_and_used_again() {
        let dispatch = dispatch(2, 1);
        let claim = |behind, is_known| claim(&dispatch, behind, is_known, 39);
        let (first, traced) = claim(0x1000, false).unwrap();
        assert!(traced && core::ptr::eq(claim(0x1000, false).unwrap().0, first));
        assert_eq!(first.threads.load(Relaxed), 2);
        let (second, _) = claim(0x2000, false).unwrap();
        assert!(!core::ptr::eq(first, second));
        let (third, traced) = claim(0x3000, false).unwrap();
        assert!(!traced, "no slot with programs is free");
        assert!(claim(0x4000, true).is_none() && claim(0x4000, false).is_none());
        second.threads.fetch_sub(1, Relaxed);
        let (again, traced) = claim(0x4000, false).unwrap();
        assert!(traced && core::ptr::eq(again, second) && again.behind.load(Relaxed) == 0x4000);
        third.threads.fetch_sub(1, Relaxed);
        assert!(!claim(0x5000, true).unwrap().1, "known code runs no programs here");
    }

    #[test]
    fn children_come_back_too() {
        let dispatch = dispatch(1, 0);
        assert_eq!(claim(&dispatch, 0x1000, false, 56).unwrap().0.threads.load(Relaxed), 2);
    }

    #[test]
    fn ranges_of_known_code() {
        #[repr(C)]
        struct Table(Known, [KnownRange; 3]);
        let range = |start, end| KnownRange { start, end };
        let table = Table(Known { count: 3 }, [range(16, 32), range(32, 40), range(80, 96)]);
        let dispatch = dispatch(0, 0);
        // SAFETY: such a table.
        let is_known = |behind| unsafe { is_known(&dispatch, behind) };
        assert!(!is_known(20), "there is no table");
        dispatch.known.store(&raw const table as u64, Relaxed);
        assert!(is_known(16) && is_known(39) && is_known(95));
        assert!(!is_known(15) && !is_known(40) && !is_known(96));
    }
}
