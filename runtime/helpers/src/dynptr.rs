//! Dynptrs: memory whose size is known only at run time, behind 16 bytes of the program's stack that only these helpers
//! touch.
//!
//! ```text
//! data: u64 | size: u32, the top bits say what it is | offset: u32        (struct bpf_dynptr_kern)
//! ```
//!
//! The verifier keeps programs from writing there, so what is read back is what was put there.

use crate::{error, event};
use beeline_abi::errno::{E2BIG, EINVAL, ERANGE};
use beeline_abi::run::RunContext;

/// A dynptr on the stack. Null when `data` is 0.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Dynptr {
    data: u64,
    size: u32,
    offset: u32,
}

const _: () = assert!(size_of::<Dynptr>() == 16);

/// Largest size (`DYNPTR_MAX_SIZE`).
const SIZE_MAX: u64 = (1 << 24) - 1;
/// Bits of `size` that are a size.
const SIZE_MASK: u32 = 0xff_ffff;
/// Bit of `size`: it may not be written through.
const READ_ONLY: u32 = 1 << 31;

impl Dynptr {
    /// Of `size` bytes at `data`, at most [`SIZE_MAX`].
    pub(crate) fn new(data: u64, size: u32, read_only: bool) -> Dynptr {
        Dynptr { data, size: size & SIZE_MASK | if read_only { READ_ONLY } else { 0 }, offset: 0 }
    }

    /// The address of `len` bytes from `offset` on; `-E2BIG` when they are not all there.
    fn part(&self, offset: u64, len: u64) -> Result<u64, i64> {
        // The kernel's helpers take 32 bits of both.
        let (offset, len) = (offset & u64::from(u32::MAX), len & u64::from(u32::MAX));
        let size = u64::from(self.size & SIZE_MASK);
        if len > size || offset > size - len {
            return Err(E2BIG);
        }
        Ok(self.data.wrapping_add(u64::from(self.offset)).wrapping_add(offset))
    }
}

/// `int bpf_dynptr_from_mem(void *data, u64 size, u64 flags, struct bpf_dynptr *ptr)`.
///
/// Errors, with a null dynptr: `-E2BIG` for more than 2^24 - 1 bytes, `-EINVAL` for flags.
pub(crate) unsafe extern "sysv64" fn dynptr_from_mem(
    data: u64,
    size: u64,
    flags: u64,
    dynptr: u64,
    _: u64,
    _: *mut RunContext,
) -> u64 {
    let (made, result) = match (size, flags) {
        (size, _) if size > SIZE_MAX => (Dynptr::default(), error(E2BIG)),
        (_, 1..) => (Dynptr::default(), error(EINVAL)),
        (size, 0) => (Dynptr::new(data, size as u32, false), 0),
    };
    // SAFETY: the verifier proved 16 bytes of stack for the dynptr.
    unsafe { (dynptr as *mut Dynptr).write(made) };
    result
}

/// `long bpf_ringbuf_reserve_dynptr(void *ringbuf, u32 size, u64 flags, struct bpf_dynptr *ptr)`.
///
/// Errors, with a null dynptr: `-EINVAL` for flags and when there is no room, `-E2BIG` for more than 2^24 - 1 bytes.
pub(crate) unsafe extern "sysv64" fn ringbuf_reserve_dynptr(
    map: u64,
    size: u64,
    flags: u64,
    dynptr: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    let size = size as u32;
    // SAFETY: as in `dynptr_from_mem`; the arguments are those of `ringbuf_reserve`.
    unsafe {
        let target = dynptr as *mut Dynptr;
        target.write(Dynptr::default());
        if flags != 0 {
            return error(EINVAL);
        }
        if u64::from(size) > SIZE_MAX {
            return error(E2BIG);
        }
        let record = event::ringbuf_reserve(map, size.into(), 0, 0, 0, run);
        if record == 0 {
            return error(EINVAL);
        }
        target.write(Dynptr::new(record, size, false));
    }
    0
}

/// Takes the record out of a dynptr, 0 when it has none.
unsafe fn take(dynptr: u64) -> u64 {
    // SAFETY: the verifier proved an initialised dynptr.
    unsafe { (dynptr as *mut Dynptr).replace(Dynptr::default()).data }
}

