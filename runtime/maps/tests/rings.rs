//! Ring buffers and perf event arrays: what goes in comes out, once, in order, whole.
#![expect(clippy::undocumented_unsafe_blocks, reason = "the handles are those of live maps")]

mod support;

use beeline_abi::errno::{E2BIG, EAGAIN, EINVAL, ENOSPC, EOPNOTSUPP};
use beeline_abi::map::{Access, MapType};
use beeline_maps::perf_event_array::{self, CURRENT_CPU, Event};
use beeline_maps::ringbuf::{self, Read};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use support::{Map, me, shape};

fn ring(len: u32) -> Map {
    Map::new(shape(MapType::RINGBUF, 0, 0, len, 0))
}

fn take(map: &Map) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 1 << 16];
    match unsafe { ringbuf::read(&map.handle, &me(), &mut buffer) } {
        Read::Record(len) => Some(buffer[..len].to_vec()),
        Read::Empty => None,
        other => panic!("{other:?}"),
    }
}

fn put(map: &Map, data: &[u8]) -> i64 {
    unsafe { ringbuf::output(&map.handle, &me(), data.as_ptr(), data.len() as u64, 0) }
}

#[test]
fn records_come_out_in_order_across_the_wrap() {
    let map = ring(4096);
    let mut expected = VecDeque::new();
    for n in 0..10_000u32 {
        let record = vec![n as u8; (n as usize * 7) % 300];
        while put(&map, &record) == -EAGAIN {
            assert_eq!(take(&map), expected.pop_front());
        }
        expected.push_back(record);
    }
    while let Some(record) = expected.pop_front() {
        assert_eq!(take(&map), Some(record));
    }
    assert_eq!(take(&map), None);
}

#[test]
fn room_is_the_kernels() {
    let map = ring(4096);
    // A ring is never filled to the last byte: the kernel compares with the mask.
    assert_eq!(put(&map, &[1; 4096 - 8]), -EAGAIN);
    assert_eq!(put(&map, &[1; 4096 - 16]), 0);
    assert_eq!(put(&map, &[]), -EAGAIN);
    assert_eq!(unsafe { ringbuf::query(&map.handle, 0) }, 4096 - 8);
    assert_eq!(take(&map), Some(vec![1; 4096 - 16]));
    assert_eq!(
        [0, 1, 2, 3, 4].map(|what| unsafe { ringbuf::query(&map.handle, what) }),
        [0, 4096, 4088, 4088, 0]
    );
    assert_eq!(unsafe { ringbuf::output(&map.handle, &me(), [0u8].as_ptr(), 1, 4) }, -EINVAL);
    assert!(unsafe { ringbuf::reserve(&map.handle, &me(), 8, 1) }.is_null());
    assert!(unsafe { ringbuf::reserve(&map.handle, &me(), 1 << 30, 0) }.is_null());
}

#[test]
fn a_record_waits_for_those_before_it() {
    let map = ring(4096);
    let me = me();
    unsafe {
        let first = ringbuf::reserve(&map.handle, &me, 4, 0);
        let second = ringbuf::reserve(&map.handle, &me, 4, 0);
        let third = ringbuf::reserve(&map.handle, &me, 4, 0);
        third.cast::<u32>().write(3);
        ringbuf::submit(&map.handle, &me, third, 0);
        assert_eq!(take(&map), None);
        first.cast::<u32>().write(1);
        ringbuf::submit(&map.handle, &me, first, 0);
        assert_eq!(take(&map), Some(1u32.to_ne_bytes().to_vec()));
        ringbuf::discard(&map.handle, &me, second, 0);
        assert_eq!(take(&map), Some(3u32.to_ne_bytes().to_vec()));
        assert_eq!(take(&map), None);
    }
}

#[test]
fn a_dead_producers_record_is_discarded() {
    let map = ring(4096);
    let child = unsafe { libc::fork() };
    if child == 0 {
        unsafe {
            let record = ringbuf::reserve(&map.handle, &me(), 100, 0);
            libc::_exit(i32::from(record.is_null()));
        }
    }
    let mut status = 0;
    // It is a zombie until it is waited for, and dead all the same.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    unsafe { libc::waitid(libc::P_PID, child as u32, &mut info, libc::WEXITED | libc::WNOWAIT) };
    assert_eq!(put(&map, b"after"), 0);
    assert_eq!(take(&map), Some(b"after".to_vec()));
    unsafe { libc::waitpid(child, &mut status, 0) };
    assert_eq!(status, 0);
}

