//! Threads' own memory: cut from what the injector mapped for it, then from chunks that are mapped when needed.
//!
//! ```text
//! of each thread:   private stack (small-stack targets) | scratch | return stack
//! reserve:          ProcessBlock::reserve is the next free byte, up to reserve_end
//! chunk:            4 MiB, aligned to its size; ProcessBlock::pool is the next free byte, 0 modulo 4 MiB = used up
//! ```
//!
//! A process that forbids system calls has its reserve, and beyond that no return probes.
//!
//! Pages are committed when they are touched. There are no locks: a thread takes its piece by moving a word on.

use beeline_abi::PAGE_SIZE;
use beeline_abi::process::{ProcessBlock, REGIONS_MAX, Region};
use beeline_abi::thread::{RETURN_SLOTS, ReturnSlot, ThreadSlot};
use beeline_helpers::sys::{self, nr};
use beeline_helpers::task::SCRATCH_LEN;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

/// Bytes of a chunk.
const CHUNK_LEN: u64 = 4 << 20;

/// Bytes of a private stack: 33 tail calls with full frames, helpers, a signal frame or two.
pub const STACK_LEN: u64 = 64 << 10;

/// Bytes of a return stack. The entry behind the last one is for a return that began on another thread.
pub const RETURNS_LEN: u64 =
    ((RETURN_SLOTS + 1) * size_of::<ReturnSlot>() as u64).next_multiple_of(PAGE_SIZE);

/// Bytes of one thread's memory.
const fn thread_len(small_stacks: bool) -> u64 {
    (SCRATCH_LEN + RETURNS_LEN + if small_stacks { STACK_LEN } else { 0 }).next_multiple_of(32 << 10)
}

const _: () =
    assert!(CHUNK_LEN.is_multiple_of(thread_len(false)) && CHUNK_LEN.is_multiple_of(thread_len(true)));

/// Gives the slot its memory if it has none; true when it has.
///
/// # Safety
///
/// `slot` is the calling thread's, `block` its process's.
pub unsafe fn provide(slot: *mut ThreadSlot, block: *mut ProcessBlock) -> bool {
    // SAFETY: the caller's contract.
    unsafe {
        if (*slot).memory != 0 {
            return true;
        }
        let small = (*block).flags & ProcessBlock::FLAG_SMALL_STACKS != 0;
        let mut memory = cut_reserve(block, thread_len(small));
        if memory == 0 {
            memory = cut(block, thread_len(small));
        }
        if memory == 0 {
            return false;
        }
        let scratch = memory + if small { STACK_LEN } else { 0 };
        let returns = scratch + SCRATCH_LEN;
        (*slot).stack_top = if small { scratch } else { 0 };
        (*slot).run.scratch = scratch;
        (*slot).returns_base = returns;
        (*slot).returns_top = returns;
        (*slot).returns_end = returns + RETURN_SLOTS * size_of::<ReturnSlot>() as u64;
        (*slot).memory = memory;
        true
    }
}

/// Takes `len` bytes of the reserve; their address, 0 when it is used up.
unsafe fn cut_reserve(block: *mut ProcessBlock, len: u64) -> u64 {
    // SAFETY: the caller's block.
    unsafe {
        let end = (*block).reserve_end;
        let step = |next: u64| next.checked_add(len).filter(|&behind| next != 0 && behind <= end);
        (*block).reserve.fetch_update(AcqRel, Acquire, step).unwrap_or(0)
    }
}

/// Takes `len` bytes of a chunk; their address, 0 when there is no memory.
unsafe fn cut(block: *mut ProcessBlock, len: u64) -> u64 {
    /// Another thread got in between: seldom even twice.
    const TRIES: u32 = 64;
    for _ in 0..TRIES {
        // SAFETY: the caller's block.
        let pool = unsafe { &(*block).pool };
        let next = pool.load(Acquire);
        if !next.is_multiple_of(CHUNK_LEN) {
            if pool.compare_exchange(next, next + len, AcqRel, Relaxed).is_ok() {
                return next;
            }
            continue;
        }
        // SAFETY: as above.
        unsafe {
            if region_count(block).load(Relaxed) as usize >= REGIONS_MAX {
                return 0;
            }
            let chunk = map_chunk();
            if chunk == 0 {
                return 0;
            }
            if pool.compare_exchange(next, chunk + len, AcqRel, Relaxed).is_ok() {
                record(block, Region { start: chunk, len: CHUNK_LEN });
                return chunk;
            }
            sys::call2(nr::MUNMAP, chunk, CHUNK_LEN);
        }
    }
    0
}

/// Maps a chunk aligned to its size; 0 when that fails.
fn map_chunk() -> u64 {
    const READ_WRITE: u64 = 3;
    const PRIVATE_ANONYMOUS_NORESERVE: u64 = 0x4022;
    const MADV_NOHUGEPAGE: u64 = 15;
    // SAFETY: a new mapping, trimmed to its aligned part.
    unsafe {
        let got =
            sys::call6(nr::MMAP, 0, 2 * CHUNK_LEN, READ_WRITE, PRIVATE_ANONYMOUS_NORESERVE, u64::MAX, 0);
        if got <= 0 {
            return 0;
        }
        let got = got as u64;
        let start = got.next_multiple_of(CHUNK_LEN);
        let before = start - got;
        if before != 0 {
            sys::call2(nr::MUNMAP, got, before);
        }
        sys::call2(nr::MUNMAP, start + CHUNK_LEN, CHUNK_LEN - before);
        // Touching one thread's part must not commit two megabytes; without the option that is no error.
        sys::call4(nr::MADVISE, start, CHUNK_LEN, MADV_NOHUGEPAGE, 0);
        start
    }
}

unsafe fn region_count<'a>(block: *mut ProcessBlock) -> &'a AtomicU32 {
    // SAFETY: aligned; while threads run, only they change it, all through this atomic.
    unsafe { AtomicU32::from_ptr(&raw mut (*block).region_count) }
}

/// Enters a mapping in the block's list, from which detach unmaps. When the list is full it stays mapped.
unsafe fn record(block: *mut ProcessBlock, region: Region) {
    // SAFETY: the caller's block; every index is taken by one thread.
    unsafe {
        let count = region_count(block);
        let index = count.fetch_add(1, AcqRel) as usize;
        if index < REGIONS_MAX {
            (&raw mut (*block).regions).cast::<Region>().add(index).write(region);
        } else {
            count.fetch_sub(1, AcqRel);
        }
    }
}
