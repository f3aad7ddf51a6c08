//! CO-RE: what an instruction that depends on a type of the kernel becomes for the kernel at hand.
//!
//! The compiler records the access in terms of the object's own types (the *local* spec); [`Resolver`] finds the
//! types of the same name in the *target* BTF, walks the same path in each ([`matching`]), computes the value that
//! the relocation asks for, and [`patch`] writes it. All that match must agree. Semantics, down to which failures
//! poison the instruction and which refuse the object, are those of libbpf's `relo_core.c`.

mod calculate;
mod compat;
mod matching;
pub mod patch;
mod spec;

use std::cell::Cell;
use std::collections::HashMap;

use crate::btf::ext::CoreReloRecord;
use crate::btf::{Btf, Kind, Type, essential_name};
pub(crate) use compat::types_are_compatible;
use spec::Spec;

/// Accessors that one access string may have (libbpf's `BPF_CORE_SPEC_MAX_LEN`).
const SPEC_LEN_MAX: usize = 64;

/// Members looked at for one relocation before the types are called hostile. The kernel's largest structs have a
/// few thousand members in all.
const STEPS_MAX: u32 = 1 << 20;

/// Likewise for all relocations of an object.
const TOTAL_STEPS_MAX: u32 = 1 << 26;

/// `enum bpf_core_relo_kind` (`include/uapi/linux/bpf.h`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ReloKind {
    /// Byte offset of a field.
    FieldByteOffset,
    /// Size of a field in bytes.
    FieldByteSize,
    /// 1 when the field exists.
    FieldExists,
    /// 1 when the field is signed.
    FieldSigned,
    /// Left shift that brings a bitfield's top bit to bit 63.
    FieldLshiftU64,
    /// Right shift that then brings its lowest bit to bit 0.
    FieldRshiftU64,
    /// Id in the object's own BTF.
    TypeIdLocal,
    /// Id in the target BTF.
    TypeIdTarget,
    /// 1 when a compatible type of that name exists.
    TypeExists,
    /// Its size in bytes.
    TypeSize,
    /// 1 when the enumerator exists.
    EnumvalExists,
    /// Its value.
    EnumvalValue,
    /// 1 when a matching type of that name exists.
    TypeMatches,
}

impl ReloKind {
    /// By the number in a relocation record.
    pub fn from_number(number: u32) -> Option<ReloKind> {
        use ReloKind::*;
        const ALL: [ReloKind; 13] = [
            FieldByteOffset,
            FieldByteSize,
            FieldExists,
            FieldSigned,
            FieldLshiftU64,
            FieldRshiftU64,
            TypeIdLocal,
            TypeIdTarget,
            TypeExists,
            TypeSize,
            EnumvalExists,
            EnumvalValue,
            TypeMatches,
        ];
        ALL.get(number as usize).copied()
    }

    /// libbpf's short name.
    pub fn name(self) -> &'static str {
        match self {
            ReloKind::FieldByteOffset => "byte_off",
            ReloKind::FieldByteSize => "byte_sz",
            ReloKind::FieldExists => "field_exists",
            ReloKind::FieldSigned => "signed",
            ReloKind::FieldLshiftU64 => "lshift_u64",
            ReloKind::FieldRshiftU64 => "rshift_u64",
            ReloKind::TypeIdLocal => "local_type_id",
            ReloKind::TypeIdTarget => "target_type_id",
            ReloKind::TypeExists => "type_exists",
            ReloKind::TypeSize => "type_size",
            ReloKind::EnumvalExists => "enumval_exists",
            ReloKind::EnumvalValue => "enumval_value",
            ReloKind::TypeMatches => "type_matches",
        }
    }

    fn is_type_based(self) -> bool {
        use ReloKind::*;
        matches!(self, TypeIdLocal | TypeIdTarget | TypeExists | TypeSize | TypeMatches)
    }

    fn is_enum_based(self) -> bool {
        matches!(self, ReloKind::EnumvalExists | ReloKind::EnumvalValue)
    }
}

/// Why a relocation is refused rather than poisoned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CoReError {
    /// The record's kind is not one of the thirteen.
    #[error("unknown kind {0}")]
    UnknownKind(u32),
    /// The access string does not fit the local type.
    #[error("{kind} of [{type_id}] {type_name}, access '{access}': {reason}")]
    Spec {
        /// What is asked for.
        kind: &'static str,
        /// The local root type.
        type_id: u32,
        /// Its name.
        type_name: String,
        /// The access string.
        access: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The root type has no name to search by.
    #[error("{kind}: a relocation of an anonymous type")]
    Anonymous {
        /// What is asked for.
        kind: &'static str,
    },
    /// A type cannot be walked or measured.
    #[error("type [{type_id}]: {reason}")]
    Type {
        /// The type, local or target.
        type_id: u32,
        /// What is wrong.
        reason: &'static str,
    },
    /// Candidates of the same name disagree.
    #[error("{what} of '{type_name}' is ambiguous in the target BTF: {first} or {second}")]
    Ambiguous {
        /// The offset or the value.
        what: &'static str,
        /// The type's name.
        type_name: String,
        /// What the first candidate says.
        first: String,
        /// What another says.
        second: String,
    },
    /// The relocation cannot be applied to what it asks for.
    #[error("{kind}: {reason}")]
    Inapplicable {
        /// What is asked for.
        kind: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
    /// The instruction is not one that this relocation patches.
    #[error("unexpected instruction (code {code:#04x}): {reason}")]
    Instruction {
        /// Its opcode.
        code: u8,
        /// What is wrong.
        reason: String,
    },
}

/// What a relocation comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Resolution {
    /// The value by the local types: what the instruction should hold now.
    pub original: u64,
    /// The value by the target's types.
    pub new: u64,
    /// The target lacks it: the instruction becomes an invalid call.
    pub poison: bool,
    /// `original` is to be found in the instruction.
    pub validate: bool,
    /// Loads and stores cannot be resized and are poisoned.
    pub access_mismatch: bool,
    /// Bytes of the field by the local types; 0 when that does not matter.
    pub original_size: u32,
    /// Bytes of the field by the target's types.
    pub new_size: u32,
}

