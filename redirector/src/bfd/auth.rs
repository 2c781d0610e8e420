//! How packets prove who sent them (RFC 5880, sections 4.2 to 4.4 and 6.7): a password in the clear, or a keyed SHA-1 over
//! the packet. SHA-1 is what the protocol has, and peers too: it keeps strangers out, and is no more than that.

use std::time::Duration;

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA1_OUTPUT_LEN, digest};
use serde::Serialize;

use super::packet::LENGTH;

/// The longest password, and the longest key, in bytes.
pub const PASSWORD_MAX: usize = 16;
/// The longest key of a SHA-1, in bytes.
pub const KEY_MAX: usize = SHA1_OUTPUT_LEN;
/// Bytes of a section with a SHA-1.
const SHA1_LENGTH: usize = 8 + SHA1_OUTPUT_LEN;

/// Kinds of authentication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A password in the clear.
    Simple,
    /// A SHA-1 over packet and key; a packet may be repeated while its number is the last one.
    Sha1,
    /// The same, with a number that rises with each packet.
    MeticulousSha1,
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Self::Simple => 1,
            Self::Sha1 => 4,
            Self::MeticulousSha1 => 5,
        }
    }
}

/// A secret that is shared with the peer.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// How it is used.
    pub kind: Kind,
    /// Its number, the same at the peer.
    pub id: u8,
    /// The secret: 1 to 16 bytes of a password, 1 to 20 of a key.
    pub secret: Vec<u8>,
}

/// What is known of the numbers of the peer's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    last: Option<u32>,
    /// When it is forgotten.
    until: Duration,
}

impl Numbers {
    /// The session has taken a packet, and has this detection time.
    pub fn heard(&mut self, now: Duration, detection: Duration) {
        self.until = now.saturating_add(detection.saturating_mul(2));
    }

    /// Time has passed. The last number is forgotten when nothing was heard for twice the detection time, and no sooner
    /// (section 6.8.1, `bfd.AuthSeqKnown`): else whoever kept a packet could send it again to a session that just expired.
    pub fn pass(&mut self, now: Duration) {
        if now >= self.until {
            self.last = None;
        }
    }
}

impl Key {
    /// Appends the section to a packet that says that it has one.
    pub fn append(&self, bytes: &mut Vec<u8>, number: u32) {
        bytes.extend([self.kind.number(), 0, self.id]);
        match self.kind {
            Kind::Simple => bytes.extend(&self.secret),
            Kind::Sha1 | Kind::MeticulousSha1 => {
                bytes.push(0);
                bytes.extend(number.to_be_bytes());
                bytes.extend(self.padded());
            }
        }
        let length = bytes.len();
        bytes[3] = length as u8;
        bytes[LENGTH + 1] = (length - LENGTH) as u8;
        if self.kind != Kind::Simple {
            let sum = digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes);
            bytes[length - SHA1_OUTPUT_LEN..].copy_from_slice(sum.as_ref());
        }
    }

    /// Whether a packet, as long as it says that it is, was sent by who knows the secret, and is none that was heard before.
    /// `multiplier` is what the peer told last: so many numbers may have been lost.
    pub fn admits(&self, bytes: &[u8], multiplier: u8, numbers: &mut Numbers) -> bool {
        let Some(section) = bytes.get(LENGTH..) else { return false };
        let [kind, length, id, ..] = *section else { return false };
        if kind != self.kind.number() || usize::from(length) != section.len() || id != self.id {
            return false;
        }
        if self.kind == Kind::Simple {
            return same(&section[3..], &self.secret);
        }
        if section.len() != SHA1_LENGTH {
            return false;
        }
        let number = u32::from_be_bytes([section[4], section[5], section[6], section[7]]);
        if numbers.last.is_some_and(|last| !self.follows(last, number, multiplier)) {
            return false;
        }
        let (head, sum) = bytes.split_at(bytes.len() - SHA1_OUTPUT_LEN);
        let expected = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[head, &self.padded()].concat());
        let holds = same(expected.as_ref(), sum);
        if holds {
            numbers.last = Some(number);
        }
        holds
    }

    /// Numbers go round (section 6.7.4): from the last one, or the one after it, to three multipliers on.
    fn follows(&self, last: u32, number: u32, multiplier: u8) -> bool {
        let ahead = number.wrapping_sub(last);
        let least = u32::from(self.kind == Kind::MeticulousSha1);
        (least..=3 * u32::from(multiplier.max(1))).contains(&ahead)
    }

    fn padded(&self) -> [u8; KEY_MAX] {
        let mut key = [0; KEY_MAX];
        key.iter_mut().zip(&self.secret).for_each(|(place, byte)| *place = *byte);
        key
    }
}

/// Compares in a time that does not depend on where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({:?} {})", self.kind, self.id)
    }
}

/// The secret itself is left out.
impl Serialize for Key {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let sum = siphasher::sip::SipHasher24::new().hash(&self.secret);
        serializer.collect_str(&format!("{:?} {} fingerprint {:08x}", self.kind, self.id, sum >> 32))
    }
}
