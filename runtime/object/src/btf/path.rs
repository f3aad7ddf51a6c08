//! Members by path: `ns.inum`, `args[2]`, through anonymous structs and unions.

use super::{Btf, Kind, RESOLVE_DEPTH_MAX, Type};

/// Members looked at for one path.
const STEPS_MAX: u32 = 1 << 16;

/// A field inside a type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    /// Its type.
    pub type_id: u32,
    /// Offset in bits from the start of the root.
    pub bit_offset: u32,
    /// Width in bits when it is a bitfield, else 0.
    pub bitfield_bits: u32,
}

impl Field {
    /// Offset in bytes; of a bitfield, of the byte where it begins.
    pub fn byte_offset(self) -> u32 {
        self.bit_offset / 8
    }
}

impl Btf {
    /// The field that `path` names in type `root`; an empty path is the root itself.
    ///
    /// `None` when there is no such field, or the types nest deeper than [`RESOLVE_DEPTH_MAX`].
    pub fn field(&self, root: u32, path: &str) -> Option<Field> {
        let mut field = Field { type_id: root, bit_offset: 0, bitfield_bits: 0 };
        let mut steps = STEPS_MAX;
        for part in path.split('.').filter(|part| !part.is_empty()) {
            let (name, indexes) = part.split_once('[').unwrap_or((part, ""));
            if !name.is_empty() {
                let found =
                    self.member_named(self.resolve(field.type_id)?, name, RESOLVE_DEPTH_MAX, &mut steps)?;
                let bit_offset = field.bit_offset.checked_add(found.bit_offset)?;
                field = Field { bit_offset, ..found };
            }
            for index in indexes.split('[').filter(|index| !index.is_empty()) {
                let index: u32 = index.strip_suffix(']')?.parse().ok()?;
                let array = self.resolve(field.type_id).filter(|ty| ty.kind() == Kind::Array)?.array();
                if index >= array.len && array.len != 0 {
                    return None;
                }
                let bits = index.checked_mul(self.size_of(array.element).ok()?)?.checked_mul(8)?;
                let bit_offset = field.bit_offset.checked_add(bits)?;
                field = Field { type_id: array.element, bit_offset, bitfield_bits: 0 };
            }
        }
        Some(field)
    }

    /// The field that `path` names in the struct or union of this name.
    pub fn field_of(&self, name: &str, path: &str) -> Option<Field> {
        let root = self.find(name, Kind::Struct).or_else(|| self.find(name, Kind::Union))?;
        self.field(root.id(), path)
    }

    fn member_named(&self, ty: Type<'_>, name: &str, depth: usize, steps: &mut u32) -> Option<Field> {
        let depth = depth.checked_sub(1)?;
        for member in ty.members() {
            *steps = steps.checked_sub(1)?;
            let here = Field {
                type_id: member.type_id,
                bit_offset: member.bit_offset,
                bitfield_bits: member.bitfield_bits,
            };
            if member.name == name {
                return Some(here);
            }
            if member.name.is_empty()
                && let Some(inner) = self.resolve(member.type_id)
                && let Some(found) = self.member_named(inner, name, depth, steps)
            {
                let bit_offset = here.bit_offset.checked_add(found.bit_offset)?;
                return Some(Field { bit_offset, ..found });
            }
        }
        None
    }
}
