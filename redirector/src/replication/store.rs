//! The flow tables as replication uses them: real ones that are mapped, or a test's.

use std::sync::Arc;

use redirector_ebpf::hash::HashKey;
use redirector_ebpf::tables::flow::{Entry, Record};

use super::key::FlowKey;
use crate::dataplane::flows::{Copied, Flow, FlowTables, Put};

/// A node's flow tables.
pub trait Flows {
    /// How many places for flows there are.
    fn places(&self) -> u64;

    /// The flow at a place.
    fn at(&self, place: u64) -> Option<Flow>;

    /// A flow by its key.
    fn find(&self, key: &FlowKey) -> Option<Flow>;

    /// Puts a flow in with the entry that `entry` makes of its tag, in place of the flow's own only if `takes` says so.
    fn put(
        &self,
        record: &Record,
        v6: bool,
        now: u64,
        entry: &dyn Fn(u32) -> Entry,
        takes: &dyn Fn(&Flow) -> bool,
    ) -> Put;

    /// Idle seconds after which an entry may go, by its state's number.
    fn idle(&self) -> &[u16; 8];
}

/// The mapped tables, with what the node's row says of them.
pub struct Mapped {
    /// The tables.
    pub tables: Arc<FlowTables>,
    /// Keys of the flow hash.
    pub hash_key: HashKey,
    /// Idle seconds by state.
    pub idle: [u16; 8],
}

impl Flows for Mapped {
    fn places(&self) -> u64 {
        self.tables.places()
    }

    fn at(&self, place: u64) -> Option<Flow> {
        self.tables.at(&self.hash_key, place)
    }

    fn find(&self, key: &FlowKey) -> Option<Flow> {
        self.tables.find(&self.hash_key, &key.tuple(), key.v6())
    }

    fn put(
        &self,
        record: &Record,
        v6: bool,
        now: u64,
        entry: &dyn Fn(u32) -> Entry,
        takes: &dyn Fn(&Flow) -> bool,
    ) -> Put {
        self.tables.put(&self.hash_key, &Copied { record, v6, idle: &self.idle, now }, entry, takes)
    }

    fn idle(&self) -> &[u16; 8] {
        &self.idle
    }
}
