//! Finds in a target type the path that a local spec describes: members by name, elements by index.

use super::compat::{fields_are_compatible, types_are_compatible, types_match};
use super::spec::{Accessor, Spec};
use super::{Budget, CoReError, ReloKind, SPEC_LEN_MAX, resolve_type, size_of};
use crate::btf::{Btf, Kind, Member, essential_name};

/// The path of `local` in target type `target_id`; `None` when this type has no such path.
pub(super) fn match_spec<'a>(
    local: &Spec<'_>,
    target: &'a Btf,
    target_id: u32,
    budget: &Budget,
) -> Result<Option<Spec<'a>>, CoReError> {
    let spec = Spec::new(target, local.kind, target_id);
    if local.kind.is_type_based() {
        let check = if local.kind == ReloKind::TypeMatches { types_match } else { types_are_compatible };
        let matches = check((local.btf, local.root), (target, target_id), budget)?;
        return Ok(matches.then_some(spec));
    }
    if local.kind.is_enum_based() {
        return match_enumerator(local, spec, target_id);
    }
    match_field(local, spec, target_id, budget)
}

fn match_enumerator<'a>(
    local: &Spec<'_>,
    mut spec: Spec<'a>,
    target_id: u32,
) -> Result<Option<Spec<'a>>, CoReError> {
    let target = spec.btf;
    let ty = resolve_type(target, target_id)?;
    let name = local.accessors.first().and_then(|accessor| accessor.name).unwrap_or("");
    for (index, enumerator) in ty.enumerators().enumerate() {
        if essential_name(enumerator.name) == essential_name(name) {
            let accessor = Accessor { type_id: ty.id(), index: index as u32, name: Some(enumerator.name) };
            spec.accessors.push(accessor);
            return Ok(Some(spec));
        }
    }
    Ok(None)
}

fn match_field<'a>(
    local: &Spec<'_>,
    mut spec: Spec<'a>,
    target_id: u32,
    budget: &Budget,
) -> Result<Option<Spec<'a>>, CoReError> {
    let target = spec.btf;
    let mut id = target_id;
    for (position, accessor) in local.accessors.iter().enumerate() {
        let ty = resolve_type(target, id)?;
        id = ty.id();
        if accessor.name.is_some() {
            let member = local.btf.type_or_void(accessor.type_id).member(accessor.index as usize);
            let Some(member) = member else { return Ok(None) };
            match match_member(local.btf, member, id, &mut spec, budget)? {
                Some(next) => id = next,
                None => return Ok(None),
            }
            continue;
        }
        if position > 0 {
            // The first index is over the root itself; further ones need an array in the target.
            let array = ty.array();
            if ty.kind() != Kind::Array || (accessor.index >= array.len && !spec.is_flexible(array)) {
                return Ok(None);
            }
            id = resolve_type(target, array.element)?.id();
        }
        check_depth(&spec, id)?;
        spec.depth += 1;
        spec.accessors.push(Accessor { type_id: id, index: accessor.index, name: None });
        spec.advance(u64::from(accessor.index) * u64::from(size_of(target, id)?) * 8);
    }
    Ok(Some(spec))
}

fn check_depth(spec: &Spec<'_>, type_id: u32) -> Result<(), CoReError> {
    match spec.depth {
        SPEC_LEN_MAX.. => Err(CoReError::Type { type_id, reason: "nested too deeply" }),
        _ => Ok(()),
    }
}

/// Looks for `wanted` among the members of target type `id`, anonymous structs and unions included. Returns the
/// type of the member found.
fn match_member(
    local: &Btf,
    wanted: Member<'_>,
    id: u32,
    spec: &mut Spec<'_>,
    budget: &Budget,
) -> Result<Option<u32>, CoReError> {
    let target = spec.btf;
    let ty = resolve_type(target, id)?;
    for (index, member) in ty.members().enumerate() {
        budget.step(id)?;
        check_depth(spec, id)?;
        // Speculate that this member is, or contains, the one.
        let before = spec.bit_offset;
        spec.advance(member.bit_offset.into());
        spec.depth += 1;
        if member.name.is_empty() {
            if let Some(found) = match_member(local, wanted, member.type_id, spec, budget)? {
                return Ok(Some(found));
            }
        } else if member.name == wanted.name {
            if !fields_are_compatible((local, wanted.type_id), (target, member.type_id), budget)? {
                return Ok(None);
            }
            spec.accessors.push(Accessor { type_id: ty.id(), index: index as u32, name: Some(member.name) });
            return Ok(Some(member.type_id));
        }
        spec.bit_offset = before;
        spec.depth -= 1;
    }
    Ok(None)
}
