//! What flows say of the paths that they go by: SYNs that come again, as nobody answered, and resets.
//!
//! Answers go straight from backends to clients and are not seen here. So what a connection that dies leaves to see is its
//! client's SYN, sent again after a second, and what one that goes wrong leaves is its client's reset. One in so many flows
//! is looked at. Its SYN is remembered in a cell for as long as no other takes it.

use crate::sync::Word;

/// Cells in which SYNs are remembered; a power of two.
pub const SIGHTINGS: usize = 1 << 14;

/// What was counted of one path, of the flows that are looked at.
#[repr(C)]
#[derive(Default)]
pub struct Signals {
    /// SYNs that were seen for the first time.
    pub opened: Word,
    /// SYNs that came again.
    pub again: Word,
    /// Resets.
    pub resets: Word,
    /// Zero.
    pub pad: Word,
}

/// A SYN that was seen, in a word: tag (32 bits: of flow and sequence number), [`place`] of the path that it took (16), time (16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting(u64);

impl Sighting {
    /// The time's unit is 2 to this power milliseconds.
    const UNIT: u32 = 8;
    /// A SYN that comes again sooner was doubled on its way: no client waits for so short (RFC 6298, section 2.1, has it
    /// wait for a second). In units; the first may be short.
    const SOON: u16 = 2;
    /// One that comes again later may be any that hashes alike: clients give up within a minute or two. In units.
    const LATE: u16 = 240;

    /// Of a tag, a path's place and a time in milliseconds.
    #[inline(always)]
    pub const fn new(tag: u32, place: u16, milliseconds: u64) -> Self {
        Self(tag as u64 | (place as u64) << 32 | (milliseconds >> Self::UNIT) << 48)
    }

    /// Tag, the path's [`place`], and how many milliseconds before `now` it was.
    pub const fn parts(self, now: u64) -> (u32, u16, u64) {
        let age = ((now >> Self::UNIT) as u16).wrapping_sub((self.0 >> 48) as u16);
        (self.0 as u32, (self.0 >> 32) as u16, (age as u64) << Self::UNIT)
    }

    /// As a word.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// What it is to the one that was seen in its cell before.
    #[inline(always)]
    pub const fn after(self, before: u64) -> Sight {
        if self.0 << 16 != before << 16 {
            return Sight::New;
        }
        let age = ((self.0 >> 48) as u16).wrapping_sub((before >> 48) as u16);
        if age < Self::SOON {
            Sight::Doubled
        } else if age > Self::LATE {
            Sight::New
        } else {
            Sight::Again
        }
    }
}

impl From<u64> for Sighting {
    fn from(word: u64) -> Self {
        Self(word)
    }
}

/// What a SYN is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// It opens a flow, as far as is remembered.
    New,
    /// It was seen on the same path before, and not answered.
    Again,
    /// It was seen just now.
    Doubled,
}

/// What stands for a path: its backend's number, of which the lower 14 bits have to do, and its rank there.
#[inline(always)]
pub const fn place(backend: u16, rank: u8) -> u16 {
    backend << 2 | (rank & 3) as u16
}

const _: () = assert!(core::mem::size_of::<Signals>() == 32);

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 40_000_000;

    #[test]
    fn a_syn_comes_again_after_a_clients_patience_and_on_the_same_path_only() {
        let first = Sighting::new(7, place(3, 1), AT);
        for (later, sight) in [
            (Sighting::new(7, place(3, 1), AT), Sight::Doubled),
            (Sighting::new(7, place(3, 1), AT + 200), Sight::Doubled),
            (Sighting::new(7, place(3, 1), AT + 1000), Sight::Again),
            (Sighting::new(7, place(3, 1), AT + 31_000), Sight::Again),
            (Sighting::new(7, place(3, 1), AT + 100_000), Sight::New),
            (Sighting::new(7, place(3, 0), AT + 1000), Sight::New),
            (Sighting::new(7, place(4, 1), AT + 1000), Sight::New),
            (Sighting::new(8, place(3, 1), AT + 1000), Sight::New),
        ] {
            assert_eq!(later.after(first.word()), sight, "{later:?} after {first:?}");
        }
    }

    #[test]
    fn nothing_was_seen_in_an_empty_cell() {
        assert_eq!(Sighting::new(7, place(3, 1), AT).after(0), Sight::New);
    }

    #[test]
    fn times_wrap() {
        let wraps = (1u64 << 24) * 3;
        let before = Sighting::new(7, 5, wraps - 600);
        assert_eq!(Sighting::new(7, 5, wraps + 600).after(before.word()), Sight::Again);
    }
}
