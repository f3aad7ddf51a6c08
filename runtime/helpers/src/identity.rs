//! Who runs: thread and process ids, owner word, user, name.
//!
//! Ids are cached in the [`RunContext`], which lies in a slot found by the thread's fs base. Two things make the cache
//! stale: a fork, whose child finds the [`ForkPage`] zeroed; and a new thread that got the fs base of one that is gone,
//! which shows in the thread id that libc keeps in the thread control block (`ProcessBlock::tid_offset`). Where the
//! latter is unknown, every look at an id is a system call. Where it is known, none is made but once in each process; and
//! once in each thread when its owner word is asked for.
//!
//! *Differs*: ids are those of the process's own pid namespace. A child of `vfork` shares its parent's memory, thread
//! control block included, and is taken for it until it executes, except where system calls are traced ([`enter_child`]).

use crate::sys::{self, nr};
use crate::{error, owner, process, time};
use beeline_abi::errno::{EINVAL, EPERM};
use beeline_abi::map::Access;
use beeline_abi::process::{ForkPage, ProcessBlock};
use beeline_abi::run::RunContext;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Ids of the calling thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ids {
    /// Thread id (the kernel's `pid`).
    pub tid: u32,
    /// Process id.
    pub tgid: u32,
}

/// The fork page of a process, when it has one.
fn fork_page(block: Option<&ProcessBlock>) -> Option<&ForkPage> {
    // SAFETY: the injector maps the page before any thread runs, for as long as the block lives.
    block.and_then(|block| unsafe { (block.fork_page as *const ForkPage).as_ref() })
}

/// The calling thread's id, from its control block where that is known to hold it, else from the kernel; 0 when it cannot be
/// known.
///
/// # Safety
///
/// `block` is that of the process.
pub unsafe fn thread_id(block: Option<&ProcessBlock>) -> u32 {
    match block.filter(|block| block.tid_offset != 0) {
        Some(known) => {
            let trusted = fork_page(block)
                .is_some_and(|page| page.epoch.load(Acquire) != 0 && page.ids_unknown.load(Relaxed) == 0);
            let asked = if trusted { 0 } else { sys::thread_id() };
            // SAFETY: a non-zero `tid_offset` was proven to lie in the thread control block.
            if asked == 0 { unsafe { sys::fs_u32(i64::from(known.tid_offset)) } } else { asked }
        }
        None => sys::thread_id(),
    }
}

/// True when what `run` caches is of this very thread in this very process.
///
/// # Safety
///
/// `run` is valid and used by the calling thread alone.
#[inline]
pub unsafe fn is_known(run: *const RunContext) -> bool {
    // SAFETY: the caller's contract; a non-zero `tid_offset` was proven to lie in the thread control block.
    unsafe {
        let Some(block) = process(run) else { return false };
        let Some(page) = (block.fork_page as *const ForkPage).as_ref() else { return false };
        let epoch = page.epoch.load(Relaxed);
        epoch != 0
            && (*run).ids_epoch == epoch
            && block.tid_offset != 0
            && sys::fs_u32(i64::from(block.tid_offset)) == (*run).tid
    }
}

/// The calling thread's ids.
///
/// # Safety
///
/// `run` is valid and used by the calling thread alone.
#[inline(never)]
pub unsafe fn ids(run: *mut RunContext) -> Ids {
    // SAFETY: the caller's contract.
    unsafe {
        let borrowed = (*run).borrowed_by;
        if borrowed != 0 && is_borrowed(run) {
            return Ids { tid: borrowed as u32, tgid: (borrowed >> 32) as u32 };
        }
        if !is_known(run) {
            refresh(run);
        }
        Ids { tid: (*run).tid, tgid: (*run).tgid }
    }
}

/// The child still runs on this thread's memory. Not so when the thread itself goes on, and that was not seen.
#[cold]
#[inline(never)]
unsafe fn is_borrowed(run: *mut RunContext) -> bool {
    let asked = sys::thread_id();
    // SAFETY: the contract of the caller above.
    unsafe {
        let still = asked == 0 || asked == (*run).borrowed_by as u32;
        if !still {
            (*run).borrowed_by = 0;
        }
        still
    }
}

/// The process notes on its empty page that the page is its own, and the memory with it.
pub fn own(page: &ForkPage) {
    if page.tgid.load(Relaxed) == 0 {
        page.tgid.store(sys::process_id(), Relaxed);
    }
}

/// The id of the calling process, where it is not the one whose memory this is: a child that has not executed yet shares it. Else 0.
///
/// # Safety
///
/// `run` is valid.
#[cold]
#[inline(never)]
pub unsafe fn guest(run: *const RunContext) -> u32 {
    // SAFETY: the caller's contract.
    let owner = unsafe { fork_page(process(run)) }.map_or(0, |page| page.tgid.load(Relaxed));
    let tgid = sys::process_id();
    if owner == 0 || tgid == owner { 0 } else { tgid }
}

