//! What is counted, for `get stats` and metrics.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use redirector_ebpf::tables::flow::{Record4, Record6};
use serde::{Deserialize, Serialize};

use super::live;

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Events that came up from the data plane.
    pub events: u64,
    /// Events that found a ring or queue full. Each such time every peer is resynchronised.
    pub events_lost: u64,
    /// Flows that others have copies of or are to have.
    pub flows: u64,
    /// Bytes that a replicated flow takes on each node, at the worst.
    pub flow_bytes: FlowBytes,
    /// What came from others.
    pub received: Received,
    /// What goes to others, by node id.
    pub peers: BTreeMap<u8, PeerCounters>,
}

/// Bytes of memory for one replicated flow: its entry and record in the flow table, and its part of the live flows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each is of the family that it names")]
pub struct FlowBytes {
    pub ipv4: usize,
    pub ipv6: usize,
}

impl Default for FlowBytes {
    fn default() -> Self {
        let of = |record: usize| size_of::<u64>() + record + live::FLOW_BYTES;
        Self { ipv4: of(size_of::<Record4>()), ipv6: of(size_of::<Record6>()) }
    }
}

/// What came from others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// Batches that were taken.
    pub batches: u64,
    /// Flows that were put into the table or brought up to date there.
    pub applied: u64,
    /// Flows of which this node knew better already.
    pub kept: u64,
    /// Flows for which two nodes had chosen a backend: one of the choices was lost.
    pub conflicts: u64,
    /// Of these, choices of this node that were lost.
    pub conflicts_lost: u64,
    /// Flows whose service or backend is not known here. They are asked for again.
    pub unknown_names: u64,
    /// Flows whose bucket held proven flows only. They are asked for again.
    pub full: u64,
    /// Batches that came damaged. Each was sent again.
    pub damaged: u64,
    /// Batches that a later one had overtaken.
    pub stale: u64,
    /// Batches of another version or cluster, or that made no sense.
    pub refused: u64,
}

/// How far a peer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not connected.
    #[default]
    Away,
    /// It has yet to be given flows that were there before.
    Resynchronising,
    /// It has every flow that it is to have, but for those of the last moments.
    Current,
}

/// How far a peer is, and how long the first of the flows that wait for it has waited, milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is what its counter is")]
pub struct Progress {
    pub state: State,
    pub waiting_ms: u64,
}

impl From<&PeerCounters> for Progress {
    fn from(peer: &PeerCounters) -> Self {
        Self { state: peer.state, waiting_ms: peer.waiting_ms }
    }
}

/// What goes to one peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PeerCounters {
    /// How far it is.
    pub state: State,
    /// Flows that were sent.
    pub sent: u64,
    /// Flows that it has for certain.
    pub acknowledged: u64,
    /// Flows that it could not take.
    pub missed: u64,
    /// Batches that were sent.
    pub batches: u64,
    /// Batches that were in vain: lost, overtaken, damaged or refused.
    pub failed: u64,
    /// Of these, batches that reached it damaged.
    pub damaged: u64,
    /// Bytes of batches.
    pub bytes: u64,
    /// How often it was to be resynchronised.
    pub resynchronisations: u64,
    /// Of these, since more flows waited for it than are kept waiting.
    pub overflows: u64,
    /// Flows that wait to be sent or acknowledged.
    pub backlog: u64,
    /// How long the first of them has waited, milliseconds.
    #[serde(default)]
    pub waiting_ms: u64,
    /// From a change of a flow to its acknowledgement by the peer.
    pub lag: Lag,
}

/// Has no peer called current by what was counted before others were to have flows.
pub fn outdate(peers: &mut BTreeMap<u8, PeerCounters>) {
    let current = peers.values_mut().filter(|peer| peer.state == State::Current);
    current.for_each(|peer| peer.state = State::Resynchronising);
}

/// A lag in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each is the quantile that it names")]
pub struct Lag {
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

impl Lag {
    /// The quantiles of a histogram of microseconds.
    pub(super) fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self { p50: at(0.5), p99: at(0.99), max: histogram.max() }
    }
}
