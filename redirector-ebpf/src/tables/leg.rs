//! What tells which paths are alive: what beats to their far ends and the kernel's timer go by, and what they leave behind.
//!
//! A *leg* is a way to a far end, as packets take it: port, VLAN, next hop and tunnel. Paths of several pools that differ in
//! nothing else share one, and beats go over it once for all of them. Requests are numbered per leg from 1 on.
//! Written by the agent: [`LegRules`], [`LegSent`], the list of [`PathAdmission`]s. Written by XDP from answers:
//! [`LegHeard`]. Written by the timer: a [`super::liveness::Latch`] for each path, and the paths' alive bits.

use super::liveness::REMEMBERED;
use crate::sync::Word;

/// Legs that a node can have.
pub const LEGS: usize = 4096;

/// Stands for no leg: no beats go over the path.
pub const NO_LEG: u16 = 0x7fff;

/// Paths that the timer looks at in one round, so that its rounds stay short however many there are.
pub const PATHS_A_ROUND: u32 = 256;

/// By what rules paths are watched.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LegRules {
    /// The key of beats to far ends. It is not the nodes' own, so that no backend can speak for a node.
    pub key: [u64; 2],
    /// Paths that are watched: the first rows of the list of [`PathAdmission`]s.
    pub paths: u32,
    /// Number of the key; 0: no beats go to far ends.
    pub key_id: u8,
    /// One in how many flows is asked what it says of its path, as a power of two, and one more; 0: none is.
    pub noted: u8,
    /// Zero.
    pub pad: [u8; 2],
}

impl LegRules {
    /// Whether the flow of these bits of its hash is asked; the cells of [`super::signal`] take others.
    #[inline(always)]
    pub const fn notes(&self, bits: u64) -> bool {
        let mask = (1u64 << (self.noted.wrapping_sub(1) & 15)) - 1;
        self.noted != 0 && bits >> 16 & mask == 0
    }
}

/// The requests that were sent over a leg, and how soon they should be answered.
#[repr(C)]
#[derive(Default)]
pub struct LegSent {
    /// Number of the last one; 0: none yet.
    pub sequence: Word,
    /// A request's nonce is this and its number: drawn anew when an agent starts, so that no old answer fits.
    pub nonce_base: Word,
    /// Nanoseconds between two requests.
    pub interval: Word,
    /// Nanoseconds that an answer may take.
    pub grace: Word,
    /// Requests that go unanswered before the leg is silent.
    pub multiplier: Word,
    /// Zero.
    pub pad: [Word; 3],
    /// When they were sent, by number modulo [`REMEMBERED`].
    pub times: [Word; REMEMBERED],
}

impl LegSent {
    /// When a request was sent; long ago, if that is not remembered any more.
    #[inline(always)]
    pub fn time(&self, number: u64) -> u64 {
        if self.sequence.load().wrapping_sub(number) >= REMEMBERED as u64 {
            0
        } else {
            super::liveness::slot(&self.times, number).load()
        }
    }
}

/// What was heard over a leg.
#[repr(C)]
#[derive(Default)]
pub struct LegHeard {
    /// Number of my last request that was answered; 0: none ever was, so that there is no beating far end to judge by.
    pub answered: Word,
    /// When.
    pub at: Word,
    /// The far end's boot id.
    pub boot_id: Word,
    /// Zero.
    pub pad: Word,
    /// When answers came, by number modulo [`REMEMBERED`].
    pub times: [Word; REMEMBERED],
}

/// A path that is watched, in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathAdmission {
    /// The path's id; 0: the row is free.
    pub path: u16,
    /// Its leg, or [`NO_LEG`].
    pub leg: u16,
    /// Whether its port has no carrier.
    pub unplugged: bool,
    /// 0 while the agent does not let the path be alive; a new one each time that it lets it be alive again.
    pub term: u32,
}

impl PathAdmission {
    /// As a word.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        let leg = self.leg & NO_LEG | (self.unplugged as u16) << 15;
        self.path as u64 | (leg as u64) << 16 | (self.term as u64) << 32
    }

    /// Of a word.
    #[inline(always)]
    pub const fn of(word: u64) -> Self {
        let leg = (word >> 16) as u16;
        Self { path: word as u16, leg: leg & NO_LEG, unplugged: leg > NO_LEG, term: (word >> 32) as u32 }
    }
}

const _: () = assert!(core::mem::size_of::<LegSent>() == (8 + REMEMBERED) * 8);
const _: () = assert!(core::mem::size_of::<LegHeard>() == (4 + REMEMBERED) * 8);
super::no_padding! { LegRules = 16 + 4 + 1 + 1 + 2 }
