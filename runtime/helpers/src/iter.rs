//! Kernel functions that iterate over numbers (`bpf_for`), and those that userspace has nothing to do for.

use crate::control::LOOPS_MAX;
use crate::error;
use beeline_abi::errno::{E2BIG, EINVAL};
use beeline_abi::run::RunContext;

/// `struct bpf_iter_num_kern`, in 8 bytes of stack that only these functions touch.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Numbers {
    /// The element before the next one.
    current: i32,
    /// One past the last.
    end: i32,
}

const _: () = assert!(size_of::<Numbers>() == 8);

/// `int bpf_iter_num_new(struct bpf_iter_num *it, int start, int end)`.
///
/// Errors, with an iterator that has no elements: `-EINVAL` when `start` is greater than `end`, `-E2BIG` for more than 2^23
/// elements.
pub(crate) unsafe extern "sysv64" fn iter_num_new(
    iterator: u64,
    start: u64,
    end: u64,
    _: u64,
    _: u64,
    _: *mut RunContext,
) -> u64 {
    let (start, end) = (start as i32, end as i32);
    let (made, result) = match i64::from(end) - i64::from(start) {
        ..0 => (Numbers::default(), error(EINVAL)),
        count if count > i64::from(LOOPS_MAX) => (Numbers::default(), error(E2BIG)),
        _ => (Numbers { current: start.wrapping_sub(1), end }, 0),
    };
    // SAFETY: the verifier proved 8 bytes of stack for the iterator.
    unsafe { (iterator as *mut Numbers).write(made) };
    result
}

/// `int *bpf_iter_num_next(struct bpf_iter_num *it)`: the address of the next number, or 0.
pub(crate) unsafe extern "sysv64" fn iter_num_next(
    iterator: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: *mut RunContext,
) -> u64 {
    // SAFETY: the verifier proved an initialised iterator.
    unsafe {
        let at = iterator as *mut Numbers;
        let next = (*at).current.wrapping_add(1);
        if next >= (*at).end {
            at.write(Numbers::default());
            return 0;
        }
        (*at).current = next;
        &raw mut (*at).current as u64
    }
}

/// `void bpf_iter_num_destroy(struct bpf_iter_num *it)`.
pub(crate) unsafe extern "sysv64" fn iter_num_destroy(
    iterator: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: *mut RunContext,
) -> u64 {
    // SAFETY: as in `iter_num_next`.
    unsafe { (iterator as *mut Numbers).write(Numbers::default()) };
    0
}

/// `void *bpf_rdonly_cast(const void *obj, u32 btf_id)`: the same address, for the verifier of another type.
pub(crate) unsafe extern "sysv64" fn rdonly_cast(
    object: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: *mut RunContext,
) -> u64 {
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn elements(start: i32, end: i32) -> (i64, Vec<i32>) {
        let (mut iterator, mut run) = (0u64, RunContext::default());
        let at = &raw mut iterator as u64;
        let mut found = Vec::new();
        // SAFETY: the iterator is there.
        unsafe {
            let result = iter_num_new(at, start as u64, end as u64, 0, 0, &mut run) as i64;
            loop {
                let element = iter_num_next(at, 0, 0, 0, 0, &mut run) as *const i32;
                if element.is_null() {
                    break;
                }
                found.push(*element);
            }
            iter_num_destroy(at, 0, 0, 0, 0, &mut run);
            (result, found)
        }
    }

    #[test]
    fn numbers() {
        assert_eq!(elements(-1, 3), (0, [-1, 0, 1, 2].into()));
        assert_eq!(elements(5, 5), (0, [].into()));
        assert_eq!(elements(5, 4), (-EINVAL, [].into()));
        assert_eq!(elements(0, (8 << 20) + 1), (-E2BIG, [].into()));
        assert_eq!(elements(i32::MIN, i32::MIN + 2), (0, [i32::MIN, i32::MIN + 1].into()));
        assert_eq!(elements(i32::MAX - 2, i32::MAX), (0, [i32::MAX - 2, i32::MAX - 1].into()));
    }
}
