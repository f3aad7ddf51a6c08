//! Which registers can still be read at an instruction: the others need not be compared between states.

use crate::code::Code;
use beeline_isa::{AtomicOp, Call, Imm64, Op, Operand, Reg};

/// A set of registers, bit n for rn.
pub(crate) type Regs = u16;

const CALLER_SAVED: Regs = 0b11_1111;
const ARGUMENTS: Regs = 0b11_1110;

const fn bit(reg: Reg) -> Regs {
    1 << reg.0
}

fn operand(src: Operand) -> Regs {
    match src {
        Operand::Reg(reg) => bit(reg),
        Operand::Imm(_) => 0,
    }
}

/// What an instruction reads, and what it overwrites.
pub(crate) fn effect(op: Op) -> (Regs, Regs) {
    match op {
        Op::Alu { dst, src, .. } => (bit(dst) | operand(src), bit(dst)),
        Op::Mov { dst, src, .. } => (operand(src), bit(dst)),
        Op::MovSx { dst, src, .. } => (bit(src), bit(dst)),
        Op::Neg { dst, .. } | Op::Endian { dst, .. } => (bit(dst), bit(dst)),
        Op::LoadImm64 { dst, value: Imm64::Value(_) | Imm64::Map(_) | Imm64::MapValue { .. } }
        | Op::LoadImm64 { dst, value: Imm64::BtfId(_) | Imm64::Func(_) } => (0, bit(dst)),
        Op::Load { dst, base, .. } | Op::ProbeLoad { dst, base, .. } => (bit(base), bit(dst)),
        Op::LoadPacket { index, .. } => (bit(Reg::R6) | index.map_or(0, bit), CALLER_SAVED),
        Op::Store { base, src, .. } => (bit(base) | operand(src), 0),
        Op::Atomic { op: AtomicOp::LoadAcquire, base, src, .. } => (bit(base), bit(src)),
        Op::Atomic { op: AtomicOp::Cmpxchg, base, src, .. } => {
            (bit(base) | bit(src) | bit(Reg::R0), bit(Reg::R0))
        }
        Op::Atomic { fetch: true, base, src, .. } => (bit(base) | bit(src), bit(src)),
        Op::Atomic { base, src, .. } => (bit(base) | bit(src), 0),
        Op::Ja { .. } | Op::MayGoto { .. } => (0, 0),
        Op::Jump { dst, src, .. } => (bit(dst) | operand(src), 0),
        Op::Call(Call::Register(reg)) => (ARGUMENTS | bit(reg), CALLER_SAVED),
        Op::Call(_) => (ARGUMENTS, CALLER_SAVED),
        Op::Exit => (bit(Reg::R0), 0),
    }
}

/// Per slot: the registers that are live before it.
pub(crate) fn analyse(code: &Code) -> Vec<Regs> {
    analyse_with(code, effect)
}

/// The same, with what an instruction reads and overwrites told by `effect`.
pub(crate) fn analyse_with(code: &Code, effect: impl Fn(Op) -> (Regs, Regs)) -> Vec<Regs> {
    let mut live = vec![0; code.ops.len()];
    let from = Origins::new(code);
    let mut waits = vec![true; code.ops.len()];
    // Taken from the end: a program without loops is done in one pass.
    let mut work: Vec<u32> = (0..code.ops.len() as u32).collect();
    while let Some(pc) = work.pop() {
        let pc = pc as usize;
        waits[pc] = false;
        let Some(op) = code.op(pc) else { continue };
        let after = code.successors(pc).into_iter().flatten().fold(0, |set, next| set | live[next]);
        let (reads, writes) = effect(op);
        let before = after & !writes | reads;
        if std::mem::replace(&mut live[pc], before) == before {
            continue;
        }
        for &origin in from.of(pc) {
            if !std::mem::replace(&mut waits[origin as usize], true) {
                work.push(origin);
            }
        }
    }
    live
}

/// Per slot: from where control comes to it.
struct Origins {
    /// Where the origins of each slot begin.
    starts: Vec<u32>,
    origins: Vec<u32>,
}

impl Origins {
    fn new(code: &Code) -> Origins {
        let len = code.ops.len();
        let edges =
            || (0..len).flat_map(|pc| code.successors(pc).into_iter().flatten().map(move |to| (pc, to)));
        let mut starts = vec![0; len + 1];
        edges().for_each(|(_, to)| starts[to + 1] += 1);
        for slot in 0..len {
            starts[slot + 1] += starts[slot];
        }
        let mut next = starts.clone();
        let mut origins = vec![0; starts[len] as usize];
        for (pc, to) in edges() {
            origins[next[to] as usize] = pc as u32;
            next[to] += 1;
        }
        Origins { starts, origins }
    }

    fn of(&self, slot: usize) -> &[u32] {
        &self.origins[self.starts[slot] as usize..self.starts[slot + 1] as usize]
    }
}
