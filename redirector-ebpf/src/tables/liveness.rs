//! What tells who is alive: what beats and the kernel's timer go by, and what they leave behind.
//!
//! A *link* is a peer as it is reached over one of this node's ports. Requests are numbered per link from 1 on.
//! Written by the agent: [`Watch`], [`Condition`], [`Sent`], [`Watched`]. Written by XDP from beats: [`Heard`]. Written by
//! the timer: [`Latch`], [`Pulse`], and the alive bits. All but [`Watch`] are made of whole words, so that each is read
//! and written without a lock by whoever has it mapped.

use crate::abi::PORTS;
use crate::sync::Word;
use crate::tables::flow::Instant;

/// How many of the last requests of a link, and of the answers to them, are remembered; more than any multiplier.
pub const REMEMBERED: usize = 16;

/// Largest number of requests that may go unanswered before a peer is suspected.
pub const MULTIPLIER_MAX: u32 = 8;

/// Entries of the maps that have one for each link.
pub const LINKS: usize = crate::abi::NODES * PORTS;

/// The number of a link.
#[inline(always)]
pub const fn link(node: u8, port: u8) -> u32 {
    node as u32 * PORTS as u32 + port as u32
}

/// By what rules this node watches its peers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// The keys of beats; either is accepted, so that a key can be changed node by node.
    pub keys: [[u64; 2]; 2],
    /// Drawn anew when the host boots.
    pub boot_id: u64,
    /// Nanoseconds between two requests on a link.
    pub interval: u64,
    /// Nanoseconds that an answer may take.
    pub grace: u64,
    /// Drawn anew when the maps are made: it changes when what this node knew is lost.
    pub incarnation: u32,
    /// Requests on each link that go unanswered before a peer is suspected.
    pub multiplier: u32,
    /// Numbers of the keys; 0: no such key.
    pub key_ids: [u8; 2],
    /// Zero.
    pub pad: u16,
    /// Peers that are watched: the first rows of the list of [`Watched`].
    pub peers: u32,
}

/// What this node says of itself in beats.
#[repr(C)]
#[derive(Default)]
pub struct Condition {
    /// State, health, load and shed level: a [`Vitals`].
    pub vitals: Word,
    /// Applied log index.
    pub applied: Word,
    /// Digest of the slot table.
    pub slots: Word,
    /// Digest of the pools' tables.
    pub pools: Word,
    /// Monotonic nanoseconds of the agent's last sign of life.
    pub agent: Word,
    /// Monotonic nanoseconds at which requests were sent last.
    pub sender: Word,
}

/// State, health score, load and shed level in the lower half of a word. In [`Heard`] the agent's age stands above them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vitals {
    /// A constant of [`state`].
    pub state: u8,
    /// Health score, 0 to 100.
    pub health: u8,
    /// Load in per cent.
    pub load: u8,
    /// Shed level, 0 to 3.
    pub shed: u8,
    /// Milliseconds since the agent's last sign of life.
    pub agent_age: u32,
}

impl Vitals {
    /// As a word.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.state as u64
            | (self.health as u64) << 8
            | (self.load as u64) << 16
            | (self.shed as u64) << 24
            | (self.agent_age as u64) << 32
    }

    /// Of a word.
    #[inline(always)]
    pub const fn of(word: u64) -> Self {
        Self {
            state: word as u8,
            health: (word >> 8) as u8,
            load: (word >> 16) as u8,
            shed: (word >> 24) as u8,
            agent_age: (word >> 32) as u32,
        }
    }
}

/// What a node says it is.
pub mod state {
    /// Not ready: its tables are not filled.
    pub const STARTING: u8 = 0;
    /// Ready but for flows that others have and it has not.
    pub const RETURNING: u8 = 1;
    /// It serves what it owns.
    pub const ACTIVE: u8 = 2;
    /// It serves, and wants to be relieved.
    pub const DRAINING: u8 = 3;
}

/// The requests that were sent on a link.
#[repr(C)]
#[derive(Default)]
pub struct Sent {
    /// Number of the last one; 0: none yet.
    pub sequence: Word,
    /// A request's nonce is this and its number: drawn anew when an agent starts, so that no old answer fits.
    pub nonce_base: Word,
    /// 1: the port has no carrier; else 0.
    pub down: Word,
    /// Zero.
    pub pad: Word,
    /// When they were sent, by number modulo [`REMEMBERED`].
    pub times: [Word; REMEMBERED],
}

impl Sent {
    /// When a request was sent; long ago, if that is not remembered any more.
    #[inline(always)]
    pub fn time(&self, number: u64) -> u64 {
        if self.sequence.load().wrapping_sub(number) >= REMEMBERED as u64 {
            0
        } else {
            slot(&self.times, number).load()
        }
    }
}

