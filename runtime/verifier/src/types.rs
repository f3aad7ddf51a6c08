//! The kernel's types, as far as a program that follows pointers of kernel objects needs them.
//!
//! Where they come from (BTF) is not the verifier's business: it asks a [`KernelTypes`].

use std::sync::Arc;

/// What lies at a place in a structure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Field {
    /// A number, or a pointer to what is no structure.
    Number,
    /// A pointer to the structure with this id.
    Pointer {
        /// The structure.
        type_id: u32,
        /// What the pointer's type is tagged with.
        tag: PointerTag,
    },
}

/// `__attribute__((btf_type_tag("...")))` on a pointer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PointerTag {
    /// None that matters.
    None,
    /// `user`: to memory of a process.
    User,
    /// `percpu`: to a copy for each CPU.
    PerCpu,
    /// `rcu`: protected by RCU.
    Rcu,
}

/// Structures and unions by id.
pub trait KernelTypes: std::fmt::Debug + Send + Sync {
    /// The structure with this name.
    fn find(&self, name: &str) -> Option<u32>;

    /// Its name; empty for an id that does not exist.
    fn name(&self, type_id: u32) -> &str;

    /// The name of the function with this id; `None`: it is no function.
    fn function(&self, btf_id: u32) -> Option<&str>;

    /// Byte offset of a member of a structure; the path may lead through several (`ns.inum`).
    fn offset(&self, structure: &str, path: &str) -> Option<u32>;

    /// What the `size` bytes at `off` are.
    ///
    /// # Errors
    /// The kernel's words (`btf_struct_walk`) when they are no field.
    fn field(&self, type_id: u32, off: u32, size: u32) -> Result<Field, String>;
}

/// A shared [`KernelTypes`]; equal to itself and its copies.
#[derive(Clone, Debug)]
pub struct Types(pub Arc<dyn KernelTypes>);

impl PartialEq for Types {
    fn eq(&self, other: &Types) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Types {}