/// A call that may have made a child has returned, in the parent or in the child. A child that shares its parent's memory is known by
/// its own ids from here on, until the parent goes on. True for such a child.
///
/// # Safety
///
/// `run` is valid and used by the calling thread alone.
#[inline(never)]
pub unsafe fn enter_child(run: *mut RunContext, result: i64) -> bool {
    // SAFETY: the caller's contract.
    unsafe {
        (*run).borrowed_by = 0;
        if result != 0 {
            return false;
        }
        if let Some(page) = fork_page(process(run)) {
            // In a child with memory of its own the page is empty.
            own(page);
        }
        let (tgid, tid) = (guest(run), sys::thread_id());
        if tgid != 0 && tid != 0 {
            (*run).borrowed_by = u64::from(tgid) << 32 | u64::from(tid);
        }
        (*run).borrowed_by != 0
    }
}

/// The access word for map operations, its owner that of the calling thread.
///
/// # Safety
///
/// `run` is valid, used by the calling thread alone, and outlives the reference.
#[inline]
pub unsafe fn access<'a>(run: *mut RunContext) -> &'a Access {
    // SAFETY: the caller's contract.
    unsafe {
        if !is_known(run) {
            refresh(run);
        }
        if (*run).access.owner == 0 {
            (*run).access.owner = owner::current(process(run), (*run).tid);
        }
        &(*run).access
    }
}

/// Learns the ids and renews what hangs on them if they are others than before.
#[cold]
#[inline(never)]
unsafe fn refresh(run: *mut RunContext) {
    // SAFETY: the contract of the callers above.
    unsafe {
        let block = process(run);
        let page = fork_page(block);
        let tid = match thread_id(block) {
            // What was known of a thread with this fs base is the best guess.
            0 => (*run).tid,
            tid => tid,
        };
        let epoch = page.map_or(0, |page| {
            if page.epoch.load(Acquire) == 0 {
                describe(run, block, page, tid);
            }
            page.epoch.load(Acquire)
        });
        let same = (*run).tid == tid;
        if same && page.is_some() && (*run).ids_epoch == epoch {
            return;
        }
        (*run).tgid = page.map_or_else(sys::process_id, |page| page.tgid.load(Relaxed));
        if same && page.is_none() {
            return;
        }
        (*run).tid = tid;
        // Found out when somebody asks for it.
        (*run).access.owner = 0;
        (*run).random = 0;
        (*run).ids_epoch = epoch;
    }
}

/// Fills the fork page of a process in which it is empty; `tid` is the calling thread.
unsafe fn describe(run: *const RunContext, block: Option<&ProcessBlock>, page: &ForkPage, tid: u32) {
    let tgid = match sys::process_id() {
        // The process forbids to ask: the thread that comes first is mostly its first one.
        0 => tid,
        tgid => tgid,
    };
    // A child of `vfork` that comes first finds its parent's.
    if page.tgid.load(Relaxed) == 0 {
        page.tgid.store(tgid, Relaxed);
    }
    // SAFETY: the caller's run; a non-zero `tid_offset` was proven to lie in the thread control block.
    unsafe {
        let offset = block.map_or(0, |block| block.tid_offset);
        let told = offset != 0 && sys::fs_u32(i64::from(offset)) == tid;
        page.ids_unknown.store(u32::from(!told), Relaxed);
        let fresh = (u64::from(tid) << 40) ^ (time::now(run, time::MONOTONIC) << 1) | 1;
        let _ = page.epoch.compare_exchange(0, fresh, Release, Acquire);
    }
}

/// `u64 bpf_get_current_pid_tgid(void)`: process id in the upper half, thread id in the lower.
pub(crate) unsafe extern "sysv64" fn get_current_pid_tgid(
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: compiled code hands on the run that it was called with.
    let ids = unsafe {
        // Here by itself: it is called most.
        if (*run).borrowed_by == 0 && is_known(run) {
            Ids { tid: (*run).tid, tgid: (*run).tgid }
        } else {
            ids(run)
        }
    };
    u64::from(ids.tgid) << 32 | u64::from(ids.tid)
}

/// `u64 bpf_get_current_uid_gid(void)`: group id in the upper half, user id in the lower; both real ids.
///
/// *Differs*: ids as seen in the process's own user namespace.
pub(crate) unsafe extern "sysv64" fn get_current_uid_gid(
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: *mut RunContext,
) -> u64 {
    // SAFETY: no arguments.
    let (uid, gid) = unsafe { (sys::call2(nr::GETUID, 0, 0) as u32, sys::call2(nr::GETGID, 0, 0) as u32) };
    u64::from(gid) << 32 | u64::from(uid)
}

