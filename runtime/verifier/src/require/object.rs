//! What an access to a kernel object or to the fields of a map requires.

use crate::explore::Explorer;
use crate::refusal::{Checked, refuse};
use crate::require::memory::{Access, Target};
use crate::state::{Kind, MapRef, RegState};
use crate::types::{Field, KernelTypes};
use beeline_abi::map::MapType;
use beeline_isa::Reg;

/// The kernel's structure of a map, by its type (`map_btf_name`).
fn map_structure(map_type: u32) -> &'static str {
    match map_type {
        MapType::HASH
        | MapType::PERCPU_HASH
        | MapType::LRU_HASH
        | MapType::LRU_PERCPU_HASH
        | MapType::HASH_OF_MAPS => "bpf_htab",
        MapType::STACK_TRACE => "bpf_stack_map",
        MapType::LPM_TRIE => "lpm_trie",
        MapType::QUEUE | MapType::STACK => "bpf_queue_stack",
        MapType::RINGBUF | MapType::USER_RINGBUF => "bpf_ringbuf_map",
        MapType::BLOOM_FILTER => "bpf_bloom_filter",
        _ => "bpf_array",
    }
}

impl Explorer<'_> {
    /// The kernel's types, if they are known.
    pub(crate) fn types(&self) -> Option<&dyn KernelTypes> {
        self.program.types.as_ref().map(|types| &*types.0)
    }

    /// The name of a structure, for messages.
    pub(crate) fn type_name(&self, type_id: u32) -> &str {
        self.types().map_or("", |types| types.name(type_id))
    }

    /// An access to the fields of a map itself.
    pub(crate) fn map_field(&self, target: &Target, map: MapRef, access: Access) -> Checked<Field> {
        let name = map_structure(self.map(map)?.shape.map_type);
        let off = target.fixed();
        if off < 0 {
            refuse!("R{} is {name} invalid negative access: off={off}", target.reg.0);
        }
        if access == Access::Write {
            refuse!("only read from {name} is supported");
        }
        let Some(types) = self.types() else {
            refuse!(
                "R{} is {name}: the fields of maps are only known with the kernel's types (BTF)",
                target.reg.0
            )
        };
        let Some(type_id) = types.find(name) else { refuse!("struct {name} is not known") };
        types.field(type_id, off as u32, target.size)
    }

    /// An access to a kernel object (`check_ptr_to_btf_access`).
    pub(crate) fn object_field(&self, target: &Target, type_id: u32, access: Access) -> Checked<Field> {
        let (number, name, off) = (target.reg.0, self.type_name(type_id), target.fixed());
        if !self.program.gpl_compatible {
            refuse!("Cannot access kernel 'struct {name}' from non-GPL compatible program");
        }
        if off < 0 {
            refuse!("R{number} is ptr_{name} invalid negative access: off={off}");
        }
        if target.pointer.value.as_const() != Some(0) {
            let variable = target.pointer.value.tnum;
            refuse!("R{number} is ptr_{name} invalid variable offset: off={off}, var_off={variable}");
        }
        if access == Access::Write {
            refuse!("only read is supported");
        }
        let Some(types) = self.types() else {
            refuse!("R{number} is a kernel object: its fields are only known with the kernel's types (BTF)")
        };
        if type_id == 0 {
            refuse!("R{number} is a kernel object of a type that is not known here");
        }
        types.field(type_id, off as u32, target.size)
    }

    /// An object that a helper takes: of that type, from its start.
    pub(crate) fn object_argument(&self, reg: Reg, state: &RegState, type_id: u32, name: &str) -> Checked {
        let expected = self.types().and_then(|types| types.find(name)).unwrap_or(0);
        if expected != type_id {
            let given = self.type_name(type_id);
            refuse!("R{} is of type {given} but {name} is expected", reg.0);
        }
        if state.const_offset() != Some(0) || state.kind == Kind::Uninit {
            refuse!("R{} must have zero offset when passed to release func or trusted arg to kfunc", reg.0);
        }
        Ok(())
    }
}
