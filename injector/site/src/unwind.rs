//! `.eh_frame`: where functions start and end, and where exceptions land (LSB 5.0, chapter 10.6; Itanium C++ ABI, exception
//! handling tables).

use crate::Binary;
use object::elf;
use std::ops::Range;

/// Functions and landing pads of an object.
#[derive(Debug, Default)]
pub(crate) struct Unwind {
    /// In order of start.
    functions: Vec<Range<u64>>,
    /// Starts of those that begin in the middle of a frame, in order.
    fragments: Vec<u64>,
    landing_pads: Vec<u64>,
    /// Functions that go on in another frame, with the exception in the registers of results.
    returning_elsewhere: Vec<u64>,
}

const OMIT: u8 = 0xff;
/// Registers by their numbers in `.eh_frame`: rax, rdx, rbx, rbp, r12 to r15.
const RETURNS_ELSEWHERE: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 6 | 0xf << 12;
/// Most call sites that are read for one function; more is damage.
const CALL_SITES_MAX: usize = 1 << 20;

impl Unwind {
    pub(crate) fn read(binary: &Binary) -> Unwind {
        let mut unwind = Unwind::default();
        if let Some(start) = frame_section(binary) {
            let bytes = binary.bytes_from(start).unwrap_or_default();
            unwind.read_frames(binary, bytes, start);
        }
        unwind.functions.sort_unstable_by_key(|r| (r.start, r.end));
        unwind.functions.dedup();
        unwind.fragments.sort_unstable();
        unwind
    }

    /// Functions, in order of start.
    pub(crate) fn functions(&self) -> impl Iterator<Item = &Range<u64>> {
        self.functions.iter()
    }

    pub(crate) fn landing_pads(&self) -> &[u64] {
        &self.landing_pads
    }

    /// The code that starts there has a frame already: it is a part of a function that the compiler has put elsewhere, reached by
    /// jumps. At the entry of a function the return address is the last word of the stack.
    pub(crate) fn is_fragment(&self, vaddr: u64) -> bool {
        self.fragments.binary_search(&vaddr).is_ok()
    }

    /// Functions that end in another frame than their caller's, as GCC makes those of its unwinder (`__builtin_eh_return`): they save the
    /// registers in which a handler is given its exception, besides all that a call keeps.
    pub(crate) fn returning_elsewhere(&self) -> impl Iterator<Item = u64> {
        self.returning_elsewhere.iter().copied().filter(|&start| !self.is_fragment(start))
    }

    pub(crate) fn covering(&self, vaddr: u64) -> Option<Range<u64>> {
        let behind = self.functions.partition_point(|f| f.start <= vaddr);
        let found = self.functions.get(behind.checked_sub(1)?)?;
        (vaddr < found.end).then(|| found.clone())
    }

    fn read_frames(&mut self, binary: &Binary, bytes: &[u8], start: u64) {
        let mut at = 0;
        while let Some(len) = read_u32(bytes, at) {
            let body = at + 4;
            if len == 0 || len == u32::MAX {
                break;
            }
            let Some(end) = body.checked_add(len as usize).filter(|&e| e <= bytes.len()) else { break };
            if let Some(back) = read_u32(bytes, body).filter(|&b| b != 0)
                && let Some(cie) = body.checked_sub(back as usize)
            {
                let common = Cie::read(bytes, cie).unwrap_or_default();
                self.read_function(binary, &bytes[..end], start, body + 4, &common);
            }
            at = end;
        }
    }

    fn read_function(
        &mut self,
        binary: &Binary,
        bytes: &[u8],
        start: u64,
        at: usize,
        cie: &Cie,
    ) -> Option<()> {
        let mut reader = Reader { bytes, at, vaddr: start };
        let from = reader.encoded(cie.pointers)?;
        let len = reader.encoded(cie.pointers & 0x0f)?;
        if len == 0 || !binary.is_executable(from) {
            return None;
        }
        // A signal frame's entry begins one byte early, for unwinders that look up the address before a return address.
        let start = if cie.signal_frame { from.checked_add(1)? } else { from };
        self.functions.push(start..from.checked_add(len)?);
        let mut rules = Reader { bytes, at: reader.at, vaddr: 0 };
        if cie.augmented {
            let len = rules.uleb()?;
            rules.at = rules.at.checked_add(usize::try_from(len).ok()?)?;
        }
        let saved = Reader { ..rules }.saved();
        if saved & RETURNS_ELSEWHERE == RETURNS_ELSEWHERE {
            self.returning_elsewhere.push(start);
        }
        if rules.begin_in_a_frame().unwrap_or(false) {
            self.fragments.push(start);
        }
        if cie.augmented {
            reader.uleb()?;
            if cie.lsda != OMIT {
                let lsda = reader.encoded(cie.lsda)?;
                if lsda != 0 {
                    self.read_landing_pads(binary, lsda, from);
                }
            }
        }
        Some(())
    }

