//! Agreement between the nodes' agents: members, configuration, owners of slots, steps of pools, holders of VIPs.
//!
//! This room decides what is committed and never installs it. Its parts, from the inside:
//!
//! | part | is |
//! |---|---|
//! | [`state`] | what is agreed on, and what each command does to it: a pure function of the log |
//! | [`machine`] | raft, sans-IO: messages, proposals and ticks in, actions out |
//! | [`log`], [`disk`], [`redb`] | what must outlive a crash, each record checksummed |
//! | [`wire`], [`frame`] | what is stored and sent, byte by byte |
//! | [`planner`] | what a leader proposes of itself; pure |
//! | [`driver`] | the thread and the handle that the agent has |
//!
//! # How the agent uses it
//! 1. It starts the transport and hands the inbox of [`Channel::Consensus`] to [`driver::start`]; everything that
//!    agreement sends, reports and forwarded changes too, goes over that channel. Without configured peers it gives
//!    `alone`, and the node leads a cluster of one when `start` returns.
//! 2. It watches [`driver::Handle::state`]. A new state is installed whole: slots by [`state::Slot`]'s conversion, pools
//!    by [`state::Pool::rows`] with this node's numbers of the backends, the configuration from its text. After a restart
//!    the state may for a moment be older than what the pinned maps hold: the agent installs nothing whose version is
//!    less than the one that the maps go by.
//! 3. It tells what it sees and has done by [`driver::Handle::report`], whenever that changes: whom it suspects, the
//!    version that its data plane goes by, up to which version the flows of its slots are there, which disputed rows
//!    still have flows off their current backend. That is all that planned steps wait for.
//! 4. Flows of a slot go to all of its ranks that are not down, returning ones too. The alive bit of a node stays off
//!    until the state says that it is up.
//! 5. Changes go through [`driver::Handle::propose`], on any node. `Apply` carries the pools of its text, worked out by
//!    whoever proposes it, so that no two versions of the agent can read the same text in two ways.
//! 6. It gives the transport the members' addresses, from the configuration and from the state.
//!
//! # Simulation
//! [`machine::Machine`] on [`disk::Memory`], and [`planner::Planner`], have no clock, no chance of their own and no order
//! of a hash table in their decisions: the same seeds and inputs give the same run.
//!
//! [`Channel::Consensus`]: crate::transport::Channel::Consensus

pub mod disk;
pub mod driver;
pub mod frame;
pub mod log;
pub mod machine;
pub mod planner;
pub mod redb;
pub mod state;
pub mod wire;

#[cfg(test)]
mod tests;
