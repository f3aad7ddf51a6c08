//! Calls that the kernel hands over in place of making them.
//!
//! The handler only claims a slot with the call's address, and lets the thread go on there when it has returned: the programs run outside of
//! it, and what the call does, on which stack it returns, and whether it does, is as without us.

use super::actions::{dispatch_of, is_own};
use super::kernel::{call_as, read, write};
use beeline_abi::calls::SET_DISPATCH_GATE;
use beeline_abi::dispatch::{
    BLOCKING, BlockingBits, Dispatch, DispatchEntry, Known, KnownRange, SIGSYS, SLOT_LEN,
};
use beeline_abi::errno::EINVAL;
use beeline_abi::guard::{CLONE3, Guard, bit};
use beeline_abi::regs::PtRegs;
use beeline_abi::thread::HASH_MULTIPLIER;
use core::arch::asm;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

/// Offsets in `siginfo_t` of `SIGSYS` (`include/uapi/asm-generic/siginfo.h`): the call's address, its architecture.
const CALL: u64 = 16;
const ARCHITECTURE: u64 = 28;
/// `AUDIT_ARCH_X86_64`.
const X86_64: u32 = 0xc000_003e;
/// Offsets in `struct ucontext` (`arch/x86/include/uapi/asm/sigcontext.h`).
const RDI: u64 = 104;
const RAX: u64 = 144;
const RCX: u64 = 152;
const PC: u64 = 168;
/// Bytes of `syscall`, and of `int 0x80`.
const CALL_LEN: u64 = 2;

/// `clone`, `vfork`, `prctl`.
const CLONE: u64 = 56;
const VFORK: u64 = 58;
const PRCTL: u64 = 157;
/// `CLONE_VM`, `CLONE_VFORK`, `CLONE_THREAD` (`include/uapi/linux/sched.h`).
const CLONE_VM: u64 = 0x100;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_THREAD: u64 = 0x1_0000;
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
    // SAFETY: the caller's contract.
    let (called, architecture, number, first, rcx, pc) = unsafe {
        (
            *((info + CALL) as *const u64),
            *((info + ARCHITECTURE) as *const u32),
            *((context + RAX) as *const u64),
            *((context + RDI) as *const u64),
            &mut *((context + RCX) as *mut u64),
            &mut *((context + PC) as *mut u64),
        )
    };
    if called != *pc {
        // Somebody sends it.
        return false;
    }
    let number = u64::from(number as u32);
    if number == RT_SIGRETURN && architecture == X86_64 {
        *pc = dispatch.restorer;
        return true;
    }
    let claimed = match architecture {
        X86_64 => {
            let times = times(guard, number, first);
            // SAFETY: the injector wrote the table.
            claim(dispatch, *pc, unsafe { is_known(dispatch, *pc) }, times)
        }
        _ => {
            dispatch.missed.fetch_add(1, Relaxed);
            claim_of(group(dispatch, FIXED), *pc, 1).map(|entry| (entry, FIXED))
        }
    };
    match claimed {
        Some((entry, kind)) => {
            if kind == TRACED {
                *rcx = entry as *const DispatchEntry as u64;
                *pc = dispatch.enter.load(Relaxed);
            } else {
                *pc = entry.slot;
            }
        }
        None => {
            set(guard, OFF, [0; 2]);
            // The call is made from its place. When nothing could be turned off it comes here again.
            *pc = pc.wrapping_sub(CALL_LEN);
        }
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
    let [first, ..] = &dispatch.entries;
    let index = call.wrapping_sub(first.slot + CALL_LEN) / SLOT_LEN;
    let Some(entry) = dispatch.entries.get(index as usize) else { return };
    if *call == entry.slot + CALL_LEN && *pc == *call {
        *call = entry.behind.load(Acquire);
        *pc = *call;
        entry.threads.fetch_sub(1, AcqRel);
    }
}

/// Kinds of entries: with programs, without, for `int 0x80`.
const TRACED: usize = 0;
const PLAIN: usize = 1;
const FIXED: usize = 2;

