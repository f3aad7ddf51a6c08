//! When two types are close enough: for a field access, for a type's existence, and for a full match.
//!
//! Names of root types were compared before; the rules are those of libbpf's `bpf_core_fields_are_compat`,
//! `__bpf_core_types_are_compat` and `__bpf_core_types_match`.

use super::{Budget, CoReError, kinds_are_compatible, resolve_type};
use crate::btf::{Btf, INT_SIGNED, Kind, RESOLVE_DEPTH_MAX, Type, essential_name};

/// A type and where it is.
type TypeRef<'a> = (&'a Btf, u32);

/// Pointers, arrays and results followed in a row, and prototypes nested in each other.
const LEVELS_MAX: usize = RESOLVE_DEPTH_MAX;

fn too_deep(id: u32) -> CoReError {
    CoReError::Type { type_id: id, reason: "nested too deeply" }
}

/// A field of type `local` can be read from one of type `target`.
pub(super) fn fields_are_compatible(
    mut local: TypeRef<'_>,
    mut target: TypeRef<'_>,
    budget: &Budget,
) -> Result<bool, CoReError> {
    loop {
        budget.step(local.1)?;
        let (a, b) = (resolve_type(local.0, local.1)?, resolve_type(target.0, target.1)?);
        if a.kind().is_composite() && b.kind().is_composite() {
            return Ok(true);
        }
        if !kinds_are_compatible(a.kind(), b.kind()) {
            return Ok(false);
        }
        match a.kind() {
            Kind::Ptr | Kind::Float => return Ok(true),
            Kind::Fwd | Kind::Enum | Kind::Enum64 => {
                let (a, b) = (essential_name(a.name()), essential_name(b.name()));
                return Ok(a.is_empty() || b.is_empty() || a == b);
            }
            Kind::Int => return Ok(a.int_offset() == 0 && b.int_offset() == 0),
            Kind::Array => {
                local.1 = a.array().element;
                target.1 = b.array().element;
            }
            _ => return Ok(false),
        }
    }
}

/// `local` exists as `target`.
pub(crate) fn types_are_compatible(
    local: TypeRef<'_>,
    target: TypeRef<'_>,
    budget: &Budget,
) -> Result<bool, CoReError> {
    compatible_at(local, target, LEVELS_MAX, budget)
}

fn compatible_at(
    mut local: TypeRef<'_>,
    mut target: TypeRef<'_>,
    level: usize,
    budget: &Budget,
) -> Result<bool, CoReError> {
    // Before typedefs are skipped: a typedef exists only as a typedef.
    let (a, b) = (local.0.type_or_void(local.1), target.0.type_or_void(target.1));
    if !kinds_are_compatible(a.kind(), b.kind()) {
        return Ok(false);
    }
    for _ in 0..LEVELS_MAX {
        budget.step(local.1)?;
        let (a, b) = (resolve_type(local.0, local.1)?, resolve_type(target.0, target.1)?);
        if !kinds_are_compatible(a.kind(), b.kind()) {
            return Ok(false);
        }
        match a.kind() {
            Kind::Void | Kind::Struct | Kind::Union | Kind::Enum | Kind::Fwd | Kind::Enum64 => {
                return Ok(true);
            }
            Kind::Int => return Ok(a.int_offset() == 0 && b.int_offset() == 0),
            Kind::Ptr => {
                local.1 = a.type_id();
                target.1 = b.type_id();
            }
            Kind::Array => {
                local.1 = a.array().element;
                target.1 = b.array().element;
            }
            Kind::FuncProto => {
                if a.vlen() != b.vlen() {
                    return Ok(false);
                }
                for (p, q) in a.params().zip(b.params()) {
                    let level = level.checked_sub(1).ok_or(too_deep(p.type_id))?;
                    let p = resolve_type(local.0, p.type_id)?.id();
                    let q = resolve_type(target.0, q.type_id)?.id();
                    if !compatible_at((local.0, p), (target.0, q), level, budget)? {
                        return Ok(false);
                    }
                }
                local.1 = resolve_type(local.0, a.type_id())?.id();
                target.1 = resolve_type(target.0, b.type_id())?.id();
            }
            _ => return Ok(false),
        }
    }
    Err(too_deep(local.1))
}

