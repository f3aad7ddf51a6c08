//! The maps that generated programs find: one of each kind that has rules of its own.

use beeline_abi::map::{MapFlags, MapShape, MapType};
use beeline_verifier::MapInfo;

/// An array with several values.
pub const ARRAY: u32 = 0;
/// An array of one value, addressed directly.
pub const GLOBAL: u32 = 1;
/// A hash with keys of eight bytes.
pub const HASH: u32 = 2;
/// A per-CPU array.
pub const PERCPU: u32 = 3;
/// An array that programs only read.
pub const READ_ONLY: u32 = 4;
/// An array that programs only write.
pub const WRITE_ONLY: u32 = 5;
/// An array of one value that never changes: `.rodata`.
pub const FROZEN: u32 = 6;
/// A ring buffer.
pub const RING: u32 = 7;
/// Programs for tail calls.
pub const PROGRAMS: u32 = 8;
/// An array of arrays.
pub const OUTER: u32 = 9;
/// Perf events.
pub const EVENTS: u32 = 10;
/// Stack traces.
pub const STACKS: u32 = 11;
/// An array of one byte.
pub const TINY: u32 = 12;
/// A hash with large values.
pub const LARGE: u32 = 13;

/// Maps with values that a look-up finds.
pub const KEYED: [u32; 8] = [ARRAY, GLOBAL, HASH, PERCPU, READ_ONLY, WRITE_ONLY, TINY, LARGE];

const CPUS: u32 = 2;

/// The bytes of the map that never changes.
pub fn frozen_contents() -> Vec<u8> {
    let mut bytes = vec![0; 32];
    bytes[..8].copy_from_slice(&7u64.to_le_bytes());
    bytes[8..16].copy_from_slice(&(-3i64).to_le_bytes());
    bytes[16..20].copy_from_slice(&0x8000_0001u32.to_le_bytes());
    bytes[20..30].copy_from_slice(b"%d %s %llx");
    bytes
}

fn map(name: &str, map_type: u32, sizes: (u32, u32, u32), map_flags: u32) -> MapInfo {
    let (key_size, value_size, max_entries) = sizes;
    let shape = MapShape { map_type, key_size, value_size, max_entries, map_flags, cpus: CPUS };
    MapInfo { name: name.into(), shape, ..MapInfo::default() }
}

/// All of them, in the order of the constants.
pub fn all() -> Vec<MapInfo> {
    let inner = map("inner", MapType::ARRAY, (4, 16, 2), 0);
    vec![
        map("array", MapType::ARRAY, (4, 48, 4), 0),
        map("global", MapType::ARRAY, (4, 64, 1), 0),
        map("hash", MapType::HASH, (8, 24, 4), 0),
        map("percpu", MapType::PERCPU_ARRAY, (4, 16, 2), 0),
        map("read_only", MapType::ARRAY, (4, 16, 2), MapFlags::RDONLY_PROG),
        map("write_only", MapType::ARRAY, (4, 16, 2), MapFlags::WRONLY_PROG),
        MapInfo {
            frozen_contents: Some(frozen_contents()),
            ..map("frozen", MapType::ARRAY, (4, 32, 1), MapFlags::RDONLY_PROG)
        },
        map("ring", MapType::RINGBUF, (0, 0, 4096), 0),
        map("programs", MapType::PROG_ARRAY, (4, 4, 4), 0),
        MapInfo { inner: Some(Box::new(inner)), ..map("outer", MapType::ARRAY_OF_MAPS, (4, 4, 2), 0) },
        map("events", MapType::PERF_EVENT_ARRAY, (4, 4, 2), 0),
        map("stacks", MapType::STACK_TRACE, (4, 64, 4), 0),
        map("tiny", MapType::ARRAY, (4, 1, 1), 0),
        map("large", MapType::HASH, (4, 300, 2), 0),
    ]
}