/// `void bpf_ringbuf_submit_dynptr(struct bpf_dynptr *ptr, u64 flags)`.
pub(crate) unsafe extern "sysv64" fn ringbuf_submit_dynptr(
    dynptr: u64,
    flags: u64,
    _: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: a record in a dynptr was reserved by this run and is not committed yet.
    unsafe {
        match take(dynptr) {
            0 => 0,
            record => event::ringbuf_submit(record, flags, 0, 0, 0, run),
        }
    }
}

/// `void bpf_ringbuf_discard_dynptr(struct bpf_dynptr *ptr, u64 flags)`.
pub(crate) unsafe extern "sysv64" fn ringbuf_discard_dynptr(
    dynptr: u64,
    flags: u64,
    _: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: as in `ringbuf_submit_dynptr`.
    unsafe {
        match take(dynptr) {
            0 => 0,
            record => event::ringbuf_discard(record, flags, 0, 0, 0, run),
        }
    }
}

/// `long bpf_dynptr_read(void *dst, u32 len, const struct bpf_dynptr *src, u32 offset, u64 flags)`.
///
/// Errors: `-EINVAL` for flags and for a null dynptr, `-E2BIG` outside of its memory.
pub(crate) unsafe extern "sysv64" fn dynptr_read(
    target: u64,
    len: u64,
    source: u64,
    offset: u64,
    flags: u64,
    _: *mut RunContext,
) -> u64 {
    // SAFETY: the verifier proved `len` bytes at the target and an initialised dynptr.
    unsafe {
        let source = *(source as *const Dynptr);
        if source.data == 0 || flags != 0 {
            return error(EINVAL);
        }
        match source.part(offset, len) {
            Ok(from) => core::ptr::copy(from as *const u8, target as *mut u8, len as usize),
            Err(errno) => return error(errno),
        }
    }
    0
}

/// `long bpf_dynptr_write(const struct bpf_dynptr *dst, u32 offset, void *src, u32 len, u64 flags)`.
///
/// Errors: `-EINVAL` for flags and for a dynptr that is null or read-only, `-E2BIG` outside of its memory.
pub(crate) unsafe extern "sysv64" fn dynptr_write(
    target: u64,
    offset: u64,
    source: u64,
    len: u64,
    flags: u64,
    _: *mut RunContext,
) -> u64 {
    // SAFETY: as in `dynptr_read`, the other way round.
    unsafe {
        let target = *(target as *const Dynptr);
        if target.data == 0 || target.size & READ_ONLY != 0 {
            return error(EINVAL);
        }
        match target.part(offset, len) {
            Err(errno) => return error(errno),
            Ok(_) if flags != 0 => return error(EINVAL),
            Ok(to) => core::ptr::copy(source as *const u8, to as *mut u8, len as usize),
        }
    }
    0
}

/// `void *bpf_dynptr_data(const struct bpf_dynptr *ptr, u32 offset, u32 len)`: the address of `len` bytes, or 0.
pub(crate) unsafe extern "sysv64" fn dynptr_data(
    dynptr: u64,
    offset: u64,
    len: u64,
    _: u64,
    _: u64,
    _: *mut RunContext,
) -> u64 {
    // SAFETY: the verifier proved an initialised dynptr.
    let dynptr = unsafe { *(dynptr as *const Dynptr) };
    if dynptr.data == 0 || dynptr.size & READ_ONLY != 0 {
        return 0;
    }
    dynptr.part(offset, len).unwrap_or(0)
}

/// `__u32 bpf_dynptr_size(const struct bpf_dynptr *p)`.
///
/// Errors: `-EINVAL` for a null dynptr.
pub(crate) unsafe extern "sysv64" fn dynptr_size(
    dynptr: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: *mut RunContext,
) -> u64 {
    // SAFETY: as in `dynptr_data`.
    let dynptr = unsafe { *(dynptr as *const Dynptr) };
    if dynptr.data == 0 { u64::from(error(EINVAL) as u32) } else { u64::from(dynptr.size & SIZE_MASK) }
}

/// `bool bpf_dynptr_is_null(const struct bpf_dynptr *p)`.
pub(crate) unsafe extern "sysv64" fn dynptr_is_null(
    dynptr: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: *mut RunContext,
) -> u64 {
    // SAFETY: as in `dynptr_data`.
    u64::from(unsafe { (*(dynptr as *const Dynptr)).data == 0 })
}

