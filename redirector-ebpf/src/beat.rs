//! The beat: the authenticated datagram by which nodes find out who is alive.
//!
//! UDP to port [`crate::abi::BEAT_PORT`], 128 bytes of payload, all numbers little endian:
//!
//! | bytes | field |
//! |---|---|
//! | 0..2 | magic `RB` |
//! | 2 | version, 1 |
//! | 3 | kind: 1 request, 2 answer; 3 and 4 the same between a node and the far end of a path, see below |
//! | 4 | id of the node that sends |
//! | 5 | id of the node that it is for |
//! | 6 | number of the key, 1 to 255 |
//! | 7 | the sender's state, see [`crate::tables::liveness::state`] |
//! | 8..12 | cluster id |
//! | 12..16 | the sender's incarnation |
//! | 16..24 | the sender's boot id |
//! | 24..32 | number of the request on its link; in an answer, of the answering node's own last request on it |
//! | 32..40 | nonce of the request; an answer repeats it |
//! | 40..48 | in an answer, the boot id of the node that asked; else 0 |
//! | 48..56 | time of sending, the sender's monotonic nanoseconds |
//! | 56..64 | the sender's applied log index |
//! | 64..72 | digest of its slot table |
//! | 72..80 | digest of its pools' tables |
//! | 80 | its health score, 0 to 100 |
//! | 81 | its load in per cent, 0 to 100 |
//! | 82 | its shed level, 0 to 3 |
//! | 83 | 0 |
//! | 84..88 | milliseconds since its agent's last sign of life |
//! | 88..120 | who is alive in its eyes, a bit for each id, the lowest first |
//! | 120..128 | SipHash-2-4 of bytes 0..120 under the key |
//!
//! Beats between a node and the far end of a path are alike, under a key of their own. The far end has no id, and is 0 in
//! bytes 4 and 5; bytes 56..60 are the number of the leg, which an answer repeats; bytes 12..16 and 60..120 are 0.

use crate::reason::{Reason, Station};
use crate::siphash;
use crate::tables::liveness::{Vitals, state};
use crate::tables::{AliveNodes, Watch};

/// Words of a beat.
pub const WORDS: usize = 16;
/// Bytes of a beat.
pub const BYTES: usize = WORDS * 8;
/// The version of the wire form.
pub const VERSION: u8 = 1;

const MAGIC: u16 = u16::from_le_bytes(*b"RB");
const TAG: usize = WORDS - 1;

/// Whether a beat asks or answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// It asks to be answered.
    Request = 1,
    /// It answers.
    Answer = 2,
    /// It asks the far end of a path.
    PathRequest = 3,
    /// The far end of a path answers.
    PathAnswer = 4,
}

/// A beat's words in the machine's order. What they say counts only once [`Beat::check`] has approved of them.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beat {
    /// The words.
    pub words: [u64; WORDS],
}

impl Beat {
    /// Whether it claims to be a beat at all.
    #[inline(always)]
    pub fn is_magic(first: u64) -> bool {
        first as u16 == MAGIC
    }

    /// Whether it is a whole and authentic beat for this node.
    ///
    /// # Errors
    /// The reason to drop it.
    #[inline(always)]
    pub fn check(&self, watch: &Watch, cluster: u32, me: u8) -> Station<()> {
        if self.version() != VERSION {
            return Err(Reason::BeatVersion);
        }
        if self.cluster() != cluster || self.target() != me {
            return Err(Reason::BeatForeign);
        }
        let id = (self.words[0] >> 48) as u8;
        let key = if id != 0 && id == watch.key_ids[0] {
            &watch.keys[0]
        } else if id != 0 && id == watch.key_ids[1] {
            &watch.keys[1]
        } else {
            return Err(Reason::BeatTag);
        };
        if self.words[TAG] != self.tag(key) {
            return Err(Reason::BeatTag);
        }
        let vitals = self.vitals();
        let possible = self.source() != 0
            && self.source() != me
            && self.source() != 255
            && vitals.state <= state::DRAINING
            && vitals.health <= 100
            && vitals.load <= 100
            && vitals.shed <= 3
            && self.words[10] >> 24 & 0xff == 0
            && self.incarnation() != 0
            && (self.is_request() && self.words[3] != 0 && self.words[5] == 0 || self.is_answer());
        if possible { Ok(()) } else { Err(Reason::BeatMalformed) }
    }

    /// Whether it is a whole and authentic beat of this kind between a node and the far end of a path.
    ///
    /// # Errors
    /// The reason to drop it.
    #[inline(always)]
    pub fn check_path(&self, key: &[u64; 2], key_id: u8, cluster: u32, kind: Kind) -> Station<()> {
        if self.version() != VERSION {
            return Err(Reason::BeatVersion);
        }
        if self.cluster() != cluster {
            return Err(Reason::BeatForeign);
        }
        if key_id == 0 || (self.words[0] >> 48) as u8 != key_id || self.words[TAG] != self.tag(key) {
            return Err(Reason::BeatTag);
        }
        if (self.words[0] >> 24) as u8 != kind as u8 || self.words[7] >> 32 != 0 {
            return Err(Reason::BeatMalformed);
        }
        Ok(())
    }

    #[inline(always)]
    fn tag(&self, key: &[u64; 2]) -> u64 {
        match self.words.first_chunk::<TAG>() {
            Some(said) => siphash::tag(key, said),
            None => 0,
        }
    }

    /// Version of the wire form.
    #[inline(always)]
    pub fn version(&self) -> u8 {
        (self.words[0] >> 16) as u8
    }

    /// Whether it asks.
    #[inline(always)]
    pub fn is_request(&self) -> bool {
        (self.words[0] >> 24) as u8 == Kind::Request as u8
    }

