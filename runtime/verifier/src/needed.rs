//! What mattered of a state that has been explored to its end: the rest is forgotten, and need not be compared.
//!
//! Numbers whose range decided nothing are any number here, registers that are not read later and slots that nobody read
//! are left out. Most of a large stack is: this is what keeps many states of it small, and fast to compare.

use crate::graph::Graph;
use crate::liveness::Regs;
use crate::prune::Comparison;
use crate::state::{Byte, Callback, Frame, Kind, RegState, Slot, State};

/// A state, without what did not matter.
#[derive(Debug)]
pub(crate) struct Needed {
    frames: Box<[NeededFrame]>,
    /// What it holds beside its frames, which are left out.
    held: State,
}

#[derive(Debug)]
struct NeededFrame {
    callsite: u32,
    subprogram: u16,
    callback: Option<Callback>,
    callback_depth: u32,
    /// By number.
    regs: Box<[(u8, RegState)]>,
    /// By place below r10.
    slots: Box<[(u16, Slot)]>,
}

impl Needed {
    /// What mattered of `state`, of whose frames the registers `live` can still be read.
    pub(crate) fn of(state: &State, live: &[Regs], precision: &Graph, reads: &Graph) -> Needed {
        let frame = |(frame, live): (&Frame, &Regs)| NeededFrame {
            callsite: frame.callsite,
            subprogram: frame.subprogram,
            callback: frame.callback,
            callback_depth: frame.callback_depth,
            regs: regs(frame, *live, precision),
            slots: slots(frame, precision, reads),
        };
        Needed {
            frames: state.frames.iter().zip(live).map(frame).collect(),
            held: State {
                frames: Vec::new(),
                references: state.references.clone(),
                may_goto_depth: state.may_goto_depth,
                lock: state.lock,
            },
        }
    }

    /// Bytes that it takes.
    pub(crate) fn bytes(&self) -> usize {
        let frame = |frame: &NeededFrame| {
            size_of::<NeededFrame>() + size_of_val(&*frame.regs) + size_of_val(&*frame.slots)
        };
        size_of::<Needed>() + self.frames.iter().map(frame).sum::<usize>() + self.held.bytes()
    }

    /// True when all that `new` can be was allowed for.
    pub(crate) fn covers(&self, new: &State, comparison: &mut Comparison) -> bool {
        comparison.begin();
        let same_chain = |(old, new): (&NeededFrame, &Frame)| {
            old.callsite == new.callsite
                && old.subprogram == new.subprogram
                && old.callback == new.callback
                && old.callback_depth <= new.callback_depth
        };
        self.frames.len() == new.frames.len()
            && self.frames.iter().zip(&new.frames).all(same_chain)
            && comparison.held(&self.held, new)
            && self.frames.iter().zip(&new.frames).all(|(old, new)| old.covers(new, comparison))
    }

    /// After it was found to cover `new`: what matters here matters there.
    pub(crate) fn inherit(&self, new: &State, precision: &mut Graph, reads: &mut Graph) {
        for (old, new) in self.frames.iter().zip(&new.frames) {
            for (reg, old) in &old.regs {
                precision.link(old.node, new.regs[usize::from(*reg)].node, false);
            }
            for (place, old) in &old.slots {
                let Some(new) = new.stack.get(usize::from(*place)) else { continue };
                crate::prune::inherit_slot(old, new, precision, reads, false);
            }
        }
    }
}

impl NeededFrame {
    fn covers(&self, new: &Frame, comparison: &mut Comparison) -> bool {
        self.regs.iter().all(|(reg, old)| comparison.reg(old, &new.regs[usize::from(*reg)]))
            && self.slots.iter().all(|(place, old)| {
                comparison.slot(old, new.stack.get(usize::from(*place)).unwrap_or(&Slot::UNINIT))
            })
    }
}

/// A number that decided nothing may be any other; all else stays what it is.
fn as_needed(reg: &RegState, precision: &Graph) -> RegState {
    if reg.kind == Kind::Scalar && !precision.is_marked(reg.node) {
        RegState { node: reg.node, ..RegState::unknown() }
    } else {
        *reg
    }
}

fn regs(frame: &Frame, live: Regs, precision: &Graph) -> Box<[(u8, RegState)]> {
    let regs = (0..10).filter(|reg| live & 1 << reg != 0).map(|reg| (reg, frame.regs[usize::from(reg)]));
    regs.filter(|(_, reg)| reg.kind != Kind::Uninit)
        .map(|(number, reg)| (number, as_needed(&reg, precision)))
        .collect()
}

fn slots(frame: &Frame, precision: &Graph, reads: &Graph) -> Box<[(u16, Slot)]> {
    let read = frame.stack.iter().enumerate().filter(|(_, slot)| reads.is_marked(slot.node));
    let needed = |(place, slot): (usize, &Slot)| {
        let mut slot = *slot;
        if slot.bytes[0] == Byte::Spill {
            slot.spilled = as_needed(&slot.spilled, precision);
        }
        (place as u16, slot)
    };
    read.map(needed).collect()
}
