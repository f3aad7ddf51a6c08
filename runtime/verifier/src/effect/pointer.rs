//! What arithmetic does to pointers, and what comparisons tell of them.

use crate::bounds::Scalar;
use crate::effect::arithmetic;
use crate::explore::Explorer;
use crate::program::{Program, SpecialKind};
use crate::refusal::Checked;
use crate::require::pointer::{movable, sane};
use crate::state::{Kind, PacketEnd, RegState, State};
use beeline_isa::{AluOp, Reg, Width};

impl Explorer<'_> {
    /// `pointer op by`; with `reversed` the instruction's first operand is the number.
    pub(crate) fn move_pointer(
        &mut self,
        op: AluOp,
        width: Width,
        dst: Reg,
        pointer: &RegState,
        by: &RegState,
        reversed: bool,
    ) -> Checked<RegState> {
        self.mark_precise(by);
        movable(op, width, dst, pointer, by, reversed)?;
        let mut moved = *pointer;
        let constant = by.value.as_const().and_then(|value| i32::try_from(value as i64).ok());
        let off = constant.and_then(|by| match op {
            AluOp::Add => pointer.off.checked_add(by),
            _ => pointer.off.checked_sub(by),
        });
        if let Some(off) = off {
            moved.off = off;
        } else {
            moved.value = arithmetic::apply(op, Width::W64, pointer.value, by.value);
            if pointer.kind.is_packet() {
                // What was shown to be there before says nothing about another place.
                moved.id = self.fresh_id();
                (moved.range, moved.end) = (0, PacketEnd::Unknown);
            }
        }
        sane(&moved)?;
        Ok(moved)
    }
}

/// A comparison with 0 has shown whether the pointers with `id` are null.
/// Values with a lock stay told apart: the lock in one is not the lock in another.
pub(crate) fn learn_null(program: &Program, state: &mut State, id: u32, is_null: bool) {
    let mut released = 0;
    for reg in state.each_reg().filter(|reg| reg.id == id && reg.kind.is_nullable()) {
        if is_null {
            // What is part of a dynptr is not what the dynptr's reference stands for.
            if reg.reference == id {
                released = id;
            }
            *reg = RegState::scalar(Scalar::constant(0));
        } else {
            reg.kind = reg.kind.non_null();
            if !has_lock(program, reg.kind) {
                reg.id = 0;
            }
        }
    }
    if is_null && released != 0 {
        state.references.retain(|reference| reference.0 != released);
    }
}

/// The pointer is to a value with a spin lock.
pub(crate) fn has_lock(program: &Program, kind: Kind) -> bool {
    let Kind::MapValue { map, .. } = kind else { return false };
    let info = program.maps.get(map.index as usize);
    let info = if map.inner { info.and_then(|info| info.inner.as_deref()) } else { info };
    info.is_some_and(|info| info.special.iter().any(|field| field.kind == SpecialKind::SpinLock))
}

/// Takes a reference back: the pointers that belong to it are gone.
pub(crate) fn release(state: &mut State, reference: u32) {
    state.references.retain(|held| held.0 != reference);
    for reg in state.each_reg().filter(|reg| reg.reference == reference && reg.kind != Kind::Uninit) {
        *reg = RegState::unknown();
    }
}

/// True when the pointer cannot be 0, and comparisons with 0 are decided by that (`reg_not_null`).
pub(crate) fn is_never_null(reg: &RegState) -> bool {
    matches!(
        reg.kind,
        Kind::MapPtr { nullable: false, .. }
            | Kind::MapValue { nullable: false, .. }
            | Kind::MapKey { .. }
            | Kind::Mem { nullable: false, .. }
    )
}
