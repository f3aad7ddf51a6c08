//! `BPF_MAP_TYPE_ARRAY` and `BPF_MAP_TYPE_PERCPU_ARRAY`: elements side by side, always there, never deleted.
//!
//! Element `i` is at `data + i * stride`, on CPU `c` of a per-CPU array at `data + c * cpu_stride + i * stride`, with
//! `stride` the value size rounded up to 8. Compiled code relies on that.

use crate::hash::{EXIST, NOEXIST};
use crate::memory::copy_in;
use beeline_abi::errno::{E2BIG, EEXIST, EINVAL, ENOENT};
use beeline_abi::map::{Access, MapHandle, MapType};
use core::ptr::null_mut;

/// The element with the index at `key`, or null.
///
/// # Safety
/// The handle is that of an `ARRAY`, valid, and its mapping alive. `key` is readable for 4 bytes.
#[inline]
pub unsafe fn lookup(map: &MapHandle, _access: &Access, key: *const u8) -> *mut u8 {
    // SAFETY: passed on.
    unsafe { element(map, 0, index(key)) }
}

/// The element with the index at `key` on the CPU that the caller owns (`access.cpu`), or null.
///
/// # Safety
/// As [`lookup`], for a `PERCPU_ARRAY`.
#[inline]
pub unsafe fn lookup_percpu(map: &MapHandle, access: &Access, key: *const u8) -> *mut u8 {
    if access.cpu >= map.shape.cpus {
        return null_mut();
    }
    // SAFETY: passed on.
    unsafe { element(map, access.cpu, index(key)) }
}

/// Overwrites an element; in a per-CPU array that of `access.cpu`.
///
/// # Errors
/// `-EINVAL` bad flags, `-E2BIG` no such index, `-EEXIST` with `BPF_NOEXIST`: every element is there already.
///
/// # Safety
/// As [`lookup`], for both types; `value` is readable for the map's value size.
pub unsafe fn update(map: &MapHandle, access: &Access, key: *const u8, value: *const u8, flags: u64) -> i64 {
    if flags > EXIST {
        return -EINVAL;
    }
    let cpu = if map.shape.map_type == MapType::PERCPU_ARRAY { access.cpu } else { 0 };
    if cpu >= map.shape.cpus {
        return -EINVAL;
    }
    // SAFETY: passed on; an element has room for the value.
    unsafe {
        let element = element(map, cpu, index(key));
        if element.is_null() {
            return -E2BIG;
        }
        if flags == NOEXIST {
            return -EEXIST;
        }
        copy_in(element, value, u64::from(map.shape.value_size));
    }
    0
}

/// Elements of an array cannot be deleted.
///
/// # Errors
/// Always `-EINVAL`.
///
/// # Safety
/// None needed; the signature is that of every map type.
pub unsafe fn delete(_map: &MapHandle, _access: &Access, _key: *const u8) -> i64 {
    -EINVAL
}

/// Writes the index after the one at `key` to `out`; the first one when `key` is null or beyond the end.
///
/// # Errors
/// `-ENOENT` after the last one.
///
/// # Safety
/// The handle is valid; `key` is null or readable, `out` writable, for 4 bytes.
pub unsafe fn next_key(map: &MapHandle, _access: &Access, key: *const u8, out: *mut u8) -> i64 {
    // SAFETY: by the caller's contract.
    let at = if key.is_null() { u32::MAX } else { unsafe { index(key) } };
    let next = if at >= map.shape.max_entries { 0 } else { at + 1 };
    if next == map.shape.max_entries {
        return -ENOENT;
    }
    // SAFETY: by the caller's contract.
    unsafe { out.cast::<u32>().write_unaligned(next) };
    0
}

/// The element of a CPU, or null when the index is too large. `cpu` is below the shape's number of CPUs.
#[inline(always)]
pub(crate) fn element(map: &MapHandle, cpu: u32, index: u32) -> *mut u8 {
    if index >= map.shape.max_entries {
        return null_mut();
    }
    (map.data + u64::from(cpu) * map.cpu_stride + u64::from(index) * map.stride) as *mut u8
}

/// # Safety
/// `key` is readable for 4 bytes.
#[inline(always)]
pub(crate) unsafe fn index(key: *const u8) -> u32 {
    // SAFETY: by the caller's contract.
    unsafe { key.cast::<u32>().read_unaligned() }
}
