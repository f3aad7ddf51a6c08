//! A process block with everything it refers to, in this test's own process.
#![allow(dead_code, reason = "not every test file uses all of it")]

use beeline_abi::process::{CpuSlot, ForkPage, PROCESS_MAGIC, ProcessBlock};
use beeline_abi::thread::{THREAD_SLOTS, ThreadSlot};
use std::arch::asm;

/// CPUs that the world has room for.
pub(crate) const CPUS: usize = 1024;

/// A block, a thread table, CPU slots, a fork page.
pub(crate) struct World {
    pub(crate) block: Box<ProcessBlock>,
    pub(crate) threads: Box<[ThreadSlot]>,
    pub(crate) cpus: Box<[CpuSlot]>,
    fork_page: *mut ForkPage,
}

// SAFETY: the tests touch its parts as threads of a target would.
unsafe impl Sync for World {}

impl World {
    /// A world as the injector makes it, `beeline_init` called.
    pub(crate) fn new() -> World {
        // SAFETY: all fields of these may be zero; the page is a new mapping.
        let (block, threads, cpus, page) = unsafe {
            (
                Box::new(core::mem::zeroed::<ProcessBlock>()),
                (0..THREAD_SLOTS).map(|_| core::mem::zeroed()).collect::<Box<[ThreadSlot]>>(),
                (0..CPUS).map(|_| core::mem::zeroed()).collect::<Box<[CpuSlot]>>(),
                libc::mmap(
                    std::ptr::null_mut(),
                    4096,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                ),
            )
        };
        let mut world = World { block, threads, cpus, fork_page: page.cast() };
        world.block.magic = PROCESS_MAGIC;
        world.block.version = beeline_abi::ABI_VERSION;
        world.block.cpus = CPUS as u32;
        world.block.cpu_slots = world.cpus.as_ptr() as u64;
        world.block.threads = world.threads.as_ptr() as u64;
        world.block.fork_page = page as u64;
        world.block.tid_offset = tid_offset();
        if let Some(offset) = libc_rseq() {
            world.block.flags |= ProcessBlock::FLAG_RSEQ;
            world.block.rseq_offset = offset;
        }
        // SAFETY: the block is complete.
        assert_eq!(unsafe { beeline_agent_core::process::init(world.block_at()) }, 0);
        world
    }

    /// The block as the agent gets it.
    pub(crate) fn block_at(&self) -> *mut ProcessBlock {
        (&raw const *self.block).cast_mut()
    }

    /// The calling thread's slot.
    pub(crate) fn slot(&self) -> *mut ThreadSlot {
        let here = 0u64;
        // SAFETY: the key is this thread's.
        let slot =
            unsafe { beeline_agent_core::slot::claim(fs_base(), self.block_at(), &raw const here as u64) };
        assert!(!slot.is_null());
        slot
    }
}

impl World {
    /// A slot that is not the calling thread's.
    pub(crate) fn slot_of_another(&self) -> *mut ThreadSlot {
        // SAFETY: the key is nobody's.
        let slot = unsafe { beeline_agent_core::slot::claim(0x1000, self.block_at(), 0) };
        assert!(!slot.is_null());
        slot
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, or cut by the agent and recorded; nobody uses them any more.
        unsafe {
            libc::munmap(self.fork_page.cast(), 4096);
            for region in &self.block.regions[..self.block.region_count as usize] {
                libc::munmap(region.start as *mut _, region.len as usize);
            }
        }
    }
}

/// The calling thread's fs base.
pub(crate) fn fs_base() -> u64 {
    let base: u64;
    // SAFETY: the control block begins with its own address (glibc, musl).
    unsafe { asm!("mov {}, fs:[0]", out(reg) base, options(nostack, readonly, preserves_flags)) };
    base
}

/// Offset of the thread id in the control block: the one word that holds it in two threads.
pub(crate) fn tid_offset() -> u32 {
    let candidates = || -> Vec<u32> {
        let tid = beeline_helpers::sys::thread_id();
        let base = fs_base();
        // SAFETY: glibc's and musl's control blocks are longer than this.
        (0x10..0x400)
            .step_by(4)
            .filter(|&offset| unsafe { *((base + u64::from(offset)) as *const u32) } == tid)
            .collect()
    };
    let elsewhere = std::thread::spawn(candidates).join().unwrap();
    candidates().into_iter().find(|offset| elsewhere.contains(offset)).unwrap_or(0)
}

/// fs-relative offset of the libc's `struct rseq`, when it registers one.
pub(crate) fn libc_rseq() -> Option<i64> {
    // SAFETY: glibc 2.35 and later define both as constants.
    unsafe {
        let offset = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()) as *const isize;
        let size = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr()) as *const u32;
        (!offset.is_null() && !size.is_null() && *size != 0).then(|| *offset as i64)
    }
}
