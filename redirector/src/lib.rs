//! The agent's library.
#![deny(missing_docs)]

pub mod agent;
pub mod bfd;
pub mod breaker;
pub mod cli;
pub mod config;
pub mod consensus;
pub mod dataplane;
pub mod doctor;
pub mod doorbell;
pub mod guard;
pub mod health;
pub mod journal;
pub mod liveness;
pub mod netlink;
pub mod ownership;
pub mod paths;
pub mod pki;
pub mod pool;
pub mod replication;
pub mod shedding;
pub mod transport;
pub mod vip;

/// The BPF object: the XDP programs and their maps.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/redirector-ebpf"));
