//! What the compiler compiles: instructions, the subprograms they divide into, and what is known about calls.
//!
//! A [`Code`] says nothing about safety. [`compile`](crate::compile) makes one of a `Verified`;
//! [`compile_unverified`](crate::compile_unverified) takes one that anybody made.

use crate::error::CompileError;
use beeline_abi::map::MapShape;
use beeline_isa::{Call, Imm64, Insn, Op, decode};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of a BPF stack frame (`MAX_BPF_STACK`).
pub const FRAME_BYTES_MAX: u32 = 512;

/// A run of instructions with one entry: the main program, a subprogram or a callback.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subprogram {
    /// First instruction slot.
    pub start: u32,
    /// Slot behind the last one.
    pub end: u32,
    /// Bytes below its frame pointer that it may touch, at most [`FRAME_BYTES_MAX`].
    pub stack_bytes: u32,
    /// Its name, where one is known.
    pub name: String,
}

/// What is the same on every path to one call.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CallFacts {
    /// The map in r1, by index into [`Code::maps`].
    pub map: Option<u32>,
    /// The callback in r2, by index into [`Code::subprograms`].
    pub callback: Option<usize>,
    /// The four bytes that r2 points to: the key of an array look-up.
    pub key: Option<u32>,
}

/// Deviations that the public conformance suite needs; a real program has none.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Conformance {
    /// A result of 0 from this helper ends the whole program with 0.
    pub unwind: Option<u32>,
    /// Helpers that a `callx` may reach; any other number ends the program with
    /// [`RUN_BAD_CALL`](crate::RUN_BAD_CALL) set in the run's flags.
    pub register_calls: Vec<u32>,
}

/// One program for the compiler.
#[derive(Clone, Debug)]
pub struct Code<'a> {
    /// All instruction slots.
    pub insns: &'a [Insn],
    /// In order of `start`, without gaps; the first is the main program.
    pub subprograms: Vec<Subprogram>,
    /// The maps that instructions refer to by index.
    pub maps: Vec<MapShape>,
    /// By slot of the call instruction.
    pub calls: BTreeMap<u32, CallFacts>,
    /// One entry a slot, true for slots that no execution reaches; empty when nothing is known to be dead.
    pub dead: Vec<bool>,
    /// Slots of loads from memory that nobody writes to while the program runs.
    pub constant_loads: BTreeSet<u32>,
    /// A run owns the CPU that `run.access.cpu` names.
    pub owns_cpu: bool,
    /// How many of r1 to r5 a helper takes, by id. The others need not be passed.
    pub helper_arguments: fn(u32) -> u8,
    /// Helpers that need no call are compiled in place.
    pub inline: bool,
    /// Empty but for the conformance suite.
    pub conformance: Conformance,
}

impl<'a> Code<'a> {
    /// Divides instructions into subprograms: every target of a local call or of a callback reference starts one.
    ///
    /// # Errors
    /// [`CompileError`] when a slot is not an instruction or a target lies outside.
    pub fn divide(insns: &'a [Insn], maps: &[MapShape]) -> Result<Code<'a>, CompileError> {
        let mut starts = BTreeSet::from([0]);
        let mut pc = 0;
        while pc < insns.len() {
            let op = decode(&insns[pc..]).map_err(|source| CompileError::undecodable(pc, source))?;
            if let Some(relative) = function_reference(&op) {
                starts.insert(jump_target(insns, pc, i64::from(relative))?);
            }
            pc += op_slots(&op);
        }
        let bounds: Vec<u32> = starts.into_iter().chain([insns.len() as u32]).collect();
        let subprograms = bounds
            .windows(2)
            .map(|range| Subprogram {
                start: range[0],
                end: range[1],
                stack_bytes: FRAME_BYTES_MAX,
                name: if range[0] == 0 { "main".into() } else { format!("sub_{}", range[0]) },
            })
            .collect();
        Ok(Code {
            insns,
            subprograms,
            maps: maps.to_vec(),
            calls: BTreeMap::new(),
            dead: Vec::new(),
            constant_loads: BTreeSet::new(),
            owns_cpu: false,
            helper_arguments: |_| 5,
            inline: true,
            conformance: Conformance::default(),
        })
    }

    /// Index of the subprogram that starts at this slot.
    pub(crate) fn subprogram_at(&self, start: u32) -> Option<usize> {
        self.subprograms.binary_search_by_key(&start, |subprogram| subprogram.start).ok()
    }

    /// True when no execution reaches the slot.
    pub(crate) fn is_dead(&self, pc: u32) -> bool {
        self.dead.get(pc as usize).copied().unwrap_or(false)
    }

    /// What is known about the call at this slot.
    pub(crate) fn call_facts(&self, pc: u32) -> CallFacts {
        self.calls.get(&pc).copied().unwrap_or_default()
    }
}

/// Slots that an instruction takes.
pub(crate) fn op_slots(op: &Op) -> usize {
    if matches!(op, Op::LoadImm64 { .. }) { 2 } else { 1 }
}

/// The relative target when the instruction names a function of the same program.
fn function_reference(op: &Op) -> Option<i32> {
    match *op {
        Op::Call(Call::Local(relative)) => Some(relative),
        Op::LoadImm64 { value: Imm64::Func(relative), .. } => Some(relative),
        _ => None,
    }
}

/// The slot `relative` slots behind the one after `pc`.
pub(crate) fn jump_target(insns: &[Insn], pc: usize, relative: i64) -> Result<u32, CompileError> {
    let target = pc as i64 + 1 + relative;
    if target < 0 || target >= insns.len() as i64 {
        return Err(CompileError::BadTarget { pc: pc as u32, target });
    }
    Ok(target as u32)
}
