//! Arithmetic and comparisons on the values of registers.

use beeline_isa::{AluOp, Endianness, JumpOp, Width};

/// `x op y`. A 32-bit operation looks at the low halves only; its result is zero-extended.
#[inline]
pub fn arithmetic(width: Width, op: AluOp, x: u64, y: u64) -> u64 {
    match width {
        Width::W32 => u64::from(arithmetic32(op, x as u32, y as u32)),
        Width::W64 => arithmetic64(op, x, y),
    }
}

#[inline]
fn arithmetic64(op: AluOp, x: u64, y: u64) -> u64 {
    let (signed_x, signed_y) = (x as i64, y as i64);
    match op {
        AluOp::Add => x.wrapping_add(y),
        AluOp::Sub => x.wrapping_sub(y),
        AluOp::Mul => x.wrapping_mul(y),
        AluOp::Div => x.checked_div(y).unwrap_or(0),
        AluOp::SDiv if y == 0 => 0,
        AluOp::SDiv => signed_x.wrapping_div(signed_y) as u64,
        AluOp::Mod => x.checked_rem(y).unwrap_or(x),
        AluOp::SMod if y == 0 => x,
        AluOp::SMod => signed_x.wrapping_rem(signed_y) as u64,
        AluOp::Or => x | y,
        AluOp::And => x & y,
        AluOp::Xor => x ^ y,
        AluOp::Lsh => x.wrapping_shl(y as u32),
        AluOp::Rsh => x.wrapping_shr(y as u32),
        AluOp::Arsh => signed_x.wrapping_shr(y as u32) as u64,
    }
}

#[inline]
fn arithmetic32(op: AluOp, x: u32, y: u32) -> u32 {
    let (signed_x, signed_y) = (x as i32, y as i32);
    match op {
        AluOp::Add => x.wrapping_add(y),
        AluOp::Sub => x.wrapping_sub(y),
        AluOp::Mul => x.wrapping_mul(y),
        AluOp::Div => x.checked_div(y).unwrap_or(0),
        AluOp::SDiv if y == 0 => 0,
        AluOp::SDiv => signed_x.wrapping_div(signed_y) as u32,
        AluOp::Mod => x.checked_rem(y).unwrap_or(x),
        AluOp::SMod if y == 0 => x,
        AluOp::SMod => signed_x.wrapping_rem(signed_y) as u32,
        AluOp::Or => x | y,
        AluOp::And => x & y,
        AluOp::Xor => x ^ y,
        AluOp::Lsh => x.wrapping_shl(y),
        AluOp::Rsh => x.wrapping_shr(y),
        AluOp::Arsh => signed_x.wrapping_shr(y) as u32,
    }
}

/// `-x`; the 32-bit result is zero-extended.
pub fn negate(width: Width, x: u64) -> u64 {
    arithmetic(width, AluOp::Sub, 0, x)
}

/// The low `bits` (8, 16 or 32) of `x`, sign-extended to the width; a 32-bit result is zero-extended.
pub fn sign_extend(width: Width, bits: u8, x: u64) -> u64 {
    let extended = match bits {
        8 => x as i8 as i64 as u64,
        16 => x as i16 as i64 as u64,
        _ => x as i32 as i64 as u64,
    };
    truncate(width, extended)
}

/// What a move of this width leaves of `x`.
pub fn truncate(width: Width, x: u64) -> u64 {
    match width {
        Width::W32 => u64::from(x as u32),
        Width::W64 => x,
    }
}

/// Converts the byte order of the low `bits` (16, 32 or 64), on a little-endian machine.
pub fn byte_order(kind: Endianness, bits: u8, x: u64) -> u64 {
    match (kind, bits) {
        (Endianness::ToLittle, 16) => u64::from(x as u16),
        (Endianness::ToLittle, 32) => u64::from(x as u32),
        (Endianness::ToLittle, _) => x,
        (_, 16) => u64::from((x as u16).swap_bytes()),
        (_, 32) => u64::from((x as u32).swap_bytes()),
        (_, _) => x.swap_bytes(),
    }
}

/// `x op y`. A 32-bit comparison looks at the low halves only.
#[inline]
pub fn compare(width: Width, op: JumpOp, x: u64, y: u64) -> bool {
    let (x, y) = match width {
        Width::W64 => (x, y),
        // Sign extension keeps the order of unsigned 32-bit numbers, too, and of bits.
        Width::W32 => (x as i32 as i64 as u64, y as i32 as i64 as u64),
    };
    let (signed_x, signed_y) = (x as i64, y as i64);
    match op {
        JumpOp::Eq => x == y,
        JumpOp::Ne => x != y,
        JumpOp::Set => x & y != 0,
        JumpOp::Gt => x > y,
        JumpOp::Ge => x >= y,
        JumpOp::Lt => x < y,
        JumpOp::Le => x <= y,
        JumpOp::SGt => signed_x > signed_y,
        JumpOp::SGe => signed_x >= signed_y,
        JumpOp::SLt => signed_x < signed_y,
        JumpOp::SLe => signed_x <= signed_y,
    }
}
