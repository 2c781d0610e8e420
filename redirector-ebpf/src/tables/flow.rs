//! The flow table: buckets of one cache line with eight entries of one word, and the whole tuples in a parallel array.
//!
//! A hash table of the kernel with LRU costs two or three cache misses a packet and writes to its lists; this costs one
//! miss, and a write once a second per flow. An entry is found by bucket and tag alone. The tuple beside it is read when
//! a flow is opened, listed or copied, never for a packet of a known flow.

use super::no_padding;
use crate::packet::{Address, Tuple};
use crate::sync::Word;

/// Entries in a bucket.
pub const WAYS: usize = 8;

const _: () = assert!(State::TakenUp as u8 & 0b11 == 0b11 && State::Closing as u8 & 0b11 == 0b11);

/// Largest tag: 31 bits.
pub const TAG_MAX: u32 = 0x7fff_ffff;

/// Eight entries, one cache line.
#[repr(C, align(64))]
pub struct Bucket {
    /// The entries' words; 0 is an empty one.
    pub entries: [Word; WAYS],
}

impl Bucket {
    /// A bucket without flows.
    pub const fn empty() -> Self {
        Self { entries: [const { Word::new(0) }; WAYS] }
    }

    /// The word of an entry; `way` counts modulo [`WAYS`], so that no bound is checked at run time.
    #[inline(always)]
    pub fn word(&self, way: usize) -> &Word {
        &self.entries[way & (WAYS - 1)]
    }

    /// Whether half of the bucket is proven. Without a branch, as [`Entry::passed`].
    #[inline(always)]
    pub fn is_half_proven(&self) -> bool {
        let (mut proven, mut way) = (0, 0);
        while way < WAYS {
            // Added up where the bit stands: eight of them need three bits more.
            proven += self.word(way).load() & 1 << Entry::PROVEN;
            way += 1;
        }
        proven >= (WAYS as u64 / 2) << Entry::PROVEN
    }
}

/// What is known of a flow's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// TCP, opened but not seen to be answered.
    Opening = 1,
    /// TCP, in use.
    Established = 2,
    /// TCP, after a FIN or RST of the client.
    Closing = 3,
    /// UDP.
    Datagrams = 4,
    /// ICMP.
    Other = 5,
    /// UDP of which a single packet was seen.
    FirstDatagram = 6,
    /// TCP of which the opening was not seen, and that has not lasted yet: never proven.
    TakenUp = 7,
}

impl State {
    /// The state of this number; an unknown one ages like [`State::Other`].
    #[inline(always)]
    pub const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::Opening,
            2 => Self::Established,
            3 => Self::Closing,
            4 => Self::Datagrams,
            6 => Self::FirstDatagram,
            7 => Self::TakenUp,
            _ => Self::Other,
        }
    }
}

/// One entry of a bucket, in a word: tag (31 bits), backend (15), ambiguous (1), proven (1), state (3), stamp (13).
///
/// The stamp is the time of the last packet, in seconds modulo 8192, or for an unproven entry in milliseconds modulo 8192.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(pub u64);

const STAMP_MASK: u64 = 0x1fff;

/// How long a flow must last whose opening was not seen until it is proven, milliseconds: half of what its stamp can tell.
pub const LASTING: u64 = 4096;

/// A stamp this far ahead of a time, or less, is of a packet that came after that time was read.
const AHEAD: u64 = 64;

/// Time from a stamp to another, modulo 8192; none has passed where the first is a little ahead.
#[inline(always)]
pub const fn stamps_between(stamp: u64, now: u64) -> u64 {
    let passed = now.wrapping_sub(stamp) & STAMP_MASK;
    if passed > STAMP_MASK - AHEAD { 0 } else { passed }
}

/// A time, and what entries are stamped with then. The timer keeps it ready: a division for each entry that a new flow
/// looks at made recording it cost more than twice as much.
#[derive(Clone, Copy, Debug)]
pub struct Instant {
    /// Monotonic nanoseconds.
    pub now: u64,
    /// The same in whole seconds.
    pub seconds: u64,
    /// The same in whole milliseconds.
    pub milliseconds: u64,
}

impl Instant {
    /// Of monotonic nanoseconds.
    #[inline(always)]
    pub const fn at(now: u64) -> Self {
        Self { now, seconds: now / 1_000_000_000, milliseconds: now / 1_000_000 }
    }
}

impl From<u64> for Instant {
    #[inline(always)]
    fn from(now: u64) -> Self {
        Self::at(now)
    }
}

impl Entry {
    const BACKEND: u32 = 31;
    const AMBIGUOUS: u32 = 46;
    const PROVEN: u32 = 47;
    const STATE: u32 = 48;
    const STAMP: u32 = 51;

