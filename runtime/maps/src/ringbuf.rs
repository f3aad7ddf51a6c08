//! `BPF_MAP_TYPE_RINGBUF`: one ring of records of any length, many producers, one consumer.
//!
//! ```text
//! 0       MapHeader
//! 4096    consumer page:  consumer_pos
//! 8192    producer page:  producer_pos | lock          one aligned pair
//! 12288   data (max_entries bytes, a power of two)
//!         data, mapped once more: a record that wraps lies in one piece
//! ```
//!
//! Positions count bytes and never wrap. A record is a header and its data, rounded up to 8; header as in the kernel
//! (`struct bpf_ringbuf_hdr`): length with `BUSY` (bit 31) and `DISCARD` (bit 30), then a word that the kernel uses
//! for itself and that holds the producer's [digest](crate::owner::digest) here. So a consumer written for the kernel's
//! ring can read this one.
//!
//! Producers take the lock, write a busy header, and advance `producer_pos` and open the lock in one step of 16 bytes.
//! At every instruction in between the ring is consistent: when the owner dies, the next producer takes the lock over, and an
//! owner that lost it notices in that step. A record whose producer died before committing is discarded by the
//! consumer.

use crate::memory::{copy_in, copy_out, state, word};
use crate::owner;
use crate::pool::{ANONYMOUS, owner_of};
use crate::system::{self, compare_exchange_pair};
use beeline_abi::errno::{EAGAIN, EINVAL};
use beeline_abi::map::{Access, MapHandle};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// `BPF_RB_NO_WAKEUP`: do not wake the consumer.
pub const NO_WAKEUP: u64 = 1;
/// `BPF_RB_FORCE_WAKEUP`: wake the consumer even if it is busy with earlier records.
pub const FORCE_WAKEUP: u64 = 2;

/// Header bit: not committed yet (`BPF_RINGBUF_BUSY_BIT`).
pub const BUSY: u32 = 1 << 31;
/// Header bit: to be skipped (`BPF_RINGBUF_DISCARD_BIT`).
pub const DISCARD: u32 = 1 << 30;
/// Bytes of a record's header (`BPF_RINGBUF_HDR_SZ`).
pub const HEADER_LEN: u64 = 8;
/// Longest record in bytes (`RINGBUF_MAX_RECORD_SZ`).
pub const RECORD_LEN_MAX: u64 = (u32::MAX / 4) as u64;

/// Offset of the consumer page in the file.
pub const CONSUMER_OFFSET: u64 = 4096;
/// Offset of the producer page in the file.
pub const PRODUCER_OFFSET: u64 = 8192;
/// Offset of the data in the file.
pub const RING_OFFSET: u64 = 12288;

/// State word: times that producers gave up on a lock since somebody last got it.
const STALLS: u64 = 0;
/// State word: changes when the consumer is woken; what it sleeps on.
const WAKE: u64 = 1;
/// State word: not zero while a consumer sleeps.
const SLEEPERS: u64 = 2;

/// Times that producers wait in vain, some 100 µs each, before the lock is taken from an owner that is not dead.
const STALLS_MAX: u64 = 4096;

/// Reserves a record of `size` bytes; null when there is no room, `flags` is not 0, or the lock could not be had.
///
/// # Safety
/// The handle is that of a `RINGBUF`, valid, its mapping alive.
pub unsafe fn reserve(map: &MapHandle, access: &Access, size: u64, flags: u64) -> *mut u8 {
    if flags != 0 {
        return null_mut();
    }
    // SAFETY: passed on.
    unsafe { reserve_record(map, access, size) }
}

