//! What conditional jumps do: which ways are open, and what each way tells.

use crate::code::jump_target;
use crate::effect::{branch, packet, pointer};
use crate::explore::{Explorer, Next};
use crate::refusal::Checked;
use crate::state::{Kind, RegState, State};
use beeline_isa::{JumpOp, Operand, Reg, Width};

impl Explorer<'_> {
    /// `if dst op src goto target`.
    pub(crate) fn jump(
        &mut self,
        width: Width,
        op: JumpOp,
        dst: Reg,
        src: Operand,
        target: i16,
    ) -> Checked<Next> {
        let b = self.operand(src, width)?;
        let a = self.readable(dst)?;
        let (there, here) = (jump_target(self.pc, target.into()), self.pc + 1);
        if let Some(taken) = decide(op, width, &a, &b) {
            self.mark_precise(&a);
            self.mark_precise(&b);
            return Ok(Next::Goto(if taken { there } else { here }));
        }
        let mut other = self.state.clone();
        self.learn(width, op, (dst, &a), (src, &b), &mut other);
        self.push(there, other)?;
        Ok(Next::Goto(here))
    }

    /// What the outcome tells: `taken` is the state of the jump, the current state that of going on.
    fn learn(
        &mut self,
        width: Width,
        op: JumpOp,
        a: (Reg, &RegState),
        b: (Operand, &RegState),
        taken: &mut State,
    ) {
        let ((dst, a), (src, b)) = (a, b);
        if a.kind == Kind::Scalar && b.kind == Kind::Scalar {
            let node = if a.value.as_const().is_some() && matches!(src, Operand::Imm(_)) {
                a.node
            } else {
                self.precision.join(a.node, b.node)
            };
            for (state, outcome) in [(taken, true), (&mut self.state, false)] {
                let (left, right) = branch::refine(op, width, &a.value, &b.value, outcome);
                narrow(state, dst, RegState { value: left, node, ..*a });
                if let Operand::Reg(src) = src
                    && src != dst
                {
                    narrow(state, src, RegState { value: right, node, ..*b });
                }
            }
            return;
        }
        if width == Width::W32 {
            return;
        }
        let equal_is_taken = match op {
            JumpOp::Eq => true,
            JumpOp::Ne => false,
            _ => {
                packet::learn(op, a, b, taken, &mut self.state);
                if let Operand::Reg(src) = src {
                    packet::learn_end(op, dst, src, taken, &mut self.state);
                }
                return;
            }
        };
        let program = self.program;
        if let (Some(id), true) = (nullable_id(a), b.is_null()) {
            self.mark_precise(b);
            pointer::learn_null(program, taken, id, equal_is_taken);
            pointer::learn_null(program, &mut self.state, id, !equal_is_taken);
        } else if let (Some(id), true) = (nullable_id(b), a.is_null()) {
            self.mark_precise(a);
            pointer::learn_null(program, taken, id, equal_is_taken);
            pointer::learn_null(program, &mut self.state, id, !equal_is_taken);
        } else if let Some(id) = equal_to_non_null(a, b).or_else(|| equal_to_non_null(b, a)) {
            let state = if equal_is_taken { taken } else { &mut self.state };
            pointer::learn_null(program, state, id, false);
        }
    }
}

fn nullable_id(reg: &RegState) -> Option<u32> {
    reg.kind.is_nullable().then_some(reg.id)
}

/// The id of a nullable pointer that is compared with one that cannot be null.
fn equal_to_non_null(a: &RegState, b: &RegState) -> Option<u32> {
    let unmoved = b.off == 0 && b.value.as_const() == Some(0);
    if unmoved && pointer::is_never_null(b) { nullable_id(a) } else { None }
}

/// The outcome, when it is known.
fn decide(op: JumpOp, width: Width, a: &RegState, b: &RegState) -> Option<bool> {
    if a.kind == Kind::Scalar && b.kind == Kind::Scalar {
        return branch::decide(op, width, &a.value, &b.value);
    }
    let never_null = pointer::is_never_null(a) && b.is_null() || pointer::is_never_null(b) && a.is_null();
    match op {
        JumpOp::Eq if never_null && width == Width::W64 => Some(false),
        JumpOp::Ne if never_null && width == Width::W64 => Some(true),
        _ => None,
    }
}

/// The register, and every copy of its number, has become `to`.
fn narrow(state: &mut State, reg: Reg, to: RegState) {
    state.set(reg, to);
    if to.id != 0 {
        for copy in state.each_reg().filter(|copy| copy.kind == Kind::Scalar && copy.id == to.id) {
            (copy.value, copy.node) = (to.value, to.node);
        }
    }
}
