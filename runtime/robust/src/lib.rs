//! Words of shared files that an OS thread holds: its id stands there, and when it ends, however it does, the kernel leaves
//! `FUTEX_OWNER_DIED` instead.
//!
//! ```text
//! thread's robust list ─▶ node ─▶ node ─▶ ...           one page of ours for each file
//!                          │ + one page + offset
//!                          ▼
//!                         word = thread id              the page behind it: the file's first, mapped shared
//! ```
//!
//! When a thread ends, by whatever signal, the kernel walks its robust list (`kernel/futex/core.c`, `exit_robust_list`). The list
//! itself is private: nothing of it stands in the files. Whatever stands in their pages is also the others' word.

use rustix::io::Errno;
use rustix::mm::{self, MapFlags, ProtFlags};
use std::ffi::c_void;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const PAGE: usize = 4096;

/// Words that one thread can hold: the kernel looks at `ROBUST_LIST_LIMIT` (2048) entries of a list.
pub const HELD_MAX: usize = 2000;

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

/// The first pages of files, mapped shared, and a node of a robust list for each.
pub struct SharedPages {
    start: NonNull<c_void>,
    count: usize,
}

// SAFETY: the files' pages are reached through atomics only; the nodes' pages by the one thread that makes the list, see `hold`.
unsafe impl Send for SharedPages {}
// SAFETY: as above.
unsafe impl Sync for SharedPages {}

impl SharedPages {
    /// Maps the first page of each file, which has to have one.
    ///
    /// # Errors
    /// When there is no memory, or a file may not be mapped for reading and writing.
    pub fn map(files: &[impl AsFd]) -> io::Result<SharedPages> {
        let len = 2 * PAGE * files.len().max(1);
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // Shared, so that the kernel does not take it back from a process that dies of a lack of memory before its list was
        // walked.
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe { mm::mmap_anonymous(std::ptr::null_mut(), len, rights, MapFlags::SHARED)? };
        let start = NonNull::new(start).ok_or(Errno::NOMEM)?;
        let pages = SharedPages { start, count: files.len() };
        for (index, file) in files.iter().enumerate() {
            let fixed = MapFlags::SHARED | MapFlags::FIXED;
            // SAFETY: an odd page of the mapping, which is ours; nothing points there yet.
            unsafe { mm::mmap(pages.page(2 * index + 1), PAGE, rights, fixed, file, 0)? };
        }
        Ok(pages)
    }

    /// How many files there are.
    pub fn count(&self) -> usize {
        self.count
    }

    fn page(&self, index: usize) -> *mut c_void {
        assert!(index < 2 * self.count, "page {index} of {} files", self.count);
        // SAFETY: within the mapping.
        unsafe { self.start.as_ptr().byte_add(index * PAGE) }
    }

    /// The 32-bit word at `offset` in the page of file `index`.
    ///
    /// # Panics
    /// When there is no such file, or it does not lie in the page, or across words.
    pub fn word(&self, index: usize, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset < PAGE, "word {offset} of a page");
        // SAFETY: in a file's page, aligned, mapped while `self` lives, and never accessed but as an atomic.
        unsafe { &*self.page(2 * index + 1).byte_add(offset).cast::<AtomicU32>() }
    }

    /// The 64-bit word at `offset` in the page of file `index`.
    ///
    /// # Panics
    /// As [`SharedPages::word`].
    pub fn long(&self, index: usize, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset < PAGE, "word {offset} of a page");
        // SAFETY: as in `word`.
        unsafe { &*self.page(2 * index + 1).byte_add(offset).cast::<AtomicU64>() }
    }

    /// The word at `offset` of each page becomes the calling OS thread's id until the value is dropped; when the thread ends
    /// before, the kernel replaces it by `FUTEX_OWNER_DIED`. The thread may use no robust mutex of its own, and hold words of one
    /// [`SharedPages`] at a time, as nobody else does meanwhile.
    ///
    /// # Errors
    /// When there are more than [`HELD_MAX`], or the kernel has no robust futexes.
    ///
    /// # Panics
    /// As [`SharedPages::word`].
    pub fn hold(&self, offset: usize) -> io::Result<Held<'_>> {
        if self.count > HELD_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // The kernel reads it when the thread is gone from here: it is never freed.
        let head: *mut ListHead = Box::leak(Box::new(ListHead {
            next: std::ptr::null_mut(),
            futex_offset: (PAGE + offset) as isize,
            pending: std::ptr::null_mut(),
        }));
        let mut next = head.cast::<ListNode>();
        for index in (0..self.count).rev() {
            let node = self.page(2 * index).cast::<ListNode>();
            // SAFETY: the node's own page, which nobody else looks at.
            unsafe { node.write(ListNode { next }) };
            next = node;
        }
        // SAFETY: the head was leaked. The list stands until `Held` is dropped, and names nothing of anybody else.
        let set = unsafe {
            (*head).next = next;
            libc::syscall(libc::SYS_set_robust_list, head, size_of::<ListHead>())
        };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
        let tid = rustix::thread::gettid().as_raw_pid() as u32;
        for index in 0..self.count {
            self.word(index, offset).store(tid, Ordering::Release);
        }
        Ok(Held { pages: self, offset, tid, head, _not_send: PhantomData })
    }
}

