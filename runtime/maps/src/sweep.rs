//! Finishing what dead threads left behind in a pool, and correcting the count after them.
//!
//! An element whose owner is dead is taken over and looked for in its chain: if it is there it is somebody's value and gets
//! published, if not it is freed. What a thread had done to `count` before it died cannot be seen, so when
//! nothing else is going on the elements are counted anew.

use crate::chain::{self, Link};
use crate::memory::state;
use crate::pool::{self, ANONYMOUS, COUNT, CURSOR, Element, FREE, FRESH, LINKED, SWEPT};
use crate::{owner, stack_trace};
use beeline_abi::map::{Access, MapHandle, MapType};
use core::cell::Cell;
use core::sync::atomic::{Ordering, fence};

/// Largest pool that is swept as a whole by an operation that finds the map full.
const WHOLE_MAX: u32 = 4096;

/// Largest pool that is swept each time: some hundred nanoseconds.
const ALWAYS_MAX: u32 = 256;

/// Elements that an operation sweeps in a larger pool.
const PART_LEN: u64 = 256;

/// Sweeps a whole map. Returns how many elements of dead threads were recovered. Maps without a pool have nothing to
/// sweep.
///
/// # Safety
/// The handle is valid and its mapping alive.
pub unsafe fn sweep(map: &MapHandle, access: &Access) -> u64 {
    if map.pool_len == 0 {
        return 0;
    }
    // SAFETY: passed on.
    unsafe { sweep_all(map, &Sweeper::new(access, None, u32::MAX)) }
}

/// Who sweeps.
pub(crate) struct Sweeper<'a> {
    /// On whose behalf.
    access: &'a Access,
    /// The element that the operation in progress holds. Others with the caller's owner word are left from operations
    /// that never ended, because a signal handler jumped out of them.
    holds: Option<u32>,
    /// How many owners may still be asked after: that takes system calls.
    questions: Cell<u32>,
}

/// Owners that an operation asks after in one sweep, some microseconds each.
const QUESTIONS_MAX: u32 = 8;

