//! Arithmetic on sets of numbers: each result holds every number that some members of the operands give.

use crate::bounds::Scalar;
use crate::tnum::Tnum;
use beeline_isa::{AluOp, Width};

/// `a op b`, as the instruction computes it. Of results that the kernel does not compute it knows nothing, not even that a
/// 32-bit operation clears the upper half.
pub(crate) fn apply(op: AluOp, width: Width, a: Scalar, b: Scalar) -> Scalar {
    let exact = match (op, width) {
        (AluOp::Add, _) => add(a, b),
        (AluOp::Sub, _) => sub(a, b),
        (AluOp::Mul, _) => mul(a, b),
        (AluOp::And, _) => and(a, b),
        (AluOp::Or, _) => or(a, b),
        (AluOp::Xor, _) => xor(a, b),
        (AluOp::Lsh | AluOp::Rsh | AluOp::Arsh, Width::W64) => match b.as_const() {
            // The kernel makes nothing of counts that the machine would mask.
            Some(count @ 0..64) => shift(op, a, count as u32),
            _ => return Scalar::UNKNOWN,
        },
        (AluOp::Lsh | AluOp::Rsh | AluOp::Arsh, Width::W32) => match b.as_const32() {
            Some(count @ 0..32) => shift32(op, a, count),
            _ => return Scalar::UNKNOWN,
        },
        (AluOp::Div | AluOp::SDiv | AluOp::Mod | AluOp::SMod, _) => return Scalar::UNKNOWN,
    };
    match width {
        Width::W64 => exact,
        Width::W32 => exact.zero_extend(32),
    }
}

/// `-a`.
pub(crate) fn negate(width: Width, a: Scalar) -> Scalar {
    apply(AluOp::Sub, width, Scalar::constant(0), a)
}

fn add(a: Scalar, b: Scalar) -> Scalar {
    let mut r = Scalar { tnum: a.tnum.add(b.tnum), ..Scalar::UNKNOWN };
    if let (Some(min), Some(max)) = (a.smin.checked_add(b.smin), a.smax.checked_add(b.smax)) {
        (r.smin, r.smax) = (min, max);
    }
    // Either no member overflows or all do; then the order of the ends is kept.
    let ((min, low), (max, high)) = (a.umin.overflowing_add(b.umin), a.umax.overflowing_add(b.umax));
    if low == high {
        (r.umin, r.umax) = (min, max);
    }
    if let (Some(min), Some(max)) = (a.s32_min.checked_add(b.s32_min), a.s32_max.checked_add(b.s32_max)) {
        (r.s32_min, r.s32_max) = (min, max);
    }
    let ((min, low), (max, high)) =
        (a.u32_min.overflowing_add(b.u32_min), a.u32_max.overflowing_add(b.u32_max));
    if low == high {
        (r.u32_min, r.u32_max) = (min, max);
    }
    r.sync()
}

fn sub(a: Scalar, b: Scalar) -> Scalar {
    let mut r = Scalar { tnum: a.tnum.sub(b.tnum), ..Scalar::UNKNOWN };
    if let (Some(min), Some(max)) = (a.smin.checked_sub(b.smax), a.smax.checked_sub(b.smin)) {
        (r.smin, r.smax) = (min, max);
    }
    let ((min, low), (max, high)) = (a.umin.overflowing_sub(b.umax), a.umax.overflowing_sub(b.umin));
    if low == high {
        (r.umin, r.umax) = (min, max);
    }
    if let (Some(min), Some(max)) = (a.s32_min.checked_sub(b.s32_max), a.s32_max.checked_sub(b.s32_min)) {
        (r.s32_min, r.s32_max) = (min, max);
    }
    let ((min, low), (max, high)) =
        (a.u32_min.overflowing_sub(b.u32_max), a.u32_max.overflowing_sub(b.u32_min));
    if low == high {
        (r.u32_min, r.u32_max) = (min, max);
    }
    r.sync()
}