/// Resolves the relocations of one object against one target.
pub struct Resolver<'a> {
    local: &'a Btf,
    target: &'a Btf,
    /// Candidates by local root type; those that do not match are dropped as relocations are resolved.
    candidates: HashMap<u32, Vec<u32>>,
    /// Steps left for all relocations together.
    steps: u32,
}

impl<'a> Resolver<'a> {
    /// Types of `local` are looked for in `target`.
    pub fn new(local: &'a Btf, target: &'a Btf) -> Resolver<'a> {
        Resolver { local, target, candidates: HashMap::new(), steps: TOTAL_STEPS_MAX }
    }

    /// What `record` comes to.
    pub fn resolve(&mut self, record: &CoreReloRecord) -> Result<Resolution, CoReError> {
        let kind = ReloKind::from_number(record.kind).ok_or(CoReError::UnknownKind(record.kind))?;
        let local = Spec::parse(self.local, record, kind)?;
        if kind == ReloKind::TypeIdLocal {
            let id = u64::from(record.type_id);
            return Ok(Resolution { original: id, new: id, ..Resolution::default() });
        }
        let root = self.local.type_or_void(record.type_id);
        if root.name().is_empty() {
            return Err(CoReError::Anonymous { kind: kind.name() });
        }
        let target = self.target;
        let candidates = self.candidates.entry(root.id()).or_insert_with(|| find_candidates(root, target));
        let allowed = self.steps.min(STEPS_MAX);
        let budget = Budget(Cell::new(allowed));
        let mut chosen: Option<(Resolution, u32)> = None;
        let mut matching = Vec::new();
        for &id in candidates.iter() {
            let Some(spec) = matching::match_spec(&local, target, id, &budget)? else { continue };
            let resolution = calculate::resolution(&local, Some(&spec))?;
            match &chosen {
                None => chosen = Some((resolution, spec.bit_offset)),
                Some((first, bit_offset)) => {
                    agree(root, (first, *bit_offset), (&resolution, spec.bit_offset))?
                }
            }
            matching.push(id);
        }
        self.steps -= allowed - budget.0.get();
        match chosen {
            Some((resolution, _)) => {
                *candidates = matching;
                Ok(resolution)
            }
            None => calculate::resolution(&local, None),
        }
    }
}

/// Every candidate must come to the same.
fn agree(root: Type<'_>, first: (&Resolution, u32), second: (&Resolution, u32)) -> Result<(), CoReError> {
    let ambiguous = |what, first: String, second: String| {
        Err(CoReError::Ambiguous { what, type_name: root.name().to_owned(), first, second })
    };
    if first.1 != second.1 {
        return ambiguous("the field's bit offset", first.1.to_string(), second.1.to_string());
    }
    if first.0.poison != second.0.poison || first.0.new != second.0.new {
        let describe = |resolution: &Resolution| match resolution.poison {
            true => "failure".to_owned(),
            false => resolution.new.to_string(),
        };
        return ambiguous("the value", describe(first.0), describe(second.0));
    }
    Ok(())
}

fn find_candidates(local: Type<'_>, target: &Btf) -> Vec<u32> {
    target
        .with_essential_name(essential_name(local.name()))
        .filter(|ty| kinds_are_compatible(ty.kind(), local.kind()))
        .map(|ty| ty.id())
        .collect()
}

/// The same kind, or enums of either width.
fn kinds_are_compatible(a: Kind, b: Kind) -> bool {
    a == b || (a.is_enum() && b.is_enum())
}

/// Steps left in walks that hostile types could make endless.
pub(crate) struct Budget(Cell<u32>);

impl Budget {
    /// As many steps as one relocation may take.
    pub(crate) fn full() -> Budget {
        Budget(Cell::new(STEPS_MAX))
    }

    fn step(&self, type_id: u32) -> Result<(), CoReError> {
        let left = self.0.get();
        if left == 0 {
            return Err(CoReError::Type { type_id, reason: "too many members to look through" });
        }
        self.0.set(left - 1);
        Ok(())
    }
}

/// `ty` without typedefs and modifiers.
fn resolve_type(btf: &Btf, type_id: u32) -> Result<Type<'_>, CoReError> {
    btf.resolve(type_id).ok_or(CoReError::Type { type_id, reason: "nested too deeply" })
}

/// Size in bytes.
fn size_of(btf: &Btf, type_id: u32) -> Result<u32, CoReError> {
    btf.size_of(type_id).map_err(|_| CoReError::Type { type_id, reason: "it has no size" })
}
