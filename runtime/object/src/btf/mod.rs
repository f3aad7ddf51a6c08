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
pub mod value;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::elf::Elf;
use index::NameIndex;

/// Typedefs, modifiers and arrays that a resolution follows at most (libbpf's `MAX_RESOLVE_DEPTH`).
pub const RESOLVE_DEPTH_MAX: usize = 32;

/// Where the kernel shows its own BTF.
pub const KERNEL_BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// Bytes of a pointer in a BPF object and in the kernels it runs on.
pub const POINTER_SIZE: u32 = 8;

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

/// `BTF_KIND_*` (`include/uapi/linux/btf.h`).
#[allow(missing_docs, reason = "the names are the kernel's")]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Kind {
    Void = 0,
    Int = 1,
    Ptr = 2,
    Array = 3,
    Struct = 4,
    Union = 5,
    Enum = 6,
    Fwd = 7,
    Typedef = 8,
    Volatile = 9,
    Const = 10,
    Restrict = 11,
    Func = 12,
    FuncProto = 13,
    Var = 14,
    DataSec = 15,
    Float = 16,
    DeclTag = 17,
    TypeTag = 18,
    Enum64 = 19,
}

impl Kind {
    /// Kinds by number.
    const ALL: [Kind; 20] = [
        Kind::Void,
        Kind::Int,
        Kind::Ptr,
        Kind::Array,
        Kind::Struct,
        Kind::Union,
        Kind::Enum,
        Kind::Fwd,
        Kind::Typedef,
        Kind::Volatile,
        Kind::Const,
        Kind::Restrict,
        Kind::Func,
        Kind::FuncProto,
        Kind::Var,
        Kind::DataSec,
        Kind::Float,
        Kind::DeclTag,
        Kind::TypeTag,
        Kind::Enum64,
    ];

    /// Lower-case name, as the kernel and bpftool print it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Void => "void",
            Kind::Int => "int",
            Kind::Ptr => "ptr",
            Kind::Array => "array",
            Kind::Struct => "struct",
            Kind::Union => "union",
            Kind::Enum => "enum",
            Kind::Fwd => "fwd",
            Kind::Typedef => "typedef",
            Kind::Volatile => "volatile",
            Kind::Const => "const",
            Kind::Restrict => "restrict",
            Kind::Func => "func",
            Kind::FuncProto => "func_proto",
            Kind::Var => "var",
            Kind::DataSec => "datasec",
            Kind::Float => "float",
            Kind::DeclTag => "decl_tag",
            Kind::TypeTag => "type_tag",
            Kind::Enum64 => "enum64",
        }
    }

    /// A struct or a union.
    pub fn is_composite(self) -> bool {
        matches!(self, Kind::Struct | Kind::Union)
    }

    /// An enum of either width.
    pub fn is_enum(self) -> bool {
        matches!(self, Kind::Enum | Kind::Enum64)
    }

    /// `const`, `volatile`, `restrict`, a type tag or a typedef: transparent to the layout.
    pub fn is_modifier_or_typedef(self) -> bool {
        matches!(self, Kind::Const | Kind::Volatile | Kind::Restrict | Kind::TypeTag | Kind::Typedef)
    }

    /// Bytes of a record after its first twelve, for `vlen` elements.
    fn trailer_len(self, vlen: usize) -> usize {
        match self {
            Kind::Int | Kind::Var | Kind::DeclTag => 4,
            Kind::Array => 12,
            Kind::Struct | Kind::Union | Kind::DataSec | Kind::Enum64 => 12 * vlen,
            Kind::Enum | Kind::FuncProto => 8 * vlen,
            _ => 0,
        }
    }
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
        let tail = self.strings.get(offset as usize..).unwrap_or_default();
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

/// A view of one type.
#[derive(Clone, Copy)]
pub struct Type<'a> {
    btf: &'a Btf,
    id: u32,
    /// The record; empty for void.
    raw: &'a [u8],
}

impl std::fmt::Debug for Type<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{}] {} {}", self.id, self.kind().name(), self.display_name())
    }
}

/// An array's element type, index type and length.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Array {
    /// Type id of an element.
    pub element: u32,
    /// Type id of the index.
    pub index: u32,
    /// Number of elements; 0 for a flexible array.
    pub len: u32,
}

/// A member of a struct or union.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member<'a> {
    /// Its name; empty for an anonymous struct or union.
    pub name: &'a str,
    /// Its type.
    pub type_id: u32,
    /// Offset in bits from the start of the struct.
    pub bit_offset: u32,
    /// Width in bits when it is a bitfield, else 0.
    pub bitfield_bits: u32,
}

