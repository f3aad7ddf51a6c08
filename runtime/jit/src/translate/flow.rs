//! The blocks of a subprogram: decoded instructions, the slots that jumps reach, the number of edges to each.

use crate::code::{Code, Subprogram, jump_target, op_slots};
use crate::error::CompileError;
use beeline_isa::{Op, Operand, Reg, decode};
use std::collections::{BTreeMap, HashMap};

/// Control flow of one subprogram.
pub(super) struct Flow {
    /// Instructions that can be reached, with their slots, in order.
    pub(super) ops: Vec<(u32, Op)>,
    /// Some instruction names r10.
    pub(super) uses_frame: bool,
    /// There is a `may_goto`.
    pub(super) uses_budget: bool,
    /// Edges to each block, by its slot.
    entries: HashMap<u32, u32>,
    /// Edges that are still to be placed, by the slot they lead to.
    edges: HashMap<u32, u32>,
}

/// Where execution goes after an instruction.
struct Next {
    falls_through: bool,
    target: Option<u32>,
}

impl Flow {
    /// Decodes what is alive and reachable within the subprogram.
    pub(super) fn of(code: &Code<'_>, subprogram: &Subprogram) -> Result<Flow, CompileError> {
        let mut ops = BTreeMap::new();
        let mut edges: HashMap<u32, u32> = HashMap::new();
        let mut pending = vec![subprogram.start];
        let mut leaders = Vec::new();
        while let Some(mut pc) = pending.pop() {
            while !ops.contains_key(&pc) {
                let op = decode_at(code, subprogram, pc)?;
                ops.insert(pc, op);
                let next = next(code, subprogram, pc, &op)?;
                if let Some(target) = next.target {
                    *edges.entry(target).or_default() += 1;
                    leaders.push(target);
                    pending.push(target);
                }
                if !next.falls_through {
                    break;
                }
                let following = pc + op_slots(&op) as u32;
                if following >= subprogram.end {
                    return Err(CompileError::FallsOffEnd { pc });
                }
                pc = following;
            }
        }
        for (&pc, op) in &ops {
            let next = next(code, subprogram, pc, op)?;
            let following = pc + op_slots(op) as u32;
            // After a branch the fall-through is a block of its own; before a leader, too.
            if next.falls_through && (next.target.is_some() || edges.contains_key(&following)) {
                leaders.push(following);
            }
        }
        for &leader in &leaders {
            edges.entry(leader).or_default();
        }
        count_fallthroughs(code, subprogram, &ops, &mut edges)?;
        // The prologue leads to the first instruction, whatever else does.
        if let Some(count) = edges.get_mut(&subprogram.start) {
            *count += 1;
        }
        Ok(Flow {
            uses_frame: ops.values().any(names_frame_pointer),
            uses_budget: ops.values().any(|op| matches!(op, Op::MayGoto { .. })),
            ops: ops.into_iter().collect(),
            entries: edges.clone(),
            edges,
        })
    }

    /// Slots that start a block.
    pub(super) fn leaders(&self) -> impl Iterator<Item = u32> {
        self.edges.keys().copied()
    }

    /// True when just one edge leads to the block at `pc`.
    pub(super) fn has_one_entry(&self, pc: u32) -> bool {
        self.entries.get(&pc) == Some(&1)
    }

    /// Records that one edge to `pc` is in place. True: it was the last one.
    pub(super) fn edge_placed(&mut self, pc: u32) -> bool {
        let Some(left) = self.edges.get_mut(&pc) else { return false };
        *left = left.saturating_sub(1);
        *left == 0
    }
}

fn decode_at(code: &Code<'_>, subprogram: &Subprogram, pc: u32) -> Result<Op, CompileError> {
    let slots = &code.insns[pc as usize..subprogram.end as usize];
    decode(slots).map_err(|source| CompileError::undecodable(pc as usize, source))
}

fn count_fallthroughs(
    code: &Code<'_>,
    subprogram: &Subprogram,
    ops: &BTreeMap<u32, Op>,
    edges: &mut HashMap<u32, u32>,
) -> Result<(), CompileError> {
    for (&pc, op) in ops {
        if next(code, subprogram, pc, op)?.falls_through
            && let Some(count) = edges.get_mut(&(pc + op_slots(op) as u32))
        {
            *count += 1;
        }
    }
    Ok(())
}

/// A branch whose one side is proven dead goes to the other side only.
fn next(code: &Code<'_>, subprogram: &Subprogram, pc: u32, op: &Op) -> Result<Next, CompileError> {
    let resolve = |relative: i64| {
        let target = jump_target(code.insns, pc as usize, relative)?;
        if target < subprogram.start || target >= subprogram.end {
            return Err(CompileError::BadTarget { pc, target: i64::from(target) });
        }
        Ok(target)
    };
    let conditional = |relative: i16| {
        let target = resolve(i64::from(relative))?;
        let target_dead = code.is_dead(target);
        Ok(Next {
            falls_through: target_dead || !code.is_dead(pc + 1),
            target: if target_dead { None } else { Some(target) },
        })
    };
    match *op {
        Op::Ja { target } => Ok(Next { falls_through: false, target: Some(resolve(i64::from(target))?) }),
        Op::Jump { target, .. } | Op::MayGoto { target } => conditional(target),
        Op::Exit => Ok(Next { falls_through: false, target: None }),
        _ => Ok(Next { falls_through: true, target: None }),
    }
}

fn names_frame_pointer(op: &Op) -> bool {
    let is = |register: Reg| register == Reg::R10;
    let operand = |operand: Operand| operand == Operand::Reg(Reg::R10);
    match *op {
        Op::Alu { dst, src, .. } | Op::Mov { dst, src, .. } | Op::Jump { dst, src, .. } => {
            is(dst) || operand(src)
        }
        Op::MovSx { src, .. } => is(src),
        Op::Load { base, .. } | Op::ProbeLoad { base, .. } => is(base),
        Op::Store { base, src, .. } => is(base) || operand(src),
        Op::Atomic { base, src, .. } => is(base) || is(src),
        Op::Neg { dst, .. } | Op::Endian { dst, .. } => is(dst),
        Op::LoadPacket { index, .. } => index == Some(Reg::R10),
        _ => false,
    }
}
