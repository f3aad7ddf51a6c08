//! Reading and writing memory of the process that may not be there.
//!
//! A bad address gives an error, never a signal: the kernel copies (`process_vm_readv` of the process on itself), except
//! from memory that is certainly there. This module is small so that a faster mechanism can replace it.
//!
//! *Differs*: there is one address space, so the `_kernel` variants read what the `_user` ones read: the synthetic task
//! and map values are memory of the process. Kernel addresses give `-EFAULT`. Where the kernel (a seccomp filter)
//! refuses the system call, every read from elsewhere gives `-EFAULT`.

use crate::error;
use crate::identity::ids;
use crate::sys::{self, IoVec, nr};
use beeline_abi::PAGE_SIZE;
use beeline_abi::errno::EFAULT;
use beeline_abi::regs::PT_REGS_SIZE;
use beeline_abi::run::RunContext;
use core::arch::asm;
use core::mem::MaybeUninit;

/// True when `len` bytes at `address` are mapped and readable for certain: the program's registers, or the part of the
/// stack above this frame that lies in the frame's page.
unsafe fn is_ours(run: *const RunContext, address: u64, len: u64) -> bool {
    let within = |start: u64, end: u64| address >= start && address < end && len <= end - address;
    let sp: u64;
    // SAFETY: reads a register; the run is the caller's.
    let regs = unsafe {
        asm!("mov {}, rsp", out(reg) sp, options(nomem, nostack, preserves_flags));
        (*run).regs
    };
    within(sp, (sp | (PAGE_SIZE - 1)).wrapping_add(1))
        || regs != 0 && within(regs, regs.wrapping_add(u64::from(PT_REGS_SIZE)))
}

/// Copies `len` bytes between `local` and `remote`, either of which may be bad: 0, `-EFAULT` when not all were copied, or
/// what else the kernel answers.
#[inline(never)]
unsafe fn transfer(run: *mut RunContext, call: u64, local: u64, remote: u64, len: u64) -> i64 {
    let local = IoVec { base: local, len };
    let remote = IoVec { base: remote, len };
    // SAFETY: the kernel checks every address; the calling thread's id names its own memory.
    let copied = unsafe {
        let pid = u64::from(ids(run).tid);
        sys::call6(call, pid, &raw const local as u64, 1, &raw const remote as u64, 1, 0)
    };
    match copied {
        errno if errno < 0 => errno,
        copied if copied as u64 == len => 0,
        _ => -EFAULT,
    }
}

/// Copies `len` bytes from `source`: 0, or `-EFAULT` when not all of them could be read, or another negative errno when
/// the kernel refuses to read at all. On errors `target` holds anything.
///
/// # Safety
///
/// `run` is the calling thread's; `target` is writable for `len` bytes.
#[inline(never)]
pub unsafe fn fetch(run: *mut RunContext, target: *mut u8, len: usize, source: u64) -> i64 {
    // SAFETY: the caller's contract for `target`; `is_ours` for `source`.
    unsafe {
        if len == 0 {
            return 0;
        }
        if is_ours(run, source, len as u64) {
            core::ptr::copy(source as *const u8, target, len);
            return 0;
        }
        transfer(run, nr::PROCESS_VM_READV, target as u64, source, len as u64)
    }
}

/// Most words that [`fetch_words`] reads.
pub const WORDS_MAX: usize = 32;

/// Reads one word from each of `sources`, at most [`WORDS_MAX`], any of which may be bad; a bit for each that could be
/// read. `None` when the kernel refuses to read at all.
///
/// # Safety
///
/// `run` is the calling thread's.
pub unsafe fn fetch_words(
    run: *mut RunContext,
    words: &mut [u64; WORDS_MAX],
    sources: &[u64],
) -> Option<u32> {
    let mut remote = [const { IoVec { base: 0, len: 8 } }; WORDS_MAX];
    for (vector, source) in remote.iter_mut().zip(sources) {
        vector.base = *source;
    }
    let count = sources.len().min(WORDS_MAX) as u64;
    let (mut from, mut read) = (0u64, 0u32);
    while from < count {
        // SAFETY: both lists have `count` entries, the first `from` of which are done; the kernel checks every address.
        let copied = unsafe {
            let local = IoVec { base: words.as_mut_ptr().add(from as usize) as u64, len: (count - from) * 8 };
            let vectors = remote.as_ptr().add(from as usize) as u64;
            let pid = u64::from(ids(run).tid);
            sys::call6(nr::PROCESS_VM_READV, pid, &raw const local as u64, 1, vectors, count - from, 0)
        };
        if copied < 0 && copied != -EFAULT {
            return None;
        }
        let done = (copied.max(0) as u64 / 8).min(count - from);
        for index in from..from + done {
            read |= 1 << index;
        }
        // The word behind the last one that was read is the bad one.
        from += done + 1;
    }
    Some(read)
}

