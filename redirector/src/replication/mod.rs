//! Flow replication.

mod counters;
pub mod key;
pub mod live;
pub mod machine;
pub mod plan;
pub mod receive;
pub mod store;
mod stream;
pub mod wire;

pub use counters::{Counters, FlowBytes, Lag, PeerCounters, Received, State};
