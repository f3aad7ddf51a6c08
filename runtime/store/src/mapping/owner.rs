//! Links that end with their owner: the kernel itself turns them off when the owner's thread dies.
//!
//! ```text
//! thread's robust list ─▶ node ─▶ node ─▶ ...           one page of ours for each link
//!                          │ + FUTEX_OFFSET
//!                          ▼
//!                     LinkShared::enabled = thread id    the page behind it: the link's file, mapped shared
//! ```
//!
//! When a thread ends, by whatever signal, the kernel walks its robust list (`kernel/futex/core.c`, `exit_robust_list`) and
//! replaces the thread's id in each word by `FUTEX_OWNER_DIED`, which is no bit of [`LinkShared::ON`]. The list itself is
//! private: nothing of it stands in the files of the store.

use crate::link::LinkFile;
use beeline_abi::PAGE_SIZE;
use beeline_abi::link::LinkShared;
use rustix::io::Errno;
use rustix::mm::{self, MapFlags, ProtFlags};
use std::ffi::c_void;
use std::fs::File;
use std::mem::offset_of;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

const PAGE: usize = PAGE_SIZE as usize;

/// From a node of the list to its futex word.
const FUTEX_OFFSET: usize = PAGE + offset_of!(LinkShared, enabled);

/// Entries of a robust list that the kernel looks at (`ROBUST_LIST_LIMIT` is 2048).
const LINKS_MAX: usize = 2000;

/// `struct robust_list_head` (`include/uapi/linux/futex.h`).
#[repr(C)]
struct ListHead {
    next: *mut ListNode,
    futex_offset: isize,
    pending: *mut ListNode,
}

/// `struct robust_list`.
#[repr(C)]
struct ListNode {
    next: *mut ListNode,
}

/// The links of one object, in force for as long as this value, or its process, lives.
#[derive(Debug)]
pub struct Ownership {
    /// The lock by which others see that the owner lives.
    _lock: File,
    _keepers: Vec<Keeper>,
}

/// A thread that holds links.
#[derive(Debug)]
struct Keeper {
    /// Dropped to end the thread.
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ownership {
    /// Turns the links on for as long as the owner lives.
    ///
    /// # Errors
    /// When they cannot be mapped, or no thread can be made. They are off then.
    pub(crate) fn take(lock: File, links: &[LinkFile]) -> Result<Ownership, Errno> {
        let mut keepers = Vec::new();
        for part in links.chunks(LINKS_MAX) {
            let files = part.iter().map(LinkFile::descriptor).collect::<Result<Vec<_>, _>>();
            let files = files.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::MFILE))?;
            keepers.push(Keeper::start(Nodes::new(&files)?)?);
        }
        Ok(Ownership { _lock: lock, _keepers: keepers })
    }
}

impl Keeper {
    fn start(nodes: Nodes) -> Result<Keeper, Errno> {
        let (end, ended) = channel();
        let (ready, is_ready) = channel();
        let builder = std::thread::Builder::new().name("beeline-owner".into());
        let thread = builder
            .spawn(move || nodes.hold(&ready, &ended))
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?;
        let keeper = Keeper { end: Some(end), thread: Some(thread) };
        is_ready.recv().unwrap_or(Err(Errno::AGAIN))?;
        Ok(keeper)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // It cannot panic; were it dead, the kernel would have done its work.
            let _ = thread.join();
        }
    }
}

/// A page for each node, and behind each the page of its link.
struct Nodes {
    start: NonNull<c_void>,
    count: usize,
}

// SAFETY: the mapping is reached through this value alone; the words in it through atomics.
unsafe impl Send for Nodes {}

impl Nodes {
    fn new(files: &[OwnedFd]) -> Result<Nodes, Errno> {
        let len = 2 * PAGE * files.len().max(1);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // Shared, so that the kernel does not take it back from a process that dies of a lack of memory before its list was
        // walked.
        // SAFETY: a fresh mapping at an address that the kernel chooses.
        let start = unsafe { mm::mmap_anonymous(std::ptr::null_mut(), len, protection, MapFlags::SHARED)? };
        let Some(start) = NonNull::new(start) else { return Err(Errno::NOMEM) };
        let nodes = Nodes { start, count: files.len() };
        for (index, file) in files.iter().enumerate() {
            let fixed = MapFlags::SHARED | MapFlags::FIXED;
            // SAFETY: an odd page of the mapping, which is ours; nothing points there yet.
            unsafe { mm::mmap(nodes.page(2 * index + 1), PAGE, protection, fixed, file.as_fd(), 0)? };
        }
        Ok(nodes)
    }

    fn page(&self, index: usize) -> *mut c_void {
        // SAFETY: callers stay below 2 * count, within the mapping.
        unsafe { self.start.as_ptr().byte_add(index * PAGE) }
    }

    fn node(&self, index: usize) -> *mut ListNode {
        self.page(2 * index).cast()
    }

    fn word(&self, index: usize, offset: usize) -> &AtomicU32 {
        // SAFETY: a link's page, mapped while `self` lives; every access is atomic.
        unsafe { &*self.page(2 * index + 1).byte_add(offset).cast::<AtomicU32>() }
    }

    /// Turns the links on, waits, turns them off. What happens when the thread dies in between is the kernel's.
    fn hold(self, ready: &Sender<Result<(), Errno>>, ended: &Receiver<()>) {
        // The kernel reads it when the thread is gone from here: it is never freed.
        let head = Box::leak(Box::new(ListHead {
            next: std::ptr::null_mut(),
            futex_offset: FUTEX_OFFSET as isize,
            pending: std::ptr::null_mut(),
        }));
        let first = (&raw mut *head).cast::<ListNode>();
        head.next = if self.count == 0 { first } else { self.node(0) };
        for index in 0..self.count {
            let next = if index + 1 < self.count { self.node(index + 1) } else { first };
            // SAFETY: the node's own page.
            unsafe { self.node(index).write(ListNode { next }) };
        }
        // SAFETY: the list stands until this thread has left the words, and holds nothing of anybody else; this thread uses
        // no robust mutex.
        let set =
            unsafe { libc::syscall(libc::SYS_set_robust_list, &raw const *head, size_of::<ListHead>()) };
        if set != 0 {
            let _ = ready.send(Err(Errno::NOSYS));
            return;
        }
        let tid = rustix::thread::gettid().as_raw_pid() as u32;
        for index in 0..self.count {
            self.word(index, offset_of!(LinkShared, owner)).store(tid, Ordering::Relaxed);
            self.word(index, offset_of!(LinkShared, enabled)).store(tid, Ordering::Release);
        }
        let _ = ready.send(Ok(()));
        // Ends with an error: the other end is dropped.
        let _ = ended.recv();
        for index in 0..self.count {
            let enabled = self.word(index, offset_of!(LinkShared, enabled));
            let _ = enabled.compare_exchange(tid, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
        // SAFETY: an empty list: the kernel looks at nothing of ours when the thread ends.
        // An empty list: nothing that is unmapped now is looked at when the thread ends.
        head.next = first;
        std::sync::atomic::fence(Ordering::SeqCst);
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`; no reference into it outlives `self`.
        let result = unsafe { mm::munmap(self.start.as_ptr(), 2 * PAGE * self.count.max(1)) };
        debug_assert!(result.is_ok(), "munmap of our own mapping: {result:?}");
    }
}
