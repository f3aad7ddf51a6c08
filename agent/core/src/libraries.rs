//! Tells the follower of this process that libraries came or went, and gives it time to look.
//!
//! Stands at the function that the dynamic loader calls for debuggers: after libraries are mapped and before their constructors
//! run, and around their removal. The thread waits a bounded time, and not at all when nobody follows.

use beeline_abi::bell::{Bell, INTERRUPTIONS_MAX, TICKET_OFFSET, WAIT_NS, WAITS_MAX, caller, ticket_of};
use beeline_abi::link::{LinkRuntime, LinkShared};
use beeline_abi::run::RunContext;
use beeline_helpers::sys::{self, Timespec, nr};
use beeline_maps::CALL_GATE;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

/// `FUTEX_WAIT`, `FUTEX_WAKE`: not private, the follower is another process.
const WAIT: u64 = 0;
const WAKE: u64 = 1;

/// Pauses of a millisecond for a caller's word.
const PLACE_WAITS_MAX: u32 = 1000;

/// `ETIMEDOUT` as a system call returns it.
const TIMED_OUT: i64 = -110;

/// At the loader's hook.
///
/// # Safety
///
/// `run` is that of the calling thread's slot; its link's shared page is a [`Bell`].
pub unsafe extern "sysv64" fn changed(_context: *mut u8, run: *mut RunContext) -> u64 {
    // SAFETY: the caller's contract.
    let bell = unsafe { &*((*((*run).link as *const LinkRuntime)).shared as *const Bell) };
    let tid = sys::thread_id();
    if tid == 0 || CALL_GATE.forbids(nr::FUTEX) {
        return 0;
    }
    // Never 0, however many there were.
    let ticket = bell.tickets.fetch_add(1, Relaxed) | 1 << 31;
    let mine = caller(ticket, tid);
    let Some(place) = take_place(bell, mine) else { return 0 };
    bell.rings.fetch_add(1, AcqRel);
    futex(bell.rings.as_ptr() as u64, WAKE, i32::MAX as u32, 0);
    wait(bell, place, mine);
    // Nobody answered in time; or it is free, or another's.
    let _ = place.compare_exchange(mine, 0, AcqRel, Relaxed);
    0
}

/// Takes a caller's word; none when others have all of them for long, or the follower is dead.
fn take_place(bell: &Bell, mine: u64) -> Option<&AtomicU64> {
    const PAUSE_NS: u32 = 1_000_000;
    let free = |place: &&AtomicU64| place.compare_exchange(0, mine, AcqRel, Relaxed).is_ok();
    for _ in 0..PLACE_WAITS_MAX {
        let found = bell.callers.iter().find(free);
        if found.is_some() || bell.link.enabled.load(Acquire) & LinkShared::ON == 0 {
            return found;
        }
        sys::sleep_ns(PAUSE_NS);
    }
    None
}

/// Waits until the follower has answered, is dead, or takes too long.
fn wait(bell: &Bell, place: &AtomicU64, mine: u64) {
    let time = Timespec { seconds: 0, nanoseconds: i64::from(WAIT_NS) };
    let (mut waits, mut interruptions) = (0, 0);
    while place.load(Acquire) == mine
        && bell.link.enabled.load(Acquire) & LinkShared::ON != 0
        && waits < WAITS_MAX
        && interruptions < INTERRUPTIONS_MAX
    {
        let word = place.as_ptr() as u64 + TICKET_OFFSET as u64;
        match futex(word, WAIT, ticket_of(mine), &raw const time as u64) {
            TIMED_OUT => waits += 1,
            _ => interruptions += 1,
        }
    }
}

fn futex(word: u64, operation: u64, value: u32, time: u64) -> i64 {
    // SAFETY: the word lies in the bell; the kernel reads one timespec, or none.
    unsafe { sys::call4(nr::FUTEX, word, operation, u64::from(value), time) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beeline_abi::bell::thread_of;
    use core::sync::atomic::Ordering::SeqCst;
    use std::boxed::Box;
    use std::thread;

    fn bell(enabled: u32) -> &'static Bell {
        // SAFETY: all zero is a valid bell.
        let bell: &'static Bell = unsafe { Box::leak(Box::new(core::mem::zeroed())) };
        bell.link.enabled.store(enabled, SeqCst);
        bell
    }

    fn ring(bell: &'static Bell) {
        let link = LinkRuntime { shared: bell as *const Bell as u64, ..LinkRuntime::default() };
        let mut run = RunContext { link: &raw const link as u64, ..RunContext::default() };
        // SAFETY: link and bell are valid.
        unsafe { changed(core::ptr::null_mut(), &mut run) };
    }

    #[test]
    fn callers_wait_for_their_answer() {
        let bell = bell(1);
        let callers: std::vec::Vec<_> = (0..3).map(|_| thread::spawn(move || ring(bell))).collect();
        let mut answered = 0;
        // A caller that got no processor for long enough has given up: it needs no answer any more.
        while callers.iter().any(|caller| !caller.is_finished()) {
            for place in &bell.callers {
                let word = place.load(SeqCst);
                if word != 0 {
                    assert!(thread_of(word) != 0 && ticket_of(word) != 0);
                    answered += u32::from(place.compare_exchange(word, 0, SeqCst, SeqCst).is_ok());
                    futex(place.as_ptr() as u64 + TICKET_OFFSET as u64, WAKE, 1, 0);
                }
            }
            thread::yield_now();
        }
        for caller in callers {
            caller.join().unwrap();
        }
        assert_eq!(bell.rings.load(SeqCst), 3);
        assert!(answered <= 3 && bell.callers.iter().all(|place| place.load(SeqCst) == 0));
    }

    #[test]
    fn nobody_waits_for_the_dead() {
        const OWNER_DIED: u32 = 1 << 30;
        // Without an answer it would be seconds, and the word would be cleared at their end.
        let bell = bell(7);
        let caller = thread::spawn(move || ring(bell));
        while bell.rings.load(SeqCst) == 0 {
            thread::yield_now();
        }
        bell.link.enabled.store(OWNER_DIED, SeqCst);
        caller.join().unwrap();
        assert!(bell.callers.iter().all(|place| place.load(SeqCst) == 0));
    }

    #[test]
    fn whoever_finds_no_place_waits_for_one() {
        let bell = bell(1);
        bell.callers.iter().for_each(|place| place.store(1 << 32 | 1, SeqCst));
        let caller = thread::spawn(move || ring(bell));
        let place = &bell.callers[7];
        place.store(0, SeqCst);
        while bell.rings.load(SeqCst) == 0 {
            thread::yield_now();
        }
        place.store(0, SeqCst);
        caller.join().unwrap();
    }

    #[test]
    fn whoever_finds_no_place_goes_on() {
        let bell = bell(0);
        bell.callers.iter().for_each(|place| place.store(1 << 32 | 1, SeqCst));
        ring(bell);
        assert_eq!(bell.rings.load(SeqCst), 0);
    }
}
