//! Arithmetic, moves, byte order.

use super::{Body, Known, width_type};
use crate::error::CompileError;
use beeline_isa::{AluOp, Endianness, Operand, Reg, Width};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I8, I16, I32, I64};
use cranelift_codegen::ir::{InstBuilder, Type, Value};

impl Body<'_, '_> {
    pub(super) fn arithmetic(
        &mut self,
        width: Width,
        op: AluOp,
        dst: Reg,
        src: Operand,
    ) -> Result<(), CompileError> {
        if let Some(address) = self.frame_arithmetic(width, op, dst, src) {
            return self.set(dst, address);
        }
        let x = self.get_width(width, dst);
        let result = match (op, src) {
            (AluOp::Div | AluOp::Mod | AluOp::SDiv | AluOp::SMod, Operand::Imm(number)) => {
                self.divide_by_constant(width, op, x, number)
            }
            (AluOp::Div | AluOp::Mod, Operand::Reg(divisor)) => {
                let y = self.get_width(width, divisor);
                if width == Width::W64 { self.divide64(op, x, y) } else { self.divide(I32, op, x, y) }
            }
            (AluOp::SDiv | AluOp::SMod, Operand::Reg(divisor)) => {
                let y = self.get_width(width, divisor);
                self.divide_signed(width_type(width), op, x, y)
            }
            _ => {
                let y = self.operand(width, src);
                self.simple(op, x, y)
            }
        };
        self.set_width(width, dst, result)
    }

    /// The frame pointer moved by a constant stays an address of the frame.
    fn frame_arithmetic(&mut self, width: Width, op: AluOp, dst: Reg, src: Operand) -> Option<Value> {
        let (Width::W64, Operand::Imm(number)) = (width, src) else { return None };
        let x = self.get(dst);
        let Some(Known::Frame(offset)) = self.known(x) else { return None };
        let moved = match op {
            AluOp::Add => offset.checked_add(number)?,
            AluOp::Sub => offset.checked_sub(number)?,
            _ => return None,
        };
        self.in_frame(moved, 0).then(|| self.frame_address(moved))
    }

    fn simple(&mut self, op: AluOp, x: Value, y: Value) -> Value {
        let ins = self.builder.ins();
        match op {
            AluOp::Add => ins.iadd(x, y),
            AluOp::Sub => ins.isub(x, y),
            AluOp::Mul => ins.imul(x, y),
            AluOp::Or => ins.bor(x, y),
            AluOp::And => ins.band(x, y),
            AluOp::Xor => ins.bxor(x, y),
            // Cranelift masks the count to the width of x, as eBPF does.
            AluOp::Lsh => ins.ishl(x, y),
            AluOp::Rsh => ins.ushr(x, y),
            AluOp::Arsh => ins.sshr(x, y),
            AluOp::Div => ins.udiv(x, y),
            AluOp::Mod => ins.urem(x, y),
            AluOp::SDiv => ins.sdiv(x, y),
            AluOp::SMod => ins.srem(x, y),
        }
    }

    fn divide_by_constant(&mut self, width: Width, op: AluOp, x: Value, number: i32) -> Value {
        let ty = width_type(width);
        match (op, number) {
            (AluOp::Div | AluOp::SDiv, 0) => self.constant(ty, 0),
            (AluOp::Mod | AluOp::SMod, 0) => x,
            (AluOp::SDiv, -1) => self.builder.ins().ineg(x),
            (AluOp::SMod, -1) => self.constant(ty, 0),
            _ => {
                let y = self.constant(ty, i64::from(number));
                self.simple(op, x, y)
            }
        }
    }

    /// Unsigned, any divisor: divides by 1 in place of 0, then puts the right result in.
    fn divide(&mut self, ty: Type, op: AluOp, x: Value, y: Value) -> Value {
        let zero = self.constant(ty, 0);
        let one = self.constant(ty, 1);
        let by_zero = self.builder.ins().icmp(IntCC::Equal, y, zero);
        let divisor = self.builder.ins().select(by_zero, one, y);
        let quotient = self.simple(op, x, divisor);
        let defined = if op == AluOp::Div { zero } else { x };
        self.builder.ins().select(by_zero, defined, quotient)
    }

