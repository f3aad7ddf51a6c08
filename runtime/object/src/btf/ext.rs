//! `.BTF.ext`: where functions and source lines are, and which instructions CO-RE adjusts.

use super::{Btf, BtfError};

/// A function's first instruction and its type.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FuncInfo {
    /// In a section: byte offset. In a program: instruction index.
    pub insn_off: u32,
    /// BTF id of the [`Kind::Func`](super::Kind::Func).
    pub type_id: u32,
}

/// The source line from an instruction on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LineInfo {
    /// In a section: byte offset. In a program: instruction index.
    pub insn_off: u32,
    /// String offset of the file's name.
    pub file_name_off: u32,
    /// String offset of the line's text.
    pub line_off: u32,
    /// Line and column as the kernel packs them.
    pub line_col: u32,
}

impl LineInfo {
    /// Line number, from 1.
    pub fn line(self) -> u32 {
        self.line_col >> 10
    }

    /// Column, from 1; 0 when unknown.
    pub fn column(self) -> u32 {
        self.line_col & 0x3ff
    }
}

/// A CO-RE relocation as the compiler recorded it (`struct bpf_core_relo`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CoreReloRecord {
    /// Byte offset of the instruction in its section.
    pub insn_off: u32,
    /// The root type in the object's own BTF.
    pub type_id: u32,
    /// String offset of the access string, such as `0:1:2`.
    pub access_str_off: u32,
    /// `enum bpf_core_relo_kind`.
    pub kind: u32,
}

/// The records of one ELF section.
#[derive(Clone, Debug)]
pub struct SectionRecords<R> {
    /// The section's name.
    pub section: String,
    /// Records, in file order.
    pub records: Vec<R>,
    /// They are in order of their instructions, as compilers write them.
    pub is_sorted: bool,
}

/// A parsed `.BTF.ext` section.
#[derive(Clone, Debug, Default)]
pub struct Ext {
    /// Functions by section.
    pub func_info: Vec<SectionRecords<FuncInfo>>,
    /// Lines by section.
    pub line_info: Vec<SectionRecords<LineInfo>>,
    /// CO-RE relocations by section.
    pub core_relos: Vec<SectionRecords<CoreReloRecord>>,
}

impl Ext {
    /// Reads the section; `btf` has its strings.
    pub fn parse(bytes: &[u8], btf: &Btf) -> Result<Ext, BtfError> {
        let fail = |reason| BtfError::Ext { section: "header", reason };
        let word = |at: usize| word_at(bytes, at).map(|word| word as usize);
        if bytes.len() < 8 || bytes[..2] != 0xeb9f_u16.to_le_bytes() {
            return Err(fail("no little-endian BTF magic"));
        }
        if bytes[2] != 1 || bytes[3] != 0 {
            return Err(fail("unknown version or flags"));
        }
        let header_len = word(4).unwrap_or(0);
        if header_len < 24 || header_len >= bytes.len() {
            return Err(fail("header length is out of range"));
        }
        let part = |name: &'static str, at: usize| {
            let fail = |reason| BtfError::Ext { section: name, reason };
            if header_len < at + 8 {
                return Ok(&[][..]);
            }
            let (offset, len) = (word(at).unwrap_or(0), word(at + 4).unwrap_or(0));
            if offset % 4 != 0 {
                return Err(fail("not aligned"));
            }
            let start = header_len.checked_add(offset).ok_or(fail("out of range"))?;
            let end = start.checked_add(len).ok_or(fail("out of range"))?;
            if len == 0 {
                return Ok(&[][..]);
            }
            bytes.get(start..end).ok_or(fail("out of range"))
        };
        Ok(Ext {
            func_info: records("func_info", part("func_info", 8)?, btf, |w: [u32; 2]| FuncInfo {
                insn_off: w[0],
                type_id: w[1],
            })?,
            line_info: records("line_info", part("line_info", 16)?, btf, |w: [u32; 4]| LineInfo {
                insn_off: w[0],
                file_name_off: w[1],
                line_off: w[2],
                line_col: w[3],
            })?,
            core_relos: records("core_relo", part("core_relo", 24)?, btf, |w: [u32; 4]| CoreReloRecord {
                insn_off: w[0],
                type_id: w[1],
                access_str_off: w[2],
                kind: w[3],
            })?,
        })
    }
}

fn word_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// Splits a part into sections and records of at least `N` words.
fn records<R, const N: usize>(
    name: &'static str,
    bytes: &[u8],
    btf: &Btf,
    build: impl Fn([u32; N]) -> R,
) -> Result<Vec<SectionRecords<R>>, BtfError> {
    let fail = |reason| BtfError::Ext { section: name, reason };
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let record_len = word_at(bytes, 0).ok_or(fail("no record size"))? as usize;
    if record_len < 4 * N || !record_len.is_multiple_of(4) {
        return Err(fail("bad record size"));
    }
    let mut sections = Vec::new();
    let mut rest = &bytes[4..];
    if rest.is_empty() {
        return Err(fail("no records"));
    }
    while !rest.is_empty() {
        let (Some(name_off), Some(count)) = (word_at(rest, 0), word_at(rest, 4)) else {
            return Err(fail("truncated section header"));
        };
        let len = (count as usize).checked_mul(record_len).filter(|&len| len != 0 && len <= rest.len() - 8);
        let len = len.ok_or(fail("number of records is out of range"))?;
        let (body, tail) = rest[8..].split_at(len);
        let records = body.chunks_exact(record_len);
        // The first word of every kind of record is its instruction.
        let is_sorted = records.clone().map(|record| word_at(record, 0)).is_sorted();
        let read = |record: &[u8]| std::array::from_fn(|word| word_at(record, 4 * word).unwrap_or(0));
        sections.push(SectionRecords {
            section: btf.name(name_off).to_owned(),
            records: records.map(|record| build(read(record))).collect(),
            is_sorted,
        });
        rest = tail;
    }
    Ok(sections)
}