/// What was heard on a link.
#[repr(C)]
#[derive(Default)]
pub struct Heard {
    /// The peer's incarnation, from its answers.
    pub incarnation: Word,
    /// Number of its last request.
    pub asked: Word,
    /// Number of my last request that it answered.
    pub answered: Word,
    /// When its last beat came.
    pub at: Word,
    /// Its [`Vitals`].
    pub vitals: Word,
    /// Its boot id.
    pub boot_id: Word,
    /// Its applied log index.
    pub applied: Word,
    /// Digest of its slot table.
    pub slots: Word,
    /// Digest of its pools' tables.
    pub pools: Word,
    /// Zero.
    pub pad: [Word; 3],
    /// Who is alive in its eyes, as [`super::AliveNodes`].
    pub view: [Word; 4],
    /// When answers came, by number modulo [`REMEMBERED`].
    pub times: [Word; REMEMBERED],
}

/// The word of a number in a ring of [`REMEMBERED`].
#[inline(always)]
pub fn slot(ring: &[Word; REMEMBERED], number: u64) -> &Word {
    &ring[number as usize & (REMEMBERED - 1)]
}

/// A peer that is watched.
#[repr(C)]
#[derive(Default)]
pub struct Watched {
    /// Node id (8 bits), ports that it is reached over as a mask (16 bits from bit 8 on), the port that packets to it leave
    /// by while it answers there (8 bits from bit 24 on), and from bit 32 on the *term*: 0 while the agent does not let the
    /// peer be alive; a new one each time that it lets it be alive again.
    pub word: Word,
    /// The incarnation that the term was given to. It is written before the term.
    pub incarnation: Word,
}

/// [`Watched::word`], taken apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// Node id.
    pub node: u8,
    /// Ports by bit.
    pub ports: u16,
    /// The port that packets to it leave by while it answers there.
    pub first: u8,
    /// Term.
    pub term: u32,
}

impl Admission {
    /// As a word.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.node as u64 | (self.ports as u64) << 8 | (self.first as u64) << 24 | (self.term as u64) << 32
    }

    /// Of a word.
    #[inline(always)]
    pub const fn of(word: u64) -> Self {
        Self { node: word as u8, ports: (word >> 8) as u16, first: (word >> 24) as u8, term: (word >> 32) as u32 }
    }
}

/// The timer's verdict on a node or a path: off in this term, until the agent gives it another.
#[repr(C)]
#[derive(Default)]
pub struct Latch {
    /// The term in which it was suspected last; 0: never.
    pub term: Word,
    /// When.
    pub at: Word,
    /// Of a path: why the agent does not let it in, for the agent's successor; 0: it does.
    pub why: Word,
}

/// The timer's own state, and its account of itself.
#[repr(C)]
#[derive(Default)]
pub struct Pulse {
    /// When it ran last.
    pub last: Word,
    /// No verdicts before this time.
    pub hold_until: Word,
    /// Since when most peers are silent at once; 0: they are not.
    pub alone_since: Word,
    /// How often it ran.
    pub rounds: Word,
    /// How often it was late, and passed no verdict.
    pub late: Word,
    /// Longest time between two rounds, nanoseconds.
    pub gap_max: Word,
    /// Rounds without a verdict since the own agent was silent, or most peers at once.
    pub frozen: Word,
    /// Of the round: peers that are alive.
    pub alive: Word,
    /// Of the round: peers that are alive and silent.
    pub silent: Word,
    /// Of the round: whether verdicts count.
    pub verdict: Word,
    /// Of the round: the time.
    pub now: Word,
    /// Of the round: whether verdicts on paths may be passed.
    pub may: Word,
    /// The row of the list of paths that the next round begins with.
    pub row: Word,
    /// [`Pulse::now`] in whole seconds; 0: it has not run yet.
    pub seconds: Word,
    /// Likewise in milliseconds.
    pub milliseconds: Word,
    /// Zero.
    pub pad: Word,
    /// Of the round: who falls silent.
    pub falling: [Word; 4],
    /// Of the round: who is alive.
    pub standing: [Word; 4],
}

impl Pulse {
    /// Takes note of the time, for the round and for packets.
    #[inline(always)]
    pub fn tick(&self, now: u64) {
        let Instant { now, seconds, milliseconds } = Instant::at(now);
        self.now.store(now);
        self.milliseconds.store(milliseconds);
        self.seconds.store(seconds);
    }

    /// The time of the last round; none before the first one.
    #[inline(always)]
    pub fn instant(&self) -> Option<Instant> {
        let (now, seconds, milliseconds) = (self.now.load(), self.seconds.load(), self.milliseconds.load());
        if seconds == 0 { None } else { Some(Instant { now, seconds, milliseconds }) }
    }
}

macro_rules! words {
    ($($name:ty = $count:expr),* $(,)?) => {$(
        const _: () = assert!(core::mem::size_of::<$name>() == $count * 8);
    )*};
}

words! { Condition = 6, Sent = 4 + REMEMBERED, Heard = 16 + REMEMBERED, Watched = 2, Latch = 3, Pulse = 24 }
super::no_padding! { Watch = 32 + 24 + 4 + 4 + 2 + 2 + 4 }
