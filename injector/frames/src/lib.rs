//! Tables by which stacks without frame pointers are walked: `.eh_frame` of a file as sorted [`UnwindRow`]s.
//!
//! ```text
//! .eh_frame: a program for each function ──run once, here──▶ Rows: from this address on, the CFA is rsp + 24, rbp at CFA - 16
//! ```
//!
//! Only what is needed for the next frame is kept: the CFA and rbp. A rule that does not fit into a row becomes
//! [`Cfa::UNKNOWN`], from which the walker goes on by frame pointers. Bytes of a file are another party's word: garbage
//! gives fewer rows, never a panic.
#![forbid(unsafe_code)]

mod rule;

use beeline_abi::unwind::{Cfa, UnwindRow};
use beeline_site::{Binary, Segment};
use gimli::{BaseAddresses, CieOrFde, EhFrame, LittleEndian, UnwindContext, UnwindSection};
use rule::Rule;

/// Most rows that are made of one file; what lies behind is walked by frame pointers.
pub const ROWS_MAX: usize = 1 << 23;

/// The rows of a file, in order of address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// The link-time address that the rows' offsets count from.
    pub base: u64,
    /// The rows. The last one is [`Cfa::UNKNOWN`]: what the table covers ends there.
    pub rows: Vec<UnwindRow>,
}

/// A stretch of code with one rule.
struct Stretch {
    start: u64,
    end: u64,
    rule: Rule,
}

impl Rows {
    /// Makes the rows of a file; none when it has no table, or it cannot be read at all.
    pub fn of(binary: &Binary) -> Rows {
        let Some((vaddr, bytes)) = binary.frame_table() else { return Rows::default() };
        let mut stretches = stretches(vaddr, bytes);
        stretches.sort_by_key(|stretch| stretch.start);
        Rows::from_sorted(&stretches)
    }

    fn from_sorted(stretches: &[Stretch]) -> Rows {
        let base = stretches.first().map_or(0, |first| first.start);
        let mut rows: Vec<UnwindRow> = Vec::new();
        let mut end = base;
        for stretch in stretches {
            // Where two functions claim the same bytes, the first one is believed.
            let start = stretch.start.max(end);
            if start >= stretch.end || rows.len() >= ROWS_MAX {
                continue;
            }
            if start > end {
                push(&mut rows, base, end, Rule::UNKNOWN);
            }
            push(&mut rows, base, start, stretch.rule);
            end = stretch.end;
        }
        push(&mut rows, base, end, Rule::UNKNOWN);
        Rows { base, rows }
    }

    /// The address that the rows' offsets count from, where `len` bytes of the file from `offset` on are mapped at `start`;
    /// none when they hold no code.
    pub fn base_in(&self, binary: &Binary, start: u64, offset: u64, len: u64) -> Option<u64> {
        // The mapping begins with a page, in front of the segment's first byte: bytes of another segment may be there.
        let overlaps = |segment: &&Segment| {
            segment.executable
                && offset < segment.file_offset.saturating_add(segment.file_size)
                && segment.file_offset < offset.saturating_add(len)
        };
        let segment = binary.segments().iter().find(overlaps)?;
        let bias = start.wrapping_sub(offset).wrapping_add(segment.file_offset).wrapping_sub(segment.vaddr);
        Some(bias.wrapping_add(self.base))
    }

    /// The row that holds at a link-time address.
    pub fn at(&self, vaddr: u64) -> Option<&UnwindRow> {
        let offset = u32::try_from(vaddr.checked_sub(self.base)?).ok()?;
        let behind = self.rows.partition_point(|row| row.start <= offset);
        self.rows.get(behind.checked_sub(1)?)
    }
}

/// Adds a row, unless it says what the last one says, or lies more than 4 GiB behind the first.
fn push(rows: &mut Vec<UnwindRow>, base: u64, at: u64, rule: Rule) {
    let Ok(start) = u32::try_from(at - base) else { return };
    if rows.last().is_some_and(|last| last.start == start) {
        rows.pop();
    }
    let row = rule.row(start);
    let says_nothing = match rows.last() {
        Some(last) => UnwindRow { start, ..*last } == row,
        None => row.cfa == Cfa::UNKNOWN,
    };
    if !says_nothing {
        rows.push(row);
    }
}

fn stretches(vaddr: u64, bytes: &[u8]) -> Vec<Stretch> {
    let section = EhFrame::new(bytes, LittleEndian);
    let bases = BaseAddresses::default().set_eh_frame(vaddr);
    let mut context = UnwindContext::new();
    let mut found = Vec::new();
    let mut entries = section.entries(&bases);
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else { continue };
        let Ok(function) = partial.parse(EhFrame::cie_from_offset) else { continue };
        let Ok(mut rows) = function.rows(&section, &bases, &mut context) else { continue };
        let signal = function.is_signal_trampoline();
        while let Ok(Some(row)) = rows.next_row() {
            let rule = Rule::of(&section, row, signal);
            // A signal's return is looked up at its exact address; its entry begins one byte early.
            found.push(Stretch { start: row.start_address(), end: row.end_address(), rule });
            if found.len() >= ROWS_MAX {
                return found;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretch(start: u64, end: u64, cfa_offset: i32) -> Stretch {
        Stretch { start, end, rule: Rule { cfa: Cfa::REGISTER + 7, cfa_offset, ..Rule::UNKNOWN } }
    }

    fn starts(rows: &Rows) -> Vec<(u32, u8, i32)> {
        rows.rows.iter().map(|row| (row.start, row.cfa, row.cfa_offset)).collect()
    }

    #[test]
    fn gaps_and_overlaps() {
        let rows = Rows::from_sorted(&[
            stretch(0x1000, 0x1010, 8),
            stretch(0x1010, 0x1020, 8),
            stretch(0x1018, 0x1030, 16),
            stretch(0x1040, 0x1041, 24),
        ]);
        let known = Cfa::REGISTER + 7;
        let expected = vec![(0, known, 8), (0x20, known, 16), (0x30, 0, 0), (0x40, known, 24), (0x41, 0, 0)];
        assert_eq!((rows.base, starts(&rows)), (0x1000, expected));
        assert_eq!(rows.at(0xfff), None);
        assert_eq!(rows.at(0x101f).map(|row| row.cfa_offset), Some(8));
        assert_eq!(rows.at(0x1020).map(|row| row.cfa_offset), Some(16));
        assert_eq!(rows.at(0x1_0000).map(|row| row.cfa), Some(Cfa::UNKNOWN));
        assert_eq!(rows.at(u64::MAX), None);
        assert_eq!(Rows::from_sorted(&[]), Rows::default());
    }

    #[test]
    fn more_than_four_gibibytes_are_left_out() {
        let rows = Rows::from_sorted(&[stretch(0, 8, 8), stretch(5 << 32, (5 << 32) + 8, 16)]);
        assert_eq!(starts(&rows), vec![(0, Cfa::REGISTER + 7, 8), (8, 0, 0)]);
    }
}