/// Copies `len` bytes from `source`; false when not all of them could be read: `target` then holds anything.
///
/// # Safety
///
/// As for [`fetch`].
#[inline]
pub unsafe fn copy(run: *mut RunContext, target: *mut u8, len: usize, source: u64) -> bool {
    // SAFETY: the caller's contract.
    unsafe { fetch(run, target, len, source) == 0 }
}

/// Copies a NUL-terminated string of at most `size - 1` bytes and terminates it. Behind the NUL only the rest of its
/// eight-byte word is changed, to zeros, as `strncpy_from_user` does: a zeroed buffer stays a good hash key.
///
/// Returns the length with the NUL (`size` when it was cut), 0 when `size` is 0, `None` when it cannot be read up to its
/// end (`target` then holds anything).
///
/// # Safety
///
/// `run` is the calling thread's; `target` is writable for `size` bytes.
pub unsafe fn copy_string(run: *mut RunContext, target: *mut u8, size: usize, source: u64) -> Option<usize> {
    /// Bytes fetched at once; most strings are shorter.
    const STEP: u64 = 256;
    let mut piece = MaybeUninit::<[u8; STEP as usize]>::uninit();
    let piece = piece.as_mut_ptr().cast::<u8>();
    let mut done = 0usize;
    while done < size {
        let address = source.wrapping_add(done as u64);
        let to_page_end = PAGE_SIZE - address % PAGE_SIZE;
        let len = ((size - done) as u64).min(to_page_end).min(STEP) as usize;
        // SAFETY: `len` is at most STEP, `done + len` at most `size`.
        unsafe {
            if !copy(run, piece, len, address) {
                return None;
            }
            let mut i = 0;
            while i < len {
                let byte = *piece.add(i);
                *target.add(done + i) = byte;
                if byte == 0 {
                    pad_word(run, target, done + i, size, source);
                    return Some(done + i + 1);
                }
                i += 1;
            }
        }
        done += len;
    }
    if size != 0 {
        // SAFETY: the last byte of `target`.
        unsafe { *target.add(size - 1) = 0 };
    }
    Some(size)
}

/// Zeroes what follows the NUL at index `nul` in its eight-byte word, when the whole word lies within `size` and can be
/// read from the source: the kernel goes on byte by byte where it cannot.
unsafe fn pad_word(run: *mut RunContext, target: *mut u8, nul: usize, size: usize, source: u64) {
    let start = nul & !7;
    if start + 8 > size {
        return;
    }
    let last = source.wrapping_add(start as u64 + 7);
    let next_page = last & !(PAGE_SIZE - 1);
    let mut byte = 0u8;
    // SAFETY: `nul < start + 8 <= size`; the caller's run.
    unsafe {
        if source.wrapping_add(nul as u64) >= next_page || copy(run, &raw mut byte, 1, last) {
            core::ptr::write_bytes(target.add(nul), 0, start + 8 - nul);
        }
    }
}

/// Largest address that the kernel takes for a user's (`USER_PTR_MAX` with four levels of page tables).
const ADDRESS_MAX: u64 = 0x7fff_ffff_f000;

/// `long bpf_probe_read(void *dst, u32 size, const void *src)` and its `_user` and `_kernel` variants.
///
/// Errors: `-EFAULT`, `dst` zeroed; also for no bytes at all from an address that no process has.
pub(crate) unsafe extern "sysv64" fn probe_read(
    target: u64,
    size: u64,
    source: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    if source > ADDRESS_MAX && size as u32 == 0 {
        return error(EFAULT);
    }
    // SAFETY: the caller's contract is the same.
    unsafe { copy_from_user(target, size, source, 0, 0, run) }
}

/// `long bpf_copy_from_user(void *dst, u32 size, const void *user_ptr)`.
///
/// Errors: `-EFAULT`, `dst` zeroed.
pub(crate) unsafe extern "sysv64" fn copy_from_user(
    target: u64,
    size: u64,
    source: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    let (target, size) = (target as *mut u8, size as u32 as usize);
    // SAFETY: the verifier proved `size` writable bytes at `target`.
    unsafe {
        if copy(run, target, size, source) {
            return 0;
        }
        core::ptr::write_bytes(target, 0, size);
    }
    error(EFAULT)
}

/// `long bpf_probe_read_str(void *dst, u32 size, const void *src)` and its `_user` and `_kernel` variants: the length
/// with the NUL.
///
/// Errors: `-EFAULT`, `dst` zeroed.
pub(crate) unsafe extern "sysv64" fn probe_read_str(
    target: u64,
    size: u64,
    source: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    let (target, size) = (target as *mut u8, size as u32 as usize);
    // SAFETY: the verifier proved `size` writable bytes at `target`.
    unsafe {
        if let Some(len) = copy_string(run, target, size, source) {
            return len as u64;
        }
        core::ptr::write_bytes(target, 0, size);
    }
    error(EFAULT)
}

