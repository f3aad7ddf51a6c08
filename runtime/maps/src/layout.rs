//! Where everything lies in a map's file, computed from its shape alone.
//!
//! ```text
//! 0      MapHeader
//! 4096   ARRAY, PERCPU_ARRAY:  CPU 0's elements | CPU 1's | ...            (one region where not per-CPU)
//!        hashes, STACK_TRACE:  buckets | free bitmap and its summary | elements | CPU 0's values | CPU 1's | ...
//!        RINGBUF:  consumer page | producer page | ring                   and the ring mapped once more behind it
//!        PERF_EVENT_ARRAY:  CPU 0's control page | its ring | CPU 1's ...
//! ```
//!
//! Nothing is read from the file: loader, injector and agent compute the same layout from the same shape.

use crate::{perf_event_array, ringbuf, types};
use beeline_abi::PAGE_SIZE;
use beeline_abi::errno::E2BIG;
use beeline_abi::map::{DATA_OFFSET, MapFlags, MapShape};

/// Largest map file in bytes: what fits into half of the lower address space, with room to map it twice.
pub const FILE_LEN_MAX: u64 = 1 << 45;

/// Most possible CPUs that a shape may name (`NR_CPUS` of distribution kernels is 8192).
pub const CPUS_MAX: u32 = 8192;

/// Layout of a map's file. Offsets are from its first byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Layout {
    /// Bytes of the file, a multiple of the page size.
    pub file_len: u64,
    /// Bytes that a process maps: `file_len`, and for a ring buffer its data once more behind it.
    pub mapped_len: u64,
    /// Offset of the data region: element 0 of an array, of a hash's pool, byte 0 of a ring.
    pub data_offset: u64,
    /// Bytes from the data region to the end of the file.
    pub data_len: u64,
    /// Bytes from one element (of one CPU's copies) to the next.
    pub stride: u64,
    /// Bytes from one CPU's region to the next.
    pub cpu_stride: u64,
    /// Number of buckets, or of ring bytes, minus one.
    pub mask: u64,
    /// Offsets that belong to the map type; see the type's module.
    pub offsets: [u64; 4],
    /// Elements in the pool of a hash.
    pub pool_len: u32,
    /// Byte offset of the owner word in an element of a hash.
    pub owner_offset: u32,
    /// Byte offset of the key in an element of a hash.
    pub key_offset: u32,
    /// Byte offset of the value in an element of a hash.
    pub value_offset: u32,
    /// Bytes from the start of the file that must have memory behind them before the map is published.
    pub reserved_len: u64,
    /// The whole file must: nothing is allocated when elements are inserted.
    pub preallocate: bool,
}

/// Checks a shape as the kernel does at `BPF_MAP_CREATE`, and lays it out.
///
/// # Errors
/// The kernel's errno, negative: `-EINVAL` for what the type does not allow, `-E2BIG` for what is too large.
pub fn layout(shape: &MapShape) -> Result<Layout, i64> {
    let kind = types::find(shape.map_type).ok_or(-beeline_abi::errno::EINVAL)?;
    (kind.check)(shape)?;
    if shape.cpus == 0 || shape.cpus > CPUS_MAX {
        return Err(-beeline_abi::errno::EINVAL);
    }
    let layout = (kind.layout)(shape).ok_or(-E2BIG)?;
    if layout.file_len > FILE_LEN_MAX { Err(-E2BIG) } else { Ok(layout) }
}

/// `n` rounded up to a multiple of `to`, a power of two.
pub(crate) fn round_up(n: u64, to: u64) -> Option<u64> {
    Some(n.checked_add(to - 1)? & !(to - 1))
}

/// Elements side by side, one region or one per CPU.
pub(crate) fn array(shape: &MapShape, cpus: u64) -> Option<Layout> {
    let stride = round_up(u64::from(shape.value_size), 8)?;
    let cpu_stride = round_up(stride.checked_mul(u64::from(shape.max_entries))?, 64)?;
    let file_len = round_up(DATA_OFFSET.checked_add(cpu_stride.checked_mul(cpus)?)?, PAGE_SIZE)?;
    Some(Layout {
        file_len,
        mapped_len: file_len,
        data_offset: DATA_OFFSET,
        data_len: file_len - DATA_OFFSET,
        stride,
        cpu_stride,
        reserved_len: file_len,
        preallocate: true,
        ..Layout::default()
    })
}

/// What distinguishes the hash types.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct HashKind {
    /// Values lie in per-CPU regions.
    pub(crate) per_cpu: bool,
    /// Elements have a word that tells whether they were used.
    pub(crate) lru: bool,
    /// Elements get memory when they are first used.
    pub(crate) sparse: bool,
}

