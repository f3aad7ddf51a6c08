//! Tristate numbers: 64 bits of which each is 0, 1 or unknown.
//!
//! The representation and the operators are those of Vishwanathan et al., "Sound, Precise, and Fast Abstract
//! Interpretation with Tristate Numbers" (CGO 2022). A bit set in `mask` is unknown and is clear in `value`.

use std::fmt;

/// A set of 64-bit numbers that agree with `value` in every bit that is clear in `mask`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tnum {
    /// The known bits.
    pub value: u64,
    /// The unknown bits.
    pub mask: u64,
}

impl Tnum {
    /// Every number.
    pub const UNKNOWN: Tnum = Tnum { value: 0, mask: u64::MAX };

    /// The one number `value`.
    pub const fn constant(value: u64) -> Tnum {
        Tnum { value, mask: 0 }
    }

    /// The smallest tristate number with all of `min..=max`.
    pub const fn range(min: u64, max: u64) -> Tnum {
        let differing = 64 - (min ^ max).leading_zeros();
        if differing > 63 {
            return Tnum::UNKNOWN;
        }
        let mask = (1u64 << differing) - 1;
        Tnum { value: min & !mask, mask }
    }

    /// True when exactly one number is in the set.
    pub const fn is_const(self) -> bool {
        self.mask == 0
    }

    /// True when nothing is known.
    pub const fn is_unknown(self) -> bool {
        self.mask == u64::MAX
    }

    /// The largest member, unsigned.
    pub const fn max(self) -> u64 {
        self.value | self.mask
    }

    /// True when every member is a multiple of `size`, a power of two.
    pub const fn is_aligned(self, size: u64) -> bool {
        self.max() & (size - 1) == 0
    }

    /// True when `number` is a member.
    pub const fn contains(self, number: u64) -> bool {
        number & !self.mask == self.value
    }

    /// True when every member of `other` is a member.
    pub const fn includes(self, other: Tnum) -> bool {
        other.mask & !self.mask == 0 && other.value & !self.mask == self.value
    }

    /// The numbers in both sets; meaningless when there are none.
    pub const fn intersect(self, other: Tnum) -> Tnum {
        let mask = self.mask & other.mask;
        Tnum { value: (self.value | other.value) & !mask, mask }
    }

    /// True when some number is in both sets.
    pub const fn overlaps(self, other: Tnum) -> bool {
        let known = !self.mask & !other.mask;
        self.value & known == other.value & known
    }

    /// `a + b`, wrapping.
    pub const fn add(self, other: Tnum) -> Tnum {
        let masks = self.mask.wrapping_add(other.mask);
        let values = self.value.wrapping_add(other.value);
        let mask = (masks.wrapping_add(values) ^ values) | self.mask | other.mask;
        Tnum { value: values & !mask, mask }
    }

    /// `a - b`, wrapping.
    pub const fn sub(self, other: Tnum) -> Tnum {
        let values = self.value.wrapping_sub(other.value);
        let most = values.wrapping_add(self.mask);
        let least = values.wrapping_sub(other.mask);
        let mask = (most ^ least) | self.mask | other.mask;
        Tnum { value: values & !mask, mask }
    }

    /// `a & b`.
    pub const fn and(self, other: Tnum) -> Tnum {
        let value = self.value & other.value;
        Tnum { value, mask: self.max() & other.max() & !value }
    }

    /// `a | b`.
    pub const fn or(self, other: Tnum) -> Tnum {
        let value = self.value | other.value;
        Tnum { value, mask: (self.mask | other.mask) & !value }
    }

    /// `a ^ b`.
    pub const fn xor(self, other: Tnum) -> Tnum {
        let mask = self.mask | other.mask;
        Tnum { value: (self.value ^ other.value) & !mask, mask }
    }

    /// `a * b`, wrapping: long multiplication, with the certain and the possible part summed apart.
    pub const fn mul(self, other: Tnum) -> Tnum {
        let certain = self.value.wrapping_mul(other.value);
        let (mut a, mut b) = (self, other);
        let mut possible = Tnum::constant(0);
        while a.value != 0 || a.mask != 0 {
            if a.value & 1 != 0 {
                possible = possible.add(Tnum { value: 0, mask: b.mask });
            } else if a.mask & 1 != 0 {
                possible = possible.add(Tnum { value: 0, mask: b.max() });
            }
            a = a.rsh(1);
            b = b.lsh(1);
        }
        Tnum::constant(certain).add(possible)
    }

    /// `a << count`, count below 64.
    pub const fn lsh(self, count: u32) -> Tnum {
        Tnum { value: self.value << count, mask: self.mask << count }
    }