fn mul(a: Scalar, b: Scalar) -> Scalar {
    let mut r = Scalar { tnum: a.tnum.mul(b.tnum), ..Scalar::UNKNOWN };
    if let Some(max) = a.umax.checked_mul(b.umax) {
        (r.umin, r.umax) = (a.umin * b.umin, max);
    }
    if let Some(max) = a.u32_max.checked_mul(b.u32_max) {
        (r.u32_min, r.u32_max) = (a.u32_min * b.u32_min, max);
    }
    let corners = |a: [i128; 2], b: [i128; 2]| {
        let products = [a[0] * b[0], a[0] * b[1], a[1] * b[0], a[1] * b[1]];
        (products.into_iter().min().unwrap_or(0), products.into_iter().max().unwrap_or(0))
    };
    let (min, max) = corners([a.smin.into(), a.smax.into()], [b.smin.into(), b.smax.into()]);
    if let (Ok(min), Ok(max)) = (min.try_into(), max.try_into()) {
        (r.smin, r.smax) = (min, max);
    }
    let (min, max) = corners([a.s32_min.into(), a.s32_max.into()], [b.s32_min.into(), b.s32_max.into()]);
    if let (Ok(min), Ok(max)) = (min.try_into(), max.try_into()) {
        (r.s32_min, r.s32_max) = (min, max);
    }
    r.sync()
}

fn and(a: Scalar, b: Scalar) -> Scalar {
    let mut r = Scalar { tnum: a.tnum.and(b.tnum), ..Scalar::UNKNOWN };
    r.umax = a.umax.min(b.umax);
    r.u32_max = a.u32_max.min(b.u32_max);
    r.sync()
}

fn or(a: Scalar, b: Scalar) -> Scalar {
    let mut r = Scalar { tnum: a.tnum.or(b.tnum), ..Scalar::UNKNOWN };
    r.umin = a.umin.max(b.umin);
    r.u32_min = a.u32_min.max(b.u32_min);
    r.sync()
}

fn xor(a: Scalar, b: Scalar) -> Scalar {
    Scalar { tnum: a.tnum.xor(b.tnum), ..Scalar::UNKNOWN }.sync()
}

/// Shifts by a count below 64.
fn shift(op: AluOp, a: Scalar, count: u32) -> Scalar {
    let mut r = Scalar::UNKNOWN;
    match op {
        AluOp::Lsh => {
            r.tnum = a.tnum.lsh(count);
            if a.umax <= u64::MAX >> count {
                (r.umin, r.umax) = (a.umin << count, a.umax << count);
            }
            let fits = |x: i64| (x << count) >> count == x;
            if fits(a.smin) && fits(a.smax) {
                (r.smin, r.smax) = (a.smin << count, a.smax << count);
            }
            // The first half of the sign extension `<<= 32; s>>= 32`.
            if count == 32 {
                (r.smin, r.smax) = (i64::from(a.s32_min) << 32, i64::from(a.s32_max) << 32);
            }
        }
        AluOp::Rsh => {
            r.tnum = a.tnum.rsh(count);
            (r.umin, r.umax) = (a.umin >> count, a.umax >> count);
        }
        _ => {
            r.tnum = a.tnum.arsh(count);
            (r.smin, r.smax) = (a.smin >> count, a.smax >> count);
        }
    }
    r.sync()
}