    /// Whether it answers.
    #[inline(always)]
    pub fn is_answer(&self) -> bool {
        (self.words[0] >> 24) as u8 == Kind::Answer as u8
    }

    /// Whether it comes from the far end of a path, and answers.
    #[inline(always)]
    pub fn is_path_answer(&self) -> bool {
        (self.words[0] >> 24) as u8 == Kind::PathAnswer as u8
    }

    /// The number of the leg, of a beat to or from a far end.
    #[inline(always)]
    pub fn leg(&self) -> u32 {
        self.words[7] as u32
    }

    /// Who sends it.
    #[inline(always)]
    pub fn source(&self) -> u8 {
        (self.words[0] >> 32) as u8
    }

    /// Whom it is for.
    #[inline(always)]
    pub fn target(&self) -> u8 {
        (self.words[0] >> 40) as u8
    }

    /// The cluster.
    #[inline(always)]
    pub fn cluster(&self) -> u32 {
        self.words[1] as u32
    }

    /// The sender's incarnation.
    #[inline(always)]
    pub fn incarnation(&self) -> u32 {
        (self.words[1] >> 32) as u32
    }

    /// The sender's boot id.
    #[inline(always)]
    pub fn boot_id(&self) -> u64 {
        self.words[2]
    }

    /// Number of the request; of an answer, see the table above.
    #[inline(always)]
    pub fn sequence(&self) -> u64 {
        self.words[3]
    }

    /// The nonce.
    #[inline(always)]
    pub fn nonce(&self) -> u64 {
        self.words[4]
    }

    /// The boot id of the node that asked.
    #[inline(always)]
    pub fn asker(&self) -> u64 {
        self.words[5]
    }

    /// State, health, load, shed level and the agent's age.
    #[inline(always)]
    pub fn vitals(&self) -> Vitals {
        let detail = self.words[10];
        Vitals {
            state: (self.words[0] >> 56) as u8,
            health: detail as u8,
            load: (detail >> 8) as u8,
            shed: (detail >> 16) as u8,
            agent_age: (detail >> 32) as u32,
        }
    }

    /// Applied log index, digest of the slot table, digest of the pools' tables.
    #[inline(always)]
    pub fn tables(&self) -> [u64; 3] {
        [self.words[7], self.words[8], self.words[9]]
    }

    /// Who is alive in the sender's eyes.
    #[inline(always)]
    pub fn view(&self) -> [u64; 4] {
        [self.words[11], self.words[12], self.words[13], self.words[14]]
    }

    /// Says who sends it and whom it is for.
    #[inline(always)]
    pub fn set_head(&mut self, watch: &Watch, cluster: u32, kind: Kind, source: u8, target: u8) {
        self.words[0] = MAGIC as u64
            | (VERSION as u64) << 16
            | (kind as u64) << 24
            | (source as u64) << 32
            | (target as u64) << 40
            | (watch.key_ids[0] as u64) << 48;
        self.words[1] = cluster as u64 | (watch.incarnation as u64) << 32;
        self.words[2] = watch.boot_id;
    }

    /// Says which request it is, or answers.
    #[inline(always)]
    pub fn set_turn(&mut self, sequence: u64, nonce: u64, asker: u64, now: u64) {
        self.words[3] = sequence;
        self.words[4] = nonce;
        self.words[5] = asker;
        self.words[6] = now;
    }

    /// Says how the sender is.
    #[inline(always)]
    pub fn set_condition(&mut self, vitals: Vitals, tables: [u64; 3], view: &AliveNodes) {
        self.words[0] |= (vitals.state as u64) << 56;
        self.words[7] = tables[0];
        self.words[8] = tables[1];
        self.words[9] = tables[2];
        self.words[10] = vitals.word() >> 8 & 0xff_ffff | (vitals.agent_age as u64) << 32;
        self.words[11] = view.words[0];
        self.words[12] = view.words[1];
        self.words[13] = view.words[2];
        self.words[14] = view.words[3];
    }

    /// Puts the tag on, when all else is said.
    #[inline(always)]
    pub fn seal(&mut self, watch: &Watch) {
        self.seal_with(&watch.keys[0]);
    }

    /// The same, under this key.
    #[inline(always)]
    pub fn seal_with(&mut self, key: &[u64; 2]) {
        self.words[TAG] = self.tag(key);
    }

    /// A request to the far end of a path, which is not sealed yet. `turn` is number, nonce and time.
    #[inline(always)]
    pub fn path_request(key_id: u8, cluster: u32, node: u8, boot_id: u64, leg: u32, turn: [u64; 3]) -> Self {
        let mut beat = Self::default();
        beat.set_path_head(key_id, cluster, Kind::PathRequest, node, 0);
        beat.words[2] = boot_id;
        beat.set_turn(turn[0], turn[1], 0, turn[2]);
        beat.words[7] = leg as u64;
        beat
    }

    /// Turns a request to this far end into the answer to it, which is not sealed yet.
    #[inline(always)]
    pub fn answer_path(&mut self, boot_id: u64, now: u64) {
        let (key_id, asker) = ((self.words[0] >> 48) as u8, self.words[2]);
        self.set_path_head(key_id, self.cluster(), Kind::PathAnswer, 0, self.source());
        self.words[2] = boot_id;
        self.words[5] = asker;
        self.words[6] = now;
    }

    #[inline(always)]
    fn set_path_head(&mut self, key_id: u8, cluster: u32, kind: Kind, source: u8, target: u8) {
        self.words[0] = MAGIC as u64
            | (VERSION as u64) << 16
            | (kind as u64) << 24
            | (source as u64) << 32
            | (target as u64) << 40
            | (key_id as u64) << 48;
        self.words[1] = cluster as u64;
    }
}
