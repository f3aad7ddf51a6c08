//! What the verifier took to be true before each instruction, for tests that run the program and compare.
//!
//! Every state that was explored is kept. While an accepted program runs, what it finds at an instruction must be in one of
//! the states that were explored there. A state claims only what mattered: numbers whose range decided something, registers
//! that are read later, stack slots that were read. All else may differ, because another path may have ended at a state
//! that differs there ([`prune`](crate::prune)).

use crate::code::Code;
use crate::graph::Graph;
use crate::liveness::Regs;
use crate::log;
use crate::state::{Byte, Frame, Kind, Memory, RegState, State};
use std::fmt::Write;

/// Most states kept of one instruction; with more of them nothing is claimed there.
const STATES_MAX: usize = 48;

/// Something that pointers point to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Thing {
    /// The context.
    Context,
    /// The map with this index, or with `inner` a member of it.
    Map {
        /// Index into the program's maps.
        index: u32,
        /// A member of that map is meant.
        inner: bool,
    },
    /// A value of such a map.
    Value {
        /// Index into the program's maps.
        index: u32,
        /// A value of a member of that map is meant.
        inner: bool,
    },
    /// A key of such a map, as a callback gets it.
    Key {
        /// Index into the program's maps.
        index: u32,
    },
    /// A ring-buffer record of this size that is reserved.
    Record {
        /// Bytes.
        size: u32,
    },
    /// The packet's meta data.
    PacketMeta,
    /// The packet's data.
    Packet,
    /// The packet's end.
    PacketEnd,
    /// The function that starts at this slot, as a callback.
    Function {
        /// Slot.
        start: usize,
    },
}

/// A program before one of its instructions.
pub trait Moment {
    /// r0 to r10.
    fn registers(&self) -> &[u64; 11];
    /// r10 of the frames, innermost last.
    fn frames(&self) -> &[u64];
    /// The eight bytes of stack at an address, when they are in a frame.
    fn stack(&self, address: u64) -> Option<[u8; 8]>;
    /// All addresses at which such a thing starts; `None`: not known, nothing is compared.
    fn starts(&self, thing: Thing) -> Option<&[u64]>;
}

/// What the exploration of one program claims.
pub struct Claims {
    at: Vec<Vec<State>>,
    precision: Graph,
    reads: Graph,
    live: Vec<Regs>,
    starts: Vec<usize>,
}

impl std::fmt::Debug for Claims {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Claims({} states)", self.at.iter().map(Vec::len).sum::<usize>())
    }
}

/// The states of an exploration; none when nobody asks for its claims.
pub(crate) struct Notes(Vec<Vec<State>>);

impl Notes {
    pub(crate) fn none() -> Notes {
        Notes(Vec::new())
    }

    pub(crate) fn of_all(code: &Code) -> Notes {
        Notes(vec![Vec::new(); code.ops.len()])
    }

    /// The instruction at `pc` is about to be executed in this state.
    pub(crate) fn note(&mut self, pc: usize, state: &State) {
        if let Some(states) = self.0.get_mut(pc)
            && states.len() < STATES_MAX
        {
            states.push(state.clone());
        }
    }

    pub(crate) fn claims(self, code: &Code, precision: Graph, reads: Graph, live: Vec<Regs>) -> Claims {
        let starts = code.subprograms.iter().map(|range| range.start).collect();
        Claims { at: self.0, precision, reads, live, starts }
    }
}

impl Claims {
    /// Compares what is with what was claimed before the instruction at `pc`.
    ///
    /// # Errors
    /// What is in none of the states, in words.
    pub fn check(&self, pc: usize, moment: &dyn Moment) -> Result<(), String> {
        let Some(states) = self.at.get(pc) else { return Err(format!("no instruction {pc}")) };
        if states.len() >= STATES_MAX || states.iter().any(|state| self.fits(pc, state, moment).is_none()) {
            return Ok(());
        }
        let mut text = format!("instruction {pc}: in none of {} states", states.len());
        for state in states.iter().take(4) {
            let misfit = self.fits(pc, state, moment);
            let _ =
                write!(text, "\n  {}", misfit.map_or(String::new(), |misfit| misfit.words(state, moment)));
        }
        Err(text)
    }

    /// True when the states of the instruction were too many to be kept.
    pub fn is_silent(&self, pc: usize) -> bool {
        self.at.get(pc).is_some_and(|states| states.len() >= STATES_MAX)
    }

    /// What differs between the state and what is; `None` when nothing does.
    fn fits(&self, pc: usize, state: &State, moment: &dyn Moment) -> Option<Misfit> {
        let outer = moment.frames().len().checked_sub(state.frames.len());
        let Some(outer) = outer else { return Some(Misfit::Frames) };
        let mut ids = Ids::default();
        let registers = moment.registers();
        for (number, reg) in state.frame().regs[..10].iter().enumerate() {
            let is_live = self.live[pc] & 1 << number != 0;
            if is_live && !self.is_in(reg, registers[number], outer, moment, &mut ids) {
                return Some(Misfit::Register(number));
            }
        }
        state.frames.iter().enumerate().find_map(|(index, frame)| {
            let slot = self.stack_fits(frame, outer + index, outer, moment, &mut ids)?;
            Some(Misfit::Slot { frame: index, slot })
        })
    }