/// # Safety
/// As [`reserve`].
unsafe fn reserve_record(map: &MapHandle, access: &Access, size: u64) -> *mut u8 {
    if size > RECORD_LEN_MAX {
        return null_mut();
    }
    let len = (size + HEADER_LEN + 7) & !7;
    let me = owner_of(access);
    // SAFETY: the words are in the mapping of every ring; the header is at a masked, aligned position.
    unsafe {
        let producer = producer(map);
        for _ in 0..64 {
            if !lock(map, access) {
                return null_mut();
            }
            let position = producer.load(Ordering::Acquire);
            let consumed = consumer(map).load(Ordering::Acquire);
            if position.wrapping_add(len).wrapping_sub(consumed) > map.mask {
                let _ = compare_exchange_pair(producer, [position, me], [position, 0]);
                return null_mut();
            }
            if lock_word(map).load(Ordering::Acquire) != me {
                continue;
            }
            let header = u64::from(size as u32 | BUSY) | u64::from(owner::digest(me)) << 32;
            header_at(map, position).store(header, Ordering::Release);
            let next = [position.wrapping_add(len), 0];
            if compare_exchange_pair(producer, [position, me], next).is_ok() {
                return record_at(map, position);
            }
        }
    }
    null_mut()
}

/// Commits a record. `flags` is 0, [`NO_WAKEUP`] or [`FORCE_WAKEUP`].
///
/// # Safety
/// As [`reserve`]; `record` was returned by it and is not committed yet.
pub unsafe fn submit(map: &MapHandle, access: &Access, record: *mut u8, flags: u64) {
    // SAFETY: passed on.
    unsafe { commit(map, access, record, flags, 0) }
}

/// Commits a record as one that the consumer skips.
///
/// # Safety
/// As [`submit`].
pub unsafe fn discard(map: &MapHandle, access: &Access, record: *mut u8, flags: u64) {
    // SAFETY: passed on.
    unsafe { commit(map, access, record, flags, DISCARD) }
}

/// # Safety
/// As [`submit`].
unsafe fn commit(map: &MapHandle, access: &Access, record: *mut u8, flags: u64, discard: u32) {
    let position = (record as u64).wrapping_sub(map.data + HEADER_LEN) & map.mask & !7;
    // SAFETY: the position is masked.
    unsafe {
        let length = length_word(map, position);
        let committed = length.load(Ordering::Relaxed) & !(BUSY | DISCARD) | discard;
        if flags & (NO_WAKEUP | FORCE_WAKEUP) == NO_WAKEUP {
            length.store(committed, Ordering::Release);
            return;
        }
        // Before the consumer's position is looked at: else neither of us might see what the other has written.
        length.swap(committed, Ordering::AcqRel);
        let forced = flags & FORCE_WAKEUP != 0;
        let wanted = forced || consumer(map).load(Ordering::Acquire) & map.mask == position;
        if wanted {
            wake(map, access);
        }
    }
}

/// Copies `size` bytes into a new record and commits it. `flags` is 0, [`NO_WAKEUP`] or [`FORCE_WAKEUP`].
///
/// # Errors
/// `-EINVAL` bad flags, `-EAGAIN` no room.
///
/// # Safety
/// As [`reserve`]; `data` is readable for `size` bytes.
pub unsafe fn output(map: &MapHandle, access: &Access, data: *const u8, size: u64, flags: u64) -> i64 {
    if flags & !(NO_WAKEUP | FORCE_WAKEUP) != 0 {
        return -EINVAL;
    }
    // SAFETY: a record has room for its size rounded up to 8.
    unsafe {
        let record = reserve_record(map, access, size);
        if record.is_null() {
            return -EAGAIN;
        }
        copy_in(record, data, size);
        submit(map, access, record, flags);
    }
    0
}

/// `bpf_ringbuf_query`: 0 unconsumed bytes, 1 bytes of the ring, 2 consumer position, 3 producer position; 0 for others.
///
/// # Safety
/// As [`reserve`].
pub unsafe fn query(map: &MapHandle, what: u64) -> u64 {
    // SAFETY: the words are in the mapping of every ring.
    unsafe {
        let consumed = consumer(map).load(Ordering::Acquire);
        let produced = producer(map).load(Ordering::Acquire);
        match what {
            0 => produced.wrapping_sub(consumed),
            1 => map.mask + 1,
            2 => consumed,
            3 => produced,
            _ => 0,
        }
    }
}

/// What a consumer found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Read {
    /// A record of so many bytes, now in the buffer and consumed.
    Record(usize),
    /// Nothing committed yet.
    Empty,
    /// A record of so many bytes, more than the buffer has; not consumed.
    TooLong(usize),
    /// The ring does not contain what a ring contains. Everything in it was thrown away.
    Corrupt,
}

