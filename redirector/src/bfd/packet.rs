//! The wire form of control packets (RFC 5880, section 4.1), and what makes one worthless by itself (section 6.8.6).

use serde::{Deserialize, Serialize};

/// Bytes of a packet without authentication.
pub const LENGTH: usize = 24;
/// Bytes of the longest packet that there is: the length has eight bits.
pub const LENGTH_MAX: usize = 255;
const VERSION: u8 = 1;

/// What a session is, or says that it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum State {
    /// Held down by whoever administers it.
    AdminDown = 0,
    /// The peer is not heard, or has just begun.
    #[default]
    Down = 1,
    /// The peer is heard, and does not hear yet.
    Init = 2,
    /// Both hear each other.
    Up = 3,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::AdminDown, Self::Down, Self::Init, Self::Up];

    fn of(bits: u8) -> Self {
        Self::ALL[usize::from(bits & 3)]
    }
}

/// Why a session left its state last (section 4.1), as far as this side says it.
pub mod diagnostic {
    /// Nothing.
    pub const NONE: u8 = 0;
    /// The detection time went by without a packet.
    pub const EXPIRED: u8 = 1;
    /// The peer says that its session is down.
    pub const NEIGHBOR_DOWN: u8 = 3;
    /// This side ended it.
    pub const ADMIN_DOWN: u8 = 7;

    /// In the RFC's words.
    pub fn name(code: u8) -> &'static str {
        const NAMES: [&str; 9] = [
            "none",
            "detection time expired",
            "echo failed",
            "neighbor signaled session down",
            "forwarding plane reset",
            "path down",
            "concatenated path down",
            "administratively down",
            "reverse concatenated path down",
        ];
        NAMES.get(usize::from(code)).copied().unwrap_or("reserved")
    }
}

/// Why a packet was thrown away. Each is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the words are the messages")]
pub enum Discard {
    #[error("shorter than a packet")]
    Short,
    #[error("version other than 1")]
    Version,
    #[error("a length that cannot be")]
    Length,
    #[error("a detection multiplier of zero")]
    Multiplier,
    #[error("the multipoint bit")]
    Multipoint,
    #[error("no discriminator of its own")]
    Discriminator,
    #[error("no discriminator of this side's in a state that needs one")]
    State,
    #[error("a discriminator that is no session's here")]
    Stranger,
    #[error("authentication where none is configured, none where some is, or none that holds")]
    Authentication,
    #[error("a TTL other than 255: it came from further away than the next hop")]
    Ttl,
    #[error("the session is held down here")]
    Held,
}

/// A control packet. Times are in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// Why the sender's session left its state last.
    pub diagnostic: u8,
    /// The sender's state.
    pub state: State,
    /// It wants an answer at once, since its timers change.
    pub poll: bool,
    /// This is the answer.
    pub last: bool,
    /// The sender's packets go on without its control plane.
    pub independent: bool,
    /// An authentication section follows.
    pub authenticated: bool,
    /// The sender wants no periodic packets.
    pub demand: bool,
    /// Detection multiplier.
    pub multiplier: u8,
    /// The sender's discriminator.
    pub mine: u32,
    /// The receiver's, as far as the sender knows it.
    pub yours: u32,
    /// The sender would send no faster than this.
    pub min_tx: u32,
    /// The sender takes packets no faster than this; 0: none at all.
    pub min_rx: u32,
    /// The same of echoes; 0: none.
    pub min_echo: u32,
}

impl Packet {
    /// Reads the mandatory part of a datagram; says how long the packet is with all.
    ///
    /// # Errors
    /// Whatever by itself makes it worthless.
    pub fn read(bytes: &[u8]) -> Result<(Self, usize), Discard> {
        let head: &[u8; LENGTH] = bytes.first_chunk().ok_or(Discard::Short)?;
        let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let bit = |mask: u8| head[1] & mask != 0;
        if head[0] >> 5 != VERSION {
            return Err(Discard::Version);
        }
        let packet = Self {
            diagnostic: head[0] & 0x1f,
            state: State::of(head[1] >> 6),
            poll: bit(0x20),
            last: bit(0x10),
            independent: bit(0x08),
            authenticated: bit(0x04),
            demand: bit(0x02),
            multiplier: head[2],
            mine: word(4),
            yours: word(8),
            min_tx: word(12),
            min_rx: word(16),
            min_echo: word(20),
        };
        let length = usize::from(head[3]);
        let least = if packet.authenticated { LENGTH + 2 } else { LENGTH };
        if !(least..=bytes.len()).contains(&length) {
            return Err(Discard::Length);
        }
        if packet.multiplier == 0 {
            return Err(Discard::Multiplier);
        }
        if bit(0x01) {
            return Err(Discard::Multipoint);
        }
        if packet.mine == 0 {
            return Err(Discard::Discriminator);
        }
        if packet.yours == 0 && !matches!(packet.state, State::Down | State::AdminDown) {
            return Err(Discard::State);
        }
        Ok((packet, length))
    }

    /// Writes it, without an authentication section: whoever appends one says so in the packet, and corrects the length.
    pub fn write(&self) -> [u8; LENGTH] {
        let bit = |set: bool, mask: u8| if set { mask } else { 0 };
        let mut bytes = [0; LENGTH];
        bytes[0] = VERSION << 5 | self.diagnostic & 0x1f;
        bytes[1] = (self.state as u8) << 6
            | bit(self.poll, 0x20)
            | bit(self.last, 0x10)
            | bit(self.independent, 0x08)
            | bit(self.authenticated, 0x04)
            | bit(self.demand, 0x02);
        bytes[2] = self.multiplier;
        bytes[3] = LENGTH as u8;
        let words = [self.mine, self.yours, self.min_tx, self.min_rx, self.min_echo];
        for (place, word) in bytes[4..].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }
}
