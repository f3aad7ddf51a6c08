//! When a state need not be explored because an earlier one covered it.
//!
//! An old state covers a new one when everything that the new one can be was allowed for in the old one: pointers of the
//! same kind, numbers within the old ranges, stack contents likewise. Where the old state was explored to its end, what never
//! mattered after it (numbers whose range decided nothing, slots that were not read) is not compared. While it is still being
//! explored nobody knows yet what matters, and everything is.

use crate::graph::Graph;
use crate::liveness::Regs;
use crate::state::{Byte, Frame, Kind, RegState, Slot, State};

/// How much must agree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum How {
    /// What mattered: the old state has been explored to its end.
    Needed,
    /// All ranges: the old state is still being explored.
    Within,
    /// The states are the same: a loop without progress.
    Identical,
}

/// What a comparison looks at beside the two states.
pub(crate) struct Comparison<'a> {
    pub(crate) how: How,
    pub(crate) precision: &'a Graph,
    pub(crate) reads: &'a Graph,
    /// Live registers per frame, outermost first.
    pub(crate) live: &'a [Regs],
    /// Ids of the old state and what they are called in the new one.
    pub(crate) ids: Vec<(u32, u32)>,
}

impl Comparison<'_> {
    /// True when `old` covers `new`.
    pub(crate) fn covers(&mut self, old: &State, new: &State) -> bool {
        if old.frames.len() != new.frames.len() || old.references.len() != new.references.len() {
            return false;
        }
        let same_chain = old.frames.iter().zip(&new.frames).all(|(old, new)| {
            old.callsite == new.callsite && old.subprogram == new.subprogram && old.callback == new.callback
        });
        same_chain
            && self.depths(old, new)
            && self.lock(old, new)
            && old
                .references
                .iter()
                .zip(&new.references)
                .all(|(old, new)| self.id(old.0, new.0) && old.1 == new.1)
            && (0..old.frames.len()).all(|i| self.frame(i, &old.frames[i], &new.frames[i]))
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

    fn frame(&mut self, index: usize, old: &Frame, new: &Frame) -> bool {
        let live = self.live[index];
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
        for &(known_old, known_new) in &self.ids {
            if known_old == old || known_new == new {
                return known_old == old && known_new == new;
            }
        }
        self.ids.push((old, new));
        true
    }

    fn reg(&mut self, old: &RegState, new: &RegState) -> bool {
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
            How::Needed if !self.precision.is_marked(old.node) => true,
            How::Identical => old.value == new.value && (old.id == 0 || self.id(old.id, new.id)),
            _ => old.value.includes(&new.value) && (old.id == 0 || self.id(old.id, new.id)),
        }
    }

    fn slot(&mut self, old: &Slot, new: &Slot) -> bool {
        if self.how == How::Needed && !self.reads.is_marked(old.node) {
            return true;
        }
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

/// After `old` was found to cover `new`: whatever matters in `old` matters in `new`; with `later`, also what turns out to
/// matter later, because `old` is still being explored.
pub(crate) fn inherit(old: &State, new: &State, precision: &mut Graph, reads: &mut Graph, later: bool) {
    for (old, new) in old.frames.iter().zip(&new.frames) {
        for (old, new) in old.regs.iter().zip(&new.regs) {
            precision.link(old.node, new.node, later);
        }
        for (old, new) in old.stack.iter().zip(&new.stack) {
            reads.link(old.node, new.node, later);
            if old.bytes[0] == Byte::Spill && new.bytes[0] == Byte::Spill {
                precision.link(old.spilled.node, new.spilled.node, later);
            } else if new.bytes[0] == Byte::Spill && old.bytes.contains(&Byte::Zero) {
                // Its zeros stand for zeros that the old state relied on.
                precision.mark(new.spilled.node);
            }
        }
    }
}

/// Gives every number and every slot a node of its own, so that marks on them tell what matters from here on.
pub(crate) fn renew_nodes(state: &mut State, precision: &mut Graph, reads: &mut Graph) {
    let mut renamed: Vec<(u32, u32)> = Vec::new();
    let mut rename = |reg: &mut RegState| {
        if reg.kind != Kind::Scalar {
            return;
        }
        let known = renamed.iter().find(|(old, _)| *old == reg.node && *old != 0);
        reg.node = match known {
            Some(&(_, new)) => new,
            None => {
                let new = precision.node([reg.node, 0]);
                renamed.push((reg.node, new));
                new
            }
        };
    };
    for frame in &mut state.frames {
        frame.regs.iter_mut().for_each(&mut rename);
        for slot in &mut frame.stack {
            slot.node = reads.node([slot.node, 0]);
            if slot.bytes[0] == Byte::Spill {
                rename(&mut slot.spilled);
            }
        }
    }
}

/// Forgets the ids of numbers that no other number has: they say nothing, and would only tell states apart.
pub(crate) fn forget_single_ids(state: &mut State) {
    let mut seen: Vec<(u32, bool)> = Vec::new();
    for reg in state.each_reg().filter(|reg| reg.kind == Kind::Scalar && reg.id != 0) {
        match seen.iter_mut().find(|(id, _)| *id == reg.id) {
            Some((_, twice)) => *twice = true,
            None => seen.push((reg.id, false)),
        }
    }
    for reg in state.each_reg().filter(|reg| reg.kind == Kind::Scalar && reg.id != 0) {
        if seen.iter().any(|&(id, twice)| id == reg.id && !twice) {
            reg.id = 0;
        }
    }
}
