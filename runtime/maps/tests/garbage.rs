//! A map file full of garbage: operations answer something, and touch nothing outside of the mapping (the pages around
//! it have no access, so that would end the test), and end.
#![expect(clippy::undocumented_unsafe_blocks, reason = "the handles are those of live maps")]

mod support;

use beeline_abi::ABI_VERSION;
use beeline_abi::map::{Access, MAP_MAGIC, MapFlags, MapHandle, MapShape, MapType};
use beeline_maps::handle::{self, HandleError};
use beeline_maps::{
    check, for_each, layout, ops, perf_event_array, prog_array, ringbuf, stack_trace, sweep, user,
};
use proptest::prelude::*;
use support::{Map, Random, me, shape};

/// How the words of the file are made up: each finds other mistakes.
#[derive(Clone, Copy, Debug)]
enum Garbage {
    Random,
    SmallIndices,
    Ones,
    LinkedElements,
}

fn fill(map: &Map, garbage: Garbage, random: &mut Random) {
    let len = layout::layout(&map.handle.shape).expect("valid").file_len;
    for at in (256..len).step_by(8) {
        let word = match garbage {
            Garbage::Random => random.next(),
            Garbage::SmallIndices => random.below(2 * u64::from(map.handle.pool_len) + 4),
            Garbage::Ones => u64::MAX,
            Garbage::LinkedElements if random.below(2) == 0 => u64::MAX - 1,
            Garbage::LinkedElements => random.below(64) | random.below(4) << 32,
        };
        unsafe { ((map.handle.base + at) as *mut u64).write(word) };
    }
}

/// Every operation there is, with random arguments.
fn exercise(map: &Map, random: &mut Random) {
    let me = Access { cpu: random.below(3) as u32, ..me() };
    let h = &map.handle;
    let (mut key, mut value) = ([0u8; 64], vec![0u8; 4096]);
    for _ in 0..40 {
        key[..8].copy_from_slice(&random.below(8).to_ne_bytes());
        let (k, v, flags) = (key.as_ptr(), value.as_mut_ptr(), random.below(3));
        unsafe {
            match h.shape.map_type {
                MapType::RINGBUF => ring(h, &me, random, &mut value),
                MapType::PERF_EVENT_ARRAY => {
                    perf_event_array::output(h, &me, k, random.below(64), perf_event_array::CURRENT_CPU);
                    perf_event_array::read(h, random.below(3) as u32, &mut value);
                }
                MapType::PROG_ARRAY => drop(prog_array::program_id(h, random.next())),
                MapType::STACK_TRACE => {
                    stack_trace::store(h, &me, k.cast(), 1 + random.below(8) as u32, random.below(2) << 10);
                }
                _ => {
                    let found = ops::lookup(h, &me, k);
                    if !found.is_null() {
                        found.write_bytes(7, h.shape.value_size as usize);
                    }
                    ops::update(h, &me, k, v, flags);
                    ops::delete(h, &me, k);
                    ops::lookup_percpu_elem(h, k, random.below(4) as u32);
                }
            }
            user::lookup(h, &me, k, v, 0);
            user::update(h, &me, k, v, flags);
            user::lookup_and_delete(h, &me, k, v, 0);
            user::delete(h, &me, k);
            user::next_key(h, &me, k, v);
        }
    }
    unsafe {
        let mut visits = 0;
        for_each::for_each(h, &me, 0, &mut |_, value| {
            visits += 1;
            value.write_bytes(1, h.shape.value_size as usize);
            visits < 10_000
        });
        sweep::sweep(h, &me);
        let _ = check::verify_consistency(h);
    }
}

unsafe fn ring(h: &MapHandle, me: &Access, random: &mut Random, buffer: &mut [u8]) {
    unsafe {
        let size = random.below(600);
        let record = ringbuf::reserve(h, me, size, 0);
        if !record.is_null() {
            record.write_bytes(3, size as usize);
            ringbuf::submit(h, me, record, random.below(3));
        }
        ringbuf::output(h, me, buffer.as_ptr(), size, 0);
        ringbuf::read(h, me, buffer);
        ringbuf::query(h, random.below(5));
    }
}

