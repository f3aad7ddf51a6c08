//! Distances that a 32-bit displacement spans.

use std::ops::Range;

/// How far code may lie from what it refers to: 2 GiB, less room for what lies behind both ends.
pub const REACH: u64 = (1 << 31) - (1 << 24);

/// The addresses within `distance` of `address`.
pub fn around(address: u64, distance: u64) -> Range<u64> {
    address.saturating_sub(distance)..address.saturating_add(distance)
}

/// The addresses from which everything in `range` is in reach; empty when it is too long.
pub fn serving(range: Range<u64>) -> Range<u64> {
    range.end.saturating_sub(REACH)..range.start.saturating_add(REACH)
}
