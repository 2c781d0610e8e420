//! The form of what is sent, byte by byte. Nothing here reads or writes a stream.
//!
//! Numbers are big-endian.
//!
//! ```text
//! offset  bytes  field
//!      0      4  magic, "RDTP"
//!      4      1  version, 1
//!      5      1  channel: 0 consensus, 1 flows, 2 control
//!      6      1  kind: 0 tell, 1 request, 2 answer, 3 welcome, 4 farewell
//!      7      1  0
//!      8      4  length of the payload in bytes, at most 16 MiB
//!     12      4  CRC-32C over bytes 0 to 11 and the payload
//!     16         payload
//! ```
//!
//! QUIC has checked what came over the network; the sum is for what happened before and after that, in the memory of
//! either end: a bit that flips in a table must not spread to those who hold the table's copies.

use super::Channel;

/// The version that this node speaks.
pub(super) const VERSION: u8 = 1;

/// Bytes in front of the payload.
pub(super) const HEADER: usize = 16;

/// The longest payload in bytes.
pub const PAYLOAD_MAX: usize = 16 << 20;

const MAGIC: [u8; 4] = *b"RDTP";

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It wants no answer.
    Tell,
    /// It wants one.
    Request,
    /// It is one.
    Answer,
    /// Sent once by who accepts a connection, on the first stream: from then on the connection stands.
    Welcome,
    /// There is a newer connection, over which to send from now on; this one ends soon.
    Farewell,
}

/// Why a frame is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Something else than a frame.
    #[error("it starts with {0:02x?}, where a frame starts with \"RDTP\"")]
    Magic([u8; 4]),
    /// Of a version that this node does not know.
    #[error(
        "it is of version {theirs} of the agents' protocol, where version {VERSION} is understood: upgrade one of the two nodes"
    )]
    Version {
        /// The frame's version.
        theirs: u8,
    },
    /// A field that has no such value.
    #[error("field {field} cannot be {value}")]
    Field {
        /// The field's name.
        field: &'static str,
        /// What it says.
        value: u8,
    },
    /// A payload that is too long.
    #[error("a payload of {0} bytes; {PAYLOAD_MAX} are the most")]
    Oversized(usize),
    /// Less than the header promises.
    #[error("it ends after {present} of {promised} bytes")]
    Truncated {
        /// Bytes that there are.
        present: usize,
        /// Bytes that were promised.
        promised: usize,
    },
    /// More than the header promises.
    #[error("{0} bytes follow where nothing may follow")]
    Trailing(usize),
    /// Header or payload were changed.
    #[error("its checksum is {computed:08x}, it says {said:08x}")]
    Checksum {
        /// What the frame says.
        said: u32,
        /// What comes out.
        computed: u32,
    },
    /// A frame that has no place here, such as an answer where none is awaited.
    #[error("a frame of this kind or channel has no place on this stream")]
    Misplaced,
}

/// A frame's header, whose fields make sense; the checksum is judged with the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) channel: Channel,
    pub(super) kind: Kind,
    /// Of the payload.
    pub(super) length: usize,
    /// Over the bytes in front of it.
    partial: u32,
    said: u32,
}

impl Header {
    /// Reads a header.
    pub(super) fn read(bytes: &[u8; HEADER]) -> Result<Self, FrameError> {
        let &[m0, m1, m2, m3, version, channel, kind, zero, l0, l1, l2, l3, c0, c1, c2, c3] = bytes;
        let magic = [m0, m1, m2, m3];
        if magic != MAGIC {
            return Err(FrameError::Magic(magic));
        }
        if version != VERSION {
            return Err(FrameError::Version { theirs: version });
        }
        let unknown = |field, value| FrameError::Field { field, value };
        let channel = Channel::from_byte(channel).ok_or_else(|| unknown("channel", channel))?;
        let kind = Kind::from_byte(kind).ok_or_else(|| unknown("kind", kind))?;
        if zero != 0 {
            return Err(unknown("7", zero));
        }
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        if length > PAYLOAD_MAX {
            return Err(FrameError::Oversized(length));
        }
        let partial = crc32c::crc32c(&bytes[..12]);
        Ok(Self { channel, kind, length, partial, said: u32::from_be_bytes([c0, c1, c2, c3]) })
    }

    /// Holds a payload against the header.
    pub(super) fn check(&self, payload: &[u8]) -> Result<(), FrameError> {
        if payload.len() < self.length {
            let (present, promised) = (HEADER + payload.len(), HEADER + self.length);
            return Err(FrameError::Truncated { present, promised });
        }
        if payload.len() > self.length {
            return Err(FrameError::Trailing(payload.len() - self.length));
        }
        let computed = crc32c::crc32c_append(self.partial, payload);
        if computed == self.said { Ok(()) } else { Err(FrameError::Checksum { said: self.said, computed }) }
    }
}

/// The header of a payload.
pub(super) fn header(channel: Channel, kind: Kind, payload: &[u8]) -> Result<[u8; HEADER], FrameError> {
    if payload.len() > PAYLOAD_MAX {
        return Err(FrameError::Oversized(payload.len()));
    }
    let mut bytes = [0; HEADER];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..7].copy_from_slice(&[VERSION, channel.byte(), kind.byte()]);
    bytes[8..12].copy_from_slice(&(payload.len() as u32).to_be_bytes());
    let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), payload);
    bytes[12..].copy_from_slice(&sum.to_be_bytes());
    Ok(bytes)
}

impl Channel {
    /// All of them, in the order of their bytes.
    pub const ALL: [Self; 3] = [Self::Consensus, Self::Flows, Self::Control];

    /// The channel's byte in a frame.
    pub(super) fn byte(self) -> u8 {
        self as u8
    }

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|channel| channel.byte() == byte)
    }
}

impl Kind {
    fn byte(self) -> u8 {
        self as u8
    }

    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Tell, Self::Request, Self::Answer, Self::Welcome, Self::Farewell]
            .into_iter()
            .find(|kind| kind.byte() == byte)
    }
}
