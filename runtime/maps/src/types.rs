//! The table of map types: one row says everything that depends on the type.
//!
//! Checks at creation are those of each type's `map_alloc_check` in the kernel (`kernel/bpf/{arraymap,hashtab,
//! ringbuf,stackmap}.c`), in the same order where two would answer differently. Whether the caller is privileged is
//! not a question here.

use crate::layout::{self, HashKind, Layout};
use crate::{array, hash, pool, stack_trace};
use beeline_abi::PAGE_SIZE;
use beeline_abi::errno::{E2BIG, EINVAL, ENOTSUPP};
use beeline_abi::map::{Access, MapFlags, MapHandle, MapHeader, MapShape, MapType};

/// One type of map.
pub struct MapKind {
    /// `BPF_MAP_TYPE_*`.
    pub map_type: u32,
    /// Its name as bpftool prints it.
    pub name: &'static str,
    /// What the kernel checks at creation; the errno is negative.
    pub check: fn(&MapShape) -> Result<(), i64>,
    /// Where everything lies; `None` when it is too large for 64 bits.
    pub layout: fn(&MapShape) -> Option<Layout>,
    /// Writes what is not zero into a new file.
    ///
    /// # Safety
    /// The pointer is to a zeroed file with this layout that nobody else uses.
    pub initialise: unsafe fn(*mut u8, &Layout),
    /// As [`ops::lookup`](crate::ops::lookup).
    pub lookup: unsafe fn(&MapHandle, &Access, *const u8) -> *mut u8,
    /// As [`ops::update`](crate::ops::update).
    pub update: unsafe fn(&MapHandle, &Access, *const u8, *const u8, u64) -> i64,
    /// As [`ops::delete`](crate::ops::delete).
    pub delete: unsafe fn(&MapHandle, &Access, *const u8) -> i64,
    /// As [`ops::next_key`](crate::ops::next_key).
    pub next_key: unsafe fn(&MapHandle, &Access, *const u8, *mut u8) -> i64,
}

/// Every type there is.
pub static TYPES: &[MapKind] = &KINDS;

const KINDS: [MapKind; 11] = [
    MapKind {
        map_type: MapType::HASH,
        name: "hash",
        check: check_hash,
        layout: |shape| layout::hash(shape, HashKind::plain(shape)),
        initialise: initialise_hash,
        lookup: hash::lookup,
        update: hash::update,
        delete: hash::delete,
        next_key: hash::next_key,
    },
    MapKind {
        map_type: MapType::ARRAY,
        name: "array",
        check: check_array,
        layout: |shape| layout::array(shape, 1),
        initialise: nothing,
        lookup: array::lookup,
        update: array::update,
        delete: array::delete,
        next_key: array::next_key,
    },
    MapKind {
        map_type: MapType::PERCPU_HASH,
        name: "percpu_hash",
        check: check_hash,
        layout: |shape| layout::hash(shape, HashKind { per_cpu: true, ..HashKind::plain(shape) }),
        initialise: initialise_hash,
        lookup: hash::lookup_percpu,
        update: hash::update,
        delete: hash::delete,
        next_key: hash::next_key,
    },
    MapKind {
        map_type: MapType::PERCPU_ARRAY,
        name: "percpu_array",
        check: check_array,
        layout: |shape| layout::array(shape, u64::from(shape.cpus)),
        initialise: nothing,
        lookup: array::lookup_percpu,
        update: array::update,
        delete: array::delete,
        next_key: array::next_key,
    },
    MapKind {
        map_type: MapType::LRU_HASH,
        name: "lru_hash",
        check: check_hash,
        layout: |shape| layout::hash(shape, HashKind { lru: true, ..HashKind::plain(shape) }),
        initialise: initialise_hash,
        lookup: hash::lookup_lru,
        update: hash::update,
        delete: hash::delete,
        next_key: hash::next_key,
    },
    MapKind {
        map_type: MapType::LRU_PERCPU_HASH,
        name: "lru_percpu_hash",
        check: check_hash,
        layout: |shape| layout::hash(shape, HashKind { per_cpu: true, lru: true, ..HashKind::plain(shape) }),
        initialise: initialise_hash,
        lookup: hash::lookup_lru_percpu,
        update: hash::update,
        delete: hash::delete,
        next_key: hash::next_key,
    },
    MapKind {
        map_type: MapType::RINGBUF,
        name: "ringbuf",
        check: check_ring,
        layout: layout::ring,
        initialise: nothing,
        lookup: no_lookup,
        update: no_update,
        delete: no_delete,
        next_key: no_next_key,
    },
    MapKind {
        map_type: MapType::PERF_EVENT_ARRAY,
        name: "perf_event_array",
        check: check_fd_array,
        layout: layout::perf_event_array,
        initialise: nothing,
        lookup: no_lookup,
        update: no_update,
        delete: no_delete,
        next_key: array::next_key,
    },
    MapKind {
        map_type: MapType::CGROUP_ARRAY,
        name: "cgroup_array",
        check: check_fd_array,
        layout: |shape| layout::array(shape, 1),
        initialise: nothing,
        lookup: no_lookup,
        update: no_update,
        delete: no_delete,
        next_key: array::next_key,
    },
    MapKind {
        map_type: MapType::PROG_ARRAY,
        name: "prog_array",
        check: check_fd_array,
        layout: |shape| layout::array(shape, 1),
        initialise: nothing,
        lookup: no_lookup,
        update: no_update,
        delete: no_delete,
        next_key: array::next_key,
    },
    MapKind {
        map_type: MapType::STACK_TRACE,
        name: "stack_trace",
        check: check_stack_trace,
        layout: layout::stack_trace,
        initialise: initialise_hash,
        lookup: no_lookup,
        update: |_, _, _, _, _| -EINVAL,
        delete: stack_delete,
        next_key: stack_next_key,
    },
];

