//! What is known of a number: a tristate number with signed and unsigned ranges of all 64 and of the low 32 bits.
//!
//! The five views describe one set, the intersection of all. [`Scalar::sync`] carries knowledge from each to the others;
//! it only ever removes numbers that another view excludes already. What arithmetic does is in
//! [`effect::arithmetic`](crate::effect::arithmetic).

use crate::tnum::Tnum;

/// A set of 64-bit numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scalar {
    /// Bit by bit.
    pub tnum: Tnum,
    /// Least, signed.
    pub smin: i64,
    /// Greatest, signed.
    pub smax: i64,
    /// Least, unsigned.
    pub umin: u64,
    /// Greatest, unsigned.
    pub umax: u64,
    /// Least of the low half, signed.
    pub s32_min: i32,
    /// Greatest of the low half, signed.
    pub s32_max: i32,
    /// Least of the low half, unsigned.
    pub u32_min: u32,
    /// Greatest of the low half, unsigned.
    pub u32_max: u32,
}

impl Scalar {
    /// Every number.
    pub const UNKNOWN: Scalar = Scalar {
        tnum: Tnum::UNKNOWN,
        smin: i64::MIN,
        smax: i64::MAX,
        umin: 0,
        umax: u64::MAX,
        s32_min: i32::MIN,
        s32_max: i32::MAX,
        u32_min: 0,
        u32_max: u32::MAX,
    };

    /// The one number `value`.
    pub const fn constant(value: u64) -> Scalar {
        Scalar {
            tnum: Tnum::constant(value),
            smin: value as i64,
            smax: value as i64,
            umin: value,
            umax: value,
            s32_min: value as i32,
            s32_max: value as i32,
            u32_min: value as u32,
            u32_max: value as u32,
        }
    }

    /// The numbers `min..=max`, unsigned.
    pub fn unsigned_range(min: u64, max: u64) -> Scalar {
        Scalar { umin: min, umax: max, ..Scalar::UNKNOWN }.sync()
    }

    /// The numbers `min..=max`, signed.
    pub fn signed_range(min: i64, max: i64) -> Scalar {
        Scalar { smin: min, smax: max, ..Scalar::UNKNOWN }.sync()
    }

    /// The numbers of this tristate number.
    pub fn from_tnum(tnum: Tnum) -> Scalar {
        Scalar { tnum, ..Scalar::UNKNOWN }.sync()
    }

    /// The low half, sign-extended: as a 32-bit operation sees the number.
    pub fn low_signed(&self) -> Scalar {
        Scalar::signed_range(self.s32_min.into(), self.s32_max.into())
    }

    /// Any number of `bits` bits, zero-extended.
    pub fn of_bits(bits: u32) -> Scalar {
        if bits == 64 { Scalar::UNKNOWN } else { Scalar::unsigned_range(0, (1 << bits) - 1) }
    }

    /// The number, when there is only one.
    pub const fn as_const(&self) -> Option<u64> {
        if self.tnum.is_const() { Some(self.tnum.value) } else { None }
    }

    /// The low half, when there is only one.
    pub const fn as_const32(&self) -> Option<u32> {
        if self.tnum.low().is_const() { Some(self.tnum.value as u32) } else { None }
    }

    /// True when `number` is in the set.
    pub fn contains(&self, number: u64) -> bool {
        let (s, low) = (number as i64, number as u32);
        self.tnum.contains(number)
            && (self.smin..=self.smax).contains(&s)
            && (self.umin..=self.umax).contains(&number)
            && (self.s32_min..=self.s32_max).contains(&(low as i32))
            && (self.u32_min..=self.u32_max).contains(&low)
    }

