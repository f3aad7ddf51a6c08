//! `BPF_MAP_TYPE_PERF_EVENT_ARRAY`: a ring of records for each CPU.
//!
//! ```text
//! 0      MapHeader
//! 4096   CPU 0: control page | RING_LEN bytes of data      cpu_stride bytes in all
//!        CPU 1: ...
//! control page:   head | lost          written by the CPU's owner
//!            64:  tail | lost_told     written by the consumer
//! record:    size | 0 | data, rounded up to 8; wraps at the end of the data
//! ```
//!
//! A ring has one producer at a time, the thread that owns the CPU (`access.cpu`), so a record costs no locked
//! instruction: the data is written first, then `head`. A producer that dies in between has written nothing. When there is
//! no room the record is lost, and counted; the consumer is told before the next record that did find room.

use crate::memory::{read_partial, state, word, write_partial};
use crate::pool::TRIES_MAX;
use crate::system;
use beeline_abi::errno::{E2BIG, EINVAL, ENOSPC, EOPNOTSUPP};
use beeline_abi::map::{Access, MapHandle};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Bytes of data in a CPU's ring, a power of two: 32 pages, between libbpf's usual 8 and bcc's 64.
pub const RING_LEN: u64 = 128 << 10;

/// Bytes from one CPU's ring to the next.
pub const CPU_STRIDE: u64 = 4096 + RING_LEN;

/// `BPF_F_CURRENT_CPU`, also the mask of the index in `flags` (`BPF_F_INDEX_MASK`).
pub const CURRENT_CPU: u64 = 0xffff_ffff;

/// Longest record in bytes: the header of a perf record has 16 bits for its own size.
pub const RECORD_LEN_MAX: u64 = 0xffff;

/// Bytes of a record's header.
const HEADER_LEN: u64 = 8;

const HEAD: u64 = 0;
const LOST: u64 = 8;
const TAIL: u64 = 64;
const LOST_TOLD: u64 = 72;

/// State word: changes when the consumer is woken; what it sleeps on.
const WAKE: u64 = 1;
/// State word: not zero while a consumer sleeps.
const SLEEPERS: u64 = 2;

/// What a consumer found in a CPU's ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A record of so many bytes, now in the buffer and consumed.
    Record(usize),
    /// So many records were lost since the last time that this was said.
    Lost(u64),
    /// Nothing there.
    Empty,
    /// A record of so many bytes, more than the buffer has; not consumed.
    TooLong(usize),
    /// The ring does not contain what a ring contains. Everything in it was thrown away.
    Corrupt,
}

