//! What a read of a register requires.

use crate::explore::Explorer;
use crate::refusal::{Checked, refuse};
use crate::state::{Kind, RegState};
use beeline_isa::{AluOp, Operand, Reg, Width};

impl Explorer<'_> {
    /// The register holds something.
    pub(crate) fn readable(&self, reg: Reg) -> Checked<RegState> {
        let state = self.state.reg(reg);
        if state.kind == Kind::Uninit {
            refuse!("R{} !read_ok", reg.0);
        }
        Ok(*state)
    }

    /// The second operand of an instruction, as a register would hold it.
    pub(crate) fn operand(&self, src: Operand, width: Width) -> Checked<RegState> {
        match (src, width) {
            (Operand::Reg(reg), _) => self.readable(reg),
            (Operand::Imm(imm), Width::W64) => Ok(RegState::constant(imm as i64 as u64)),
            (Operand::Imm(imm), Width::W32) => Ok(RegState::constant(u64::from(imm as u32))),
        }
    }
}

/// A constant operand makes sense: no division by zero, no shift by more than there is.
pub(crate) fn constant_operand(width: Width, op: AluOp, src: Operand) -> Checked {
    let Operand::Imm(imm) = src else { return Ok(()) };
    let bits = if width == Width::W64 { 64 } else { 32 };
    match op {
        AluOp::Div | AluOp::SDiv | AluOp::Mod | AluOp::SMod if imm == 0 => refuse!("div by zero"),
        AluOp::Lsh | AluOp::Rsh | AluOp::Arsh if !(0..bits).contains(&imm) => refuse!("invalid shift {imm}"),
        _ => Ok(()),
    }
}