impl<'a> Sweeper<'a> {
    /// One that sweeps for an operation: it asks after few owners only.
    pub(crate) fn in_passing(access: &'a Access, holds: Option<u32>) -> Sweeper<'a> {
        Sweeper::new(access, holds, QUESTIONS_MAX)
    }

    fn new(access: &'a Access, holds: Option<u32>, questions: u32) -> Sweeper<'a> {
        Sweeper { access, holds, questions: Cell::new(questions) }
    }

    fn left_behind(&self, element: Element<'_>, holder: u64) -> bool {
        if holder == pool::owner_of(self.access) && holder != ANONYMOUS {
            return self.holds != Some(element.index);
        }
        let Some(left) = self.questions.get().checked_sub(1) else { return false };
        self.questions.set(left);
        !owner::is_alive(self.access, holder)
    }
}

/// # Safety
/// As [`sweep`], for a map with a pool.
unsafe fn sweep_all(map: &MapHandle, sweeper: &Sweeper<'_>) -> u64 {
    // SAFETY: passed on.
    unsafe {
        let recovered = sweep_range(map, sweeper, 0, used_len(map));
        recount(map, sweeper);
        recovered
    }
}

/// What an insertion does that finds the map full. True when there may be room now.
///
/// # Safety
/// As [`sweep`], for a map with a pool.
pub(crate) unsafe fn on_full(map: &MapHandle, sweeper: &Sweeper<'_>) -> bool {
    if map.pool_len > WHOLE_MAX {
        // SAFETY: passed on.
        return unsafe { sweep_part(map, sweeper) != 0 };
    }
    // SAFETY: by the caller's contract.
    let (count, swept) = unsafe { (state(map, COUNT), state(map, SWEPT)) };
    let before = count.load(Ordering::Acquire);
    let last = swept.load(Ordering::Relaxed);
    let since = ((before >> 32) as u32).wrapping_sub(last as u32);
    // A sweep is worth its time after as many changes as there are elements.
    if map.pool_len > ALWAYS_MAX && last >> 32 != 0 && since < map.pool_len {
        return false;
    }
    // SAFETY: passed on.
    unsafe { sweep_all(map, sweeper) };
    let now = count.load(Ordering::Acquire);
    swept.store(now >> 32 | 1 << 32, Ordering::Relaxed);
    (now as u32) < map.shape.max_entries
}

/// What an operation does that finds no element though the map is not full: operations in flight hold them all, or
/// dead ones do.
///
/// # Safety
/// As [`sweep`], for a map with a pool.
pub(crate) unsafe fn on_dry(map: &MapHandle, sweeper: &Sweeper<'_>) -> bool {
    // SAFETY: passed on.
    unsafe {
        if u64::from(map.pool_len) > used_len(map) {
            // There is no memory for a fresh one.
            return false;
        }
        if map.pool_len > WHOLE_MAX {
            sweep_part(map, sweeper);
        } else {
            sweep_all(map, sweeper);
        }
    }
    true
}

/// Elements below this were used at some time.
///
/// # Safety
/// As [`sweep`].
pub(crate) unsafe fn used_len(map: &MapHandle) -> u64 {
    // SAFETY: by the caller's contract.
    unsafe { state(map, FRESH) }.load(Ordering::Acquire).min(u64::from(map.pool_len))
}

/// # Safety
/// As [`sweep`], for a map with a pool.
unsafe fn sweep_part(map: &MapHandle, sweeper: &Sweeper<'_>) -> u64 {
    // SAFETY: passed on.
    unsafe {
        let from = state(map, CURSOR).fetch_add(PART_LEN, Ordering::Relaxed) % u64::from(map.pool_len.max(1));
        sweep_range(map, sweeper, from, (from + PART_LEN).min(used_len(map)))
    }
}

/// # Safety
/// As [`sweep`].
unsafe fn sweep_range(map: &MapHandle, sweeper: &Sweeper<'_>, from: u64, to: u64) -> u64 {
    let mut recovered = 0;
    for at in from..to {
        if let Some(element) = Element::new(map, at as u32) {
            // SAFETY: passed on.
            recovered += u64::from(unsafe { recover(map, sweeper, element) });
        }
    }
    recovered
}

/// Puts one element in order. True when it was left behind.
///
/// # Safety
/// As [`sweep`], for a map with a pool.
pub(crate) unsafe fn recover(map: &MapHandle, sweeper: &Sweeper<'_>, element: Element<'_>) -> bool {
    let access = sweeper.access;
    let holder = element.owner().load(Ordering::Acquire);
    // SAFETY: passed on; a taken element is ours.
    unsafe {
        match holder {
            0 => false,
            FREE => {
                pool::announce_again(map, element.index);
                false
            }
            LINKED => {
                if is_hash(map) && Link(element.next().load(Ordering::Acquire)).is_marked() {
                    chain::retire(map, access, element);
                }
                false
            }
            holder => {
                let taken = sweeper.left_behind(element, holder) && pool::claim(element, holder, access);
                if taken {
                    settle(map, access, element);
                }
                taken
            }
        }
    }
}

/// Publishes or frees an element that was taken over.
///
/// # Safety
/// As [`recover`]; the caller owns the element, and whoever did before is dead.
unsafe fn settle(map: &MapHandle, access: &Access, element: Element<'_>) {
    // SAFETY: passed on; the element's key cannot change while it is ours.
    unsafe {
        if !is_hash(map) {
            match stack_trace::is_linked(map, element) {
                true => element.owner().store(LINKED, Ordering::Release),
                false => pool::release(map, element),
            }
            return;
        }
        match chain::is_linked(map, element) {
            Some(true) if chain::publish(element) => chain::retire(map, access, element),
            Some(true) => {}
            Some(false) => {
                // It may have been unlinked just now: see `chain`.
                chain::count_unlinked(chain::bucket_of(map, element));
                pool::release(map, element);
            }
            None => {}
        }
    }
}

/// Sets the count to what is there, if nobody changes anything meanwhile. An element that the caller holds is not
/// counted: it is the one that it wants to insert.
///
/// # Safety
/// As [`sweep`], for a map with a pool.
unsafe fn recount(map: &MapHandle, sweeper: &Sweeper<'_>) {
    // SAFETY: passed on.
    unsafe {
        let count = state(map, COUNT);
        let before = count.load(Ordering::Acquire);
        let mut there = 0u64;
        for at in 0..used_len(map) {
            let Some(element) = Element::new(map, at as u32) else { return };
            match element.owner().load(Ordering::Acquire) {
                FREE => {}
                LINKED if is_hash(map) && Link(element.next().load(Ordering::Acquire)).is_marked() => return,
                LINKED => there += 1,
                _ if sweeper.holds == Some(element.index) => {}
                _ => return,
            }
        }
        fence(Ordering::SeqCst);
        if before & 0xffff_ffff != there {
            let right = (before >> 32).wrapping_add(1) << 32 | there;
            let _ = count.compare_exchange(before, right, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

fn is_hash(map: &MapHandle) -> bool {
    map.shape.map_type != MapType::STACK_TRACE
}