    /// True when every number of `other` is in this set, judged view by view.
    pub fn includes(&self, other: &Scalar) -> bool {
        self.umin <= other.umin
            && self.umax >= other.umax
            && self.smin <= other.smin
            && self.smax >= other.smax
            && self.u32_min <= other.u32_min
            && self.u32_max >= other.u32_max
            && self.s32_min <= other.s32_min
            && self.s32_max >= other.s32_max
            && self.tnum.includes(other.tnum)
    }

    /// False when the views contradict each other, so that no number is in the set.
    pub fn is_possible(&self) -> bool {
        self.smin <= self.smax
            && self.umin <= self.umax
            && self.s32_min <= self.s32_max
            && self.u32_min <= self.u32_max
            && self.tnum.value <= self.umax
            && self.tnum.max() >= self.umin
            && self.tnum.value & self.tnum.mask == 0
    }

    /// Carries what each view knows to the others. A contradiction stays one ([`is_possible`](Self::is_possible)).
    pub fn sync(mut self) -> Scalar {
        self.ranges_from_tnum();
        for _ in 0..2 {
            self.low_ranges_from_wide();
            self.signs_of_low_half();
            self.signs_of_whole();
            self.wide_ranges_from_low();
        }
        self.signs_of_whole();
        self.tnum_from_ranges();
        self.ranges_from_tnum();
        self
    }

    fn ranges_from_tnum(&mut self) {
        let (value, max, mask) = (self.tnum.value, self.tnum.max(), self.tnum.mask);
        let sign = 1u64 << 63;
        self.smin = self.smin.max((value | mask & sign) as i64);
        self.smax = self.smax.min((value | mask & !sign) as i64);
        self.umin = self.umin.max(value);
        self.umax = self.umax.min(max);
        let (low, low_mask, sign) = (value as u32, mask as u32, 1u32 << 31);
        self.s32_min = self.s32_min.max((low | low_mask & sign) as i32);
        self.s32_max = self.s32_max.min((low | low_mask & !sign) as i32);
        self.u32_min = self.u32_min.max(low);
        self.u32_max = self.u32_max.min(low | low_mask);
    }

    fn tnum_from_ranges(&mut self) {
        if self.umin > self.umax || self.u32_min > self.u32_max {
            return;
        }
        let wide = self.tnum.intersect(Tnum::range(self.umin, self.umax));
        let low = wide.low().intersect(Tnum::range(self.u32_min.into(), self.u32_max.into()));
        self.tnum = wide.with_low(low);
    }

    /// A range that does not change the upper half bounds the lower one.
    fn low_ranges_from_wide(&mut self) {
        if self.umin >> 32 == self.umax >> 32 {
            self.bound_low(self.umin as u32, self.umax as u32);
        }
        if self.smin >> 32 == self.smax >> 32 {
            self.bound_low(self.smin as u32, self.smax as u32);
        }
        // From the last negative numbers over a carry of the upper half to the first positive ones.
        let crosses = ((self.smin >> 32) as u32).wrapping_add(1) == (self.smax >> 32) as u32;
        if crosses && (self.smin as i32) < 0 && self.smax as i32 >= 0 {
            self.s32_min = self.s32_min.max(self.smin as i32);
            self.s32_max = self.s32_max.min(self.smax as i32);
        }
    }

    fn bound_low(&mut self, min: u32, max: u32) {
        if min <= max {
            self.u32_min = self.u32_min.max(min);
            self.u32_max = self.u32_max.min(max);
        }
        if min as i32 <= max as i32 && (min <= max) {
            self.s32_min = self.s32_min.max(min as i32);
            self.s32_max = self.s32_max.min(max as i32);
        }
    }

    fn signs_of_low_half(&mut self) {
        let (smin, smax, umin, umax) = (self.s32_min, self.s32_max, self.u32_min, self.u32_max);
        let wide = signs((smin.into(), smax.into()), (umin.into(), umax.into()), 32);
        let ((smin, smax), (umin, umax)) = wide;
        (self.s32_min, self.s32_max) = (smin as i32, smax as i32);
        (self.u32_min, self.u32_max) = (umin as u32, umax as u32);
    }