/// An enumerator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Enumerator<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its value: sign-extended when the enum is signed, or 32 bits wide and of a compiler that did not say.
    pub value: i64,
    /// The value's bits as `struct btf_enum` or `btf_enum64` holds them, a 32-bit one sign-extended (libbpf's
    /// conversion from `__s32` to `__u64`).
    pub bits: u64,
}

/// A parameter of a function prototype.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Param<'a> {
    /// Its name, possibly empty.
    pub name: &'a str,
    /// Its type; 0 with an empty name is the `...` of a variadic function.
    pub type_id: u32,
}

/// A variable in a data section.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SectionVar {
    /// Type id of the [`Kind::Var`] (or [`Kind::Func`] for an extern function).
    pub type_id: u32,
    /// Byte offset in the section.
    pub offset: u32,
    /// Bytes.
    pub size: u32,
}

/// `BTF_VAR_STATIC`.
pub const VAR_STATIC: u32 = 0;
/// `BTF_VAR_GLOBAL_ALLOCATED`.
pub const VAR_GLOBAL: u32 = 1;
/// `BTF_VAR_GLOBAL_EXTERN`.
pub const VAR_EXTERN: u32 = 2;
/// `BTF_FUNC_STATIC`.
pub const FUNC_STATIC: u32 = 0;
/// `BTF_FUNC_GLOBAL`.
pub const FUNC_GLOBAL: u32 = 1;
/// `BTF_FUNC_EXTERN`.
pub const FUNC_EXTERN: u32 = 2;
/// `BTF_INT_SIGNED`.
pub const INT_SIGNED: u32 = 1;
/// `BTF_INT_CHAR`.
pub const INT_CHAR: u32 = 2;
/// `BTF_INT_BOOL`.
pub const INT_BOOL: u32 = 4;

impl<'a> Type<'a> {
    /// 32-bit word `index` of the record; 0 past its end.
    fn word(self, index: usize) -> u32 {
        match self.raw.get(4 * index..4 * index + 4) {
            Some(bytes) => u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            None => 0,
        }
    }

    /// Its id.
    pub fn id(self) -> u32 {
        self.id
    }

