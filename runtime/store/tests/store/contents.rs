//! What is in maps, from user space.

use crate::{Scratch, array, object};
use beeline_abi::map::{MapFlags, MapShape, MapType};
use beeline_store::{Event, InitialValue, MapFile, NewMap, Store};
use rustix::io::Errno;

/// A map of its own kind in an object of its own; opened.
fn map(store: &Store, name: &str, shape: MapShape) -> MapFile {
    let mut new = object(name);
    new.maps.push(NewMap { name: "probed".into(), shape, ..NewMap::default() });
    store.publish(&new).unwrap();
    let maps = store.maps().unwrap().maps;
    let of_ours = |it: &beeline_store::MapEntry| it.name == "probed" && it.objects == [name];
    maps.into_iter().find(of_ours).unwrap().file
}

fn shape(map_type: u32, key_size: u32, value_size: u32, max_entries: u32) -> MapShape {
    MapShape { map_type, key_size, value_size, max_entries, ..MapShape::default() }
}

#[test]
fn prog_array_holds_the_ids_of_programs() {
    let scratch = Scratch::new();
    let store = scratch.store();
    let mut new = object("one");
    new.maps[0].shape =
        MapShape { map_type: MapType::PROG_ARRAY, key_size: 4, value_size: 4, ..new.maps[0].shape };
    new.maps[0].initial.push((3u32.to_ne_bytes().to_vec(), InitialValue::Program(1)));
    let published = store.publish(&new).unwrap();
    let maps = store.maps().unwrap().maps;
    let value = maps[0].file.lookup(&3u32.to_ne_bytes()).unwrap();
    assert_eq!(value, Some(published.programs[1].to_ne_bytes().to_vec()));
    assert_eq!(maps[0].file.lookup(&4u32.to_ne_bytes()), Ok(None));
}

#[test]
fn initial_contents_are_there_and_frozen() {
    let scratch = Scratch::new();
    let store = scratch.store();
    store.publish(&object("one")).unwrap();
    let data = &store.maps().unwrap().maps[1].file;
    assert_eq!(data.lookup(&[0; 4]).unwrap().as_deref(), Some(&b"hello, world"[..]));
    assert_eq!(data.update(&[0; 4], &[0; 12], 0), Err(Errno::PERM));
}

#[test]
fn a_hash_from_user_space() {
    let scratch = Scratch::new();
    let map = map(&scratch.store(), "one", shape(MapType::HASH, 4, 12, 100));
    let key = |n: u32| n.to_ne_bytes();
    for n in 0..100 {
        map.update(&key(n), &[n as u8; 12], 1).unwrap();
    }
    assert_eq!(map.update(&key(100), &[0; 12], 0), Err(Errno::TOOBIG));
    assert_eq!(map.update(&key(1), &[0; 12], 1), Err(Errno::EXIST));
    assert_eq!(map.update(&key(200), &[0; 12], 2), Err(Errno::NOENT));
    assert_eq!(map.lookup(&key(7)).unwrap(), Some(vec![7; 12]));
    assert_eq!(map.lookup(&key(700)), Ok(None));
    map.delete(&key(7)).unwrap();
    assert_eq!(map.delete(&key(7)), Err(Errno::NOENT));
    let mut keys: Vec<_> = map.entries().unwrap().into_iter().map(|(key, _)| key).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 99);
    assert_eq!(map.lookup(&[0; 3]), Err(Errno::INVAL));
    assert_eq!(map.update(&key(1), &[0; 8], 0), Err(Errno::INVAL));
}

#[test]
fn per_cpu_values_have_a_copy_for_each_cpu() {
    let scratch = Scratch::new();
    let store = scratch.store();
    for (name, map_type) in [("array", MapType::PERCPU_ARRAY), ("hash", MapType::PERCPU_HASH)] {
        let map = map(&store, name, shape(map_type, 4, 4, 3));
        let cpus = store.cpus() as usize;
        assert!(map.is_per_cpu());
        assert_eq!(map.value_len(), 8 * cpus);
        let value: Vec<u8> = (0..cpus).flat_map(|cpu| [cpu as u8 + 1, 0, 0, 0, 0, 0, 0, 0]).collect();
        map.update(&[1, 0, 0, 0], &value, 0).unwrap();
        assert_eq!(map.lookup(&[1, 0, 0, 0]).unwrap(), Some(value));
    }
}

#[test]
fn two_openings_see_the_same_map() {
    let scratch = Scratch::new();
    let store = scratch.store();
    let first = map(&store, "one", shape(MapType::HASH, 4, 8, 10));
    first.update(&[1; 4], &[2; 8], 0).unwrap();
    let maps = store.maps().unwrap().maps;
    let second = &maps.iter().find(|it| it.name == "probed").unwrap().file;
    assert_eq!(second.lookup(&[1; 4]).unwrap(), Some(vec![2; 8]));
    assert!(second.memory_bytes().unwrap() >= 4096);
}

#[test]
fn maps_without_keys_have_no_entries() {
    let scratch = Scratch::new();
    let store = scratch.store();
    let ring = map(&store, "ring", shape(MapType::RINGBUF, 0, 0, 4096));
    assert_eq!(ring.entries(), Err(Errno::OPNOTSUPP));
    let mut events = ring.events().unwrap();
    assert_eq!(events.poll(), None);
    let array = map(&store, "array", array("x", 8, 2).shape);
    assert!(array.events().is_err());
    assert_eq!(array.entries().unwrap().len(), 2);
}

#[test]
fn records_of_a_ring_come_out_whole_across_its_end() {
    let scratch = Scratch::new();
    let ring = map(&scratch.store(), "ring", shape(MapType::RINGBUF, 0, 0, 4096));
    let mut events = ring.events().unwrap();
    for round in 0u32..50 {
        let data: Vec<u8> = (0..700).map(|at| (at as u32 + round) as u8).collect();
        // SAFETY: the handle is valid while `ring` lives, and `data` is readable.
        let result = unsafe {
            let access = beeline_abi::map::Access::default();
            beeline_maps::ringbuf::output(ring.handle(), &access, data.as_ptr(), data.len() as u64, 0)
        };
        assert_eq!(result, 0, "round {round}");
        assert_eq!(events.poll(), Some(Event::Record { cpu: 0, data }), "round {round}");
    }
    assert_eq!(events.poll(), None);
}

#[test]
fn a_sparse_hash_takes_memory_as_it_grows() {
    let scratch = Scratch::new();
    let flags = MapFlags::NO_PREALLOC;
    let large = MapShape { map_flags: flags, ..shape(MapType::HASH, 8, 4096, 50_000) };
    let map = map(&scratch.store(), "one", large);
    let before = map.memory_bytes().unwrap();
    assert!(before < 8 << 20, "{before} bytes for an empty map");
    for n in 0u64..64 {
        map.update(&n.to_ne_bytes(), &[1; 4096], 0).unwrap();
    }
    assert!(map.memory_bytes().unwrap() > before);
}
