//! Whether a map file is what operations leave behind: every element in its place, nothing lost, nothing twice.
//!
//! For tests, and for the command line to say what is wrong with a file. Nobody may change the map meanwhile, and
//! [`sweep`](crate::sweep::sweep) comes first: what a killed process was doing is not an inconsistency until then.

use crate::chain::{self, Head, Link};
use crate::memory::{state, word};
use crate::pool::{COUNT, Element, FREE, LINKED};
use crate::ringbuf::{self, BUSY, DISCARD};
use crate::{key, perf_event_array, stack_trace, sweep, types};
use beeline_abi::map::{MapHandle, MapType};
use core::fmt;
use core::sync::atomic::Ordering;

/// What is wrong with a map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inconsistency {
    /// A chain does not end.
    EndlessChain {
        /// Which bucket's.
        bucket: u64,
    },
    /// A chain names an element that there is not.
    NoSuchElement {
        /// Which bucket's.
        bucket: u64,
        /// Index of the element.
        element: u32,
    },
    /// An element is in the chain of a bucket that its key does not belong to.
    WrongBucket {
        /// Where it is.
        bucket: u64,
        /// Index of the element.
        element: u32,
    },
    /// An element in a chain is free or somebody's, or was deleted but not taken out.
    NotLinked {
        /// Index of the element.
        element: u32,
        /// Its owner word.
        owner: u64,
    },
    /// A key is twice in its chain.
    Twice {
        /// Index of one of the elements.
        element: u32,
    },
    /// An element that says that it is in a chain is in none, or is nobody's and not free.
    Lost {
        /// Index of the element.
        element: u32,
        /// Its owner word.
        owner: u64,
    },
    /// The count is not the number of elements.
    Count {
        /// The count.
        counted: u64,
        /// How many there are.
        there: u64,
    },
    /// A ring's records do not fill the space between its positions.
    Record {
        /// Position of the record.
        position: u64,
        /// CPU of the ring, 0 for a ring buffer.
        cpu: u32,
    },
}

impl fmt::Display for Inconsistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Inconsistency::EndlessChain { bucket } => write!(f, "the chain of bucket {bucket} does not end"),
            Inconsistency::NoSuchElement { bucket, element } => {
                write!(f, "bucket {bucket} names element {element}, which does not exist")
            }
            Inconsistency::WrongBucket { bucket, element } => {
                write!(f, "element {element} is in bucket {bucket}, where its key does not belong")
            }
            Inconsistency::NotLinked { element, owner } => {
                write!(f, "element {element} is in a chain, but its owner word is {owner:#x}")
            }
            Inconsistency::Twice { element } => {
                write!(f, "the key of element {element} is in its chain twice")
            }
            Inconsistency::Lost { element, owner } => {
                write!(f, "element {element} is in no chain and not free, its owner word is {owner:#x}")
            }
            Inconsistency::Count { counted, there } => {
                write!(f, "the map counts {counted} elements and has {there}")
            }
            Inconsistency::Record { position, cpu } => {
                write!(f, "the record at position {position} of ring {cpu} does not fit the ring's positions")
            }
        }
    }
}

impl core::error::Error for Inconsistency {}

/// Checks a map that nobody changes and that was swept. Returns how many elements or unread records there are.
///
/// # Errors
/// The first [`Inconsistency`].
///
/// # Safety
/// The handle is valid and its mapping alive.
pub unsafe fn verify_consistency(map: &MapHandle) -> Result<u64, Inconsistency> {
    // SAFETY: passed on.
    unsafe {
        match map.shape.map_type {
            kind if types::is_hash(kind) => check_hash(map),
            MapType::STACK_TRACE => check_stacks(map),
            MapType::RINGBUF => check_ring(map),
            MapType::PERF_EVENT_ARRAY => {
                (0..map.shape.cpus).try_fold(0, |all, cpu| Ok(all + check_perf_ring(map, cpu)?))
            }
            _ => Ok(u64::from(map.shape.max_entries)),
        }
    }
}

/// # Safety
/// As [`verify_consistency`], for a hash.
unsafe fn check_hash(map: &MapHandle) -> Result<u64, Inconsistency> {
    let mut linked = 0;
    for bucket in 0..=map.mask {
        // SAFETY: the number is at most the mask.
        linked += unsafe { check_chain(map, bucket)? };
    }
    // SAFETY: passed on.
    unsafe { check_pool(map, linked) }
}

/// # Safety
/// As [`check_hash`]; the number is at most the mask.
unsafe fn check_chain(map: &MapHandle, bucket: u64) -> Result<u64, Inconsistency> {
    // SAFETY: by the caller's contract; elements have keys of the map's size.
    unsafe {
        let mut at = Head(chain::bucket(map, bucket).load(Ordering::Acquire)).first();
        let mut linked = 0;
        while at != 0 {
            let index = at - 1;
            let Some(element) = Element::new(map, index) else {
                return Err(Inconsistency::NoSuchElement { bucket, element: index });
            };
            let owner = element.owner().load(Ordering::Acquire);
            let link = Link(element.next().load(Ordering::Acquire));
            if owner != LINKED || link.is_marked() {
                return Err(Inconsistency::NotLinked { element: index, owner });
            }
            if key::hash_at(map, element.key()) & map.mask != bucket {
                return Err(Inconsistency::WrongBucket { bucket, element: index });
            }
            linked += 1;
            if linked > u64::from(map.pool_len) {
                return Err(Inconsistency::EndlessChain { bucket });
            }
            if is_behind(map, link.target(), element) {
                return Err(Inconsistency::Twice { element: index });
            }
            at = link.target();
        }
        Ok(linked)
    }
}