/// `local` matches `target` in full: sizes, signs, and every local member by name.
pub(super) fn types_match(
    local: TypeRef<'_>,
    target: TypeRef<'_>,
    budget: &Budget,
) -> Result<bool, CoReError> {
    match_at(local, target, false, LEVELS_MAX, budget)
}

fn match_at(
    mut local: TypeRef<'_>,
    mut target: TypeRef<'_>,
    mut behind_pointer: bool,
    level: usize,
    budget: &Budget,
) -> Result<bool, CoReError> {
    if level == 0 {
        return Err(too_deep(local.1));
    }
    for _ in 0..LEVELS_MAX {
        budget.step(local.1)?;
        let (a, b) = (resolve_type(local.0, local.1)?, resolve_type(target.0, target.1)?);
        if !names_match(a.name(), b.name()) {
            return Ok(false);
        }
        match a.kind() {
            Kind::Void => return Ok(b.kind() == Kind::Void),
            Kind::Fwd => return Ok(forward_matches(a, b, behind_pointer)),
            Kind::Enum | Kind::Enum64 => return enums_match(a, b, budget),
            Kind::Struct | Kind::Union if behind_pointer => return Ok(pointee_matches(a, b)),
            Kind::Struct | Kind::Union => {
                return Ok(a.kind() == b.kind() && members_match(a, b, level, budget)?);
            }
            Kind::Int => {
                let signed = |ty: Type<'_>| ty.int_encoding() & INT_SIGNED;
                return Ok(b.kind() == Kind::Int && a.size() == b.size() && signed(a) == signed(b));
            }
            kind if kind != b.kind() => return Ok(false),
            Kind::Ptr => {
                behind_pointer = true;
                local.1 = a.type_id();
                target.1 = b.type_id();
            }
            Kind::Array => {
                if a.array().len != b.array().len {
                    return Ok(false);
                }
                local.1 = a.array().element;
                target.1 = b.array().element;
            }
            Kind::FuncProto => {
                if a.vlen() != b.vlen() {
                    return Ok(false);
                }
                for (p, q) in a.params().zip(b.params()) {
                    let (p, q) = ((local.0, p.type_id), (target.0, q.type_id));
                    if !match_at(p, q, behind_pointer, level - 1, budget)? {
                        return Ok(false);
                    }
                }
                local.1 = a.type_id();
                target.1 = b.type_id();
            }
            _ => return Ok(false),
        }
    }
    Err(too_deep(local.1))
}

fn names_match(local: &str, target: &str) -> bool {
    if target.is_empty() { local.is_empty() } else { essential_name(local) == essential_name(target) }
}

/// The kind flag of a forward declaration says union.
fn forward_matches(a: Type<'_>, b: Type<'_>, behind_pointer: bool) -> bool {
    match b.kind() {
        Kind::Fwd => a.kind_flag() == b.kind_flag(),
        Kind::Struct => behind_pointer && !a.kind_flag(),
        Kind::Union => behind_pointer && a.kind_flag(),
        _ => false,
    }
}

/// Behind a pointer a struct or union matches its own kind or a forward declaration of it.
fn pointee_matches(a: Type<'_>, b: Type<'_>) -> bool {
    match b.kind() {
        Kind::Fwd => (a.kind() == Kind::Union) == b.kind_flag(),
        kind => kind == a.kind(),
    }
}

fn enums_match(a: Type<'_>, b: Type<'_>, budget: &Budget) -> Result<bool, CoReError> {
    if !b.kind().is_enum() || a.size() != b.size() || a.vlen() > b.vlen() {
        return Ok(false);
    }
    for local in a.enumerators() {
        let mut found = false;
        for target in b.enumerators() {
            budget.step(b.id())?;
            if names_match(local.name, target.name) {
                found = true;
                break;
            }
        }
        if !found {
            return Ok(false);
        }
    }
    Ok(true)
}

fn members_match(a: Type<'_>, b: Type<'_>, level: usize, budget: &Budget) -> Result<bool, CoReError> {
    if a.vlen() > b.vlen() {
        return Ok(false);
    }
    for local in a.members() {
        let mut found = false;
        for target in b.members() {
            budget.step(b.id())?;
            if !names_match(local.name, target.name) {
                continue;
            }
            let (p, q) = ((a.btf(), local.type_id), (b.btf(), target.type_id));
            if match_at(p, q, false, level - 1, budget)? {
                found = true;
                break;
            }
        }
        if !found {
            return Ok(false);
        }
    }
    Ok(true)
}