/// What programs do with maps of a type. A table of its own, so that what never makes a map (the agent) does not carry along
/// what does.
pub(crate) struct Operations {
    pub(crate) lookup: unsafe fn(&MapHandle, &Access, *const u8) -> *mut u8,
    pub(crate) update: unsafe fn(&MapHandle, &Access, *const u8, *const u8, u64) -> i64,
    pub(crate) delete: unsafe fn(&MapHandle, &Access, *const u8) -> i64,
}

/// In the order of [`TYPES`].
static OPERATIONS: [Operations; KINDS.len()] = {
    const FIRST: Operations = Operations { lookup: no_lookup, update: no_update, delete: no_delete };
    let mut all = [FIRST; KINDS.len()];
    let mut at = 0;
    while at < KINDS.len() {
        all[at] = Operations { lookup: KINDS[at].lookup, update: KINDS[at].update, delete: KINDS[at].delete };
        at += 1;
    }
    all
};

/// What programs do with maps of this type, if there is such a type.
#[inline]
pub(crate) fn operations(map_type: u32) -> Option<&'static Operations> {
    OPERATIONS.get(usize::from(*ROWS.get(map_type as usize)?))
}

/// Row of each type number, 255 = none.
static ROWS: [u8; 64] = {
    let mut rows = [255; 64];
    let mut at = 0;
    while at < KINDS.len() {
        rows[KINDS[at].map_type as usize] = at as u8;
        at += 1;
    }
    rows
};

/// The row of a type, if there is one.
#[inline]
pub fn find(map_type: u32) -> Option<&'static MapKind> {
    TYPES.get(usize::from(*ROWS.get(map_type as usize)?))
}

/// True for the types that `hash` implements.
pub fn is_hash(map_type: u32) -> bool {
    matches!(map_type, MapType::HASH | MapType::PERCPU_HASH | MapType::LRU_HASH | MapType::LRU_PERCPU_HASH)
}

/// The type's name as bpftool prints it; `None` for a type that is not supported.
pub fn name(map_type: u32) -> Option<&'static str> {
    find(map_type).map(|kind| kind.name)
}

