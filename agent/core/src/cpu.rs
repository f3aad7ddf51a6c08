//! Owning a CPU of the store for one run.
//!
//! A [`CpuSlot`] says which thread runs a program that touches this CPU's data; all processes of the store share the
//! slots. A slot is taken in a restartable sequence on its CPU ([`rseq`]) and given back by a plain store,
//! from wherever the owner runs by then. A thread that finds the slot taken by another lets that one run: it was
//! preempted, seldom for long.
//!
//! - An owner that died is found by its owner word, and its slot is freed.
//! - An owner that runs, or would if it had a processor, is waited for once, up to a second: only a starved one needs
//!   that. After it, hits are missed until the owner gives the CPU back.
//! - An owner that is stopped is waited for once, for 100 ms: attach and detach stop a process for less. If it is a
//!   debugger or `SIGSTOP`, hits are missed after that until the owner runs. One that sleeps, because a signal handler
//!   interrupted its program, is waited for once, for 2 ms.
//! - Where a seccomp filter forbids to look, an owner is waited for as if it were stopped.
//! - A run that was abandoned (`longjmp` out of a signal handler) leaves its slot taken until the thread's next hit.
//!
//! Where nothing of this is needed, the stub takes and gives back the slot without the agent (`stub`'s `cpu_gates`): a thread's
//! first claim comes here, and every one that finds something changed.
//!
//! Threads without a `struct rseq` of their libc get one in their slot. If the kernel refuses, their hits are missed.

use crate::rseq::{self, Claim};
use crate::slot_of;
use beeline_abi::map::Access;
use beeline_abi::process::{CpuSlot, ForkPage, OWNER_FOREIGN, ProcessBlock};
use beeline_abi::run::RunContext;
use beeline_abi::thread::ThreadSlot;
use beeline_helpers::time::{self, MONOTONIC};
use beeline_helpers::{identity, sys};
use beeline_maps::{CALL_GATE, owner};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Longest wait for a CPU in nanoseconds.
const WAIT_NS_MAX: u64 = 1_000_000_000;

/// Longest wait for an owner that is stopped, in nanoseconds.
const STOPPED_NS_MAX: u64 = 100_000_000;

/// Time between two looks at what the owner is doing, in nanoseconds.
const LOOK_NS: u64 = 2_000_000;

/// Waits by yielding before sleeping.
const YIELDS: u32 = 16;

/// Rounds after which the wait ends even where no clock can be read and nothing lets others run.
const ROUNDS_MAX: u32 = 100_000_000;

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
        give_up(run);
        let owner = identity::access(run).owner;
        let area = area(run, block);
        if area.is_null() {
            return 0;
        }
        match rseq::claim(area, slots(block), (*block).cpus, owner) {
            Claim::Taken(cpu) => {
                taken(run, block, area, owner, cpu);
                1
            }
            Claim::Unregistered => 0,
            Claim::Busy(_) | Claim::Interrupted => wait_and_claim(run, block, area, owner),
        }
    }
}

/// The CPU is the run's. From now on the stub claims it by itself, for as long as it can see that nothing has changed.
#[inline(never)]
unsafe fn taken(run: *mut RunContext, block: *const ProcessBlock, area: *mut u64, owner: u64, cpu: u32) {
    // SAFETY: the run lies in the thread's slot; the CPU is one of the block's.
    unsafe {
        (*run).access.cpu = cpu;
        let slot = slot_of(run);
        (*slot).claim_epoch = (*run).ids_epoch;
        (*slot).claim_rseq = area as u64;
        (*slot).claim_owner = owner;
        (*slot).claim_slot = slots(block).add(cpu as usize) as u64;
        (*slot).claim_cpu = cpu;
        forget_claim(slot);
        // That both are those of thread and process now is the stub's to see.
        if (*block).tid_offset != 0 && (*run).ids_epoch != 0 {
            (*slot).claim_tid_at = (*slot).key.load(Relaxed).wrapping_add((*block).tid_offset.into());
            (*slot).claim_tid = (*run).tid;
        }
    }
}

