//! What `BPF_MAP_TYPE_LRU_HASH` adds to a hash: when it is full, an element that was not used lately makes room.
//!
//! The kernel approximates least-recently-used with two lists and a reference bit. Here a clock's hand goes over the pool:
//! an element that was used since its last visit is spared once. A lookup costs a load and, the first time, a plain store.

use crate::chain::{self, Link, Mark};
use crate::memory::state;
use crate::pool::{Element, HAND, LINKED};
use beeline_abi::map::{Access, MapHandle};
use core::sync::atomic::Ordering;

/// Notes that an element was used.
#[inline(always)]
pub(crate) fn note_use(element: Element<'_>) {
    let used = element.used();
    if used.load(Ordering::Relaxed) == 0 {
        used.store(1, Ordering::Relaxed);
    }
}

/// Deletes one element that was not used lately. False when none could be deleted.
///
/// # Safety
/// The handle is that of an LRU hash, valid, and its mapping alive.
pub(crate) unsafe fn evict(map: &MapHandle, access: &Access) -> bool {
    // SAFETY: by the caller's contract.
    let hand = unsafe { state(map, HAND) };
    // Two rounds: the first may find every element used.
    for _ in 0..2 * u64::from(map.pool_len) {
        let at = hand.fetch_add(1, Ordering::Relaxed) % u64::from(map.pool_len.max(1));
        let Some(element) = Element::new(map, at as u32) else { return false };
        let link = Link(element.next().load(Ordering::Acquire));
        if element.owner().load(Ordering::Acquire) != LINKED || link.is_marked() {
            continue;
        }
        if element.used().load(Ordering::Relaxed) != 0 {
            element.used().store(0, Ordering::Relaxed);
            continue;
        }
        let marked = link.changed(Mark::Deleted, link.target());
        if element.next().compare_exchange(link.0, marked.0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            // SAFETY: passed on.
            unsafe { chain::retire(map, access, element) };
            return true;
        }
    }
    false
}
