//! What loads from kernel objects and from the fields of maps give.

use crate::effect::memory::loaded;
use crate::explore::Explorer;
use crate::facts::MapField;
use crate::refusal::{Checked, refuse};
use crate::require::memory::{Access, Target};
use crate::state::{Kind, MapRef, RegState, Trust};
use crate::types::{Field, PointerTag};
use beeline_abi::map::{MapHandle, MapShape};
use core::mem::offset_of;

/// Fields of `struct bpf_map` that userspace has too: name, offset in the handle. All have four bytes.
const MAP_FIELDS: [(&str, usize); 6] = [
    ("map_type", offset_of!(MapHandle, shape) + offset_of!(MapShape, map_type)),
    ("key_size", offset_of!(MapHandle, shape) + offset_of!(MapShape, key_size)),
    ("value_size", offset_of!(MapHandle, shape) + offset_of!(MapShape, value_size)),
    ("max_entries", offset_of!(MapHandle, shape) + offset_of!(MapShape, max_entries)),
    ("map_flags", offset_of!(MapHandle, shape) + offset_of!(MapShape, map_flags)),
    ("id", offset_of!(MapHandle, id)),
];

impl Explorer<'_> {
    /// A load from an object: the field's value, or 0 when there is no memory.
    pub(crate) fn load_object(
        &mut self,
        target: &Target,
        type_id: u32,
        trust: Trust,
        signed: bool,
    ) -> Checked<RegState> {
        let field = self.object_field(target, type_id, Access::Read)?;
        Ok(self.field_loaded(field, target.size, signed, trust))
    }

    /// A load from the fields of a map.
    pub(crate) fn load_map_field(&mut self, target: &Target, map: MapRef, signed: bool) -> Checked<RegState> {
        let field = self.map_field(target, map, Access::Read)?;
        let place = self.place_of_map_field(target.fixed() as u32, target.size);
        if *self.facts.map_fields.entry(self.pc).or_insert(place) != place {
            refuse!("same insn cannot be used with different pointers");
        }
        Ok(self.field_loaded(field, target.size, signed, Trust::Walked))
    }

    /// Where a field of `struct bpf_map` lies in userspace.
    fn place_of_map_field(&self, off: u32, size: u32) -> MapField {
        let Some(types) = self.types() else { return MapField::Zero };
        for (name, here) in MAP_FIELDS {
            if let Some(there) = types.offset("bpf_map", name)
                && (there..there + 4).contains(&off)
                && off + size <= there + 4
            {
                return MapField::Handle((here as u32 + off - there) as i16);
            }
        }
        MapField::Zero
    }

    fn field_loaded(&self, field: Field, size: u32, signed: bool, from: Trust) -> RegState {
        match field {
            Field::Pointer { type_id, tag } if size == 8 && !signed => {
                let trust = match (from, tag) {
                    (Trust::Untrusted, _) | (_, PointerTag::User | PointerTag::PerCpu) => Trust::Untrusted,
                    (Trust::Trusted | Trust::Rcu, PointerTag::Rcu) if !self.program.sleepable => Trust::Rcu,
                    _ => Trust::Walked,
                };
                // What is behind it is looked at by probes only: it need not be compared with null.
                RegState::pointer(Kind::Btf { type_id, trust, nullable: false })
            }
            _ => loaded(size, signed),
        }
    }
}
