//! When a state need not be explored because an earlier one covered it.
//!
//! An old state covers a new one when everything that the new one can be was allowed for in the old one: pointers of the
//! same kind, numbers within the old ranges, stack contents likewise. Where the old state was explored to its end, only what
//! mattered after it is compared ([`needed`](crate::needed)). While it is still being explored nobody knows yet what matters,
//! and everything is.

use crate::graph::{Graph, NONE};
use crate::ids::IdMap;
use crate::liveness::Regs;
use crate::state::{Byte, Frame, Kind, RegState, Slot, State};

/// How much must agree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum How {
    /// The new one lies within the old one.
    Within,
    /// The states are the same: a loop without progress.
    Identical,
}

/// What a comparison looks at beside the two states.
pub(crate) struct Comparison<'a> {
    pub(crate) how: How,
    pub(crate) ids: &'a mut Ids,
    /// Registers and slots that were looked at.
    pub(crate) work: u64,
}

/// Ids of an old state and what they are called in a new one, both ways.
pub(crate) struct Ids {
    there: IdMap,
    back: IdMap,
}

impl Ids {
    pub(crate) fn new() -> Ids {
        Ids { there: IdMap::new(), back: IdMap::new() }
    }

    fn clear(&mut self) {
        self.there.clear();
        self.back.clear();
    }

    /// The new state's id wherever the old state has `old`, and nowhere else.
    fn agree(&mut self, old: u32, new: u32) -> bool {
        match (self.there.get(old), self.back.get(new)) {
            (None, None) => {
                self.there.insert(old, new);
                self.back.insert(new, old);
                true
            }
            (there, _) => there == Some(new),
        }
    }
}

impl Comparison<'_> {
    /// Two other states are compared now.
    pub(crate) fn begin(&mut self) {
        self.ids.clear();
    }

    /// True when `old` covers `new`. Of each frame, outermost first, the registers `live` can still be read.
    ///
    /// A helper calls a callback a bounded number of times: where `old` has been through more of them, fewer were explored
    /// after it than may come after `new`.
    pub(crate) fn covers(&mut self, old: &State, new: &State, live: &[Regs]) -> bool {
        if old.frames.len() != new.frames.len() {
            return false;
        }
        self.begin();
        let same_chain = old.frames.iter().zip(&new.frames).all(|(old, new)| {
            old.callsite == new.callsite
                && old.subprogram == new.subprogram
                && old.callback == new.callback
                && old.callback_depth <= new.callback_depth
        });
        same_chain
            && self.depths(old, new)
            && self.held(old, new)
            && (0..old.frames.len()).all(|i| self.frame(live[i], &old.frames[i], &new.frames[i]))
    }

    /// The same is held beside the frames: a lock, references taken at the same places.
    pub(crate) fn held(&mut self, old: &State, new: &State) -> bool {
        self.work += old.references.len() as u64 / 8;
        self.lock(old, new)
            && old.references.len() == new.references.len()
            && old
                .references
                .iter()
                .zip(&new.references)
                .all(|(old, new)| self.id(old.0, new.0) && old.1 == new.1)
    }

    /// The same lock is held, or none.
    fn lock(&mut self, old: &State, new: &State) -> bool {
        match (old.lock, new.lock) {
            (None, None) => true,
            (Some(old), Some(new)) => old.map == new.map && self.id(old.id, new.id),
            _ => false,
        }
    }

    /// A state that has gone round a bounded loop more often is not the same state.
    fn depths(&self, old: &State, new: &State) -> bool {
        self.how != How::Identical
            || old.may_goto_depth == new.may_goto_depth
                && old
                    .frames
                    .iter()
                    .zip(&new.frames)
                    .all(|(old, new)| old.callback_depth == new.callback_depth)
    }

    fn frame(&mut self, live: Regs, old: &Frame, new: &Frame) -> bool {
        (0..10).filter(|reg| live & 1 << reg != 0).all(|reg| self.reg(&old.regs[reg], &new.regs[reg]))
            && (0..old.stack.len()).all(|i| {
                let empty = Slot::UNINIT;
                self.slot(&old.stack[i], new.stack.get(i).unwrap_or(&empty))
            })
    }

    /// The same id wherever the old state has the same.
    fn id(&mut self, old: u32, new: u32) -> bool {
        if old == 0 || new == 0 {
            return old == new;
        }
        self.ids.agree(old, new)
    }

    pub(crate) fn reg(&mut self, old: &RegState, new: &RegState) -> bool {
        self.work += 1;
        match (old.kind, new.kind) {
            (Kind::Uninit, _) => true,
            (Kind::Scalar, Kind::Scalar) => self.number(old, new),
            (a, b) if a != b || old.off != new.off => false,
            _ if self.how == How::Identical => {
                old.value == new.value && old.range == new.range && self.pointer_ids(old, new)
            }
            (Kind::MapValue { .. } | Kind::MapKey { .. } | Kind::Mem { .. }, _) => {
                old.value.includes(&new.value) && self.pointer_ids(old, new)
            }
            (Kind::Packet | Kind::PacketMeta, _) => {
                old.range <= new.range && old.value.includes(&new.value) && self.pointer_ids(old, new)
            }
            _ => old.value == new.value && self.pointer_ids(old, new),
        }
    }

    fn pointer_ids(&mut self, old: &RegState, new: &RegState) -> bool {
        self.id(old.id, new.id) && self.id(old.reference, new.reference)
    }

    fn number(&mut self, old: &RegState, new: &RegState) -> bool {
        match self.how {
            How::Identical => old.value == new.value && (old.id == 0 || self.id(old.id, new.id)),
            _ => old.value.includes(&new.value) && (old.id == 0 || self.id(old.id, new.id)),
        }
    }

    pub(crate) fn slot(&mut self, old: &Slot, new: &Slot) -> bool {
        self.work += 1;
        if self.how == How::Identical {
            return old.bytes == new.bytes
                && (!matches!(old.bytes[0], Byte::Spill | Byte::Object)
                    || self.reg(&old.spilled, &new.spilled));
        }
        if old.is_object() || new.is_object() {
            return old.bytes == new.bytes && self.reg(&old.spilled, &new.spilled);
        }
        if let (Some(old), Some(new)) = (as_number(old), as_number(new)) {
            return self.number(&old, &new);
        }
        let bytes_agree = (0..8).all(|i| match (old.bytes[i], new.bytes[i]) {
            // Contents that were read as any number cover all contents; but a context pointer must not slip by unseen.
            (Byte::Uninit | Byte::Misc, Byte::Spill) => new.spilled.kind != Kind::Ctx,
            (Byte::Uninit | Byte::Misc, _) => true,
            (Byte::Zero, Byte::Zero) => true,
            (Byte::Zero, Byte::Spill) => new.spilled.is_null(),
            (Byte::Zero, _) => false,
            (Byte::Spill, byte) => byte == Byte::Spill,
            // Compared above.
            (Byte::Object, _) => false,
        });
        bytes_agree
            && (old.bytes[0] != Byte::Spill
                || old.spill_size() == new.spill_size() && self.reg(&old.spilled, &new.spilled))
    }
}