    fn signs_of_whole(&mut self) {
        let ((smin, smax), (umin, umax)) =
            signs((self.smin.into(), self.smax.into()), (self.umin.into(), self.umax.into()), 64);
        (self.smin, self.smax) = (smin as i64, smax as i64);
        (self.umin, self.umax) = (umin as u64, umax as u64);
    }

    /// The bounds of the lower half tighten the ends of the whole.
    fn wide_ranges_from_low(&mut self) {
        const HIGH: u64 = !(u32::MAX as u64);
        let (low_min, low_max) = (u64::from(self.u32_min), u64::from(self.u32_max));
        self.umin = self.umin.max(self.umin & HIGH | low_min);
        self.umax = self.umax.min(self.umax & HIGH | low_max);
        self.smin = self.smin.max((self.smin as u64 & HIGH | low_min) as i64);
        self.smax = self.smax.min((self.smax as u64 & HIGH | low_max) as i64);
        if self.smin >= i64::from(i32::MIN) && self.smax <= i64::from(i32::MAX) {
            self.smin = self.smin.max(self.s32_min.into());
            self.smax = self.smax.min(self.s32_max.into());
        }
    }

    /// The low `bits` (8, 16, 32 or 64), zero-extended.
    pub fn zero_extend(self, bits: u32) -> Scalar {
        if bits == 64 {
            return self;
        }
        if bits == 32 {
            let low = Scalar {
                tnum: self.tnum.low(),
                umin: self.u32_min.into(),
                umax: self.u32_max.into(),
                smin: self.u32_min.into(),
                smax: self.u32_max.into(),
                ..self
            };
            return low.sync();
        }
        let keep = u64::MAX >> (64 - bits);
        let same_above = self.umin & !keep == self.umax & !keep;
        let (umin, umax) = if same_above { (self.umin & keep, self.umax & keep) } else { (0, keep) };
        Scalar { tnum: self.tnum.truncate(bits), umin, umax, ..Scalar::UNKNOWN }.sync()
    }

    /// The low `bits` (8 to 64), zero-extended.
    pub fn truncated(self, bits: u32) -> Scalar {
        Scalar::from_tnum(self.tnum.truncate(bits))
    }

    /// The low `bits` (8, 16, 32 or 64), sign-extended.
    pub fn sign_extend(self, bits: u32) -> Scalar {
        if bits == 64 {
            return self;
        }
        let extend = |x: u64| ((x << (64 - bits)) as i64) >> (64 - bits);
        if let Some(value) = self.as_const() {
            return Scalar::constant(extend(value) as u64);
        }
        let (min, max) = (extend(self.smin as u64), extend(self.smax as u64));
        // The kernel keeps a range only when no member changes its sign, and no bits beside it.
        if self.smin >> bits == self.smax >> bits && (min < 0) == (max < 0) {
            return Scalar::signed_range(min, max);
        }
        Scalar::signed_range(extend(1 << (bits - 1)), extend((1 << (bits - 1)) - 1))
    }
}

type Range = (i128, i128);

