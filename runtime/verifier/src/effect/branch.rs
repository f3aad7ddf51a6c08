//! Conditional jumps on numbers: whether the outcome is known, and what each outcome tells.

use crate::bounds::Scalar;
use crate::tnum::Tnum;
use beeline_isa::{JumpOp, Width};

/// One view of a set: the comparison looks at 64 or at the low 32 bits, widened.
struct View {
    tnum: Tnum,
    signed: (i64, i64),
    unsigned: (u64, u64),
}

fn view(set: &Scalar, width: Width) -> View {
    match width {
        Width::W64 => View { tnum: set.tnum, signed: (set.smin, set.smax), unsigned: (set.umin, set.umax) },
        Width::W32 => View {
            tnum: set.tnum.low(),
            signed: (set.s32_min.into(), set.s32_max.into()),
            unsigned: (set.u32_min.into(), set.u32_max.into()),
        },
    }
}

/// The outcome of `a op b`, when it is the same for all members.
pub(crate) fn decide(op: JumpOp, width: Width, a: &Scalar, b: &Scalar) -> Option<bool> {
    let (x, y) = (view(a, width), view(b, width));
    match op {
        JumpOp::Eq => equal(&x, &y),
        JumpOp::Ne => equal(&x, &y).map(|is| !is),
        // The kernel knows an outcome only when one of them is a constant.
        JumpOp::Set if !x.tnum.is_const() && !y.tnum.is_const() => None,
        JumpOp::Set if x.tnum.value & y.tnum.value != 0 => Some(true),
        JumpOp::Set if x.tnum.max() & y.tnum.max() == 0 => Some(false),
        JumpOp::Set => None,
        JumpOp::Gt => greater(x.unsigned, y.unsigned),
        JumpOp::Lt => greater(y.unsigned, x.unsigned),
        JumpOp::Ge => greater(y.unsigned, x.unsigned).map(|is| !is),
        JumpOp::Le => greater(x.unsigned, y.unsigned).map(|is| !is),
        JumpOp::SGt => greater(x.signed, y.signed),
        JumpOp::SLt => greater(y.signed, x.signed),
        JumpOp::SGe => greater(y.signed, x.signed).map(|is| !is),
        JumpOp::SLe => greater(x.signed, y.signed).map(|is| !is),
    }
}

fn equal(x: &View, y: &View) -> Option<bool> {
    if x.tnum.is_const() && y.tnum.is_const() {
        return Some(x.tnum.value == y.tnum.value);
    }
    let apart = !x.tnum.overlaps(y.tnum)
        || greater(x.unsigned, y.unsigned) == Some(true)
        || greater(y.unsigned, x.unsigned) == Some(true)
        || greater(x.signed, y.signed) == Some(true)
        || greater(y.signed, x.signed) == Some(true);
    apart.then_some(false)
}

/// Whether every number of the first range is greater than every one of the second, or none is.
fn greater<T: PartialOrd>(x: (T, T), y: (T, T)) -> Option<bool> {
    if x.0 > y.1 {
        Some(true)
    } else if x.1 <= y.0 {
        Some(false)
    } else {
        None
    }
}

/// The comparison that holds where `op` does not; `Set` has none.
fn opposite(op: JumpOp) -> JumpOp {
    match op {
        JumpOp::Eq => JumpOp::Ne,
        JumpOp::Ne => JumpOp::Eq,
        JumpOp::Set => JumpOp::Set,
        JumpOp::Gt => JumpOp::Le,
        JumpOp::Le => JumpOp::Gt,
        JumpOp::Ge => JumpOp::Lt,
        JumpOp::Lt => JumpOp::Ge,
        JumpOp::SGt => JumpOp::SLe,
        JumpOp::SLe => JumpOp::SGt,
        JumpOp::SGe => JumpOp::SLt,
        JumpOp::SLt => JumpOp::SGe,
    }
}

