//! `bpf_for_each_map_elem`: a callback for each element.

use crate::chain::{self, Head, Link};
use crate::pool::Element;
use crate::{array, hash, lru, types};
use beeline_abi::errno::{EINVAL, EOPNOTSUPP};
use beeline_abi::map::{Access, MapHandle, MapType};
use core::sync::atomic::{AtomicU64, Ordering};

/// Calls `callback(key, value)` for each element until it returns false. Returns how many times it was called.
///
/// In a per-CPU map the value is that of `access.cpu`. The callback may change the map, and delete the element that it
/// is called for. Elements that others insert or delete meanwhile may or may not be seen.
///
/// # Errors
/// `-EINVAL` when `flags` is not 0, `-EOPNOTSUPP` for types without elements to visit.
///
/// # Safety
/// As [`ops::lookup`](crate::ops::lookup). Key and value are valid during the call of the callback.
pub unsafe fn for_each(
    map: &MapHandle,
    access: &Access,
    flags: u64,
    callback: &mut dyn FnMut(*mut u8, *mut u8) -> bool,
) -> i64 {
    if flags != 0 {
        return -EINVAL;
    }
    match map.shape.map_type {
        MapType::ARRAY => for_each_index(map, 0, callback),
        MapType::PERCPU_ARRAY if access.cpu < map.shape.cpus => for_each_index(map, access.cpu, callback),
        kind if types::is_hash(kind) => {
            if hash::is_per_cpu(map) && access.cpu >= map.shape.cpus {
                return -EINVAL;
            }
            let mut visits = Visits { map, access, callback, count: 0 };
            for at in 0..=map.mask {
                // SAFETY: the number is at most the mask.
                if !unsafe { visits.bucket(chain::bucket(map, at)) } {
                    break;
                }
            }
            visits.count
        }
        _ => -EOPNOTSUPP,
    }
}

fn for_each_index(map: &MapHandle, cpu: u32, callback: &mut dyn FnMut(*mut u8, *mut u8) -> bool) -> i64 {
    let mut count = 0;
    for index in 0..map.shape.max_entries {
        count += 1;
        let mut key = index;
        if !callback((&raw mut key).cast(), array::element(map, cpu, index)) {
            break;
        }
    }
    count
}

/// A walk over a hash.
struct Visits<'a> {
    map: &'a MapHandle,
    access: &'a Access,
    callback: &'a mut dyn FnMut(*mut u8, *mut u8) -> bool,
    count: i64,
}

/// Where a walk is in a bucket: the element that was visited, and the one behind it, in case the first is deleted.
#[derive(Clone, Copy)]
struct Place {
    visited: u32,
    after: u32,
}

impl Visits<'_> {
    /// Visits a bucket's elements. False when the callback wants no more.
    ///
    /// # Safety
    /// As [`for_each`].
    unsafe fn bucket(&mut self, bucket: &AtomicU64) -> bool {
        let mut place = None;
        let mut budget = chain::steps_max(self.map);
        while let Some(element) = next_from(self.map, bucket, place, &mut budget) {
            let after = Link(element.next().load(Ordering::Acquire)).target();
            place = Some(Place { visited: element.index + 1, after });
            self.count += 1;
            let value = self.value(element);
            if !(self.callback)(element.key(), value) {
                return false;
            }
        }
        true
    }

    fn value(&self, element: Element<'_>) -> *mut u8 {
        match self.map.shape.map_type {
            MapType::PERCPU_HASH | MapType::LRU_PERCPU_HASH => element.cpu_value(self.access.cpu),
            MapType::LRU_HASH => {
                lru::note_use(element);
                element.value()
            }
            _ => element.value(),
        }
    }
}

/// The element to visit after `place`; the first one when that is `None`.
///
/// When the visited element is gone, the walk goes on at the one that was behind it; when both are, it ends.
fn next_from<'a>(
    map: &'a MapHandle,
    bucket: &AtomicU64,
    place: Option<Place>,
    budget: &mut u64,
) -> Option<Element<'a>> {
    loop {
        let head = Head(bucket.load(Ordering::Acquire));
        let found = match place {
            None => chain::first_live(map, head.first()),
            Some(place) => find_place(map, head, place, budget),
        };
        if chain::unchanged(bucket, head).is_some() {
            return found;
        }
        *budget = budget.checked_sub(1)?;
    }
}

fn find_place<'a>(map: &'a MapHandle, head: Head, place: Place, budget: &mut u64) -> Option<Element<'a>> {
    let mut behind = None;
    let mut at = head.first();
    while let Some(element) = Element::new(map, at.wrapping_sub(1)) {
        *budget = budget.checked_sub(1)?;
        let link = Link(element.next().load(Ordering::Acquire));
        if at == place.visited {
            return chain::first_live(map, link.target());
        }
        if at == place.after && !link.is_marked() {
            behind = Some(element);
        }
        at = link.target();
    }
    behind
}