#[test]
fn a_dead_producers_lock_is_taken_over() {
    let map = ring(4096);
    let child = unsafe { libc::fork() };
    if child == 0 {
        // As if killed inside of `reserve`: the lock word is next to the producer position.
        let lock = (map.handle.base + ringbuf::PRODUCER_OFFSET + 8) as *const AtomicU64;
        unsafe {
            (*lock).store(me().owner, Ordering::Release);
            libc::_exit(0);
        }
    }
    let mut status = 0;
    unsafe { libc::waitpid(child, &mut status, 0) };
    assert_eq!(put(&map, b"x"), 0);
    assert_eq!(take(&map), Some(b"x".to_vec()));
}

#[test]
fn a_living_holder_of_the_lock_is_left_alone() {
    let map = ring(4096);
    let lock = unsafe { &*((map.handle.base + ringbuf::PRODUCER_OFFSET + 8) as *const AtomicU64) };
    lock.store(me().owner, Ordering::Release);
    let other = std::thread::scope(|s| s.spawn(|| put(&map, b"x")).join().expect("no panic"));
    assert_eq!(other, -EAGAIN);
    assert_eq!(lock.load(Ordering::Acquire), me().owner);
}

#[test]
fn producers_do_not_lose_or_mix_records() {
    let map = ring(1 << 16);
    let total = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (map, total) = (&map, &total);
            scope.spawn(move || {
                let me = me();
                for n in 0..5_000u64 {
                    let record: Vec<u64> = vec![thread << 32 | n; 1 + (n as usize % 9)];
                    let len = record.len() as u64 * 8;
                    while unsafe { ringbuf::output(&map.handle, &me, record.as_ptr().cast(), len, 0) } != 0 {
                        std::thread::yield_now();
                    }
                    total.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut next = [0u64; 4];
        let mut seen = 0;
        while seen < 20_000 {
            let Some(record) = take(&map) else {
                unsafe { ringbuf::wait(&map.handle, 1_000_000) };
                continue;
            };
            let words: Vec<u64> =
                record.chunks(8).map(|c| u64::from_ne_bytes(c.try_into().expect("8"))).collect();
            assert!(words.iter().all(|w| *w == words[0]));
            let thread = (words[0] >> 32) as usize;
            assert_eq!(words[0] & 0xffff_ffff, next[thread]);
            assert_eq!(words.len(), 1 + (next[thread] as usize % 9));
            next[thread] += 1;
            seen += 1;
        }
    });
    assert_eq!(take(&map), None);
    assert_eq!(total.load(Ordering::Relaxed), 20_000);
}

#[test]
fn perf_rings_count_what_they_lose() {
    let map = Map::new(shape(MapType::PERF_EVENT_ARRAY, 4, 4, 64, 0));
    let access = Access { cpu: 0, ..me() };
    let emit = |data: &[u8], flags| unsafe {
        perf_event_array::output(&map.handle, &access, data.as_ptr(), data.len() as u64, flags)
    };
    let mut buffer = vec![0; 1 << 16];
    let mut read = || unsafe { perf_event_array::read(&map.handle, 0, &mut buffer) };
    assert_eq!(read(), Event::Empty);
    let mut fits = 0u64;
    while emit(&[5; 1000], CURRENT_CPU) == 0 {
        fits += 1;
    }
    assert_eq!(fits, perf_event_array::RING_LEN / 1008);
    assert_eq!(emit(&[5; 1000], 0), -ENOSPC);
    assert_eq!(read(), Event::Lost(2));
    for _ in 0..fits {
        assert_eq!(read(), Event::Record(1000));
    }
    assert_eq!(read(), Event::Empty);
    assert_eq!(emit(b"abc", 0), 0);
    assert_eq!(unsafe { perf_event_array::read(&map.handle, 0, &mut [0; 2]) }, Event::TooLong(3));
    assert_eq!(read(), Event::Record(3));
    assert_eq!(&buffer[..3], b"abc");
    assert_eq!(emit(b"abc", 1), -EOPNOTSUPP);
    assert_eq!(emit(b"abc", 64), -E2BIG);
    assert_eq!(emit(b"abc", 1 << 32), -EINVAL);
    assert_eq!(emit(&vec![0; 0x10000], 0), -E2BIG);
}

#[test]
fn perf_records_survive_the_wrap() {
    let map = Map::new(shape(MapType::PERF_EVENT_ARRAY, 4, 4, 64, 0));
    let access = Access { cpu: 0, ..me() };
    let mut buffer = vec![0; 1 << 16];
    for n in 0..5_000u32 {
        let record: Vec<u8> = (0..(n * 13) % 700).map(|i| (i ^ n) as u8).collect();
        let sent = unsafe {
            perf_event_array::output(&map.handle, &access, record.as_ptr(), record.len() as u64, CURRENT_CPU)
        };
        assert_eq!(sent, 0);
        let got = unsafe { perf_event_array::read(&map.handle, 0, &mut buffer) };
        assert_eq!(got, Event::Record(record.len()));
        assert_eq!(&buffer[..record.len()], &record[..]);
    }
}