fn shapes() -> Vec<MapShape> {
    vec![
        shape(MapType::HASH, 8, 8, 20, 0),
        shape(MapType::HASH, 20, 50, 20, MapFlags::NO_PREALLOC),
        shape(MapType::PERCPU_HASH, 4, 12, 20, 0),
        shape(MapType::LRU_HASH, 8, 8, 20, 0),
        shape(MapType::LRU_HASH, 8, 30, 20, 0),
        shape(MapType::STACK_TRACE, 4, 64, 20, 0),
        shape(MapType::RINGBUF, 0, 0, 4096, 0),
        shape(MapType::PERF_EVENT_ARRAY, 4, 4, 4, 0),
        shape(MapType::PROG_ARRAY, 4, 4, 4, 0),
        shape(MapType::ARRAY, 4, 10, 4, 0),
        shape(MapType::PERCPU_ARRAY, 4, 10, 4, 0),
    ]
}

#[test]
fn garbage_is_survived() {
    for shape in shapes() {
        for garbage in [Garbage::Random, Garbage::SmallIndices, Garbage::Ones, Garbage::LinkedElements] {
            for seed in 0..12 {
                let map = Map::new(shape);
                let mut random = Random(seed);
                fill(&map, garbage, &mut random);
                // A lock that nobody can be told dead is waited for, each time.
                if shape.map_type == MapType::RINGBUF && seed % 4 != 0 {
                    unsafe { ((map.handle.base + ringbuf::PRODUCER_OFFSET + 8) as *mut u64).write(0) };
                }
                exercise(&map, &mut random);
            }
        }
    }
}

#[test]
fn files_that_are_no_maps_are_refused() {
    let map = Map::new(shape(MapType::HASH, 8, 8, 20, 0));
    let base = map.handle.base as *mut u8;
    let len = map.len as u64;
    let open = || unsafe { handle::open(base, len, len, base as u64) };
    assert_eq!(open(), Ok(map.handle));
    assert!(matches!(
        unsafe { handle::open(base, 100, len, base as u64) },
        Err(HandleError::TooShort { mapped_len: 100 })
    ));
    assert!(matches!(
        unsafe { handle::open(base, len, len - 1, base as u64) },
        Err(HandleError::Length { .. })
    ));
    unsafe {
        base.cast::<u64>().write(MAP_MAGIC ^ 1);
        assert_eq!(open(), Err(HandleError::NotAMap));
        base.cast::<u64>().write(MAP_MAGIC);
        base.add(8).cast::<u32>().write(ABI_VERSION + 1);
        assert_eq!(open(), Err(HandleError::Version { found: ABI_VERSION + 1 }));
        base.add(8).cast::<u32>().write(ABI_VERSION);
        base.add(16).cast::<u32>().write(77);
        assert!(matches!(open(), Err(HandleError::Shape { .. })));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever shape a file claims, its layout is either refused or lies within its length.
    #[test]
    fn layouts_are_within_their_files(
        map_type in 0..40u32, key_size in size(), value_size in size(), max_entries in size(),
        map_flags in prop_oneof![Just(0u32), Just(1), any::<u32>()], cpus in size(),
    ) {
        let shape = MapShape { map_type, key_size, value_size, max_entries, map_flags, cpus };
        if let Ok(layout) = layout::layout(&shape) {
            prop_assert!(layout.file_len.is_multiple_of(4096) && layout.file_len <= layout::FILE_LEN_MAX);
            prop_assert!(layout.reserved_len <= layout.file_len && layout.mapped_len >= layout.file_len);
            prop_assert_eq!(layout.data_offset + layout.data_len, layout.file_len);
            let pool_end = layout.offsets[1] + u64::from(layout.pool_len) * layout.stride;
            prop_assert!(pool_end <= layout.file_len);
            prop_assert!(layout.offsets.iter().all(|at| *at <= layout.file_len));
        }
    }
}

fn size() -> impl Strategy<Value = u32> {
    prop_oneof![0..70u32, Just(4), Just(4096), Just(u32::MAX), Just(1 << 31), any::<u32>()]
}