    /// 64-bit operands mostly fit in 32 bits, where the division is several times faster.
    fn divide64(&mut self, op: AluOp, x: Value, y: Value) -> Value {
        let wide = self.builder.create_block();
        let narrow = self.builder.create_block();
        let done = self.builder.create_block();
        let result = self.builder.append_block_param(done, I64);

        let both = self.builder.ins().bor(x, y);
        let high = self.builder.ins().ushr_imm_u(both, 32);
        self.builder.ins().brif(high, wide, &[], narrow, &[]);

        self.builder.switch_to_block(narrow);
        self.builder.seal_block(narrow);
        let (x32, y32) = (self.builder.ins().ireduce(I32, x), self.builder.ins().ireduce(I32, y));
        let short = self.divide(I32, op, x32, y32);
        let short = self.builder.ins().uextend(I64, short);
        self.builder.ins().jump(done, &[short.into()]);

        self.builder.switch_to_block(wide);
        self.builder.seal_block(wide);
        let long = self.divide(I64, op, x, y);
        self.builder.ins().jump(done, &[long.into()]);

        self.builder.switch_to_block(done);
        self.builder.seal_block(done);
        result
    }

    /// Signed, any divisor. For the two that would trap, 0 and -1, the result needs no division:
    /// x / y = -(x & y), x % y = x & !y.
    fn divide_signed(&mut self, ty: Type, op: AluOp, x: Value, y: Value) -> Value {
        let one = self.constant(ty, 1);
        let above = self.builder.ins().iadd(y, one);
        let special = self.builder.ins().icmp(IntCC::UnsignedLessThanOrEqual, above, one);
        let divisor = self.builder.ins().select(special, one, y);
        let quotient = self.simple(op, x, divisor);
        let defined = if op == AluOp::SDiv {
            let masked = self.builder.ins().band(x, y);
            self.builder.ins().ineg(masked)
        } else {
            let inverted = self.builder.ins().bnot(y);
            self.builder.ins().band(x, inverted)
        };
        self.builder.ins().select(special, defined, quotient)
    }

    pub(super) fn mov(&mut self, width: Width, dst: Reg, src: Operand) -> Result<(), CompileError> {
        let value = self.operand(width, src);
        self.set_width(width, dst, value)
    }

    pub(super) fn mov_sign_extended(
        &mut self,
        width: Width,
        dst: Reg,
        src: Reg,
        bits: u8,
    ) -> Result<(), CompileError> {
        let value = self.get(src);
        let narrow = self.builder.ins().ireduce(bits_type(bits), value);
        let wide = self.builder.ins().sextend(width_type(width), narrow);
        self.set_width(width, dst, wide)
    }

    pub(super) fn negate(&mut self, width: Width, dst: Reg) -> Result<(), CompileError> {
        let value = self.get_width(width, dst);
        let negated = self.builder.ins().ineg(value);
        self.set_width(width, dst, negated)
    }

    /// Only little-endian machines are compiled for.
    pub(super) fn byte_order(&mut self, kind: Endianness, dst: Reg, bits: u8) -> Result<(), CompileError> {
        let value = self.get(dst);
        let narrow = if bits == 64 { value } else { self.builder.ins().ireduce(bits_type(bits), value) };
        let ordered = match kind {
            Endianness::ToLittle => narrow,
            Endianness::ToBig | Endianness::Swap => self.builder.ins().bswap(narrow),
        };
        let wide = if bits == 64 { ordered } else { self.builder.ins().uextend(I64, ordered) };
        self.set(dst, wide)
    }

    /// Writes a result; one of 32 bits is zero-extended.
    fn set_width(&mut self, width: Width, dst: Reg, value: Value) -> Result<(), CompileError> {
        let value = match width {
            Width::W32 => self.builder.ins().uextend(I64, value),
            Width::W64 => value,
        };
        self.set(dst, value)
    }
}

fn bits_type(bits: u8) -> Type {
    match bits {
        8 => I8,
        16 => I16,
        32 => I32,
        _ => I64,
    }
}
