//! The values that a relocation asks for, by the local and by the target's types.

use super::spec::{Accessor, Spec};
use super::{CoReError, ReloKind, Resolution, resolve_type, size_of};
use crate::btf::{Btf, INT_SIGNED, Kind, Type};

/// A value by one side's types.
#[derive(Clone, Copy, Default)]
struct Value {
    value: u64,
    /// Bytes of the field, when loads and stores are resized to it; else 0.
    size: u32,
    type_id: u32,
    /// The instruction must hold the value by the local types.
    validate: bool,
}

/// What the relocation of `local` comes to when `target` is the path in the target, or there is none.
pub(super) fn resolution(local: &Spec<'_>, target: Option<&Spec<'_>>) -> Result<Resolution, CoReError> {
    let original = value(Some(local), local.kind)?.unwrap_or_default();
    let Some(new) = value(target, local.kind)? else {
        return Ok(Resolution {
            original: original.value,
            poison: true,
            validate: true,
            ..Resolution::default()
        });
    };
    Ok(Resolution {
        original: original.value,
        new: new.value,
        poison: false,
        validate: original.validate,
        access_mismatch: original.size != new.size
            && target
                .is_some_and(|target| !can_resize((local.btf, original.type_id), (target.btf, new.type_id))),
        original_size: original.size,
        new_size: new.size,
    })
}

/// Reading a pointer or an unsigned integer with another width gives the same value.
fn can_resize(local: (&Btf, u32), target: (&Btf, u32)) -> bool {
    let (a, b) = (local.0.type_or_void(local.1), target.0.type_or_void(target.1));
    let unsigned = |ty: Type<'_>| ty.kind() == Kind::Int && ty.int_encoding() != INT_SIGNED;
    (a.kind() == Kind::Ptr && b.kind() == Kind::Ptr) || (unsigned(a) && unsigned(b))
}

/// `None`: the instruction is to be poisoned.
fn value(spec: Option<&Spec<'_>>, kind: ReloKind) -> Result<Option<Value>, CoReError> {
    let plain = |value| Ok(Some(Value { value, validate: true, ..Value::default() }));
    match (kind, spec) {
        (ReloKind::FieldExists, spec) => plain(spec.is_some().into()),
        (ReloKind::EnumvalExists, spec) => {
            Ok(Some(Value { value: spec.is_some().into(), validate: true, ..Value::default() }))
        }
        (ReloKind::TypeExists | ReloKind::TypeMatches, spec) => plain(spec.is_some().into()),
        (ReloKind::TypeSize | ReloKind::TypeIdTarget, None) => plain(0),
        (ReloKind::TypeSize, Some(spec)) => plain(size_of(spec.btf, spec.root)?.into()),
        // Ids move when objects are linked, so what the instruction holds says nothing.
        (ReloKind::TypeIdTarget | ReloKind::TypeIdLocal, Some(spec)) => {
            Ok(Some(Value { value: spec.root.into(), ..Value::default() }))
        }
        (_, None) => Ok(None),
        (ReloKind::EnumvalValue, Some(spec)) => {
            let accessor = spec.accessors.first();
            let enumerator = accessor.and_then(|accessor| {
                spec.btf.type_or_void(accessor.type_id).enumerator(accessor.index as usize)
            });
            plain(enumerator.map_or(0, |enumerator| enumerator.bits))
        }
        (_, Some(spec)) => match spec.accessors.last() {
            Some(accessor) if accessor.name.is_some() => member_value(spec, accessor, kind).map(Some),
            Some(accessor) => element_value(spec, accessor, kind).map(Some),
            None => Ok(None),
        },
    }
}