fn group(dispatch: &Dispatch, kind: usize) -> &[DispatchEntry] {
    let first = [0, dispatch.traced, dispatch.traced + dispatch.plain].get(kind).copied().unwrap_or(0);
    let len = [dispatch.traced, dispatch.plain, dispatch.fixed].get(kind).copied().unwrap_or(0);
    dispatch.entries.get(first as usize..(first + len) as usize).unwrap_or(&[])
}

/// How many threads come back from a call, with this first argument, through its slot.
fn times(guard: &Guard, number: u64, first: u64) -> u64 {
    // A child with memory of its own comes back through its own.
    if clone_flags(guard, number, first) & CLONE_VM != 0 { 2 } else { 1 }
}

/// The flags of a call that makes a thread or process; none of another call.
fn clone_flags(guard: &Guard, number: u64, first: u64) -> u64 {
    match number {
        CLONE => first,
        CLONE3 => read::<1>(guard, first).map_or(0, |[flags]| flags),
        VFORK => CLONE_VM | CLONE_VFORK,
        _ => 0,
    }
}

/// An entry for the call before `behind`, and its kind. Calls of known code need no programs; where no slot with programs is
/// free, others do without, which is a miss; so is one without any.
fn claim(dispatch: &Dispatch, behind: u64, is_known: bool, times: u64) -> Option<(&DispatchEntry, usize)> {
    if !is_known {
        let traced = claim_of(group(dispatch, TRACED), behind, times);
        let count = if traced.is_some() { &dispatch.calls } else { &dispatch.missed };
        count.fetch_add(1, Relaxed);
        if let Some(entry) = traced {
            return Some((entry, TRACED));
        }
    }
    claim_of(group(dispatch, PLAIN), behind, times).map(|entry| (entry, PLAIN))
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

/// The call before this address has jumps around it, or is one of ours.
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

/// In a child, which begins without: its calls are dispatched as its maker's are. Not in one that runs beside its maker on the same memory
/// as another process: whoever takes everything out of one of them does not know of the other. `number` is that of the call that made
/// it, where it is known.
pub(super) fn in_child(guard: &Guard, number: Option<u64>, registers: &PtRegs) {
    let Some(dispatch) = dispatch_of(guard) else { return };
    let flags = number.map(|number| clone_flags(guard, number, registers.di));
    let is_ours = match flags {
        Some(flags) => {
            if flags & CLONE_THREAD != 0
                && let Some(entry) = thread_pointer().and_then(|thread| blocking(dispatch, thread))
            {
                // Of one that had its memory before.
                entry.store(0, Relaxed);
            }
            flags & CLONE_VM == 0 || flags & (CLONE_THREAD | CLONE_VFORK) != 0
        }
        None => is_own(guard),
    };
    if flags.is_some_and(|flags| flags & CLONE_VM == 0) {
        // The threads that are on their way there are its maker's.
        for entry in &dispatch.entries {
            let is_its = entry.behind.load(Relaxed) == registers.ip;
            entry.threads.store(u64::from(is_its), Relaxed);
        }
        dispatch.calls.store(0, Relaxed);
        dispatch.missed.store(0, Relaxed);
    }
    if is_ours && dispatch.is_on.load(Relaxed) != 0 {
        set(guard, ON, [dispatch.start, dispatch.len]);
    }
}

/// Sets it for the calling thread.
fn set(guard: &Guard, mode: u64, [start, len]: [u64; 2]) {
    // SAFETY: it takes no address but those of the range.
    unsafe { call_as(guard, SET_DISPATCH_GATE, PRCTL, [PR_SET_DISPATCH, mode, start, len, 0, 0]) };
}

/// Before `prctl`: a thread cannot have its calls handed to itself meanwhile, as on a kernel that does not know of it: nobody could tell
/// which are ours. 1: the call is not to be made, its result is `registers.ax`.
pub(super) fn before_prctl(guard: &Guard, registers: &mut PtRegs) -> u64 {
    let is_on = dispatch_of(guard).is_some_and(|dispatch| dispatch.is_on.load(Relaxed) != 0);
    if registers.di as u32 != PR_SET_DISPATCH as u32 || !is_on {
        return 0;
    }
    // Nothing is there to be turned off; the kernel wants the other arguments to be 0 then (`kernel/entry/syscall_user_dispatch.c`).
    let is_off = registers.si == OFF && registers.dx | registers.r10 | registers.r8 == 0;
    registers.ax = if is_off { 0 } else { (-EINVAL) as u64 };
    1
}

/// The entry of a thread that wants the signal blocked.
fn blocking(dispatch: &Dispatch, thread: u64) -> Option<&AtomicU64> {
    let used = dispatch.blocking_top.load(Acquire).min(BLOCKING as u64);
    let mut used = dispatch.blocking.get(..used as usize)?.iter();
    used.find(|entry| entry.load(Relaxed) & !BlockingBits::ALL == thread)
}

/// Sets what is known of a thread that has no entry. Where there is no room for it nothing is: it does not block the signal afterwards.
fn add_blocking(dispatch: &Dispatch, word: u64) {
    for (index, entry) in (1..).zip(&dispatch.blocking) {
        if entry.load(Relaxed) == 0 && entry.compare_exchange(0, word, AcqRel, Relaxed).is_ok() {
            dispatch.blocking_top.fetch_max(index, AcqRel);
            return;
        }
    }
}

/// Before `rt_sigprocmask(how, set, old, size)`: whether the thread wants the signal blocked from now on.
pub(super) fn note_mask(guard: &Guard, registers: &PtRegs) {
    const BLOCK: u32 = 0;
    const UNBLOCK: u32 = 1;
    const SET: u32 = 2;
    let Some(dispatch) = dispatch_of(guard) else { return };
    let Some(thread) = thread_pointer() else { return };
    let entry = blocking(dispatch, thread);
    let before = entry.is_some_and(|entry| entry.load(Relaxed) & BlockingBits::NOW != 0);
    let given = if registers.si == 0 { None } else { read::<1>(guard, registers.si) };
    let given = given.map(|[mask]| mask & bit(SIGSYS) != 0);
    let now = match (registers.di as u32, given) {
        (BLOCK, Some(given)) => before || given,
        (UNBLOCK, Some(given)) => before && !given,
        (SET, Some(given)) => given,
        _ => before,
    };
    if !before && !now {
        return;
    }
    let word = |is: bool, bit: u64| if is { bit } else { 0 };
    let unchanged = entry.filter(|_| registers.si == 0);
    let since = unchanged.map_or(0, |entry| entry.load(Relaxed) & BlockingBits::SINCE_ATTACH);
    let word = thread | since | word(now, BlockingBits::NOW) | word(before, BlockingBits::BEFORE);
    match entry {
        Some(entry) => entry.store(word, Relaxed),
        None => add_blocking(dispatch, word),
    }
}

/// Behind it: the former mask is what the thread thinks that it was.
pub(super) fn show_mask(guard: &Guard, registers: &PtRegs) {
    let Some(dispatch) = dispatch_of(guard) else { return };
    let Some(thread) = thread_pointer() else { return };
    let Some(entry) = blocking(dispatch, thread) else { return };
    let word = entry.load(Relaxed);
    let before = word & BlockingBits::BEFORE != 0;
    if registers.ax == 0
        && before
        && registers.dx != 0
        && let Some([old]) = read(guard, registers.dx)
    {
        write(guard, registers.dx, [old | bit(SIGSYS)]);
    }
    // One that failed has changed nothing.
    let now = if registers.ax == 0 { word & BlockingBits::NOW != 0 } else { before };
    let since = word & BlockingBits::SINCE_ATTACH;
    entry.store(if now { thread | since | BlockingBits::NOW } else { 0 }, Relaxed);
}

/// By it threads are told apart; none where one has no pointer that can stand in the list. Only where calls are dispatched.
fn thread_pointer() -> Option<u64> {
    let pointer: u64;
    // SAFETY: the injector has made sure that processes may (`HWCAP2_FSGSBASE`).
    unsafe { asm!("rdfsbase {}", out(reg) pointer, options(nomem, nostack, preserves_flags)) };
    (pointer != 0 && pointer & BlockingBits::ALL == 0).then_some(pointer)
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
        let claim = |behind, is_known| claim(&dispatch, behind, is_known, 1);
        let (first, traced) = claim(0x1000, false).unwrap();
        assert!(traced == TRACED && core::ptr::eq(claim(0x1000, false).unwrap().0, first));
        assert_eq!(first.threads.load(Relaxed), 2);
        let (second, _) = claim(0x2000, false).unwrap();
        assert!(!core::ptr::eq(first, second));
        let (third, traced) = claim(0x3000, false).unwrap();
        assert_eq!((traced, dispatch.missed.load(Relaxed)), (PLAIN, 1), "no slot with programs is free");
        assert!(claim(0x4000, true).is_none() && claim(0x4000, false).is_none());
        second.threads.fetch_sub(1, Relaxed);
        let (again, traced) = claim(0x4000, false).unwrap();
        assert!(traced == TRACED && core::ptr::eq(again, second) && again.behind.load(Relaxed) == 0x4000);
        third.threads.fetch_sub(1, Relaxed);
        assert_eq!(claim(0x5000, true).unwrap().1, PLAIN, "known code runs no programs here");
    }

    #[test]
    fn who_comes_back() {
        let dispatch = dispatch(1, 0);
        let threads = || dispatch.entries[0].threads.load(Relaxed);
        claim(&dispatch, 0x1000, false, 2).unwrap();
        assert_eq!(threads(), 2);
        // SAFETY: a guard of no process.
        let guard: Box<Guard> = unsafe { Box::new(core::mem::zeroed()) };
        let times = |number, flags| times(&guard, number, flags);
        assert_eq!((times(CLONE, 17), times(CLONE, CLONE_VM | 17), times(VFORK, 0)), (1, 2, 2));
        assert_eq!(times(39, CLONE_VM), 1);
    }

    #[test]
    fn who_wants_the_signal_blocked() {
        let dispatch = dispatch(0, 0);
        // SAFETY: a guard of no process, which lets every call pass.
        let mut guard: Box<Guard> = unsafe { Box::new(core::mem::zeroed()) };
        let gate = beeline_abi::calls::CallGate::new();
        guard.call_gate = &raw const gate as u64;
        guard.dispatch = (&raw const *dispatch as u64).into();
        let is_noted = || dispatch.blocking.iter().any(|entry| entry.load(Relaxed) & BlockingBits::NOW != 0);
        let call = |how: u64, mask: u64, result: i64| {
            let old = 0u64;
            let mut registers = PtRegs { di: how, si: &raw const mask as u64, r10: 8, ..PtRegs::default() };
            registers.dx = &raw const old as u64;
            note_mask(&guard, &registers);
            registers.ax = result as u64;
            show_mask(&guard, &registers);
            // SAFETY: ours.
            let old = unsafe { (&raw const old).read_volatile() };
            (is_noted(), old == bit(SIGSYS))
        };
        assert_eq!(call(0, 1, 0), (false, false));
        assert_eq!(call(0, u64::MAX, -22), (false, false), "it failed");
        assert_eq!(call(0, u64::MAX, 0), (true, false));
        assert_eq!(call(0, 1, 0), (true, true), "as it thinks that it was");
        assert_eq!(call(1, 1, 0), (true, true));
        assert_eq!(call(2, 1, 0), (false, true));
        assert_eq!(call(2, u64::MAX, 0), (true, false));
        assert_eq!(call(1, bit(SIGSYS), 0), (false, true));
        assert_eq!(call(1, bit(SIGSYS), 0), (false, false));
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
