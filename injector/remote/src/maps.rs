//! The mappings of a process, as `/proc/PID/maps` lists them.

use std::ops::Range;

/// One mapping.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Behind the last one.
    pub end: u64,
    /// It can be read.
    pub read: bool,
    /// It can be written.
    pub write: bool,
    /// It can be executed.
    pub execute: bool,
    /// Writes reach the file, or other processes.
    pub shared: bool,
    /// Offset of `start` in the file.
    pub offset: u64,
    /// Device of the file as `stat` would give it, 0 = no file.
    pub device: u64,
    /// Inode of the file, 0 = no file.
    pub inode: u64,
    /// Path of the file, or a name like `[stack]`; empty when it is anonymous.
    pub name: String,
}

impl Mapping {
    /// Bytes in it.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// True for a mapping without bytes, which the kernel never lists.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True when `address` lies in it.
    pub fn holds(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }

    /// It is a mapping of a file that has been removed since.
    pub fn is_deleted(&self) -> bool {
        self.name.ends_with(" (deleted)")
    }
}

/// All mappings of a process, in the order of their addresses.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mappings(Vec<Mapping>);

/// The lowest address that we use. Below it dereferenced null pointers have to fault.
const LOWEST: u64 = 0x10_0000;
/// The highest: the end of the lower half (4-level paging).
const HIGHEST: u64 = 0x7fff_ffff_f000;
/// Addresses above a heap, and below a stack, that are left for it to grow into.
const GROWTH: u64 = 1 << 30;
const PAGE: u64 = 4096;

impl Mappings {
    /// Reads the text of `/proc/PID/maps`. Lines that are not understood are left out.
    pub fn parse(text: &str) -> Mappings {
        Mappings(text.lines().filter_map(parse_line).collect())
    }

    /// The mappings.
    pub fn iter(&self) -> std::slice::Iter<'_, Mapping> {
        self.0.iter()
    }

    /// The mapping that holds `address`.
    pub fn at(&self, address: u64) -> Option<&Mapping> {
        let index = self.0.partition_point(|mapping| mapping.end <= address);
        self.0.get(index).filter(|mapping| mapping.holds(address))
    }

    /// The first mapping of this name.
    pub fn named(&self, name: &str) -> Option<&Mapping> {
        self.0.iter().find(|mapping| mapping.name == name)
    }

    /// A free, page-aligned range of `len` bytes that lies in `reach` as a whole, as near to the middle of `reach` as
    /// possible. Room for a heap and for the main stack to grow into is left free, and so is all of `avoid`.
    pub fn free_range(&self, len: u64, reach: Range<u64>, avoid: &[Range<u64>]) -> Option<u64> {
        let len = len.checked_next_multiple_of(PAGE)?;
        let middle = reach.start + (reach.end - reach.start) / 2;
        let reach = reach.start.max(LOWEST).next_multiple_of(PAGE)..reach.end.min(HIGHEST) & !(PAGE - 1);
        let mut best: Option<u64> = None;
        for gap in self.gaps(avoid) {
            let (low, high) = (gap.start.max(reach.start), gap.end.min(reach.end));
            // One page stays free on both sides, so that nothing of ours adjoins a mapping of the target's.
            let (Some(low), Some(high)) = (low.checked_add(PAGE), high.checked_sub(len + PAGE)) else {
                continue;
            };
            if low > high {
                continue;
            }
            let address = middle.clamp(low, high) & !(PAGE - 1);
            if best.is_none_or(|best| address.abs_diff(middle) < best.abs_diff(middle)) {
                best = Some(address);
            }
        }
        best
    }

    fn gaps(&self, avoid: &[Range<u64>]) -> Vec<Range<u64>> {
        let mut taken: Vec<Range<u64>> = self.0.iter().map(occupied).chain(avoid.iter().cloned()).collect();
        taken.sort_unstable_by_key(|range| range.start);
        let mut gaps = Vec::new();
        let mut end = LOWEST;
        for range in taken {
            if range.start > end {
                gaps.push(end..range.start);
            }
            end = end.max(range.end);
        }
        if end < HIGHEST {
            gaps.push(end..HIGHEST);
        }
        gaps
    }
}

