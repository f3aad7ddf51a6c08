//! Many threads on one map: nothing is lost, nothing is twice, nothing is torn.
#![expect(clippy::undocumented_unsafe_blocks, reason = "the handles are those of live maps")]

mod support;

use beeline_abi::errno::{E2BIG, EEXIST, ENOENT};
use beeline_abi::map::{Access, MapFlags, MapType};
use beeline_maps::{check, stack_trace, sweep, user};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use support::{Map, Random, me, shape};

const THREADS: u64 = 8;

/// Runs `body(thread, access)` on all threads.
fn on_all(body: impl Fn(u64, &Access) + Sync) {
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let body = &body;
            scope.spawn(move || body(thread, &me()));
        }
    });
}

fn verify(map: &Map) -> u64 {
    unsafe { sweep::sweep(&map.handle, &me()) };
    unsafe { check::verify_consistency(&map.handle) }.expect("consistent")
}

#[test]
fn counters_are_exact() {
    for (map_type, key_size) in [(MapType::HASH, 8), (MapType::LRU_HASH, 4), (MapType::HASH, 24)] {
        let map = Map::new(shape(map_type, key_size, 8, 64, 0));
        let key = |n: u64| {
            let mut key = vec![0; key_size as usize];
            key[..4].copy_from_slice(&(n as u32).to_ne_bytes());
            key
        };
        on_all(|thread, me| {
            let mut random = Random(thread);
            for _ in 0..20_000 {
                let key = key(random.below(48));
                if !map.add(me, &key, 1) {
                    let created = map.update(me, &key, &0u64.to_ne_bytes(), 1);
                    assert!(created == 0 || created == -EEXIST);
                    assert!(map.add(me, &key, 1));
                }
            }
        });
        let sum: u64 = (0..48)
            .map(|n| map.counter(&me(), &key(n)).map_or(0, |counter| counter.load(Ordering::Relaxed)))
            .sum();
        assert_eq!(sum, THREADS * 20_000);
        assert_eq!(verify(&map), 48);
    }
}

/// Keys of different threads share buckets, but each key is one thread's: that thread always knows what is there.
fn own_keys(map: &Map) {
    let value_size = map.handle.shape.value_size;
    on_all(|thread, me| {
        let mut random = Random(thread);
        let mut model = [None; 24];
        for _ in 0..10_000 {
            let n = random.below(24);
            let key = (thread << 8 | n).to_ne_bytes();
            let filler = random.next() as u8;
            let value = vec![filler; value_size as usize];
            let there = &mut model[n as usize];
            match random.below(3) {
                0 => {
                    assert_eq!(map.update(me, &key, &value, 0), 0);
                    *there = Some(filler);
                }
                1 => {
                    let expected = if there.is_some() { 0 } else { -ENOENT };
                    assert_eq!(map.delete(me, &key), expected);
                    *there = None;
                }
                _ => {
                    let expected = there.map(|filler| vec![filler; value_size as usize]);
                    assert_eq!(map.value(me, &key), expected);
                }
            }
        }
        for (n, there) in model.iter().enumerate() {
            let key = (thread << 8 | n as u64).to_ne_bytes();
            assert_eq!(map.lookup(me, &key).is_some(), there.is_some());
        }
    });
    let keys = map.keys(&me()).len() as u64;
    assert_eq!(verify(map), keys);
}

#[test]
fn a_thread_finds_what_it_left() {
    for (value_size, flags) in [(8, 0), (8, MapFlags::NO_PREALLOC), (40, 0), (3, 0)] {
        own_keys(&Map::new(shape(MapType::HASH, 8, value_size, 256, flags)));
        own_keys(&Map::new(shape(MapType::HASH, 8, value_size, 256, flags)).in_one_chain());
    }
}

/// All threads insert and delete the same few keys: what succeeded must add up, key by key.
fn same_keys(map: &Map) {
    let (value_size, max) = (map.handle.shape.value_size, map.handle.shape.max_entries);
    let balance: [AtomicI64; 12] = Default::default();
    on_all(|thread, me| {
        let mut random = Random(thread ^ 99);
        for _ in 0..10_000 {
            let n = random.below(12);
            let key = n.to_ne_bytes();
            let value = vec![n as u8; value_size as usize];
            match random.below(4) {
                0 => match map.update(me, &key, &value, 1) {
                    0 => drop(balance[n as usize].fetch_add(1, Ordering::Relaxed)),
                    errno => assert!(errno == -EEXIST || errno == -E2BIG && max < 12, "{errno}"),
                },
                1 => match map.update(me, &key, &value, 2) {
                    0 => {}
                    errno => assert_eq!(errno, -ENOENT),
                },
                2 => match map.delete(me, &key) {
                    0 => drop(balance[n as usize].fetch_sub(1, Ordering::Relaxed)),
                    errno => assert_eq!(errno, -ENOENT),
                },
                _ => drop(map.lookup(me, &key)),
            }
        }
    });
    let mut there = 0;
    for (n, balance) in balance.iter().enumerate() {
        let present = map.lookup(&me(), &(n as u64).to_ne_bytes()).is_some();
        assert_eq!(balance.load(Ordering::Relaxed), i64::from(present), "key {n}");
        there += u64::from(present);
    }
    assert_eq!(verify(map), there);
}

