//! keepalived in redirector's place: the same lab, the same stream, the same death.
//!
//! VRRP version 3 at its shortest interval, 10 ms, so that a backup takes over after 30 ms and up to one interval more.
//! Every node sends the VIP's packets on to a backend by a hash of the flow, as IPVS's direct routing does: nftables
//! rewrites the destination MAC at ingress. So no node has state that a death could take away, and the gap is VRRP's alone.

use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::fault::Fault;
use super::figures::Kill;
use super::shot::Shot;
use super::{Args, Scene};
use crate::bench::random::Random;
use crate::lab::{Lab, Role, Topology, vip4};
use crate::step;
use crate::traffic::{ECHO_PORT, HTTP_PORT, Stream, ask};

const LAB: &str = "keepalived";
const CONNECTIONS: usize = 60;
const PATIENCE: Duration = Duration::from_secs(30);
const ANSWER: Duration = Duration::from_millis(200);
const POLL: Duration = Duration::from_millis(20);

/// Nodes of which one holds the VIP.
pub(super) struct Keepalived {
    lab: Lab,
    rate: u32,
    flows: u32,
}

impl Keepalived {
    /// Brings the nodes up and waits until one holds the VIP.
    pub(super) fn up(args: &Args) -> Result<Self> {
        let topology = Topology { nodes: args.nodes, ..Topology::new(format!("{LAB}{}", std::process::id())) };
        let mut lab = Lab::up(&topology)?;
        lab.serve_promptly()?;
        let vip = vip4(1);
        for backend in lab.backends() {
            lab.host(&backend)?.ip(&[format!("address add {vip}/32 dev lo")])?;
        }
        lab.on_link()?;
        for (node, number) in lab.nodes().iter().zip(1..) {
            lab.host(node)?.feed("nft", "nftables", &["-f", "-"], &balance(&topology, number))?;
            let file = lab.directory().join(format!("{node}-keepalived.conf"));
            fs::write(&file, configuration(&topology, number))
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        let scene = Self { lab, rate: args.rate, flows: args.flows };
        scene.lab.nodes().iter().try_for_each(|node| scene.start(node))?;
        scene.holder()?;
        Ok(scene)
    }

    fn start(&self, node: &str) -> Result<()> {
        let file = |end: &str| self.lab.directory().join(format!("{node}-keepalived.{end}"));
        for stale in ["pid", "vrrp.pid"] {
            let _ = fs::remove_file(file(stale));
        }
        let mut command = self.lab.host(node)?.command("keepalived");
        command.args(["--dont-fork", "--vrrp", "--log-console"]);
        command
            .arg("--use-file")
            .arg(file("conf"))
            .arg("--pid")
            .arg(file("pid"))
            .arg("--vrrp_pid")
            .arg(file("vrrp.pid"));
        self.lab.spawn(node, "keepalived", command).map(drop)
    }

    /// The node that holds the VIP, alone and to the client's knowledge; waits until there is one.
    fn holder(&self) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Fails while the VIP is on its way; what the client knows is looked at next.
            let _ = self.lab.client().run(|| ask((vip4(1), ECHO_PORT).into(), None, b"where", ANSWER))?;
            let known = step::read(self.lab.client().command("ip").args(["neighbour", "show", &vip4(1).to_string()]))?;
            let mut holders = Vec::new();
            for (node, number) in self.lab.nodes().into_iter().zip(1..) {
                if self.holds(&node)? {
                    holders.push((node, known.contains(&Role::Node(number).mac())));
                }
            }
            match holders.as_slice() {
                [(holder, true)] => return Ok(holder.clone()),
                _ if Instant::now() < deadline => thread::sleep(POLL),
                [(holder, false)] => bail!("{holder} has the VIP, and the client does not know: {known}"),
                [] => bail!("no node took the VIP; keepalived of n1 says:\n{}", self.log("n1")),
                several => bail!("several hold the VIP at once: {several:?}; n1 says:\n{}", self.log("n1")),
            }
        }
    }

    fn holds(&self, node: &str) -> Result<bool> {
        let addresses = step::read(self.lab.host(node)?.command("ip").args(["-o", "address", "show", "dev", "eth0"]))?;
        Ok(addresses.contains(&format!(" {}/32 ", vip4(1))))
    }

    fn log(&self, node: &str) -> String {
        self.lab.process(&format!("{node}-keepalived")).map(|process| process.log_tail()).unwrap_or_default()
    }

    /// A node that comes back has lost its addresses, and is a backup.
    fn revive(&self, node: &str) -> Result<()> {
        self.lab.host(node)?.ip(&[format!("address flush dev eth0 to {}/32", vip4(1))])?;
        self.lab.heal()?;
        self.start(node)?;
        let holder = self.holder()?;
        ensure!(holder != node, "{node} took the VIP back, which its configuration forbids");
        Ok(())
    }
}

impl Scene for Keepalived {
    fn kill(&mut self, fault: Fault, _: u32, random: &mut Random) -> Result<Kill> {
        let holder = self.holder()?;
        let web = [(vip4(1), HTTP_PORT).into()];
        let stream = Stream::new(self.rate, &[SocketAddr::from((vip4(1), ECHO_PORT))], self.flows as usize);
        let shot = Shot { lab: &self.lab, node: &holder, stream: &stream, web: &web, connections: CONNECTIONS };
        shot.fire(random, || fault.make(&self.lab, &holder), || self.revive(&holder))
    }
}

/// The rules by which a node sends a VIP's packets on to the backends. All nodes have them: only who has the VIP gets its
/// packets. A seed that is not given would differ from node to node. The source becomes the node's, else the bridge would look for the client there.
fn balance(topology: &Topology, node: u8) -> String {
    let backends = (0..topology.backends).map(|index| format!("{index} : {}", Role::Backend(index + 1).mac()));
    let backends = backends.collect::<Vec<_>>().join(", ");
    let (vip, number, own) = (vip4(1), topology.backends, Role::Node(node).mac());
    let rules = ["udp", "tcp"].map(|protocol| {
        format!(
            "ip daddr {vip} ether daddr set jhash ip saddr . {protocol} sport mod {number} seed 1 map {{ {backends} }} \
             ether saddr set {own} fwd to eth0;"
        )
    });
    let hook = "type filter hook ingress device eth0 priority 0;";
    format!("table netdev balance {{ chain ingress {{ {hook} {} }}; }}", rules.concat())
}

/// A backup that stays one when the other comes back: the VIP moves once for each death. Priorities are far apart, so
/// that two nodes do not take over at once.
fn configuration(topology: &Topology, number: u8) -> String {
    let node = Role::Node(number).name(topology.fabric);
    let priority = 254 - u32::from(number - 1) * 253 / u32::from(topology.nodes);
    let vip = vip4(1);
    format!(
        "global_defs {{
    router_id {node}
    vrrp_version 3
    vrrp_rt_priority 50
    vrrp_no_swap
}}
vrrp_instance vip {{
    state BACKUP
    nopreempt
    interface eth0
    virtual_router_id 77
    priority {priority}
    advert_int 0.01
    virtual_ipaddress {{
        {vip}/32
    }}
}}
"
    )
}