/// Stubs of this thread ask for a CPU, whatever they find.
///
/// # Safety
///
/// `slot` is the calling thread's.
#[inline(never)]
pub(crate) unsafe fn forget_claim(slot: *mut ThreadSlot) {
    // SAFETY: the caller's contract.
    unsafe {
        (*slot).claim_tid_at = &raw const (*slot).reserved as u64;
        (*slot).claim_tid = ThreadSlot::NOBODY;
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

/// Gives back what a run that was abandoned still owns: nothing, where a stub has given it back, which leaves the number.
///
/// # Safety
///
/// As for [`claim`].
pub(crate) unsafe fn give_up(run: *mut RunContext) {
    // SAFETY: the caller's contract. That no CPU's number is one of them is seen there.
    unsafe { release(run) }
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

/// Ends the registration of the area in the thread's slot, if there is one; the next claim begins another.
///
/// # Safety
///
/// `slot` is the calling thread's.
#[cold]
pub(crate) unsafe fn leave_rseq(slot: *mut ThreadSlot) {
    // SAFETY: the caller's contract.
    unsafe {
        (*slot).rseq_tid = 0;
        forget_claim(slot);
        // Fails where the area was never registered.
        rseq::unregister((&raw mut (*slot).own_rseq).cast());
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
        let start = time::now(run, MONOTONIC);
        let mut wait = Wait { holder: 0, state: State::Runs, looked_ns: 0 };
        let mut round = 0u32;
        loop {
            let elapsed_ns = time::now(run, MONOTONIC).wrapping_sub(start);
            if round == ROUNDS_MAX {
                return 0;
            }
            match rseq::claim(area, slots(block), (*block).cpus, owner) {
                Claim::Taken(cpu) => {
                    taken(run, block, area, owner, cpu);
                    (*slot).blocked_by = 0;
                    return 1;
                }
                Claim::Unregistered => return 0,
                Claim::Interrupted if elapsed_ns >= WAIT_NS_MAX => return 0,
                Claim::Interrupted => {}
                Claim::Busy(cpu) => {
                    let word = &(*slots(block).add(cpu as usize)).owner;
                    let holder = word.load(Acquire);
                    let again = holder == (*slot).blocked_by;
                    let due = holder != wait.holder || elapsed_ns >= wait.looked_ns + LOOK_NS;
                    if holder != 0 && due && (round >= YIELDS / 2 || again) {
                        if !owner::is_alive(&(*run).access, holder) {
                            // Only this word frees it: a living owner never stores over another's.
                            let _ = word.compare_exchange(holder, 0, Acquire, Relaxed);
                            continue;
                        }
                        let state = state_of(&(*run).access, holder);
                        // What a thread does that no longer owns the CPU is of no interest.
                        if word.load(Acquire) == holder {
                            if wait.is_in_vain(holder, state, again, elapsed_ns) {
                                (*slot).blocked_by = holder;
                                return 0;
                            }
                            wait = Wait { holder, state, looked_ns: elapsed_ns };
                        }
                    }
                    if elapsed_ns >= WAIT_NS_MAX {
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
            core::hint::spin_loop();
            round += 1;
        }
    }
}

/// What is known of the owner that is waited for.
struct Wait {
    holder: u64,
    /// What it did when it was looked at.
    state: State,
    /// When that was, from the start of the wait.
    looked_ns: u64,
}

impl Wait {
    /// True when there is no point in waiting for an owner in this state. One that does not run gets a second look,
    /// unless it was waited for before.
    fn is_in_vain(&self, holder: u64, state: State, again: bool, elapsed_ns: u64) -> bool {
        match state {
            // Waited for in full once: it abandoned its run (`longjmp`) and computes on, or is starved for good.
            State::Runs => again,
            State::Stopped | State::Hidden => again || elapsed_ns >= STOPPED_NS_MAX,
            State::Sleeps | State::Unknown => again || (holder == self.holder && state == self.state),
        }
    }
}

/// What an owner is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// It runs or waits for a CPU or for a page: it will be done as soon as it is let.
    Runs,
    /// It sleeps, in a signal handler that interrupted its program.
    Sleeps,
    /// A debugger or a signal stopped it.
    Stopped,
    /// It lives in other namespaces, or there is no `/proc`.
    Unknown,
    /// A seccomp filter forbids to look. It forbids to let others run, too: that takes until our time slice is over.
    Hidden,
}

/// What the thread with this owner word is doing.
///
/// Threads of the own process are known in any namespace; by their start time, others' ids are not mistaken for theirs.
fn state_of(access: &Access, owner: u64) -> State {
    if CALL_GATE.forbids(sys::nr::OPENAT) {
        return State::Hidden;
    }
    let tid = (owner & !OWNER_FOREIGN) as u32;
    let mut stat = [0u8; 512];
    let own = read_stat(b"/proc/self/task/", tid, &mut stat);
    if sys::stat_field(own, START_TIME).is_some_and(|start| start as u32 == (owner >> 32) as u32) {
        return parse_state(own);
    }
    if (access.owner | owner) & OWNER_FOREIGN != 0 {
        return State::Unknown;
    }
    parse_state(read_stat(b"/proc/", tid, &mut stat))
}

/// Number of the start time in `proc(5)`'s stat.
const START_TIME: usize = 22;

/// Reads the `stat` file of a thread; empty when there is none.
fn read_stat<'a>(directory: &[u8], tid: u32, stat: &'a mut [u8; 512]) -> &'a [u8] {
    let mut path = sys::Path::<48>::new();
    path.push(directory).push_number(tid).push(b"/stat");
    let len = sys::read_file(path.as_bytes(), stat);
    stat.get(..len).unwrap_or(&[])
}

/// The state in a `stat` file: the letter behind the name in parentheses.
fn parse_state(stat: &[u8]) -> State {
    let letter = stat.iter().rposition(|&byte| byte == b')').and_then(|end| stat.get(end + 2));
    match letter {
        Some(b'R' | b'D') => State::Runs,
        Some(b'T' | b't') => State::Stopped,
        Some(_) => State::Sleeps,
        None => State::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states() {
        let here = beeline_helpers::owner::current(None, sys::thread_id());
        let access = Access::default();
        assert_eq!(state_of(&access, here), State::Runs);
        assert_eq!(state_of(&access, here | OWNER_FOREIGN), State::Runs, "a thread of this process");
        assert_eq!(state_of(&access, (here ^ 1 << 40) | OWNER_FOREIGN), State::Unknown, "not this one");
        assert_eq!(state_of(&access, 0x3fff_ffff), State::Unknown);
        assert_eq!(parse_state(b"1 (a) t) T 0"), State::Stopped);
        assert_eq!(parse_state(b"1 (a)"), State::Unknown);
    }

    #[test]
    fn waiting() {
        let wait = Wait { holder: 5, state: State::Sleeps, looked_ns: 0 };
        assert!(!wait.is_in_vain(5, State::Runs, false, WAIT_NS_MAX));
        assert!(wait.is_in_vain(5, State::Runs, true, 0), "waited for in full before");
        assert!(!wait.is_in_vain(6, State::Stopped, false, STOPPED_NS_MAX - 1), "attach lets it go");
        assert!(wait.is_in_vain(6, State::Stopped, false, STOPPED_NS_MAX));
        assert!(wait.is_in_vain(6, State::Stopped, true, 0), "waited for before");
        assert!(wait.is_in_vain(5, State::Sleeps, false, 0), "at the second look");
        assert!(!wait.is_in_vain(6, State::Sleeps, false, 0));
        assert!(wait.is_in_vain(6, State::Sleeps, true, 0));
        assert!(!wait.is_in_vain(5, State::Unknown, false, 0));
        assert!(!wait.is_in_vain(5, State::Hidden, false, STOPPED_NS_MAX - 1));
    }
}
