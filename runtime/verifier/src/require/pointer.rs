//! What arithmetic on pointers requires.

use crate::refusal::{Checked, refuse};
use crate::state::{Kind, RegState};
use beeline_isa::{AluOp, Reg, Width};

/// Largest offset that a pointer may be moved by, and its offsets may reach (`BPF_MAX_VAR_OFF`).
pub(crate) const OFFSET_MAX: i64 = 1 << 29;

/// The operator, as the kernel writes it.
pub(crate) fn symbol(op: AluOp) -> &'static str {
    match op {
        AluOp::Add => "+=",
        AluOp::Sub => "-=",
        AluOp::Mul => "*=",
        AluOp::Div => "/=",
        AluOp::SDiv => "s/=",
        AluOp::Mod => "%=",
        AluOp::SMod => "s%=",
        AluOp::Or => "|=",
        AluOp::And => "&=",
        AluOp::Xor => "^=",
        AluOp::Lsh => "<<=",
        AluOp::Rsh => ">>=",
        AluOp::Arsh => "s>>=",
    }
}

/// `pointer op number`, or `number += pointer`, is allowed at all. `dst` is the register that receives it; the pointer is
/// its first operand or, with `reversed`, its second.
pub(crate) fn movable(
    op: AluOp,
    width: Width,
    dst: Reg,
    pointer: &RegState,
    by: &RegState,
    reversed: bool,
) -> Checked {
    let (number, kind) = (dst.0, pointer.kind);
    if width == Width::W32 {
        refuse!("R{number} 32-bit pointer arithmetic prohibited");
    }
    if kind.is_nullable() {
        refuse!("R{number} pointer arithmetic on {} prohibited, null-check it first", kind.name());
    }
    let fixed = match kind {
        Kind::MapPtr { .. } => by.value.as_const() != Some(0),
        Kind::PacketEnd | Kind::Func { .. } => true,
        _ => false,
    };
    if fixed {
        refuse!("R{number} pointer arithmetic on {} prohibited", kind.name());
    }
    sane(pointer)?;
    sane_by(kind, by)?;
    match op {
        AluOp::Add => Ok(()),
        AluOp::Sub if reversed => refuse!("R{number} tried to subtract pointer from scalar"),
        AluOp::Sub if matches!(kind, Kind::Stack { .. }) => {
            refuse!("R{number} subtraction from stack pointer prohibited")
        }
        AluOp::Sub => Ok(()),
        AluOp::And | AluOp::Or | AluOp::Xor => {
            refuse!("R{number} bitwise operator {} on pointer prohibited", symbol(op))
        }
        _ => refuse!("R{number} pointer arithmetic with {} operator prohibited", symbol(op)),
    }
}

/// A pointer's offsets stay far from overflow.
pub(crate) fn sane(pointer: &RegState) -> Checked {
    let name = pointer.kind.name();
    if i64::from(pointer.off).abs() >= OFFSET_MAX {
        refuse!("{name} pointer offset {} is not allowed", pointer.off);
    }
    sane_value(name, pointer)
}

/// What a pointer is moved by stays far from overflow.
fn sane_by(kind: Kind, by: &RegState) -> Checked {
    sane_value(kind.name(), by)
}

fn sane_value(name: &str, reg: &RegState) -> Checked {
    let least = reg.value.smin;
    if let Some(value) = reg.value.as_const().map(|value| value as i64)
        && (value >= OFFSET_MAX || value <= -OFFSET_MAX)
    {
        refuse!("math between {name} pointer and {value} is not allowed");
    }
    if least == i64::MIN {
        refuse!("math between {name} pointer and register with unbounded min value is not allowed");
    }
    if least >= OFFSET_MAX || least <= -OFFSET_MAX {
        refuse!("value {least} makes {name} pointer be out of bounds");
    }
    Ok(())
}