#[test]
fn insertions_and_deletions_add_up() {
    for (value_size, max) in [(8, 16), (40, 16), (8, 6), (40, 6)] {
        same_keys(&Map::new(shape(MapType::HASH, 8, value_size, max, 0)));
        same_keys(&Map::new(shape(MapType::HASH, 8, value_size, max, 0)).in_one_chain());
    }
}

#[test]
fn copies_are_never_torn() {
    let map = Map::new(shape(MapType::HASH, 8, 64, 4, 0));
    let key = 5u64.to_ne_bytes();
    assert_eq!(map.update(&me(), &key, &[0; 64], 0), 0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let (map, done) = (&map, &done);
            scope.spawn(move || {
                let (me, mut random) = (me(), Random(thread));
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(map.update(&me, &key, &[random.next() as u8; 64], 0), 0);
                }
            });
        }
        let mut value = [0u8; 64];
        for _ in 0..20_000 {
            assert_eq!(unsafe { user::lookup(&map.handle, &me(), key.as_ptr(), value.as_mut_ptr(), 0) }, 0);
            assert!(value.iter().all(|byte| *byte == value[0]), "{value:?}");
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(verify(&map), 1);
}

#[test]
fn an_lru_map_always_has_room() {
    for (map_type, value_size) in
        [(MapType::LRU_HASH, 8), (MapType::LRU_HASH, 32), (MapType::LRU_PERCPU_HASH, 8)]
    {
        let map = Map::new(shape(map_type, 8, value_size, 50, 0));
        on_all(|thread, me| {
            let mut random = Random(thread);
            for _ in 0..5_000 {
                let key = random.below(200).to_ne_bytes();
                assert_eq!(map.update(me, &key, &vec![1; value_size as usize], 0), 0);
                map.lookup(me, &random.below(200).to_ne_bytes());
            }
        });
        assert!(verify(&map) <= 50);
    }
}

#[test]
fn an_lru_map_keeps_what_is_used() {
    let map = Map::new(shape(MapType::LRU_HASH, 8, 8, 32, 0));
    let me = me();
    for n in 0..1000u64 {
        assert_eq!(map.update(&me, &n.to_ne_bytes(), &n.to_ne_bytes(), 0), 0);
        assert!(map.lookup(&me, &0u64.to_ne_bytes()).is_some(), "lost at {n}");
    }
    assert_eq!(verify(&map), 32);
}

#[test]
fn walks_meet_every_key_that_stays() {
    let map = Map::new(shape(MapType::HASH, 8, 8, 512, 0));
    for n in 0..100u64 {
        assert_eq!(map.update(&me(), &n.to_ne_bytes(), &n.to_ne_bytes(), 0), 0);
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 1..4u64 {
            let (map, done) = (&map, &done);
            scope.spawn(move || {
                let (me, mut random) = (me(), Random(thread));
                while !done.load(Ordering::Relaxed) {
                    let key = (thread << 32 | random.below(100)).to_ne_bytes();
                    map.update(&me, &key, &[0; 8], 0);
                    map.delete(&me, &key);
                }
            });
        }
        for _ in 0..100 {
            let mut seen = [0; 100];
            unsafe {
                beeline_maps::for_each::for_each(&map.handle, &me(), 0, &mut |key, _| {
                    let key = key.cast::<u64>().read();
                    if key < 100 {
                        seen[key as usize] += 1;
                    }
                    true
                });
            }
            assert_eq!(seen, [1; 100]);
        }
        done.store(true, Ordering::Relaxed);
    });
    verify(&map);
}

#[test]
fn stacks_keep_their_ids() {
    let map = Map::new(shape(MapType::STACK_TRACE, 4, 8 * 8, 128, 0));
    on_all(|thread, me| {
        let mut random = Random(thread);
        for _ in 0..5_000 {
            let seed = random.below(200);
            let depth = 1 + seed as u32 % 8;
            let stack: Vec<u64> = (0..u64::from(depth)).map(|frame| seed * 1000 + frame).collect();
            let id =
                unsafe { stack_trace::store(&map.handle, me, stack.as_ptr(), depth, stack_trace::REUSE) };
            if id < 0 {
                assert_eq!(id, -beeline_abi::errno::ENOMEM);
                continue;
            }
            let mut out = [0u64; 8];
            if unsafe { stack_trace::read(&map.handle, id as u32, out.as_mut_ptr().cast()) } == 0 {
                // Ours or one that took its place, but a whole one.
                let other = out[0] / 1000;
                let depth = 1 + other as usize % 8;
                assert!((0..depth).all(|frame| out[frame] == other * 1000 + frame as u64), "{out:?}");
                assert!(out[depth..].iter().all(|word| *word == 0));
            }
        }
    });
    verify(&map);
}