/// The key of `element` is in the chain from `at` on.
///
/// # Safety
/// As [`check_hash`].
unsafe fn is_behind(map: &MapHandle, mut at: u32, element: Element<'_>) -> bool {
    let mut steps = u64::from(map.pool_len);
    while let Some(other) = Element::new(map, at.wrapping_sub(1)) {
        // SAFETY: both have keys of the map's size.
        if unsafe { key::is_same(map, element.key(), other.key()) } {
            return true;
        }
        if steps == 0 {
            return false;
        }
        steps -= 1;
        at = Link(other.next().load(Ordering::Acquire)).target();
    }
    false
}

/// # Safety
/// As [`verify_consistency`], for a map with a pool of which `linked` elements are in chains.
unsafe fn check_pool(map: &MapHandle, linked: u64) -> Result<u64, Inconsistency> {
    let mut there = 0;
    // SAFETY: passed on.
    for index in 0..unsafe { sweep::used_len(map) } as u32 {
        let Some(element) = Element::new(map, index) else { break };
        match element.owner().load(Ordering::Acquire) {
            FREE => {}
            LINKED => there += 1,
            owner => return Err(Inconsistency::Lost { element: index, owner }),
        }
        // SAFETY: passed on.
        if element.owner().load(Ordering::Acquire) == LINKED && !unsafe { is_linked(map, element) } {
            return Err(Inconsistency::Lost { element: index, owner: LINKED });
        }
    }
    // SAFETY: by the caller's contract.
    let counted = unsafe { state(map, COUNT) }.load(Ordering::Acquire) & 0xffff_ffff;
    if counted == there && there == linked {
        Ok(there)
    } else {
        Err(Inconsistency::Count { counted, there: linked })
    }
}

/// # Safety
/// As [`verify_consistency`], for a map with a pool.
unsafe fn is_linked(map: &MapHandle, element: Element<'_>) -> bool {
    // SAFETY: passed on.
    unsafe {
        match map.shape.map_type {
            MapType::STACK_TRACE => stack_trace::is_linked(map, element),
            _ => chain::is_linked(map, element) == Some(true),
        }
    }
}

/// # Safety
/// As [`verify_consistency`], for a stack trace map.
unsafe fn check_stacks(map: &MapHandle) -> Result<u64, Inconsistency> {
    let mut linked = 0;
    for bucket in 0..=map.mask {
        // SAFETY: the number is at most the mask.
        let at = unsafe { word(map, map.offsets[0] + bucket * 8) }.load(Ordering::Acquire) as u32;
        if at == 0 {
            continue;
        }
        let Some(element) = Element::new(map, at - 1) else {
            return Err(Inconsistency::NoSuchElement { bucket, element: at - 1 });
        };
        let owner = element.owner().load(Ordering::Acquire);
        if owner != LINKED {
            return Err(Inconsistency::NotLinked { element: at - 1, owner });
        }
        // SAFETY: passed on.
        if !unsafe { stack_trace::is_linked(map, element) } {
            return Err(Inconsistency::WrongBucket { bucket, element: at - 1 });
        }
        linked += 1;
    }
    // SAFETY: passed on.
    unsafe { check_pool(map, linked) }
}

/// # Safety
/// As [`verify_consistency`], for a ring buffer.
unsafe fn check_ring(map: &MapHandle) -> Result<u64, Inconsistency> {
    // SAFETY: passed on; positions are masked.
    unsafe {
        let (mut position, end) = (ringbuf::query(map, 2), ringbuf::query(map, 3));
        let mut records = 0;
        while position != end {
            let wrong = Inconsistency::Record { position, cpu: 0 };
            let header = word(map, ringbuf::RING_OFFSET + (position & map.mask & !7)).load(Ordering::Acquire);
            let size = u64::from(header as u32 & !(BUSY | DISCARD));
            let len = (size + ringbuf::HEADER_LEN + 7) & !7;
            let left = end.wrapping_sub(position);
            if position & 7 != 0 || len > left || left > map.mask + 1 {
                return Err(wrong);
            }
            records += u64::from(header as u32 & (BUSY | DISCARD) == 0);
            position = position.wrapping_add(len);
        }
        Ok(records)
    }
}

/// # Safety
/// As [`verify_consistency`], for a perf event array; `cpu` is below the shape's number.
unsafe fn check_perf_ring(map: &MapHandle, cpu: u32) -> Result<u64, Inconsistency> {
    // SAFETY: passed on; positions are masked.
    unsafe {
        let (mut position, end) = perf_event_array::positions(map, cpu);
        let mut records = 0;
        while position != end {
            let size = perf_event_array::record_size(map, cpu, position);
            let len = size.saturating_add(15) & !7;
            let left = end.wrapping_sub(position);
            if position & 7 != 0 || len > left || left > perf_event_array::RING_LEN {
                return Err(Inconsistency::Record { position, cpu });
            }
            records += 1;
            position = position.wrapping_add(len);
        }
        Ok(records)
    }
}