impl fmt::Debug for SharedPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedPages").field("start", &self.start).field("count", &self.count).finish()
    }
}

impl Drop for SharedPages {
    fn drop(&mut self) {
        // SAFETY: the mapping of `map`; nobody holds a word in it any more, nor a reference.
        let result = unsafe { mm::munmap(self.start.as_ptr(), 2 * PAGE * self.count.max(1)) };
        debug_assert!(result.is_ok(), "munmap of our own mapping: {result:?}");
    }
}

/// Words that are the id of the OS thread that holds them. Dropping it makes them 0, where nobody has changed them.
#[derive(Debug)]
pub struct Held<'a> {
    pages: &'a SharedPages,
    offset: usize,
    tid: u32,
    head: *mut ListHead,
    _not_send: PhantomData<*const ()>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        for index in 0..self.pages.count {
            let word = self.pages.word(index, self.offset);
            let _ = word.compare_exchange(self.tid, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
        // SAFETY: the head was leaked, and only the kernel reads it, when the thread has ended: an empty list then, so that nothing
        // that is unmapped by then is looked at.
        unsafe { (*self.head).next = self.head.cast() };
        std::sync::atomic::fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    /// What the kernel leaves of a word whose thread has ended.
    const OWNER_DIED: u32 = 0x4000_0000;

    fn files(count: usize) -> Vec<File> {
        let file = || {
            let file = tempfile::tempfile().unwrap();
            file.set_len(PAGE as u64).unwrap();
            file
        };
        (0..count).map(|_| file()).collect()
    }

    fn words(pages: &SharedPages, offset: usize) -> Vec<u32> {
        (0..pages.count()).map(|index| pages.word(index, offset).load(Ordering::SeqCst)).collect()
    }

    #[test]
    fn words_are_held_while_their_thread_lives() {
        let pages = SharedPages::map(&files(3)).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let held = pages.hold(16).unwrap();
                let tid = rustix::thread::gettid().as_raw_pid() as u32;
                assert_eq!(words(&pages, 16), [tid; 3]);
                pages.word(1, 16).store(7, Ordering::SeqCst);
                drop(held);
                assert_eq!(words(&pages, 16), [0, 7, 0]);
            });
        });
        std::thread::scope(|scope| {
            // It ends without giving the words back.
            scope.spawn(|| std::mem::forget(pages.hold(16).unwrap()));
        });
        // The thread was joined when its closure ended; the kernel clears the words a little later.
        while words(&pages, 16) != [OWNER_DIED; 3] {
            std::thread::yield_now();
        }
        assert_eq!(words(&pages, 20), [0; 3]);
    }

    #[test]
    fn words_are_those_of_the_files() {
        let files = files(2);
        let pages = SharedPages::map(&files).unwrap();
        pages.word(0, 8).store(7, Ordering::SeqCst);
        pages.long(1, 4088).store(9, Ordering::SeqCst);
        let read = |file: &File, at| {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, at).unwrap();
            u64::from_le_bytes(bytes)
        };
        assert_eq!([read(&files[0], 8), read(&files[0], 4088)], [7, 0]);
        assert_eq!([read(&files[1], 8), read(&files[1], 4088)], [0, 9]);
    }

    #[test]
    fn no_file_and_too_many() {
        let none = SharedPages::map(&files(0)).unwrap();
        drop(none.hold(0).unwrap());
        let file = &files(1)[0];
        let many = SharedPages::map(&vec![file; HELD_MAX + 1]).unwrap();
        assert_eq!(many.hold(0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