/// The sets of `a` and `b` where `a op b` has the outcome `taken`. Where nothing is left (the outcome cannot be), the sets
/// come back as they were.
pub(crate) fn refine(op: JumpOp, width: Width, a: &Scalar, b: &Scalar, taken: bool) -> (Scalar, Scalar) {
    let (mut x, mut y) = (*a, *b);
    match (op, taken) {
        (JumpOp::Set, true) => bits_set(width, &mut x, &mut y),
        (JumpOp::Set, false) => bits_clear(width, &mut x, &mut y),
        (op, true) => ordered(op, width, &mut x, &mut y),
        (op, false) => ordered(opposite(op), width, &mut x, &mut y),
    }
    let (x, y) = (x.sync().sync(), y.sync().sync());
    if x.is_possible() && y.is_possible() { (x, y) } else { (*a, *b) }
}

fn ordered(op: JumpOp, width: Width, a: &mut Scalar, b: &mut Scalar) {
    match op {
        JumpOp::Eq => same(width, a, b),
        JumpOp::Ne => {
            differs(width, a, b);
            differs(width, b, a);
        }
        JumpOp::Set => {}
        JumpOp::Gt => less(width, b, a, false, 1),
        JumpOp::Ge => less(width, b, a, false, 0),
        JumpOp::Lt => less(width, a, b, false, 1),
        JumpOp::Le => less(width, a, b, false, 0),
        JumpOp::SGt => less(width, b, a, true, 1),
        JumpOp::SGe => less(width, b, a, true, 0),
        JumpOp::SLt => less(width, a, b, true, 1),
        JumpOp::SLe => less(width, a, b, true, 0),
    }
}

/// `a + apart <= b`.
fn less(width: Width, a: &mut Scalar, b: &mut Scalar, signed: bool, apart: u8) {
    match (width, signed) {
        (Width::W64, false) => {
            a.umax = a.umax.min(b.umax.saturating_sub(apart.into()));
            b.umin = b.umin.max(a.umin.saturating_add(apart.into()));
        }
        (Width::W64, true) => {
            a.smax = a.smax.min(b.smax.saturating_sub(apart.into()));
            b.smin = b.smin.max(a.smin.saturating_add(apart.into()));
        }
        (Width::W32, false) => {
            a.u32_max = a.u32_max.min(b.u32_max.saturating_sub(apart.into()));
            b.u32_min = b.u32_min.max(a.u32_min.saturating_add(apart.into()));
        }
        (Width::W32, true) => {
            a.s32_max = a.s32_max.min(b.s32_max.saturating_sub(apart.into()));
            b.s32_min = b.s32_min.max(a.s32_min.saturating_add(apart.into()));
        }
    }
}

fn same(width: Width, a: &mut Scalar, b: &mut Scalar) {
    let (u32_min, u32_max) = (a.u32_min.max(b.u32_min), a.u32_max.min(b.u32_max));
    let (s32_min, s32_max) = (a.s32_min.max(b.s32_min), a.s32_max.min(b.s32_max));
    if width == Width::W64 {
        let tnum = if a.tnum.overlaps(b.tnum) { a.tnum.intersect(b.tnum) } else { a.tnum };
        let both = Scalar {
            tnum,
            umin: a.umin.max(b.umin),
            umax: a.umax.min(b.umax),
            smin: a.smin.max(b.smin),
            smax: a.smax.min(b.smax),
            u32_min,
            u32_max,
            s32_min,
            s32_max,
        };
        (*a, *b) = (both, both);
        return;
    }
    let (low_a, low_b) = (a.tnum.low(), b.tnum.low());
    let low = if low_a.overlaps(low_b) { low_a.intersect(low_b) } else { low_a };
    for set in [a, b] {
        set.tnum = set.tnum.with_low(low);
        (set.u32_min, set.u32_max, set.s32_min, set.s32_max) = (u32_min, u32_max, s32_min, s32_max);
    }
}

/// Trims an end of `a` that is the constant `b`.
fn differs(width: Width, a: &mut Scalar, b: &Scalar) {
    match width {
        Width::W64 => {
            let Some(value) = b.as_const() else { return };
            trim(&mut a.umin, &mut a.umax, value, 1);
            trim(&mut a.smin, &mut a.smax, value as i64, 1);
        }
        Width::W32 => {
            let Some(value) = b.as_const32() else { return };
            trim(&mut a.u32_min, &mut a.u32_max, value, 1);
            trim(&mut a.s32_min, &mut a.s32_max, value as i32, 1);
        }
    }
}

