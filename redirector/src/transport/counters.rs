//! What happened on the way to and from each peer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::Serialize;

/// What the transport has seen so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// By the peer's node id.
    pub peers: BTreeMap<u8, PeerCounters>,
    /// Connections from outside that ended with the certificate of one end or the other refused, or were made by a node
    /// that is no member.
    pub strangers: u64,
    /// Connections from outside that were turned away since too many were being made.
    pub crowded: u64,
}

/// What has happened with one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PeerCounters {
    /// Whether a connection stands.
    pub connected: bool,
    /// Connections made, by either end.
    pub connections: u64,
    /// Frames that came whole, answers among them.
    pub frames_in: u64,
    /// Frames handed to the network.
    pub frames_out: u64,
    /// Bytes of those frames, headers too.
    pub bytes_in: u64,
    /// Bytes of those frames, headers too.
    pub bytes_out: u64,
    /// Messages not sent: peer away, queue full, too long, or connection lost meanwhile.
    pub dropped: u64,
    /// Times that one end refused the other's certificate when this node dialled.
    pub refused_certificates: u64,
    /// Frames refused: cut short, too long, changed, of an unknown version.
    pub damaged_frames: u64,
    /// Round-trip time that QUIC measures, in microseconds; absent without a connection.
    pub rtt_us: Option<u64>,
}

/// The counts of one peer while they grow.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) connections: AtomicU64,
    pub(super) frames_in: AtomicU64,
    pub(super) frames_out: AtomicU64,
    pub(super) bytes_in: AtomicU64,
    pub(super) bytes_out: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) refused_certificates: AtomicU64,
    pub(super) damaged_frames: AtomicU64,
}

impl Tally {
    /// Adds one.
    pub(super) fn one(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }

    /// A frame came.
    pub(super) fn came(&self, bytes: usize) {
        self.frames_in.fetch_add(1, Relaxed);
        self.bytes_in.fetch_add(bytes as u64, Relaxed);
    }

    /// A frame went.
    pub(super) fn went(&self, bytes: usize) {
        self.frames_out.fetch_add(1, Relaxed);
        self.bytes_out.fetch_add(bytes as u64, Relaxed);
    }

    /// The counts at present, of a peer with a connection of this round-trip time, or none.
    pub(super) fn read(&self, rtt: Option<Duration>) -> PeerCounters {
        PeerCounters {
            connected: rtt.is_some(),
            connections: self.connections.load(Relaxed),
            frames_in: self.frames_in.load(Relaxed),
            frames_out: self.frames_out.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
            refused_certificates: self.refused_certificates.load(Relaxed),
            damaged_frames: self.damaged_frames.load(Relaxed),
            rtt_us: rtt.map(|rtt| rtt.as_micros() as u64),
        }
    }
}
