//! What iterators over numbers do: a loop that the number of elements bounds.

use crate::explore::{Explorer, Next};
use crate::refusal::Checked;
use crate::require::dynptr::Place;
use crate::require::stack::Span;
use crate::state::{Kind, Memory, RegState, State};
use beeline_helpers::KFUNC_BASE;
use beeline_isa::{Call, Op, Reg};

/// `bpf_iter_num_next`.
pub(crate) const ITER_NEXT: u32 = KFUNC_BASE + 1;

/// Bytes of an element.
const ELEMENT: u32 = 4;

impl Explorer<'_> {
    /// An iterator was made.
    pub(crate) fn iter_made(&mut self, at: Place, span: Span) -> Checked {
        self.reach(at.frame, span);
        self.overwrite_objects(at.frame, span)?;
        let id = self.fresh_id();
        self.state.references.push((id, self.pc as u32));
        let iterator = RegState { reference: id, ..RegState::pointer(Kind::Iter { active: true }) };
        self.put_object(at, iterator);
        Ok(())
    }

    /// The next element: the path on which there is one is explored later, the one on which there is none goes on, so that
    /// what matters behind the loop is known when the loop's numbers are widened.
    pub(crate) fn iter_next(&mut self, at: Place) -> Checked<Next> {
        self.state.clobber_caller_saved();
        let Some(slot) = self.slot_at(at) else { return Ok(Next::Goto(self.pc + 1)) };
        let iterator = slot.spilled;
        let mut drained = self.state.clone();
        if iterator.kind == (Kind::Iter { active: true }) {
            let advanced = RegState { range: iterator.range.saturating_add(1), ..iterator };
            self.put_object(at, advanced);
            let kind = Kind::Mem { size: ELEMENT, memory: Memory::Element, nullable: false };
            let element = RegState { reference: iterator.reference, ..RegState::pointer(kind) };
            self.state.set(Reg::R0, element);
            // The newest state that was kept here is this one.
            self.widen(self.pc, 1);
            std::mem::swap(&mut self.state, &mut drained);
            self.push(self.pc + 1, drained)?;
        }
        let ended = RegState { kind: Kind::Iter { active: false }, ..iterator };
        self.put_object(at, ended);
        self.state.set(Reg::R0, RegState::constant(0));
        Ok(Next::Goto(self.pc + 1))
    }

    /// The instruction takes an element of an iterator.
    pub(crate) fn is_iter_next(&self) -> bool {
        let Some(Op::Call(Call::Kfunc { btf_id, btf_fd_idx: 0 })) = self.code.op(self.pc) else {
            return false;
        };
        let name = u32::try_from(btf_id).ok().and_then(|id| self.types()?.function(id));
        name.and_then(beeline_helpers::kfunc).is_some_and(|helper| helper.proto.id == ITER_NEXT)
    }
}

/// Some iterator has given elements since `old`, which is above: the very same, so that it comes to an end.
pub(crate) fn advanced(old: &State, new: &State) -> bool {
    let pairs = old.frames.iter().zip(&new.frames).flat_map(|(old, new)| old.stack.iter().zip(&new.stack));
    pairs.filter(|(old, new)| old.is_object() && new.is_object()).any(|(old, new)| {
        let (old, new) = (&old.spilled, &new.spilled);
        matches!((old.kind, new.kind), (Kind::Iter { .. }, Kind::Iter { .. }))
            && old.reference == new.reference
            && new.range > old.range
    })
}