    /// `a >> count`, count below 64.
    pub const fn rsh(self, count: u32) -> Tnum {
        Tnum { value: self.value >> count, mask: self.mask >> count }
    }

    /// Arithmetic right shift of all 64 bits, count below 64.
    pub const fn arsh(self, count: u32) -> Tnum {
        Tnum { value: ((self.value as i64) >> count) as u64, mask: ((self.mask as i64) >> count) as u64 }
    }

    /// Arithmetic right shift of the low 32 bits, zero-extended; count below 32.
    pub const fn arsh32(self, count: u32) -> Tnum {
        Tnum {
            value: (((self.value as i32) >> count) as u32) as u64,
            mask: (((self.mask as i32) >> count) as u32) as u64,
        }
    }

    /// The low `bits` zero-extended, bits 1 to 64.
    pub const fn truncate(self, bits: u32) -> Tnum {
        let keep = u64::MAX >> (64 - bits);
        Tnum { value: self.value & keep, mask: self.mask & keep }
    }

    /// The low `bits` (16, 32 or 64) with their bytes in the opposite order, zero-extended.
    pub const fn swap_bytes(self, bits: u32) -> Tnum {
        Tnum { value: self.value.swap_bytes() >> (64 - bits), mask: self.mask.swap_bytes() >> (64 - bits) }
    }

    /// The low half, zero-extended.
    pub const fn low(self) -> Tnum {
        self.truncate(32)
    }

    /// The same with the low half of `low`.
    pub const fn with_low(self, low: Tnum) -> Tnum {
        const HIGH: u64 = !(u32::MAX as u64);
        Tnum { value: self.value & HIGH | low.value & !HIGH, mask: self.mask & HIGH | low.mask & !HIGH }
    }
}

impl fmt::Display for Tnum {
    /// As the kernel's `tnum_strn`: `(0x4; 0xff)`; a constant as `0` or `0x4`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.value, self.mask) {
            (0, 0) => f.write_str("0"),
            (value, 0) => write!(f, "{value:#x}"),
            (value, mask) => write!(f, "({value:#x}; {mask:#x})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member() -> impl Strategy<Value = (Tnum, u64)> {
        (any::<u64>(), any::<u64>(), any::<u64>(), 0u32..4).prop_map(|(value, mask, pick, thin)| {
            let mask = if thin == 0 { mask & 0xff } else { mask };
            let tnum = Tnum { value: value & !mask, mask };
            (tnum, tnum.value | pick & mask)
        })
    }

    proptest! {
        #[test]
        fn operators_keep_members((a, x) in member(), (b, y) in member(), count in 0u32..64) {
            prop_assert!(a.add(b).contains(x.wrapping_add(y)));
            prop_assert!(a.sub(b).contains(x.wrapping_sub(y)));
            prop_assert!(a.mul(b).contains(x.wrapping_mul(y)));
            prop_assert!(a.and(b).contains(x & y));
            prop_assert!(a.or(b).contains(x | y));
            prop_assert!(a.xor(b).contains(x ^ y));
            prop_assert!(a.lsh(count).contains(x << count));
            prop_assert!(a.rsh(count).contains(x >> count));
            prop_assert!(a.arsh(count).contains(((x as i64) >> count) as u64));
            prop_assert!(a.arsh32(count & 31).contains(u64::from(((x as i32) >> (count & 31)) as u32)));
            prop_assert!(a.truncate(16).contains(x & 0xffff));
            prop_assert!(a.with_low(b).contains(x >> 32 << 32 | y & 0xffff_ffff));
        }

        #[test]
        fn range_holds_its_numbers(a: u64, b: u64, x: u64) {
            let (min, max) = (a.min(b), a.max(b));
            let number = if max - min == u64::MAX { x } else { min + x % (max - min + 1) };
            prop_assert!(Tnum::range(min, max).contains(number));
        }

        #[test]
        fn intersection_holds_common_members((a, x) in member(), loose: u64) {
            let b = Tnum { value: x & !loose, mask: loose };
            prop_assert!(a.overlaps(b));
            prop_assert!(a.intersect(b).contains(x));
            prop_assert!(a.includes(a.intersect(b)));
        }
    }

    #[test]
    fn inclusion() {
        assert!(Tnum::UNKNOWN.includes(Tnum::constant(7)));
        assert!(Tnum { value: 4, mask: 3 }.includes(Tnum::constant(5)));
        assert!(!Tnum { value: 4, mask: 3 }.includes(Tnum::constant(8)));
        assert!(!Tnum::constant(1).includes(Tnum::UNKNOWN));
    }
}