    /// An entry of a flow's first packet: unproven.
    #[inline(always)]
    pub fn first(tag: u32, backend: u16, state: State, ambiguous: bool, now: impl Into<Instant>) -> Self {
        Self(
            tag as u64
                | (backend as u64 & 0x7fff) << Self::BACKEND
                | (ambiguous as u64) << Self::AMBIGUOUS
                | (state as u64) << Self::STATE
                | Self::stamp_of(false, now) << Self::STAMP,
        )
    }

    /// The stamp for this time.
    #[inline(always)]
    fn stamp_of(proven: bool, now: impl Into<Instant>) -> u64 {
        let now: Instant = now.into();
        (if proven { now.seconds } else { now.milliseconds }) & STAMP_MASK
    }

    /// Whether there is no flow.
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The tag.
    #[inline(always)]
    pub const fn tag(self) -> u32 {
        self.0 as u32 & TAG_MAX
    }

    /// The flow's backend.
    #[inline(always)]
    pub const fn backend(self) -> u16 {
        (self.0 >> Self::BACKEND) as u16 & 0x7fff
    }

    /// Whether another flow of the bucket has the same tag, so that the whole tuple must be compared.
    #[inline(always)]
    pub const fn ambiguous(self) -> bool {
        self.0 >> Self::AMBIGUOUS & 1 == 1
    }

    /// Whether a second packet, long enough after the first, has been seen: see [`Entry::proves`].
    #[inline(always)]
    pub const fn proven(self) -> bool {
        self.0 >> Self::PROVEN & 1 == 1
    }

    /// Whether a packet proves an unproven entry, if `now` is its time: 1 ms after the first, or [`LASTING`] after it where no
    /// opening was seen, or the end was. Packets that come in long rows of the stamp's 8,192 ms prove it sooner or later.
    #[inline(always)]
    pub fn proves(self, now: impl Into<Instant>) -> bool {
        let least = 1 + u64::from(self.must_last()) * (LASTING - 1);
        // One comparison for both ends, as in `expired`: another CPU's stamp may be a little ahead.
        self.passed(now).wrapping_sub(least) <= STAMP_MASK - AHEAD - least
    }

    /// Whether the flow must last to be proven, and is not: taken up or closing, which differ in one bit, so that one
    /// comparison tells.
    #[inline(always)]
    pub const fn must_last(self) -> bool {
        self.0 >> Self::PROVEN & 0b111 == 0b110
    }

    /// Whether the state is one that a flow's packets may change before it is proven.
    #[inline(always)]
    pub const fn is_used(self) -> bool {
        self.state_bits() < State::FirstDatagram as u8
    }

    /// The state.
    #[inline(always)]
    pub const fn state(self) -> State {
        State::from_bits((self.0 >> Self::STATE) as u8 & 7)
    }

    /// The state's number.
    #[inline(always)]
    pub const fn state_bits(self) -> u8 {
        (self.0 >> Self::STATE) as u8 & 7
    }

    /// Time since its stamp in the stamp's unit: seconds if proven, else milliseconds; wraps at 8192. None where a packet
    /// has touched it since `now` was read: whoever looks at many entries reads the time once.
    #[inline(always)]
    pub fn idle(self, now: impl Into<Instant>) -> u64 {
        stamps_between(self.0 >> Self::STAMP, Self::stamp_of(self.proven(), now))
    }

    /// The same for packets, whose time is no older than any stamp but those of copies: these look very old where they are
    /// ahead. Without a branch, since each one here doubles the verifier's ways.
    #[inline(always)]
    pub fn passed(self, now: impl Into<Instant>) -> u64 {
        Self::stamp_of(self.proven(), now).wrapping_sub(self.0 >> Self::STAMP) & STAMP_MASK
    }

    /// The same flow after another packet: state and, once a second, stamp renewed.
    #[inline(always)]
    pub fn touched(self, state: State, proven: bool, now: impl Into<Instant>) -> Self {
        let kept = self.0 & ((1 << Self::PROVEN) - 1);
        Self(
            kept | (proven as u64) << Self::PROVEN
                | (state as u64) << Self::STATE
                | Self::stamp_of(proven, now) << Self::STAMP,
        )
    }

    /// Whether other nodes are to hear that the flow's entry was `before` and is this one now: it is proven or on another
    /// backend since, or it closes. Only proven flows count, so that no flood is told of.
    #[inline(always)]
    pub const fn tells(self, before: Self) -> bool {
        let closes = self.state_bits() == State::Closing as u8 && before.state_bits() != State::Closing as u8;
        self.proven() && (!before.proven() || closes || self.backend() != before.backend())
    }

    /// The same flow on another backend.
    #[inline(always)]
    pub const fn with_backend(self, backend: u16) -> Self {
        Self(self.0 & !(0x7fff << Self::BACKEND) | (backend as u64 & 0x7fff) << Self::BACKEND)
    }

