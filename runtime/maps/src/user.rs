//! The operations of a map as the system calls do them: copies in and out, values of all CPUs at once, access rights.
//!
//! A value of a per-CPU map is one copy for each CPU, each rounded up to a multiple of 8 bytes ([`value_len`]).
//! `BPF_F_RDONLY`, `BPF_F_WRONLY` and freezing concern these operations only; programs have flags of their own, which
//! the verifier checks.

use crate::hash::{self, Source};
use crate::memory::{copy_in, copy_out};
use crate::pool::Element;
use crate::{array, ops, prog_array, stack_trace, types};
use beeline_abi::errno::{E2BIG, EEXIST, EINVAL, ENOENT, ENOTSUPP, EPERM};
use beeline_abi::map::{Access, MapFlags, MapHandle, MapHeader, MapType};
use core::sync::atomic::{AtomicU32, Ordering};

/// `BPF_F_LOCK`: take the value's spin lock.
pub const LOCK: u64 = 4;

/// Bytes of a value as these operations copy it: for per-CPU maps the copies of all CPUs.
pub fn value_len(map: &MapHandle) -> u64 {
    let size = u64::from(map.shape.value_size);
    match map.shape.map_type {
        MapType::PERCPU_ARRAY | MapType::PERCPU_HASH | MapType::LRU_PERCPU_HASH => {
            ((size + 7) & !7) * u64::from(map.shape.cpus)
        }
        _ => size,
    }
}

/// `BPF_MAP_LOOKUP_ELEM`: copies the value of a key to `out`.
///
/// A prog array gives the id of the program, a stack trace map the stack with zeros behind it.
///
/// # Errors
/// `-EINVAL` bad flags, `-EPERM` the map is write-only, `-ENOENT` no such key, `-ENOTSUPP` the type has no values to
/// copy.
///
/// # Safety
/// As [`ops::lookup`]; `out` is writable for [`value_len`] bytes.
pub unsafe fn lookup(map: &MapHandle, _access: &Access, key: *const u8, out: *mut u8, flags: u64) -> i64 {
    if flags & !LOCK != 0 {
        return -EINVAL;
    }
    if map.shape.map_flags & MapFlags::WRONLY != 0 {
        return -EPERM;
    }
    // No map of ours has a spin lock in its values.
    if flags != 0 {
        return -EINVAL;
    }
    // SAFETY: passed on.
    unsafe {
        match map.shape.map_type {
            MapType::ARRAY | MapType::PERCPU_ARRAY => read_array(map, array::index(key), out),
            MapType::PROG_ARRAY => read_program(map, array::index(key), out),
            MapType::STACK_TRACE => stack_trace::read(map, array::index(key), out),
            kind if types::is_hash(kind) => read_hash(map, key, out),
            _ => -ENOTSUPP,
        }
    }
}

/// `BPF_MAP_UPDATE_ELEM`: creates or changes the value of a key. A prog array takes the id of a program.
///
/// # Errors
/// `-EPERM` the map is read-only or frozen; others as [`ops::update`].
///
/// # Safety
/// As [`ops::update`]; `value` is readable for [`value_len`] bytes.
pub unsafe fn update(map: &MapHandle, access: &Access, key: *const u8, value: *const u8, flags: u64) -> i64 {
    // SAFETY: passed on.
    unsafe {
        if !may_write(map) {
            return -EPERM;
        }
        match map.shape.map_type {
            MapType::PERCPU_ARRAY => write_all_cpus(map, array::index(key), value, flags),
            MapType::PERCPU_HASH | MapType::LRU_PERCPU_HASH => {
                hash::update_from(map, access, key, Source::AllCpus(value), flags)
            }
            MapType::PROG_ARRAY => {
                prog_array::set(map, array::index(key), value.cast::<u32>().read_unaligned(), flags)
            }
            _ => ops::update(map, access, key, value, flags),
        }
    }
}

/// `BPF_MAP_DELETE_ELEM`.
///
/// # Errors
/// `-EPERM` the map is read-only or frozen; others as [`ops::delete`].
///
/// # Safety
/// As [`ops::delete`].
pub unsafe fn delete(map: &MapHandle, access: &Access, key: *const u8) -> i64 {
    // SAFETY: passed on.
    unsafe {
        if !may_write(map) {
            return -EPERM;
        }
        match map.shape.map_type {
            MapType::PROG_ARRAY => prog_array::clear(map, array::index(key)),
            // No descriptor is ever in it: every CPU has its ring.
            MapType::PERF_EVENT_ARRAY if array::index(key) < map.shape.max_entries => -ENOENT,
            MapType::PERF_EVENT_ARRAY => -E2BIG,
            _ => ops::delete(map, access, key),
        }
    }
}

/// `BPF_MAP_GET_NEXT_KEY`.
///
/// # Errors
/// `-EPERM` the map is write-only; others as [`ops::next_key`].
///
/// # Safety
/// As [`ops::next_key`].
pub unsafe fn next_key(map: &MapHandle, access: &Access, key: *const u8, out: *mut u8) -> i64 {
    if map.shape.map_flags & MapFlags::WRONLY != 0 {
        return -EPERM;
    }
    // SAFETY: passed on.
    unsafe { ops::next_key(map, access, key, out) }
}

