//! A map: the header of its file, and the private handle through which a process uses it.
//!
//! ```text
//! file:   0      MapHeader: fixed at creation, then words that operations change
//!         4096   data region; its layout belongs to the map type (beeline-maps)
//! ```
//!
//! The file is another party's word. A process validates the header once, copies what is fixed into a [`MapHandle`] in
//! its private memory, and from then on trusts only the handle for sizes and limits.

use core::sync::atomic::{AtomicU32, AtomicU64};

/// `"beemap\0\0"` read as a little-endian word.
pub const MAP_MAGIC: u64 = u64::from_le_bytes(*b"beemap\0\0");

/// Offset of the data region in a map file.
pub const DATA_OFFSET: u64 = 4096;

/// What a map is, as given to `BPF_MAP_CREATE`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MapShape {
    /// `BPF_MAP_TYPE_*`, see [`MapType`].
    pub map_type: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Number of elements; bytes of a ring buffer.
    pub max_entries: u32,
    /// `BPF_F_*` of map creation.
    pub map_flags: u32,
    /// Number of possible CPUs when the map was created.
    pub cpus: u32,
}

/// `enum bpf_map_type` (`include/uapi/linux/bpf.h`).
#[allow(missing_docs, reason = "the names are the kernel's")]
#[allow(non_snake_case)]
pub mod MapType {
    pub const HASH: u32 = 1;
    pub const ARRAY: u32 = 2;
    pub const PROG_ARRAY: u32 = 3;
    pub const PERF_EVENT_ARRAY: u32 = 4;
    pub const PERCPU_HASH: u32 = 5;
    pub const PERCPU_ARRAY: u32 = 6;
    pub const STACK_TRACE: u32 = 7;
    pub const CGROUP_ARRAY: u32 = 8;
    pub const LRU_HASH: u32 = 9;
    pub const LRU_PERCPU_HASH: u32 = 10;
    pub const LPM_TRIE: u32 = 11;
    pub const ARRAY_OF_MAPS: u32 = 12;
    pub const HASH_OF_MAPS: u32 = 13;
    pub const QUEUE: u32 = 22;
    pub const STACK: u32 = 23;
    pub const RINGBUF: u32 = 27;
    pub const BLOOM_FILTER: u32 = 30;
    pub const USER_RINGBUF: u32 = 31;
}

/// Map creation flags (`include/uapi/linux/bpf.h`).
#[allow(missing_docs, reason = "the names are the kernel's")]
#[allow(non_snake_case)]
pub mod MapFlags {
    pub const NO_PREALLOC: u32 = 1 << 0;
    pub const NO_COMMON_LRU: u32 = 1 << 1;
    pub const NUMA_NODE: u32 = 1 << 2;
    pub const RDONLY: u32 = 1 << 3;
    pub const WRONLY: u32 = 1 << 4;
    pub const STACK_BUILD_ID: u32 = 1 << 5;
    pub const ZERO_SEED: u32 = 1 << 6;
    pub const RDONLY_PROG: u32 = 1 << 7;
    pub const WRONLY_PROG: u32 = 1 << 8;
    pub const CLONE: u32 = 1 << 9;
    pub const MMAPABLE: u32 = 1 << 10;
    pub const PRESERVE_ELEMS: u32 = 1 << 11;
    pub const INNER_MAP: u32 = 1 << 12;
}

/// Header of a map file.
#[repr(C)]
#[derive(Debug)]
pub struct MapHeader {
    /// [`MAP_MAGIC`], written last: a file without it is not a map.
    pub magic: AtomicU64,
    /// [`ABI_VERSION`](crate::ABI_VERSION).
    pub version: u32,
    /// The map's id in its store.
    pub id: u32,
    /// What the map is.
    pub shape: MapShape,
    /// `BPF_MAP_CREATE`'s `btf_key_type_id`, 0 when none.
    pub btf_key_type_id: u32,
    /// `btf_value_type_id`, 0 when none.
    pub btf_value_type_id: u32,
    /// Length of the file in bytes.
    pub file_len: u64,
    /// Name, NUL-padded. Longer names are kept in full by the store.
    pub name: [u8; 64],
    /// Random seed of the hash function.
    pub seed: u32,
    /// Non-zero: user space may not change the map any more (`BPF_MAP_FREEZE`).
    pub frozen: AtomicU32,
    /// Zero, up to the words that operations change.
    pub reserved: [u64; 15],
    /// Words that operations change: their meaning belongs to the map type. One cache line each.
    pub state: [StateLine; 8],
}

/// One word that operations change, alone in its cache line.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct StateLine {
    /// The word.
    pub word: AtomicU64,
    /// Zero.
    pub reserved: [u64; 7],
}

const _: () = assert!(size_of::<MapHeader>() == 256 + 8 * 64);
const _: () = assert!(core::mem::offset_of!(MapHeader, state) == 256);
const _: () = assert!(size_of::<MapHeader>() as u64 <= DATA_OFFSET);

/// A process's private handle to a mapped map: copies of what is fixed, validated once.
///
/// Its address is what a program holds as `struct bpf_map *`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MapHandle {
    /// Address of the [`MapHeader`] in this process.
    pub base: u64,
    /// Mapped bytes from `base`. For a ring buffer the data region is mapped a second time behind the first.
    pub mapped_len: u64,
    /// Address of the data region.
    pub data: u64,
    /// Bytes from one element (or one CPU's copy of one) to the next. Meaning belongs to the map type.
    pub stride: u64,
    /// Bytes from one CPU's region to the next in a per-CPU array.
    pub cpu_stride: u64,
    /// Type-specific (bucket mask, ring mask, ...).
    pub mask: u64,
    /// Type-specific offsets from `base`.
    pub offsets: [u64; 4],
    /// What the map is.
    pub shape: MapShape,
    /// The map's id in its store.
    pub id: u32,
    /// Seed of the hash function.
    pub seed: u32,
    /// Elements in the pool of a hash: `max_entries` and a few more, so that an update of a full map finds room.
    pub pool_len: u32,
    /// Byte offset of the owner word in an element of a hash.
    pub owner_offset: u32,
    /// Byte offset of the key in an element of a hash.
    pub key_offset: u32,
    /// Byte offset of the value in an element of a hash; unused when values lie in per-CPU regions.
    pub value_offset: u32,
}

const _: () = assert!(size_of::<MapHandle>() == 128);

/// On whose behalf a map operation runs.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Access {
    /// Identifies the calling thread in words that it may leave behind when it is killed:
    /// thread id in the low half, low 32 bits of its start time (clock ticks since boot) in the high half.
    pub owner: u64,
    /// The CPU whose copy of per-CPU data is meant.
    pub cpu: u32,
    /// `Access::*` flags.
    pub flags: u32,
}

impl Access {
    /// Map operations make no system call on behalf of this caller (a target under a strict seccomp filter): owners
    /// of unfinished work count as alive, and memory that is not there yet cannot be had.
    pub const NO_SYSTEM_CALLS: u32 = 1;
}

const _: () = assert!(size_of::<Access>() == 16);
