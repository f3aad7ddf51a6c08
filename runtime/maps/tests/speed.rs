//! Nanoseconds per operation, printed and not judged: `cargo test --release -p beeline-maps --test speed -- --ignored --nocapture`.
#![expect(clippy::undocumented_unsafe_blocks, reason = "the handles are those of live maps")]

mod support;

use beeline_abi::map::{Access, MapType};
use beeline_maps::{ops, perf_event_array, ringbuf};
use std::hint::black_box;
use std::time::Instant;
use support::{Map, me, shape};

fn measure(name: &str, mut operation: impl FnMut(u64)) {
    // Short batches, of which one is undisturbed on a busy machine too.
    const COUNT: u64 = 10_000;
    let best = (0..200)
        .map(|batch| {
            let start = Instant::now();
            (batch * COUNT..(batch + 1) * COUNT).for_each(&mut operation);
            start.elapsed().as_nanos() as f64 / COUNT as f64
        })
        .fold(f64::INFINITY, f64::min);
    println!("{name:40} {best:7.1} ns");
}

#[test]
#[ignore = "prints figures"]
fn nanoseconds_per_operation() {
    let me = Access { cpu: 0, ..me() };
    for keys in [1u64, 8192] {
        let map = Map::new(shape(MapType::HASH, 8, 8, 10_000, 0));
        for n in 0..keys {
            map.update(&me, &n.to_ne_bytes(), &n.to_ne_bytes(), 0);
        }
        let h = &map.handle;
        measure(&format!("hash 8/8, {keys} keys: lookup"), |n| {
            let key = n.wrapping_mul(7919) & (keys - 1);
            black_box(unsafe { ops::lookup(h, &me, (&raw const key).cast()) });
        });
        measure(&format!("hash 8/8, {keys} keys: update"), |n| {
            let key = n.wrapping_mul(7919) & (keys - 1);
            black_box(unsafe { ops::update(h, &me, (&raw const key).cast(), (&raw const n).cast(), 0) });
        });
    }
    for value_size in [8, 64] {
        let map = Map::new(shape(MapType::HASH, 8, value_size, 10_000, 0));
        let (h, value) = (&map.handle, [0u8; 64]);
        measure(&format!("hash 8/{value_size}: insert and delete"), |n| {
            let key = n;
            unsafe {
                ops::update(h, &me, (&raw const key).cast(), value.as_ptr(), 0);
                ops::delete(h, &me, (&raw const key).cast());
            }
        });
        measure(&format!("hash 8/{value_size}: update of one key"), |_| {
            let key = 1u64;
            unsafe { ops::update(h, &me, (&raw const key).cast(), value.as_ptr(), 0) };
        });
    }
    let map = Map::new(shape(MapType::LRU_HASH, 8, 8, 1_000, 0));
    measure("lru hash 8/8, full: insert", |n| {
        unsafe { ops::update(&map.handle, &me, (&raw const n).cast(), (&raw const n).cast(), 0) };
    });
    let map = Map::new(shape(MapType::PERCPU_HASH, 4, 8, 1_000, 0));
    measure("per-CPU hash 4/8: update", |n| {
        let key = n as u32 & 255;
        unsafe { ops::update(&map.handle, &me, (&raw const key).cast(), (&raw const n).cast(), 0) };
    });
    let map = Map::new(shape(MapType::ARRAY, 4, 8, 256, 0));
    measure("array: lookup", |n| {
        let key = n as u32 & 255;
        black_box(unsafe { ops::lookup(&map.handle, &me, (&raw const key).cast()) });
    });
    rings(&me);
}

fn rings(me: &Access) {
    let map = Map::new(shape(MapType::RINGBUF, 0, 0, 1 << 20, 0));
    let mut buffer = [0u8; 64];
    measure("ring buffer: reserve, submit, read", |n| unsafe {
        let record = ringbuf::reserve(&map.handle, me, 32, 0);
        record.cast::<u64>().write(n);
        ringbuf::submit(&map.handle, me, record, 0);
        ringbuf::read(&map.handle, me, &mut buffer);
    });
    let map = Map::new(shape(MapType::PERF_EVENT_ARRAY, 4, 4, 64, 0));
    measure("perf event array: output, read", |_| unsafe {
        perf_event_array::output(&map.handle, me, [0u8; 32].as_ptr(), 32, perf_event_array::CURRENT_CPU);
        perf_event_array::read(&map.handle, 0, &mut buffer);
    });
}
