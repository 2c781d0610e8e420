//! Numbers by chance, that are the same for the same seed.

/// SplitMix64.
pub(super) struct Draws(u64);

impl Draws {
    pub(super) fn new(seed: u128) -> Self {
        let mut draws = Self(seed as u64);
        Self(draws.next() ^ (seed >> 64) as u64)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number less than `bound`.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// A UUID.
    pub(super) fn uuid(&mut self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next())
    }
}