    /// The first slot of a frame that differs.
    fn stack_fits(
        &self,
        frame: &Frame,
        depth: usize,
        outer: usize,
        moment: &dyn Moment,
        ids: &mut Ids,
    ) -> Option<usize> {
        let pointer = *moment.frames().get(depth)?;
        for (index, slot) in frame.stack.iter().enumerate() {
            if !self.reads.is_marked(slot.node) || slot.bytes == [Byte::Misc; 8] {
                continue;
            }
            let Some(bytes) = moment.stack(below(pointer, index)) else { continue };
            let zeros = slot.bytes.iter().zip(bytes).all(|(&known, byte)| known != Byte::Zero || byte == 0);
            let spilled = slot.spill_size();
            let low = u64::from_le_bytes(bytes) & u64::MAX.checked_shr(64 - 8 * spilled).unwrap_or(0);
            let held = low_bytes(&slot.spilled, spilled);
            if !zeros || spilled != 0 && !self.is_in(&held, low, outer, moment, ids) {
                return Some(index);
            }
        }
        None
    }

    /// The value is one that the register may hold.
    fn is_in(&self, reg: &RegState, value: u64, outer: usize, moment: &dyn Moment, ids: &mut Ids) -> bool {
        let index = |map: crate::state::MapRef| (map.index, map.inner);
        let thing = match reg.kind {
            Kind::Uninit => return true,
            Kind::Scalar => {
                return !self.precision.is_marked(reg.node)
                    || reg.value.contains(value) && ids.agree(reg.id, value);
            }
            _ if reg.kind.is_nullable() && value == 0 => return true,
            Kind::Stack { frame } => {
                let base = moment.frames().get(outer + usize::from(frame));
                return base.is_some_and(|&base| is_at(reg, value, base));
            }
            Kind::Ctx => Thing::Context,
            Kind::MapPtr { map, .. } => Thing::Map { index: index(map).0, inner: index(map).1 },
            Kind::MapValue { map, .. } => Thing::Value { index: index(map).0, inner: index(map).1 },
            Kind::MapKey { map } if !map.inner => Thing::Key { index: map.index },
            Kind::Mem { size, memory: Memory::Ringbuf, .. } => Thing::Record { size },
            Kind::Packet => Thing::Packet,
            Kind::PacketMeta => Thing::PacketMeta,
            Kind::PacketEnd => Thing::PacketEnd,
            Kind::Func { subprogram } => Thing::Function { start: self.starts[usize::from(subprogram)] },
            _ => return true,
        };
        let Some(starts) = moment.starts(thing) else { return true };
        starts.iter().any(|&start| is_at(reg, value, start)) && reaches(reg, value, thing, moment)
    }
}

/// What differs.
#[derive(Clone, Copy)]
enum Misfit {
    /// The state has more frames.
    Frames,
    /// This register of the innermost frame.
    Register(usize),
    /// This slot of a frame of the state.
    Slot { frame: usize, slot: usize },
}

impl Misfit {
    fn words(self, state: &State, moment: &dyn Moment) -> String {
        match self {
            Misfit::Frames => format!("{} frames", state.frames.len()),
            Misfit::Register(number) => {
                let value = moment.registers()[number];
                format!("R{number} is {value:#x}, not {}", log::shown(&state.frame().regs[number]))
            }
            Misfit::Slot { frame, slot } => {
                let held = &state.frames[frame].stack[slot];
                let depth = moment.frames().len() - state.frames.len() + frame;
                let bytes =
                    moment.frames().get(depth).and_then(|&pointer| moment.stack(below(pointer, slot)));
                let value = u64::from_le_bytes(bytes.unwrap_or_default());
                let known = held.bytes;
                format!(
                    "frame {frame} fp-{} is {value:#018x}, not {} {known:?}",
                    8 * (slot + 1),
                    log::shown(&held.spilled)
                )
            }
        }
    }
}

/// The address of slot `index` of the frame with this r10.
fn below(pointer: u64, index: usize) -> u64 {
    pointer.wrapping_sub(8 * (index as u64 + 1))
}

/// What the low bytes of a spilled register are.
fn low_bytes(spilled: &RegState, bytes: u32) -> RegState {
    match bytes {
        1 | 2 | 4 if spilled.kind == Kind::Scalar => {
            RegState { value: spilled.value.zero_extend(8 * bytes), ..*spilled }
        }
        _ => *spilled,
    }
}

/// The address is one that the pointer may have into what starts at `base`.
fn is_at(reg: &RegState, address: u64, base: u64) -> bool {
    reg.value.contains(address.wrapping_sub(base).wrapping_sub(i64::from(reg.off) as u64))
}

/// The packet is as long behind the pointer as the pointer says.
fn reaches(reg: &RegState, address: u64, thing: Thing, moment: &dyn Moment) -> bool {
    let end = match thing {
        Thing::Packet => Thing::PacketEnd,
        Thing::PacketMeta => Thing::Packet,
        _ => return true,
    };
    let Some(&[end]) = moment.starts(end) else { return true };
    let start = address.wrapping_sub(i64::from(reg.off) as u64);
    reg.range == 0 || start.wrapping_add(reg.range.into()) <= end
}

/// Numbers with the same id are equal.
#[derive(Default)]
struct Ids(Vec<(u32, u64)>);

impl Ids {
    fn agree(&mut self, id: u32, value: u64) -> bool {
        if id == 0 {
            return true;
        }
        match self.0.iter().find(|(known, _)| *known == id) {
            Some(&(_, known)) => known == value,
            None => {
                self.0.push((id, value));
                true
            }
        }
    }
}
