//! Flow replication: every tracked flow has a copy at the other live owner of its slot, so that a node's death breaks no
//! connection.
//!
//! ```text
//! XDP ─ ring ─► events ─ bounded queue ─► machine ─ batch ─► transport ═══► receiver ─► flow tables, ready for packets
//!                                          │    ▲                              │
//!                         flow tables ─────┘    └─────────── answer ◄══════════┘
//!                          (walked for what a peer lacks, and to refresh)
//! ```
//!
//! What a peer has acknowledged is known flow by flow ([`live`]); all else it is given again. So events may be lost, queues
//! may overflow, batches may be damaged and peers may come and go: a walk over the flow table finds what is missing, and
//! until it has, the peer is told that it is not complete. Who is to have what, and whose word on a flow holds, is decided
//! in [`plan`]; sending in [`machine`], receiving in [`receive`], both without IO; threads and maps are in `shell`.
//!
//! The agent calls [`start`] inside its runtime, once the maps are installed, with the transport and its inbox of flows;
//! [`Replication::set_view`] whenever it puts a slot table in force or alive bits change; [`Replication::names_changed`]
//! after each change of the configuration; and asks [`Replication::complete_from`] before it lets this node own slots
//! again. Nothing is told of flows unless the node's row says so ([`redirector_ebpf::tables::Node::tells_flows`]).

mod counters;
mod events;
pub mod key;
pub mod live;
pub mod machine;
pub mod plan;
pub mod receive;
mod shell;
pub mod store;
mod stream;
#[cfg(test)]
mod tests;
pub mod wire;
mod worker;

pub use counters::{Counters, FlowBytes, Lag, PeerCounters, Progress, Received, State, outdate};
pub use plan::View;
pub use shell::{Replication, Settings, StartError, start};
