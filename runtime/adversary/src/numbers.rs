//! Numbers that depend on a seed only.

/// A sequence of numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed)
    }

    /// The sequence of member `index` of a family.
    pub fn of(seed: u64, index: u64) -> Numbers {
        let mut numbers = Numbers(seed ^ index.wrapping_mul(0xd134_2543_de82_ef95));
        Numbers(numbers.word())
    }

    /// The next number.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.word()) * u128::from(limit)) >> 64) as u64
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low + 1).max(1) as u64) as i64
    }

    /// True in `n` of 100 cases.
    pub fn percent(&mut self, n: u64) -> bool {
        self.below(100) < n
    }

    /// One of these, of which there is at least one.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// Numbers at which something happens, and some others.
    pub fn interesting(&mut self) -> u64 {
        match self.below(8) {
            0..=1 => self.below(10),
            2 => self
                .one_of(&[0x1f, 0x20, 0x3f, 0x40, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0x8000, 0xffff, 0x10000]),
            3 => self.one_of(&[u64::MAX, 1 << 63, (1 << 63) - 1, 1 << 31, 1 << 32, 0x7fff_ffff, 0xffff_ffff]),
            4 => self.below(10).wrapping_neg(),
            5 => (self.one_of(&[1u64 << 63, 1 << 31, 1 << 32, 1 << 16, 1 << 8]))
                .wrapping_add(self.below(5))
                .wrapping_sub(2),
            6 => self.word() >> self.below(64),
            _ => self.word(),
        }
    }
}
