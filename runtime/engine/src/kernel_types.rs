//! A BTF as the verifier asks for it.

use beeline_object::btf::{Btf, KERNEL_BTF_PATH, Kind, Walked, builtin};
use beeline_verifier::types::{Field, KernelTypes, PointerTag, Types};
use std::path::Path;
use std::sync::Arc;

#[derive(Debug)]
struct FromBtf(Arc<Btf>);

/// The types of this BTF.
pub fn kernel_types(btf: Arc<Btf>) -> Types {
    Types(Arc::new(FromBtf(btf)))
}

/// The running kernel's types, or the built-in ones where it shows none.
pub fn running_kernel_types() -> Types {
    let kernel = Btf::load(Path::new(KERNEL_BTF_PATH)).map(Arc::new);
    kernel_types(kernel.unwrap_or_else(|_| builtin::btf()))
}

impl KernelTypes for FromBtf {
    fn find(&self, name: &str) -> Option<u32> {
        self.0.find(name, Kind::Struct).map(|ty| ty.id())
    }

    fn name(&self, type_id: u32) -> &str {
        self.0.get(type_id).map_or("", |ty| ty.name())
    }

    fn function(&self, btf_id: u32) -> Option<&str> {
        self.0.get(btf_id).filter(|ty| ty.kind() == Kind::Func).map(|ty| ty.name())
    }

    fn offset(&self, structure: &str, path: &str) -> Option<u32> {
        self.0.field_of(structure, path).map(|field| field.byte_offset())
    }

    fn field(&self, type_id: u32, off: u32, size: u32) -> Result<Field, String> {
        Ok(match self.0.walk(type_id, off, size)? {
            Walked::Number => Field::Number,
            Walked::Pointer { type_id, tag } => {
                let tag = match tag {
                    "user" => PointerTag::User,
                    "percpu" => PointerTag::PerCpu,
                    "rcu" => PointerTag::Rcu,
                    _ => PointerTag::None,
                };
                Field::Pointer { type_id, tag }
            }
        })
    }
}
