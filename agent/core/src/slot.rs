//! The slots of the threads: finding one by the thread's fs base, and the guard word against nested programs.
//!
//! Slots are claimed by open addressing from the home slot on ([`home_index`]). A key is never taken out again, so a
//! search can stop at the first free slot; a thread with the fs base of one that ended finds its slot, and what is cached
//! there is checked where it is used (`helpers::identity`). When no slot is free within reach, one whose thread is gone
//! is taken over.
//!
//! While a thread sets its slot up, the key's lowest bit is set: a signal handler that interrupts it misses its hits.
//!
//! Threads made by `clone` without a thread pointer of their own share their maker's slot. Where that is seen, the key gets its bit
//! [`ThreadSlot::SHARED`]: no stub finds the slot then, and all of them miss their hits.

use crate::{cpu, memory, signal_frame};
use beeline_abi::process::ProcessBlock;
use beeline_abi::run::RunContext;
use beeline_abi::thread::{THREAD_SLOTS, ThreadSlot, home_index};
use beeline_helpers::{identity, read, sys};
use core::ptr::null_mut;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Slots that are looked at from the home slot on.
const REACH: u64 = 128;

/// Set in a key while its slot is being set up.
const UNFINISHED: u64 = 1;

/// The slot of the thread with fs base `key`, claimed if need be; null when the hit must be missed.
///
/// # Safety
///
/// The calling thread has that fs base; `block` is its process's.
pub unsafe extern "sysv64" fn claim(key: u64, block: *mut ProcessBlock, _sp: u64) -> *mut ThreadSlot {
    if key == 0 || key & (UNFINISHED | ThreadSlot::SHARED) != 0 {
        return null_mut();
    }
    // SAFETY: the caller's contract.
    unsafe {
        for distance in 0..REACH {
            let slot = at(block, key, distance);
            match (*slot).key.load(Acquire) {
                0 => match (*slot).key.compare_exchange(0, key | UNFINISHED, Acquire, Acquire) {
                    Ok(_) => return set_up(slot, key, block),
                    Err(found) if found == key => return slot,
                    Err(_) => {}
                },
                found if found == key => return slot,
                found if found == key | ThreadSlot::SHARED => return null_mut(),
                found if found == key | UNFINISHED => return resume(slot, key, block),
                _ => {}
            }
        }
        take_over(key, block)
    }
}

/// The slot at this distance from the home slot of `key`.
unsafe fn at(block: *mut ProcessBlock, key: u64, distance: u64) -> *mut ThreadSlot {
    let index = home_index(key).wrapping_add(distance) % THREAD_SLOTS;
    // SAFETY: the table has THREAD_SLOTS entries.
    unsafe { ((*block).threads as *mut ThreadSlot).add(index as usize) }
}

/// Makes a claimed slot ready and publishes it under its key.
unsafe fn set_up(slot: *mut ThreadSlot, key: u64, block: *mut ProcessBlock) -> *mut ThreadSlot {
    // SAFETY: the slot is ours until its key is stored.
    unsafe {
        let tid = identity::thread_id(block.as_ref());
        if tid == 0 {
            return null_mut();
        }
        (*slot).run.tid = tid;
        (*slot).guard.store(0, Relaxed);
        (*slot).host_return = 0;
        (*slot).rseq = 0;
        (*slot).rseq_tid = 0;
        (*slot).blocked_by = 0;
        cpu::forget_claim(slot);
        let run = &raw mut (*slot).run;
        let scratch = (*run).scratch;
        run.write(RunContext { process: block as u64, scratch, tid, ..RunContext::default() });
        (*run).access.cpu = RunContext::NO_CPU;
        // Without memory there are no return probes and no tasks, but entry probes on ordinary stacks work.
        let complete = memory::provide(slot, block);
        (*slot).returns_top = (*slot).returns_base;
        identity::ids(run);
        (*slot).key.store(key, Release);
        let needs_stack = (*block).flags & ProcessBlock::FLAG_SMALL_STACKS != 0;
        if needs_stack && !complete { null_mut() } else { slot }
    }
}

/// Finds the thread's slot unfinished: it is being set up below this signal handler, or was by a thread that is gone.
unsafe fn resume(slot: *mut ThreadSlot, key: u64, block: *mut ProcessBlock) -> *mut ThreadSlot {
    // SAFETY: nobody else has this key.
    unsafe {
        if (*slot).run.tid == identity::thread_id(block.as_ref()) {
            null_mut()
        } else {
            set_up(slot, key, block)
        }
    }
}

/// Takes a slot of a thread that is gone.
#[cold]
unsafe fn take_over(key: u64, block: *mut ProcessBlock) -> *mut ThreadSlot {
    // SAFETY: the caller's contract.
    unsafe {
        for distance in 0..REACH {
            let slot = at(block, key, distance);
            let old = (*slot).key.load(Acquire);
            if !is_gone(old, block, slot) {
                continue;
            }
            if (*slot).key.compare_exchange(old, key | UNFINISHED, Acquire, Relaxed).is_ok() {
                return set_up(slot, key, block);
            }
        }
        null_mut()
    }
}