    /// The same flow, marked as sharing its tag.
    #[inline(always)]
    pub const fn marked_ambiguous(self) -> Self {
        Self(self.0 | 1 << Self::AMBIGUOUS)
    }

    /// Whether it was idle for longer than its state allows; `idle` is [`super::Node::idle`].
    #[inline(always)]
    pub fn expired(self, idle: &[u16; 8], now: impl Into<Instant>) -> bool {
        let limit = u64::from(idle[(self.state_bits() & 7) as usize]);
        let least = if self.proven() { limit + 1 } else { (limit + 1) * 1000 };
        // One comparison for both ends: a stamp that is ahead is not idle.
        self.passed(now).wrapping_sub(least) < (STAMP_MASK + 1 - AHEAD).saturating_sub(least)
    }
}

/// What is kept beside an entry: enough to list a flow and to copy it to another node.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// The whole tuple.
    pub tuple: Tuple,
    /// Its service.
    pub service: u16,
    /// When it was recorded, monotonic nanoseconds.
    pub since: u64,
    /// Version of its slot then.
    pub version: u32,
}

/// A [`Record`] of an IPv4 flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record4 {
    /// The client.
    pub src: u32,
    /// The VIP.
    pub dst: u32,
    /// The client's port, network order.
    pub sport: u16,
    /// The service's port, network order.
    pub dport: u16,
    /// Service number.
    pub service: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
    /// When it was recorded.
    pub since: u64,
    /// Version of its slot then.
    pub version: u32,
    /// Zero.
    pub pad2: u32,
}

/// A [`Record`] of an IPv6 flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record6 {
    /// The client.
    pub src: Address,
    /// The VIP.
    pub dst: Address,
    /// The client's port, network order.
    pub sport: u16,
    /// The service's port, network order.
    pub dport: u16,
    /// Service number.
    pub service: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
    /// When it was recorded.
    pub since: u64,
    /// Version of its slot then.
    pub version: u32,
    /// Zero.
    pub pad2: u32,
}

impl Record4 {
    /// The IPv4 form of a record.
    #[inline(always)]
    pub fn of(record: &Record) -> Self {
        let Record { tuple, service, since, version } = record;
        Self {
            src: tuple.src.words[0],
            dst: tuple.dst.words[0],
            sport: tuple.sport,
            dport: tuple.dport,
            service: *service,
            protocol: tuple.protocol,
            pad: 0,
            since: *since,
            version: *version,
            pad2: 0,
        }
    }

    /// Whether it is of this tuple.
    #[inline(always)]
    pub fn is_of(&self, tuple: &Tuple) -> bool {
        self.src == tuple.src.words[0]
            && self.dst == tuple.dst.words[0]
            && self.sport == tuple.sport
            && self.dport == tuple.dport
            && self.protocol == tuple.protocol
    }

    /// The record.
    #[inline(always)]
    pub fn record(&self) -> Record {
        let tuple = Tuple {
            src: Address::v4(self.src),
            dst: Address::v4(self.dst),
            sport: self.sport,
            dport: self.dport,
            protocol: self.protocol,
        };
        Record { tuple, service: self.service, since: self.since, version: self.version }
    }
}

impl Record6 {
    /// The IPv6 form of a record.
    #[inline(always)]
    pub fn of(record: &Record) -> Self {
        let Record { tuple, service, since, version } = record;
        Self {
            src: tuple.src,
            dst: tuple.dst,
            sport: tuple.sport,
            dport: tuple.dport,
            service: *service,
            protocol: tuple.protocol,
            pad: 0,
            since: *since,
            version: *version,
            pad2: 0,
        }
    }

    /// Whether it is of this tuple.
    #[inline(always)]
    pub fn is_of(&self, tuple: &Tuple) -> bool {
        self.src.same(&tuple.src)
            && self.dst.same(&tuple.dst)
            && self.sport == tuple.sport
            && self.dport == tuple.dport
            && self.protocol == tuple.protocol
    }

    /// The record.
    #[inline(always)]
    pub fn record(&self) -> Record {
        let Self { src, dst, sport, dport, protocol, .. } = *self;
        let tuple = Tuple { src, dst, sport, dport, protocol };
        Record { tuple, service: self.service, since: self.since, version: self.version }
    }
}

/// What the fragments of one packet have in common (RFC 791, RFC 8200 section 4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// Source.
    pub src: Address,
    /// Destination.
    pub dst: Address,
    /// Identification.
    pub id: u32,
    /// Transport protocol of IPv4; 0 of IPv6.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}

no_padding! { Record4 = 32, Record6 = 56, FragmentKey = 40 }