impl HashKind {
    /// Shared values, memory as the creation flags say.
    pub(crate) fn plain(shape: &MapShape) -> HashKind {
        let sparse = shape.map_flags & MapFlags::NO_PREALLOC != 0;
        HashKind { per_cpu: false, lru: false, sparse }
    }
}

/// One aligned ring behind its two position pages; a process maps the ring twice.
pub(crate) fn ring(shape: &MapShape) -> Option<Layout> {
    let ring_len = u64::from(shape.max_entries);
    let file_len = ringbuf::RING_OFFSET + ring_len;
    Some(Layout {
        file_len,
        mapped_len: file_len + ring_len,
        data_offset: ringbuf::RING_OFFSET,
        data_len: ring_len,
        mask: ring_len.checked_sub(1)?,
        reserved_len: file_len,
        preallocate: true,
        ..Layout::default()
    })
}

/// A ring for each CPU.
pub(crate) fn perf_event_array(shape: &MapShape) -> Option<Layout> {
    let file_len = DATA_OFFSET + u64::from(shape.cpus) * perf_event_array::CPU_STRIDE;
    Some(Layout {
        file_len,
        mapped_len: file_len,
        data_offset: DATA_OFFSET,
        data_len: file_len - DATA_OFFSET,
        cpu_stride: perf_event_array::CPU_STRIDE,
        offsets: [DATA_OFFSET, 0, 0, 0],
        reserved_len: file_len,
        preallocate: true,
        ..Layout::default()
    })
}

/// A pool of stacks found by their hash.
pub(crate) fn stack_trace(shape: &MapShape) -> Option<Layout> {
    let shape = MapShape { key_size: 8, ..*shape };
    hash(&shape, HashKind { per_cpu: false, lru: false, sparse: true })
}

/// A hash: buckets, bitmap, pool of elements, per-CPU values. See [`hash`](crate::hash) for what they mean.
pub(crate) fn hash(shape: &MapShape, kind: HashKind) -> Option<Layout> {
    let value_len = round_up(u64::from(shape.value_size), 8)?;
    let (owner_offset, value_in_header) =
        if !kind.per_cpu && shape.value_size <= 8 { (16, true) } else { (8, false) };
    let key_offset = owner_offset + if kind.lru { 16 } else { 8 };
    let key_end = key_offset + round_up(u64::from(shape.key_size), 8)?;
    let (value_offset, element_end) = match (value_in_header, kind.per_cpu) {
        (true, _) => (8, key_end),
        (false, false) => (key_end, key_end.checked_add(value_len)?),
        (false, true) => (0, key_end),
    };
    let stride = round_up(element_end, 16)?;
    let pool_len = u64::from(shape.max_entries).checked_add(spare_elements(shape.cpus, stride))?;
    let buckets = u64::from(shape.max_entries).checked_next_power_of_two()?;

    let words = pool_len.div_ceil(64);
    let bitmap = DATA_OFFSET + buckets * 8;
    let elements = round_up(bitmap + (words + words.div_ceil(64)) * 8, PAGE_SIZE)?;
    let values = round_up(elements.checked_add(pool_len.checked_mul(stride)?)?, PAGE_SIZE)?;
    let (cpu_stride, cpus) = match kind.per_cpu {
        true => (round_up(pool_len.checked_mul(value_len)?, 64)?, u64::from(shape.cpus)),
        false => (0, 0),
    };
    let file_len = round_up(values.checked_add(cpu_stride.checked_mul(cpus)?)?, PAGE_SIZE)?;
    let preallocate = !kind.sparse;
    Some(Layout {
        file_len,
        mapped_len: file_len,
        data_offset: elements,
        data_len: file_len - elements,
        stride,
        cpu_stride,
        mask: buckets - 1,
        offsets: [DATA_OFFSET, elements, bitmap, values],
        pool_len: u32::try_from(pool_len).ok().filter(|&n| n < u32::MAX)?,
        owner_offset: owner_offset as u32,
        key_offset: key_offset as u32,
        value_offset: u32::try_from(value_offset).ok()?,
        reserved_len: if preallocate { file_len } else { elements },
        preallocate,
    })
}

/// Elements beyond `max_entries`: what operations in flight hold. As the kernel's extra element per CPU
/// (`alloc_extra_elems`), but an operation here can hold two and can be preempted; few when elements are large.
fn spare_elements(cpus: u32, stride: u64) -> u64 {
    if stride > 4096 { 4 + u64::from(cpus) } else { 12 + 4 * u64::from(cpus) }
}
