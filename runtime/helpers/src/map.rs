//! Helpers on maps: thin covers over `beeline-maps`, where the semantics are.
//!
//! A map is the address of its [`MapHandle`], which the linker put into the program. The owner word in the access is
//! renewed only by operations that may leave it behind in the map; a look-up leaves nothing.

use crate::identity;
use beeline_abi::map::MapHandle;
use beeline_abi::run::RunContext;
use beeline_maps::ops;

/// `void *bpf_map_lookup_elem(struct bpf_map *map, const void *key)`: the value's address, or 0.
pub(crate) unsafe extern "sysv64" fn map_lookup_elem(
    map: u64,
    key: u64,
    _: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: the linker gave the program a validated handle; the verifier proved the key's size; the stub claimed the
    // CPU that `access` names when the map is per-CPU.
    unsafe { ops::lookup(&*(map as *const MapHandle), &(*run).access, key as *const u8) as u64 }
}

/// `long bpf_map_update_elem(struct bpf_map *map, const void *key, const void *value, u64 flags)`.
pub(crate) unsafe extern "sysv64" fn map_update_elem(
    map: u64,
    key: u64,
    value: u64,
    flags: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: as in `map_lookup_elem`; the verifier proved the value's size too.
    unsafe {
        let access = identity::access(run);
        ops::update(&*(map as *const MapHandle), access, key as *const u8, value as *const u8, flags) as u64
    }
}

/// `long bpf_map_delete_elem(struct bpf_map *map, const void *key)`.
pub(crate) unsafe extern "sysv64" fn map_delete_elem(
    map: u64,
    key: u64,
    _: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: as in `map_lookup_elem`.
    unsafe {
        let access = identity::access(run);
        ops::delete(&*(map as *const MapHandle), access, key as *const u8) as u64
    }
}

/// `void *bpf_map_lookup_percpu_elem(struct bpf_map *map, const void *key, u32 cpu)`: the address of that CPU's value, or 0.
pub(crate) unsafe extern "sysv64" fn map_lookup_percpu_elem(
    map: u64,
    key: u64,
    cpu: u64,
    _: u64,
    _: u64,
    _: *mut RunContext,
) -> u64 {
    // SAFETY: as in `map_lookup_elem`.
    unsafe { ops::lookup_percpu_elem(&*(map as *const MapHandle), key as *const u8, cpu as u32) as u64 }
}