/// `bpf_perf_event_output`: appends a record to the ring of the CPU that `flags` names, which must be the caller's.
///
/// # Errors
/// `-EINVAL` flags beyond the index, or the caller owns no CPU; `-E2BIG` index or record too large; `-EOPNOTSUPP` another CPU;
/// `-ENOSPC` no room (counted as lost).
///
/// # Safety
/// The handle is that of a `PERF_EVENT_ARRAY`, valid, and its mapping alive. The caller owns `access.cpu`. `data` is
/// readable for `size` bytes.
pub unsafe fn output(map: &MapHandle, access: &Access, data: *const u8, size: u64, flags: u64) -> i64 {
    if flags & !CURRENT_CPU != 0 || access.cpu >= map.shape.cpus {
        return -EINVAL;
    }
    let index = if flags == CURRENT_CPU { u64::from(access.cpu) } else { flags };
    if index >= u64::from(map.shape.max_entries) || size > RECORD_LEN_MAX {
        return -E2BIG;
    }
    if index != u64::from(access.cpu) {
        return -EOPNOTSUPP;
    }
    // SAFETY: the CPU was checked; positions are masked.
    unsafe {
        let (head, tail) = (control(map, access.cpu, HEAD), control(map, access.cpu, TAIL));
        let position = head.load(Ordering::Relaxed) & !7;
        let len = (size + HEADER_LEN + 7) & !7;
        let used = position.wrapping_sub(tail.load(Ordering::Acquire));
        if used > RING_LEN || used + len > RING_LEN {
            let lost = control(map, access.cpu, LOST);
            lost.store(lost.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
            return -ENOSPC;
        }
        data_word(map, access.cpu, position).store(size, Ordering::Relaxed);
        let mut at = 0;
        while at < size {
            let value = read_partial(data.add(at as usize), size - at);
            data_word(map, access.cpu, position + HEADER_LEN + at).store(value, Ordering::Relaxed);
            at += 8;
        }
        head.store(position.wrapping_add(len), Ordering::Release);
        wake(map, access);
    }
    0
}

/// Takes the next record of a CPU's ring. Several consumers share the records between them.
///
/// # Safety
/// As [`output`]; the caller need not own a CPU.
pub unsafe fn read(map: &MapHandle, cpu: u32, buffer: &mut [u8]) -> Event {
    if cpu >= map.shape.cpus {
        return Event::Empty;
    }
    // Each round but the last was won by another consumer.
    for _ in 0..TRIES_MAX {
        // SAFETY: the CPU was checked.
        if let Some(event) = unsafe { try_read(map, cpu, buffer) } {
            return event;
        }
    }
    Event::Empty
}

/// `None` when another consumer was faster.
///
/// # Safety
/// As [`read`]; the CPU is below the shape's number.
unsafe fn try_read(map: &MapHandle, cpu: u32, buffer: &mut [u8]) -> Option<Event> {
    // SAFETY: positions are masked.
    unsafe {
        let tail = control(map, cpu, TAIL);
        let (lost, told) = (control(map, cpu, LOST), control(map, cpu, LOST_TOLD));
        let position = tail.load(Ordering::Acquire);
        let produced = control(map, cpu, HEAD).load(Ordering::Acquire);
        let before = told.load(Ordering::Acquire);
        let now = lost.load(Ordering::Acquire);
        if now != before {
            return advance(told, before, now).then_some(Event::Lost(now.wrapping_sub(before)));
        }
        let available = produced.wrapping_sub(position);
        if available == 0 {
            return Some(Event::Empty);
        }
        let size = data_word(map, cpu, position).load(Ordering::Relaxed);
        let len = size.saturating_add(HEADER_LEN + 7) & !7;
        if available > RING_LEN || size > RECORD_LEN_MAX || len > available || position & 7 != 0 {
            return advance(tail, position, produced).then_some(Event::Corrupt);
        }
        if size > buffer.len() as u64 {
            return Some(Event::TooLong(size as usize));
        }
        let mut at = 0;
        while at < size {
            let value = data_word(map, cpu, position + HEADER_LEN + at).load(Ordering::Relaxed);
            write_partial(buffer.as_mut_ptr().add(at as usize), value, size - at);
            at += 8;
        }
        advance(tail, position, position.wrapping_add(len)).then_some(Event::Record(size as usize))
    }
}

fn advance(word: &AtomicU64, from: u64, to: u64) -> bool {
    word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

/// Sleeps until a record may be in any CPU's ring or `timeout_ns` has passed. May return early.
///
/// # Safety
/// As [`read`].
pub unsafe fn wait(map: &MapHandle, timeout_ns: u64) {
    // SAFETY: the words are in the header of every map, the control pages in that of every map of this type.
    unsafe {
        let before = wake_word(map).load(Ordering::Acquire);
        let sleepers = state(map, SLEEPERS);
        sleepers.fetch_add(1, Ordering::AcqRel);
        if !(0..map.shape.cpus).any(|cpu| readable(map, cpu)) {
            system::futex_wait(wake_word(map), before, timeout_ns);
        }
        let _ = sleepers.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| n.checked_sub(1));
    }
}

/// # Safety
/// As [`read`]; the CPU is below the shape's number.
unsafe fn readable(map: &MapHandle, cpu: u32) -> bool {
    let pair = |a, b| {
        // SAFETY: by the caller's contract.
        unsafe {
            control(map, cpu, a).load(Ordering::Acquire) != control(map, cpu, b).load(Ordering::Acquire)
        }
    };
    pair(HEAD, TAIL) || pair(LOST, LOST_TOLD)
}

/// Where a CPU's consumer and producer are.
///
/// # Safety
/// As [`read`]; the CPU is below the shape's number.
pub(crate) unsafe fn positions(map: &MapHandle, cpu: u32) -> (u64, u64) {
    // SAFETY: by the caller's contract.
    unsafe {
        (control(map, cpu, TAIL).load(Ordering::Acquire), control(map, cpu, HEAD).load(Ordering::Acquire))
    }
}

/// What the record at a position says of its size.
///
/// # Safety
/// As [`positions`].
pub(crate) unsafe fn record_size(map: &MapHandle, cpu: u32, position: u64) -> u64 {
    // SAFETY: by the caller's contract.
    unsafe { data_word(map, cpu, position) }.load(Ordering::Relaxed)
}

/// Wakes a sleeping consumer. Its sleep is bounded, so that a wake-up which comes too early costs a delay only: no
/// barrier is spent on it.
///
/// # Safety
/// As [`output`].
unsafe fn wake(map: &MapHandle, access: &Access) {
    // SAFETY: the words are in the header of every map.
    unsafe {
        if state(map, SLEEPERS).load(Ordering::Acquire) != 0 {
            wake_word(map).fetch_add(1, Ordering::AcqRel);
            if access.flags & Access::NO_SYSTEM_CALLS == 0 {
                system::futex_wake(wake_word(map));
            }
        }
    }
}

/// # Safety
/// As [`read`].
unsafe fn wake_word(map: &MapHandle) -> &AtomicU32 {
    // SAFETY: a word of the header; x86-64 is little-endian, so this is its low half.
    unsafe { &*state(map, WAKE).as_ptr().cast::<AtomicU32>() }
}

/// A word of a CPU's control page.
///
/// # Safety
/// As [`read`]; `cpu` is below the shape's number.
#[inline(always)]
unsafe fn control(map: &MapHandle, cpu: u32, at: u64) -> &AtomicU64 {
    // SAFETY: in bounds by the layout.
    unsafe { word(map, map.offsets[0] + u64::from(cpu) * CPU_STRIDE + at) }
}

/// The word of a CPU's data at a position, a multiple of 8 after masking.
///
/// # Safety
/// As [`control`].
#[inline(always)]
unsafe fn data_word(map: &MapHandle, cpu: u32, position: u64) -> &AtomicU64 {
    // SAFETY: the masked position is inside the data.
    unsafe {
        word(map, map.offsets[0] + u64::from(cpu) * CPU_STRIDE + 4096 + (position & (RING_LEN - 1) & !7))
    }
}
