//! What is done once for a process, and the count of missed hits.
//!
//! A missed hit of the agent's own programs that look for seccomp filters closes the gate of system calls, unless the call is known to be
//! another.

use crate::seccomp;
use beeline_abi::PAGE_SIZE;
use beeline_abi::errno::EINVAL;
use beeline_abi::link::{LinkRuntime, LinkShared};
use beeline_abi::process::{ForkPage, PROCESS_MAGIC, ProcessBlock};
use beeline_helpers::identity;
use beeline_helpers::sys::{self, nr};
use core::ptr::null_mut;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU64};

/// The block of this process, for the one function that is called without any of its parts.
static BLOCK: AtomicPtr<ProcessBlock> = AtomicPtr::new(null_mut());

/// The block that [`init`] was called with last; null before.
pub(crate) fn block() -> *mut ProcessBlock {
    BLOCK.load(Acquire)
}

/// Prepares the process; called by the injector after mapping and after each attach, and harmless when repeated.
///
/// The fork page becomes one that a fork's child finds zeroed. Where the kernel cannot do that (before 4.14), ids are not
/// cached at all.
///
/// 0, or `-EINVAL` when `block` is not a block.
///
/// # Safety
///
/// `block` points to the process's block, and no other thread runs.
pub unsafe extern "sysv64" fn init(block: *mut ProcessBlock) -> i64 {
    const MADV_WIPEONFORK: u64 = 18;
    // SAFETY: the caller's contract.
    unsafe {
        if block.is_null() || (*block).magic != PROCESS_MAGIC || (*block).version != beeline_abi::ABI_VERSION
        {
            return -EINVAL;
        }
        let page = (*block).fork_page;
        if page != 0 && sys::call4(nr::MADVISE, page, PAGE_SIZE, MADV_WIPEONFORK, 0) != 0 {
            (*block).fork_page = 0;
        }
        if let Some(page) = ((*block).fork_page as *const ForkPage).as_ref() {
            identity::own(page);
        }
        BLOCK.store(block, Release);
    }
    0
}

/// Counts a missed hit on each of `count` links. `first` and `second` are the arguments with which a function was entered, where
/// the links stand at its entry.
///
/// # Safety
///
/// `links` points to so many [`LinkRuntime`]s in writable memory, each of which refers to its mapped page.
pub unsafe extern "sysv64" fn missed(links: *const LinkRuntime, count: u64, first: u64, second: u64) {
    let mut i = 0u64;
    while i < count {
        // SAFETY: the caller's contract.
        unsafe {
            let link = links.add(i as usize);
            let flags = (*link).flags;
            if (*link).link_id == LinkRuntime::OWN
                && flags & LinkRuntime::SEES_SECCOMP != 0
                && !(flags & LinkRuntime::SEES_NUMBER != 0 && seccomp::is_harmless(first, second))
            {
                // Whatever is being installed was not seen.
                seccomp::not_seen(block());
            }
            count_miss(link);
        }
        i += 1;
    }
}

/// Counts a missed hit on one link.
///
/// # Safety
///
/// As for [`missed`].
pub(crate) unsafe fn count_miss(link: *const LinkRuntime) {
    // SAFETY: the caller's contract.
    unsafe {
        AtomicU64::from_ptr((&raw const (*link).missed).cast_mut()).fetch_add(1, Relaxed);
        let shared = (*link).shared as *const LinkShared;
        if let Some(shared) = shared.as_ref() {
            shared.missed.fetch_add(1, Relaxed);
        }
    }
}
