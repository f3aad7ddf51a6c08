//! The same sequence of system calls on a map of the kernel and on one of ours has the same results.
//!
//! Needs CAP_BPF; says so and passes without it.
#![expect(clippy::undocumented_unsafe_blocks, reason = "buffers are as long as the maps' keys and values")]

mod support;

use beeline_abi::map::{MapFlags, MapShape, MapType};
use beeline_maps::user;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::collections::BTreeSet;
use support::{Map, me, shape};

const MAP_CREATE: i64 = 0;
const LOOKUP: i64 = 1;
const UPDATE: i64 = 2;
const DELETE: i64 = 3;
const NEXT_KEY: i64 = 4;
const LOOKUP_AND_DELETE: i64 = 21;
const FREEZE: i64 = 22;

/// A map of the kernel.
struct Kernel(i32);

impl Kernel {
    fn create(shape: &MapShape) -> Result<Kernel, i64> {
        let mut attr = [0u32; 32];
        let fields = [shape.map_type, shape.key_size, shape.value_size, shape.max_entries, shape.map_flags];
        attr[..5].copy_from_slice(&fields);
        let fd = unsafe { libc::syscall(libc::SYS_bpf, MAP_CREATE, attr.as_ptr(), 72) };
        if fd < 0 { Err(errno()) } else { Ok(Kernel(fd as i32)) }
    }

    fn call(&self, command: i64, key: Option<&[u8]>, value: *mut u8, flags: u64) -> i64 {
        let key = key.map_or(0, |k| k.as_ptr() as u64);
        let value = if command == DELETE { 0 } else { value as u64 };
        let attr = [self.0 as u64, key, value, flags];
        let len = if command == FREEZE { 4 } else { 32 };
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_ptr(), len) };
        if result < 0 { errno() } else { 0 }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        unsafe { libc::close(self.0) };
    }
}

