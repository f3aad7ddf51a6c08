//! A view of one type record: its kind, and the members, values, parameters or variables that come with it.

use super::Btf;

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
    pub(super) const ALL: [Kind; 20] = [
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
    pub(super) fn trailer_len(self, vlen: usize) -> usize {
        match self {
            Kind::Int | Kind::Var | Kind::DeclTag => 4,
            Kind::Array => 12,
            Kind::Struct | Kind::Union | Kind::DataSec | Kind::Enum64 => 12 * vlen,
            Kind::Enum | Kind::FuncProto => 8 * vlen,
            _ => 0,
        }
    }
}

/// A view of one type.
#[derive(Clone, Copy)]
pub struct Type<'a> {
    pub(super) btf: &'a Btf,
    pub(super) id: u32,
    /// The record; empty for void.
    pub(super) raw: &'a [u8],
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
    pub(super) fn word(self, index: usize) -> u32 {
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
        self.btf.name(self.word(0))
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
            name: self.btf.name(self.word(base)),
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
                name: self.btf.name(self.word(3 + 2 * index)),
                value: if signed { i64::from(raw as i32) } else { i64::from(raw) },
                bits: i64::from(raw as i32) as u64,
            });
        }
        let base = 3 + 3 * index;
        let bits = u64::from(self.word(base + 1)) | u64::from(self.word(base + 2)) << 32;
        Some(Enumerator { name: self.btf.name(self.word(base)), value: bits as i64, bits })
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
            name: self.btf.name(self.word(3 + 2 * index)),
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