/// `bool bpf_dynptr_is_rdonly(const struct bpf_dynptr *p)`: false for a null one.
pub(crate) unsafe extern "sysv64" fn dynptr_is_rdonly(
    dynptr: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: *mut RunContext,
) -> u64 {
    // SAFETY: as in `dynptr_data`.
    let dynptr = unsafe { *(dynptr as *const Dynptr) };
    u64::from(dynptr.data != 0 && dynptr.size & READ_ONLY != 0)
}

/// `int bpf_dynptr_adjust(const struct bpf_dynptr *p, __u32 start, __u32 end)`: narrows it to these bytes.
///
/// Errors: `-EINVAL` for a null dynptr and when `start` is greater than `end`, `-ERANGE` outside of its memory.
pub(crate) unsafe extern "sysv64" fn dynptr_adjust(
    dynptr: u64,
    start: u64,
    end: u64,
    _: u64,
    _: u64,
    _: *mut RunContext,
) -> u64 {
    let (start, end) = (start as u32, end as u32);
    // SAFETY: as in `dynptr_data`; the slots are the stack's.
    unsafe {
        let at = dynptr as *mut Dynptr;
        let size = (*at).size & SIZE_MASK;
        if (*at).data == 0 || start > end {
            return error(EINVAL);
        }
        if start > size || end > size {
            return error(ERANGE);
        }
        (*at).offset = (*at).offset.wrapping_add(start);
        (*at).size = (*at).size & !SIZE_MASK | (end - start);
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_inside() {
        let dynptr = Dynptr::new(0x1000, 16, false);
        assert_eq!(dynptr.part(0, 16), Ok(0x1000));
        assert_eq!(dynptr.part(16, 0), Ok(0x1010));
        assert_eq!(dynptr.part(1 << 32, 1), Ok(0x1000));
        for (offset, len) in [(1, 16), (17, 0), (u64::MAX, 1), (0, 17), (8, u64::MAX)] {
            assert_eq!(dynptr.part(offset, len), Err(E2BIG), "{offset} {len}");
        }
    }

    #[test]
    fn memory_through_a_dynptr() {
        let mut memory = *b"0123456789abcdef";
        let mut dynptr = [0u64; 2];
        let (at, address) = (memory.as_mut_ptr() as u64, &raw mut dynptr as u64);
        let mut run = RunContext::default();
        let run = &raw mut run;
        let mut out = [0u8; 4];
        // SAFETY: the memory is there.
        unsafe {
            assert_eq!(dynptr_from_mem(at, 16, 0, address, 0, run), 0);
            assert_eq!(dynptr_read(out.as_mut_ptr() as u64, 4, address, 10, 0, run), 0);
            assert_eq!(&out, b"abcd");
            assert_eq!(dynptr_write(address, 2, b"xy".as_ptr() as u64, 2, 0, run), 0);
            assert_eq!(dynptr_write(address, 15, b"xy".as_ptr() as u64, 2, 0, run) as i64, -E2BIG);
            assert_eq!(dynptr_data(address, 4, 12, 0, 0, run), at + 4);
            assert_eq!(dynptr_data(address, 4, 13, 0, 0, run), 0);
            assert_eq!(dynptr_adjust(address, 4, 8, 0, 0, run), 0);
            assert_eq!(dynptr_size(address, 0, 0, 0, 0, run), 4);
            assert_eq!(dynptr_data(address, 1, 3, 0, 0, run), at + 5);
            assert_eq!(dynptr_adjust(address, 0, 5, 0, 0, run) as i64, -ERANGE);
            assert_eq!(dynptr_adjust(address, 2, 1, 0, 0, run) as i64, -EINVAL);
            assert_eq!(dynptr_is_null(address, 0, 0, 0, 0, run), 0);
            assert_eq!(dynptr_from_mem(at, 16, 1, address, 0, run) as i64, -EINVAL);
            assert_eq!(dynptr_read(out.as_mut_ptr() as u64, 0, address, 0, 0, run) as i64, -EINVAL);
            assert_eq!(dynptr_data(address, 0, 0, 0, 0, run), 0);
            assert_eq!(dynptr_is_null(address, 0, 0, 0, 0, run), 1);
            assert_eq!(dynptr_size(address, 0, 0, 0, 0, run) as i32, -22);
            assert_eq!(dynptr_from_mem(at, 1 << 24, 0, address, 0, run) as i64, -E2BIG);
        }
        assert_eq!(&memory, b"01xy456789abcdef");
    }
}
