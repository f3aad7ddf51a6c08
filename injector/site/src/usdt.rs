//! Statically defined probes (USDT): the notes that `<sys/sdt.h>` leaves in a file.
//!
//! ```text
//! .note.stapsdt   note of owner "stapsdt", type 3:
//!     u64 address | u64 base | u64 semaphore, 0 = none | provider NUL | name NUL | arguments NUL
//! .stapsdt.base   one byte; what its address differs from `base`, prelink has moved the file
//! ```
//!
//! Source: <https://sourceware.org/systemtap/wiki/UserSpaceProbeImplementation>.

use crate::Binary;
use crate::binary::text;
use object::LittleEndian;
use object::elf;
use object::read::elf::{FileHeader, SectionHeader};

const LE: LittleEndian = LittleEndian;
type Header = elf::FileHeader64<LittleEndian>;

/// The type of such a note (`NT_STAPSDT`).
const NOTE_TYPE: u32 = 3;
/// Bytes of the three addresses.
const ADDRESSES_LEN: usize = 24;

/// One place of a statically defined probe. A probe of one name can have many.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UsdtProbe {
    /// Who defines it.
    pub provider: String,
    /// Its name.
    pub name: String,
    /// Link-time address of the instruction.
    pub vaddr: u64,
    /// Its offset in the file.
    pub file_offset: u64,
    /// Link-time address of the 16-bit count of those who want the probe to prepare its arguments.
    pub semaphore: Option<u64>,
    /// Where the arguments are, in assembler notation: `8@%rdi -4@$5`.
    pub arguments: String,
}

/// Why a file's notes cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UsdtError {
    /// No section of such notes.
    #[error("the file defines no USDT probes (it has no section .note.stapsdt)")]
    NoNotes,
    /// There are notes, but none of this probe.
    #[error("no USDT probe {provider}:{name}{}", known(others))]
    NoProbe {
        /// The provider asked for.
        provider: String,
        /// The name asked for.
        name: String,
        /// The probes that the file defines, `provider:name`, each once, at most eight.
        others: Vec<String>,
    },
    /// A note is not laid out as one.
    #[error("the note at {offset:#x} of section .note.stapsdt is damaged")]
    Damaged {
        /// Its offset in the section.
        offset: usize,
    },
    /// A probe is said to be at a place that is not executable.
    #[error("the note of {provider}:{name} says {vaddr:#x}, where there is no code")]
    NotCode {
        /// The provider.
        provider: String,
        /// The name.
        name: String,
        /// The address in the note.
        vaddr: u64,
    },
}

fn known(others: &[String]) -> String {
    if others.is_empty() { String::new() } else { format!("; the file has {}", others.join(", ")) }
}

/// Every statically defined probe of a file, in the order of their notes.
///
/// # Errors
/// [`UsdtError`] when there are none, or a note is damaged.
pub fn usdt_probes(binary: &Binary) -> Result<Vec<UsdtProbe>, UsdtError> {
    let (notes, base) = sections(binary).ok_or(UsdtError::NoNotes)?;
    let mut probes = Vec::new();
    let mut offset = 0;
    while offset < notes.len() {
        let damaged = UsdtError::Damaged { offset };
        let note = Note::parse(&notes[offset..]).ok_or(damaged.clone())?;
        if note.owner == b"stapsdt" && note.kind == NOTE_TYPE {
            probes.push(note.probe(binary, base).ok_or(damaged)??);
        }
        offset += note.len;
    }
    Ok(probes)
}

/// The places of one probe.
///
/// # Errors
/// [`UsdtError`] when there are none, or a note is damaged.
pub fn usdt_probe(binary: &Binary, provider: &str, name: &str) -> Result<Vec<UsdtProbe>, UsdtError> {
    const OTHERS_MAX: usize = 8;
    let all = usdt_probes(binary)?;
    let (found, others): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|probe| probe.provider == provider && probe.name == name);
    if found.is_empty() {
        let mut others: Vec<String> =
            others.iter().map(|probe| format!("{}:{}", probe.provider, probe.name)).collect();
        others.sort();
        others.dedup();
        others.truncate(OTHERS_MAX);
        return Err(UsdtError::NoProbe { provider: provider.into(), name: name.into(), others });
    }
    Ok(found)
}

/// The notes, and the address of `.stapsdt.base` (0 = there is none).
fn sections(binary: &Binary) -> Option<(&[u8], u64)> {
    let data = binary.data();
    let table = Header::parse(data).ok()?.sections(LE, data).ok()?;
    let (_, notes) = table.section_by_name(LE, b".note.stapsdt")?;
    if notes.sh_type(LE) != elf::SHT_NOTE {
        return None;
    }
    let base = table.section_by_name(LE, b".stapsdt.base").map_or(0, |(_, section)| section.sh_addr(LE));
    Some((notes.data(LE, data).ok()?, base))
}

/// A note, whoever's.
struct Note<'a> {
    owner: &'a [u8],
    kind: u32,
    contents: &'a [u8],
    /// Bytes to the next one.
    len: usize,
}

impl<'a> Note<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Note<'a>> {
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let (name_len, len, kind) = (word(0)? as usize, word(4)? as usize, word(8)?);
        let contents = 12usize.checked_add(name_len.checked_next_multiple_of(4)?)?;
        let end = contents.checked_add(len)?;
        let owner = bytes.get(12..12 + name_len)?;
        Some(Note {
            owner: owner.strip_suffix(b"\0").unwrap_or(owner),
            kind,
            contents: bytes.get(contents..end)?,
            // The last one may end without its padding.
            len: end.checked_next_multiple_of(4)?.min(bytes.len()),
        })
    }

    /// `None`: it is damaged.
    fn probe(&self, binary: &Binary, base: u64) -> Option<Result<UsdtProbe, UsdtError>> {
        let (addresses, texts) = self.contents.split_at_checked(ADDRESSES_LEN)?;
        let address = |at: usize| Some(u64::from_le_bytes(addresses.get(at..at + 8)?.try_into().ok()?));
        let (vaddr, noted_base, semaphore) = (address(0)?, address(8)?, address(16)?);
        let mut texts = texts.split_inclusive(|&byte| byte == 0);
        let mut next = || texts.next().filter(|it| it.last() == Some(&0)).map(text);
        let (provider, name, arguments) = (next()?, next()?, next()?);
        if name.is_empty() {
            return None;
        }
        let moved = if base != 0 && noted_base != 0 { base.wrapping_sub(noted_base) } else { 0 };
        let vaddr = vaddr.wrapping_add(moved);
        let Some(file_offset) = binary.file_offset_of(vaddr).filter(|_| binary.is_executable(vaddr)) else {
            return Some(Err(UsdtError::NotCode { provider, name, vaddr }));
        };
        let semaphore = (semaphore != 0).then(|| semaphore.wrapping_add(moved));
        Some(Ok(UsdtProbe { provider, name, vaddr, file_offset, semaphore, arguments }))
    }
}