    fn read_landing_pads(&mut self, binary: &Binary, lsda: u64, function: u64) -> Option<()> {
        let mut reader = Reader { bytes: binary.bytes_from(lsda)?, at: 0, vaddr: lsda };
        let start_encoding = reader.byte()?;
        let base = if start_encoding == OMIT { function } else { reader.encoded(start_encoding)? };
        if reader.byte()? != OMIT {
            reader.uleb()?;
        }
        let encoding = reader.byte()? & 0x0f;
        let len = reader.uleb()? as usize;
        let end = reader.at.checked_add(len)?.min(reader.bytes.len());
        for _ in 0..CALL_SITES_MAX {
            if reader.at >= end {
                break;
            }
            reader.encoded(encoding)?;
            reader.encoded(encoding)?;
            let pad = reader.encoded(encoding)?;
            reader.uleb()?;
            if pad != 0 {
                self.landing_pads.push(base.wrapping_add(pad));
            }
        }
        Some(())
    }
}

impl Binary {
    /// The call frame information in `.eh_frame`: its link-time address, and its bytes (without section headers, up to the end
    /// of its segment: its last entry is marked).
    pub fn frame_table(&self) -> Option<(u64, &[u8])> {
        if let Some(section) = self.section(".eh_frame") {
            return Some((section.vaddr, self.data().get(section.bytes.clone())?));
        }
        let vaddr = frame_section(self)?;
        Some((vaddr, self.bytes_from(vaddr)?))
    }
}

/// Address of the first entry: by section, or through the search table's header.
fn frame_section(binary: &Binary) -> Option<u64> {
    if let Some(section) = binary.section(".eh_frame") {
        return Some(section.vaddr);
    }
    let (vaddr, range) = binary.program_header(elf::PT_GNU_EH_FRAME.0)?;
    let bytes = binary.data().get(range)?;
    let encoding = *bytes.get(1)?;
    Reader { bytes, at: 4, vaddr }.encoded(encoding)
}

/// What the functions' entries share.
#[derive(Default)]
struct Cie {
    pointers: u8,
    lsda: u8,
    augmented: bool,
    signal_frame: bool,
}

impl Cie {
    fn read(bytes: &[u8], at: usize) -> Option<Cie> {
        let mut cie = Cie { pointers: 0, lsda: OMIT, augmented: false, signal_frame: false };
        let mut reader = Reader { bytes, at: at.checked_add(8)?, vaddr: 0 };
        let version = reader.byte()?;
        let rest = bytes.get(reader.at..)?;
        let augmentation = &rest[..rest.iter().position(|&b| b == 0)?];
        reader.at += augmentation.len() + 1;
        reader.uleb()?;
        reader.uleb()?;
        if version == 1 {
            reader.byte()?;
        } else {
            reader.uleb()?;
        }
        for &letter in augmentation {
            match letter {
                b'z' => {
                    cie.augmented = true;
                    reader.uleb()?;
                }
                b'R' => cie.pointers = reader.byte()?,
                b'S' => cie.signal_frame = true,
                b'L' => cie.lsda = reader.byte()?,
                b'P' => {
                    let encoding = reader.byte()?;
                    reader.encoded(encoding & 0x7f)?;
                }
                _ => {}
            }
        }
        Some(cie)
    }
}

