//! `BPF_MAP_TYPE_PROG_ARRAY`: the ids of the programs that tail calls go to, 0 = none.
//!
//! Laid out as an array of one word an element. Programs only read it, through `bpf_tail_call`; user space writes it.

use crate::array;
use beeline_abi::errno::{E2BIG, EINVAL, ENOENT};
use beeline_abi::map::MapHandle;
use core::sync::atomic::{AtomicU32, Ordering};

/// The id of the program at `index`; 0 when there is none or no such index.
///
/// # Safety
/// The handle is that of a `PROG_ARRAY`, valid, and its mapping alive.
#[inline]
pub unsafe fn program_id(map: &MapHandle, index: u64) -> u32 {
    // The kernel takes the low half of the register (`bpf_tail_call`).
    // SAFETY: passed on.
    unsafe { slot(map, index as u32) }.map_or(0, |slot| slot.load(Ordering::Acquire))
}

/// Puts a program at `index`, replacing the one there.
///
/// # Errors
/// `-EINVAL` when `id` is 0 or `flags` is not, `-E2BIG` no such index.
///
/// # Safety
/// As [`program_id`].
pub unsafe fn set(map: &MapHandle, index: u32, id: u32, flags: u64) -> i64 {
    if flags != 0 || id == 0 {
        return -EINVAL;
    }
    // SAFETY: passed on.
    let Some(slot) = (unsafe { slot(map, index) }) else { return -E2BIG };
    slot.store(id, Ordering::Release);
    0
}

/// Takes the program at `index` out.
///
/// # Errors
/// `-E2BIG` no such index, `-ENOENT` no program there.
///
/// # Safety
/// As [`program_id`].
pub unsafe fn clear(map: &MapHandle, index: u32) -> i64 {
    // SAFETY: passed on.
    let Some(slot) = (unsafe { slot(map, index) }) else { return -E2BIG };
    if slot.swap(0, Ordering::AcqRel) == 0 { -ENOENT } else { 0 }
}

/// # Safety
/// As [`program_id`].
#[inline(always)]
unsafe fn slot(map: &MapHandle, index: u32) -> Option<&AtomicU32> {
    let element = array::element(map, 0, index);
    // SAFETY: an element is 8 bytes and aligned to that.
    (!element.is_null()).then(|| unsafe { &*element.cast::<AtomicU32>() })
}
