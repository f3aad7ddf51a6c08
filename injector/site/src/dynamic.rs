//! The dynamic section: names of libraries, and the addresses that relocations make.

use crate::Binary;
use crate::binary::text;
use object::elf;

const DT_NEEDED: u64 = 1;
const DT_PLTGOT: u64 = 3;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;
const DT_SONAME: u64 = 14;
const DT_JMPREL: u64 = 23;
const DT_PLTRELSZ: u64 = 2;
const DT_RELRSZ: u64 = 35;
const DT_RELR: u64 = 36;
const DT_FLAGS_1: u64 = 0x6fff_fffb;
const DF_1_NODELETE: u64 = 8;
const DF_1_PIE: u64 = 0x0800_0000;
const R_X86_64_RELATIVE: u32 = 8;
const R_X86_64_IRELATIVE: u32 = 37;
const R_X86_64_GLOB_DAT: u32 = 6;
const R_X86_64_JUMP_SLOT: u32 = 7;
/// Bytes of a symbol (ELF-64, `Elf64_Sym`).
const SYMBOL_LEN: u64 = 24;

/// What the dynamic section says, as far as probes care.
#[derive(Debug, Default)]
pub(crate) struct Dynamic {
    pub(crate) needed: Vec<String>,
    pub(crate) soname: Option<String>,
    pub(crate) is_pie: bool,
    /// `dlclose` does not unmap it.
    pub(crate) is_never_unloaded: bool,
    /// The global offset table (`DT_PLTGOT`).
    pub(crate) offset_table: Option<u64>,
    /// Where the loader stores addresses inside the object, and which; in order of place.
    pub(crate) stored: Vec<(u64, u64)>,
    /// Where the loader stores the addresses of symbols, and offsets of their names; in order of place.
    named: Vec<(u64, u64)>,
    /// The names.
    strings: Option<u64>,
    /// Executable places that the loader writes to, in order.
    pub(crate) written: Vec<u64>,
}

#[derive(Default)]
struct Tags {
    needed: Vec<u64>,
    soname: Option<u64>,
    strings: Option<u64>,
    symbols: Option<u64>,
    offset_table: Option<u64>,
    flags: u64,
    rela: [(Option<u64>, u64); 2],
    relr: (Option<u64>, u64),
}

impl Dynamic {
    pub(crate) fn read(binary: &Binary) -> Dynamic {
        let mut dynamic = Dynamic::default();
        let Some((_, range)) = binary.program_header(elf::PT_DYNAMIC.0) else { return dynamic };
        let tags = read_tags(&binary.data()[range]);
        let string = |offset: &u64| Some(text(binary.bytes_from(tags.strings?.checked_add(*offset)?)?));
        dynamic.needed = tags.needed.iter().filter_map(string).collect();
        dynamic.soname = tags.soname.as_ref().and_then(string);
        dynamic.offset_table = tags.offset_table;
        dynamic.is_pie = tags.flags & DF_1_PIE != 0;
        dynamic.is_never_unloaded = tags.flags & DF_1_NODELETE != 0;
        for (table, len) in tags.rela {
            dynamic.read_rela(binary, table, len, tags.symbols);
        }
        dynamic.read_relr(binary, tags.relr);
        dynamic.written.sort_unstable();
        dynamic.stored.sort_unstable();
        dynamic.named.sort_unstable();
        dynamic.strings = tags.strings;
        dynamic
    }

    /// The address that the loader stores at `place`.
    pub(crate) fn stored_at(&self, place: u64) -> Option<u64> {
        let found = self.stored.binary_search_by_key(&place, |s| s.0).ok()?;
        Some(self.stored[found].1)
    }

    /// The name of the symbol whose address the loader stores at `place`.
    pub(crate) fn name_at(&self, binary: &Binary, place: u64) -> Option<String> {
        let found = self.named.binary_search_by_key(&place, |it| it.0).ok()?;
        let name = text(binary.bytes_from(self.strings?.checked_add(self.named[found].1)?)?);
        (!name.is_empty()).then_some(name)
    }

    fn read_rela(&mut self, binary: &Binary, table: Option<u64>, len: u64, symbols: Option<u64>) {
        let Some(bytes) = table.and_then(|t| binary.bytes_from(t)) else { return };
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len());
        for entry in bytes[..len].chunks_exact(24) {
            let (place, info, addend) = (word(entry, 0), word(entry, 8), word(entry, 16));
            self.wrote(binary, place);
            if matches!(info as u32, R_X86_64_RELATIVE | R_X86_64_IRELATIVE) {
                self.stored.push((place, addend));
            }
            if matches!(info as u32, R_X86_64_GLOB_DAT | R_X86_64_JUMP_SLOT) {
                let symbol = symbols.and_then(|it| it.checked_add((info >> 32) * SYMBOL_LEN));
                let name = symbol.and_then(|it| binary.bytes_from(it)).and_then(|it| it.get(..4));
                self.named.extend(name.map(|it| (place, word(&[it, &[0; 4]].concat(), 0))));
            }
        }
    }

    /// Packed relative relocations: an even word is a place, an odd one 63 bits for the places behind it.
    fn read_relr(&mut self, binary: &Binary, (table, len): (Option<u64>, u64)) {
        let Some(bytes) = table.and_then(|t| binary.bytes_from(t)) else { return };
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len());
        let mut next = 0u64;
        for entry in bytes[..len].chunks_exact(8).map(|e| word(e, 0)) {
            if entry & 1 == 0 {
                self.relative_at(binary, entry);
                next = entry.wrapping_add(8);
                continue;
            }
            for bit in 0..63 {
                if entry >> (bit + 1) & 1 != 0 {
                    self.relative_at(binary, next.wrapping_add(8 * bit));
                }
            }
            next = next.wrapping_add(8 * 63);
        }
    }

    fn relative_at(&mut self, binary: &Binary, place: u64) {
        self.wrote(binary, place);
        if let Some(bytes) = binary.bytes_from(place).filter(|b| b.len() >= 8) {
            self.stored.push((place, word(bytes, 0)));
        }
    }

    fn wrote(&mut self, binary: &Binary, place: u64) {
        if binary.is_executable(place) {
            self.written.push(place);
        }
    }
}

fn read_tags(bytes: &[u8]) -> Tags {
    let mut tags = Tags::default();
    for entry in bytes.chunks_exact(16) {
        let (tag, value) = (word(entry, 0), word(entry, 8));
        match tag {
            0 => break,
            DT_NEEDED => tags.needed.push(value),
            DT_SONAME => tags.soname = Some(value),
            DT_STRTAB => tags.strings = Some(value),
            DT_SYMTAB => tags.symbols = Some(value),
            DT_PLTGOT => tags.offset_table = Some(value),
            DT_FLAGS_1 => tags.flags = value,
            DT_RELA => tags.rela[0].0 = Some(value),
            DT_RELASZ => tags.rela[0].1 = value,
            DT_JMPREL => tags.rela[1].0 = Some(value),
            DT_PLTRELSZ => tags.rela[1].1 = value,
            DT_RELR => tags.relr.0 = Some(value),
            DT_RELRSZ => tags.relr.1 = value,
            _ => {}
        }
    }
    tags
}

/// The little-endian word at `at`; 0 behind the end.
pub(crate) fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}