/// Shifts the low half by a count below 32.
fn shift32(op: AluOp, a: Scalar, count: u32) -> Scalar {
    let mut r = Scalar::UNKNOWN;
    match op {
        AluOp::Lsh => {
            r.tnum = a.tnum.low().lsh(count).low();
            if a.u32_max <= u32::MAX >> count {
                (r.u32_min, r.u32_max) = (a.u32_min << count, a.u32_max << count);
            }
        }
        AluOp::Rsh => {
            r.tnum = a.tnum.low().rsh(count);
            (r.u32_min, r.u32_max) = (a.u32_min >> count, a.u32_max >> count);
        }
        _ => {
            r.tnum = Tnum { ..a.tnum.arsh32(count) };
            (r.s32_min, r.s32_max) = (a.s32_min >> count, a.s32_max >> count);
        }
    }
    r.zero_extend(32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bounds::tests::member;
    use proptest::prelude::*;

    const OPS: [AluOp; 13] = [
        AluOp::Add,
        AluOp::Sub,
        AluOp::Mul,
        AluOp::Div,
        AluOp::SDiv,
        AluOp::Mod,
        AluOp::SMod,
        AluOp::Or,
        AluOp::And,
        AluOp::Xor,
        AluOp::Lsh,
        AluOp::Rsh,
        AluOp::Arsh,
    ];

    fn shifts(op: AluOp) -> bool {
        matches!(op, AluOp::Lsh | AluOp::Rsh | AluOp::Arsh)
    }

    fn compute64(op: AluOp, x: u64, y: u64) -> u64 {
        match op {
            AluOp::Add => x.wrapping_add(y),
            AluOp::Sub => x.wrapping_sub(y),
            AluOp::Mul => x.wrapping_mul(y),
            AluOp::Div => x.checked_div(y).unwrap_or(0),
            AluOp::SDiv if y == 0 => 0,
            AluOp::SDiv => (x as i64).wrapping_div(y as i64) as u64,
            AluOp::Mod => x.checked_rem(y).unwrap_or(x),
            AluOp::SMod if y == 0 => x,
            AluOp::SMod => (x as i64).wrapping_rem(y as i64) as u64,
            AluOp::Or => x | y,
            AluOp::And => x & y,
            AluOp::Xor => x ^ y,
            AluOp::Lsh => x << (y & 63),
            AluOp::Rsh => x >> (y & 63),
            AluOp::Arsh => ((x as i64) >> (y & 63)) as u64,
        }
    }

    fn compute32(op: AluOp, x: u32, y: u32) -> u32 {
        match op {
            AluOp::SDiv if y == 0 => 0,
            AluOp::SDiv => (x as i32).wrapping_div(y as i32) as u32,
            AluOp::SMod if y == 0 => x,
            AluOp::SMod => (x as i32).wrapping_rem(y as i32) as u32,
            AluOp::Lsh => x << (y & 31),
            AluOp::Rsh => x >> (y & 31),
            AluOp::Arsh => ((x as i32) >> (y & 31)) as u32,
            _ => compute64(op, x.into(), y.into()) as u32,
        }
    }

    proptest! {
        #[test]
        fn results_hold_what_members_give((a, x) in member(), (b, y) in member()) {
            for op in OPS {
                let (wide, narrow) = (apply(op, Width::W64, a, b), apply(op, Width::W32, a, b));
                let expected = compute64(op, x, y);
                prop_assert!(wide.contains(expected), "{op:?} {a:?} {b:?}: {wide:?} lacks {expected:#x}");
                let expected = u64::from(compute32(op, x as u32, y as u32));
                prop_assert!(narrow.contains(expected), "w32 {op:?} {a:?} {b:?}: {narrow:?} lacks {expected:#x}");
            }
            prop_assert!(negate(Width::W64, a).contains(x.wrapping_neg()));
            prop_assert!(negate(Width::W32, a).contains(u64::from((x as u32).wrapping_neg())));
        }

        #[test]
        fn constants_give_constants(x: u64, y in prop_oneof![any::<u64>(), 0u64..64]) {
            for op in [AluOp::Add, AluOp::Sub, AluOp::Mul, AluOp::And, AluOp::Or, AluOp::Xor, AluOp::Lsh, AluOp::Rsh] {
                let result = apply(op, Width::W64, Scalar::constant(x), Scalar::constant(y));
                let expected = if shifts(op) && y > 63 { None } else { Some(compute64(op, x, y)) };
                prop_assert_eq!(result.as_const(), expected);
            }
        }
    }
}