/// `BPF_MAP_LOOKUP_AND_DELETE_ELEM`: copies the value of a key to `out` and removes the key. Hashes and stack
/// trace maps only.
///
/// # Errors
/// `-EINVAL` bad flags, `-EPERM` the map is read-only, write-only or frozen, `-ENOTSUPP` another type, `-ENOENT` no such key.
///
/// # Safety
/// As [`lookup`].
pub unsafe fn lookup_and_delete(
    map: &MapHandle,
    access: &Access,
    key: *const u8,
    out: *mut u8,
    flags: u64,
) -> i64 {
    if flags & !LOCK != 0 {
        return -EINVAL;
    }
    // SAFETY: passed on.
    unsafe {
        if !may_write(map) || map.shape.map_flags & MapFlags::WRONLY != 0 {
            return -EPERM;
        }
        if flags != 0 {
            return -EINVAL;
        }
        match map.shape.map_type {
            MapType::STACK_TRACE => stack_trace::take(map, access, array::index(key), out),
            kind if types::is_hash(kind) => {
                hash::remove(map, access, key, |element| read_element(map, element, out))
            }
            _ => -ENOTSUPP,
        }
    }
}

/// `BPF_MAP_FREEZE`: from now on these operations may not change the map. Programs still may.
///
/// # Errors
/// `-EPERM` when it is frozen already or read-only.
///
/// # Safety
/// The handle is valid and its mapping alive.
pub unsafe fn freeze(map: &MapHandle) -> i64 {
    // SAFETY: passed on.
    unsafe {
        if !may_write(map) {
            return -EPERM;
        }
        frozen(map).store(1, Ordering::Release);
    }
    0
}

/// True when the map was frozen.
///
/// # Safety
/// The handle is valid and its mapping alive.
pub unsafe fn is_frozen(map: &MapHandle) -> bool {
    // SAFETY: passed on.
    unsafe { frozen(map) }.load(Ordering::Acquire) != 0
}

/// # Safety
/// The handle is valid and its mapping alive.
unsafe fn frozen(map: &MapHandle) -> &AtomicU32 {
    // SAFETY: the header is readable; the word is an atomic.
    unsafe { &(*(map.base as *const MapHeader)).frozen }
}

/// # Safety
/// The handle is valid and its mapping alive.
unsafe fn may_write(map: &MapHandle) -> bool {
    // SAFETY: passed on.
    map.shape.map_flags & MapFlags::RDONLY == 0 && unsafe { !is_frozen(map) }
}

/// # Safety
/// As [`lookup`], for an array.
unsafe fn read_array(map: &MapHandle, index: u32, out: *mut u8) -> i64 {
    let per_cpu = map.shape.map_type == MapType::PERCPU_ARRAY;
    let (cpus, len) = match per_cpu {
        true => (map.shape.cpus, map.stride),
        false => (1, u64::from(map.shape.value_size)),
    };
    for cpu in 0..cpus {
        let element = array::element(map, cpu, index);
        if element.is_null() {
            return -ENOENT;
        }
        // SAFETY: an element is a stride long; `out` has room for all CPUs.
        unsafe { copy_out(out.add((u64::from(cpu) * map.stride) as usize), element, len) };
    }
    0
}

/// # Safety
/// As [`update`], for a per-CPU array.
unsafe fn write_all_cpus(map: &MapHandle, index: u32, values: *const u8, flags: u64) -> i64 {
    if flags > hash::EXIST {
        return -EINVAL;
    }
    for cpu in 0..map.shape.cpus {
        let element = array::element(map, cpu, index);
        if element.is_null() {
            return -E2BIG;
        }
        if flags == hash::NOEXIST {
            return -EEXIST;
        }
        let value = values.wrapping_add((u64::from(cpu) * map.stride) as usize);
        // SAFETY: `values` holds one for each CPU.
        unsafe { copy_in(element, value, u64::from(map.shape.value_size)) };
    }
    0
}

/// # Safety
/// As [`lookup`], for a prog array.
unsafe fn read_program(map: &MapHandle, index: u32, out: *mut u8) -> i64 {
    // SAFETY: `out` is writable for 4 bytes.
    unsafe {
        match prog_array::program_id(map, u64::from(index)) {
            0 => -ENOENT,
            id => {
                out.cast::<u32>().write_unaligned(id);
                0
            }
        }
    }
}

/// # Safety
/// As [`lookup`], for a hash.
unsafe fn read_hash(map: &MapHandle, key: *const u8, out: *mut u8) -> i64 {
    // SAFETY: passed on.
    unsafe { hash::read(map, key, |element| read_element(map, element, out)) }
}

/// Copies an element's value, or those of all CPUs.
///
/// # Safety
/// As [`lookup`], for a hash.
unsafe fn read_element(map: &MapHandle, element: Element<'_>, out: *mut u8) {
    let len = u64::from(map.shape.value_size);
    // SAFETY: an element has a value of the map's size; `out` has room for all CPUs.
    unsafe {
        if !hash::is_per_cpu(map) {
            return copy_out(out, element.value(), len);
        }
        let stride = (len + 7) & !7;
        for cpu in 0..map.shape.cpus {
            copy_out(out.add((u64::from(cpu) * stride) as usize), element.cpu_value(cpu), stride);
        }
    }
}
