//! Restartable sequences (rseq(2)): code that the kernel restarts when its thread is interrupted inside it. It knows
//! them by address, so a displaced instruction would not be part of one any more.

use crate::Binary;
use crate::dynamic::word;
use std::ops::Range;

/// Where `struct rseq_cs` are put by convention (librseq, tcmalloc).
const SECTION: &str = "__rseq_cs";

/// Bytes of a `struct rseq_cs`: version and flags, start, length, abort handler.
const DESCRIPTOR: usize = 32;

/// Bytes of the signature before an abort handler.
const SIGNATURE: u64 = 4;

/// The sequences, and the signatures before their abort handlers.
pub(crate) fn read(binary: &Binary) -> Vec<Range<u64>> {
    let Some(section) = binary.section(SECTION) else { return Vec::new() };
    let bytes = &binary.data()[section.bytes.clone()];
    let mut ranges = Vec::new();
    for (i, descriptor) in bytes.chunks_exact(DESCRIPTOR).enumerate() {
        let place = section.vaddr.wrapping_add((i * DESCRIPTOR) as u64);
        // In a position-independent object the loader writes the addresses.
        let address = |offset: usize| {
            let stored = binary.dynamic().stored_at(place.wrapping_add(offset as u64));
            stored.unwrap_or_else(|| word(descriptor, offset))
        };
        let (start, len, abort) = (address(8), word(descriptor, 16), address(24));
        ranges.push(start..start.saturating_add(len));
        ranges.push(abort.saturating_sub(SIGNATURE)..abort);
    }
    ranges
}

/// `range` has bytes of a sequence or a signature in it.
pub(crate) fn touches(binary: &Binary, range: Range<u64>) -> bool {
    binary.restartable().iter().any(|r| r.start < range.end && range.start < r.end)
}
