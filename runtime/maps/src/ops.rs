//! The operations of a map as programs see them, whatever its type.
//!
//! A type that does not have an operation answers as the kernel's does: null, `-EINVAL` or `-ENOTSUPP`. The verifier
//! keeps programs from calling what their map cannot do.

use crate::{array, hash, types};
use beeline_abi::errno::EINVAL;
use beeline_abi::map::{Access, MapHandle, MapType};
use core::ptr::null_mut;

/// `bpf_map_lookup_elem`: the value of a key, or null. In a per-CPU map it is the value on `access.cpu`.
///
/// # Safety
/// The handle came from [`handle::open`](crate::handle::open) and its mapping is alive. `key` is readable for the
/// map's key size. Per-CPU maps: the caller owns `access.cpu`.
#[inline]
pub unsafe fn lookup(map: &MapHandle, access: &Access, key: *const u8) -> *mut u8 {
    match types::operations(map.shape.map_type) {
        // SAFETY: passed on.
        Some(kind) => unsafe { (kind.lookup)(map, access, key) },
        None => null_mut(),
    }
}

/// `bpf_map_lookup_percpu_elem`: the value of a key on any CPU, or null.
///
/// # Safety
/// As [`lookup`]; the caller need not own the CPU.
pub unsafe fn lookup_percpu_elem(map: &MapHandle, key: *const u8, cpu: u32) -> *mut u8 {
    let access = Access { owner: 0, cpu, flags: 0 };
    // SAFETY: passed on; the types check the CPU.
    unsafe {
        match map.shape.map_type {
            MapType::PERCPU_ARRAY => array::lookup_percpu(map, &access, key),
            MapType::PERCPU_HASH => hash::lookup_percpu(map, &access, key),
            MapType::LRU_PERCPU_HASH => hash::lookup_lru_percpu(map, &access, key),
            _ => null_mut(),
        }
    }
}

/// `bpf_map_update_elem`. Flags: 0 (any), 1 (`BPF_NOEXIST`), 2 (`BPF_EXIST`).
///
/// # Errors
/// The kernel's, negative; see the type's module.
///
/// # Safety
/// As [`lookup`]; `value` is readable for the map's value size.
#[inline]
pub unsafe fn update(map: &MapHandle, access: &Access, key: *const u8, value: *const u8, flags: u64) -> i64 {
    match types::operations(map.shape.map_type) {
        // SAFETY: passed on.
        Some(kind) => unsafe { (kind.update)(map, access, key, value, flags) },
        None => -EINVAL,
    }
}

/// `bpf_map_delete_elem`.
///
/// # Errors
/// The kernel's, negative; see the type's module.
///
/// # Safety
/// As [`lookup`].
#[inline]
pub unsafe fn delete(map: &MapHandle, access: &Access, key: *const u8) -> i64 {
    match types::operations(map.shape.map_type) {
        // SAFETY: passed on.
        Some(kind) => unsafe { (kind.delete)(map, access, key) },
        None => -EINVAL,
    }
}

/// `BPF_MAP_GET_NEXT_KEY`: writes the key after the one at `key` to `out`; the first one when `key` is null or absent.
///
/// # Errors
/// `-ENOENT` after the last one; others as the type's module says.
///
/// # Safety
/// As [`lookup`], but `key` may be null; `out` is writable for the key size and does not overlap `key`.
pub unsafe fn next_key(map: &MapHandle, access: &Access, key: *const u8, out: *mut u8) -> i64 {
    match types::find(map.shape.map_type) {
        // SAFETY: passed on.
        Some(kind) => unsafe { (kind.next_key)(map, access, key, out) },
        None => -EINVAL,
    }
}
