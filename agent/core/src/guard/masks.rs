//! Masks that a process is about to put in force.
//!
//! A mask that has a guarded signal in it stays as it is; the call gets a copy without, in an entry of the guard's that the call has
//! until it ends. Behind the call the register is the process's again. The same with a handler's mask, in its action.

use super::kernel::read;
use beeline_abi::guard::{Guard, MASKED, Masked};
use beeline_abi::thread::HASH_MULTIPLIER;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Bytes of a mask.
const MASK_LEN: u64 = 8;

/// Lets `register`, the address of a mask of `size` bytes, point to a copy if need be.
pub(super) fn replace(guard: &Guard, signals: u64, register: &mut u64, size: u64, sp: u64) {
    if size == MASK_LEN
        && let Some(entry) = copied(guard, signals, *register, *register, sp)
    {
        *register = address_of(entry, MASK);
    }
}

/// The same for the address of a mask's address and size.
pub(super) fn replace_behind(guard: &Guard, signals: u64, register: &mut u64, sp: u64) {
    if *register == 0 {
        return;
    }
    if let Some([mask, MASK_LEN]) = read(guard, *register)
        && let Some(entry) = copied(guard, signals, mask, *register, sp)
    {
        let [address, size, ..] = &entry.words;
        address.store(address_of(entry, MASK), Relaxed);
        size.store(MASK_LEN, Relaxed);
        *register = address_of(entry, 0);
    }
}

/// Lets `register`, the address of an action, point to one with another mask.
pub(super) fn replace_action(guard: &Guard, register: &mut u64, action: [u64; 4], sp: u64) {
    if let Some(entry) = take(guard, sp) {
        entry.original.store(*register, Relaxed);
        for (to, word) in entry.words.iter().zip(action) {
            to.store(word, Relaxed);
        }
        *register = address_of(entry, 0);
    }
}

/// Which of the words is the mask.
const MASK: usize = 2;

fn address_of(entry: &Masked, word: usize) -> u64 {
    (&raw const entry.words) as u64 + 8 * word as u64
}

/// An entry with the copy of a mask; none when it blocks no guarded signal, or cannot be read: then the kernel says so.
fn copied(guard: &Guard, signals: u64, mask: u64, original: u64, sp: u64) -> Option<&Masked> {
    if mask == 0 {
        return None;
    }
    let [mask] = read(guard, mask)?;
    if mask & signals == 0 {
        return None;
    }
    let entry = take(guard, sp)?;
    entry.original.store(original, Relaxed);
    let [.., copy, _] = &entry.words;
    copy.store(mask & !signals, Relaxed);
    Some(entry)
}

/// A free entry, or the one that the last call with this stack pointer had: it did not return. None when every entry is in use: the
/// call is made as it is.
fn take(guard: &Guard, sp: u64) -> Option<&Masked> {
    let home = (sp.wrapping_mul(HASH_MULTIPLIER) >> 32) as usize;
    (0..MASKED).find_map(|distance| {
        let entry = guard.masked.get(home.wrapping_add(distance) % MASKED)?;
        match entry.sp.load(Relaxed) {
            mine if mine == sp => Some(entry),
            0 => entry.sp.compare_exchange(0, sp, Acquire, Relaxed).is_ok().then_some(entry),
            _ => None,
        }
    })
}

/// Puts the process's own address back into a register that has ours, and frees the entry.
pub(super) fn give_back(guard: &Guard, register: &mut u64, sp: u64) {
    let start = (&raw const guard.masked) as u64;
    let index = register.wrapping_sub(start) / size_of::<Masked>() as u64;
    if *register < start {
        return;
    }
    let Some(entry) = guard.masked.get(index as usize) else { return };
    if entry.sp.load(Relaxed) == sp {
        *register = entry.original.load(Relaxed);
        entry.sp.store(0, Release);
    }
}