/// Takes the next record. Discarded ones are skipped, as are those whose producer died.
///
/// Several consumers share the records between them; each record goes to one.
///
/// # Safety
/// As [`reserve`].
pub unsafe fn read(map: &MapHandle, access: &Access, buffer: &mut [u8]) -> Read {
    // SAFETY: the words are in the mapping of every ring; positions are masked.
    unsafe {
        let consumer = consumer(map);
        // Each round consumes at least eight bytes, or was beaten by another consumer.
        for _ in 0..=map.mask / 8 {
            let position = consumer.load(Ordering::Acquire);
            let produced = producer(map).load(Ordering::Acquire);
            let available = produced.wrapping_sub(position);
            if available == 0 {
                return Read::Empty;
            }
            let length = length_word(map, position);
            let seen = length.load(Ordering::Acquire);
            if seen & BUSY != 0 {
                if abandoned(map, access, position) {
                    let discarded = seen & !BUSY | DISCARD;
                    let _ = length.compare_exchange(seen, discarded, Ordering::AcqRel, Ordering::Relaxed);
                    continue;
                }
                return Read::Empty;
            }
            let size = u64::from(seen & !DISCARD);
            let len = (size + HEADER_LEN + 7) & !7;
            if len > available || available > map.mask + 1 || position & 7 != 0 {
                // Another consumer may have taken it and producers may have overwritten it: then look again.
                if consumer.compare_exchange(position, produced, Ordering::AcqRel, Ordering::Relaxed).is_ok()
                {
                    return Read::Corrupt;
                }
                continue;
            }
            let wanted = seen & DISCARD == 0;
            if wanted && size > buffer.len() as u64 {
                return Read::TooLong(size as usize);
            }
            if wanted {
                copy_out(buffer.as_mut_ptr(), record_at(map, position), size);
            }
            let next = position.wrapping_add(len);
            let taken =
                consumer.compare_exchange(position, next, Ordering::AcqRel, Ordering::Relaxed).is_ok();
            if taken && wanted {
                return Read::Record(size as usize);
            }
        }
    }
    Read::Empty
}

/// Sleeps until a record may be there, a producer forces a wake-up, or `timeout_ns` has passed. May return early.
///
/// # Safety
/// As [`reserve`].
pub unsafe fn wait(map: &MapHandle, timeout_ns: u64) {
    // SAFETY: the words are in the mapping of every ring.
    unsafe {
        let wake = wake_word(map);
        let before = wake.load(Ordering::Acquire);
        let sleepers = state(map, SLEEPERS);
        sleepers.fetch_add(1, Ordering::AcqRel);
        if !readable(map) {
            system::futex_wait(wake, before, timeout_ns);
        }
        // A consumer that is killed here leaves a sleeper too many: it costs producers a system call, nothing else.
        let _ = sleepers.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| n.checked_sub(1));
    }
}

/// A committed record is next.
///
/// # Safety
/// As [`reserve`].
unsafe fn readable(map: &MapHandle) -> bool {
    // SAFETY: the words are in the mapping of every ring; positions are masked.
    unsafe {
        let position = consumer(map).load(Ordering::Acquire);
        position != producer(map).load(Ordering::Acquire)
            && length_word(map, position).load(Ordering::Acquire) & BUSY == 0
    }
}

/// # Safety
/// As [`reserve`].
unsafe fn wake(map: &MapHandle, access: &Access) {
    // SAFETY: the words are in the mapping of every ring.
    unsafe {
        if state(map, SLEEPERS).load(Ordering::Acquire) != 0 {
            wake_word(map).fetch_add(1, Ordering::AcqRel);
            if access.flags & Access::NO_SYSTEM_CALLS == 0 {
                system::futex_wake(wake_word(map));
            }
        }
    }
}

/// True when the producer of a busy record is dead.
///
/// # Safety
/// As [`reserve`].
unsafe fn abandoned(map: &MapHandle, access: &Access, position: u64) -> bool {
    // SAFETY: the position is masked.
    let header = unsafe { header_at(map, position) }.load(Ordering::Acquire);
    !owner::is_digest_alive(access, (header >> 32) as u32)
}

