//! Helpers on real maps, called as compiled code calls them.

use beeline_abi::errno::{EAGAIN, EFAULT, EINVAL, EOPNOTSUPP};
use beeline_abi::map::{MapHandle, MapShape, MapType};
use beeline_abi::regs::PtRegs;
use beeline_abi::run::RunContext;
use beeline_helpers::by_id;
use beeline_maps::create::{self, Identity};
use beeline_maps::perf_event_array::{self, Event};
use beeline_maps::ringbuf::{self, Read};
use beeline_maps::{handle, layout, stack_trace};

const USER_STACK: u64 = 1 << 8;

/// A map in memory of this process.
struct Map {
    handle: MapHandle,
}

impl Map {
    fn new(map_type: u32, key_size: u32, value_size: u32, max_entries: u32) -> Map {
        let shape = MapShape { map_type, key_size, value_size, max_entries, map_flags: 0, cpus: 4 };
        let layout = layout::layout(&shape).expect("a valid shape");
        // SAFETY: new mappings; the second one of a ring buffer lies in the reserved room behind the first.
        unsafe {
            let fd = libc::memfd_create(c"map".as_ptr(), libc::MFD_CLOEXEC);
            assert_eq!(libc::ftruncate(fd, layout.file_len as i64), 0);
            let (len, file_len) = (layout.mapped_len as usize, layout.file_len as usize);
            let rights = libc::PROT_READ | libc::PROT_WRITE;
            let base =
                libc::mmap(std::ptr::null_mut(), len, rights, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
            let map = |at: *mut libc::c_void, len: usize, offset: usize| {
                let flags = libc::MAP_SHARED | libc::MAP_FIXED;
                assert_eq!(libc::mmap(at, len, rights, flags, fd, offset as i64), at);
            };
            map(base, file_len, 0);
            if len > file_len {
                map(base.add(file_len), len - file_len, 2 * file_len - len);
            }
            libc::close(fd);
            let identity =
                Identity { id: 1, name: b"map", seed: 7, btf_key_type_id: 0, btf_value_type_id: 0 };
            create::create(base.cast(), layout.file_len, &shape, &identity).expect("created");
            let handle = handle::open(base.cast(), layout.file_len, layout.mapped_len, base as u64);
            Map { handle: handle.expect("just made") }
        }
    }

    fn at(&self) -> u64 {
        &raw const self.handle as u64
    }
}

fn run_on_cpu(cpu: u32) -> RunContext {
    let mut run = RunContext::default();
    run.access.cpu = cpu;
    run
}

/// Calls helper `id`; r0 as a signed number.
fn call(run: &mut RunContext, id: u32, arguments: &[u64]) -> i64 {
    let mut all = [0u64; 5];
    all[..arguments.len()].copy_from_slice(arguments);
    let [a, b, c, d, e] = all;
    // SAFETY: the tests pass what the helpers' prototypes say.
    unsafe { (by_id(id).expect("a helper").call)(a, b, c, d, e, run) as i64 }
}

fn address<T: ?Sized>(value: &T) -> u64 {
    (&raw const *value).cast::<u8>() as u64
}

#[test]
fn a_hash() {
    let map = Map::new(MapType::HASH, 4, 8, 8);
    let mut run = RunContext::default();
    let (key, value) = (5u32, 42u64);
    assert_eq!(call(&mut run, 1, &[map.at(), address(&key)]), 0);
    assert_eq!(call(&mut run, 2, &[map.at(), address(&key), address(&value), 0]), 0);
    assert_eq!(run.access.owner as u32, beeline_helpers::sys::thread_id(), "who updates says who it is");
    let found = call(&mut run, 1, &[map.at(), address(&key)]) as *const u64;
    // SAFETY: the value's address.
    assert_eq!(unsafe { *found }, 42);
    assert_eq!(call(&mut run, 3, &[map.at(), address(&key)]), 0);
    assert_eq!(call(&mut run, 3, &[map.at(), address(&key)]), -beeline_abi::errno::ENOENT);
}

#[test]
fn a_per_cpu_array() {
    let map = Map::new(MapType::PERCPU_ARRAY, 4, 8, 2);
    let key = 1u32;
    let values = [0, 1, 2, 3].map(|cpu| call(&mut run_on_cpu(cpu), 1, &[map.at(), address(&key)]));
    assert!(values.windows(2).all(|pair| pair[0] != pair[1] && pair[0] != 0));
    for (cpu, &value) in values.iter().enumerate() {
        assert_eq!(call(&mut run_on_cpu(0), 195, &[map.at(), address(&key), cpu as u64]), value);
    }
    assert_eq!(call(&mut run_on_cpu(0), 195, &[map.at(), address(&key), 4]), 0);
}

unsafe extern "sysv64" fn sum(
    map: u64,
    key: u64,
    value: u64,
    context: u64,
    _: u64,
    _: *mut RunContext,
) -> u64 {
    // SAFETY: the helper passes addresses of a key and a value, the test that of the sums.
    unsafe {
        let sums = &mut *(context as *mut [u64; 3]);
        sums[0] = map;
        sums[1] += u64::from(*(key as *const u32));
        sums[2] += *(value as *const u64);
        u64::from(sums[1] >= 6)
    }
}

#[test]
fn iteration() {
    let map = Map::new(MapType::ARRAY, 4, 8, 5);
    let mut run = RunContext::default();
    for key in 0..5u32 {
        let value = u64::from(key) * 10;
        assert_eq!(call(&mut run, 2, &[map.at(), address(&key), address(&value), 0]), 0);
    }
    let mut sums = [0u64; 3];
    let context = (&raw mut sums) as u64;
    let callback = sum as *const () as u64;
    assert_eq!(call(&mut run, 164, &[map.at(), callback, context, 0]), 4, "the callback ended it");
    assert_eq!(sums, [map.at(), 6, 60]);
    assert_eq!(call(&mut run, 164, &[map.at(), callback, context, 1]), -EINVAL);
    let ring = Map::new(MapType::RINGBUF, 0, 0, 4096);
    assert_eq!(call(&mut run, 164, &[ring.at(), callback, context, 0]), -EOPNOTSUPP);
}

#[test]
fn ring_buffers() {
    let (first, second) = (Map::new(MapType::RINGBUF, 0, 0, 4096), Map::new(MapType::RINGBUF, 0, 0, 4096));
    let mut run = RunContext::default();
    let read = |map: &Map| {
        let mut buffer = [0u8; 64];
        // SAFETY: the map lives.
        let read = unsafe { ringbuf::read(&map.handle, &Default::default(), &mut buffer) };
        if let Read::Record(len) = read { Some(buffer[..len].to_vec()) } else { None }
    };
    // Two reservations at once, in two rings, committed the other way round.
    let records = [&first, &second].map(|map| call(&mut run, 131, &[map.at(), 8, 0]));
    for (n, &record) in records.iter().enumerate() {
        assert_ne!(record, 0);
        // SAFETY: a record of eight bytes.
        unsafe { *(record as *mut u64) = n as u64 + 1 };
    }
    assert!(read(&first).is_none() && read(&second).is_none(), "busy");
    call(&mut run, 132, &[records[1] as u64, 0]);
    call(&mut run, 133, &[records[0] as u64, 0]);
    assert_eq!(read(&second), Some(2u64.to_le_bytes().into()));
    assert_eq!(read(&first), None, "discarded");
    assert_eq!(call(&mut run, 130, &[first.at(), address(b"hello"), 5, 0]), 0);
    assert_eq!(call(&mut run, 134, &[first.at(), 0]), 16);
    assert_eq!(read(&first), Some(b"hello".into()));
    assert_eq!(call(&mut run, 134, &[first.at(), 1]), 4096);
    assert_eq!(call(&mut run, 130, &[first.at(), address(&[0u8; 4096]), 4096, 0]), -EAGAIN);
    assert_eq!(call(&mut run, 130, &[first.at(), address(b"x"), 1, 4]), -EINVAL);
    assert_eq!(call(&mut run, 131, &[first.at(), 4096, 0]), 0);
    assert_eq!(call(&mut run, 131, &[first.at(), 8, 1]), 0);
}

#[test]
fn perf_events() {
    const CURRENT_CPU: u64 = 0xffff_ffff;
    let map = Map::new(MapType::PERF_EVENT_ARRAY, 4, 4, 4);
    let data = *b"an event";
    assert_eq!(call(&mut run_on_cpu(2), 25, &[0, map.at(), CURRENT_CPU, address(&data), 8]), 0);
    assert_eq!(call(&mut run_on_cpu(2), 25, &[0, map.at(), 3, address(&data), 8]), -EOPNOTSUPP);
    assert_eq!(call(&mut run_on_cpu(2), 25, &[0, map.at(), 1 << 32, address(&data), 8]), -EINVAL);
    let mut buffer = [0u8; 64];
    // SAFETY: the map lives.
    let event = unsafe { perf_event_array::read(&map.handle, 2, &mut buffer) };
    assert_eq!((event, &buffer[..8]), (Event::Record(8), &data[..]));
}

#[test]
fn stack_ids() {
    let map = Map::new(MapType::STACK_TRACE, 4, 8 * 8, 16);
    let mut frames = [0u64, 0x1001, 0, 0x1002];
    let base = frames.as_mut_ptr();
    // SAFETY: the first word is the frame pointer of the second frame.
    unsafe { base.write_volatile(base as u64 + 16) };
    let regs = PtRegs { ip: 0x1000, bp: base as u64, ..PtRegs::default() };
    let mut run = RunContext { regs: address(&regs), ..RunContext::default() };
    let id = call(&mut run, 27, &[address(&regs), map.at(), USER_STACK]);
    assert!((0..16).contains(&id), "{id}");
    assert_eq!(call(&mut run, 27, &[address(&regs), map.at(), USER_STACK]), id, "the same stack");
    let mut stack = [7u64; 8];
    // SAFETY: the map lives; the value has 64 bytes.
    assert_eq!(unsafe { stack_trace::read(&map.handle, id as u32, stack.as_mut_ptr().cast()) }, 0);
    assert_eq!(stack, [0x1000, 0x1001, 0x1002, 0, 0, 0, 0, 0]);
    assert_eq!(call(&mut run, 27, &[address(&regs), map.at(), USER_STACK | 3]), -EFAULT, "all skipped");
    assert_eq!(call(&mut run, 27, &[address(&regs), map.at(), 0]), -EFAULT, "there is no kernel stack");
    assert_eq!(call(&mut run, 27, &[address(&regs), map.at(), 1 << 11]), -EINVAL);
}