fn errno() -> i64 {
    -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

/// True when this process may create maps of the kernel.
fn kernel_answers() -> bool {
    match Kernel::create(&shape(MapType::ARRAY, 4, 4, 1, 0)) {
        Ok(_) => true,
        Err(errno) => {
            println!("skipped: the kernel does not let this process create maps (errno {})", -errno);
            false
        }
    }
}

#[derive(Clone, Debug)]
struct Call {
    command: i64,
    key: u16,
    fill: u8,
    flags: u64,
}

fn call() -> impl Strategy<Value = Call> {
    let command = prop_oneof![
        4 => Just(LOOKUP), 8 => Just(UPDATE), 4 => Just(DELETE), 1 => Just(NEXT_KEY), 2 => Just(LOOKUP_AND_DELETE),
    ];
    let flags = prop_oneof![8 => Just(0u64), 2 => Just(1), 2 => Just(2), 1 => 3..9u64, 1 => Just(1 << 40)];
    (command, 0..24u16, any::<u8>(), flags).prop_map(|(command, key, fill, flags)| Call {
        command,
        key,
        fill,
        flags,
    })
}

fn key_bytes(number: u16, size: u32) -> Vec<u8> {
    let mut key = vec![0; size as usize];
    for (at, byte) in number.to_le_bytes().into_iter().enumerate().take(key.len()) {
        key[at] = byte;
    }
    key
}

/// Runs the calls on both and compares each result.
fn compare(shape: &MapShape, calls: &[Call]) {
    let kernel = Kernel::create(shape).expect("the kernel has this type");
    let ours = Map::new(*shape);
    let me = me();
    let len = user::value_len(&ours.handle).max(8) as usize;
    let is_array = matches!(shape.map_type, MapType::ARRAY | MapType::PERCPU_ARRAY);
    for call in calls {
        let key = key_bytes(call.key, shape.key_size);
        let flags = if call.command == DELETE || call.command == NEXT_KEY { 0 } else { call.flags };
        let (mut theirs_value, mut our_value) = (vec![call.fill; len], vec![call.fill; len]);
        if call.command == UPDATE && len > shape.value_size as usize {
            // The kernel copies the padding of per-CPU values; programs never see it.
            for value in [&mut theirs_value, &mut our_value] {
                clear_padding(value, shape.value_size);
            }
        }
        let theirs = kernel.call(call.command, Some(&key), theirs_value.as_mut_ptr(), flags);
        let (k, v, h) = (key.as_ptr(), our_value.as_mut_ptr(), &ours.handle);
        let got = unsafe {
            match call.command {
                LOOKUP => user::lookup(h, &me, k, v, flags),
                UPDATE => user::update(h, &me, k, v, flags),
                DELETE => user::delete(h, &me, k),
                LOOKUP_AND_DELETE => user::lookup_and_delete(h, &me, k, v, flags),
                _ => user::next_key(h, &me, k, v),
            }
        };
        // What follows a key that is there depends on the order, which is each implementation's own.
        let mut probe = vec![0; len];
        let ordered = is_array || kernel.call(LOOKUP, Some(&key), probe.as_mut_ptr(), 0) != 0;
        assert!(
            got == theirs || call.command == NEXT_KEY && !ordered,
            "{call:?} on {shape:?}: {got} not {theirs}"
        );
        if theirs == 0 && call.command != NEXT_KEY || is_array {
            assert_eq!(our_value, theirs_value, "{call:?} on {shape:?}");
        }
    }
    assert_eq!(contents(&ours), kernel_contents(&kernel, shape, len), "{shape:?}");
}

fn clear_padding(values: &mut [u8], size: u32) {
    let stride = (size as usize + 7) & !7;
    for value in values.chunks_mut(stride) {
        value.iter_mut().skip(size as usize).for_each(|b| *b = 0);
    }
}

fn contents(map: &Map) -> BTreeSet<(Vec<u8>, Vec<u8>)> {
    let me = me();
    map.keys(&me)
        .into_iter()
        .map(|key| {
            let mut value = vec![0; user::value_len(&map.handle).max(8) as usize];
            let found = unsafe { user::lookup(&map.handle, &me, key.as_ptr(), value.as_mut_ptr(), 0) };
            assert_eq!(found, 0);
            (key, value)
        })
        .collect()
}

fn kernel_contents(map: &Kernel, shape: &MapShape, len: usize) -> BTreeSet<(Vec<u8>, Vec<u8>)> {
    let mut all = BTreeSet::new();
    let mut last: Option<Vec<u8>> = None;
    loop {
        let mut next = vec![0; shape.key_size as usize];
        if map.call(NEXT_KEY, last.as_deref(), next.as_mut_ptr(), 0) != 0 {
            return all;
        }
        let mut value = vec![0; len];
        assert_eq!(map.call(LOOKUP, Some(&next), value.as_mut_ptr(), 0), 0);
        all.insert((next.clone(), value));
        last = Some(next);
    }
}

#[test]
fn system_calls_have_the_kernels_results() {
    if !kernel_answers() {
        return;
    }
    let mut shapes = Vec::new();
    for (key_size, value_size) in [(8, 8), (4, 4), (3, 5), (16, 24), (8, 1)] {
        for map_flags in [0, MapFlags::NO_PREALLOC] {
            shapes.push(shape(MapType::HASH, key_size, value_size, 12, map_flags));
            shapes.push(shape(MapType::PERCPU_HASH, key_size, value_size, 12, map_flags));
        }
        // Never full: which element an LRU map gives up is not specified.
        shapes.push(shape(MapType::LRU_HASH, key_size, value_size, 4096, 0));
        shapes.push(shape(MapType::LRU_PERCPU_HASH, key_size, value_size, 4096, 0));
        shapes.push(shape(MapType::ARRAY, 4, value_size, 12, 0));
        shapes.push(shape(MapType::PERCPU_ARRAY, 4, value_size, 12, 0));
    }
    shapes.push(shape(MapType::HASH, 8, 8, 12, MapFlags::RDONLY));
    shapes.push(shape(MapType::HASH, 8, 8, 12, MapFlags::WRONLY));
    shapes.push(shape(MapType::STACK_TRACE, 4, 64, 12, 0));
    let config = Config { cases: 12, failure_persistence: None, ..Config::default() };
    for shape in shapes {
        TestRunner::new(config.clone())
            .run(&proptest::collection::vec(call(), 1..150), |calls| {
                if shape.map_flags & MapFlags::WRONLY != 0 {
                    let calls: Vec<_> = calls.iter().filter(|c| c.command != NEXT_KEY).cloned().collect();
                    compare_results(&shape, &calls);
                } else {
                    compare(&shape, &calls);
                }
                Ok(())
            })
            .expect("as the kernel");
    }
}

/// [`compare`] for maps whose contents cannot be read.
fn compare_results(shape: &MapShape, calls: &[Call]) {
    let kernel = Kernel::create(shape).expect("the kernel has this type");
    let ours = Map::new(*shape);
    for call in calls {
        let key = key_bytes(call.key, shape.key_size);
        let mut value = [call.fill; 64];
        let theirs = kernel.call(
            call.command,
            Some(&key),
            value.as_mut_ptr(),
            if call.command == DELETE { 0 } else { call.flags },
        );
        let (k, v, h) = (key.as_ptr(), value.as_mut_ptr(), &ours.handle);
        let got = unsafe {
            match call.command {
                LOOKUP => user::lookup(h, &me(), k, v, call.flags),
                UPDATE => user::update(h, &me(), k, v, call.flags),
                DELETE => user::delete(h, &me(), k),
                _ => user::lookup_and_delete(h, &me(), k, v, call.flags),
            }
        };
        assert_eq!(got, theirs, "{call:?} on {shape:?}");
    }
}

/// Types whose elements only programs or descriptors can fill: what is left of the system calls.
#[test]
fn special_types_refuse_as_the_kernel_does() {
    if !kernel_answers() {
        return;
    }
    for (map_type, key_size, value_size, max) in [
        (MapType::PROG_ARRAY, 4, 4, 4),
        (MapType::PERF_EVENT_ARRAY, 4, 4, 4),
        (MapType::RINGBUF, 0, 0, 4096),
        (MapType::STACK_TRACE, 4, 80, 4),
    ] {
        let shape = shape(map_type, key_size, value_size, max, 0);
        let kernel = Kernel::create(&shape).expect("the kernel has this type");
        let ours = Map::new(shape);
        for index in [0u32, 3, 4, 1000] {
            let key = index.to_ne_bytes();
            let mut value = [0u8; 256];
            let (k, v, h) = (key.as_ptr(), value.as_mut_ptr(), &ours.handle);
            // The ring has no keys: the kernel refuses a key pointer before it asks the type.
            let given = (key_size != 0).then_some(&key[..]);
            let theirs = kernel.call(LOOKUP, given, v, 0);
            assert_eq!(unsafe { user::lookup(h, &me(), k, v, 0) }, theirs, "lookup {index} in {shape:?}");
            let theirs = kernel.call(DELETE, given, v, 0);
            assert_eq!(unsafe { user::delete(h, &me(), k) }, theirs, "delete {index} in {shape:?}");
            let theirs = kernel.call(LOOKUP_AND_DELETE, given, v, 0);
            let got = unsafe { user::lookup_and_delete(h, &me(), k, v, 0) };
            assert_eq!(got, theirs, "lookup and delete {index} in {shape:?}");
            let theirs = kernel.call(NEXT_KEY, given, v, 0);
            assert_eq!(unsafe { user::next_key(h, &me(), k, v) }, theirs, "next of {index} in {shape:?}");
        }
    }
}

#[test]
fn frozen_maps_refuse_as_the_kernel_does() {
    if !kernel_answers() {
        return;
    }
    let shape = shape(MapType::HASH, 4, 4, 4, 0);
    let kernel = Kernel::create(&shape).expect("the kernel has this type");
    let ours = Map::new(shape);
    for _ in 0..2 {
        assert_eq!(unsafe { user::freeze(&ours.handle) }, kernel.call(FREEZE, None, std::ptr::null_mut(), 0));
    }
    let calls = [LOOKUP, UPDATE, DELETE, LOOKUP_AND_DELETE].map(|command| Call {
        command,
        key: 1,
        fill: 1,
        flags: 0,
    });
    let (key, mut value) = ([0u8; 4], [0u8; 8]);
    for call in calls {
        let theirs = kernel.call(call.command, Some(&key), value.as_mut_ptr(), 0);
        let (k, v, h) = (key.as_ptr(), value.as_mut_ptr(), &ours.handle);
        let got = unsafe {
            match call.command {
                LOOKUP => user::lookup(h, &me(), k, v, 0),
                UPDATE => user::update(h, &me(), k, v, 0),
                DELETE => user::delete(h, &me(), k),
                _ => user::lookup_and_delete(h, &me(), k, v, 0),
            }
        };
        assert_eq!(got, theirs, "{call:?}");
    }
}

#[test]
fn creation_is_checked_as_the_kernel_does() {
    if !kernel_answers() {
        return;
    }
    let types = [
        MapType::HASH,
        MapType::ARRAY,
        MapType::PERCPU_HASH,
        MapType::PERCPU_ARRAY,
        MapType::LRU_HASH,
        MapType::LRU_PERCPU_HASH,
        MapType::RINGBUF,
        MapType::PERF_EVENT_ARRAY,
        MapType::PROG_ARRAY,
        MapType::STACK_TRACE,
    ];
    let mut checked = 0;
    for map_type in types {
        for key_size in [0, 1, 4, 8, 512, 513] {
            for value_size in [0, 1, 4, 8, 12, 127 * 8, 128 * 8, 32768, 32769, 4 << 20] {
                for max_entries in [0, 1, 3, 4096, 12288] {
                    if u64::from(value_size) * u64::from(max_entries) > 64 << 20 {
                        continue;
                    }
                    let shape = shape(map_type, key_size, value_size, max_entries, 0);
                    check_creation(shape);
                    checked += 1;
                }
            }
        }
        for flags in 0..1u32 << 13 {
            // Every single flag, and every pair.
            if flags.count_ones() <= 2 {
                let (key_size, value_size, max_entries) = match map_type {
                    MapType::RINGBUF => (0, 0, 4096),
                    MapType::STACK_TRACE => (4, 16, 4),
                    _ => (4, 4, 4),
                };
                check_creation(shape(map_type, key_size, value_size, max_entries, flags));
                checked += 1;
            }
        }
    }
    println!("{checked} shapes");
}

fn check_creation(shape: MapShape) {
    let ours = beeline_maps::layout::layout(&shape).map(|_| ());
    let theirs = Kernel::create(&shape).map(|_| ());
    if theirs == Err(-12) && ours.is_ok() {
        return; // The kernel has no memory for it; ours would be asked of tmpfs.
    }
    assert_eq!(ours, theirs, "{shape:?}");
}

/// Loads a program that returns `bpf_get_stackid(ctx, map, BPF_F_USER_STACK)`, and runs it here.
fn kernel_stack_id(map: &Kernel) -> Result<u32, i64> {
    const RAW_TRACEPOINT: u32 = 17;
    let insn = |code: u64, regs: u64, imm: u64| code | regs << 8 | imm << 32;
    let program = [
        insn(0x18, 0x12, map.0 as u64), // r2 = map
        0,
        insn(0xb7, 0x03, 1 << 8), // r3 = BPF_F_USER_STACK
        insn(0x85, 0, 27),        // call bpf_get_stackid
        insn(0x95, 0, 0),         // exit
    ];
    let mut attr = [0u64; 16];
    attr[0] = u64::from(RAW_TRACEPOINT) | (program.len() as u64) << 32;
    attr[1] = program.as_ptr() as u64;
    attr[2] = c"GPL".as_ptr() as u64;
    let program = unsafe { libc::syscall(libc::SYS_bpf, 5, attr.as_ptr(), 128) };
    if program < 0 {
        return Err(errno());
    }
    let mut run = [0u64; 10];
    run[0] = program as u64;
    let result = unsafe { libc::syscall(libc::SYS_bpf, 10, run.as_mut_ptr(), 80) };
    let failed = errno();
    unsafe { libc::close(program as i32) };
    if result < 0 { Err(failed) } else { Ok((run[0] >> 32) as u32) }
}

#[test]
fn stack_ids_are_the_kernels() {
    if !kernel_answers() {
        return;
    }
    for (depth, max) in [(127, 1 << 14), (2, 1 << 10), (5, 1000)] {
        let shape = shape(MapType::STACK_TRACE, 4, depth * 8, max, 0);
        let kernel = Kernel::create(&shape).expect("the kernel has this type");
        let id = match kernel_stack_id(&kernel) {
            Ok(id) if (id as i32) >= 0 => id,
            other => {
                println!("skipped: the kernel cannot run the program here ({other:?})");
                return;
            }
        };
        let mut stack = vec![0u64; depth as usize];
        assert_eq!(kernel.call(LOOKUP, Some(&id.to_ne_bytes()), stack.as_mut_ptr().cast(), 0), 0);
        let frames = stack.iter().take_while(|address| **address != 0).count() as u32;
        let ours = Map::new(shape);
        let flags = beeline_maps::stack_trace::USER_STACK;
        let got =
            unsafe { beeline_maps::stack_trace::store(&ours.handle, &me(), stack.as_ptr(), frames, flags) };
        assert_eq!(got, i64::from(id), "{frames} frames");
        let mut kept = vec![1u64; depth as usize];
        let read = unsafe {
            user::lookup(&ours.handle, &me(), id.to_ne_bytes().as_ptr(), kept.as_mut_ptr().cast(), 0)
        };
        assert_eq!((read, kept), (0, stack));
    }
}
