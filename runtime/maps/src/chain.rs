//! The chains of a hash: lists without locks, after Harris and Michael, with two changes that sharing with processes
//! that die calls for.
//!
//! ```text
//! bucket   unlinked:32 | first:32                 an element is named by its index + 1; 0 ends the chain
//! next     generation:30 | mark:2 | next:32       each change of the word is a new generation
//! ```
//!
//! - An element enters at the head only, by a compare-and-swap of the whole bucket word, or takes the place of another
//!   one: the old element's `next` changes from `(successor)` to `(replaced, new element)` in one step. So a key is
//!   never twice in a chain, and never absent while it is replaced.
//! - An element leaves in steps. *Marked*: from then on the key is gone. *Unlinked*, by anybody who comes along. Then the
//!   one thread that made itself the element's owner after the mark sees that it is unlinked, adds one to the bucket's
//!   `unlinked`, and frees it. The element is nobody else's before that addition: a walk that finds `unlinked`
//!   unchanged at its end has seen this bucket's elements only, each with the key that it had in it.

use crate::key::{self, Key};
use crate::memory::word;
use crate::pool::{self, Element, LINKED, TRIES_MAX};
use beeline_abi::errno::EBUSY;
use beeline_abi::map::{Access, MapHandle};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicU64, Ordering, fence};

/// A bucket's word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head(pub(crate) u64);

impl Head {
    /// Index + 1 of the first element, 0 = none.
    #[inline(always)]
    pub(crate) fn first(self) -> u32 {
        self.0 as u32
    }

    /// How many elements were unlinked, modulo 2^32.
    #[inline(always)]
    pub(crate) fn unlinked(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The same bucket with another first element.
    #[inline(always)]
    pub(crate) fn with_first(self, first: u32) -> Head {
        Head(self.0 & !0xffff_ffff | u64::from(first))
    }

    fn one_more_unlinked(self) -> Head {
        Head(self.0.wrapping_add(1 << 32))
    }
}

/// An element's `next` word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link(pub(crate) u64);

/// What a marked `next` word says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mark {
    /// In use.
    None = 0,
    /// Deleted.
    Deleted = 1,
    /// The next element has taken its place.
    Replaced = 2,
}

impl Link {
    /// Index + 1 of the next element, 0 = none.
    #[inline(always)]
    pub(crate) fn target(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    pub(crate) fn is_marked(self) -> bool {
        self.0 & (3 << 32) != 0
    }

    /// True when the key is gone with the element.
    pub(crate) fn is_deleted(self) -> bool {
        self.0 & (3 << 32) == (Mark::Deleted as u64) << 32
    }

    /// The word that follows this one.
    #[inline(always)]
    pub(crate) fn changed(self, mark: Mark, target: u32) -> Link {
        let generation = (self.0 >> 34).wrapping_add(1);
        Link(generation << 34 | (mark as u64) << 32 | u64::from(target))
    }
}

/// The bucket of a key with this hash.
///
/// # Safety
/// The handle is that of a hash, valid, and its mapping alive.
#[inline(always)]
pub(crate) unsafe fn bucket(map: &MapHandle, hash: u64) -> &AtomicU64 {
    // SAFETY: the mask is the number of buckets minus one.
    unsafe { word(map, map.offsets[0] + (hash & map.mask) * 8) }
}

/// The bucket of the key in an element that the caller owns or that cannot change otherwise.
///
/// # Safety
/// As [`bucket`].
pub(crate) unsafe fn bucket_of<'a>(map: &'a MapHandle, element: Element<'_>) -> &'a AtomicU64 {
    // SAFETY: an element has a key of the map's size.
    unsafe { bucket(map, key::hash_at(map, element.key())) }
}

/// What a search saw.
pub(crate) struct Search<'a> {
    /// The bucket when it began.
    pub(crate) head: Head,
    /// The element with the key and its `next` word, not marked.
    pub(crate) hit: Option<(Element<'a>, Link)>,
    /// An element that somebody marked and did not unlink.
    pub(crate) litter: Option<Element<'a>>,
}

/// Steps that any walk may take before it takes the chain for garbage.
pub(crate) fn steps_max(map: &MapHandle) -> u64 {
    2 * u64::from(map.pool_len) + 4096
}

/// Looks for a key. The result was true at one moment during the call.
///
/// # Errors
/// `-EBUSY` when the chain has no end.
///
/// # Safety
/// The handle is that of a hash, valid, and its mapping alive; the key has the map's size.
#[inline]
pub(crate) unsafe fn search<'a, K: Key>(
    map: &'a MapHandle,
    bucket: &AtomicU64,
    key: K,
) -> Result<Search<'a>, i64> {
    let mut steps = steps_max(map);
    'restart: loop {
        let head = Head(bucket.load(Ordering::Acquire));
        let mut found = Search { head, hit: None, litter: None };
        let mut at = head.first();
        while let Some(element) = Element::new(map, at.wrapping_sub(1)) {
            let link = Link(element.next().load(Ordering::Acquire));
            if link.is_marked() {
                found.litter = Some(element);
            // SAFETY: an element of the pool has a key of the map's size.
            } else if unsafe { key.matches(element.key()) } {
                found.hit = Some((element, link));
                break;
            }
            at = link.target();
            steps -= 1;
            if steps.is_multiple_of(64) && unchanged(bucket, head).is_none() {
                if steps < 64 {
                    return Err(-EBUSY);
                }
                continue 'restart;
            }
            if steps == 0 {
                return Err(-EBUSY);
            }
        }
        steps = steps.saturating_sub(1);
        if unchanged(bucket, head).is_some() {
            return Ok(found);
        }
        if steps < 64 {
            return Err(-EBUSY);
        }
    }
}

