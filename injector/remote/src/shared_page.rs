//! A page that we share with other processes: words that both sides change, and wait for.
//!
//! ```text
//! node (private) ─▶ ...        of our OS thread's robust list
//!   │ one page
//!   ▼
//! the page, a memory file:     one of its words can be held: it is our thread's id, and the kernel clears it when we die
//! ```
//!
//! Whatever stands in the page is also the others' word.

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::ffi::{CStr, c_void};
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

const PAGE: usize = 4096;

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

/// A page in memory, behind a file that other processes can map.
#[derive(Debug)]
pub struct SharedPage {
    file: OwnedFd,
    /// The page of the node, then the shared one.
    start: NonNull<c_void>,
}

// SAFETY: the shared page is reached through atomics only; the node's page by one thread, that of `Held`.
unsafe impl Send for SharedPage {}
// SAFETY: as above.
unsafe impl Sync for SharedPage {}

impl SharedPage {
    /// A page of zeros. Others see the memory file by this name.
    ///
    /// # Errors
    /// When there is no memory, or no descriptor left.
    pub fn new(name: &CStr) -> io::Result<SharedPage> {
        let file: File = memfd_create(name, MFdFlags::MFD_CLOEXEC)?.into();
        file.set_len(PAGE as u64)?;
        let len = NonZeroUsize::new(2 * PAGE).ok_or(io::ErrorKind::InvalidInput)?;
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses. Shared, so that it is still there when the kernel walks
        // the list of a process that dies of a lack of memory.
        let start = unsafe { mmap_anonymous(None, len, rights, MapFlags::MAP_SHARED)? };
        let page = SharedPage { file: file.into(), start };
        let place = NonZeroUsize::new(start.as_ptr() as usize + PAGE);
        let one = NonZeroUsize::new(PAGE).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: the second page of our own mapping, at which nothing points yet.
        unsafe { mmap(place, one, rights, MapFlags::MAP_SHARED | MapFlags::MAP_FIXED, &page.file, 0)? };
        Ok(page)
    }

    /// The file behind it.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The 32-bit word at `offset`.
    ///
    /// # Panics
    /// When it does not lie in the page, or across words.
    pub fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset < PAGE, "word {offset} of a page");
        // SAFETY: in the shared page, aligned, mapped while `self` lives, and never accessed but as an atomic.
        unsafe { self.start.byte_add(PAGE + offset).cast::<AtomicU32>().as_ref() }
    }

    /// The 64-bit word at `offset`.
    ///
    /// # Panics
    /// As [`SharedPage::word`].
    pub fn long(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset < PAGE, "word {offset} of a page");
        // SAFETY: as in `word`.
        unsafe { self.start.byte_add(PAGE + offset).cast::<AtomicU64>().as_ref() }
    }

    /// Waits while the word at `offset` is `expected`, at most for `time`; also ends without a reason.
    pub fn wait(&self, offset: usize, expected: u32, time: Duration) {
        let time = libc::timespec {
            tv_sec: time.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: time.subsec_nanos().into(),
        };
        // SAFETY: the word lives as long as `self`; the kernel reads one timespec.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                self.word(offset).as_ptr(),
                libc::FUTEX_WAIT,
                expected,
                &raw const time,
            );
        }
    }

    /// Wakes everybody who waits for the word at `offset`.
    pub fn wake(&self, offset: usize) {
        // SAFETY: the word lives as long as `self`.
        unsafe {
            libc::syscall(libc::SYS_futex, self.word(offset).as_ptr(), libc::FUTEX_WAKE, i32::MAX);
        }
    }

    /// The word at `offset` becomes the calling OS thread's id until the value is dropped; when the thread dies before, the
    /// kernel replaces it by `FUTEX_OWNER_DIED`. The thread may use no robust mutex of its own, and hold one word at a time.
    ///
    /// # Errors
    /// When the kernel has no robust futexes.
    pub fn hold(&self, offset: usize) -> io::Result<Held<'_>> {
        let word = self.word(offset);
        let node = self.start.cast::<ListNode>();
        // The kernel reads it when the thread is gone from here: it is never freed.
        let head = Box::leak(Box::new(ListHead {
            next: node.as_ptr(),
            futex_offset: (PAGE + offset) as isize,
            pending: std::ptr::null_mut(),
        }));
        let empty = (&raw mut *head).cast::<ListNode>();
        // SAFETY: the page of the node is ours; the list stands until `Held` is dropped, and names nothing of anybody else.
        let set = unsafe {
            node.write(ListNode { next: empty });
            libc::syscall(libc::SYS_set_robust_list, &raw const *head, size_of::<ListHead>())
        };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it has no preconditions.
        let tid = unsafe { libc::gettid() } as u32;
        word.store(tid, Ordering::Release);
        Ok(Held { word, tid, head: &raw mut *head, _not_send: PhantomData })
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`; nobody holds a word in it any more, nor a reference.
        let result = unsafe { munmap(self.start, 2 * PAGE) };
        debug_assert!(result.is_ok(), "munmap of our own mapping: {result:?}");
    }
}

/// A word that is the id of the OS thread that holds it.
#[derive(Debug)]
pub struct Held<'a> {
    word: &'a AtomicU32,
    tid: u32,
    head: *mut ListHead,
    _not_send: PhantomData<*const ()>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let _ = self.word.compare_exchange(self.tid, 0, Ordering::AcqRel, Ordering::Relaxed);
        // SAFETY: the head was leaked, and only the kernel reads it, when the thread has ended: an empty list then.
        unsafe { (*self.head).next = self.head.cast() };
        std::sync::atomic::fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_word_is_held_while_its_thread_lives() {
        const OWNER_DIED: u32 = 0x4000_0000;
        let page = SharedPage::new(c"test").unwrap();
        assert!(page.descriptor().as_raw_fd() > 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let held = page.hold(16).unwrap();
                assert!(page.word(16).load(Ordering::SeqCst) != 0);
                drop(held);
                assert_eq!(page.word(16).load(Ordering::SeqCst), 0);
            });
        });
        std::thread::scope(|scope| {
            // It ends without giving the word back.
            scope.spawn(|| std::mem::forget(page.hold(16).unwrap()));
        });
        // The thread was joined when its closure ended; the kernel clears the word a little later.
        while page.word(16).load(Ordering::SeqCst) != OWNER_DIED {
            std::thread::yield_now();
        }
    }

    #[test]
    fn words_are_those_of_the_file() {
        let page = SharedPage::new(c"test").unwrap();
        page.word(8).store(7, Ordering::SeqCst);
        page.long(4088).store(9, Ordering::SeqCst);
        let file = File::from(page.descriptor().try_clone_to_owned().unwrap());
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 8).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), 7);
        file.read_exact_at(&mut bytes, 4088).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), 9);
        // Neither hangs.
        page.wait(8, 6, Duration::from_secs(100));
        page.wait(8, 7, Duration::from_millis(1));
        page.wake(8);
    }
}
