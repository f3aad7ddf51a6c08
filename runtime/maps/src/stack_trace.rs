//! `BPF_MAP_TYPE_STACK_TRACE`: call stacks by the hash of their addresses.
//!
//! ```text
//! bucket i:   version:32 | element + 1:32          i is the stack's id
//! element:    - | owner | hash:32, depth:32 | addresses (value_size bytes)
//! ```
//!
//! Semantics are those of `kernel/bpf/stackmap.c`; ids too, since the hash is the kernel's `jhash2` with seed 0. Elements
//! come from a pool as a hash's do; a bucket's word changes by compare-and-swap and gets a new version each time, so that a
//! reader knows whether what it copied was still there.

use crate::memory::{copy_in, copy_out, word};
use crate::pool::{self, Element, LINKED};
use crate::sweep::{self, Sweeper};
use beeline_abi::errno::{E2BIG, EEXIST, EFAULT, EINVAL, ENOENT, ENOMEM};
use beeline_abi::map::{Access, MapHandle};
use core::sync::atomic::{AtomicU64, Ordering};

/// `BPF_F_SKIP_FIELD_MASK`: how many innermost frames are left out.
pub const SKIP_MASK: u64 = 0xff;
/// `BPF_F_USER_STACK`.
pub const USER_STACK: u64 = 1 << 8;
/// `BPF_F_FAST_STACK_CMP`: stacks are compared by their hash alone.
pub const FAST_COMPARE: u64 = 1 << 9;
/// `BPF_F_REUSE_STACKID`: a stack with another hash gives way.
pub const REUSE: u64 = 1 << 10;

/// Deepest stack in frames (`sysctl_perf_event_max_stack`'s default, `PERF_MAX_STACK_DEPTH`).
pub const DEPTH_MAX: u32 = 127;

/// `bpf_get_stackid` for a stack that has been walked: keeps it, returns its id.
///
/// `addresses` are `depth` words, innermost first, of which those that `flags` skips are left out here.
///
/// # Errors
/// `-EINVAL` bad flags, `-EFAULT` nothing is left after skipping, `-EEXIST` the bucket holds another stack, `-ENOMEM` the map is
/// full.
///
/// # Safety
/// The handle is that of a `STACK_TRACE`, valid, and its mapping alive. `addresses` is readable for `depth` words.
pub unsafe fn store(map: &MapHandle, access: &Access, addresses: *const u64, depth: u32, flags: u64) -> i64 {
    if flags & !(SKIP_MASK | USER_STACK | FAST_COMPARE | REUSE) != 0 {
        return -EINVAL;
    }
    let skip = (flags & SKIP_MASK) as u32;
    if depth <= skip {
        return -EFAULT;
    }
    let depth = (depth - skip).min(map.shape.value_size / 8);
    // SAFETY: `skip` is less than the words there are.
    let stack = unsafe { Stack::new(addresses.add(skip as usize), depth) };
    // SAFETY: the id is masked; the rest is passed on.
    unsafe {
        let id = u64::from(stack.hash) & map.mask;
        let bucket = bucket(map, id);
        for round in 0..pool::TRIES_MAX {
            let seen = bucket.load(Ordering::Acquire);
            let there = Element::new(map, (seen as u32).wrapping_sub(1));
            if let Some(element) = there {
                let same = stack.is_in(map, element, flags & FAST_COMPARE != 0);
                if bucket.load(Ordering::Acquire) != seen {
                    continue;
                }
                if same {
                    return id as i64;
                }
                if flags & REUSE == 0 {
                    return -EEXIST;
                }
            }
            match put(map, access, bucket, seen, there, &stack) {
                Ok(true) => return id as i64,
                Ok(false) => {
                    if let (Some(element), 1023) = (there, round % 1024) {
                        sweep::recover(map, &Sweeper::in_passing(access, None), element);
                    }
                }
                Err(errno) => return errno,
            }
        }
    }
    -EEXIST
}

/// Puts a stack into a bucket whose word is `seen`. `Ok(false)`: somebody else was faster.
///
/// # Safety
/// As [`store`].
unsafe fn put(
    map: &MapHandle,
    access: &Access,
    bucket: &AtomicU64,
    seen: u64,
    there: Option<Element<'_>>,
    stack: &Stack,
) -> Result<bool, i64> {
    // SAFETY: passed on; the element is ours until the bucket names it.
    unsafe {
        if !pool::count_up(map) {
            return Err(-ENOMEM);
        }
        let Some(element) = pool::take(map, access) else {
            pool::count_down(map);
            return Err(-ENOMEM);
        };
        stack.write_to(map, element);
        // The old one is claimed first, so that it has a name on it from before it leaves the bucket until it is free.
        let ours = there.is_none_or(|old| pool::claim(old, LINKED, access));
        if ours && replace(bucket, seen, element.index + 1) {
            element.owner().store(LINKED, Ordering::Release);
            if let Some(old) = there {
                pool::count_down(map);
                pool::release(map, old);
            }
            return Ok(true);
        }
        if let (true, Some(old)) = (ours, there) {
            old.owner().store(LINKED, Ordering::Release);
        }
        pool::count_down(map);
        pool::release(map, element);
    }
    Ok(false)
}

