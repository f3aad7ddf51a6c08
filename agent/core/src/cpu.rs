//! Owning a CPU of the store for one run.
//!
//! A [`CpuSlot`] says which thread runs a program that touches this CPU's data; all processes of the store share the
//! slots. A slot is taken in a restartable sequence on its CPU ([`rseq`]) and given back by a plain store,
//! from wherever the owner runs by then. A thread that finds the slot taken by another lets that one run: it was
//! preempted, seldom for long.
//!
//! - An owner that died is found by its owner word, and its slot is freed.
//! - An owner that is stopped (a debugger, `SIGSTOP`) is waited for once, for 2 ms; from then on the hit is missed at
//!   once until somebody else owns the CPU.
//! - A run that was abandoned (`longjmp` out of a signal handler) leaves its slot taken until the thread's next claim.
//!
//! Threads without a `struct rseq` of their libc get one in their slot. If the kernel refuses, their hits are missed.

use crate::rseq::{self, Claim};
use crate::slot_of;
use beeline_abi::process::{CpuSlot, ForkPage, ProcessBlock};
use beeline_abi::run::RunContext;
use beeline_abi::thread::ThreadSlot;
use beeline_helpers::{identity, sys};
use beeline_maps::owner;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Longest wait for a CPU in nanoseconds.
const WAIT_NS_MAX: u64 = 2_000_000;

/// Waits by yielding before sleeping.
const YIELDS: u32 = 16;

/// Length of a sleep in nanoseconds.
const SLEEP_NS: u32 = 50_000;

/// Makes the calling thread the owner of the CPU that it is on; `run.access.cpu` then names it. 1, or 0 when it could
/// not.
///
/// # Safety
///
/// `run` is that of the calling thread's slot.
pub unsafe extern "sysv64" fn claim(run: *mut RunContext) -> u64 {
    // SAFETY: the caller's contract; the block is that of the process.
    unsafe {
        let block = (*run).process as *const ProcessBlock;
        if block.is_null() {
            return 0;
        }
        if (*run).access.cpu != RunContext::NO_CPU {
            // Left by a run that was abandoned.
            release(run);
        }
        let owner = identity::access(run).owner;
        let area = area(run, block);
        if area.is_null() {
            return 0;
        }
        match rseq::claim(area, slots(block), (*block).cpus, owner) {
            Claim::Taken(cpu) => {
                (*run).access.cpu = cpu;
                1
            }
            Claim::Unregistered => 0,
            Claim::Busy(_) | Claim::Interrupted => wait_and_claim(run, block, area, owner),
        }
    }
}

/// Gives the CPU back. Nothing happens when the run owns none, or the slot has another owner by now.
///
/// # Safety
///
/// As for [`claim`].
pub unsafe extern "sysv64" fn release(run: *mut RunContext) {
    // SAFETY: the caller's contract.
    unsafe {
        let cpu = core::mem::replace(&mut (*run).access.cpu, RunContext::NO_CPU);
        let block = (*run).process as *const ProcessBlock;
        if block.is_null() || cpu >= (*block).cpus {
            return;
        }
        // In the child of a fork out of a run, the slot is the parent's.
        let page = (*block).fork_page as *const ForkPage;
        if !page.is_null() && (*page).epoch.load(Relaxed) != (*run).ids_epoch {
            return;
        }
        let slot = &(*slots(block).add(cpu as usize)).owner;
        if slot.load(Relaxed) == (*run).access.owner {
            slot.store(0, Release);
        }
    }
}

/// The slots of the CPUs.
unsafe fn slots(block: *const ProcessBlock) -> *const CpuSlot {
    // SAFETY: the caller's block.
    unsafe { (*block).cpu_slots as *const CpuSlot }
}

/// The calling thread's `struct rseq`; null when it has none and gets none.
unsafe fn area(run: *mut RunContext, block: *const ProcessBlock) -> *mut u64 {
    // SAFETY: the run lies in the thread's slot.
    unsafe {
        let slot = slot_of(run);
        if (*block).flags & ProcessBlock::FLAG_RSEQ != 0 {
            return (*slot).key.load(Relaxed).wrapping_add_signed((*block).rseq_offset) as *mut u64;
        }
        if (*slot).rseq_tid == (*run).tid { (*slot).rseq as *mut u64 } else { register(slot) }
    }
}

/// Registers the area in the thread's slot, once for each thread.
#[cold]
#[inline(never)]
unsafe fn register(slot: *mut ThreadSlot) -> *mut u64 {
    // SAFETY: the slot is the calling thread's; the injector unregisters the area before it unmaps the slots.
    unsafe {
        let area = (&raw mut (*slot).own_rseq).cast::<u64>();
        let done = rseq::register(area);
        (*slot).rseq = if done { area as u64 } else { 0 };
        (*slot).rseq_tid = (*slot).run.tid;
        (*slot).rseq as *mut u64
    }
}

/// Lets the owner run, or takes the place of a dead one; 1 when the CPU is ours in the end.
#[cold]
#[inline(never)]
unsafe fn wait_and_claim(
    run: *mut RunContext,
    block: *const ProcessBlock,
    area: *mut u64,
    owner: u64,
) -> u64 {
    // SAFETY: the caller's contract.
    unsafe {
        let slot = slot_of(run);
        let start = sys::clock_ns(beeline_helpers::time::MONOTONIC);
        let mut examined = 0u64;
        let mut round = 0u32;
        loop {
            match rseq::claim(area, slots(block), (*block).cpus, owner) {
                Claim::Taken(cpu) => {
                    (*run).access.cpu = cpu;
                    (*slot).blocked_by = 0;
                    return 1;
                }
                Claim::Unregistered => return 0,
                Claim::Interrupted => {}
                Claim::Busy(cpu) => {
                    let word = &(*slots(block).add(cpu as usize)).owner;
                    let holder = word.load(Acquire);
                    if holder == (*slot).blocked_by && holder != 0 {
                        return 0;
                    }
                    if round >= YIELDS / 2 && holder != examined {
                        examined = holder;
                        if holder != 0 && !owner::is_alive(&(*run).access, holder) {
                            // Only this word frees it: a living owner never stores over another's.
                            let _ = word.compare_exchange(holder, 0, Acquire, Relaxed);
                            continue;
                        }
                    }
                    if sys::clock_ns(beeline_helpers::time::MONOTONIC).wrapping_sub(start) > WAIT_NS_MAX {
                        (*slot).blocked_by = holder;
                        return 0;
                    }
                }
            }
            if round < YIELDS {
                sys::yield_now()
            } else {
                sys::sleep_ns(SLEEP_NS)
            }
            round += 1;
        }
    }
}