/// `long bpf_probe_write_user(void *dst, const void *src, u32 len)`.
///
/// Errors: `-EFAULT` when not all could be written.
pub(crate) unsafe extern "sysv64" fn probe_write_user(
    target: u64,
    source: u64,
    len: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    let len = u64::from(len as u32);
    // SAFETY: the kernel checks both sides.
    if len == 0 || unsafe { transfer(run, nr::PROCESS_VM_WRITEV, source, target, len) } == 0 {
        return 0;
    }
    error(EFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    /// Two pages of which only the first is there.
    fn page_before_hole() -> *mut u8 {
        const PROT_READ_WRITE: u64 = 3;
        const PRIVATE_ANONYMOUS: u64 = 0x22;
        // SAFETY: a new mapping, of which the second page is taken away again.
        unsafe {
            let pages =
                sys::call6(nr::MMAP, 0, 2 * PAGE_SIZE, PROT_READ_WRITE, PRIVATE_ANONYMOUS, u64::MAX, 0);
            assert!(pages > 0);
            sys::call2(nr::MUNMAP, pages as u64 + PAGE_SIZE, PAGE_SIZE);
            pages as *mut u8
        }
    }

    fn read(helper: crate::HelperFn, size: usize, source: u64) -> (i64, vec::Vec<u8>) {
        let mut run = RunContext::default();
        let mut target = vec![0xaa; size];
        // SAFETY: `target` has `size` bytes.
        let result = unsafe { helper(target.as_mut_ptr() as u64, size as u64, source, 0, 0, &mut run) };
        (result as i64, target)
    }

    #[test]
    fn memory() {
        let source = [1u8, 2, 3, 4];
        assert_eq!(read(probe_read, 4, source.as_ptr() as u64), (0, vec![1, 2, 3, 4]));
        let heap = std::boxed::Box::new([5u8; 3]);
        assert_eq!(read(probe_read, 3, heap.as_ptr() as u64), (0, vec![5; 3]));
        for bad in [0u64, 8, 0x7fff_ffff_f000, 0x8000_0000_0000_0000, u64::MAX - 3, 0xffff_8880_0000_0000] {
            assert_eq!(read(probe_read, 4, bad), (-EFAULT, vec![0; 4]), "{bad:#x}");
            assert_eq!(read(probe_read_str, 4, bad), (-EFAULT, vec![0; 4]), "{bad:#x}");
        }
        assert_eq!(read(probe_read, 0, 0), (0, vec![]));
    }

    #[test]
    fn up_to_a_hole() {
        let page = page_before_hole();
        let end = page as u64 + PAGE_SIZE;
        // SAFETY: the page is ours.
        unsafe { core::ptr::write_bytes(page, b'x', PAGE_SIZE as usize) };
        assert_eq!(read(probe_read, 8, end - 8), (0, vec![b'x'; 8]));
        assert_eq!(read(probe_read, 8, end - 7), (-EFAULT, vec![0; 8]));
        assert_eq!(read(probe_read_str, 8, end - 7), (-EFAULT, vec![0; 8]), "no NUL before the hole");
        // SAFETY: as above.
        unsafe { *page.add(PAGE_SIZE as usize - 1) = 0 };
        assert_eq!(read(probe_read_str, 4, end - 3), (3, vec![b'x', b'x', 0, 0xaa]));
        let unpadded = vec![b'x', b'x', 0, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa];
        assert_eq!(read(probe_read_str, 8, end - 3), (3, unpadded), "its word reaches into the hole");
    }

    #[test]
    fn strings() {
        let long = [vec![b'a'; 5000], vec![0]].concat();
        let source = long.as_ptr() as u64;
        assert_eq!(read(probe_read_str, 0, source), (0, vec![]));
        assert_eq!(read(probe_read_str, 1, source), (1, vec![0]));
        assert_eq!(read(probe_read_str, 3, source), (3, vec![b'a', b'a', 0]));
        let (len, text) = read(probe_read_str, 6000, source);
        assert_eq!((len, &text[..5001]), (5001, &long[..]));
        assert!(text[5008..].iter().all(|&byte| byte == 0xaa));
        assert_eq!(read(probe_read_str, 2, c"".as_ptr() as u64), (1, vec![0, 0xaa]));
    }

    #[test]
    fn writing() {
        let mut run = RunContext::default();
        let mut target = [0u8; 4];
        let source = [1u8, 2, 3, 4];
        let (to, from) = (target.as_mut_ptr() as u64, source.as_ptr() as u64);
        // SAFETY: `source` has four bytes.
        unsafe {
            assert_eq!(probe_write_user(to, from, 3, 0, 0, &mut run), 0);
            assert_eq!(probe_write_user(8, from, 3, 0, 0, &mut run) as i64, -EFAULT);
            assert_eq!(
                probe_write_user(c"text is read-only".as_ptr() as u64, from, 3, 0, 0, &mut run) as i64,
                -EFAULT
            );
        }
        assert_eq!(target, [1, 2, 3, 0]);
    }
}