/// Copies the stack with an id to `out`, zero behind its last frame.
///
/// # Errors
/// `-ENOENT` when there is none.
///
/// # Safety
/// As [`store`]; `out` is writable for the value size.
pub unsafe fn read(map: &MapHandle, id: u32, out: *mut u8) -> i64 {
    if u64::from(id) > map.mask {
        return -ENOENT;
    }
    let size = u64::from(map.shape.value_size);
    // SAFETY: the id was checked; an element has room for a value.
    unsafe {
        let bucket = bucket(map, u64::from(id));
        for _ in 0..pool::TRIES_MAX {
            let seen = bucket.load(Ordering::Acquire);
            let Some(element) = Element::new(map, (seen as u32).wrapping_sub(1)) else { return -ENOENT };
            copy_out(out, element.value(), size);
            core::sync::atomic::fence(Ordering::Acquire);
            if bucket.load(Ordering::Relaxed) == seen {
                return 0;
            }
        }
    }
    -ENOENT
}

/// Removes the stack with an id.
///
/// # Errors
/// `-E2BIG` no such id, `-ENOENT` no stack has it.
///
/// # Safety
/// As [`store`].
pub unsafe fn remove(map: &MapHandle, access: &Access, id: u32) -> i64 {
    if u64::from(id) > map.mask {
        return -E2BIG;
    }
    // SAFETY: the id was checked.
    unsafe { remove_with(map, access, id, |_| {}) }
}

/// Copies the stack with an id to `out`, zero behind its last frame, and removes it.
///
/// # Errors
/// `-ENOENT` when there is none.
///
/// # Safety
/// As [`read`].
pub unsafe fn take(map: &MapHandle, access: &Access, id: u32, out: *mut u8) -> i64 {
    if u64::from(id) > map.mask {
        return -ENOENT;
    }
    let size = u64::from(map.shape.value_size);
    // SAFETY: the id was checked; an element has room for a value.
    unsafe { remove_with(map, access, id, |element| copy_out(out, element.value(), size)) }
}

