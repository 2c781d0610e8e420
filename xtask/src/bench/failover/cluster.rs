//! A redirector cluster that faults are made in.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::fault::Fault;
use super::figures::Kill;
use super::shot::Shot;
use super::{Args, Scene};
use crate::bench::random::Random;
use crate::lab::{Config, Lab, Topology, VIPS4, VIPS6, client_addresses, vip4, vip6};
use crate::step;
use crate::traffic::{ECHO_PORT, HTTP_PORT, Stream};

const LAB: &str = "failover";
const CONNECTIONS: usize = 60;
/// The lab's second VIP of each family is that of the owned services.
const OWNED: u8 = 2;
/// Ports that are tried for a flow of a certain owner.
const PORTS: std::ops::Range<u64> = 20_000..60_000;
const TRIES: u32 = 1000;
/// How long a cluster may take until it is whole again.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// A cluster.
pub(super) struct Cluster {
    lab: Lab,
    web: Vec<SocketAddr>,
    rate: u32,
    flows: u32,
}

/// The part of `redirector get nodes -o json` that says whether a node sees all the others.
#[derive(Debug, Deserialize)]
struct Node {
    name: String,
    alive: bool,
}

/// The part of `redirector why -o json` that names the owner.
#[derive(Debug, Deserialize)]
struct Why {
    owner: Option<String>,
}

impl Cluster {
    /// Brings it up and waits until it is whole.
    pub(super) fn up(args: &Args) -> Result<Self> {
        let topology = Topology { nodes: args.nodes, ..Topology::new(format!("{LAB}{}", std::process::id())) };
        let beats = Some(args.profile.name().to_owned());
        let config = Config { beats, ..Config::standard(&topology).with_echo() };
        let mut lab = Lab::up(&topology)?;
        lab.serve_promptly()?;
        lab.configure(&config)?;
        lab.start_decaps()?;
        lab.start_agents()?;
        let vips = config.vip.iter().map(|vip| vip.address.parse::<IpAddr>());
        let web = vips.map(|vip| Ok(SocketAddr::new(vip?, HTTP_PORT))).collect::<Result<_>>()?;
        let cluster = Self { lab, web, rate: args.rate, flows: args.flows };
        cluster.whole()?;
        Ok(cluster)
    }

    /// Waits until every node sees every other alive.
    fn whole(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let missing = self.missing()?;
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the cluster is not whole after {PATIENCE:?}: {}", missing.join("; "));
            }
            thread::sleep(POLL);
        }
    }

    fn missing(&self) -> Result<Vec<String>> {
        let mut missing = Vec::new();
        for at in self.lab.nodes() {
            let nodes: Vec<Node> = self.ask(&at, &["get", "nodes"])?;
            let dead = nodes.into_iter().filter(|node| !node.alive);
            missing.extend(dead.map(|node| format!("{at} does not see {}", node.name)));
        }
        Ok(missing)
    }

    /// Addresses of a flow that a node owns.
    fn flow_of(&self, owner: &str, v6: bool, random: &mut Random) -> Result<(SocketAddr, SocketAddr)> {
        let vip = if v6 { IpAddr::from(vip6(OWNED)) } else { vip4(OWNED).into() };
        let target = SocketAddr::new(vip, ECHO_PORT);
        for _ in 0..TRIES {
            let address = *random.pick(&client_addresses(vip));
            let source = SocketAddr::new(address, random.within(PORTS) as u16);
            let why: Why = self.ask(owner, &["why", "udp", &source.to_string(), &target.to_string()])?;
            if why.owner.as_deref() == Some(owner) {
                return Ok((source, target));
            }
        }
        bail!("none of {TRIES} flows is owned by {owner}")
    }

    fn ask<T: for<'de> Deserialize<'de>>(&self, node: &str, args: &[&str]) -> Result<T> {
        let text = step::read(self.lab.redirector(node, args)?.args(["-o", "json"]))?;
        serde_json::from_str(&text).with_context(|| format!("{args:?} on {node} says what is not understood here"))
    }
}

impl Scene for Cluster {
    fn kill(&mut self, fault: Fault, number: u32, random: &mut Random) -> Result<Kill> {
        let nodes = self.lab.nodes();
        let victim = random.pick(&nodes);
        let others: Vec<&String> = nodes.iter().filter(|node| *node != victim).collect();
        let ingress = random.pick(&others);
        self.lab.steer(VIPS4, &[ingress])?;
        self.lab.steer(VIPS6, &[ingress])?;
        // Both families in turn.
        let flows = (0..self.flows).map(|_| self.flow_of(victim, number.is_multiple_of(2), random));
        let stream = Stream { per_second: self.rate, flows: flows.collect::<Result<_>>()? };
        let shot = Shot { lab: &self.lab, node: victim, stream: &stream, web: &self.web, connections: CONNECTIONS };
        shot.fire(
            random,
            || fault.make(&self.lab, victim),
            || {
                self.lab.heal()?;
                self.whole()
            },
        )
    }
}
