//! Batches of flows and the answers to them, byte by byte. Numbers are in network order; `n` stands for a number in
//! seven-bit groups, the lowest first, of which all but the last have the top bit set (LEB128).
//!
//! A batch:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 1 | 1: a batch |
//! | 1 | 1 | version of this format: 1 |
//! | 2 | 1 | bit 0: the receiver has been given every flow that it is to have; the others are zero |
//! | 3 | 1 | sender's node id |
//! | 4 | 4 | cluster id |
//! | 8 | 8 | sender's incarnation |
//! | 16 | 8 | sequence, greater than that of any earlier batch to this receiver |
//! | 24 | 8 | receiver's incarnation, as far as the sender knows; else zero |
//! | 32 | 8 | version of the sender's slot table |
//! | 40 | 2 | services that are named |
//! | 42 | 2 | backends that are named |
//! | 44 | 2 | flows |
//! | 46 | 2 | zero |
//! | 48 | … | the names, services first: length in one byte, then UTF-8 |
//! | … | … | the flows |
//! | … | 4 | CRC-32C of everything before |
//!
//! A flow: one byte with its state (bits 0 to 2), IPv6 (3), origin given (4) and zeros; the protocol; client's and VIP's
//! addresses, 4 or 16 bytes each; both ports; then `n` for the service's place among the names, the backend's, the
//! seconds since its last packet, the seconds since it was recorded, and its slot's version then; and last, where the
//! origin is not the sender, the id of the node that chose the backend. An IPv4 flow takes some 20 bytes.
//!
//! An answer: 2, the version, the [`Verdict`], the answering node's id; cluster (4); its incarnation (8); the batch's
//! sequence (8; of a stale one that of the last that was taken, 0 where it could not be read); the number of flows that
//! it could not take (2) and their places in the batch (2 each); CRC-32C of everything before (4).
//!
//! Whatever version writes: the first byte is the kind, the second the version, and the last four the checksum.

use redirector_ebpf::packet::protocol;
use redirector_ebpf::tables::flow::State;

use super::key::FlowKey;

mod read;
mod write;

pub use write::{BatchWriter, NotWritten};

const BATCH: u8 = 1;
const ANSWER: u8 = 2;
/// The version of both formats.
pub const VERSION: u8 = 1;
/// Bytes of the longest batch that is read.
pub const BATCH_BYTES_MAX: usize = 256 << 10;
/// Bytes of the longest name: what the map of names holds.
pub const NAME_BYTES_MAX: usize = 135;
const HEADER: usize = 48;
const CHECKSUM: usize = 4;
/// Idle seconds wrap here, as the stamps of entries do.
const IDLE_MAX: u32 = 8191;

const STATE: u8 = 0x07;
const V6: u8 = 0x08;
const ORIGIN: u8 = 0x10;
const COMPLETE: u8 = 0x01;

/// Why a batch or an answer was not read. Nothing of it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Bytes were changed or lost on the way.
    #[error("the checksum does not fit: bytes were changed or lost on the way")]
    Damaged,
    /// It is of another version.
    #[error("it is of version {0}, this node reads {VERSION}: upgrade the older of the two nodes")]
    Version(u8),
    /// It is of another cluster.
    #[error("it is of cluster {0}: two clusters share addresses or certificates")]
    Cluster(u32),
    /// It is intact and makes no sense.
    #[error("its {0} cannot be")]
    Absurd(&'static str),
}

/// What is said of a batch as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The cluster.
    pub cluster: u32,
    /// Who sends it.
    pub sender: u8,
    /// Which life of the sender's.
    pub incarnation: u64,
    /// Its place among the sender's batches.
    pub sequence: u64,
    /// The receiver's life that is spoken to; 0: not known yet.
    pub receiver: u64,
    /// Whether the receiver has been given every flow that it is to have from the sender, by the slot table `as_of`.
    pub complete: bool,
    /// Version of the sender's slot table.
    pub as_of: u64,
}

/// A flow as it goes from node to node. Numbers of backends and services differ between nodes, so both stand for names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowCopy {
    /// The flow.
    pub key: FlowKey,
    /// What it is doing.
    pub state: State,
    /// Place of its service in [`Batch::services`].
    pub service: u16,
    /// Place of its backend in [`Batch::backends`].
    pub backend: u16,
    /// Seconds since its last packet.
    pub idle: u16,
    /// Seconds since it was recorded.
    pub age: u32,
    /// Version of its slot then.
    pub version: u32,
    /// The node that chose the backend.
    pub origin: u8,
}

/// A batch that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// What is said of the whole.
    pub header: Header,
    /// Names of services.
    pub services: Vec<String>,
    /// Names of backends, `pool/backend`.
    pub backends: Vec<String>,
    /// The flows.
    pub flows: Vec<FlowCopy>,
}

/// What becomes of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// Its flows were taken, but for those that are named.
    Taken = 1,
    /// It came damaged and nothing of it counts: send it again.
    Damaged = 2,
    /// A later one was there before it: send what is in it once more, as it is now.
    Stale = 3,
    /// It is of another version or cluster, or makes no sense: sending it again does not help.
    Refused = 4,
}

/// The answer to a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What becomes of the batch.
    pub verdict: Verdict,
    /// Who answers.
    pub node: u8,
    /// The cluster.
    pub cluster: u32,
    /// Which life of the answering node's.
    pub incarnation: u64,
    /// The batch's sequence; of a stale one that of the last that was taken.
    pub sequence: u64,
    /// Places of the flows that were not taken, since their names are unknown there or there is no room.
    pub missed: Vec<u16>,
}

/// The state of these bits, if a proven flow of this protocol can be in it.
fn state(bits: u8, transport: u8) -> Option<State> {
    let state = State::from_bits(bits);
    let fits = match state {
        State::Established | State::Closing => transport == protocol::TCP,
        State::Datagrams => transport == protocol::UDP,
        State::Other => bits == State::Other as u8 && !matches!(transport, protocol::TCP | protocol::UDP),
        State::Opening | State::FirstDatagram | State::TakenUp => false,
    };
    fits.then_some(state)
}

#[cfg(test)]
mod tests;
