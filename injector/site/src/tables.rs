//! Jump tables, as far as they can be read without running the code that jumps.
//!
//! ```text
//! offsets:     table: │ case0 - base │ case1 - base │ …    base: the table itself, or a label that the same function takes
//! addresses:   table: │ case0 │ case1 │ …
//! ```
//!
//! A table ends at the first entry that leads to no instruction.

use crate::binary::Binary;
use std::ops::Range;

/// Most entries of one jump table.
const ENTRIES_MAX: usize = 1 << 16;
/// Entries in a row that lead to a table's base itself: more are data that are zero.
const ZEROS_MAX: u32 = 1 << 10;

/// How the entries of a table are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Entries {
    /// Signed offsets of 32 bits.
    Short,
    /// Signed offsets of 64 bits; from base 0: addresses.
    Long,
}

impl Entries {
    pub(crate) const ALL: [Entries; 2] = [Entries::Short, Entries::Long];

    fn len(self) -> usize {
        match self {
            Entries::Short => 4,
            Entries::Long => 8,
        }
    }

    fn read(self, entry: &[u8]) -> Option<i64> {
        match self {
            Entries::Short => Some(i64::from(i32::from_le_bytes(entry.try_into().ok()?))),
            Entries::Long => Some(i64::from_le_bytes(entry.try_into().ok()?)),
        }
    }
}

/// Where the entries of the table at `table` lead, offsets being from `base`; at most `room` bytes are read.
pub(crate) fn targets<'b>(
    binary: &'b Binary,
    table: u64,
    base: u64,
    entries: Entries,
    room: usize,
    is_instruction: impl Fn(u64) -> bool + 'b,
) -> impl Iterator<Item = u64> + 'b {
    let bytes = binary.section_at(table).and_then(|_| binary.bytes_from(table)).unwrap_or_default();
    let mut zeros = 0;
    let chunks = bytes[..room.min(bytes.len())].chunks_exact(entries.len()).take(ENTRIES_MAX);
    chunks.map_while(move |entry| {
        let offset = entries.read(entry)?;
        zeros = if offset == 0 { zeros + 1 } else { 0 };
        let target = base.wrapping_add_signed(offset);
        (zeros <= ZEROS_MAX && is_instruction(target)).then_some(target)
    })
}

/// Code with a jump that nobody understands: it may go to any instruction there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Opaque {
    pub(crate) range: Range<u64>,
    /// The jump.
    pub(crate) jump: u64,
    /// Data lie among the code: where instructions begin is not known either.
    pub(crate) has_data: bool,
}
