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
    for range in &code.subprograms {
        let mut changed = true;
        while changed {
            changed = false;
            for pc in (range.start..range.end).rev() {
                let Some(op) = code.op(pc) else { continue };
                let after = code.successors(pc).into_iter().flatten().fold(0, |set, next| set | live[next]);
                let (reads, writes) = effect(op);
                let before = after & !writes | reads;
                changed |= std::mem::replace(&mut live[pc], before) != before;
            }
        }
    }
    live
}
