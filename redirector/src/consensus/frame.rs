//! The frame around everything that is stored or sent: whoever reads it knows that it is whole, what it is and where it
//! belongs, before anything of it is believed.
//!
//! ```text
//! 0  kind, 1 byte: see `Kind`
//! 1  version of the payload's format, 1 byte
//! 2  zero, 2 bytes
//! 4  length of the payload, 4 bytes
//! 8  key, 8 bytes: what the frame belongs to, such as its log index or the cluster
//! 16 payload: postcard
//! n  CRC-32C of all before it, 4 bytes
//! ```
//! Numbers are little endian. The header and the checksum keep their form in every version, so that damage is told from
//! a version that is not known here.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// Whose disk it is.
    Identity = 1,
    /// Term, vote, and what of the log is there.
    Position = 2,
    /// A state with its place in the log.
    Snapshot = 3,
    /// A log entry.
    Entry = 4,
    /// What is known of a log entry beside the entry itself.
    Mark = 5,
    /// A command in a log entry.
    Command = 6,
    /// A message between machines.
    Message = 7,
    /// A node's report to the leader.
    Report = 8,
    /// A command that a node asks the leader to propose.
    Ask = 9,
    /// What became of it.
    Answer = 10,
    /// How many flows a node has on backends that drain.
    Tally = 11,
}

impl Kind {
    /// The greatest version of the kind's format that is known here. What older versions understand is written in theirs.
    pub const fn version(self) -> u8 {
        match self {
            Self::Snapshot | Self::Command => 5,
            Self::Message => 2,
            _ => 1,
        }
    }

    /// Bytes that its newest format has at the end and an older one lacks: all zero where they say nothing.
    const fn lacking(self, version: u8) -> usize {
        match (self, version) {
            // Pools in a panic, before that backends that drain, those that warm up, and disks that have lost their seats.
            (Self::Snapshot, 0..=1) => 4,
            (Self::Snapshot, 2) => 3,
            (Self::Snapshot, 3) => 2,
            (Self::Snapshot, 4) => 1,
            _ => 0,
        }
    }
}

/// Why a frame is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Bytes are missing or changed.
    #[error("it is damaged: its checksum does not hold")]
    Damaged,
    /// A newer version wrote it.
    #[error("it is of format {found}, and this version knows formats up to {known}: upgrade this node")]
    Newer {
        /// The format that it is of.
        found: u8,
        /// The newest that is known here.
        known: u8,
    },
    /// It is whole, and something else was expected.
    #[error("it is whole but not what belongs here")]
    Foreign,
}

const HEADER: usize = 16;
const CHECKSUM: usize = 4;

/// Puts a payload into a frame of the first format.
pub fn seal(kind: Kind, key: u64, payload: &impl Serialize) -> Vec<u8> {
    seal_as(kind, 1, key, payload)
}

/// Puts a payload into a frame of a format. Of an older one, whatever it lacks must be empty in the payload.
pub fn seal_as(kind: Kind, version: u8, key: u64, payload: &impl Serialize) -> Vec<u8> {
    let mut frame = vec![kind as u8, version, 0, 0, 0, 0, 0, 0];
    frame.extend(key.to_le_bytes());
    let mut frame = postcard::to_extend(payload, frame).expect("what is sealed has known lengths");
    frame.truncate(frame.len() - kind.lacking(version));
    let length = (frame.len() - HEADER) as u32;
    frame[4..8].copy_from_slice(&length.to_le_bytes());
    let checksum = crc32c::crc32c(&frame);
    frame.extend(checksum.to_le_bytes());
    frame
}

/// Takes a payload out of a frame of this kind and key.
///
/// # Errors
/// [`FrameError`]; nothing of the frame is to be used then.
pub fn open<T: DeserializeOwned>(kind: Kind, key: u64, frame: &[u8]) -> Result<T, FrameError> {
    let (found, payload) = checked(frame)?;
    if found != (kind as u8, key) {
        return Err(FrameError::Foreign);
    }
    if frame[1] > kind.version() {
        return Err(FrameError::Newer { found: frame[1], known: kind.version() });
    }
    let lacking = kind.lacking(frame[1]);
    let whole;
    let payload = match lacking {
        0 => payload,
        _ => {
            whole = [payload, &vec![0; lacking]].concat();
            &whole
        }
    };
    match postcard::take_from_bytes(payload) {
        Ok((payload, [])) => Ok(payload),
        _ => Err(FrameError::Foreign),
    }
}

/// Whether a frame says that it is of this kind.
pub fn says(frame: &[u8], kind: Kind) -> bool {
    frame.first() == Some(&(kind as u8))
}

/// The key that a frame says it has.
pub fn key(frame: &[u8]) -> Option<u64> {
    frame.get(8..HEADER)?.try_into().ok().map(u64::from_le_bytes)
}

/// Kind, key and payload of a whole frame.
fn checked(frame: &[u8]) -> Result<((u8, u64), &[u8]), FrameError> {
    let (body, checksum) = frame.split_last_chunk::<CHECKSUM>().ok_or(FrameError::Damaged)?;
    let (header, payload) = body.split_first_chunk::<HEADER>().ok_or(FrameError::Damaged)?;
    let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    if crc32c::crc32c(body) != u32::from_le_bytes(*checksum) || length as usize != payload.len() {
        return Err(FrameError::Damaged);
    }
    let mut key = [0; 8];
    key.copy_from_slice(&header[8..]);
    Ok(((header[0], u64::from_le_bytes(key)), payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_is_opened() {
        let frame = seal(Kind::Entry, 7, &(1u8, "text".to_owned()));
        assert_eq!(open(Kind::Entry, 7, &frame), Ok((1u8, "text".to_owned())));
        assert_eq!(open::<(u8, String)>(Kind::Entry, 8, &frame), Err(FrameError::Foreign));
        assert_eq!(open::<(u8, String)>(Kind::Mark, 7, &frame), Err(FrameError::Foreign));
        assert_eq!(open::<u8>(Kind::Entry, 7, &frame), Err(FrameError::Foreign));
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_found() {
        let frame = seal(Kind::Position, 0, &[3u64, 300, 70_000]);
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open::<[u64; 3]>(Kind::Position, 0, &damaged), Err(FrameError::Damaged), "bit {bit}");
        }
        for length in 0..frame.len() {
            assert_eq!(open::<[u64; 3]>(Kind::Position, 0, &frame[..length]), Err(FrameError::Damaged));
        }
    }

    #[test]
    fn a_newer_format_is_told_from_damage() {
        let mut frame = seal(Kind::Command, 0, &1u8);
        frame[1] = 9;
        let body = frame.len() - CHECKSUM;
        let checksum = crc32c::crc32c(&frame[..body]);
        frame[body..].copy_from_slice(&checksum.to_le_bytes());
        let refused = open::<u8>(Kind::Command, 0, &frame).unwrap_err();
        assert_eq!(refused, FrameError::Newer { found: 9, known: 5 });
        assert!(refused.to_string().contains("upgrade this node"));
    }
}
