//! What dynptrs require: 16 bytes of stack, made by one helper, used by others, touched by nobody else.

use crate::explore::Explorer;
use crate::refusal::{Checked, refuse};
use crate::require::arguments::Arguments;
use crate::require::memory::{Access, Target};
use crate::require::stack::Span;
use crate::state::{Kind, RegState, Slot, Source, place};
use beeline_helpers::proto::DynptrUse;
use beeline_isa::Reg;

/// Bytes of a dynptr (`struct bpf_dynptr`).
const DYNPTR_BYTES: i64 = 16;

/// Where an object lies: frame, and offset from its r10.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) frame: u8,
    pub(crate) off: i32,
}

impl Explorer<'_> {
    /// The argument is a dynptr, or room for one.
    pub(crate) fn dynptr_argument(
        &mut self,
        reg: Reg,
        state: &RegState,
        how: DynptrUse,
        found: &mut Arguments,
    ) -> Checked {
        if !matches!(state.kind, Kind::Stack { .. } | Kind::DynptrPtr) {
            refuse!("R{} type={} expected=fp, dynptr_ptr", reg.0, state.kind.name());
        }
        match how {
            DynptrUse::MakeLocal => self.make_dynptr(reg, state, Source::Local),
            DynptrUse::MakeRecord => self.make_dynptr(reg, state, Source::Record),
            DynptrUse::Release => {
                let (source, reference) = self.released_dynptr(reg, state)?;
                if source != Source::Record {
                    refuse!("Expected a dynptr of type ringbuf as arg #{}", reg.0 - 1);
                }
                found.released = reference;
                Ok(())
            }
            DynptrUse::Read => {
                found.dynptr = self.dynptr(reg, state)?;
                Ok(())
            }
        }
    }

    /// Room for an object on the stack: where it is.
    pub(crate) fn object_place(&self, state: &RegState, what: &str, bytes: i64) -> Checked<Option<Place>> {
        let Kind::Stack { frame } = state.kind else { return Ok(None) };
        let Some(off) = state.const_offset() else { refuse!("{what} has to be at a constant offset") };
        if off % 8 != 0 || off > -bytes {
            refuse!("cannot pass in {what} at an offset={off}");
        }
        Ok(Some(Place { frame, off: i32::try_from(off).unwrap_or(i32::MIN) }))
    }

    fn make_dynptr(&mut self, reg: Reg, state: &RegState, source: Source) -> Checked {
        let room = "Dynptr has to be an uninitialized dynptr";
        let place =
            self.object_place(state, "dynptr", DYNPTR_BYTES).map_err(|why| format!("{why}\n{room}"))?;
        let Some(place) = place else { refuse!("{room}") };
        let target = Target { reg, pointer: state, off: 0, size: DYNPTR_BYTES as u32 };
        let span = self.on_stack(&target, Access::Write)?;
        self.dynptr_made(place, span, source)
    }

    /// The dynptr that is to be given back: what it is made of, and its reference.
    fn released_dynptr(&mut self, reg: Reg, state: &RegState) -> Checked<(Source, u32)> {
        if state.kind == Kind::DynptrPtr {
            refuse!("cannot release unowned const bpf_dynptr");
        }
        let held = match self.object_place(state, "dynptr", DYNPTR_BYTES)? {
            Some(place) => self.slot_at(place).filter(|slot| slot.is_object()),
            None => None,
        };
        let is_held = |slot: &Slot| self.state.references.iter().any(|held| held.0 == slot.spilled.reference);
        if !held.as_ref().is_some_and(is_held) {
            refuse!("arg {} is an unacquired reference", reg.0);
        }
        let id = self.dynptr(reg, state)?;
        let source = match held.map(|slot| slot.spilled.kind) {
            Some(Kind::Dynptr { source, .. }) => source,
            _ => Source::Local,
        };
        Ok((source, id))
    }

    /// The dynptr behind the pointer: what names it.
    fn dynptr(&mut self, reg: Reg, state: &RegState) -> Checked<u32> {
        if state.kind == Kind::DynptrPtr {
            return Ok(state.id);
        }
        let argument = reg.0 - 1;
        let Some(place) = self.object_place(state, "dynptr", DYNPTR_BYTES)? else {
            refuse!("Expected an initialized dynptr as arg #{argument}")
        };
        let second = Place { off: place.off + 8, ..place };
        let halves = (self.slot_at(place), self.slot_at(second));
        let (Some(low), Some(high)) = halves else {
            refuse!("Expected an initialized dynptr as arg #{argument}")
        };
        let is_half = |slot: &Slot, wanted: bool| {
            slot.is_object() && matches!(slot.spilled.kind, Kind::Dynptr { first, .. } if first == wanted)
        };
        if !is_half(&low, true) || !is_half(&high, false) || low.spilled.reference != high.spilled.reference {
            refuse!("Expected an initialized dynptr as arg #{argument}");
        }
        self.reads.mark(low.node);
        self.reads.mark(high.node);
        Ok(low.spilled.reference)
    }

    /// The slot that begins at a place.
    pub(crate) fn slot_at(&self, at: Place) -> Option<Slot> {
        let (index, _) = place(at.off);
        self.state.frames.get(usize::from(at.frame))?.stack.get(index).copied()
    }

    /// A helper that fills memory does not fill it over a dynptr.
    pub(crate) fn no_dynptr(&self, frame: u8, span: Span) -> Checked {
        let stack = &self.state.frames[usize::from(frame)].stack;
        for off in span.least..span.end {
            let is_dynptr = stack
                .get(place(off).0)
                .is_some_and(|slot| slot.is_object() && matches!(slot.spilled.kind, Kind::Dynptr { .. }));
            if is_dynptr {
                refuse!("potential write to dynptr at off={off} disallowed");
            }
        }
        Ok(())
    }

    /// Nothing that only certain helpers touch lies in these bytes.
    pub(crate) fn no_object(&self, frame: u8, span: Span, what: &str) -> Checked {
        let stack = &self.state.frames[usize::from(frame)].stack;
        for off in span.least..span.end {
            if stack.get(place(off).0).is_some_and(Slot::is_object) {
                let size = span.end - span.least;
                refuse!("invalid {what} stack off {}+{} size {size}", span.least, off - span.least);
            }
        }
        Ok(())
    }
}