/// [`search`] for those who only read: what `take` makes of the element with a key, or null.
///
/// # Safety
/// As [`search`].
#[inline(always)]
pub(crate) unsafe fn find<K: Key>(
    map: &MapHandle,
    bucket: &AtomicU64,
    key: K,
    take: impl Fn(Element<'_>) -> *mut u8,
) -> *mut u8 {
    for _ in 0..pool::TRIES_MAX {
        let head = Head(bucket.load(Ordering::Acquire));
        let mut at = head.first();
        let mut steps = map.pool_len;
        let mut found = null_mut();
        while let Some(element) = Element::new(map, at.wrapping_sub(1)) {
            let link = Link(element.next().load(Ordering::Acquire));
            // SAFETY: an element of the pool has a key of the map's size.
            if unsafe { key.matches(element.key()) } && !link.is_marked() {
                found = take(element);
                break;
            }
            if steps == 0 {
                break;
            }
            steps -= 1;
            at = link.target();
        }
        if unchanged(bucket, head).is_some() {
            return found;
        }
    }
    null_mut()
}

/// The first element from `at` (index + 1) on that is not marked. The caller checks afterwards that the bucket is
/// [`unchanged`].
pub(crate) fn first_live(map: &MapHandle, mut at: u32) -> Option<Element<'_>> {
    let mut steps = steps_max(map);
    while let Some(element) = Element::new(map, at.wrapping_sub(1)) {
        let link = Link(element.next().load(Ordering::Acquire));
        if !link.is_marked() {
            return Some(element);
        }
        steps = steps.checked_sub(1)?;
        at = link.target();
    }
    None
}

/// Nothing that was in the bucket at `head` has been freed since.
#[inline(always)]
pub(crate) fn unchanged(bucket: &AtomicU64, head: Head) -> Option<Head> {
    // The reads before this must not move behind the load of the bucket.
    fence(Ordering::Acquire);
    let now = Head(bucket.load(Ordering::Relaxed));
    (now.unlinked() == head.unlinked()).then_some(now)
}

/// Whether an element that the caller owns is in the chain of its key. `None` when the chain is garbage.
///
/// # Safety
/// The handle is that of a hash, valid, and its mapping alive.
pub(crate) unsafe fn is_linked(map: &MapHandle, element: Element<'_>) -> Option<bool> {
    // SAFETY: passed on.
    let bucket = unsafe { bucket_of(map, element) };
    let mut steps = steps_max(map);
    loop {
        let head = Head(bucket.load(Ordering::Acquire));
        let mut at = head.first();
        while let Some(current) = Element::new(map, at.wrapping_sub(1)) {
            if current.index == element.index {
                return Some(true);
            }
            steps = steps.checked_sub(1)?;
            at = Link(current.next().load(Ordering::Acquire)).target();
        }
        if unchanged(bucket, head).is_some() {
            return Some(false);
        }
        steps = steps.checked_sub(1)?;
    }
}

