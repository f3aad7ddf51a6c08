//! The elements of a hash: what they consist of, and how they are taken and given back.
//!
//! ```text
//! element, value of at most 8 bytes:  next | value | owner | [used] | key
//! element, larger or per-CPU value:   next | owner | [used] | key   | [value]
//! ```
//!
//! The **owner** word alone says whose an element is; nobody uses an element without having changed it:
//!
//! | owner | |
//! |---|---|
//! | 0 | never used; lies at or above `fresh` |
//! | [`FREE`] | may be taken |
//! | [`LINKED`] | in the chain of its bucket, or on its way out of it |
//! | a thread | taken, being filled, linked or unlinked; when that thread is dead, the sweep finishes its work |
//!
//! The bitmap of free elements is a hint only: a bit too many costs a try, a bit too few (its thread died) costs an
//! element until the next sweep. So neither can break anything, and setting a bit twice is harmless.
//!
//! `count` is the number of linked elements that are not replaced; it is what `max_entries` limits. It has a version
//! in its high half, so that the sweep can correct it only when nothing happened meanwhile.

use crate::memory::{state, word};
use crate::system;
use beeline_abi::PAGE_SIZE;
use beeline_abi::map::{Access, MapHandle};
use core::sync::atomic::{AtomicU64, Ordering};

/// Owner word of an element that may be taken.
pub(crate) const FREE: u64 = u64::MAX;
/// Owner word of an element in a chain.
pub(crate) const LINKED: u64 = u64::MAX - 1;
/// Stands for callers that did not say who they are; never found dead.
pub(crate) const ANONYMOUS: u64 = u64::MAX - 2;

/// State word: elements in use in the low half, changes of that number in the high half.
pub(crate) const COUNT: u64 = 0;
/// State word: elements from here on were never used.
pub(crate) const FRESH: u64 = 1;
/// State word: index of the bitmap word in which an element was freed last.
pub(crate) const HINT: u64 = 2;
/// State word: elements below this have memory behind them.
pub(crate) const POPULATED: u64 = 3;

/// State word: the version of `count` when the pool was last swept because it was full, plus one in the high half.
pub(crate) const SWEPT: u64 = 4;
/// State word: the element at which the next partial sweep begins.
pub(crate) const CURSOR: u64 = 5;
/// State word: LRU: the clock's hand.
pub(crate) const HAND: u64 = 6;

const COUNT_UP: u64 = (1 << 32) + 1;
const COUNT_DOWN: u64 = (1 << 32) - 1;

/// Bytes of elements that get memory at once when a map grows.
const GROWTH_LEN: u64 = 64 << 10;

/// Tries after which an operation that keeps losing gives up. Each loss is another thread's success.
pub(crate) const TRIES_MAX: u32 = 1 << 14;

/// One element of a pool, by index: below `pool_len`, checked when made.
#[derive(Clone, Copy)]
pub(crate) struct Element<'a> {
    map: &'a MapHandle,
    pub(crate) index: u32,
}

impl<'a> Element<'a> {
    /// The element with this index; `None` when there is no such one.
    #[inline(always)]
    pub(crate) fn new(map: &'a MapHandle, index: u32) -> Option<Element<'a>> {
        (index < map.pool_len).then_some(Element { map, index })
    }

    /// Offset of the element from the start of the map.
    #[inline(always)]
    fn offset(self) -> u64 {
        self.map.offsets[1] + u64::from(self.index) * self.map.stride
    }

    /// Successor, mark and generation; see [`Link`](crate::chain::Link).
    #[inline(always)]
    pub(crate) fn next(self) -> &'a AtomicU64 {
        // SAFETY: the index is below `pool_len`, so the element lies in the mapping.
        unsafe { word(self.map, self.offset()) }
    }

    /// The owner word.
    #[inline(always)]
    pub(crate) fn owner(self) -> &'a AtomicU64 {
        // SAFETY: as for `next`; the layout puts the word inside the element.
        unsafe { word(self.map, self.offset() + u64::from(self.map.owner_offset)) }
    }

    /// The value's word where values are at most 8 bytes, directly behind `next`.
    #[inline(always)]
    pub(crate) fn small_value(self) -> &'a AtomicU64 {
        // SAFETY: as for `next`; an element is at least 16 bytes.
        unsafe { word(self.map, self.offset() + 8) }
    }

    /// LRU: not zero when the element was used since the clock's hand last passed.
    #[inline(always)]
    pub(crate) fn used(self) -> &'a AtomicU64 {
        // SAFETY: as for `owner`; called for LRU maps only, whose layout has the word there.
        unsafe { word(self.map, self.offset() + u64::from(self.map.owner_offset) + 8) }
    }

    /// First byte of the key.
    #[inline(always)]
    pub(crate) fn key(self) -> *mut u8 {
        (self.map.base + self.offset() + u64::from(self.map.key_offset)) as *mut u8
    }

    /// First byte of the value, which is not per-CPU.
    #[inline(always)]
    pub(crate) fn value(self) -> *mut u8 {
        (self.map.base + self.offset() + u64::from(self.map.value_offset)) as *mut u8
    }

    /// First byte of a CPU's value; `cpu` is below the shape's number of CPUs.
    #[inline(always)]
    pub(crate) fn cpu_value(self, cpu: u32) -> *mut u8 {
        debug_assert!(cpu < self.map.shape.cpus);
        let len = (u64::from(self.map.shape.value_size) + 7) & !7;
        let region = self.map.offsets[3] + u64::from(cpu) * self.map.cpu_stride;
        (self.map.base + region + u64::from(self.index) * len) as *mut u8
    }
}