/// The number that eight bytes hold, when they are a spilled number or bytes that may be any.
fn as_number(slot: &Slot) -> Option<RegState> {
    if slot.spill_size() == 8 && slot.spilled.kind == Kind::Scalar {
        return Some(slot.spilled);
    }
    let any = slot.bytes.iter().all(|byte| matches!(byte, Byte::Misc | Byte::Uninit));
    any.then(RegState::unknown)
}

/// After `old`, which is still being explored, was found to cover `new`: whatever matters in `old`, or turns out to matter
/// later, matters in `new`.
pub(crate) fn inherit(old: &State, new: &State, precision: &mut Graph, reads: &mut Graph) {
    for (old, new) in old.frames.iter().zip(&new.frames) {
        for (old, new) in old.regs.iter().zip(&new.regs) {
            precision.link(old.node, new.node, true);
        }
        for (old, new) in old.stack.iter().zip(&new.stack) {
            inherit_slot(old, new, precision, reads, true);
        }
    }
}

/// The same for one slot; with `later`, also what turns out to matter later.
pub(crate) fn inherit_slot(old: &Slot, new: &Slot, precision: &mut Graph, reads: &mut Graph, later: bool) {
    reads.link(old.node, new.node, later);
    if old.bytes[0] == Byte::Spill && new.bytes[0] == Byte::Spill {
        precision.link(old.spilled.node, new.spilled.node, later);
    } else if new.bytes[0] == Byte::Spill && old.bytes.contains(&Byte::Zero) {
        // Its zeros stand for zeros that the old state relied on.
        precision.mark(new.spilled.node);
    }
}

/// Gives every number and every slot a node of its own, so that marks on them tell what matters from here on.
pub(crate) fn renew_nodes(state: &mut State, precision: &mut Graph, reads: &mut Graph, ids: &mut Ids) {
    ids.clear();
    let renamed = &mut ids.there;
    let mut rename = |reg: &mut RegState| {
        if reg.kind != Kind::Scalar {
            return;
        }
        reg.node = match renamed.get(reg.node).filter(|_| reg.node != NONE) {
            Some(new) => new,
            None => {
                let new = precision.node([reg.node, NONE]);
                renamed.insert(reg.node, new);
                new
            }
        };
    };
    for frame in &mut state.frames {
        frame.regs.iter_mut().for_each(&mut rename);
        for slot in &mut frame.stack {
            slot.node = reads.node([slot.node, NONE]);
            if slot.bytes[0] == Byte::Spill {
                rename(&mut slot.spilled);
            }
        }
    }
}

/// Forgets the ids of numbers that no other number has: they say nothing, and would only tell states apart.
pub(crate) fn forget_single_ids(state: &mut State, ids: &mut Ids) {
    ids.clear();
    let (seen, twice) = (&mut ids.there, &mut ids.back);
    for reg in state.each_reg().filter(|reg| reg.kind == Kind::Scalar && reg.id != 0) {
        if seen.get(reg.id).is_some() {
            twice.insert(reg.id, 0);
        }
        seen.insert(reg.id, 0);
    }
    for reg in state.each_reg().filter(|reg| reg.kind == Kind::Scalar && reg.id != 0) {
        if twice.get(reg.id).is_none() {
            reg.id = 0;
        }
    }
}
