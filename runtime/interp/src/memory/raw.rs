//! Accesses to raw addresses. Another process may change the bytes at any time: aligned ones are read and written with
//! relaxed atomics, unaligned ones bytewise.

use super::AccessError;
use beeline_isa::{AtomicOp, Size};
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

fn is_aligned(address: u64, size: Size) -> bool {
    address.is_multiple_of(u64::from(size.bytes()))
}

fn aligned(address: u64, size: Size) -> Result<(), AccessError> {
    if is_aligned(address, size) {
        Ok(())
    } else {
        Err(AccessError::Misaligned { address, bytes: size.bytes() })
    }
}

/// Reads, zero-extended.
///
/// # Safety
/// The bytes can be read.
pub(super) unsafe fn load(address: u64, size: Size) -> u64 {
    if is_aligned(address, size) {
        // SAFETY: the caller says that the bytes can be read; they are aligned.
        unsafe { load_ordered(address, size, Ordering::Relaxed) }
    } else {
        (0..u64::from(size.bytes())).fold(0, |value, i| {
            // SAFETY: one of the bytes that the caller says can be read.
            value | unsafe { load_ordered(address.wrapping_add(i), Size::B, Ordering::Relaxed) } << (8 * i)
        })
    }
}

/// Writes the low bytes.
///
/// # Safety
/// The bytes can be written.
pub(super) unsafe fn store(address: u64, size: Size, value: u64) {
    if is_aligned(address, size) {
        // SAFETY: the caller says that the bytes can be written; they are aligned.
        unsafe { store_ordered(address, size, value, Ordering::Relaxed) }
    } else {
        for i in 0..u64::from(size.bytes()) {
            // SAFETY: one of the bytes that the caller says can be written.
            unsafe { store_ordered(address.wrapping_add(i), Size::B, value >> (8 * i), Ordering::Relaxed) }
        }
    }
}

/// # Safety
/// The bytes can be read and are aligned.
unsafe fn load_ordered(address: u64, size: Size, order: Ordering) -> u64 {
    // SAFETY: the caller's promise; the borrow ends with the expression.
    unsafe {
        match size {
            Size::B => u64::from(AtomicU8::from_ptr(address as *mut u8).load(order)),
            Size::H => u64::from(AtomicU16::from_ptr(address as *mut u16).load(order)),
            Size::W => u64::from(AtomicU32::from_ptr(address as *mut u32).load(order)),
            Size::DW => AtomicU64::from_ptr(address as *mut u64).load(order),
        }
    }
}

/// # Safety
/// The bytes can be written and are aligned.
unsafe fn store_ordered(address: u64, size: Size, value: u64, order: Ordering) {
    // SAFETY: the caller's promise; the borrow ends with the expression.
    unsafe {
        match size {
            Size::B => AtomicU8::from_ptr(address as *mut u8).store(value as u8, order),
            Size::H => AtomicU16::from_ptr(address as *mut u16).store(value as u16, order),
            Size::W => AtomicU32::from_ptr(address as *mut u32).store(value as u32, order),
            Size::DW => AtomicU64::from_ptr(address as *mut u64).store(value, order),
        }
    }
}

/// # Safety
/// The bytes can be read.
pub(super) unsafe fn load_acquire(address: u64, size: Size) -> Result<u64, AccessError> {
    aligned(address, size)?;
    // SAFETY: the caller's promise; alignment is checked.
    Ok(unsafe { load_ordered(address, size, Ordering::Acquire) })
}

/// # Safety
/// The bytes can be written.
pub(super) unsafe fn store_release(address: u64, size: Size, value: u64) -> Result<(), AccessError> {
    aligned(address, size)?;
    // SAFETY: the caller's promise; alignment is checked.
    unsafe { store_ordered(address, size, value, Ordering::Release) };
    Ok(())
}

/// # Safety
/// The bytes can be written.
pub(super) unsafe fn fetch_update(
    address: u64,
    size: Size,
    op: AtomicOp,
    operand: u64,
) -> Result<u64, AccessError> {
    aligned(address, size)?;
    macro_rules! update {
        ($atomic:ty, $int:ty) => {{
            // SAFETY: the caller's promise; alignment is checked.
            let place = unsafe { <$atomic>::from_ptr(address as *mut $int) };
            let operand = operand as $int;
            let old = match op {
                AtomicOp::Add => place.fetch_add(operand, Ordering::SeqCst),
                AtomicOp::Or => place.fetch_or(operand, Ordering::SeqCst),
                AtomicOp::And => place.fetch_and(operand, Ordering::SeqCst),
                AtomicOp::Xor => place.fetch_xor(operand, Ordering::SeqCst),
                _ => place.swap(operand, Ordering::SeqCst),
            };
            u64::from(old)
        }};
    }
    // The encoding has no atomic update of one or two bytes.
    Ok(match size {
        Size::B | Size::H | Size::W => update!(AtomicU32, u32),
        Size::DW => update!(AtomicU64, u64),
    })
}

/// # Safety
/// The bytes can be written.
pub(super) unsafe fn compare_exchange(
    address: u64,
    size: Size,
    expected: u64,
    new: u64,
) -> Result<u64, AccessError> {
    aligned(address, size)?;
    let order = Ordering::SeqCst;
    Ok(match size {
        Size::B | Size::H | Size::W => {
            // SAFETY: the caller's promise; alignment is checked.
            let place = unsafe { AtomicU32::from_ptr(address as *mut u32) };
            let (Ok(old) | Err(old)) = place.compare_exchange(expected as u32, new as u32, order, order);
            u64::from(old)
        }
        Size::DW => {
            // SAFETY: the caller's promise; alignment is checked.
            let place = unsafe { AtomicU64::from_ptr(address as *mut u64) };
            let (Ok(old) | Err(old)) = place.compare_exchange(expected, new, order, order);
            old
        }
    })
}