/// Intersects the signed with the unsigned range of a number of `bits` bits, as far as both stay ranges.
///
/// In unsigned terms a signed range that crosses zero is two pieces, `0..=smax` and `smin + 2^bits..`. When the unsigned
/// range meets only one of them, that one is the answer; when it meets both, neither range can shrink.
fn signs(signed: Range, unsigned: Range, bits: u32) -> (Range, Range) {
    let modulus = 1i128 << bits;
    let half = modulus / 2;
    let to_signed = |u: i128| if u >= half { u - modulus } else { u };
    let to_unsigned = |s: i128| if s < 0 { s + modulus } else { s };
    let ((smin, smax), (umin, umax)) = (signed, unsigned);
    if smin > smax || umin > umax {
        return (signed, unsigned);
    }
    let piece = if (smin < 0) == (smax < 0) {
        Some((to_unsigned(smin), to_unsigned(smax)))
    } else if umax < smin + modulus {
        Some((0, smax))
    } else if umin > smax {
        Some((smin + modulus, modulus - 1))
    } else {
        None
    };
    let (umin, umax) = match piece {
        Some((min, max)) => (umin.max(min), umax.min(max)),
        None => (umin, umax),
    };
    if umin > umax || (umin < half) != (umax < half) {
        return (signed, (umin, umax));
    }
    ((smin.max(to_signed(umin)), smax.min(to_signed(umax))), (umin, umax))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A set and one of its members, made from random constraints that the member meets.
    pub(crate) fn member() -> impl Strategy<Value = (Scalar, u64)> {
        let number = prop_oneof![
            any::<u64>(),
            (0u64..64).prop_map(|x| x),
            any::<i32>().prop_map(|x| x as i64 as u64),
            (0u32..64).prop_map(|x| (1u64 << x).wrapping_sub(1)),
            (0u64..64).prop_map(|x| 0u64.wrapping_sub(x)),
        ];
        (number, any::<u64>(), any::<[u32; 4]>(), any::<u8>()).prop_map(|(x, mask, spread, which)| {
            let mut set = Scalar::UNKNOWN;
            let s = x as i64;
            let spread = spread.map(|n| u64::from(n) >> (n & 31));
            if which & 1 != 0 {
                set.tnum = Tnum { value: x & !mask, mask };
            }
            if which & 2 != 0 {
                (set.umin, set.umax) = (x.saturating_sub(spread[0]), x.saturating_add(spread[1]));
            }
            if which & 4 != 0 {
                (set.smin, set.smax) =
                    (s.saturating_sub(spread[2] as i64), s.saturating_add(spread[3] as i64));
            }
            let (low, s_low) = (x as u32, x as i32);
            if which & 8 != 0 {
                set.u32_min = low.saturating_sub(spread[1] as u32);
                set.u32_max = low.saturating_add(spread[2] as u32);
            }
            if which & 16 != 0 {
                set.s32_min = s_low.saturating_sub((spread[3] as u32 >> 1) as i32);
                set.s32_max = s_low.saturating_add((spread[0] as u32 >> 1) as i32);
            }
            if which >> 5 == 7 {
                set = Scalar::constant(x);
            }
            (set.sync(), x)
        })
    }

    proptest! {
        #[test]
        fn sync_keeps_members((set, x) in member()) {
            prop_assert!(set.contains(x), "{set:?} lost {x:#x}");
            prop_assert!(set.is_possible());
            prop_assert!(set.sync().contains(x));
        }

        #[test]
        fn extensions_keep_members((set, x) in member()) {
            for bits in [8u32, 16, 32] {
                let low = x << (64 - bits);
                prop_assert!(set.zero_extend(bits).contains(low >> (64 - bits)));
                prop_assert!(set.sign_extend(bits).contains(((low as i64) >> (64 - bits)) as u64));
            }
        }
    }

    #[test]
    fn constants_are_known_in_every_view() {
        for x in [0, 1, u64::MAX, 1 << 31, 1 << 32, 1 << 63] {
            assert_eq!(Scalar::from_tnum(Tnum::constant(x)), Scalar::constant(x));
            assert_eq!(Scalar::unsigned_range(x, x), Scalar::constant(x));
            assert_eq!(Scalar::signed_range(x as i64, x as i64), Scalar::constant(x));
        }
    }

    #[test]
    fn crossing_ranges_meet_in_one_piece() {
        // s in [-100, 100], u at most 2^40: only 0..=100 is left.
        let set = Scalar { smin: -100, smax: 100, umax: 1 << 40, ..Scalar::UNKNOWN }.sync();
        assert_eq!((set.smin, set.smax, set.umin, set.umax), (0, 100, 0, 100));
    }
}
