//! What iterators over numbers require (`process_iter_arg`), and what a cast to a kernel object requires.

use crate::explore::Explorer;
use crate::refusal::{Checked, refuse};
use crate::require::arguments::Arguments;
use crate::require::memory::{Access, Target};
use crate::state::{Kind, RegState, Slot};
use beeline_helpers::proto::IterUse;
use beeline_isa::Reg;

/// Bytes of an iterator (`struct bpf_iter_num`).
const ITER_BYTES: i64 = 8;

impl Explorer<'_> {
    /// The argument is an iterator, or room for one.
    pub(crate) fn iter_argument(
        &mut self,
        reg: Reg,
        state: &RegState,
        how: IterUse,
        found: &mut Arguments,
    ) -> Checked {
        let argument = reg.0 - 1;
        if !matches!(state.kind, Kind::Stack { .. }) {
            refuse!("arg#{argument} expected pointer to an iterator on stack");
        }
        let wanted = match how {
            IterUse::New => format!("expected uninitialized iter_num as arg #{argument}"),
            _ => format!("expected an initialized iter_num as arg #{argument}"),
        };
        let place = self.object_place(state, "iter", ITER_BYTES).map_err(|why| format!("{why}\n{wanted}"))?;
        let Some(place) = place else { refuse!("{wanted}") };
        found.iter = Some(place);
        let slot = self.slot_at(place);
        if how == IterUse::New {
            let target = Target { reg, pointer: state, off: 0, size: ITER_BYTES as u32 };
            let span = self.on_stack(&target, Access::Write)?;
            // Anything may be overwritten but what only other functions touch.
            if slot.as_ref().is_some_and(Slot::is_object) {
                refuse!("{wanted}");
            }
            return self.iter_made(place, span);
        }
        let Some(slot) =
            slot.filter(|slot| slot.is_object() && matches!(slot.spilled.kind, Kind::Iter { .. }))
        else {
            refuse!("{wanted}")
        };
        self.reads.mark(slot.node);
        if how == IterUse::Destroy {
            found.released = slot.spilled.reference;
        }
        Ok(())
    }

    /// The id of a structure, a constant (`bpf_rdonly_cast`).
    pub(crate) fn type_id_argument(&mut self, reg: Reg, state: &RegState) -> Checked<u32> {
        self.mark_precise(state);
        let Some(id) = state.as_const() else { refuse!("R{} must be a known constant", reg.0) };
        let known = u32::try_from(id).ok().filter(|&id| !self.type_name(id).is_empty());
        match known {
            Some(id) => Ok(id),
            None => refuse!("kfunc bpf_rdonly_cast type ID {id} does not exist"),
        }
    }
}