/// # Safety
/// As [`store`]; the id is at most the mask.
unsafe fn remove_with(map: &MapHandle, access: &Access, id: u32, mut copy: impl FnMut(Element<'_>)) -> i64 {
    // SAFETY: the id was checked.
    unsafe {
        let bucket = bucket(map, u64::from(id));
        for round in 0..pool::TRIES_MAX {
            let seen = bucket.load(Ordering::Acquire);
            let Some(element) = Element::new(map, (seen as u32).wrapping_sub(1)) else { return -ENOENT };
            if !pool::claim(element, LINKED, access) {
                if round % 1024 == 1023 {
                    sweep::recover(map, &Sweeper::in_passing(access, None), element);
                }
                continue;
            }
            if replace(bucket, seen, 0) {
                copy(element);
                pool::count_down(map);
                pool::release(map, element);
                return 0;
            }
            element.owner().store(LINKED, Ordering::Release);
        }
    }
    -ENOENT
}

/// The id of a stack after `key`; the first one when `key` is `None` or no stack has it.
///
/// # Errors
/// `-ENOENT` after the last one.
///
/// # Safety
/// As [`store`].
pub unsafe fn next_id(map: &MapHandle, key: Option<u32>) -> Result<u32, i64> {
    // SAFETY: ids are compared with the mask first.
    let is_there = |id: u64| id <= map.mask && unsafe { bucket(map, id) }.load(Ordering::Acquire) as u32 != 0;
    let from = match key {
        Some(id) if is_there(u64::from(id)) => u64::from(id) + 1,
        _ => 0,
    };
    (from..=map.mask).find(|&id| is_there(id)).map(|id| id as u32).ok_or(-ENOENT)
}

/// True when the bucket that an element belongs to names it.
///
/// # Safety
/// As [`store`].
pub(crate) unsafe fn is_linked(map: &MapHandle, element: Element<'_>) -> bool {
    // SAFETY: an element has its key's word; the id is masked.
    unsafe {
        let hash = key_word(element).load(Ordering::Relaxed) & 0xffff_ffff;
        bucket(map, hash & map.mask).load(Ordering::Acquire) as u32 == element.index + 1
    }
}

/// A stack as it is being stored.
struct Stack {
    addresses: *const u64,
    depth: u32,
    hash: u32,
}

impl Stack {
    /// # Safety
    /// `addresses` is readable for `depth` words.
    unsafe fn new(addresses: *const u64, depth: u32) -> Stack {
        // SAFETY: passed on.
        let hash = unsafe { jhash2(addresses.cast(), 2 * depth, 0) };
        Stack { addresses, depth, hash }
    }

    fn key(&self) -> u64 {
        u64::from(self.hash) | u64::from(self.depth) << 32
    }

    /// # Safety
    /// As [`store`].
    unsafe fn is_in(&self, map: &MapHandle, element: Element<'_>, by_hash: bool) -> bool {
        // SAFETY: an element has its key's word, and room for a value of at least `depth` words.
        unsafe {
            let key = key_word(element).load(Ordering::Relaxed);
            if by_hash {
                return key as u32 == self.hash;
            }
            let words = u64::from(self.depth).min(u64::from(map.shape.value_size) / 8) as usize;
            key == self.key()
                && (0..words).all(|at| {
                    let kept = (*element.value().cast::<AtomicU64>().add(at)).load(Ordering::Relaxed);
                    kept == self.addresses.add(at).read_unaligned()
                })
        }
    }

    /// # Safety
    /// As [`store`]; the element is the caller's.
    unsafe fn write_to(&self, map: &MapHandle, element: Element<'_>) {
        let len = u64::from(self.depth) * 8;
        // SAFETY: `depth` words fit into a value.
        unsafe {
            key_word(element).store(self.key(), Ordering::Relaxed);
            copy_in(element.value(), self.addresses.cast(), len);
            crate::memory::zero(element.value().add(len as usize), u64::from(map.shape.value_size) - len);
        }
    }
}

/// # Safety
/// The element's map is a stack trace map.
unsafe fn key_word(element: Element<'_>) -> &AtomicU64 {
    // SAFETY: the layout gives elements a key of 8 bytes.
    unsafe { &*element.key().cast::<AtomicU64>() }
}

/// # Safety
/// As [`store`]; `id` is at most the mask.
unsafe fn bucket(map: &MapHandle, id: u64) -> &AtomicU64 {
    // SAFETY: by the caller's contract.
    unsafe { word(map, map.offsets[0] + id * 8) }
}

/// Changes a bucket from `seen` to another element, with a new version.
fn replace(bucket: &AtomicU64, seen: u64, target: u32) -> bool {
    let next = (seen >> 32).wrapping_add(1) << 32 | u64::from(target);
    bucket.compare_exchange(seen, next, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

/// Bob Jenkins' lookup3 hash of 32-bit words, as in the kernel (`include/linux/jhash.h`).
///
/// # Safety
/// `words` is readable for `count` words.
unsafe fn jhash2(words: *const u32, count: u32, seed: u32) -> u32 {
    let start = 0xdead_beef_u32.wrapping_add(count << 2).wrapping_add(seed);
    let (mut a, mut b, mut c) = (start, start, start);
    // SAFETY: callers stay below `count`.
    let at = |index: u32| unsafe { words.add(index as usize).read_unaligned() };
    let mut done = 0;
    while count - done > 3 {
        a = a.wrapping_add(at(done));
        b = b.wrapping_add(at(done + 1));
        c = c.wrapping_add(at(done + 2));
        (a, b, c) = mix(a, b, c);
        done += 3;
    }
    let rest = count - done;
    if rest == 0 {
        return c;
    }
    if rest > 2 {
        c = c.wrapping_add(at(done + 2));
    }
    if rest > 1 {
        b = b.wrapping_add(at(done + 1));
    }
    a = a.wrapping_add(at(done));
    last_mix(a, b, c)
}

fn mix(mut a: u32, mut b: u32, mut c: u32) -> (u32, u32, u32) {
    a = a.wrapping_sub(c) ^ c.rotate_left(4);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(6);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(8);
    b = b.wrapping_add(a);
    a = a.wrapping_sub(c) ^ c.rotate_left(16);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(19);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(4);
    b = b.wrapping_add(a);
    (a, b, c)
}

fn last_mix(mut a: u32, mut b: u32, mut c: u32) -> u32 {
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    (c ^ b).wrapping_sub(b.rotate_left(24))
}