/// Reads pointers as `DW_EH_PE_*` encodes them.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Address of the first byte.
    vaddr: u64,
}

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let value = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(value)
    }

    fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        let value = self.bytes.get(self.at..self.at.checked_add(N)?)?.try_into().ok()?;
        self.at += N;
        Some(value)
    }

    fn uleb(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn sleb(&mut self) -> Option<u64> {
        let mut value = 0i64;
        for shift in (0..70u32).step_by(7) {
            let byte = self.byte()?;
            value |= i64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                let width = shift + 7;
                let sign = if width < 64 && byte & 0x40 != 0 { -1i64 << width } else { 0 };
                return Some((value | sign) as u64);
            }
        }
        None
    }

    /// The rules for the first instruction differ from those at a call: something is saved already, or the return address is not at
    /// the stack pointer (DWARF 5, 6.4.2; in `.eh_frame`, register 7 is rsp).
    fn begin_in_a_frame(&mut self) -> Option<bool> {
        const RSP: u64 = 7;
        loop {
            let operation = self.byte()?;
            let differs = match operation {
                // nop, remember_state
                0x00 | 0x0a => false,
                // GNU_args_size
                0x2e => {
                    self.uleb()?;
                    false
                }
                // offset, offset_extended, val_expression and expression: a saved register
                0x80..=0xbf | 0x05 | 0x10 | 0x16 => true,
                // def_cfa
                0x0c => (self.uleb()?, self.uleb()?) != (RSP, 8),
                // def_cfa_register
                0x0d => self.uleb()? != RSP,
                // def_cfa_offset
                0x0e => self.uleb()? != 8,
                // def_cfa_expression
                0x0f => true,
                // The first advance, or something that is not known.
                _ => return Some(false),
            };
            if differs {
                return Some(true);
            }
        }
    }

    /// The registers that are saved at some place of the function, one bit each; up to the first rule that is not known (DWARF 5, 6.4.2).
    fn saved(&mut self) -> u32 {
        let mut saved = 0;
        while let Some(register) = self.next_rule() {
            saved |= register.and_then(|register| 1u32.checked_shl(register)).unwrap_or(0);
        }
        saved
    }

    /// Passes one rule; the register that it says is saved.
    fn next_rule(&mut self) -> Option<Option<u32>> {
        let operation = self.byte()?;
        let (skipped, numbers) = match operation {
            // offset, offset_extended
            0x80..=0xbf => {
                self.uleb()?;
                return Some(Some(u32::from(operation & 0x3f)));
            }
            0x05 => {
                let register = self.uleb()?;
                self.uleb()?;
                return Some(u32::try_from(register).ok());
            }
            // Advances, restore, nop, and what remembers and restores all.
            0x40..=0x7f | 0xc0..=0xff | 0x00 | 0x0a | 0x0b => (0, 0),
            0x02 => (1, 0),
            0x03 => (2, 0),
            0x04 => (4, 0),
            // restore_extended, undefined, same_value, def_cfa_register, def_cfa_offset, GNU_args_size
            0x06..=0x08 | 0x0d | 0x0e | 0x2e => (0, 1),
            // register, def_cfa
            0x09 | 0x0c => (0, 2),
            // def_cfa_expression; expression, val_expression
            0x0f => (self.uleb()?, 0),
            0x10 | 0x16 => {
                self.uleb()?;
                (self.uleb()?, 0)
            }
            _ => return None,
        };
        self.at = self.at.checked_add(usize::try_from(skipped).ok()?)?;
        for _ in 0..numbers {
            self.uleb()?;
        }
        Some(None)
    }

    /// One value; pc-relative ones become addresses. Indirect ones are not followed: 0.
    fn encoded(&mut self, encoding: u8) -> Option<u64> {
        if encoding == OMIT {
            return Some(0);
        }
        let place = self.vaddr.wrapping_add(self.at as u64);
        let value = match encoding & 0x0f {
            0x00 | 0x04 | 0x0c => u64::from_le_bytes(self.fixed()?),
            0x01 => self.uleb()?,
            0x02 => u64::from(u16::from_le_bytes(self.fixed()?)),
            0x03 => u64::from(u32::from_le_bytes(self.fixed()?)),
            0x09 => self.sleb()?,
            0x0a => i64::from(i16::from_le_bytes(self.fixed()?)) as u64,
            0x0b => i64::from(i32::from_le_bytes(self.fixed()?)) as u64,
            _ => return None,
        };
        if value == 0 {
            return Some(0);
        }
        match encoding & 0x70 {
            0x00 => Some(value),
            0x10 => Some(value.wrapping_add(place)),
            _ => None,
        }
    }
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}
