//! BTF: the type information of an object or of a kernel (`Documentation/bpf/btf.rst`).
//!
//! A [`Btf`] keeps the bytes as they came and an index of where each type starts; a [`Type`] is a view into them,
//! decoded when asked. So the kernel's 150,000 types open in a few milliseconds, and an object's own BTF can be
//! patched in place and handed on.
//!
//! Invariant: after [`Btf::parse`] every record lies inside the bytes and every type id and string offset in it is in
//! range. References may still form loops: every walk here is bounded by [`RESOLVE_DEPTH_MAX`].
//!
//! Split BTF (kernel modules) is not read.

pub mod builder;
pub mod builtin;
pub mod declare;
pub mod ext;
mod index;
pub mod path;
pub mod task;
mod types;
pub mod value;
mod walk;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::elf::Elf;
use index::NameIndex;
pub use types::{
    Array, Enumerator, FUNC_EXTERN, FUNC_GLOBAL, FUNC_STATIC, INT_BOOL, INT_CHAR, INT_SIGNED, Kind, Member,
    Param, SectionVar, Type, VAR_EXTERN, VAR_GLOBAL, VAR_STATIC,
};
pub use walk::Walked;

/// Typedefs, modifiers and arrays that a resolution follows at most (libbpf's `MAX_RESOLVE_DEPTH`).
pub const RESOLVE_DEPTH_MAX: usize = 32;

/// Where the kernel shows its own BTF.
pub const KERNEL_BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// Bytes of a pointer in a BPF object and in the kernels it runs on.
pub const POINTER_SIZE: u32 = 8;

/// Bytes of a name that count; the kernel allows 512 (`KSYM_NAME_LEN`).
const NAME_LEN_MAX: usize = 4096;

const MAGIC: u16 = 0xeb9f;
const HEADER_LEN: usize = 24;
const RECORD_LEN: usize = 12;

/// Why bytes are not BTF, or a question about types has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// The header is missing, of another byte order, or of another version.
    #[error("bad BTF header: {0}")]
    Header(&'static str),
    /// A type record is not what the format says.
    #[error("BTF type [{id}] at byte {offset}: {reason}")]
    Type {
        /// The type's id.
        id: u32,
        /// Its byte offset in the type section.
        offset: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// The string section does not begin and end with a NUL.
    #[error("bad BTF string section: {0}")]
    Strings(&'static str),
    /// A `.BTF.ext` section is malformed.
    #[error("bad BTF.ext {section} section: {reason}")]
    Ext {
        /// `header`, `func_info`, `line_info` or `core_relo`.
        section: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
    /// The size or alignment of a type cannot be told.
    #[error("type [{id}] has no size: {reason}")]
    Size {
        /// The type's id.
        id: u32,
        /// Why.
        reason: &'static str,
    },
    /// A file could not be read.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The operating system's reason, or "no .BTF section".
        reason: String,
    },
}

/// Parsed type information.
pub struct Btf {
    types: Vec<u8>,
    strings: Vec<u8>,
    /// Byte offset of each type in `types`, by id; id 0 is void and has none.
    offsets: Vec<u32>,
    index: OnceLock<NameIndex>,
}

impl Clone for Btf {
    fn clone(&self) -> Self {
        Btf {
            types: self.types.clone(),
            strings: self.strings.clone(),
            offsets: self.offsets.clone(),
            index: OnceLock::new(),
        }
    }
}

impl std::fmt::Debug for Btf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Btf({} types, {} bytes of strings)", self.len(), self.strings.len())
    }
}

impl Btf {
    /// Reads BTF from `bytes`: a raw `.BTF` blob, or an ELF file with a `.BTF` section.
    pub fn parse(bytes: &[u8]) -> Result<Btf, BtfError> {
        if bytes.starts_with(b"\x7fELF") {
            let section = Elf::section_of_any(bytes, ".BTF").ok_or(BtfError::Header("no .BTF section"))?;
            return Btf::parse_raw(section);
        }
        Btf::parse_raw(bytes)
    }

    /// Reads a raw `.BTF` blob.
    pub fn parse_raw(bytes: &[u8]) -> Result<Btf, BtfError> {
        let (types, strings) = split_sections(bytes)?;
        let mut btf = Btf {
            types: types.to_vec(),
            strings: to_utf8(strings.to_vec()),
            offsets: Vec::with_capacity(types.len() / 24 + 1),
            index: OnceLock::new(),
        };
        btf.index_types()?;
        for id in 1..btf.offsets.len() as u32 {
            btf.check_type(id)?;
        }
        Ok(btf)
    }

    /// Reads a file: raw BTF or ELF.
    pub fn load(path: &Path) -> Result<Btf, BtfError> {
        let failed = |reason: String| BtfError::File { path: path.to_path_buf(), reason };
        let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
        Btf::parse(&bytes).map_err(|error| failed(error.to_string()))
    }