/// The calling thread's name, NUL-padded.
pub fn thread_name() -> [u8; 16] {
    const PR_GET_NAME: u64 = 16;
    let mut name = [0u8; 16];
    // SAFETY: the kernel writes 16 bytes.
    unsafe { sys::call2(nr::PRCTL, PR_GET_NAME, name.as_mut_ptr() as u64) };
    name
}

/// `long bpf_get_current_comm(void *buf, u32 size)`: the thread's name, cut to `size - 1` bytes, NUL-padded to `size`.
pub(crate) unsafe extern "sysv64" fn get_current_comm(
    buffer: u64,
    size: u64,
    _: u64,
    _: u64,
    _: u64,
    _: *mut RunContext,
) -> u64 {
    let size = size as u32 as usize;
    if size == 0 {
        return error(EINVAL);
    }
    let name = thread_name();
    let len = name.iter().position(|&byte| byte == 0).unwrap_or(name.len()).min(size - 1);
    // SAFETY: the verifier proved `size` writable bytes at `buffer`; `len < size`.
    unsafe {
        let buffer = buffer as *mut u8;
        core::ptr::copy_nonoverlapping(name.as_ptr(), buffer, len);
        core::ptr::write_bytes(buffer.add(len), 0, size - len);
    }
    0
}

/// `long bpf_get_ns_current_pid_tgid(u64 dev, u64 ino, struct bpf_pidns_info *nsdata, u32 size)`: the ids in the pid
/// namespace with this device and inode.
///
/// Errors: `-EINVAL` when it is not the process's own pid namespace or `size` is not 8; `nsdata` is zeroed.
pub(crate) unsafe extern "sysv64" fn get_ns_current_pid_tgid(
    device: u64,
    inode: u64,
    info: u64,
    size: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    const INFO_LEN: u32 = 8;
    let size = size as u32;
    // SAFETY: the verifier proved `size` writable bytes at `info`; the run is the caller's.
    unsafe {
        if size != INFO_LEN || own_pid_namespace() != Some((device, inode)) {
            core::ptr::write_bytes(info as *mut u8, 0, size as usize);
            return error(EINVAL);
        }
        let ids = ids(run);
        (info as *mut [u32; 2]).write_unaligned([ids.tid, ids.tgid]);
    }
    0
}

/// Device and inode of the process's pid namespace.
fn own_pid_namespace() -> Option<(u64, u64)> {
    crate::system::stat_identity(b"/proc/self/ns/pid\0")
}

/// `-EPERM`: what the kernel answers where a task may not be touched.
pub(crate) const NOT_PERMITTED: u64 = error(EPERM);

#[cfg(test)]
mod tests {
    use super::*;

    fn call(helper: crate::HelperFn, arguments: [u64; 5], run: &mut RunContext) -> u64 {
        let [a, b, c, d, e] = arguments;
        // SAFETY: the tests pass memory of the sizes they state.
        unsafe { helper(a, b, c, d, e, run) }
    }

    #[test]
    fn ids_without_a_process_block() {
        let mut run = RunContext::default();
        let both = call(get_current_pid_tgid, [0; 5], &mut run);
        assert_eq!(both >> 32, u64::from(std::process::id()));
        assert_eq!(both as u32, sys::thread_id());
        let tid = std::thread::spawn(move || {
            let mut run = run;
            // SAFETY: the run is this thread's.
            let owner = unsafe { access(&mut run) }.owner;
            call(get_current_pid_tgid, [0; 5], &mut run) as u32 == sys::thread_id()
                && owner as u32 == sys::thread_id()
        });
        assert!(tid.join().unwrap());
    }

    #[test]
    fn name_is_cut_and_padded() {
        let check = |size: usize, expected: &[u8]| {
            let mut buffer = [0xaau8; 24];
            let mut run = RunContext::default();
            let result = call(get_current_comm, [buffer.as_mut_ptr() as u64, size as u64, 0, 0, 0], &mut run);
            assert_eq!(result, 0);
            assert_eq!(&buffer[..size], expected);
            assert!(buffer[size..].iter().all(|&byte| byte == 0xaa));
        };
        std::thread::Builder::new()
            .name("a-name".into())
            .spawn(move || {
                check(1, b"\0");
                check(4, b"a-n\0");
                check(16, b"a-name\0\0\0\0\0\0\0\0\0\0");
                check(20, b"a-name\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
            })
            .unwrap()
            .join()
            .unwrap();
    }

    #[test]
    fn namespace_ids() {
        let (device, inode) = own_pid_namespace().unwrap();
        let mut info = [7u32; 2];
        let mut run = RunContext::default();
        let address = info.as_mut_ptr() as u64;
        assert_eq!(call(get_ns_current_pid_tgid, [device, inode, address, 8, 0], &mut run), 0);
        assert_eq!(info, [sys::thread_id(), std::process::id()]);
        let refused = call(get_ns_current_pid_tgid, [device, inode + 1, address, 8, 0], &mut run);
        assert_eq!((refused as i64, info), (-EINVAL, [0, 0]));
    }
}