fn trim<T>(min: &mut T, max: &mut T, value: T, one: T)
where
    T: Copy + PartialOrd + std::ops::Add<Output = T> + std::ops::Sub<Output = T>,
{
    if *min < *max && *min == value {
        *min = *min + one;
    } else if *min < *max && *max == value {
        *max = *max - one;
    }
}

/// `a & b != 0`: with a single bit in `b`, that bit of `a` is set.
fn bits_set(width: Width, a: &mut Scalar, b: &mut Scalar) {
    let (x, y) = (*a, *b);
    for (set, other) in [(a, y), (b, x)] {
        let bits = match width {
            Width::W64 => other.as_const(),
            Width::W32 => other.as_const32().map(u64::from),
        };
        if let Some(bit) = bits.filter(|bits| bits.is_power_of_two())
            && set.tnum.mask & bit != 0
        {
            set.tnum = Tnum { value: set.tnum.value | bit, mask: set.tnum.mask & !bit };
        }
    }
}

/// `a & b == 0`: the bits of a constant `b` are clear in `a`.
fn bits_clear(width: Width, a: &mut Scalar, b: &mut Scalar) {
    let (x, y) = (*a, *b);
    for (set, other) in [(a, y), (b, x)] {
        let bits = match width {
            Width::W64 => other.as_const(),
            Width::W32 => other.as_const32().map(u64::from),
        };
        if let Some(bits) = bits.filter(|bits| set.tnum.value & bits == 0) {
            // As the kernel, which forgets the ranges here.
            *set = Scalar { tnum: set.tnum.and(Tnum::constant(!bits)), ..Scalar::UNKNOWN };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bounds::tests::member;
    use proptest::prelude::*;

    const OPS: [JumpOp; 11] = [
        JumpOp::Eq,
        JumpOp::Ne,
        JumpOp::Set,
        JumpOp::Gt,
        JumpOp::Ge,
        JumpOp::Lt,
        JumpOp::Le,
        JumpOp::SGt,
        JumpOp::SGe,
        JumpOp::SLt,
        JumpOp::SLe,
    ];

    fn holds(op: JumpOp, width: Width, x: u64, y: u64) -> bool {
        let (x, y, s, t) = match width {
            Width::W64 => (x, y, x as i64, y as i64),
            Width::W32 => (x & 0xffff_ffff, y & 0xffff_ffff, i64::from(x as i32), i64::from(y as i32)),
        };
        match op {
            JumpOp::Eq => x == y,
            JumpOp::Ne => x != y,
            JumpOp::Set => x & y != 0,
            JumpOp::Gt => x > y,
            JumpOp::Ge => x >= y,
            JumpOp::Lt => x < y,
            JumpOp::Le => x <= y,
            JumpOp::SGt => s > t,
            JumpOp::SGe => s >= t,
            JumpOp::SLt => s < t,
            JumpOp::SLe => s <= t,
        }
    }

    proptest! {
        #[test]
        fn outcomes_and_refinements_hold((a, x) in member(), (b, y) in member()) {
            for op in OPS {
                for width in [Width::W32, Width::W64] {
                    let taken = holds(op, width, x, y);
                    let decided = decide(op, width, &a, &b);
                    prop_assert!(decided.is_none_or(|d| d == taken), "{op:?} {width:?} {a:?} {b:?}");
                    let (left, right) = refine(op, width, &a, &b, taken);
                    prop_assert!(left.contains(x), "{op:?} {width:?} {taken} {a:?} {b:?}: {left:?} lost {x:#x}");
                    prop_assert!(right.contains(y), "{op:?} {width:?} {taken} {a:?} {b:?}: {right:?} lost {y:#x}");
                }
            }
        }
    }

    #[test]
    fn a_comparison_bounds_its_operand() {
        let ten = Scalar::constant(10);
        let (below, _) = refine(JumpOp::Lt, Width::W64, &Scalar::UNKNOWN, &ten, true);
        assert_eq!((below.umin, below.umax), (0, 9));
        let (from, _) = refine(JumpOp::Lt, Width::W64, &Scalar::UNKNOWN, &ten, false);
        assert_eq!((from.umin, from.umax), (10, u64::MAX));
        let (set, _) = refine(JumpOp::Set, Width::W64, &Scalar::UNKNOWN, &Scalar::constant(8), true);
        assert_eq!((set.tnum.value, set.tnum.mask), (8, !8));
    }
}
