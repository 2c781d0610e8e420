//! `cargo xtask lab`.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::process::CommandExt;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Subcommand;

use super::{Config, Cut, Fabric, Lab, Place, Role, Spoil, Topology, bring_up, down, vip4};

/// A cluster in network namespaces.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Bring up a client, nodes, backends with servers, and what joins them
    Up(Up),
    /// Take a lab down; one that is not there is no error
    Down {
        #[command(flatten)]
        lab: Name,
    },
    /// Run a command on a host: `c1`, `n1`, `b1`, `bridge` or `r1`
    Exec {
        #[command(flatten)]
        lab: Name,
        /// The host
        host: String,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Show a lab's hosts and what runs on them
    Status {
        #[command(flatten)]
        lab: Name,
    },
    /// Break something
    Fault {
        #[command(flatten)]
        lab: Name,
        #[command(subcommand)]
        fault: Fault,
    },
    /// End all faults, and start anew what was killed
    Heal {
        #[command(flatten)]
        lab: Name,
    },
}

/// What can be broken; each lasts until `heal`.
#[derive(Debug, Subcommand)]
enum Fault {
    /// A node dies silently: no process, no data plane, no maps; its carrier stays up
    Kill {
        /// The node
        node: String,
    },
    /// A node's agent is killed; its data plane goes on
    KillAgent {
        /// The node
        node: String,
    },
    /// A node's agent is stopped in the midst of what it does
    Pause {
        /// The node
        node: String,
    },
    /// A paused agent goes on
    Resume {
        /// The node
        node: String,
    },
    /// A host loses its carrier
    Unplug {
        /// The host
        host: String,
    },
    /// A host gets its carrier back
    Plug {
        /// The host
        host: String,
    },
    /// A fabric, or a host's link to it or to the segment of all, loses its carrier: `a`, `n1-a`, `n1`
    Link {
        /// Where
        place: Place,
    },
    /// The same without a word: frames are lost, the carrier stays
    Cut {
        /// Where
        place: Place,
    },
    /// Some frames are lost by chance
    Loss {
        /// Where: `a`, `n1-a`, `n1`; of a host, the frames that it sends
        place: Place,
        /// Their share
        percent: f64,
    },
    /// Some frames get a wrong byte by chance
    Corrupt {
        /// Where: `a`, `n1-a`, `n1`; of a host, the frames that it sends
        place: Place,
        /// Their share
        percent: f64,
    },
    /// Frames are late; of a host, those that it gets (needs a kernel with netem)
    Delay {
        /// Where: `a`, `n1-a`, `n1`
        place: Place,
        /// How late
        milliseconds: u32,
    },
    /// Programs on a node compute without end, ten minutes at most
    Cpu {
        /// The node
        node: String,
        /// How many programs
        #[arg(long, default_value_t = 4)]
        programs: u16,
    },
    /// A node's disk answers no more (the lab is to be up with --disks)
    Disk {
        /// The node
        node: String,
        /// It answers, and has no room
        #[arg(long)]
        full: bool,
    },
    /// Two groups of hosts do not hear each other
    Partition {
        /// The one group: `n1,n2`
        from: String,
        /// The other
        to: String,
        /// Only frames from the one group to the other are lost
        #[arg(long, conflicts_with = "beats")]
        one_way: bool,
        /// Only beats are lost: nodes suspect each other that are well
        #[arg(long)]
        beats: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Name {
    /// The lab's name; several labs can be up at once
    #[arg(long, default_value = "lab")]
    name: String,
}

#[derive(Debug, clap::Args)]
struct Up {
    #[command(flatten)]
    lab: Name,
    /// Number of redirector nodes
    #[arg(long, default_value_t = 3)]
    nodes: u8,
    /// Number of backends
    #[arg(long, default_value_t = 3)]
    backends: u8,
    /// Join the hosts by a router, with a link of its own to each
    #[arg(long, conflicts_with = "switched")]
    routed: bool,
    /// Join the hosts by a bridge (the default)
    #[arg(long)]
    switched: bool,
    /// Two fabrics more, A and B, between nodes and backends: each backend then has three paths
    #[arg(long, conflicts_with = "routed")]
    fabrics: bool,
    /// Each node keeps its data on a disk of its own, which can fail
    #[arg(long, conflicts_with = "bare")]
    disks: bool,
    /// MTU of the nodes' and backends' links
    #[arg(long, default_value_t = 1600)]
    mtu: u16,
    /// One node holds each VIP and answers ARP for it, instead of the client's routes over all nodes
    #[arg(long, conflicts_with_all = ["routed", "bare"])]
    arp: bool,
    /// Network and servers only: start no agents
    #[arg(long)]
    bare: bool,
}

/// Does what the arguments say.
pub fn command(args: Args) -> Result<()> {
    match args.action {
        Action::Up(args) => up(args),
        Action::Down { lab } => down(&lab.name),
        Action::Exec { lab, host, command } => exec(&lab.name, &host, &command),
        Action::Status { lab } => status(&lab.name),
        Action::Fault { lab, fault } => make(&Lab::open(&lab.name)?, fault),
        Action::Heal { lab } => Lab::open(&lab.name)?.heal(),
    }
}

fn make(lab: &Lab, fault: Fault) -> Result<()> {
    match fault {
        Fault::Kill { node } => lab.kill(&node).map(drop),
        Fault::KillAgent { node } => lab.kill_agent(&node).map(drop),
        Fault::Pause { node } => lab.pause(&node),
        Fault::Resume { node } => lab.resume(&node),
        Fault::Unplug { host } => lab.unplug(&host).map(drop),
        Fault::Plug { host } => lab.plug(&host),
        Fault::Link { place } => lab.unlink(&place).map(drop),
        Fault::Cut { place } => lab.cut(&place).map(drop),
        Fault::Loss { place, percent } => lab.spoil(&place, Spoil::Loss(percent)),
        Fault::Corrupt { place, percent } => lab.spoil(&place, Spoil::Corrupt(percent)),
        Fault::Delay { place, milliseconds } => lab.spoil(&place, Spoil::Delay(milliseconds)),
        Fault::Cpu { node, programs } => lab.busy(&node, programs),
        Fault::Disk { node, full: true } => lab.fill(&node),
        Fault::Disk { node, full: false } => lab.freeze(&node),
        Fault::Partition { from, to, one_way, beats } => {
            let [from, to] = [&from, &to].map(|group| group.split(',').collect::<Vec<_>>());
            let cut = match (one_way, beats) {
                (true, _) => Cut::OneWay,
                (_, true) => Cut::Beats,
                _ => Cut::BothWays,
            };
            lab.partition(&from, &to, cut)
        }
    }
}

fn up(args: Up) -> Result<()> {
    let begun = Instant::now();
    let fabric = if args.routed { Fabric::Routed } else { Fabric::Switched };
    let topology = Topology {
        name: args.lab.name,
        nodes: args.nodes,
        backends: args.backends,
        fabric,
        between: args.fabrics,
        mtu: args.mtu,
    };
    let mut lab = if args.bare {
        let lab = Lab::up(&topology)?;
        lab.serve_in_processes()?;
        lab
    } else {
        let config = Config::standard(&topology);
        let config = if args.fabrics { config.with_fabrics(&topology) } else { config };
        bring_up(&topology, &if args.arp { config.with_holders() } else { config }, args.disks)?
    };
    if args.arp {
        lab.on_link()?;
    }
    lab.keep()?;
    println!("lab `{}` is up after {:.1} s", topology.name, begun.elapsed().as_secs_f32());
    print_status(&lab)?;
    let server = if args.bare { Role::Backend(1).v4() } else { vip4(1) };
    println!("\ntry: cargo xtask lab exec --name {} c1 -- curl http://{server}/", topology.name);
    println!("end: cargo xtask lab down --name {}", topology.name);
    Ok(())
}

fn exec(lab: &str, host: &str, command: &[OsString]) -> Result<()> {
    let (program, args) = command.split_first().context("name a command to run")?;
    let error = Lab::open(lab)?.host(host)?.command(program).args(args).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

fn status(name: &str) -> Result<()> {
    print_status(&Lab::open(name)?)
}

fn print_status(lab: &Lab) -> Result<()> {
    let topology = lab.topology();
    let processes = lab.processes()?;
    // Whoever reads may stop before the end; that is an error and no reason to panic.
    let mut out = std::io::stdout().lock();
    writeln!(out, "{:<8}{:<14}{:<14}runs", "host", "IPv4", "IPv6")?;
    for role in std::iter::once(Role::Fabric).chain(topology.hosts()) {
        let name = role.name(topology.fabric);
        let prefix = format!("{name}-");
        let mut runs: Vec<String> = processes
            .iter()
            .filter_map(|process| {
                let what = process.label.strip_prefix(&prefix)?;
                Some(if process.alive() { format!("{what} (pid {})", process.pid) } else { format!("{what} (ended)") })
            })
            .collect();
        if lab.is_dead(&name) {
            runs.push("dead: silent and deaf".into());
        }
        let [v4, v6] = role.addresses().map(|address| address.to_string());
        let (v4, v6) = if name == "bridge" { ("-", "-") } else { (v4.as_str(), v6.as_str()) };
        writeln!(out, "{name:<8}{v4:<14}{v6:<14}{}", runs.join(", "))?;
    }
    writeln!(out, "files: {}", lab.directory().display())?;
    Ok(())
}
