//! `BPF_MAP_TYPE_HASH` and `BPF_MAP_TYPE_PERCPU_HASH`; with `lru`, `BPF_MAP_TYPE_LRU_HASH` and `_LRU_PERCPU_HASH` too.
//!
//! Semantics are those of `kernel/bpf/hashtab.c`. Chains are described in `chain.rs`, elements in `pool.rs`. What an update does
//! to the value of a key that is there:
//!
//! - at most 8 bytes: one 16-byte compare-and-swap of `next` and value stores the new one in place, if the element is
//!   still this key's;
//! - more: a new element takes the old one's place, so nobody sees half a value;
//! - per-CPU: the CPU's copy is overwritten in place, as in the kernel.
//!
//! An element that is being deleted counts until it is out of its chain, so a map that is full to the last element can
//! refuse a new key while a deletion of another thread is under way.

use crate::chain::{self, Head, Link, Mark, Search};
use crate::key::{Key, LongKey, ShortKey, with_key};
use crate::memory::{copy_in, copy_out, read_partial, zero};
use crate::pool::{self, Element, TRIES_MAX};
use crate::sweep::Sweeper;
use crate::system::compare_exchange_pair;
use crate::{lru, sweep};
use beeline_abi::errno::{E2BIG, EBUSY, EEXIST, EINVAL, ENOENT, ENOMEM};
use beeline_abi::map::{Access, MapFlags, MapHandle, MapType};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicU64, Ordering, fence};

/// `BPF_NOEXIST`: the key must not be there yet.
pub const NOEXIST: u64 = 1;
/// `BPF_EXIST`: the key must be there.
pub const EXIST: u64 = 2;

/// Elements that an update of a full LRU map gives up before it gives up itself, beaten by others each time.
const LRU_TRIES: u32 = 64;

/// Where an update takes values from.
#[derive(Clone, Copy)]
pub(crate) enum Source {
    /// One value; in a per-CPU map it is the calling CPU's.
    One(*const u8),
    /// A value for each CPU, each rounded up to a multiple of 8 bytes.
    AllCpus(*const u8),
}

/// The value of a key, or null. It stays readable and writable as long as the map is mapped; after the key is deleted
/// it may become another key's, as in the kernel.
///
/// # Safety
/// The handle is that of a `HASH`, valid, and its mapping alive. `key` is readable for the map's key size.
pub unsafe fn lookup(map: &MapHandle, _access: &Access, key: *const u8) -> *mut u8 {
    // SAFETY: passed on.
    unsafe { find(map, key, |element| element.value()) }
}

/// [`lookup`] in an `LRU_HASH`: also notes that the element was used.
///
/// # Safety
/// As [`lookup`], for an `LRU_HASH`.
pub unsafe fn lookup_lru(map: &MapHandle, _access: &Access, key: *const u8) -> *mut u8 {
    let take = |element: Element<'_>| {
        lru::note_use(element);
        element.value()
    };
    // SAFETY: passed on.
    unsafe { find(map, key, take) }
}

/// The value of a key on the CPU that the caller owns (`access.cpu`), or null.
///
/// # Safety
/// As [`lookup`], for a `PERCPU_HASH`.
pub unsafe fn lookup_percpu(map: &MapHandle, access: &Access, key: *const u8) -> *mut u8 {
    if access.cpu >= map.shape.cpus {
        return null_mut();
    }
    // SAFETY: passed on.
    unsafe { find(map, key, |element| element.cpu_value(access.cpu)) }
}

/// [`lookup_percpu`] in an `LRU_PERCPU_HASH`: also notes that the element was used.
///
/// # Safety
/// As [`lookup_percpu`], for an `LRU_PERCPU_HASH`.
pub unsafe fn lookup_lru_percpu(map: &MapHandle, access: &Access, key: *const u8) -> *mut u8 {
    if access.cpu >= map.shape.cpus {
        return null_mut();
    }
    let take = |element: Element<'_>| {
        lru::note_use(element);
        element.cpu_value(access.cpu)
    };
    // SAFETY: passed on.
    unsafe { find(map, key, take) }
}

