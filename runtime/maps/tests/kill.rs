//! Processes are killed while they use a map: what they leave is consistent after a sweep, and has all its room.
#![expect(clippy::undocumented_unsafe_blocks, reason = "the handles are those of live maps")]

mod support;

use beeline_abi::errno::E2BIG;
use beeline_abi::map::{Access, MapFlags, MapType};
use beeline_maps::{check, perf_event_array, ringbuf, stack_trace, sweep};
use support::{Map, Random, me, me_after_fork, rounds, shape};

/// Runs `body` in two children for a random short time, kills them, and calls `after`; so many times.
fn kill_rounds(times: u64, body: impl Fn(&Access, &mut Random), after: impl Fn()) {
    let mut random = Random(times);
    for round in 0..times {
        let children = [0, 1].map(|child| fork_and_run(&body, round << 1 | child));
        unsafe { libc::usleep(100 + random.below(2500) as u32) };
        for child in children {
            unsafe {
                assert_eq!(libc::kill(child, libc::SIGKILL), 0);
                let mut status = 0;
                assert_eq!(libc::waitpid(child, &mut status, 0), child);
                assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL, "{status:#x}");
            }
        }
        after();
    }
}

fn fork_and_run(body: &impl Fn(&Access, &mut Random), seed: u64) -> i32 {
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let (me, mut random) = (me_after_fork(), Random(seed));
        loop {
            body(&me, &mut random);
        }
    }
    child
}

fn verify(map: &Map) {
    unsafe {
        sweep::sweep(&map.handle, &me());
        check::verify_consistency(&map.handle).expect("consistent");
    }
}

fn hammer(map: &Map, me: &Access, random: &mut Random) {
    let mut key = [0u8; 16];
    let mut value = [0u8; 64];
    key[0] = random.below(40) as u8;
    value.fill(random.next() as u8);
    unsafe {
        match random.below(3) {
            0 => drop(beeline_maps::ops::delete(&map.handle, me, key.as_ptr())),
            1 => drop(beeline_maps::ops::update(&map.handle, me, key.as_ptr(), value.as_ptr(), 0)),
            _ => drop(beeline_maps::ops::lookup(&map.handle, me, key.as_ptr())),
        }
    }
}

#[test]
fn hashes_survive_kills() {
    let shapes = [
        shape(MapType::HASH, 8, 8, 32, 0),
        shape(MapType::HASH, 16, 40, 32, 0),
        shape(MapType::HASH, 4, 24, 32, MapFlags::NO_PREALLOC),
        shape(MapType::PERCPU_HASH, 8, 16, 32, 0),
        shape(MapType::LRU_HASH, 8, 8, 16, 0),
        shape(MapType::LRU_HASH, 8, 48, 16, 0),
    ];
    let times = rounds(200) / (2 * shapes.len() as u64) + 1;
    let maps = shapes.into_iter().flat_map(|shape| [Map::new(shape), Map::new(shape).in_one_chain()]);
    for map in maps {
        kill_rounds(times, |me, random| hammer(&map, me, random), || verify(&map));
        holds_as_many_as_it_says(&map);
    }
}

fn holds_as_many_as_it_says(map: &Map) {
    let me = me();
    for key in map.keys(&me) {
        assert_eq!(map.delete(&me, &key), 0);
    }
    let (key_size, value_size) = (map.handle.shape.key_size as usize, map.handle.shape.value_size as usize);
    let max = map.handle.shape.max_entries as u8;
    for n in 0..max {
        let mut key = vec![0; key_size];
        key[1] = n;
        assert_eq!(map.update(&me, &key, &vec![n; value_size], 1), 0, "element {n} of {max}");
    }
    if map.handle.shape.map_type != MapType::LRU_HASH {
        assert_eq!(map.update(&me, &vec![0xff; key_size], &vec![0; value_size], 1), -E2BIG);
    }
    verify(map);
}

/// Without an explicit sweep: an insertion that finds a small map full sweeps by itself.
#[test]
fn a_small_map_recovers_by_itself() {
    let map = Map::new(shape(MapType::HASH, 8, 40, 32, 0));
    kill_rounds(rounds(200) / 5, |me, random| hammer(&map, me, random), || {});
    let me = me();
    for key in map.keys(&me) {
        assert_eq!(map.delete(&me, &key), 0);
    }
    let inserted = (0..32u64).filter(|n| map.update(&me, &(n << 32).to_ne_bytes(), &[0; 40], 1) == 0).count();
    assert_eq!(inserted, 32);
}