/// The addresses that a mapping takes, with what it may grow into.
fn occupied(mapping: &Mapping) -> Range<u64> {
    match mapping.name.as_str() {
        "[heap]" => mapping.start..mapping.end.saturating_add(GROWTH),
        "[stack]" => mapping.start.saturating_sub(GROWTH)..mapping.end,
        _ => mapping.start..mapping.end,
    }
}

/// `start-end rwxp offset major:minor inode   name`.
fn parse_line(line: &str) -> Option<Mapping> {
    let mut rest = line;
    let mut word = || {
        rest = rest.trim_start_matches(' ');
        let (word, tail) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = tail;
        word
    };
    let (start, end) = word().split_once('-')?;
    let permissions = word().as_bytes();
    let offset = u64::from_str_radix(word(), 16).ok()?;
    let (major, minor) = word().split_once(':')?;
    let inode = word().parse().ok()?;
    let device = libc::makedev(u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    (permissions.len() == 4 && start < end).then(|| Mapping {
        start,
        end,
        read: permissions[0] == b'r',
        write: permissions[1] == b'w',
        execute: permissions[2] == b'x',
        shared: permissions[3] == b's',
        offset,
        device,
        inode,
        name: rest.trim_start_matches(' ').to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
00400000-00401000 r--p 00000000 08:01 1234                               /usr/bin/a b
00401000-00402000 r-xp 00001000 08:01 1234                               /usr/bin/a b
01000000-01021000 rw-p 00000000 00:00 0                                  [heap]
7f0000000000-7f0000200000 r-xp 00000000 fe:00 77                         /lib/x.so (deleted)
7f0000200000-7f0000201000 rw-s 00000000 00:05 9                          
7ffe00000000-7ffe00021000 rw-p 00000000 00:00 0                          [stack]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
garbage
";

    #[test]
    fn lines() {
        let maps = Mappings::parse(TEXT);
        assert_eq!(maps.iter().count(), 7);
        let text = maps.at(0x40_1fff).unwrap();
        assert_eq!((text.name.as_str(), text.offset, text.inode), ("/usr/bin/a b", 0x1000, 1234));
        assert_eq!(text.device, libc::makedev(8, 1));
        assert!(text.execute && !text.write && !text.shared);
        assert!(maps.at(0x40_2000).is_none());
        assert!(maps.at(0x7f00_0000_0000).unwrap().is_deleted());
        assert!(maps.at(0x7f00_0020_0000).unwrap().shared);
        assert_eq!(maps.named("[heap]").unwrap().len(), 0x21000);
    }

    #[test]
    fn free_ranges_are_free_and_in_reach() {
        let maps = Mappings::parse(TEXT);
        let reach = |near: u64| near.saturating_sub(0x7000_0000)..near + 0x7000_0000;
        let low = maps.free_range(0x10000, reach(0x40_1000), &[]).unwrap();
        assert!(reach(0x40_1000).contains(&low), "{low:#x}");
        assert!(maps.iter().all(|mapping| low + 0x10000 <= mapping.start || low >= mapping.end));
        // The heap keeps its room.
        assert!(!(0x0100_0000..0x0100_0000 + GROWTH).contains(&low));
        let high = maps.free_range(0x10000, reach(0x7f00_0000_0000), &[]).unwrap();
        assert!(high.abs_diff(0x7f00_0000_0000) < 0x30_0000, "{high:#x}");
        let taken = high..high + 0x10000;
        let other = maps.free_range(0x10000, reach(0x7f00_0000_0000), std::slice::from_ref(&taken)).unwrap();
        assert!(other + 0x10000 <= high || other >= high + 0x10000);
        assert_eq!(maps.free_range(0x10000, 0x40_0000..0x40_2000, &[]), None);
    }
}
