//! Builds a [`Btf`] type by type: for the built-in kernel types, and for tests.

use super::{Btf, Kind};

/// Collects types. Each method returns the new type's id; ids given to it are not checked until they are used.
#[derive(Debug)]
pub struct Builder {
    btf: Btf,
}

/// A member to build: name, type id, offset in bits, width in bits (0 = not a bitfield).
pub type MemberSpec<'a> = (&'a str, u32, u32, u32);

impl Default for Builder {
    fn default() -> Self {
        Builder::new()
    }
}

impl Builder {
    /// Nothing but void.
    pub fn new() -> Builder {
        Builder { btf: Btf::empty() }
    }

    /// The finished type information.
    pub fn finish(self) -> Btf {
        self.btf
    }

    fn push(&mut self, kind: Kind, name: &str, vlen: usize, flag: bool, word: u32, trailer: &[u32]) -> u32 {
        let name = self.btf.intern(name);
        let info = (kind as u32) << 24 | (vlen as u32 & 0xffff) | u32::from(flag) << 31;
        self.btf.push(name, info, word, trailer)
    }

    /// An integer of `size` bytes; `encoding` is `INT_*`.
    pub fn int(&mut self, name: &str, size: u32, encoding: u32) -> u32 {
        self.push(Kind::Int, name, 0, false, size, &[encoding << 24 | (size * 8) & 0xff])
    }

    /// A floating-point number of `size` bytes.
    pub fn float(&mut self, name: &str, size: u32) -> u32 {
        self.push(Kind::Float, name, 0, false, size, &[])
    }

    /// A pointer, modifier, type tag or typedef.
    pub fn reference(&mut self, kind: Kind, name: &str, target: u32) -> u32 {
        self.push(kind, name, 0, false, target, &[])
    }

    /// A pointer to `target`.
    pub fn pointer(&mut self, target: u32) -> u32 {
        self.reference(Kind::Ptr, "", target)
    }

    /// Makes an existing pointer, modifier or typedef refer to `target`: for types that refer to each other.
    pub fn set_pointee(&mut self, reference: u32, target: u32) {
        self.btf.set_word(reference, 2, target);
    }

    /// `len` elements; `index` is the type of the index.
    pub fn array(&mut self, element: u32, index: u32, len: u32) -> u32 {
        self.push(Kind::Array, "", 0, false, 0, &[element, index, len])
    }

    /// A struct or union of `size` bytes.
    pub fn composite(&mut self, kind: Kind, name: &str, size: u32, members: &[MemberSpec<'_>]) -> u32 {
        let flag = members.iter().any(|member| member.3 != 0);
        let mut trailer = Vec::with_capacity(3 * members.len());
        for &(name, type_id, offset, width) in members {
            trailer.extend([
                self.btf.intern(name),
                type_id,
                if flag { offset | width << 24 } else { offset },
            ]);
        }
        self.push(kind, name, members.len(), flag, size, &trailer)
    }

    /// A forward declaration.
    pub fn forward(&mut self, name: &str, union: bool) -> u32 {
        self.push(Kind::Fwd, name, 0, union, 0, &[])
    }

    /// A 32-bit enum (of `size` bytes).
    pub fn enumeration(&mut self, name: &str, size: u32, signed: bool, values: &[(&str, i32)]) -> u32 {
        let trailer: Vec<u32> =
            values.iter().flat_map(|&(name, value)| [self.btf.intern(name), value as u32]).collect();
        self.push(Kind::Enum, name, values.len(), signed, size, &trailer)
    }

    /// A 64-bit enum.
    pub fn enumeration64(&mut self, name: &str, signed: bool, values: &[(&str, u64)]) -> u32 {
        let trailer: Vec<u32> = values
            .iter()
            .flat_map(|&(name, value)| [self.btf.intern(name), value as u32, (value >> 32) as u32])
            .collect();
        self.push(Kind::Enum64, name, values.len(), signed, 8, &trailer)
    }

    /// A function prototype.
    pub fn prototype(&mut self, result: u32, params: &[(&str, u32)]) -> u32 {
        let trailer: Vec<u32> = params.iter().flat_map(|&(name, ty)| [self.btf.intern(name), ty]).collect();
        self.push(Kind::FuncProto, "", params.len(), false, result, &trailer)
    }

    /// A function; `linkage` is `FUNC_*`.
    pub fn function(&mut self, name: &str, prototype: u32, linkage: u32) -> u32 {
        self.push(Kind::Func, name, linkage as usize, false, prototype, &[])
    }

    /// A variable; `linkage` is `VAR_*`.
    pub fn variable(&mut self, name: &str, ty: u32, linkage: u32) -> u32 {
        self.push(Kind::Var, name, 0, false, ty, &[linkage])
    }

    /// A data section: variables as (type id, offset, size).
    pub fn section(&mut self, name: &str, size: u32, vars: &[(u32, u32, u32)]) -> u32 {
        let trailer: Vec<u32> = vars.iter().flat_map(|&(ty, offset, size)| [ty, offset, size]).collect();
        self.push(Kind::DataSec, name, vars.len(), false, size, &trailer)
    }
}
