//! Flow replication.

pub mod key;
pub mod wire;
