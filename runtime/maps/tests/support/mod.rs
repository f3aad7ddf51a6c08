//! A map in shared anonymous memory, as the store and the processes of a store have it in a file.
#![allow(
    dead_code,
    clippy::undocumented_unsafe_blocks,
    reason = "a part is used by each test; handles are those of live maps"
)]

use beeline_maps::create::Identity;
use beeline_maps::{Access, MapHandle, MapShape, create, handle, layout, ops};
use std::sync::atomic::{AtomicU64, Ordering};

/// A mapped map. Children made by `fork` share it.
pub(crate) struct Map {
    pub(crate) handle: MapHandle,
    pub(crate) len: usize,
}

// The memory is accessed through the map operations only.
unsafe impl Sync for Map {}
unsafe impl Send for Map {}

pub(crate) fn shape(
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
) -> MapShape {
    MapShape { map_type, key_size, value_size, max_entries, map_flags, cpus: cpus() }
}

/// Possible CPUs of this machine, as the kernel's per-CPU maps count them.
pub(crate) fn cpus() -> u32 {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let last = text.trim().rsplit(['-', ',']).next().and_then(|n| n.parse::<u32>().ok());
    last.map_or(1, |n| n + 1)
}

impl Map {
    pub(crate) fn new(shape: MapShape) -> Map {
        Map::try_new(shape).expect("shape is valid")
    }

    pub(crate) fn try_new(shape: MapShape) -> Result<Map, i64> {
        let layout = layout::layout(&shape)?;
        let len = layout.mapped_len as usize;
        unsafe {
            let fd = libc::memfd_create(c"map".as_ptr(), 0);
            assert!(fd >= 0 && libc::ftruncate(fd, layout.file_len as i64) == 0);
            let base = map_file(fd, &layout);
            let identity = Identity {
                id: 7,
                name: b"test",
                seed: 0x1234_5678,
                btf_key_type_id: 0,
                btf_value_type_id: 0,
            };
            create::create(base, layout.file_len, &shape, &identity)?;
            libc::close(fd);
            let handle = handle::open(base, layout.file_len, len as u64, base as u64).expect("just made");
            Ok(Map { handle, len })
        }
    }

    /// The same empty hash, with all keys in one chain: what concerns neighbours in a chain happens all the time.
    pub(crate) fn in_one_chain(mut self) -> Map {
        self.handle.mask = 0;
        self
    }

    pub(crate) fn lookup(&self, access: &Access, key: &[u8]) -> Option<*mut u8> {
        assert_eq!(key.len(), self.handle.shape.key_size as usize);
        let value = unsafe { ops::lookup(&self.handle, access, key.as_ptr()) };
        (!value.is_null()).then_some(value)
    }

    pub(crate) fn value(&self, access: &Access, key: &[u8]) -> Option<Vec<u8>> {
        let len = self.handle.shape.value_size as usize;
        self.lookup(access, key).map(|at| unsafe { std::slice::from_raw_parts(at, len).to_vec() })
    }

    pub(crate) fn counter(&self, access: &Access, key: &[u8]) -> Option<&AtomicU64> {
        self.lookup(access, key).map(|at| unsafe { &*at.cast::<AtomicU64>() })
    }

    pub(crate) fn add(&self, access: &Access, key: &[u8], n: u64) -> bool {
        self.counter(access, key).map(|c| c.fetch_add(n, Ordering::Relaxed)).is_some()
    }

    pub(crate) fn update(&self, access: &Access, key: &[u8], value: &[u8], flags: u64) -> i64 {
        assert_eq!(key.len(), self.handle.shape.key_size as usize);
        assert_eq!(value.len(), self.handle.shape.value_size as usize);
        unsafe { ops::update(&self.handle, access, key.as_ptr(), value.as_ptr(), flags) }
    }

    pub(crate) fn delete(&self, access: &Access, key: &[u8]) -> i64 {
        assert_eq!(key.len(), self.handle.shape.key_size as usize);
        unsafe { ops::delete(&self.handle, access, key.as_ptr()) }
    }

    pub(crate) fn next_key(&self, access: &Access, key: Option<&[u8]>) -> Result<Vec<u8>, i64> {
        let mut out = vec![0; self.handle.shape.key_size as usize];
        let key = key.map_or(std::ptr::null(), <[u8]>::as_ptr);
        match unsafe { ops::next_key(&self.handle, access, key, out.as_mut_ptr()) } {
            0 => Ok(out),
            errno => Err(errno),
        }
    }

    /// All keys in the order of `next_key`.
    pub(crate) fn keys(&self, access: &Access) -> Vec<Vec<u8>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        while let Ok(key) = self.next_key(access, keys.last().map(Vec::as_slice)) {
            keys.push(key);
        }
        keys
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        unsafe { libc::munmap((self.handle.base as usize - GUARD) as *mut _, self.len + 2 * GUARD) };
    }
}

/// Pages without access before and behind a map: an access outside of it ends the test.
const GUARD: usize = 1 << 20;

/// Maps the file, and a ring's data once more behind it.
unsafe fn map_file(fd: i32, layout: &layout::Layout) -> *mut u8 {
    unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let len = layout.mapped_len as usize;
        let reserved = libc::mmap(
            std::ptr::null_mut(),
            len + 2 * GUARD,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        );
        assert_ne!(reserved, libc::MAP_FAILED);
        let reserved = reserved.add(GUARD);
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        let base = libc::mmap(reserved, layout.file_len as usize, protection, flags, fd, 0);
        assert_eq!(base, reserved);
        if layout.mapped_len > layout.file_len {
            let again = layout.mapped_len - layout.file_len;
            let at = base.add(layout.file_len as usize);
            let offset = (layout.file_len - again) as i64;
            assert_eq!(libc::mmap(at, again as usize, protection, flags, fd, offset), at);
        }
        base.cast()
    }
}

/// A sequence of numbers that is the same for the same seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// The calling thread without its start time: makes no allocation, for children of a process with threads.
pub(crate) fn me_after_fork() -> Access {
    Access { owner: u64::from(unsafe { libc::gettid() } as u32), cpu: 0, flags: 0 }
}

/// Rounds of a test that kills: `BEELINE_KILL_ROUNDS`, else `default`.
pub(crate) fn rounds(default: u64) -> u64 {
    std::env::var("BEELINE_KILL_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// The calling thread, on CPU 0.
pub(crate) fn me() -> Access {
    Access { owner: u64::from(unsafe { libc::gettid() } as u32) | own_start() << 32, cpu: 0, flags: 0 }
}

fn own_start() -> u64 {
    let tid = unsafe { libc::gettid() };
    let stat = std::fs::read_to_string(format!("/proc/{tid}/stat")).expect("own stat");
    let fields = stat.rsplit(')').next().expect("comm ends");
    fields.split_whitespace().nth(19).and_then(|f| f.parse::<u64>().ok()).expect("start time") & 0xffff_ffff
}
