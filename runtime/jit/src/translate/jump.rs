//! Branches.

use super::{Body, Known, width_type};
use crate::error::CompileError;
use beeline_isa::{JumpOp, Operand, Reg, Width};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{InstBuilder, Value};

/// Iterations that `may_goto` and `bpf_loop` allow (`BPF_MAX_LOOPS`).
pub(super) const LOOPS_MAX: i64 = 8 * 1024 * 1024;

impl Body<'_, '_> {
    /// The slot `relative` slots behind the next one; `Flow` has checked it.
    fn target(&self, relative: i32) -> u32 {
        (i64::from(self.pc) + 1 + i64::from(relative)) as u32
    }

    pub(super) fn jump(&mut self, relative: i32) -> Result<bool, CompileError> {
        self.goto(self.target(relative));
        Ok(false)
    }

    fn goto(&mut self, target: u32) {
        let block = self.blocks[&target];
        self.builder.ins().jump(block, &[]);
        self.arrived(target);
    }

    pub(super) fn branch(
        &mut self,
        width: Width,
        op: JumpOp,
        dst: Reg,
        src: Operand,
        relative: i16,
    ) -> Result<bool, CompileError> {
        let target = self.target(i32::from(relative));
        if self.code.is_dead(target) {
            return Ok(true);
        }
        if self.code.is_dead(self.pc + 1) {
            self.goto(target);
            return Ok(false);
        }
        if !self.null_check(width, op, dst, src, target) {
            let condition = self.compare(width, op, dst, src);
            self.branch_on(condition, target, self.pc + 1);
        }
        Ok(false)
    }

    fn branch_on(&mut self, condition: Value, target: u32, otherwise: u32) {
        let (taken, not_taken) = (self.blocks[&target], self.blocks[&otherwise]);
        self.builder.ins().brif(condition, taken, &[], not_taken, &[]);
        self.arrived(target);
        self.arrived(otherwise);
    }

    /// A comparison with null of an address of which more is known. False: this is not one.
    fn null_check(&mut self, width: Width, op: JumpOp, dst: Reg, src: Operand, target: u32) -> bool {
        if width != Width::W64 || src != Operand::Imm(0) {
            return false;
        }
        let value = self.get(dst);
        let Some(known) = self.known(value) else { return false };
        let (valid, null) = match op {
            JumpOp::Eq => (self.pc + 1, target),
            JumpOp::Ne => (target, self.pc + 1),
            _ => return false,
        };
        let condition = match known {
            Known::Found { exists, address } => {
                if self.flow.has_one_entry(valid) {
                    self.known.insert(address, Known::NonNull);
                    self.refined.insert(valid, (dst, address));
                }
                exists
            }
            Known::Frame(_) | Known::Map(_) | Known::Function(_) | Known::NonNull => self.constant(I64, 1),
        };
        self.branch_on(condition, valid, null);
        true
    }

    fn compare(&mut self, width: Width, op: JumpOp, dst: Reg, src: Operand) -> Value {
        let x = self.get_width(width, dst);
        let y = self.operand(width, src);
        let condition = match op {
            JumpOp::Set => {
                let common = self.builder.ins().band(x, y);
                let zero = self.constant(width_type(width), 0);
                return self.builder.ins().icmp(IntCC::NotEqual, common, zero);
            }
            JumpOp::Eq => IntCC::Equal,
            JumpOp::Ne => IntCC::NotEqual,
            JumpOp::Gt => IntCC::UnsignedGreaterThan,
            JumpOp::Ge => IntCC::UnsignedGreaterThanOrEqual,
            JumpOp::Lt => IntCC::UnsignedLessThan,
            JumpOp::Le => IntCC::UnsignedLessThanOrEqual,
            JumpOp::SGt => IntCC::SignedGreaterThan,
            JumpOp::SGe => IntCC::SignedGreaterThanOrEqual,
            JumpOp::SLt => IntCC::SignedLessThan,
            JumpOp::SLe => IntCC::SignedLessThanOrEqual,
        };
        self.builder.ins().icmp(condition, x, y)
    }

    /// Jumps when the frame's budget is spent, else takes one from it.
    pub(super) fn may_goto(&mut self, relative: i16) -> Result<bool, CompileError> {
        let target = self.target(i32::from(relative));
        if self.code.is_dead(target) {
            return Ok(true);
        }
        if self.code.is_dead(self.pc + 1) {
            self.goto(target);
            return Ok(false);
        }
        let Some(budget) = self.budget else { return Err(self.unsupported("may_goto")) };
        let left = self.builder.use_var(budget);
        let zero = self.constant(I64, 0);
        let spent = self.builder.ins().icmp(IntCC::Equal, left, zero);
        let one_less = self.builder.ins().iadd_imm_s(left, -1);
        self.builder.def_var(budget, one_less);
        self.branch_on(spent, target, self.pc + 1);
        Ok(false)
    }
}