/// A stopped process holds nobody up, and when it goes on it harms nothing.
#[test]
fn stopped_processes_are_not_waited_for() {
    for shape in [shape(MapType::HASH, 8, 8, 64, 0), shape(MapType::HASH, 8, 40, 64, 0)] {
        let map = Map::new(shape);
        let me = me();
        let children = [0, 1]
            .map(|seed| fork_and_run(&|me: &Access, random: &mut Random| hammer(&map, me, random), seed));
        let mut random = Random(9);
        for _ in 0..rounds(200) / 5 {
            unsafe {
                libc::kill(children[0], libc::SIGSTOP);
                libc::usleep(random.below(500) as u32);
            }
            // Keys of ours alone, among the others' in the same buckets.
            for n in 0..200u64 {
                let key = (n % 16 + (1 << 32)).to_ne_bytes();
                let value = vec![n as u8; shape.value_size as usize];
                assert_eq!(map.update(&me, &key, &value, 0), 0);
                assert_eq!(map.value(&me, &key), Some(value));
                assert_eq!(map.delete(&me, &key), 0);
                assert_eq!(map.lookup(&me, &key), None);
            }
            unsafe { libc::kill(children[0], libc::SIGCONT) };
        }
        for child in children {
            unsafe {
                libc::kill(child, libc::SIGKILL);
                libc::waitpid(child, std::ptr::null_mut(), 0);
            }
        }
        verify(&map);
    }
}

#[test]
fn stack_traces_survive_kills() {
    let map = Map::new(shape(MapType::STACK_TRACE, 4, 64, 32, 0));
    let body = |me: &Access, random: &mut Random| {
        let stack = [random.below(60), 1, 2, 3];
        unsafe {
            if random.below(4) == 0 {
                stack_trace::remove(&map.handle, me, random.below(32) as u32);
            } else {
                stack_trace::store(&map.handle, me, stack.as_ptr(), 4, stack_trace::REUSE);
            }
        }
    };
    kill_rounds(rounds(200) / 5, body, || verify(&map));
}

#[test]
fn ring_buffers_survive_kills() {
    let map = Map::new(shape(MapType::RINGBUF, 0, 0, 8192, 0));
    let body = |me: &Access, random: &mut Random| unsafe {
        let size = random.below(200);
        let record = ringbuf::reserve(&map.handle, me, size, 0);
        if record.is_null() {
            return;
        }
        std::ptr::write_bytes(record, size as u8, size as usize);
        match random.below(4) {
            0 => ringbuf::discard(&map.handle, me, record, 0),
            _ => ringbuf::submit(&map.handle, me, record, 0),
        }
    };
    let drain = || unsafe {
        check::verify_consistency(&map.handle).expect("consistent");
        let mut buffer = [0u8; 256];
        loop {
            match ringbuf::read(&map.handle, &me(), &mut buffer) {
                ringbuf::Read::Record(len) => assert!(buffer[..len].iter().all(|b| *b == len as u8)),
                ringbuf::Read::Empty => break,
                other => panic!("{other:?}"),
            }
        }
        // Whatever the dead left reserved is gone: the whole ring is free.
        assert_eq!(ringbuf::query(&map.handle, 0), 0);
        let record = ringbuf::reserve(&map.handle, &me(), 8192 - 16, 0);
        assert!(!record.is_null());
        ringbuf::discard(&map.handle, &me(), record, 0);
        assert_eq!(ringbuf::read(&map.handle, &me(), &mut buffer), ringbuf::Read::Empty);
    };
    kill_rounds(rounds(200) / 2, body, drain);
}

#[test]
fn perf_rings_survive_kills() {
    let map = Map::new(shape(MapType::PERF_EVENT_ARRAY, 4, 4, 8, 0));
    let cpus = support::cpus();
    // One producer a ring, as programs have it.
    let mut random = Random(5);
    for round in 0..rounds(200) / 5 {
        let cpu = (round % u64::from(cpus)) as u32;
        let child = fork_and_run(
            &|me: &Access, random: &mut Random| {
                let size = random.below(200);
                let data = [size as u8; 200];
                let access = Access { cpu, ..*me };
                unsafe {
                    perf_event_array::output(
                        &map.handle,
                        &access,
                        data.as_ptr(),
                        size,
                        perf_event_array::CURRENT_CPU,
                    )
                };
            },
            round,
        );
        unsafe {
            libc::usleep(100 + random.below(1000) as u32);
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, std::ptr::null_mut(), 0);
            check::verify_consistency(&map.handle).expect("consistent");
            let mut buffer = [0u8; 256];
            loop {
                match perf_event_array::read(&map.handle, cpu, &mut buffer) {
                    perf_event_array::Event::Record(len) => {
                        assert!(buffer[..len].iter().all(|b| *b == len as u8))
                    }
                    perf_event_array::Event::Lost(_) => {}
                    perf_event_array::Event::Empty => break,
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}
