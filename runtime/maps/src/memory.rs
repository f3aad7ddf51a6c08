//! The only ways in which operations touch a map's bytes: atomic words at checked places, and copies word by word.
//!
//! Copies use relaxed atomic words on the shared side: another process may write the same bytes at the same time, and
//! a word is never torn. They also keep the compiler from using vector registers on a path that a hit takes.

use beeline_abi::map::{MapHandle, MapHeader};
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// The 64-bit word at `offset` bytes from the start of the map.
///
/// # Safety
/// The handle is valid and its mapping alive; `offset` is a multiple of 8 and `offset + 8 <= mapped_len`.
#[inline(always)]
pub(crate) unsafe fn word(map: &MapHandle, offset: u64) -> &AtomicU64 {
    debug_assert!(offset.is_multiple_of(8) && offset + 8 <= map.mapped_len, "word at {offset}");
    // SAFETY: in bounds and aligned by the caller's contract; the memory is only ever accessed as atomics.
    unsafe { &*((map.base + offset) as *const AtomicU64) }
}

/// One of the header's words that operations change.
///
/// # Safety
/// The handle is valid and its mapping alive. `index` is less than 8.
#[inline(always)]
pub(crate) unsafe fn state(map: &MapHandle, index: u64) -> &AtomicU64 {
    debug_assert!(index < 8);
    // SAFETY: the header is within every valid mapping.
    unsafe { word(map, core::mem::offset_of!(MapHeader, state) as u64 + index * 64) }
}

/// Copies `len` bytes of caller's memory to shared memory; bytes up to the next multiple of 8 become zero.
///
/// # Safety
/// `from` is readable for `len` bytes. `to` is aligned to 8 and writable for `len` rounded up to a multiple of 8.
#[inline]
pub(crate) unsafe fn copy_in(to: *mut u8, from: *const u8, len: u64) {
    let mut at = 0;
    while at < len {
        // SAFETY: `at` is a multiple of 8 below `len`; the partial read takes at most the rest.
        unsafe {
            let value = read_partial(from.add(at as usize), len - at);
            (*to.add(at as usize).cast::<AtomicU64>()).store(value, Ordering::Relaxed);
        }
        at += 8;
    }
}

/// Copies `len` bytes of shared memory to caller's memory.
///
/// # Safety
/// `from` is aligned to 8 and readable for `len` rounded up to a multiple of 8; `to` is writable for `len` bytes.
#[inline]
pub(crate) unsafe fn copy_out(to: *mut u8, from: *const u8, len: u64) {
    let mut at = 0;
    while at < len {
        // SAFETY: as for `copy_in`, with the roles exchanged.
        unsafe {
            let value = (*from.add(at as usize).cast::<AtomicU64>()).load(Ordering::Relaxed);
            write_partial(to.add(at as usize), value, len - at);
        }
        at += 8;
    }
}

/// Zeroes `len` bytes of shared memory, rounded up to a multiple of 8.
///
/// # Safety
/// `to` is aligned to 8 and writable for that many bytes.
#[inline]
pub(crate) unsafe fn zero(to: *mut u8, len: u64) {
    let mut at = 0;
    while at < len {
        // SAFETY: in bounds by the caller's contract.
        unsafe { (*to.add(at as usize).cast::<AtomicU64>()).store(0, Ordering::Relaxed) };
        at += 8;
    }
}

/// The first `min(len, 8)` bytes at `from` as a little-endian word, zero above.
///
/// # Safety
/// That many bytes are readable.
#[inline(always)]
pub(crate) unsafe fn read_partial(from: *const u8, len: u64) -> u64 {
    // SAFETY: each arm reads at most `len` bytes.
    unsafe {
        match len {
            8.. => from.cast::<u64>().read_unaligned(),
            4 => u64::from(from.cast::<u32>().read_unaligned()),
            _ => read_tail(from, len),
        }
    }
}

/// # Safety
/// `len` bytes, at most 7, are readable at `from`.
#[inline(never)]
unsafe fn read_tail(from: *const u8, len: u64) -> u64 {
    let mut value = 0;
    let mut at = 0;
    while at < len && at < 8 {
        // SAFETY: in bounds; byte-wise atomics keep this loop a loop.
        let byte = unsafe { (*from.add(at as usize).cast::<AtomicU8>()).load(Ordering::Relaxed) };
        value |= u64::from(byte) << (at * 8);
        at += 1;
    }
    value
}

/// Stores the low `min(len, 8)` bytes of `value` at `to`.
///
/// # Safety
/// That many bytes are writable.
#[inline(always)]
pub(crate) unsafe fn write_partial(to: *mut u8, value: u64, len: u64) {
    // SAFETY: each arm writes at most `len` bytes.
    unsafe {
        match len {
            8.. => to.cast::<u64>().write_unaligned(value),
            4 => to.cast::<u32>().write_unaligned(value as u32),
            _ => write_tail(to, value, len),
        }
    }
}

/// # Safety
/// `len` bytes, at most 7, are writable at `to`.
#[inline(never)]
unsafe fn write_tail(to: *mut u8, value: u64, len: u64) {
    let mut at = 0;
    while at < len && at < 8 {
        // SAFETY: in bounds.
        unsafe {
            (*to.add(at as usize).cast::<AtomicU8>()).store((value >> (at * 8)) as u8, Ordering::Relaxed)
        };
        at += 1;
    }
}