/// Finishes the removal of a marked element, unless somebody else is at it.
///
/// # Safety
/// The handle is that of a hash, valid, and its mapping alive.
pub(crate) unsafe fn retire(map: &MapHandle, access: &Access, element: Element<'_>) {
    // SAFETY: by the caller's contract.
    unsafe {
        // Which bucket it is in is certain only when it is ours: it may have been freed and linked elsewhere before.
        if own_marked(access, element) && unlink(map, bucket_of(map, element), element) {
            if Link(element.next().load(Ordering::Acquire)).is_deleted() {
                pool::count_down(map);
            }
            pool::release(map, element);
        }
    }
}

/// Makes a marked element the caller's, so that nobody else frees it. False when it is somebody else's or not marked.
pub(crate) fn own_marked(access: &Access, element: Element<'_>) -> bool {
    for _ in 0..TRIES_MAX {
        if !pool::claim(element, LINKED, access) {
            return false;
        }
        if is_marked(element) {
            return true;
        }
        // It had been freed and linked anew before the claim. Whoever marked it meanwhile could not claim it, so that
        // must be looked at after letting go.
        if !publish(element) {
            return false;
        }
    }
    false
}

/// Says that a linked element is nobody's any more. True when it must be retired, because it was marked meanwhile.
pub(crate) fn publish(element: Element<'_>) -> bool {
    // Locked, hence before the load: a thread that marked the element either sees it published, or is seen here.
    element.owner().swap(LINKED, Ordering::AcqRel);
    is_marked(element)
}

fn is_marked(element: Element<'_>) -> bool {
    Link(element.next().load(Ordering::Acquire)).is_marked()
}

/// Takes a marked element that the caller owns out of its chain, with the marked ones before it, and counts that in
/// the bucket. Afterwards no walk that began later can meet it.
///
/// False when the chain is garbage; then the element must not be used.
///
/// # Safety
/// The handle is that of a hash, valid, and its mapping alive.
pub(crate) unsafe fn unlink(map: &MapHandle, bucket: &AtomicU64, element: Element<'_>) -> bool {
    let mut steps = steps_max(map);
    'restart: loop {
        let head = Head(bucket.load(Ordering::Acquire));
        let mut before: Option<(Element<'_>, Link)> = None;
        let mut at = head.first();
        while let Some(current) = Element::new(map, at.wrapping_sub(1)) {
            if steps == 0 {
                return false;
            }
            steps -= 1;
            let link = Link(current.next().load(Ordering::Acquire));
            if !link.is_marked() {
                before = Some((current, link));
                at = link.target();
                continue;
            }
            let (changed, counted) = bypass(bucket, head, before, link.target());
            if changed && current.index == element.index {
                if !counted {
                    count_unlinked(bucket);
                }
                return true;
            }
            continue 'restart;
        }
        if steps == 0 {
            return false;
        }
        steps -= 1;
        if unchanged(bucket, head).is_some() {
            // Somebody else unlinked it.
            count_unlinked(bucket);
            return true;
        }
    }
}

/// Lets what points to a marked element point to `target` behind it. Returns whether it did, and whether that is
/// counted in the bucket already.
fn bypass(bucket: &AtomicU64, head: Head, before: Option<(Element<'_>, Link)>, target: u32) -> (bool, bool) {
    match before {
        None => {
            let next = head.with_first(target).one_more_unlinked();
            let done = bucket.compare_exchange(head.0, next.0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
            (done, done)
        }
        Some((element, link)) => {
            let next = link.changed(Mark::None, target);
            let word = element.next();
            (word.compare_exchange(link.0, next.0, Ordering::AcqRel, Ordering::Relaxed).is_ok(), false)
        }
    }
}

/// Counts in a bucket that an element left it.
pub(crate) fn count_unlinked(bucket: &AtomicU64) {
    bucket.fetch_add(1 << 32, Ordering::AcqRel);
}
