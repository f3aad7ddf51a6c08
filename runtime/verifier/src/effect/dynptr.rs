//! What makes and unmakes dynptrs on the stack.

use crate::explore::Explorer;
use crate::graph::NONE;
use crate::refusal::{Checked, refuse};
use crate::require::dynptr::Place;
use crate::require::stack::Span;
use crate::state::{Byte, Kind, RegState, Slot, Source, State, place};

impl Explorer<'_> {
    /// A helper has made a dynptr.
    pub(crate) fn dynptr_made(&mut self, at: Place, span: Span, source: Source) -> Checked {
        self.reach(at.frame, span);
        self.overwrite_objects(at.frame, span)?;
        let id = self.fresh_id();
        if source == Source::Record {
            self.state.references.push((id, self.pc as u32));
        }
        for (off, first) in [(at.off, true), (at.off + 8, false)] {
            let reg = RegState { reference: id, ..RegState::pointer(Kind::Dynptr { source, first }) };
            self.put_object(Place { off, ..at }, reg);
        }
        Ok(())
    }

    /// Writes one slot of an object.
    pub(crate) fn put_object(&mut self, at: Place, object: RegState) {
        let node = self.reads.node([NONE; 2]);
        let (index, _) = place(at.off);
        let slot = &mut self.state.frames[usize::from(at.frame)].stack[index];
        *slot = Slot { bytes: [Byte::Object; 8], spilled: object, node };
    }

    /// Bytes of the stack are about to be overwritten: a dynptr that lies there is no more, with all that points into it.
    /// One that must be given back may not be overwritten. The slots of other objects turn into bytes.
    pub(crate) fn overwrite_objects(&mut self, frame: u8, span: Span) -> Checked {
        for off in span.least..span.end {
            let (index, _) = place(off);
            let Some(slot) = self.state.frames[usize::from(frame)].stack.get(index).copied() else {
                continue;
            };
            if !slot.is_object() {
                continue;
            }
            self.reads.mark(slot.node);
            match slot.spilled.kind {
                Kind::Dynptr { source: Source::Record, .. } => {
                    refuse!("cannot overwrite referenced dynptr")
                }
                Kind::Dynptr { .. } => destroy(&mut self.state, slot.spilled.reference),
                _ => {
                    let slot = &mut self.state.frames[usize::from(frame)].stack[index];
                    *slot = Slot { bytes: [Byte::Misc; 8], spilled: RegState::UNINIT, node: slot.node };
                }
            }
        }
        Ok(())
    }
}

/// The dynptr is gone: its slots hold nothing, what pointed into it are numbers.
pub(crate) fn destroy(state: &mut State, dynptr: u32) {
    for slot in state.frames.iter_mut().flat_map(|frame| &mut frame.stack) {
        if slot.is_object() && slot.spilled.reference == dynptr {
            *slot = Slot { node: slot.node, ..Slot::UNINIT };
        }
    }
    for reg in state.each_reg().filter(|reg| reg.reference == dynptr && reg.kind != Kind::Uninit) {
        *reg = RegState::unknown();
    }
}