/// The owner word under which `access` works: never one of the reserved values.
#[inline(always)]
pub(crate) fn owner_of(access: &Access) -> u64 {
    if access.owner == 0 || access.owner > ANONYMOUS { ANONYMOUS } else { access.owner }
}

/// Takes one more element into account, unless the map is full.
///
/// # Safety
/// The handle is valid and its mapping alive.
pub(crate) unsafe fn count_up(map: &MapHandle) -> bool {
    // SAFETY: by the caller's contract.
    let count = unsafe { state(map, COUNT) };
    let mut seen = count.load(Ordering::Relaxed);
    for _ in 0..TRIES_MAX {
        if seen as u32 >= map.shape.max_entries {
            return false;
        }
        match count.compare_exchange_weak(
            seen,
            seen.wrapping_add(COUNT_UP),
            Ordering::AcqRel,
            Ordering::Relaxed,
        ) {
            Ok(_) => return true,
            Err(now) => seen = now,
        }
    }
    false
}

/// Takes one element less into account.
///
/// # Safety
/// The handle is valid and its mapping alive.
pub(crate) unsafe fn count_down(map: &MapHandle) {
    // SAFETY: by the caller's contract.
    unsafe { state(map, COUNT) }.fetch_add(COUNT_DOWN, Ordering::AcqRel);
}

/// Notes that elements changed, though not how many there are.
///
/// # Safety
/// The handle is valid and its mapping alive.
pub(crate) unsafe fn count_change(map: &MapHandle) {
    // SAFETY: by the caller's contract.
    unsafe { state(map, COUNT) }.fetch_add(1 << 32, Ordering::AcqRel);
}

/// Takes an element that is nobody's. Its key, value and owner are the caller's until it is linked or released.
///
/// # Safety
/// The handle is that of a hash, valid, and its mapping alive.
pub(crate) unsafe fn take<'a>(map: &'a MapHandle, access: &Access) -> Option<Element<'a>> {
    // SAFETY: by the caller's contract.
    unsafe {
        let hint = state(map, HINT).load(Ordering::Relaxed);
        if let Some(element) = take_from_word(map, access, hint) {
            return Some(element);
        }
        if let Some(element) = take_fresh(map, access) {
            return Some(element);
        }
        take_from_bitmap(map, access)
    }
}

/// Gives an element back that the caller owns and that is in no chain.
///
/// # Safety
/// The handle is that of a hash, valid, and its mapping alive.
pub(crate) unsafe fn release(map: &MapHandle, element: Element<'_>) {
    element.owner().store(FREE, Ordering::Release);
    // SAFETY: by the caller's contract.
    unsafe { announce(map, element.index) };
}

/// Sets the hint that an element is free.
///
/// # Safety
/// The handle is that of a hash, valid, and its mapping alive. `index` is below `pool_len`.
pub(crate) unsafe fn announce(map: &MapHandle, index: u32) {
    let at = u64::from(index / 64);
    // SAFETY: the layout has a bit for each element of the pool.
    unsafe {
        bitmap_word(map, at).fetch_or(1 << (index % 64), Ordering::AcqRel);
        let summary = summary_word(map, at / 64);
        let bit = 1 << (at % 64);
        if summary.load(Ordering::Relaxed) & bit == 0 {
            summary.fetch_or(bit, Ordering::AcqRel);
        }
        state(map, HINT).store(at, Ordering::Relaxed);
    }
}

/// [`announce`] for an element that may have been announced already.
///
/// # Safety
/// As [`announce`].
pub(crate) unsafe fn announce_again(map: &MapHandle, index: u32) {
    // SAFETY: the layout has a bit for each element of the pool.
    let word = unsafe { bitmap_word(map, u64::from(index / 64)) };
    if word.load(Ordering::Acquire) & 1 << (index % 64) == 0 {
        // SAFETY: passed on.
        unsafe { announce(map, index) };
    }
}

/// Words of the bitmap.
fn bitmap_len(map: &MapHandle) -> u64 {
    u64::from(map.pool_len).div_ceil(64)
}

/// # Safety
/// The handle is that of a hash, valid, and its mapping alive. `at` is below [`bitmap_len`].
unsafe fn bitmap_word(map: &MapHandle, at: u64) -> &AtomicU64 {
    // SAFETY: by the caller's contract.
    unsafe { word(map, map.offsets[2] + at * 8) }
}

