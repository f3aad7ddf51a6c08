//! What moves and arithmetic do to registers.

use crate::bounds::Scalar;
use crate::effect::arithmetic;
use crate::explore::Explorer;
use crate::refusal::{Checked, refuse};
use crate::require::pointer::symbol;
use crate::require::register::constant_operand;
use crate::state::{Kind, RegState};
use beeline_isa::{AluOp, Endianness, Imm64, Operand, Reg, Width};

impl Explorer<'_> {
    /// `dst = dst op src`.
    pub(crate) fn alu(&mut self, width: Width, op: AluOp, dst: Reg, src: Operand) -> Checked {
        constant_operand(width, op, src)?;
        let b = self.operand(src, width)?;
        let a = self.readable(dst)?;
        let result = match (a.kind.is_pointer(), b.kind.is_pointer()) {
            (false, false) => self.number(width, op, &a, &b),
            (true, true) if op == AluOp::Sub => {
                self.pointer_read_as_number(&a);
                self.pointer_read_as_number(&b);
                any(width)
            }
            (true, true) => refuse!("R{} pointer {} pointer prohibited", dst.0, symbol(op)),
            (true, false) | (false, true) if width == Width::W32 && op == AluOp::Sub => {
                self.pointer_read_as_number(&a);
                self.pointer_read_as_number(&b);
                any(width)
            }
            (true, false) => self.move_pointer(op, width, dst, &a, &b, false)?,
            (false, true) => self.move_pointer(op, width, dst, &b, &a, true)?,
        };
        self.state.set(dst, result);
        Ok(())
    }

    fn number(&mut self, width: Width, op: AluOp, a: &RegState, b: &RegState) -> RegState {
        let node = self.precision.join(a.node, b.node);
        RegState { node, ..RegState::scalar(arithmetic::apply(op, width, a.value, b.value)) }
    }

    /// `dst = src`.
    pub(crate) fn mov(&mut self, width: Width, dst: Reg, src: Operand) -> Checked {
        let mut value = self.operand(src, width)?;
        if let Operand::Reg(from) = src {
            let is_whole = width == Width::W64 || value.value.umax <= u64::from(u32::MAX);
            match value.kind {
                Kind::Scalar if is_whole => value = self.shared(from, value),
                Kind::Scalar => value = RegState { id: 0, value: value.value.zero_extend(32), ..value },
                _ if width == Width::W32 => {
                    self.pointer_read_as_number(&value);
                    value = any(width);
                }
                _ => {}
            }
        }
        self.state.set(dst, value);
        Ok(())
    }

    /// The number in `from`, with an id that tells its copies.
    fn shared(&mut self, from: Reg, value: RegState) -> RegState {
        if value.id != 0 || value.as_const().is_some() {
            return value;
        }
        let value = self.with_id(value);
        self.state.set(from, value);
        value
    }

    /// `dst = sign-extended low bits of src`.
    pub(crate) fn mov_sign_extended(&mut self, width: Width, dst: Reg, src: Reg, bits: u8) -> Checked {
        let from = self.readable(src)?;
        let value = if from.kind == Kind::Scalar {
            let given = match width {
                Width::W64 => from.value,
                Width::W32 => from.value.low_signed(),
            };
            let extended = given.sign_extend(bits.into());
            let unchanged = width == Width::W64 && from.value.umax < 1 << (bits - 1);
            if unchanged {
                // As the kernel: equal, and yet less is known of the copy.
                RegState { value: extended, ..self.shared(src, from) }
            } else {
                let value = if width == Width::W32 { extended.zero_extend(32) } else { extended };
                RegState { value, id: 0, ..from }
            }
        } else {
            self.pointer_read_as_number(&from);
            any(width)
        };
        self.state.set(dst, value);
        Ok(())
    }

    /// `dst = -dst`.
    pub(crate) fn negate(&mut self, width: Width, dst: Reg) -> Checked {
        let from = self.readable(dst)?;
        let value = if from.kind == Kind::Scalar {
            RegState { value: arithmetic::negate(width, from.value), id: 0, ..from }
        } else {
            self.pointer_read_as_number(&from);
            any(width)
        };
        self.state.set(dst, value);
        Ok(())
    }

    /// Byte order of the low `bits` of `dst`.
    pub(crate) fn convert_bytes(&mut self, kind: Endianness, dst: Reg, bits: u8) -> Checked {
        let from = self.readable(dst)?;
        let bits = u32::from(bits);
        let value = if from.kind != Kind::Scalar {
            self.pointer_read_as_number(&from);
            Scalar::of_bits(bits)
        } else if kind == Endianness::ToLittle {
            from.value.zero_extend(bits)
        } else {
            // The bits move, the ranges mean nothing any more.
            Scalar::from_tnum(from.value.tnum.swap_bytes(bits))
        };
        let node = if from.kind == Kind::Scalar { from.node } else { 0 };
        self.state.set(dst, RegState { node, ..RegState::scalar(value) });
        Ok(())
    }

    /// `dst = imm64`.
    pub(crate) fn load_immediate(&mut self, dst: Reg, value: Imm64) -> Checked {
        let value = match value {
            Imm64::Value(value) => RegState::constant(value),
            Imm64::Map(index) => RegState::pointer(Kind::MapPtr { map: map(index), nullable: false }),
            Imm64::MapValue { map: index, offset } => {
                let kind = Kind::MapValue { map: map(index), nullable: false };
                RegState { off: offset as i32, ..RegState::pointer(kind) }
            }
            Imm64::Func(_) => {
                let Some(subprogram) = self.code.callee(self.pc) else {
                    refuse!("call to invalid destination")
                };
                self.facts.callbacks[subprogram] = true;
                RegState::pointer(Kind::Func { subprogram: subprogram as u16 })
            }
            Imm64::BtfId(id) => refuse!("kernel variable with BTF id {id} is not supported in userspace"),
        };
        self.state.set(dst, value);
        Ok(())
    }
}

fn map(index: u32) -> crate::state::MapRef {
    crate::state::MapRef { index, inner: false }
}

/// Any number that an operation of this width gives.
fn any(width: Width) -> RegState {
    RegState::scalar(match width {
        Width::W64 => Scalar::UNKNOWN,
        Width::W32 => Scalar::of_bits(32),
    })
}
