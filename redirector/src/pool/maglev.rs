//! Maglev tables (Eisenbud et al., NSDI 2016) with weights.
//!
//! Every member has its own permutation of the rows, drawn from the hash of its name, and takes turns in picking the
//! next row of it that is still free. In the paper all members pick equally often; here whoever is farthest behind its
//! weight picks next (Sainte-Laguë's divisors), which is the paper's round robin when weights are equal.
//!
//! What holds with 100 rows a member: every row is filled; everyone has at least one; a share differs from its weight's
//! by two rows or 2 % at most; the order of members does not matter. When one of *n* equal members leaves, its own rows
//! move, and of all others less than 4 % (measured in the tests).

use std::{cmp::Ordering, collections::BinaryHeap};

use siphasher::sip::SipHasher24;

/// Sizes of tables: powers of two. Steps are odd, so that they visit every row as they would with the paper's primes; and
/// when a pool outgrows its table, each row splits into two exactly, so that no flow's previous backend becomes unclear.
const ROWS_MIN: usize = 1 << 10;
const ROWS_MAX: usize = 1 << 19;

/// Rows that each backend should have: with 100, shares are even within about 1 %.
const ROWS_PER_BACKEND: usize = 100;

/// Marks rows not picked yet; ids are below it.
const FREE: u16 = u16::MAX;

/// A backend as the table sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// [`stable_hash`] of its name.
    pub hash: u64,
    /// Its share against the others'; without weight it gets no rows.
    pub weight: u32,
    /// What its rows hold, less than 65,535.
    pub id: u16,
}

/// A hash of a backend's name that is the same on every node and in every version.
pub fn stable_hash(name: &str) -> u64 {
    SipHasher24::new_with_keys(0x6d61_676c_6576, 0x0074_6162_6c65).hash(name.as_bytes())
}

/// The size of the table for a pool of so many backends. Count the draining ones too: then draining never changes the
/// size, and adding one does only where the ladder of sizes has a step.
pub fn rows(backends: usize) -> usize {
    backends.saturating_mul(ROWS_PER_BACKEND).next_power_of_two().clamp(ROWS_MIN, ROWS_MAX)
}

/// Fills a table of `size` rows, which must be one of [`rows`]. Without members with weight, every row is 0.
pub fn build(members: &[Member], size: usize) -> Vec<u16> {
    let mut turns: BinaryHeap<Turn> =
        members.iter().filter(|member| member.weight > 0).map(|&member| Turn::first(member, size)).collect();
    if turns.is_empty() {
        return vec![0; size];
    }
    let mut table = vec![FREE; size];
    for _ in 0..size {
        let Some(mut turn) = turns.peek_mut() else { break };
        while table[turn.row] != FREE {
            turn.advance(size);
        }
        table[turn.row] = turn.member.id;
        turn.picks += 1;
    }
    table
}

/// A member, its place in its permutation, and how many rows it has. The greatest turn in a heap is the next.
#[derive(PartialEq, Eq)]
struct Turn {
    member: Member,
    row: usize,
    skip: usize,
    picks: u64,
}

impl Turn {
    fn first(member: Member, size: usize) -> Self {
        let draw = |seed: u64| SipHasher24::new_with_keys(seed, seed).hash(&member.hash.to_le_bytes());
        let row = (draw(1) % size as u64) as usize;
        let skip = (draw(2) % size as u64) as usize | 1;
        Self { member, row, skip, picks: 0 }
    }

    fn advance(&mut self, size: usize) {
        self.row = (self.row + self.skip) % size;
    }
}

impl Ord for Turn {
    fn cmp(&self, other: &Self) -> Ordering {
        // Before its first row everyone is infinitely far behind; then (2 × picks + 1) / weight, compared crosswise.
        let behind = |turn: &Self, weight: u32| match turn.picks {
            0 => 0,
            picks => (2 * picks + 1) * u64::from(weight),
        };
        let mine = behind(self, other.member.weight);
        let its = behind(other, self.member.weight);
        its.cmp(&mine)
            .then_with(|| other.member.hash.cmp(&self.member.hash))
            .then_with(|| other.member.id.cmp(&self.member.id))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
