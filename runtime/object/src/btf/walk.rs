//! What lies at a byte of a structure: the question that a verifier asks of each load through a kernel pointer.
//!
//! Rules and words are those of `btf_struct_walk` (`kernel/bpf/btf.c`).

use super::{Btf, Kind, RESOLVE_DEPTH_MAX, Type};

/// What a load of some bytes of a structure gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Walked<'a> {
    /// A number, or a pointer to what is no structure.
    Number,
    /// A pointer to the structure `type_id`.
    Pointer {
        /// The structure.
        type_id: u32,
        /// Text of the type tag on the pointer, empty when there is none.
        tag: &'a str,
    },
}

/// A step of the walk: into a structure inside, or the end.
enum Step<'a> {
    Into { type_id: u32, off: u32 },
    Done(Walked<'a>),
}

impl Btf {
    /// What the `size` bytes at `off` of structure `type_id` are.
    ///
    /// # Errors
    /// The kernel's words when they are no field, or parts of several.
    pub fn walk(&self, type_id: u32, off: u32, size: u32) -> Result<Walked<'_>, String> {
        let (mut type_id, mut at) = (type_id, off);
        for _ in 0..RESOLVE_DEPTH_MAX {
            let ty = self.type_or_void(type_id);
            if !ty.kind().is_composite() {
                return Err(format!("Type '{}' is not a struct", ty.name()));
            }
            match self.step(ty, at, size)? {
                Step::Into { type_id: inner, off } => (type_id, at) = (inner, off),
                Step::Done(walked) => return Ok(walked),
            }
        }
        Err(format!("struct {} is nested too deeply", self.type_or_void(type_id).name()))
    }

    fn step(&self, ty: Type<'_>, off: u32, size: u32) -> Result<Step<'_>, String> {
        let end = off.checked_add(size).ok_or_else(|| format!("offset {off} is too large"))?;
        if end > ty.size() {
            return self.beyond(ty, off, size);
        }
        for member in ty.members() {
            let start = member.bit_offset / 8;
            if end <= start {
                break;
            }
            if member.bitfield_bits != 0 {
                let last = member.bit_offset.saturating_add(member.bitfield_bits).div_ceil(8);
                // Unnamed bit fields have no member: what lies before one may belong to it.
                if off <= start && last <= end {
                    return Ok(Step::Done(Walked::Number));
                }
                continue;
            }
            if off < start {
                break;
            }
            let bytes = self
                .size_of(member.type_id)
                .map_err(|_| format!("field {} doesn't have size", member.name))?;
            if off >= start.saturating_add(bytes) {
                continue;
            }
            return self.member(ty, member.name, (member.type_id, start, bytes), off, size);
        }
        Err(format!("struct {} doesn't have field at offset {off}", ty.name()))
    }

    /// The bytes lie in a member, or begin in it.
    fn member(
        &self,
        ty: Type<'_>,
        name: &str,
        (type_id, start, bytes): (u32, u32, u32),
        off: u32,
        size: u32,
    ) -> Result<Step<'_>, String> {
        let member_end = start.saturating_add(bytes);
        let (element, start, bytes) = self.element(type_id, start, bytes, off);
        if element.kind().is_composite() {
            return Ok(Step::Into { type_id: element.id(), off: off - start });
        }
        if element.kind() == Kind::Ptr {
            if bytes != size || off != start {
                return Err(format!(
                    "cannot access ptr member {name} with moff {start} in struct {} with off {off} size {size}",
                    ty.name()
                ));
            }
            return Ok(Step::Done(self.pointer(element)));
        }
        if off + size > member_end {
            return Err(format!(
                "access beyond the end of member {name} (mend:{member_end}) in struct {} with off {off} size {size}",
                ty.name()
            ));
        }
        Ok(Step::Done(Walked::Number))
    }

    /// The element of an array that byte `off` lies in, with its start and size; other types are their own only element.
    fn element(&self, type_id: u32, start: u32, bytes: u32, off: u32) -> (Type<'_>, u32, u32) {
        let (mut start, mut bytes) = (start, bytes);
        let mut ty = self.resolve(type_id).unwrap_or_else(|| self.type_or_void(0));
        for _ in 0..RESOLVE_DEPTH_MAX {
            if ty.kind() != Kind::Array {
                break;
            }
            let array = ty.array();
            let (Some(inner), Ok(size)) = (self.resolve(array.element), self.size_of(array.element)) else {
                break;
            };
            if size == 0 {
                break;
            }
            start += (off - start) / size * size;
            (ty, bytes) = (inner, size);
        }
        (ty, start, bytes)
    }

    fn pointer(&self, pointer: Type<'_>) -> Walked<'_> {
        let tagged = self.type_or_void(pointer.type_id());
        let tag = if tagged.kind() == Kind::TypeTag && !tagged.kind_flag() { tagged.name() } else { "" };
        match self.resolve(pointer.type_id()) {
            Some(target) if target.kind().is_composite() => Walked::Pointer { type_id: target.id(), tag },
            _ => Walked::Number,
        }
    }

    /// Behind the end of a structure lies the flexible array that it may end with.
    fn beyond(&self, ty: Type<'_>, off: u32, size: u32) -> Result<Step<'_>, String> {
        let outside = || format!("access beyond struct {} at off {off} size {size}", ty.name());
        let last = ty.members().next_back().ok_or_else(outside)?;
        let array = self.resolve(last.type_id).filter(|it| it.kind() == Kind::Array).ok_or_else(outside)?;
        let start = last.bit_offset / 8;
        if array.array().len != 0 || off < start {
            return Err(outside());
        }
        let element = self.resolve(array.array().element).ok_or_else(outside)?;
        if !element.kind().is_composite() || element.size() == 0 {
            return Err(outside());
        }
        Ok(Step::Into { type_id: element.id(), off: (off - start) % element.size() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::btf::builtin;

    #[test]
    fn fields_of_a_task() {
        let btf = builtin::btf();
        let task = btf.find("task_struct", Kind::Struct).expect("task_struct");
        let offset = |path| btf.field_of("task_struct", path).expect(path).byte_offset();
        assert_eq!(btf.walk(task.id(), offset("pid"), 4), Ok(Walked::Number));
        assert_eq!(
            btf.walk(task.id(), offset("real_parent"), 8),
            Ok(Walked::Pointer { type_id: task.id(), tag: "" })
        );
        assert_eq!(btf.walk(task.id(), offset("comm") + 3, 1), Ok(Walked::Number));
        let half = btf.walk(task.id(), offset("real_parent"), 4).unwrap_err();
        assert!(half.starts_with("cannot access ptr member real_parent"), "{half}");
        let long = btf.walk(task.id(), offset("comm") + 12, 8).unwrap_err();
        assert!(long.starts_with("access beyond the end of member comm"), "{long}");
        let outside = btf.walk(task.id(), task.size(), 4).unwrap_err();
        assert!(outside.starts_with("access beyond struct task_struct"), "{outside}");
        assert!(btf.walk(0, 0, 4).is_err() && btf.walk(task.id(), u32::MAX, 8).is_err());
    }
}
