//! Functions of a Go binary from its line table, which stays when the symbol table is stripped (Go's
//! `internal/abi/symtab.go`, `debug/gosym/pclntab.go`; the layout of Go 1.18 and later).
//!
//! ```text
//! 0   u32 magic, u16 0, u8 instruction size, u8 pointer size
//! 8   u64 functions   16  u64 files        24  u64 text start   32  u64 names   ...   64  u64 function table
//! function table:  {u32 entry - text start, u32 offset of the function} ..., u32 end - text start
//! function:        u32 entry - text start, u32 offset of the name in names, ...
//! ```

use crate::Binary;
use crate::dynamic::word;

/// Go 1.18 and 1.19; Go 1.20 and later.
const MAGICS: [u32; 2] = [0xffff_fff0, 0xffff_fff1];

/// A function: address, bytes, name.
pub(crate) struct GoFunction<'a> {
    pub(crate) vaddr: u64,
    pub(crate) size: u64,
    pub(crate) name: &'a [u8],
}

/// All functions, in order; none when there is no table or it is of another layout.
pub(crate) fn functions(binary: &Binary) -> Vec<GoFunction<'_>> {
    read(binary).unwrap_or_default()
}

fn read(binary: &Binary) -> Option<Vec<GoFunction<'_>>> {
    let section = binary.section(".gopclntab").or_else(|| binary.section(".data.rel.ro.gopclntab"))?;
    let table = binary.data().get(section.bytes.clone())?;
    if !MAGICS.contains(&read_u32(table, 0)?) || table.get(7) != Some(&8) {
        return None;
    }
    let count = usize::try_from(word(table, 8)).ok().filter(|&c| c < table.len() / 8)?;
    // A position-independent binary has it relocated; Go 1.26 leaves it out.
    let text = binary.dynamic().stored_at(section.vaddr.wrapping_add(24)).unwrap_or_else(|| word(table, 24));
    let text = if text != 0 { text } else { binary.section(".text")?.vaddr };
    let names = table.get(usize::try_from(word(table, 32)).ok()?..)?;
    let entries = table.get(usize::try_from(word(table, 64)).ok()?..)?;
    let mut functions = Vec::with_capacity(count);
    for i in 0..count {
        let (entry, at) = (read_u32(entries, 8 * i)?, read_u32(entries, 8 * i + 4)?);
        let end = read_u32(entries, 8 * i + 8)?;
        let name = read_u32(entries, (at as usize).checked_add(4)?)?;
        let name = names.get(name as usize..)?;
        let name = &name[..name.iter().position(|&b| b == 0)?];
        let vaddr = text.wrapping_add(u64::from(entry));
        if binary.is_executable(vaddr) {
            functions.push(GoFunction { vaddr, size: u64::from(end.saturating_sub(entry)), name });
        }
    }
    Some(functions)
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}
