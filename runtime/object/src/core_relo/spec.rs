//! An access path: parsed from the access string over local types, or found in the target.

use super::{CoReError, ReloKind, SPEC_LEN_MAX, resolve_type, size_of};
use crate::btf::ext::CoreReloRecord;
use crate::btf::{Array, Btf, Kind, Type};

/// One semantic step of an access: a named member, or an array element.
#[derive(Clone, Copy, Debug)]
pub(super) struct Accessor<'a> {
    /// Of a member: the struct that has it. Of an element: the element's type. Without typedefs.
    pub type_id: u32,
    /// Index of the member, element or enumerator.
    pub index: u32,
    /// The member's or enumerator's name; `None` for an element.
    pub name: Option<&'a str>,
}

/// A path through types.
#[derive(Clone, Debug)]
pub(super) struct Spec<'a> {
    pub btf: &'a Btf,
    pub kind: ReloKind,
    /// The type it starts from.
    pub root: u32,
    pub accessors: Vec<Accessor<'a>>,
    /// Levels of nesting passed, anonymous ones included.
    pub depth: usize,
    /// Of the field, from the start of the root; wraps as libbpf's does.
    pub bit_offset: u32,
}

impl<'a> Spec<'a> {
    /// A path that has not left its root.
    pub(super) fn new(btf: &'a Btf, kind: ReloKind, root: u32) -> Spec<'a> {
        Spec { btf, kind, root, accessors: Vec::new(), depth: 0, bit_offset: 0 }
    }

    /// Parses a record's access string and checks it against the local types.
    pub(super) fn parse(
        btf: &'a Btf,
        record: &CoreReloRecord,
        kind: ReloKind,
    ) -> Result<Spec<'a>, CoReError> {
        let access = btf.string(record.access_str_off);
        let root = btf.get(record.type_id);
        let fail = |reason| CoReError::Spec {
            kind: kind.name(),
            type_id: record.type_id,
            type_name: root.map_or("<none>", Type::display_name).to_owned(),
            access: access.to_owned(),
            reason,
        };
        if root.is_none() {
            return Err(fail("no such type"));
        }
        let mut spec = Spec::new(btf, kind, record.type_id);
        if kind.is_type_based() {
            return if access == "0" { Ok(spec) } else { Err(fail("a type's access string is '0'")) };
        }
        let path = parse_access(access).map_err(fail)?;
        let (&first, rest) = path.split_first().ok_or(fail("empty"))?;
        let root = resolve_type(btf, record.type_id)?;
        spec.depth = 1;
        if kind.is_enum_based() {
            let enumerator = root.enumerator(first as usize).filter(|_| rest.is_empty());
            let name = enumerator.ok_or(fail("not an enumerator"))?.name;
            spec.accessors.push(Accessor { type_id: root.id(), index: first, name: Some(name) });
            return Ok(spec);
        }
        spec.accessors.push(Accessor { type_id: root.id(), index: first, name: None });
        spec.advance(u64::from(first) * u64::from(size_of(btf, root.id())?) * 8);
        let mut id = root.id();
        for &index in rest {
            id = spec.step(id, index).map_err(|error| error.unwrap_or_else(fail))?;
        }
        Ok(spec)
    }

    /// Goes one level down from type `id`; returns the type reached.
    fn step(&mut self, id: u32, index: u32) -> Result<u32, StepError> {
        self.depth += 1;
        let ty = resolve_type(self.btf, id).map_err(StepError::Error)?;
        match ty.kind() {
            Kind::Struct | Kind::Union => {
                let member = ty.member(index as usize).ok_or(StepError::Reason("no such member"))?;
                self.advance(member.bit_offset.into());
                if !member.name.is_empty() {
                    self.accessors.push(Accessor { type_id: ty.id(), index, name: Some(member.name) });
                }
                Ok(member.type_id)
            }
            Kind::Array => {
                let array = ty.array();
                let element = resolve_type(self.btf, array.element).map_err(StepError::Error)?;
                if index >= array.len && !self.is_flexible(array) {
                    return Err(StepError::Reason("array index is out of range"));
                }
                self.accessors.push(Accessor { type_id: element.id(), index, name: None });
                let size = size_of(self.btf, element.id()).map_err(StepError::Error)?;
                self.advance(u64::from(index) * u64::from(size) * 8);
                Ok(element.id())
            }
            _ => Err(StepError::Reason("it leads into a type without members")),
        }
    }

    /// Moves the offset; wraps at 32 bits as libbpf's does.
    pub(super) fn advance(&mut self, bits: u64) {
        self.bit_offset = self.bit_offset.wrapping_add(bits as u32);
    }

    /// True when `array` is a flexible array: no length, and the last member of the struct entered last.
    pub(super) fn is_flexible(&self, array: Array) -> bool {
        let Some(last) = self.accessors.last() else { return false };
        array.len == 0
            && last.name.is_some()
            && last.index as usize + 1 == self.btf.type_or_void(last.type_id).vlen()
    }
}

enum StepError {
    Reason(&'static str),
    Error(CoReError),
}

impl StepError {
    fn unwrap_or_else(self, fail: impl Fn(&'static str) -> CoReError) -> CoReError {
        match self {
            StepError::Reason(reason) => fail(reason),
            StepError::Error(error) => error,
        }
    }
}

/// Parses `0:1:2`.
fn parse_access(access: &str) -> Result<Vec<u32>, &'static str> {
    let path: Result<Vec<u32>, _> = access
        .split(':')
        .take(SPEC_LEN_MAX + 1)
        .map(|index| index.parse::<i32>())
        .map(|index| {
            index.ok().and_then(|index| u32::try_from(index).ok()).ok_or("not numbers with colons between")
        })
        .collect();
    match path {
        Ok(path) if path.len() > SPEC_LEN_MAX => Err("too long"),
        path => path,
    }
}