/// Creation flags that say who may access the map.
const ACCESS: u32 = MapFlags::RDONLY | MapFlags::WRONLY | MapFlags::RDONLY_PROG | MapFlags::WRONLY_PROG;

/// Largest key plus value of a hash: the kernel keeps elements in one allocation (`KMALLOC_MAX_SIZE`, 4 MiB, less its
/// element header of 48 bytes).
const ELEMENT_LEN_MAX: u64 = (4 << 20) - 48;

/// Largest per-CPU value (`PCPU_MIN_UNIT_SIZE`).
const CPU_VALUE_LEN_MAX: u64 = 32 << 10;

fn require(condition: bool, errno: i64) -> Result<(), i64> {
    if condition { Ok(()) } else { Err(-errno) }
}

/// `bpf_map_flags_access_ok`, and `bpf_get_file_flag` for the other two.
fn check_access(flags: u32) -> Result<(), i64> {
    let both = |mask| flags & mask == mask;
    require(!both(MapFlags::RDONLY_PROG | MapFlags::WRONLY_PROG), EINVAL)?;
    require(!both(MapFlags::RDONLY | MapFlags::WRONLY), EINVAL)
}

/// `array_map_alloc_check`.
fn check_array(shape: &MapShape) -> Result<(), i64> {
    let per_cpu = shape.map_type == MapType::PERCPU_ARRAY;
    let allowed =
        ACCESS | MapFlags::NUMA_NODE | MapFlags::MMAPABLE | MapFlags::PRESERVE_ELEMS | MapFlags::INNER_MAP;
    require(shape.max_entries != 0 && shape.key_size == 4 && shape.value_size != 0, EINVAL)?;
    require(shape.map_flags & !allowed == 0, EINVAL)?;
    check_access(shape.map_flags)?;
    require(!(per_cpu && shape.map_flags & MapFlags::NUMA_NODE != 0), EINVAL)?;
    if shape.map_type != MapType::ARRAY {
        require(shape.map_flags & (MapFlags::MMAPABLE | MapFlags::INNER_MAP) == 0, EINVAL)?;
    }
    if shape.map_type != MapType::PERF_EVENT_ARRAY {
        require(shape.map_flags & MapFlags::PRESERVE_ELEMS == 0, EINVAL)?;
    }
    require(shape.value_size <= i32::MAX as u32, E2BIG)?;
    require(!per_cpu || (u64::from(shape.value_size) + 7) & !7 <= CPU_VALUE_LEN_MAX, E2BIG)
}

/// `fd_array_map_alloc_check`.
fn check_fd_array(shape: &MapShape) -> Result<(), i64> {
    require(shape.value_size == 4, EINVAL)?;
    require(shape.map_flags & (MapFlags::RDONLY_PROG | MapFlags::WRONLY_PROG) == 0, EINVAL)?;
    check_array(shape)
}

/// `ringbuf_map_alloc`.
fn check_ring(shape: &MapShape) -> Result<(), i64> {
    require(shape.map_flags & !MapFlags::NUMA_NODE == 0, EINVAL)?;
    require(shape.key_size == 0 && shape.value_size == 0, EINVAL)?;
    require(shape.max_entries.is_power_of_two() && u64::from(shape.max_entries) >= PAGE_SIZE, EINVAL)
}

/// `stack_map_alloc`. Build ids instead of addresses are not supported.
fn check_stack_trace(shape: &MapShape) -> Result<(), i64> {
    let allowed = MapFlags::NUMA_NODE | MapFlags::RDONLY | MapFlags::WRONLY;
    require(shape.map_flags & !allowed == 0, EINVAL)?;
    check_access(shape.map_flags)?;
    require(shape.max_entries != 0 && shape.key_size == 4, EINVAL)?;
    require(shape.value_size >= 8 && shape.value_size.is_multiple_of(8), EINVAL)?;
    require(shape.value_size / 8 <= stack_trace::DEPTH_MAX, EINVAL)?;
    require(shape.max_entries <= 1 << 31, E2BIG)
}