/// Of an access that ends in an array element (or at the root).
fn element_value(spec: &Spec<'_>, accessor: &Accessor<'_>, kind: ReloKind) -> Result<Value, CoReError> {
    match kind {
        ReloKind::FieldByteOffset => Ok(Value {
            value: (spec.bit_offset / 8).into(),
            size: innermost_size(spec.btf, accessor.type_id)?,
            type_id: accessor.type_id,
            validate: true,
        }),
        ReloKind::FieldByteSize => {
            let value = size_of(spec.btf, accessor.type_id)?.into();
            Ok(Value { value, validate: true, ..Value::default() })
        }
        _ => Err(CoReError::Inapplicable {
            kind: kind.name(),
            reason: "it cannot be asked of an array element",
        }),
    }
}

/// Of an access that ends in a member.
fn member_value(spec: &Spec<'_>, accessor: &Accessor<'_>, kind: ReloKind) -> Result<Value, CoReError> {
    let owner = spec.btf.type_or_void(accessor.type_id);
    let missing = CoReError::Type { type_id: accessor.type_id, reason: "it has no such member" };
    let member = owner.member(accessor.index as usize).ok_or(missing)?;
    let ty = resolve_type(spec.btf, member.type_id)?;
    let is_bitfield = member.bitfield_bits > 0;
    let (byte_offset, byte_size, bits) = if is_bitfield {
        let (offset, size) = bitfield_word(spec.bit_offset, member.bitfield_bits, ty, kind)?;
        (offset, size, member.bitfield_bits)
    } else {
        let size = size_of(spec.btf, ty.id())?;
        (spec.bit_offset / 8, size, size.wrapping_mul(8))
    };
    // Which word holds a bitfield is the compiler's choice: only signedness and the right shift are certain.
    let certain = matches!(kind, ReloKind::FieldSigned | ReloKind::FieldRshiftU64);
    let mut value = Value { validate: !is_bitfield || certain, ..Value::default() };
    value.value = match kind {
        ReloKind::FieldByteOffset => {
            if !is_bitfield {
                value.size = innermost_size(spec.btf, ty.id())?;
                value.type_id = ty.id();
            }
            byte_offset.into()
        }
        ReloKind::FieldByteSize => byte_size.into(),
        ReloKind::FieldSigned => ty.is_signed().into(),
        ReloKind::FieldLshiftU64 => {
            let end = spec.bit_offset.wrapping_add(bits).wrapping_sub(byte_offset.wrapping_mul(8));
            64u32.wrapping_sub(end).into()
        }
        ReloKind::FieldRshiftU64 => 64u32.wrapping_sub(bits).into(),
        _ => {
            return Err(CoReError::Inapplicable {
                kind: kind.name(),
                reason: "it cannot be asked of a field",
            });
        }
    };
    Ok(value)
}

/// Offset and size in bytes of the smallest aligned word that holds a bitfield.
fn bitfield_word(bit_offset: u32, bits: u32, ty: Type<'_>, kind: ReloKind) -> Result<(u32, u32), CoReError> {
    let fail = |reason| CoReError::Inapplicable { kind: kind.name(), reason };
    let mut size = ty.size();
    if !(ty.kind() == Kind::Int || ty.kind().is_enum()) || size == 0 || size > 16 {
        return Err(fail("a bitfield that is no integer"));
    }
    loop {
        let offset = bit_offset / 8 / size * size;
        let end = u64::from(bit_offset) + u64::from(bits) - u64::from(offset) * 8;
        if end <= u64::from(size) * 8 {
            return Ok((offset, size));
        }
        if size >= 8 {
            return Err(fail("a bitfield that no 64-bit load covers"));
        }
        size *= 2;
    }
}

/// Bytes of an element of an array, of however many dimensions; of anything else its own.
fn innermost_size(btf: &Btf, type_id: u32) -> Result<u32, CoReError> {
    let mut ty = resolve_type(btf, type_id)?;
    for _ in 0..crate::btf::RESOLVE_DEPTH_MAX {
        if ty.kind() != Kind::Array {
            break;
        }
        ty = resolve_type(btf, ty.array().element)?;
    }
    size_of(btf, ty.id())
}
