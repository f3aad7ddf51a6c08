//! Store files as memory: the only module of this crate with `unsafe`.
//!
//! A [`Mapping`] is seen as atomic words and nothing else, so whatever another process writes into it can only yield
//! wrong numbers, never undefined behaviour. Its users check each number they read. [`map`] hands a mapping to the
//! algorithms of `beeline-maps`.

pub(crate) mod contents;
pub(crate) mod events;
pub(crate) mod map;
pub(crate) mod owner;

use beeline_abi::map::Access;
use rustix::io::Errno;
use rustix::mm::{self, MapFlags, ProtFlags};
use std::cell::Cell;
use std::ffi::c_void;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// A whole file, mapped shared and writable.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<c_void>,
    len: usize,
}

// SAFETY: the memory is reachable through atomics only, and is unmapped by the owner alone.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of a file that has at least as many.
    ///
    /// # Errors
    /// `EINVAL` for a length of 0 or beyond the file's end; else what `mmap` says.
    pub fn new(file: impl AsFd, len: u64) -> Result<Mapping, Errno> {
        Mapping::with_tail(file, len, 0)
    }

    /// Maps a file and, right behind it, its bytes from `tail_from` to the end once more: a ring that can be read
    /// across its end. `tail_from` 0 maps no tail.
    pub(crate) fn with_tail(file: impl AsFd, len: u64, tail_from: u64) -> Result<Mapping, Errno> {
        let stat = rustix::fs::fstat(&file)?;
        if len == 0 || u64::try_from(stat.st_size).is_ok_and(|size| size < len) || tail_from >= len {
            return Err(Errno::INVAL);
        }
        let tail = if tail_from == 0 { 0 } else { len - tail_from };
        let total = usize::try_from(len + tail).map_err(|_| Errno::NOMEM)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh reservation at an address that the kernel chooses.
        let start = unsafe {
            mm::mmap_anonymous(std::ptr::null_mut(), total, ProtFlags::empty(), MapFlags::PRIVATE)?
        };
        let Some(start) = NonNull::new(start) else { return Err(Errno::NOMEM) };
        let mapping = Mapping { start, len: total };
        let fixed = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: replaces the first `len` bytes of the reservation, which is ours; nothing points there yet.
        unsafe { mm::mmap(start.as_ptr(), len as usize, protection, fixed, &file, 0)? };
        if tail > 0 {
            // SAFETY: within the reservation: `len + tail == total`.
            let behind = unsafe { start.as_ptr().byte_add(len as usize) };
            // SAFETY: as above, for the last `tail` bytes.
            unsafe { mm::mmap(behind, tail as usize, protection, fixed, &file, tail_from)? };
        }
        Ok(mapping)
    }

    /// Bytes mapped.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Address of the first byte in this process.
    pub fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// The memory as 64-bit words; bytes behind the last whole word are left out.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the pages are mapped for as long as `self` lives, page-aligned, and every bit pattern is an
        // `AtomicU64`. All accesses from this crate are atomic.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.len / 8) }
    }

    /// The memory as 32-bit words.
    pub fn half_words(&self) -> &[AtomicU32] {
        // SAFETY: as in `words`; mixed-size atomics on the same memory are what x86-64 and AArch64 define.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.len / 4) }
    }

    /// The word at a byte offset; `None` outside of the mapping or when not aligned.
    pub fn word(&self, offset: usize) -> Option<&AtomicU64> {
        offset.is_multiple_of(8).then(|| self.words().get(offset / 8)).flatten()
    }

    /// The 32-bit word at a byte offset; `None` outside of the mapping or when not aligned.
    pub fn half_word(&self, offset: usize) -> Option<&AtomicU32> {
        offset.is_multiple_of(4).then(|| self.half_words().get(offset / 4)).flatten()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `with_tail`, and no reference into it outlives `self`.
        let result = unsafe { mm::munmap(self.start.as_ptr(), self.len) };
        debug_assert!(result.is_ok(), "munmap of our own mapping: {result:?}");
    }
}

/// On whose behalf this thread's map operations run: its id and start time, by which others can tell that it died.
fn access() -> Access {
    thread_local! {
        static OWNER: Cell<u64> = const { Cell::new(0) };
    }
    if OWNER.get() == 0 {
        let tid = rustix::thread::gettid().as_raw_pid() as u32;
        OWNER.set(u64::from(tid) | start_time().unwrap_or(0) << 32);
    }
    Access { owner: OWNER.get(), ..Access::default() }
}

/// Low 32 bits of this thread's start time in clock ticks since boot (`proc_pid_stat(5)`, field 22).
fn start_time() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").ok()?;
    // The name in field 2 may hold blanks and parentheses: fields are counted from behind it.
    let fields = stat.rsplit_once(')')?.1;
    let start: u64 = fields.split_whitespace().nth(19)?.parse().ok()?;
    Some(start & 0xffff_ffff)
}
