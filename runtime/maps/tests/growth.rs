//! A map that grows on a full tmpfs says so; it does not raise SIGBUS.
//!
//! Needs root, for a mount in a mount namespace of its own; says so and passes without.
#![expect(clippy::undocumented_unsafe_blocks, reason = "the handles are those of live maps")]

mod support;

use beeline_abi::errno::ENOMEM;
use beeline_abi::map::{Access, MapFlags, MapShape, MapType};
use beeline_maps::create::Identity;
use beeline_maps::{create, handle, layout, ops, stack_trace};
use support::{me, shape};

/// Exit statuses of the child that mounts.
const CANNOT_MOUNT: i32 = 99;

/// Runs `body` in a child that has an empty tmpfs of 1 MiB as its working directory.
fn on_small_tmpfs(body: impl Fn()) {
    let child = unsafe { libc::fork() };
    if child == 0 {
        unsafe {
            let mounted = libc::unshare(libc::CLONE_NEWNS) == 0
                && libc::mount(
                    c"none".as_ptr(),
                    c"/".as_ptr(),
                    std::ptr::null(),
                    libc::MS_REC | libc::MS_PRIVATE,
                    std::ptr::null(),
                ) == 0
                && libc::mount(
                    c"none".as_ptr(),
                    c"/mnt".as_ptr(),
                    c"tmpfs".as_ptr(),
                    0,
                    c"size=1m".as_ptr().cast(),
                ) == 0
                && libc::chdir(c"/mnt".as_ptr()) == 0;
            if !mounted {
                libc::_exit(CANNOT_MOUNT);
            }
            body();
            libc::_exit(0);
        }
    }
    let mut status = 0;
    unsafe { libc::waitpid(child, &mut status, 0) };
    if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == CANNOT_MOUNT {
        println!("skipped: this process may not mount a tmpfs");
        return;
    }
    assert_eq!(status, 0, "the child was killed by signal {} or exited with {}", status & 127, status >> 8);
}

/// A check in the child: its panic would unwind into the test harness.
fn require(condition: bool, status: i32) {
    if !condition {
        unsafe { libc::_exit(status) };
    }
}

/// A sparse map in the working directory, with memory for what its layout reserves only.
unsafe fn sparse_map(shape: &MapShape) -> beeline_maps::MapHandle {
    unsafe {
        let Ok(layout) = layout::layout(shape) else { libc::_exit(10) };
        require(!layout.preallocate && layout.file_len > 4 << 20 && layout.reserved_len < 1 << 20, 11);
        let fd = libc::open(c"map".as_ptr(), libc::O_RDWR | libc::O_CREAT, 0o600);
        require(fd >= 0 && libc::ftruncate(fd, layout.file_len as i64) == 0, 12);
        require(libc::fallocate(fd, 0, 0, layout.reserved_len as i64) == 0, 13);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let base =
            libc::mmap(std::ptr::null_mut(), layout.file_len as usize, protection, libc::MAP_SHARED, fd, 0);
        require(base != libc::MAP_FAILED, 14);
        let identity = Identity { id: 1, name: b"m", seed: 1, btf_key_type_id: 0, btf_value_type_id: 0 };
        require(create::create(base.cast(), layout.file_len, shape, &identity).is_ok(), 15);
        let Ok(map) = handle::open(base.cast(), layout.file_len, layout.file_len, base as u64) else {
            libc::_exit(16)
        };
        map
    }
}

#[test]
fn a_hash_grows_until_tmpfs_is_full() {
    on_small_tmpfs(|| unsafe {
        let map = sparse_map(&shape(MapType::HASH, 8, 1000, 20_000, MapFlags::NO_PREALLOC));
        let me = me();
        let value = [7u8; 1000];
        let insert = |n: u64| ops::update(&map, &me, (&raw const n).cast(), value.as_ptr(), 0);
        let mut inserted = 0u64;
        let errno = loop {
            match insert(inserted) {
                0 => inserted += 1,
                errno => break errno,
            }
        };
        require(errno == -ENOMEM && inserted > 300 && inserted < 1100, 20);
        // What is there stays, and a freed element can be had again.
        for n in 0..inserted {
            let found = ops::lookup(&map, &me, (&raw const n).cast());
            require(!found.is_null() && *found.add(999) == 7, 21);
        }
        let first = 0u64;
        require(ops::delete(&map, &me, (&raw const first).cast()) == 0, 22);
        require(insert(1 << 40) == 0, 23);
        require(insert(1 << 41) == -ENOMEM, 24);
    });
}

#[test]
fn stack_traces_grow_until_tmpfs_is_full() {
    on_small_tmpfs(|| unsafe {
        let map = sparse_map(&shape(MapType::STACK_TRACE, 4, 127 * 8, 16_384, 0));
        let me = me();
        let store = |n: u64| stack_trace::store(&map, &me, [n; 100].as_ptr(), 100, stack_trace::REUSE);
        let refused = (0..4000).map(store).filter(|id| *id < 0);
        let mut count = 0;
        for errno in refused {
            require(errno == -ENOMEM, 30);
            count += 1;
        }
        require(count > 0, 31);
    });
}

#[test]
fn a_caller_without_system_calls_gets_no_fresh_memory() {
    let map = support::Map::new(shape(MapType::HASH, 8, 8, 100, MapFlags::NO_PREALLOC));
    let strict = Access { flags: Access::NO_SYSTEM_CALLS, ..me() };
    assert_eq!(map.update(&strict, &[1; 8], &[1; 8], 0), -ENOMEM);
    assert_eq!(map.update(&me(), &[1; 8], &[1; 8], 0), 0);
    assert_eq!(map.update(&strict, &[2; 8], &[1; 8], 0), 0);
}
