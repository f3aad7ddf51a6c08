//! Keys: how they are hashed, compared and kept.
//!
//! A key of at most eight bytes is one word in a register; longer ones are compared word by word. In an element a key
//! takes whole words, zero above its last byte.

use crate::memory::{copy_in, read_partial};
use beeline_abi::map::MapHandle;
use core::sync::atomic::{AtomicU64, Ordering};

/// Calls `$body` with the key at `$at` in the form that suits the map's key size.
macro_rules! with_key {
    ($map:expr, $at:expr, |$key:ident| $body:expr) => {{
        let len = u64::from($map.shape.key_size);
        if len <= 8 {
            let $key = $crate::key::ShortKey($crate::memory::read_partial($at, len));
            $body
        } else {
            let $key = $crate::key::LongKey { at: $at, len };
            $body
        }
    }};
}
pub(crate) use with_key;

/// A key as an operation holds it.
pub(crate) trait Key: Copy {
    /// Where it belongs: the low bits select the bucket.
    fn hash(self, seed: u32) -> u64;
    /// Whether the key in an element is this one.
    ///
    /// # Safety
    /// `at` is aligned to 8 and readable for the key's size rounded up to a multiple of 8.
    unsafe fn matches(self, at: *const u8) -> bool;
    /// Writes it to an element.
    ///
    /// # Safety
    /// As [`matches`](Key::matches), and writable.
    unsafe fn store(self, at: *mut u8);
}

/// Hash of the key of the map's size that lies at `at`.
///
/// # Safety
/// It is readable.
pub(crate) unsafe fn hash_at(map: &MapHandle, at: *const u8) -> u64 {
    // SAFETY: by the caller's contract.
    unsafe { with_key!(map, at, |key| key.hash(map.seed)) }
}

/// Whether two elements have the same key.
///
/// # Safety
/// Both are aligned to 8 and readable for the key's size rounded up to a multiple of 8.
pub(crate) unsafe fn is_same(map: &MapHandle, a: *const u8, b: *const u8) -> bool {
    // SAFETY: by the caller's contract.
    unsafe { with_key!(map, a, |key| key.matches(b)) }
}

/// At most eight bytes, zero-extended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShortKey(pub(crate) u64);

/// More than eight bytes, in the caller's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LongKey {
    pub(crate) at: *const u8,
    pub(crate) len: u64,
}

/// Odd constants with balanced bits (the golden ratio's, and one of splitmix64's).
const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;
const MULTIPLIER_2: u64 = 0xBF58_476D_1CE4_E5B9;

/// Product of both as 128 bits, folded: every bit of the input reaches the low bits.
#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

/// The seed in both halves of a word: `fold` must not lose it in zeros.
#[inline(always)]
fn spread(seed: u32) -> u64 {
    (u64::from(seed) << 32 | u64::from(seed)) ^ MULTIPLIER_2
}

impl Key for ShortKey {
    #[inline(always)]
    fn hash(self, seed: u32) -> u64 {
        fold(self.0 ^ spread(seed), MULTIPLIER)
    }

    #[inline(always)]
    unsafe fn matches(self, at: *const u8) -> bool {
        // SAFETY: by the caller's contract.
        unsafe { (*at.cast::<AtomicU64>()).load(Ordering::Relaxed) == self.0 }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut u8) {
        // SAFETY: by the caller's contract.
        unsafe { (*at.cast::<AtomicU64>()).store(self.0, Ordering::Relaxed) }
    }
}

impl Key for LongKey {
    #[inline]
    fn hash(self, seed: u32) -> u64 {
        let mut hash = spread(seed) ^ self.len;
        let mut at = 0;
        while at < self.len {
            // SAFETY: a `LongKey` is made for readable memory of `len` bytes.
            let value = unsafe { read_partial(self.at.add(at as usize), self.len - at) };
            hash = fold(hash ^ value, MULTIPLIER).rotate_left(23);
            at += 8;
        }
        fold(hash, MULTIPLIER_2)
    }

    #[inline]
    unsafe fn matches(self, at: *const u8) -> bool {
        let mut offset = 0;
        while offset < self.len {
            // SAFETY: both sides are readable for the key's length, by the caller's contract.
            let same = unsafe {
                let kept = (*at.add(offset as usize).cast::<AtomicU64>()).load(Ordering::Relaxed);
                kept == read_partial(self.at.add(offset as usize), self.len - offset)
            };
            if !same {
                return false;
            }
            offset += 8;
        }
        true
    }

    #[inline]
    unsafe fn store(self, at: *mut u8) {
        // SAFETY: by the caller's contract.
        unsafe { copy_in(at, self.at, self.len) }
    }
}