    /// What it is a type of.
    pub fn btf(self) -> &'a Btf {
        self.btf
    }

    /// Its kind.
    pub fn kind(self) -> Kind {
        Kind::ALL.get(((self.word(1) >> 24) & 0x1f) as usize).copied().unwrap_or(Kind::Void)
    }

    /// Its name; empty when anonymous.
    pub fn name(self) -> &'a str {
        self.btf.string(self.word(0))
    }

    /// Offset of its name in the string section; 0 when anonymous.
    pub fn name_offset(self) -> u32 {
        self.word(0)
    }

    /// Its name, `<anon>` when it has none, `void` for void.
    pub fn display_name(self) -> &'a str {
        match self.name() {
            "" if self.kind() == Kind::Void => "void",
            "" => "<anon>",
            name => name,
        }
    }

    /// The `info` word: kind, element count and flag.
    pub(crate) fn info(self) -> u32 {
        self.word(1)
    }

    /// The kind flag: bitfields in a struct, signed enum, union forward.
    pub fn kind_flag(self) -> bool {
        self.word(1) >> 31 != 0
    }

    /// Number of members, enumerators, parameters or variables.
    pub fn vlen(self) -> usize {
        (self.word(1) & 0xffff) as usize
    }

    /// Bytes, for kinds that have a size of their own.
    pub fn size(self) -> u32 {
        self.word(2)
    }

    /// The type that a pointer, modifier, typedef, function, prototype (its result), variable or tag refers to.
    pub fn type_id(self) -> u32 {
        self.word(2)
    }

    /// `INT_*` bits of an int.
    pub fn int_encoding(self) -> u32 {
        (self.word(3) >> 24) & 0x0f
    }

    /// Bit offset of an int: not 0 only in bitfields of old compilers.
    pub fn int_offset(self) -> u32 {
        (self.word(3) >> 16) & 0xff
    }

    /// Bits of an int's value.
    pub fn int_bits(self) -> u32 {
        self.word(3) & 0xff
    }

    /// A signed int, or an enum that says so.
    pub fn is_signed(self) -> bool {
        match self.kind() {
            Kind::Int => self.int_encoding() & INT_SIGNED != 0,
            kind if kind.is_enum() => self.kind_flag(),
            _ => false,
        }
    }

    /// The whole record as text, for comparison and diagnosis: names instead of string offsets.
    pub fn describe(self) -> String {
        let head = format!(
            "{} '{}' info={:#x} size/type={}",
            self.kind().name(),
            self.name(),
            self.info(),
            self.size()
        );
        let elements: Vec<String> = match self.kind() {
            Kind::Struct | Kind::Union => self.members().map(|member| format!("{member:?}")).collect(),
            Kind::Enum | Kind::Enum64 => self.enumerators().map(|value| format!("{value:?}")).collect(),
            Kind::FuncProto => self.params().map(|param| format!("{param:?}")).collect(),
            Kind::DataSec => self.section_vars().map(|var| format!("{var:?}")).collect(),
            Kind::Array => vec![format!("{:?}", self.array())],
            Kind::Int | Kind::Var | Kind::DeclTag => vec![format!("{:#x}", self.word(3))],
            _ => Vec::new(),
        };
        format!("{head} {}", elements.join(", "))
    }

    /// An array's shape.
    pub fn array(self) -> Array {
        Array { element: self.word(3), index: self.word(4), len: self.word(5) }
    }

    /// `VAR_*` of a variable, `FUNC_*` of a function.
    pub fn linkage(self) -> u32 {
        match self.kind() {
            Kind::Func => self.word(1) & 0xffff,
            _ => self.word(3),
        }
    }

    /// A declaration tag's component: -1 = the declaration itself, else the member or parameter.
    pub fn component(self) -> i32 {
        self.word(3) as i32
    }

    /// Member `index` of a struct or union.
    pub fn member(self, index: usize) -> Option<Member<'a>> {
        if !self.kind().is_composite() || index >= self.vlen() {
            return None;
        }
        let base = 3 + 3 * index;
        let offset = self.word(base + 2);
        let (bit_offset, bitfield_bits) =
            if self.kind_flag() { (offset & 0xff_ffff, offset >> 24) } else { (offset, 0) };
        Some(Member {
            name: self.btf.string(self.word(base)),
            type_id: self.word(base + 1),
            bit_offset,
            bitfield_bits,
        })
    }

    /// The members of a struct or union; none for other kinds.
    pub fn members(self) -> impl DoubleEndedIterator<Item = Member<'a>> + ExactSizeIterator + 'a {
        let count = if self.kind().is_composite() { self.vlen() } else { 0 };
        (0..count).map(move |index| {
            self.member(index).unwrap_or(Member { name: "", type_id: 0, bit_offset: 0, bitfield_bits: 0 })
        })
    }

    /// Enumerator `index` of an enum.
    pub fn enumerator(self, index: usize) -> Option<Enumerator<'a>> {
        if !self.kind().is_enum() || index >= self.vlen() {
            return None;
        }
        if self.kind() == Kind::Enum {
            let raw = self.word(4 + 2 * index);
            let signed = self.kind_flag();
            return Some(Enumerator {
                name: self.btf.string(self.word(3 + 2 * index)),
                value: if signed { i64::from(raw as i32) } else { i64::from(raw) },
                bits: i64::from(raw as i32) as u64,
            });
        }
        let base = 3 + 3 * index;
        let bits = u64::from(self.word(base + 1)) | u64::from(self.word(base + 2)) << 32;
        Some(Enumerator { name: self.btf.string(self.word(base)), value: bits as i64, bits })
    }

    /// The enumerators of an enum; none for other kinds.
    pub fn enumerators(self) -> impl Iterator<Item = Enumerator<'a>> + 'a {
        let count = if self.kind().is_enum() { self.vlen() } else { 0 };
        (0..count).filter_map(move |index| self.enumerator(index))
    }

    /// The parameters of a prototype; none for other kinds.
    pub fn params(self) -> impl ExactSizeIterator<Item = Param<'a>> + 'a {
        let count = if self.kind() == Kind::FuncProto { self.vlen() } else { 0 };
        (0..count).map(move |index| Param {
            name: self.btf.string(self.word(3 + 2 * index)),
            type_id: self.word(4 + 2 * index),
        })
    }

    /// The variables of a data section; none for other kinds.
    pub fn section_vars(self) -> impl ExactSizeIterator<Item = SectionVar> + 'a {
        let count = if self.kind() == Kind::DataSec { self.vlen() } else { 0 };
        (0..count).map(move |index| SectionVar {
            type_id: self.word(3 + 3 * index),
            offset: self.word(4 + 3 * index),
            size: self.word(5 + 3 * index),
        })
    }
}