/// # Safety
/// As for [`bitmap_word`]; `at` is below `bitmap_len / 64`, rounded up.
unsafe fn summary_word(map: &MapHandle, at: u64) -> &AtomicU64 {
    // SAFETY: by the caller's contract.
    unsafe { word(map, map.offsets[2] + (bitmap_len(map) + at) * 8) }
}

/// # Safety
/// As for [`take`].
unsafe fn take_from_word<'a>(map: &'a MapHandle, access: &Access, at: u64) -> Option<Element<'a>> {
    if at >= bitmap_len(map) {
        return None;
    }
    // SAFETY: `at` was checked.
    let word = unsafe { bitmap_word(map, at) };
    let mut bits = word.load(Ordering::Relaxed);
    while bits != 0 {
        let bit = bits & bits.wrapping_neg();
        let before = word.fetch_and(!bit, Ordering::AcqRel);
        let index = at * 64 + u64::from(bit.trailing_zeros());
        if before & bit != 0
            && let Some(element) = Element::new(map, index as u32)
            && claim(element, FREE, access)
        {
            return Some(element);
        }
        bits &= before & !bit;
    }
    None
}

/// # Safety
/// As for [`take`].
unsafe fn take_fresh<'a>(map: &'a MapHandle, access: &Access) -> Option<Element<'a>> {
    // SAFETY: by the caller's contract.
    let fresh = unsafe { state(map, FRESH) };
    for _ in 0..TRIES_MAX {
        let at = fresh.load(Ordering::Acquire);
        let element = Element::new(map, u32::try_from(at).ok()?)?;
        // SAFETY: the index was checked.
        if !unsafe { has_memory(map, access, at) } {
            return None;
        }
        // First the owner, then the counter: whoever dies in between has left a name, and the next one helps it on.
        let mine = claim(element, 0, access);
        let _ = fresh.compare_exchange(at, at + 1, Ordering::AcqRel, Ordering::Relaxed);
        if mine {
            return Some(element);
        }
    }
    None
}

/// Looks through the whole bitmap, by its summary.
///
/// # Safety
/// As for [`take`].
unsafe fn take_from_bitmap<'a>(map: &'a MapHandle, access: &Access) -> Option<Element<'a>> {
    for at in 0..bitmap_len(map).div_ceil(64) {
        // SAFETY: `at` is below the summary's length.
        let summary = unsafe { summary_word(map, at) };
        let mut bits = summary.load(Ordering::Acquire);
        while bits != 0 {
            let bit = bits & bits.wrapping_neg();
            bits &= !bit;
            let word_at = at * 64 + u64::from(bit.trailing_zeros());
            // SAFETY: by the caller's contract; the function checks the index.
            if let Some(element) = unsafe { take_from_word(map, access, word_at) } {
                return Some(element);
            }
            summary.fetch_and(!bit, Ordering::AcqRel);
            // SAFETY: the index is checked first.
            if word_at < bitmap_len(map) && unsafe { bitmap_word(map, word_at) }.load(Ordering::Acquire) != 0
            {
                summary.fetch_or(bit, Ordering::AcqRel);
            }
        }
    }
    None
}

/// Makes the element the caller's if its owner word is `from`.
#[inline]
pub(crate) fn claim(element: Element<'_>, from: u64, access: &Access) -> bool {
    element.owner().compare_exchange(from, owner_of(access), Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

/// Sees to it that element `at` has memory behind it, so that touching it cannot raise SIGBUS on a full tmpfs.
///
/// # Safety
/// As for [`take`]; `at` is below `pool_len`.
unsafe fn has_memory(map: &MapHandle, access: &Access, at: u64) -> bool {
    // SAFETY: by the caller's contract.
    let populated = unsafe { state(map, POPULATED) };
    if at < populated.load(Ordering::Acquire) {
        return true;
    }
    if access.flags & Access::NO_SYSTEM_CALLS != 0 {
        return false;
    }
    let end = (at + GROWTH_LEN.checked_div(map.stride).unwrap_or(1).max(1)).min(u64::from(map.pool_len));
    let mut ok = populate(map, map.offsets[1] + at * map.stride, map.offsets[1] + end * map.stride);
    if map.cpu_stride != 0 {
        let len = (u64::from(map.shape.value_size) + 7) & !7;
        for cpu in 0..u64::from(map.shape.cpus) {
            let region = map.offsets[3] + cpu * map.cpu_stride;
            ok = ok && populate(map, region + at * len, region + end * len);
        }
    }
    if ok {
        populated.fetch_max(end, Ordering::AcqRel);
    }
    ok
}

fn populate(map: &MapHandle, start: u64, end: u64) -> bool {
    let start = start & !(PAGE_SIZE - 1);
    let end = ((end + PAGE_SIZE - 1) & !(PAGE_SIZE - 1)).min(map.mapped_len);
    system::populate(map.base + start, end - start)
}
