//! `get`: what the maps hold, one file for each kind of thing. The agent need not run.

mod backends;
mod bfd;
mod breakers;
mod drains;
mod flows;
mod health;
mod nodes;
mod owners;
mod paths;
mod replication;
mod services;
mod stats;
mod vips;

use std::time::Duration;

use anyhow::Result;
use aya::maps::MapError;
use clap::Subcommand;
use redirector_ebpf::tables::path::alive;
use redirector_ebpf::tables::{Node, Traffic};

use super::output::{Names, Output};
use super::target::Target;
use crate::dataplane::maps::{Maps, MapsError, read};

pub(super) use backends::ask as told_of_backends;
pub(super) use paths::ask as told_of_paths;
pub(super) use services::ranges;
pub(super) use stats::{Refused, refused};
pub(super) use vips::lines as vip_lines;

/// Show nodes, services, backends, drains, paths, owners, flows, vips, replication, health, breakers, bfd or stats.
#[derive(Debug, clap::Args)]
pub(super) struct Get {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The nodes of the cluster as this one sees them.
    #[command(visible_alias = "node")]
    Nodes(Plain),
    /// Services, what they stand on, and what was sent to them.
    #[command(visible_alias = "service")]
    Services(Plain),
    /// Backends, their share of their pool's rows, and the flows on them.
    #[command(visible_alias = "backend")]
    Backends(Plain),
    /// Backends that drain: how many flows they have left, and how long.
    #[command(visible_alias = "drain")]
    Drains(Plain),
    /// Paths to backends, in order of rank.
    #[command(visible_alias = "path")]
    Paths(Plain),
    /// How many slots each node owns, by rank; or each slot.
    #[command(visible_alias = "owner")]
    Owners(owners::Owners),
    /// Flows that are recorded on this node.
    #[command(visible_alias = "flow")]
    Flows(flows::Flows),
    /// Virtual addresses.
    #[command(visible_alias = "vip")]
    Vips(Plain),
    /// How far peers are with the flows that they are to have.
    Replication(Plain),
    /// This node's health and load: figures, thresholds, verdicts.
    Health(Plain),
    /// Circuit breakers before what the agent depends on.
    #[command(visible_alias = "breaker")]
    Breakers(breakers::Breakers),
    /// BFD sessions with routers: states, negotiated timers.
    Bfd(Plain),
    /// What became of packets, and how full the flow tables are.
    Stats(stats::Stats),
}

/// Arguments of lists without filters.
#[derive(Debug, clap::Args)]
struct Plain {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

impl Get {
    pub(super) fn run(self) -> Result<()> {
        match self.what {
            What::Nodes(Plain { target, output }) => nodes::show(&target, output),
            What::Services(Plain { target, output }) => output.list(services::list(&View::open(&target)?)?),
            What::Backends(Plain { target, output }) => backends::show(&View::open(&target)?, &target, output),
            What::Drains(Plain { target, output }) => drains::show(&View::open(&target)?, &target, output),
            What::Paths(Plain { target, output }) => paths::show(&View::open(&target)?, &target, output),
            What::Vips(Plain { target, output }) => {
                output.list(vips::list(&View::open(&target)?, target.config()?.as_ref())?)
            }
            What::Replication(Plain { target, output }) => replication::show(&target, output),
            What::Owners(command) => command.run(),
            What::Flows(command) => command.run(),
            What::Health(Plain { target, output }) => health::show(&target, output),
            What::Bfd(Plain { target, output }) => bfd::show(&target, output),
            What::Breakers(command) => command.run(),
            What::Stats(command) => command.run(),
        }
    }
}

/// How long an agent is waited for, which may be stopped.
const ANSWER: Duration = Duration::from_secs(1);

/// A node's maps and what its numbers are called.
struct View {
    maps: Maps,
    names: Names,
    node: Node,
}

impl View {
    fn open(target: &Target) -> Result<Self> {
        let maps = target.maps()?;
        let names = Names::read(&maps)?;
        let node = maps.node.get(&0, 0).map_err(read("NODE"))?;
        Ok(Self { maps, names, node })
    }

    /// The MAC address of a next hop, if it is known.
    fn mac(&self, neighbour: u32) -> Result<Option<String>, MapsError> {
        let word = self.maps.neighbours.get(&neighbour, 0).map_err(read("NEIGHBOURS"))?;
        Ok(super::output::mac(word))
    }

    fn path_alive(&self, path: u16) -> Result<bool, MapsError> {
        Ok(self.path_word(path)? == alive::ON)
    }

    /// What a path's word says, as one of [`alive`].
    fn path_word(&self, path: u16) -> Result<u64, MapsError> {
        self.maps.path_alive.get(&u32::from(path), 0).map_err(read("PATH_ALIVE"))
    }

    /// What was sent to a backend, by the rank of the path.
    fn backend_traffic(&self, backend: u16) -> Result<[Traffic; 4], MapsError> {
        let counters = &self.maps.backend_traffic;
        let values = counters.get(&u32::from(backend), 0).map_err(read("BACKEND_TRAFFIC"))?;
        let by_rank = |rank: usize| sum(values.iter().map(|cpu| cpu[rank]));
        Ok(std::array::from_fn(by_rank))
    }
}

/// The sum of what each CPU counted.
fn sum(counts: impl IntoIterator<Item = Traffic>) -> Traffic {
    counts.into_iter().fold(Traffic::default(), |sum, count| Traffic {
        packets: sum.packets.wrapping_add(count.packets),
        bytes: sum.bytes.wrapping_add(count.bytes),
    })
}

/// All entries of a map.
fn all<T>(entries: impl Iterator<Item = Result<T, MapError>>, name: &'static str) -> Result<Vec<T>, MapsError> {
    entries.collect::<Result<_, _>>().map_err(read(name))
}