    /// Reads the running kernel's BTF ([`KERNEL_BTF_PATH`]).
    pub fn load_kernel() -> Result<Btf, BtfError> {
        Btf::load(Path::new(KERNEL_BTF_PATH))
    }

    /// Number of types, void included: ids are below this.
    pub fn len(&self) -> u32 {
        self.offsets.len() as u32
    }

    /// True when there is no type but void.
    pub fn is_empty(&self) -> bool {
        self.offsets.len() <= 1
    }

    /// The type with this id; void for 0. `None` when there is no such id.
    pub fn get(&self, id: u32) -> Option<Type<'_>> {
        let at = *self.offsets.get(id as usize)? as usize;
        if id == 0 {
            return Some(Type { btf: self, id, raw: &[] });
        }
        let end = self.offsets.get(id as usize + 1).map_or(self.types.len(), |&end| end as usize);
        Some(Type { btf: self, id, raw: self.types.get(at..end)? })
    }

    /// The type with this id, or void when there is none.
    pub(crate) fn type_or_void(&self, id: u32) -> Type<'_> {
        self.get(id).unwrap_or(Type { btf: self, id: 0, raw: &[] })
    }

    /// All types but void, in order of id.
    pub fn types(&self) -> impl Iterator<Item = Type<'_>> {
        (1..self.len()).filter_map(|id| self.get(id))
    }

    /// The NUL-terminated string at `offset` of the string section; empty when out of range.
    ///
    /// Bytes that are not UTF-8 (a source line in another encoding) read as `?`.
    pub fn string(&self, offset: u32) -> &str {
        self.text(offset, usize::MAX)
    }

    /// The name at `offset`, cut at [`NAME_LEN_MAX`] bytes: hostile types may all share one endless name.
    pub(crate) fn name(&self, offset: u32) -> &str {
        self.text(offset, NAME_LEN_MAX)
    }

    fn text(&self, offset: u32, limit: usize) -> &str {
        let tail = self.strings.get(offset as usize..).unwrap_or_default();
        let tail = &tail[..tail.len().min(limit)];
        let end = tail.iter().position(|&byte| byte == 0).unwrap_or(tail.len());
        std::str::from_utf8(&tail[..end]).unwrap_or("")
    }

    /// The first type of this name and kind.
    pub fn find(&self, name: &str, kind: Kind) -> Option<Type<'_>> {
        self.with_essential_name(essential_name(name)).find(|ty| ty.kind() == kind && ty.name() == name)
    }

    /// The first type of this name, of whatever kind.
    pub fn find_any(&self, name: &str) -> Option<Type<'_>> {
        self.with_essential_name(essential_name(name)).find(|ty| ty.name() == name)
    }

    /// The types whose name without its flavour (`___suffix`) is `essential`, in order of id.
    pub fn with_essential_name<'a>(&'a self, essential: &str) -> impl Iterator<Item = Type<'a>> {
        self.index
            .get_or_init(|| NameIndex::build(self))
            .candidates(essential)
            .filter_map(|id| self.get(id))
            .filter(move |ty| essential_name(ty.name()) == essential)
    }

    /// Follows typedefs, modifiers and type tags. A chain longer than [`RESOLVE_DEPTH_MAX`] (a loop) gives `None`.
    pub fn resolve(&self, id: u32) -> Option<Type<'_>> {
        let mut ty = self.get(id)?;
        for _ in 0..RESOLVE_DEPTH_MAX {
            if !ty.kind().is_modifier_or_typedef() {
                return Some(ty);
            }
            ty = self.get(ty.type_id())?;
        }
        None
    }

    /// Bytes of a value of this type (libbpf's `btf__resolve_size`).
    pub fn size_of(&self, id: u32) -> Result<u32, BtfError> {
        let fail = |reason| BtfError::Size { id, reason };
        let mut ty = self.get(id).ok_or(fail("no such type"))?;
        let mut elements: u32 = 1;
        for _ in 0..RESOLVE_DEPTH_MAX {
            match ty.kind() {
                Kind::Int
                | Kind::Struct
                | Kind::Union
                | Kind::Enum
                | Kind::Enum64
                | Kind::DataSec
                | Kind::Float => {
                    return elements.checked_mul(ty.size()).ok_or(fail("larger than 4 GiB"));
                }
                Kind::Ptr => return elements.checked_mul(POINTER_SIZE).ok_or(fail("larger than 4 GiB")),
                Kind::Array => {
                    let array = ty.array();
                    elements = elements.checked_mul(array.len).ok_or(fail("larger than 4 GiB"))?;
                    ty = self.type_or_void(array.element);
                }
                Kind::Void | Kind::Fwd | Kind::Func | Kind::FuncProto => {
                    return Err(fail("incomplete type"));
                }
                _ => ty = self.type_or_void(ty.type_id()),
            }
        }
        Err(fail("nested too deeply"))
    }

    /// Alignment in bytes (libbpf's `btf__align_of`: 1 for a packed struct).
    pub fn align_of(&self, id: u32) -> Result<u32, BtfError> {
        let mut budget = 10_000;
        self.align_within(id, RESOLVE_DEPTH_MAX, &mut budget)
    }

    fn align_within(&self, id: u32, depth: usize, budget: &mut u32) -> Result<u32, BtfError> {
        let fail = |reason| BtfError::Size { id, reason };
        *budget = budget.checked_sub(1).ok_or(fail("too many members"))?;
        let depth = depth.checked_sub(1).ok_or(fail("nested too deeply"))?;
        let ty = self.get(id).ok_or(fail("no such type"))?;
        match ty.kind() {
            Kind::Int | Kind::Enum | Kind::Enum64 | Kind::Float => Ok(ty.size().clamp(1, POINTER_SIZE)),
            Kind::Ptr => Ok(POINTER_SIZE),
            Kind::Array => self.align_within(ty.array().element, depth, budget),
            Kind::Struct | Kind::Union => {
                let mut align = 1;
                for member in ty.members() {
                    let own = self.align_within(member.type_id, depth, budget)?;
                    align = align.max(own);
                    let unaligned = u64::from(member.bit_offset) % (8 * u64::from(own)) != 0;
                    if member.bitfield_bits == 0 && unaligned {
                        return Ok(1);
                    }
                }
                Ok(if ty.size() % align != 0 { 1 } else { align })
            }
            kind if kind.is_modifier_or_typedef() => self.align_within(ty.type_id(), depth, budget),
            _ => Err(fail("incomplete type")),
        }
    }

    /// The raw `.BTF` bytes, as `BPF_BTF_LOAD` takes them: header, types, strings.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN + self.types.len() + self.strings.len());
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        bytes.extend_from_slice(&[1, 0]);
        for word in [HEADER_LEN, 0, self.types.len(), self.types.len(), self.strings.len()] {
            bytes.extend_from_slice(&(word as u32).to_le_bytes());
        }
        bytes.extend_from_slice(&self.types);
        bytes.extend_from_slice(&self.strings);
        bytes
    }

    /// Replaces 32-bit word `word` of the record of type `id`. Nothing happens when the record is shorter.
    pub(crate) fn set_word(&mut self, id: u32, word: usize, value: u32) {
        let Some(&at) = self.offsets.get(id as usize).filter(|_| id != 0) else { return };
        let at = at as usize + 4 * word;
        if let Some(slot) = self.types.get_mut(at..at + 4) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Replaces everything after the first twelve bytes of type `id`; `words` must be as many as there are.
    pub(crate) fn set_trailer(&mut self, id: u32, words: &[u32]) {
        for (position, &word) in words.iter().enumerate() {
            self.set_word(id, RECORD_LEN / 4 + position, word);
        }
    }

    /// Appends a type record; returns its id.
    pub(crate) fn push(&mut self, name: u32, info: u32, size_or_type: u32, trailer: &[u32]) -> u32 {
        let id = self.offsets.len() as u32;
        self.offsets.push(self.types.len() as u32);
        for word in [name, info, size_or_type].iter().chain(trailer) {
            self.types.extend_from_slice(&word.to_le_bytes());
        }
        self.index = OnceLock::new();
        id
    }

    /// Offset of `string` in the string section, appended when it is not there yet.
    pub(crate) fn intern(&mut self, string: &str) -> u32 {
        let mut offset = 0;
        for present in self.strings.split_inclusive(|&byte| byte == 0) {
            if present.strip_suffix(&[0]) == Some(string.as_bytes()) {
                return offset;
            }
            offset += present.len() as u32;
        }
        self.strings.extend_from_slice(string.as_bytes());
        self.strings.push(0);
        offset
    }

    /// A `Btf` with nothing in it but void.
    pub(crate) fn empty() -> Btf {
        Btf { types: Vec::new(), strings: vec![0], offsets: vec![0], index: OnceLock::new() }
    }

    /// Finds where every record starts.
    fn index_types(&mut self) -> Result<(), BtfError> {
        self.offsets.push(0);
        let mut at = 0;
        while at < self.types.len() {
            let id = self.offsets.len() as u32;
            let fail = |reason| BtfError::Type { id, offset: at, reason };
            let head = self.types.get(at..at + RECORD_LEN).ok_or(fail("truncated record"))?;
            let info = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
            let kind = Kind::ALL.get(((info >> 24) & 0x1f) as usize).copied();
            let kind = kind.filter(|&kind| kind != Kind::Void).ok_or(fail("unknown kind"))?;
            let len = RECORD_LEN + kind.trailer_len((info & 0xffff) as usize);
            if self.types.len() - at < len {
                return Err(fail("truncated record"));
            }
            self.offsets.push(at as u32);
            at += len;
        }
        Ok(())
    }

    /// Checks that everything that a record refers to exists.
    fn check_type(&self, id: u32) -> Result<(), BtfError> {
        let ty = self.type_or_void(id);
        let fail = |reason| Err(BtfError::Type { id, offset: self.offsets[id as usize] as usize, reason });
        let (types, strings) = (self.len(), self.strings.len() as u32);
        if ty.word(0) >= strings {
            return fail("name is out of range");
        }
        let refers = !matches!(
            ty.kind(),
            Kind::Int
                | Kind::Struct
                | Kind::Union
                | Kind::Enum
                | Kind::Enum64
                | Kind::DataSec
                | Kind::Float
                | Kind::Fwd
                | Kind::Array
        );
        if refers && ty.word(2) >= types {
            return fail("refers to a type that does not exist");
        }
        // Words of an element: which is a name, which a type.
        let (stride, name, target) = match ty.kind() {
            Kind::Struct | Kind::Union => (3, Some(0), Some(1)),
            Kind::Enum => (2, Some(0), None),
            Kind::Enum64 => (3, Some(0), None),
            Kind::FuncProto => (2, Some(0), Some(1)),
            Kind::DataSec => (3, None, Some(0)),
            Kind::Array => {
                let array = ty.array();
                if array.element >= types || array.index >= types {
                    return fail("refers to a type that does not exist");
                }
                return Ok(());
            }
            Kind::Func if self.type_or_void(ty.word(2)).kind() != Kind::FuncProto => {
                return fail("a function without a prototype");
            }
            _ => return Ok(()),
        };
        for element in 0..ty.vlen() {
            let base = RECORD_LEN / 4 + element * stride;
            if name.is_some_and(|word| ty.word(base + word) >= strings) {
                return fail("name of an element is out of range");
            }
            if target.is_some_and(|word| ty.word(base + word) >= types) {
                return fail("an element refers to a type that does not exist");
            }
        }
        Ok(())
    }
}

