//! A page that we share with other processes: words that both sides change, and wait for. One of them can be
//! [held](beeline_robust) by an OS thread of ours.
//!
//! Whatever stands in the page is also the others' word.

use beeline_robust::{Held, SharedPages};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

const PAGE: u64 = 4096;

/// A page in memory, behind a file that other processes can map.
#[derive(Debug)]
pub struct SharedPage {
    file: File,
    pages: SharedPages,
}

impl SharedPage {
    /// A page of zeros. Others see the memory file by this name.
    ///
    /// # Errors
    /// When there is no memory, or no descriptor left.
    pub fn new(name: &CStr) -> io::Result<SharedPage> {
        let file: File = memfd_create(name, MFdFlags::MFD_CLOEXEC)?.into();
        file.set_len(PAGE)?;
        let pages = SharedPages::map(&[&file])?;
        Ok(SharedPage { file, pages })
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
        self.pages.word(0, offset)
    }

    /// The 64-bit word at `offset`.
    ///
    /// # Panics
    /// As [`SharedPage::word`].
    pub fn long(&self, offset: usize) -> &AtomicU64 {
        self.pages.long(0, offset)
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
        self.pages.hold(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::Ordering;

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