/// `htab_map_alloc_check`, and the size limits of `htab_map_alloc`.
fn check_hash(shape: &MapShape) -> Result<(), i64> {
    let per_cpu = matches!(shape.map_type, MapType::PERCPU_HASH | MapType::LRU_PERCPU_HASH);
    let allowed =
        ACCESS | MapFlags::NO_PREALLOC | MapFlags::NO_COMMON_LRU | MapFlags::NUMA_NODE | MapFlags::ZERO_SEED;
    require(shape.map_flags & !allowed == 0, EINVAL)?;
    check_access(shape.map_flags)?;
    let lru = matches!(shape.map_type, MapType::LRU_HASH | MapType::LRU_PERCPU_HASH);
    require(lru || shape.map_flags & MapFlags::NO_COMMON_LRU == 0, EINVAL)?;
    require(!(lru && shape.map_flags & MapFlags::NO_PREALLOC != 0), ENOTSUPP)?;
    let per_cpu_lru = shape.map_flags & MapFlags::NO_COMMON_LRU != 0;
    require(!((per_cpu || per_cpu_lru) && shape.map_flags & MapFlags::NUMA_NODE != 0), EINVAL)?;
    require(shape.max_entries != 0 && shape.key_size != 0 && shape.value_size != 0, EINVAL)?;
    require(u64::from(shape.key_size) + u64::from(shape.value_size) < ELEMENT_LEN_MAX, E2BIG)?;
    require(!per_cpu || (u64::from(shape.value_size) + 7) & !7 <= CPU_VALUE_LEN_MAX, E2BIG)?;
    require(shape.max_entries <= 1 << 31, E2BIG)
}

/// # Safety
/// None needed.
unsafe fn no_lookup(_map: &MapHandle, _access: &Access, _key: *const u8) -> *mut u8 {
    core::ptr::null_mut()
}

/// # Safety
/// None needed.
unsafe fn no_update(_: &MapHandle, _: &Access, _: *const u8, _: *const u8, _: u64) -> i64 {
    -ENOTSUPP
}

/// # Safety
/// None needed.
unsafe fn no_delete(_map: &MapHandle, _access: &Access, _key: *const u8) -> i64 {
    -ENOTSUPP
}

/// # Safety
/// None needed.
unsafe fn no_next_key(_map: &MapHandle, _access: &Access, _key: *const u8, _out: *mut u8) -> i64 {
    -ENOTSUPP
}

/// # Safety
/// As [`ops::delete`](crate::ops::delete).
unsafe fn stack_delete(map: &MapHandle, access: &Access, key: *const u8) -> i64 {
    // SAFETY: passed on.
    unsafe { stack_trace::remove(map, access, array::index(key)) }
}

/// # Safety
/// As [`ops::next_key`](crate::ops::next_key).
unsafe fn stack_next_key(map: &MapHandle, _access: &Access, key: *const u8, out: *mut u8) -> i64 {
    // SAFETY: passed on; `out` is writable for 4 bytes.
    unsafe {
        let id = if key.is_null() { None } else { Some(array::index(key)) };
        match stack_trace::next_id(map, id) {
            Ok(next) => {
                out.cast::<u32>().write_unaligned(next);
                0
            }
            Err(errno) => errno,
        }
    }
}

/// # Safety
/// None needed.
unsafe fn nothing(_base: *mut u8, _layout: &Layout) {}

/// A hash whose elements all have memory from the start says so.
///
/// # Safety
/// As [`MapKind::initialise`].
unsafe fn initialise_hash(base: *mut u8, layout: &Layout) {
    if layout.preallocate {
        let header = base.cast::<MapHeader>();
        // SAFETY: the header is ours by the caller's contract; the index is a constant below the number of words.
        let populated = unsafe { &(&(*header).state)[pool::POPULATED as usize].word };
        populated.store(u64::from(layout.pool_len), core::sync::atomic::Ordering::Relaxed);
    }
}