/// The type and string sections of a raw blob.
fn split_sections(bytes: &[u8]) -> Result<(&[u8], &[u8]), BtfError> {
    let word = |at: usize| -> Option<usize> {
        Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize)
    };
    let short = BtfError::Header("shorter than a header");
    if bytes.len() < HEADER_LEN {
        return Err(short);
    }
    match u16::from_le_bytes([bytes[0], bytes[1]]) {
        MAGIC => {}
        magic if magic == MAGIC.swap_bytes() => return Err(BtfError::Header("big-endian")),
        _ => return Err(BtfError::Header("no BTF magic")),
    }
    if bytes[2] != 1 || bytes[3] != 0 {
        return Err(BtfError::Header("unknown version or flags"));
    }
    let header_len = word(4).ok_or(short.clone())?;
    if header_len < HEADER_LEN || header_len > bytes.len() {
        return Err(BtfError::Header("header length is out of range"));
    }
    let body = &bytes[header_len..];
    let part = |offset: Option<usize>, len: Option<usize>| {
        let (offset, len) = (offset?, len?);
        body.get(offset..offset.checked_add(len)?)
    };
    let types = part(word(8), word(12)).ok_or(BtfError::Header("type section is out of range"))?;
    let strings = part(word(16), word(20)).ok_or(BtfError::Header("string section is out of range"))?;
    if strings.first() != Some(&0) || strings.last() != Some(&0) {
        return Err(BtfError::Strings("it must begin and end with a NUL"));
    }
    Ok((types, strings))
}

/// Replaces bytes that are not UTF-8, keeping every offset.
fn to_utf8(mut strings: Vec<u8>) -> Vec<u8> {
    let mut from = 0;
    while let Err(error) = std::str::from_utf8(&strings[from..]) {
        let start = from + error.valid_up_to();
        let end = error.error_len().map_or(strings.len(), |len| start + len);
        strings[start..end].fill(b'?');
        from = end;
    }
    strings
}

/// A struct's name without its flavour: `task_struct` of `task_struct___v514` (libbpf's `bpf_core_essential_name_len`).
pub fn essential_name(name: &str) -> &str {
    let bytes = name.as_bytes();
    let is_separator =
        |at: usize| bytes[at] != b'_' && &bytes[at + 1..at + 4] == b"___" && bytes[at + 4] != b'_';
    match (0..bytes.len().saturating_sub(4)).rev().find(|&at| is_separator(at)) {
        Some(at) => name.get(..=at).unwrap_or(name),
        None => name,
    }
}