/// What `take` makes of the element of a key, or null.
///
/// # Safety
/// As [`lookup`], for any hash.
#[inline(always)]
unsafe fn find(map: &MapHandle, key: *const u8, take: impl Fn(Element<'_>) -> *mut u8) -> *mut u8 {
    let len = u64::from(map.shape.key_size);
    // SAFETY: passed on.
    unsafe {
        match len {
            0..=8 => find_keyed(map, ShortKey(read_partial(key, len)), take),
            _ => find_long(map, LongKey { at: key, len }, take),
        }
    }
}

/// Apart from [`find`], so that what it needs of registers does not burden short keys.
///
/// # Safety
/// As [`find`].
#[inline(never)]
unsafe fn find_long(map: &MapHandle, key: LongKey, take: impl Fn(Element<'_>) -> *mut u8) -> *mut u8 {
    // SAFETY: passed on.
    unsafe { find_keyed(map, key, take) }
}

/// # Safety
/// As [`find`].
#[inline(always)]
unsafe fn find_keyed<K: Key>(map: &MapHandle, key: K, take: impl Fn(Element<'_>) -> *mut u8) -> *mut u8 {
    // SAFETY: passed on.
    unsafe { chain::find(map, chain::bucket(map, key.hash(map.seed)), key, take) }
}

/// Creates or changes the value of a key. `flags` is 0, [`NOEXIST`] or [`EXIST`].
///
/// In a per-CPU hash it is the value on `access.cpu`; a new key's value is zero on the others.
///
/// # Errors
/// `-EINVAL` bad flags, `-EEXIST`, `-ENOENT` by flags, `-E2BIG` the map is full, `-ENOMEM` tmpfs is, `-EBUSY` beaten by
/// others again and again.
///
/// # Safety
/// The handle is that of a hash, valid, and its mapping alive. `key` and `value` are readable for the map's sizes.
pub unsafe fn update(map: &MapHandle, access: &Access, key: *const u8, value: *const u8, flags: u64) -> i64 {
    // SAFETY: passed on.
    unsafe { update_from(map, access, key, Source::One(value), flags) }
}

/// [`update`] with any source.
///
/// # Safety
/// As [`update`]; the source is readable for all its values.
pub(crate) unsafe fn update_from(
    map: &MapHandle,
    access: &Access,
    key: *const u8,
    source: Source,
    flags: u64,
) -> i64 {
    if flags > EXIST {
        return -EINVAL;
    }
    if is_per_cpu(map) && access.cpu >= map.shape.cpus && matches!(source, Source::One(_)) {
        return -EINVAL;
    }
    // SAFETY: passed on.
    unsafe { with_key!(map, key, |key| Update::new(map, access, key, source, flags).run()) }
}

/// Removes a key.
///
/// # Errors
/// `-ENOENT` when it is not there, `-EBUSY` as [`update`].
///
/// # Safety
/// As [`lookup`], for any hash.
pub unsafe fn delete(map: &MapHandle, access: &Access, key: *const u8) -> i64 {
    // SAFETY: passed on.
    unsafe { remove(map, access, key, |_| {}) }
}

/// Copies what `copy` takes from the element of a key: values that the key had at one time, not parts of two.
///
/// # Errors
/// `-ENOENT` when it is not there.
///
/// # Safety
/// As [`lookup`], for any hash.
pub(crate) unsafe fn read(map: &MapHandle, key: *const u8, mut copy: impl FnMut(Element<'_>)) -> i64 {
    // SAFETY: passed on.
    unsafe {
        with_key!(map, key, |key| {
            let bucket = chain::bucket(map, key.hash(map.seed));
            for _ in 0..TRIES_MAX {
                let search = match chain::search(map, bucket, key) {
                    Ok(search) => search,
                    Err(errno) => return errno,
                };
                let Some((element, _)) = search.hit else { return -ENOENT };
                copy(element);
                if chain::unchanged(bucket, search.head).is_some() {
                    return 0;
                }
            }
        });
    }
    -EBUSY
}

/// [`delete`] that first lets `copy` take what it wants from the element.
///
/// # Errors
/// As [`delete`].
///
/// # Safety
/// As [`delete`].
pub(crate) unsafe fn remove(
    map: &MapHandle,
    access: &Access,
    key: *const u8,
    copy: impl FnMut(Element<'_>),
) -> i64 {
    // SAFETY: passed on.
    unsafe { with_key!(map, key, |key| remove_keyed(map, access, key, copy)) }
}

/// # Safety
/// As [`delete`].
unsafe fn remove_keyed<K: Key>(
    map: &MapHandle,
    access: &Access,
    key: K,
    mut copy: impl FnMut(Element<'_>),
) -> i64 {
    // SAFETY: passed on.
    unsafe {
        let bucket = chain::bucket(map, key.hash(map.seed));
        for _ in 0..TRIES_MAX {
            let search = match chain::search(map, bucket, key) {
                Ok(search) => search,
                Err(errno) => return errno,
            };
            sweep_litter(map, access, &search);
            let Some((element, link)) = search.hit else { return -ENOENT };
            let value = element.small_value().load(Ordering::Relaxed);
            copy(element);
            if mark(map, element, link, value) {
                chain::retire(map, access, element);
                return 0;
            }
        }
    }
    -EBUSY
}

/// Marks an element as deleted if it is as it was seen; where values are small, the value too.
///
/// # Safety
/// The handle is that of a hash, valid, and its mapping alive.
unsafe fn mark(map: &MapHandle, element: Element<'_>, link: Link, value: u64) -> bool {
    let marked = link.changed(Mark::Deleted, link.target());
    if is_small(map) {
        // SAFETY: `next` and the value are one aligned pair in the pool.
        return unsafe { compare_exchange_pair(element.next(), [link.0, value], [marked.0, value]) }.is_ok();
    }
    element.next().compare_exchange(link.0, marked.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

/// Writes the key that follows the one at `key` to `out`; the first one when `key` is null or not in the map.
///
/// The order is that of the buckets. A walk that others change meanwhile meets every key that stays.
///
/// # Errors
/// `-ENOENT` after the last one, `-EBUSY` as [`update`].
///
/// # Safety
/// As [`lookup`], for any hash. `key` may be null. `out` is writable for the key size and does not overlap `key`.
pub unsafe fn next_key(map: &MapHandle, _access: &Access, key: *const u8, out: *mut u8) -> i64 {
    // SAFETY: passed on.
    unsafe {
        let from = match key.is_null() {
            true => None,
            false => with_key!(map, key, |key| successor(map, key, out)),
        };
        if let Some(Ok(())) = from {
            return 0;
        }
        let first_bucket = match from {
            Some(Err(bucket)) => bucket,
            _ => 0,
        };
        for at in first_bucket..=map.mask {
            if first_key(map, chain::bucket(map, at), out) {
                return 0;
            }
        }
    }
    -ENOENT
}

/// The key behind `key` in the same bucket is written to `out`. `Err` says in which bucket to go on; `None` that the
/// key is not in the map.
///
/// # Safety
/// As [`next_key`].
unsafe fn successor<K: Key>(map: &MapHandle, key: K, out: *mut u8) -> Option<Result<(), u64>> {
    let hash = key.hash(map.seed);
    // SAFETY: passed on.
    unsafe {
        let bucket = chain::bucket(map, hash);
        for _ in 0..TRIES_MAX {
            let search = chain::search(map, bucket, key).ok()?;
            let (_, link) = search.hit?;
            let found = chain::first_live(map, link.target());
            if let Some(element) = found {
                copy_out(out, element.key(), u64::from(map.shape.key_size));
            }
            if chain::unchanged(bucket, search.head).is_some() {
                return Some(found.map(|_| ()).ok_or((hash & map.mask) + 1));
            }
        }
    }
    None
}

/// Writes the first key of a bucket to `out`. False when it is empty.
///
/// # Safety
/// As [`next_key`].
unsafe fn first_key(map: &MapHandle, bucket: &AtomicU64, out: *mut u8) -> bool {
    for _ in 0..TRIES_MAX {
        let head = Head(bucket.load(Ordering::Acquire));
        let Some(element) = chain::first_live(map, head.first()) else {
            if chain::unchanged(bucket, head).is_some() {
                return false;
            }
            continue;
        };
        // SAFETY: an element has a key of the map's size; `out` is writable for it by contract.
        unsafe { copy_out(out, element.key(), u64::from(map.shape.key_size)) };
        if chain::unchanged(bucket, head).is_some() {
            return true;
        }
    }
    false
}

/// Removes what somebody marked and then died, or could not unlink.
///
/// # Safety
/// The handle is that of a hash, valid, and its mapping alive.
unsafe fn sweep_litter(map: &MapHandle, access: &Access, search: &Search<'_>) {
    if let Some(element) = search.litter {
        // SAFETY: passed on.
        unsafe { chain::retire(map, access, element) };
    }
}

pub(crate) fn is_per_cpu(map: &MapHandle) -> bool {
    matches!(map.shape.map_type, MapType::PERCPU_HASH | MapType::LRU_PERCPU_HASH)
}

fn is_lru(map: &MapHandle) -> bool {
    matches!(map.shape.map_type, MapType::LRU_HASH | MapType::LRU_PERCPU_HASH)
}

/// Values of at most 8 bytes stand beside `next`.
pub(crate) fn is_small(map: &MapHandle) -> bool {
    map.owner_offset == 16
}

/// One update in progress: what it has taken and must give back if it is not used.
struct Update<'a, K: Key> {
    map: &'a MapHandle,
    access: &'a Access,
    key: K,
    hash: u64,
    source: Source,
    flags: u64,
    /// An element of ours, with key and value in it.
    element: Option<Element<'a>>,
    /// It is taken into account.
    counted: bool,
}

/// How a step ended.
enum Step {
    /// With this result.
    Done(i64),
    /// Somebody else was faster: look again.
    Again,
}

impl<'a, K: Key> Update<'a, K> {
    fn new(map: &'a MapHandle, access: &'a Access, key: K, source: Source, flags: u64) -> Self {
        let hash = key.hash(map.seed);
        Update { map, access, key, hash, source, flags, element: None, counted: false }
    }

    /// # Safety
    /// As [`update`].
    unsafe fn run(mut self) -> i64 {
        // SAFETY: passed on.
        unsafe {
            let bucket = chain::bucket(self.map, self.hash);
            let mut result = -EBUSY;
            for _ in 0..TRIES_MAX {
                match self.step(bucket) {
                    Step::Done(done) => {
                        result = done;
                        break;
                    }
                    Step::Again => {}
                }
            }
            if let Some(element) = self.element.take() {
                pool::release(self.map, element);
            }
            if self.counted {
                pool::count_down(self.map);
            }
            result
        }
    }

    /// # Safety
    /// As [`update`].
    unsafe fn step(&mut self, bucket: &AtomicU64) -> Step {
        // SAFETY: passed on.
        unsafe {
            let search = match chain::search(self.map, bucket, self.key) {
                Ok(search) => search,
                Err(errno) => return Step::Done(errno),
            };
            sweep_litter(self.map, self.access, &search);
            match search.hit {
                Some(_) if self.flags == NOEXIST => Step::Done(-EEXIST),
                Some((element, link)) if is_per_cpu(self.map) => self.change_in_place(element, link),
                Some((element, link)) if is_small(self.map) => self.change_small(element, link),
                Some((element, link)) => self.replace(element, link),
                None if self.flags == EXIST => Step::Done(-ENOENT),
                None => self.insert(bucket, search.head),
            }
        }
    }

    /// # Safety
    /// As [`update`]; the map is per-CPU.
    unsafe fn change_in_place(&self, element: Element<'_>, link: Link) -> Step {
        // SAFETY: the CPU was checked; the sources are readable by contract.
        unsafe { self.store_cpu_values(element, false) };
        self.note_use(element);
        // Deleted meanwhile: the values may have gone to an element that is no longer this key's; look again.
        if Link(element.next().load(Ordering::Acquire)) == link { Step::Done(0) } else { Step::Again }
    }

    /// # Safety
    /// As [`update`]; values are small.
    unsafe fn change_small(&self, element: Element<'_>, link: Link) -> Step {
        // SAFETY: `next` and the value are one aligned pair in the pool, and the source is readable by contract.
        unsafe {
            let value = self.small_value();
            for _ in 0..TRIES_MAX {
                let old = element.small_value().load(Ordering::Relaxed);
                match compare_exchange_pair(element.next(), [link.0, old], [link.0, value]) {
                    Ok(()) => {
                        self.note_use(element);
                        return Step::Done(0);
                    }
                    Err([now, _]) if now != link.0 => return Step::Again,
                    Err(_) => {}
                }
            }
        }
        Step::Again
    }

    /// # Safety
    /// As [`update`].
    unsafe fn replace(&mut self, old: Element<'_>, link: Link) -> Step {
        // SAFETY: passed on.
        unsafe {
            let new = match self.prepare() {
                Ok(new) => new,
                Err(errno) => return Step::Done(errno),
            };
            set_next(new, link.target());
            let replaced = link.changed(Mark::Replaced, new.index + 1);
            if old.next().compare_exchange(link.0, replaced.0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                return Step::Again;
            }
            self.element = None;
            pool::count_change(self.map);
            self.linked(new);
            chain::retire(self.map, self.access, old);
        }
        Step::Done(0)
    }

    /// # Safety
    /// As [`update`]; the key was not in the bucket at `head`.
    unsafe fn insert(&mut self, bucket: &AtomicU64, head: Head) -> Step {
        // SAFETY: passed on.
        unsafe {
            let new = match self.prepare() {
                Ok(new) => new,
                Err(errno) => return Step::Done(errno),
            };
            if !self.counted {
                if !self.make_room() {
                    return Step::Done(-E2BIG);
                }
                self.counted = true;
            }
            set_next(new, head.first());
            let next = head.with_first(new.index + 1);
            if bucket.compare_exchange(head.0, next.0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                return Step::Again;
            }
            (self.element, self.counted) = (None, false);
            self.linked(new);
        }
        Step::Done(0)
    }

    fn sweeper(&self) -> Sweeper<'_> {
        Sweeper::in_passing(self.access, self.element.map(|element| element.index))
    }

    fn note_use(&self, element: Element<'_>) {
        if is_lru(self.map) {
            lru::note_use(element);
        }
    }

    /// Takes one more element into account; an LRU map gives up old ones for that.
    ///
    /// # Safety
    /// As [`update`].
    unsafe fn make_room(&self) -> bool {
        // SAFETY: passed on.
        unsafe {
            let (map, access) = (self.map, self.access);
            if pool::count_up(map) {
                return true;
            }
            if is_lru(map) {
                return (0..LRU_TRIES).any(|_| lru::evict(map, access) && pool::count_up(map));
            }
            sweep::on_full(map, &self.sweeper()) && pool::count_up(map)
        }
    }

    /// Our element is in the chain now.
    ///
    /// # Safety
    /// As [`update`].
    unsafe fn linked(&self, element: Element<'_>) {
        if chain::publish(element) {
            // SAFETY: passed on.
            unsafe { chain::retire(self.map, self.access, element) };
        }
    }

    /// The element that this update brings along, with key and value.
    ///
    /// # Safety
    /// As [`update`].
    unsafe fn prepare(&mut self) -> Result<Element<'a>, i64> {
        if let Some(element) = self.element {
            return Ok(element);
        }
        // SAFETY: the element is ours alone until it is linked; its parts are as large as the map's sizes.
        unsafe {
            let element = match pool::take(self.map, self.access) {
                Some(element) => element,
                None if sweep::on_dry(self.map, &self.sweeper()) => {
                    pool::take(self.map, self.access).ok_or(self.no_element())?
                }
                None => return Err(self.no_element()),
            };
            self.element = Some(element);
            // A walk that still sees this element in its old chain must see the chain's `unlinked` changed once it sees
            // any of what follows.
            fence(Ordering::Release);
            self.key.store(element.key());
            match self.source {
                _ if is_per_cpu(self.map) => self.store_cpu_values(element, true),
                _ if is_small(self.map) => element.small_value().store(self.small_value(), Ordering::Relaxed),
                Source::One(value) | Source::AllCpus(value) => {
                    copy_in(element.value(), value, u64::from(self.map.shape.value_size));
                }
            }
            if is_lru(self.map) {
                element.used().store(0, Ordering::Relaxed);
            }
            self.check_key(element)?;
            Ok(element)
        }
    }

    /// The caller's key may lie in memory that another thread writes: what was copied must belong in the bucket that
    /// was chosen.
    ///
    /// # Safety
    /// As [`update`].
    unsafe fn check_key(&self, element: Element<'_>) -> Result<(), i64> {
        let len = u64::from(self.map.shape.key_size);
        let copied = LongKey { at: element.key(), len };
        if len > 8 && copied.hash(self.map.seed) != self.hash { Err(-EBUSY) } else { Ok(()) }
    }

    fn no_element(&self) -> i64 {
        if self.map.shape.map_flags & MapFlags::NO_PREALLOC != 0 { -ENOMEM } else { -EBUSY }
    }

    /// # Safety
    /// As [`update`]; values are small.
    unsafe fn small_value(&self) -> u64 {
        let (Source::One(value) | Source::AllCpus(value)) = self.source;
        // SAFETY: the source is readable for the value size, at most 8.
        unsafe { read_partial(value, u64::from(self.map.shape.value_size)) }
    }

    /// # Safety
    /// As [`update`]; the map is per-CPU.
    unsafe fn store_cpu_values(&self, element: Element<'_>, is_new: bool) {
        let len = u64::from(self.map.shape.value_size);
        let stride = (len + 7) & !7;
        for cpu in 0..self.map.shape.cpus {
            // SAFETY: the CPU is below the shape's number; the source has a value for it.
            unsafe {
                match self.source {
                    Source::AllCpus(values) => {
                        copy_in(element.cpu_value(cpu), values.add((u64::from(cpu) * stride) as usize), len);
                    }
                    Source::One(value) if cpu == self.access.cpu => {
                        copy_in(element.cpu_value(cpu), value, len)
                    }
                    Source::One(_) if is_new => zero(element.cpu_value(cpu), len),
                    Source::One(_) => {}
                }
            }
        }
    }
}

/// Points an element that is not linked yet to its future successor.
fn set_next(element: Element<'_>, target: u32) {
    let link = Link(element.next().load(Ordering::Relaxed));
    element.next().store(link.changed(Mark::None, target).0, Ordering::Release);
}