/// True when certainly no thread has this fs base: its control block is unmapped, or names no living thread.
///
/// Thread ids in control blocks are known only where `tid_offset` is; elsewhere every thread counts as alive. So does one whose control
/// block may name a stub's restartable sequence: the C library gives the next thread the same memory, older kernels take over
/// what stands there, and the slot is how the injector finds that word, to clear it before the stub goes.
unsafe fn is_gone(key: u64, block: *const ProcessBlock, slot: *const ThreadSlot) -> bool {
    const NO_THREAD: u32 = 0;
    // SAFETY: the caller's block; reading the control block cannot fault.
    unsafe {
        let offset = u64::from((*block).tid_offset);
        if offset == 0 {
            return false;
        }
        let mut tid = NO_THREAD;
        // The calling thread has no slot yet: a run of its own serves the read.
        let mut own = RunContext { process: (*slot).run.process, ..RunContext::default() };
        let base = key & !(UNFINISHED | ThreadSlot::SHARED);
        if !read::copy(&raw mut own, (&raw mut tid).cast(), 4, base.wrapping_add(offset)) {
            return true;
        }
        if ![0, &raw const (*slot).own_rseq as u64].contains(&(*slot).claim_rseq) {
            return false;
        }
        tid == NO_THREAD
            || sys::call4(sys::nr::TGKILL, sys::process_id().into(), tid.into(), 0, 0) == sys::NO_SUCH_PROCESS
    }
}

/// Decides what a set guard word means at a hit with stack pointer `sp`: 1 = the run that set it was abandoned, 0 = it
/// goes on below, in a frame that a signal interrupted, and this hit is missed.
///
/// Stacks grow down: on one stack, a running program's frame lies above every nested hit, with a signal frame between them
/// ([`signal_frame`]). A CPU that an abandoned run owned is given back: the stub claims the next without a look at it.
///
/// # Safety
///
/// `slot` is the calling thread's.
pub unsafe extern "sysv64" fn guard(slot: *mut ThreadSlot, sp: u64) -> u64 {
    // SAFETY: the caller's contract.
    unsafe {
        let abandoned = is_abandoned(slot, sp);
        if abandoned {
            (*slot).host_return = 0;
            cpu::give_up(&raw mut (*slot).run);
        }
        u64::from(abandoned)
    }
}

/// The run that set the guard word does not go on.
unsafe fn is_abandoned(slot: *mut ThreadSlot, sp: u64) -> bool {
    // SAFETY: the caller's contract.
    unsafe {
        let guard = (*slot).guard.load(Relaxed);
        if guard == 0 {
            return true;
        }
        let private = (*slot).memory..(*slot).stack_top;
        if private.contains(&sp) {
            // Only programs and what interrupts them run there.
            return false;
        }
        if let Some(gone) = is_of_another(slot) {
            return gone;
        }
        let host_return = (*slot).host_return;
        if host_return != 0 {
            let mut word = 0u64;
            let copied = read::copy(&raw mut (*slot).run, (&raw mut word).cast(), 8, guard.wrapping_sub(8));
            if !copied || word != host_return {
                return true;
            }
        }
        if let Some(alternate) = alternate_stack() {
            match (alternate.contains(&sp), alternate.contains(&guard)) {
                (true, false) => return false,
                (false, true) => return true,
                _ => {}
            }
        }
        sp >= guard || host_return == 0 && !signal_frame::may_lie_between(slot, sp, guard)
    }
}

/// When another thread set the guard word: it does not go on there. Else none.
unsafe fn is_of_another(slot: *mut ThreadSlot) -> Option<bool> {
    // SAFETY: the caller's slot.
    unsafe {
        let run = &raw const (*slot).run;
        let block = ((*run).process as *const ProcessBlock).as_ref();
        if identity::is_known(run) {
            // The control block names the thread of the run: it is that of the calling thread as well, if that is another.
            let (tid, tgid) = (sys::thread_id(), (*run).tgid);
            let other = tid != 0 && tid != (*run).tid;
            if other && sys::process_id() == tgid {
                share(slot);
            }
            return other.then_some(false);
        }
        (![0, (*run).tid].contains(&identity::thread_id(block))).then_some(true)
    }
}

/// The slot is nobody's from now on: more than one thread finds it.
///
/// # Safety
///
/// `slot` is one of the table.
pub(crate) unsafe fn share(slot: *mut ThreadSlot) {
    // SAFETY: the caller's contract.
    unsafe { (*slot).key.fetch_or(ThreadSlot::SHARED, Release) };
}

/// The thread's alternate signal stack.
fn alternate_stack() -> Option<core::ops::Range<u64>> {
    const SIGALTSTACK: u64 = 131;
    const SS_DISABLE: u64 = 2;
    // `stack_t`: address, flags (an int), size.
    let mut stack = [0u64; 3];
    // SAFETY: the kernel writes one `stack_t`.
    let result = unsafe { sys::call2(SIGALTSTACK, 0, stack.as_mut_ptr() as u64) };
    let [start, flags, len] = stack;
    (result == 0 && flags & SS_DISABLE == 0).then(|| start..start.wrapping_add(len))
}