/// Takes the producers' lock. False when it could not be had within a bounded time.
///
/// # Safety
/// As [`reserve`].
unsafe fn lock(map: &MapHandle, access: &Access) -> bool {
    let me = owner_of(access);
    // SAFETY: the words are in the mapping of every ring.
    let (lock, stalls) = unsafe { (lock_word(map), state(map, STALLS)) };
    for round in 0..WAIT_ROUNDS {
        let Err(holder) = lock.compare_exchange(0, me, Ordering::AcqRel, Ordering::Relaxed) else {
            if stalls.load(Ordering::Relaxed) != 0 {
                stalls.store(0, Ordering::Relaxed);
            }
            return true;
        };
        // Ours already: a signal handler jumped out of an earlier call, for programs do not nest in a thread.
        if holder == me && me != ANONYMOUS {
            return true;
        }
        let look = round % 16 == 15;
        if look
            && !owner::is_alive(access, holder)
            && lock.compare_exchange(holder, me, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            return true;
        }
        system::pause(access, round);
    }
    // SAFETY: as above.
    unsafe { seize(map, access) }
}

/// Rounds of waiting for the lock: the first spin, the others yield the CPU.
const WAIT_ROUNDS: u32 = 128;

/// After many waits in vain, takes the lock from an owner that is alive, or may be: it is stopped, or a signal handler
/// jumped out of its call. When it goes on, it finds in its last step that it has lost the lock.
///
/// # Safety
/// As [`reserve`].
unsafe fn seize(map: &MapHandle, access: &Access) -> bool {
    // SAFETY: the words are in the mapping of every ring.
    let (lock, stalls) = unsafe { (lock_word(map), state(map, STALLS)) };
    let holder = lock.load(Ordering::Acquire);
    if stalls.fetch_add(1, Ordering::Relaxed) < STALLS_MAX {
        return false;
    }
    stalls.store(0, Ordering::Relaxed);
    lock.compare_exchange(holder, owner_of(access), Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

/// # Safety
/// As [`reserve`].
#[inline(always)]
unsafe fn lock_word(map: &MapHandle) -> &AtomicU64 {
    // SAFETY: passed on.
    unsafe { word(map, PRODUCER_OFFSET + 8) }
}

/// # Safety
/// As [`reserve`].
#[inline(always)]
unsafe fn consumer(map: &MapHandle) -> &AtomicU64 {
    // SAFETY: passed on.
    unsafe { word(map, CONSUMER_OFFSET) }
}

/// # Safety
/// As [`reserve`].
#[inline(always)]
unsafe fn producer(map: &MapHandle) -> &AtomicU64 {
    // SAFETY: passed on.
    unsafe { word(map, PRODUCER_OFFSET) }
}

/// # Safety
/// As [`reserve`].
unsafe fn wake_word(map: &MapHandle) -> &AtomicU32 {
    // SAFETY: a word of the header; x86-64 is little-endian, so this is its low half.
    unsafe { &*state(map, WAKE).as_ptr().cast::<AtomicU32>() }
}

/// The header of the record at a position, both words.
///
/// # Safety
/// As [`reserve`].
#[inline(always)]
unsafe fn header_at(map: &MapHandle, position: u64) -> &AtomicU64 {
    // SAFETY: the masked position is inside the data.
    unsafe { word(map, RING_OFFSET + (position & map.mask & !7)) }
}

/// The header's length word.
///
/// # Safety
/// As [`reserve`].
#[inline(always)]
unsafe fn length_word(map: &MapHandle, position: u64) -> &AtomicU32 {
    // SAFETY: the low half of the header.
    unsafe { &*header_at(map, position).as_ptr().cast::<AtomicU32>() }
}

/// The data of the record at a position; at most the ring's length follows, by the second mapping.
#[inline(always)]
fn record_at(map: &MapHandle, position: u64) -> *mut u8 {
    (map.data + (position & map.mask & !7) + HEADER_LEN) as *mut u8
}
