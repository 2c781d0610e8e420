//! A redirector cluster that faults are made in.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::fault::{Fault, Stage};
use super::figures::Kill;
use super::shot::Shot;
use super::{Args, Scene};
use crate::bench::random::Random;
use crate::lab::{Config, Lab, Topology, VIPS4, VIPS6, client_addresses, vip4, vip6};
use crate::traffic::{ECHO_PORT, HTTP_PORT, Stream};

const LAB: &str = "failover";
const CONNECTIONS: usize = 60;
/// As many where a fabric is cut, which all of them go over.
const CONNECTIONS_OVER_FABRICS: usize = 200;
/// The lab's second VIP of each family is that of the owned services.
const OWNED: u8 = 2;
/// Ports that are tried for a flow of a certain owner.
const PORTS: std::ops::Range<u64> = 20_000..60_000;
const TRIES: usize = 20;
/// For how long flows of slots that have moved may belong to who owned them before.
const MOVED: Duration = Duration::from_secs(120);

/// A cluster.
pub(super) struct Cluster {
    lab: Lab,
    web: Vec<SocketAddr>,
    rate: u32,
    flows: u32,
}

impl Cluster {
    /// Brings one up, and waits until it is whole.
    pub(super) fn up(args: &Args, stage: Stage) -> Result<Self> {
        let between = stage == Stage::Fabrics;
        let topology = Topology { nodes: args.nodes, between, ..Topology::new(format!("{LAB}{}", std::process::id())) };
        let beats = Some(args.profile.name().to_owned());
        let mut config = Config { beats, ..Config::standard(&topology).with_echo() };
        // Previous owners are asked for slots that moved as long as new flows may be idle; the next fault waits for that.
        for of_new in ["tcp_new", "udp_new", "other"] {
            config.timeouts.insert(of_new.into(), "10s".into());
        }
        let mut lab = Lab::up(&topology)?;
        lab.serve_promptly()?;
        if stage == Stage::Holders {
            config = config.with_holders();
            lab.on_link()?;
        }
        if between {
            config = config.with_fabrics(&topology);
        }
        lab.configure(&config)?;
        lab.start_decaps()?;
        lab.start_agents()?;
        lab.paths_whole()?;
        Ok(Self { lab, web: config.targets(HTTP_PORT), rate: args.rate, flows: args.flows })
    }

    /// Lets packets enter at a node that is chosen by chance, and not at this one.
    fn behind_another(&self, victim: String, random: &mut Random) -> Result<String> {
        let others: Vec<String> = self.lab.nodes().into_iter().filter(|node| *node != victim).collect();
        let ingress = random.pick(&others);
        self.lab.steer(VIPS4, &[ingress])?;
        self.lab.steer(VIPS6, &[ingress])?;
        Ok(victim)
    }
}

impl Scene for Cluster {
    fn kill(&mut self, fault: Fault, number: u32, random: &mut Random) -> Result<Kill> {
        // Both families in turn.
        let vip = if number.is_multiple_of(2) { IpAddr::from(vip6(OWNED)) } else { vip4(OWNED).into() };
        let victim = match fault {
            Fault::VipHolder => self.lab.holder(vip)?,
            Fault::Leader => self.behind_another(self.lab.leader()?, random)?,
            _ => self.behind_another(random.pick(&self.lab.nodes()).clone(), random)?,
        };
        let target = SocketAddr::new(vip, ECHO_PORT);
        let addresses = client_addresses(vip);
        let flow = |_| -> Result<_> {
            let deadline = Instant::now() + MOVED;
            loop {
                let source = || SocketAddr::new(*random.pick(&addresses), random.within(PORTS) as u16);
                let sources = std::iter::repeat_with(source).take(TRIES);
                match self.lab.source_of(&victim, sources, target) {
                    Ok(source) => return Ok((source, target)),
                    Err(error) if Instant::now() > deadline => return Err(error),
                    // Where slots have moved, their previous owners are asked first, for a while.
                    Err(_) => thread::sleep(Duration::from_secs(1)),
                }
            }
        };
        let flows = (0..self.flows).map(flow).collect::<Result<_>>()?;
        let stream = Stream { per_second: self.rate, flows };
        let connections = if fault == Fault::Path { CONNECTIONS_OVER_FABRICS } else { CONNECTIONS };
        let shot = Shot { lab: &self.lab, node: &victim, stream: &stream, web: &self.web, connections };
        shot.fire(random, || fault.make(&self.lab, &victim), || fault.mend(&self.lab, &victim))
    }
}
