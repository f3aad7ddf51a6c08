//! `for_each` and `next_key` when the map changes under them.
#![expect(clippy::undocumented_unsafe_blocks, reason = "the handles are those of live maps")]

mod support;

use beeline_abi::errno::{EINVAL, EOPNOTSUPP};
use beeline_abi::map::{Access, MapType};
use beeline_maps::for_each::for_each;
use beeline_maps::{check, ops};
use support::{Map, me, shape};

fn filled(map_type: u32, key_size: u32, count: u64) -> Map {
    let map = Map::new(shape(map_type, key_size, 8, 64, 0));
    for n in 0..count {
        let mut key = vec![0; key_size as usize];
        key[..4].copy_from_slice(&(n as u32).to_ne_bytes());
        assert_eq!(map.update(&me(), &key, &n.to_ne_bytes(), 0), 0);
    }
    map
}

#[test]
fn elements_are_visited_once() {
    for (map_type, key_size, expected) in [
        (MapType::HASH, 8, 30),
        (MapType::HASH, 24, 30),
        (MapType::PERCPU_HASH, 4, 30),
        (MapType::LRU_HASH, 8, 30),
        (MapType::LRU_PERCPU_HASH, 8, 30),
        (MapType::ARRAY, 4, 64),
        (MapType::PERCPU_ARRAY, 4, 64),
    ] {
        let map = filled(map_type, key_size, 30);
        let mut sum = 0;
        let visited = unsafe {
            for_each(&map.handle, &me(), 0, &mut |key, value| {
                let (key, value) = (key.cast::<u32>().read_unaligned(), value.cast::<u64>().read());
                assert!(value == u64::from(key) || value == 0 && key >= 30);
                sum += value;
                true
            })
        };
        assert_eq!((visited, sum), (expected, (0..30).sum()));
    }
}

#[test]
fn a_callback_ends_the_walk() {
    for map_type in [MapType::HASH, MapType::ARRAY] {
        let map = filled(map_type, 4, 30);
        let mut left = 5;
        let visited = unsafe {
            for_each(&map.handle, &me(), 0, &mut |_, _| {
                left -= 1;
                left != 0
            })
        };
        assert_eq!(visited, 5);
    }
}

#[test]
fn a_callback_may_delete_what_it_is_called_for() {
    let map = filled(MapType::HASH, 8, 60);
    let me = me();
    let visited = unsafe {
        for_each(&map.handle, &me, 0, &mut |key, _| {
            assert_eq!(ops::delete(&map.handle, &me, key), 0);
            true
        })
    };
    assert_eq!(visited, 60);
    assert_eq!(unsafe { check::verify_consistency(&map.handle) }, Ok(0));
}

#[test]
fn a_callback_may_delete_everything() {
    let map = filled(MapType::HASH, 8, 60);
    let me = me();
    let visited = unsafe {
        for_each(&map.handle, &me, 0, &mut |_, _| {
            for key in map.keys(&me) {
                map.delete(&me, &key);
            }
            true
        })
    };
    assert_eq!(visited, 1);
}

#[test]
fn other_types_cannot_be_visited() {
    let map = Map::new(shape(MapType::RINGBUF, 0, 0, 4096, 0));
    assert_eq!(unsafe { for_each(&map.handle, &me(), 0, &mut |_, _| true) }, -EOPNOTSUPP);
    let map = filled(MapType::HASH, 8, 1);
    assert_eq!(unsafe { for_each(&map.handle, &me(), 1, &mut |_, _| true) }, -EINVAL);
}

#[test]
fn per_cpu_values_are_each_cpus_own() {
    for map_type in [MapType::PERCPU_HASH, MapType::PERCPU_ARRAY] {
        let map = Map::new(shape(map_type, 4, 8, 4, 0));
        let key = 2u32.to_ne_bytes();
        let cpus = map.handle.shape.cpus;
        for cpu in (0..cpus).rev() {
            let access = Access { cpu, ..me() };
            assert_eq!(map.update(&access, &key, &u64::from(cpu + 1).to_ne_bytes(), 0), 0);
        }
        for cpu in 0..cpus {
            let value = unsafe { ops::lookup_percpu_elem(&map.handle, key.as_ptr(), cpu) };
            assert_eq!(unsafe { value.cast::<u64>().read() }, u64::from(cpu + 1));
        }
        let none = Access { cpu: cpus, ..me() };
        assert!(unsafe { ops::lookup_percpu_elem(&map.handle, key.as_ptr(), cpus) }.is_null());
        assert_eq!(map.lookup(&none, &key), None);
        assert_eq!(map.update(&none, &key, &[0; 8], 0), -EINVAL);
    }
}
