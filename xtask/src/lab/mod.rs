//! A redirector cluster on one machine: a client, nodes, backends and what joins them, each host a network namespace.
//!
//! ```text
//!   switched                              routed
//!   c1   n1 .. nN   b1 .. bB              c1   n1 .. nN   b1 .. bB
//!    |    |     |    |     |               |    |     |    |     |
//!   =+====+=====+====+=====+= br0           \___ \____|____/ ___/
//!                                                    r1
//! ```
//!
//! The client (or the router) spreads flows to the VIPs over all nodes by multipath routes; the nodes redirect in XDP; the
//! backends hold the VIPs on `lo` and reply to the client directly. Several labs can be up at once: names keep them apart,
//! and every link is born and dies within its namespaces. A lab's files are in `/run/redirector-lab/NAME`.

mod agents;
mod bpf;
mod busy;
mod command;
mod config;
mod disk;
mod ending;
mod fabric;
mod faults;
mod heal;
mod host;
mod network;
mod offload;
mod partition;
mod process;
mod state;
mod stub;
mod topology;
mod witness;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};

pub use command::{Args, command};
pub use config::{Backend, Config, Health, Pool, Ports, Service, Vip, Way};
pub use fabric::{Place, Spoil};
pub use host::Host;
pub use network::mount_bpffs;
pub use partition::Cut;
pub use process::Process;
pub use state::Seen;
pub use topology::{Between, CLIENT_ADDRESSES, Fabric, Role, Topology, VIPS4, VIPS6, client_addresses, vip4, vip6};
pub use witness::{Flow, Journey, Witness};

use crate::traffic::{HTTP_PORT, Server, fetch_when_ready};

const STATE: &str = "/run/redirector-lab";
const SERVER_READY: Duration = Duration::from_secs(5);
const TOPOLOGY_FILE: &str = "topology.json";

/// A lab that is up. One that was made by [`Lab::up`] is taken down when dropped, unless it is kept.
#[derive(Debug)]
pub struct Lab {
    topology: Topology,
    directory: PathBuf,
    servers: Vec<Server>,
    keep: bool,
}

impl Lab {
    /// Builds the network. What a failed attempt leaves is taken down again.
    pub fn up(topology: &Topology) -> Result<Self> {
        topology.check()?;
        require_root()?;
        let directory = directory(&topology.name);
        fs::create_dir_all(STATE).with_context(|| format!("cannot make {STATE}"))?;
        take_down_abandoned()?;
        // Making the directory takes the name, once; so of two attempts at a time one fails, and leaves the other's alone.
        fs::create_dir(&directory).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => anyhow::anyhow!(
                "the lab `{0}` is already there; take it down with: cargo xtask lab down --name {0}",
                topology.name
            ),
            _ => anyhow::Error::new(error).context(format!("cannot make {}", directory.display())),
        })?;
        let lab = Self { topology: topology.clone(), directory, servers: Vec::new(), keep: false };
        ending::own(&topology.name)?;
        lab.build().with_context(|| format!("cannot bring up the lab `{}`", topology.name))?;
        Ok(lab)
    }

    fn build(&self) -> Result<()> {
        process::own(&self.directory)?;
        fs::create_dir(self.directory.join("processes"))?;
        fs::write(self.directory.join(TOPOLOGY_FILE), serde_json::to_vec(&self.topology)?)?;
        network::mount_bpffs()?;
        network::build(&self.topology)
    }

    /// A lab that another process brought up. Dropping it takes nothing down.
    pub fn open(name: &str) -> Result<Self> {
        topology::check_name(name)?;
        let directory = directory(name);
        let file = directory.join(TOPOLOGY_FILE);
        let text = fs::read(&file).with_context(|| {
            format!("there is no lab `{name}`; bring one up with: cargo xtask lab up --name {name}")
        })?;
        let topology = serde_json::from_slice(&text).with_context(|| format!("damaged file {}", file.display()))?;
        Ok(Self { topology, directory, servers: Vec::new(), keep: true })
    }

    /// Leaves the lab up when this value is dropped, and when this process ends.
    pub fn keep(&mut self) -> Result<()> {
        self.keep = true;
        ending::disown(&self.topology.name);
        process::disown(&self.directory)
    }

    /// Takes the lab down, and says if something resists, which dropping cannot.
    pub fn down(mut self) -> Result<()> {
        self.keep = true;
        self.servers.clear();
        ending::disown(&self.topology.name);
        down(&self.topology.name)
    }

    /// Its size and shape.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A host by its name: `c1`, `n1`, `b1`, and `bridge` or `r1`.
    pub fn host(&self, name: &str) -> Result<Host> {
        let Some(role) = self.topology.find(name) else {
            let names: Vec<String> = self.topology.hosts().iter().map(|role| role.name(self.topology.fabric)).collect();
            bail!("the lab `{}` has no host `{name}`; it has {}", self.topology.name, names.join(", "));
        };
        Ok(self.role(role))
    }

    /// Where requests come from.
    pub fn client(&self) -> Host {
        self.role(Role::Client)
    }

    /// The nodes' names.
    pub fn nodes(&self) -> Vec<String> {
        (1..=self.topology.nodes).map(|number| Role::Node(number).name(self.topology.fabric)).collect()
    }

    /// The backends' names.
    pub fn backends(&self) -> Vec<String> {
        (1..=self.topology.backends).map(|number| Role::Backend(number).name(self.topology.fabric)).collect()
    }

    fn role(&self, role: Role) -> Host {
        let name = role.name(self.topology.fabric);
        let namespace = namespace(&self.topology.name, &name);
        Host::new(name, namespace)
    }

    /// Starts the servers of all backends, on threads of this process.
    pub fn serve(&mut self) -> Result<()> {
        for name in self.backends() {
            self.servers.push(self.host(&name)?.run(|| Server::start(&name))??);
        }
        Ok(())
    }

    /// As [`Lab::serve`], with echoes of datagrams at real-time priority: for measuring anything but the servers.
    pub fn serve_promptly(&mut self) -> Result<()> {
        for name in self.backends() {
            self.servers.push(self.host(&name)?.run(|| Server::start_prompt(&name))??);
        }
        Ok(())
    }

    /// Starts the servers of all backends as processes of their own, which outlive this one. For `xtask` only, which is the
    /// program that they run.
    pub(crate) fn serve_in_processes(&self) -> Result<()> {
        let program = env::current_exe().context("cannot find this program's own file")?;
        for name in self.backends() {
            let mut command = self.host(&name)?.command(&program);
            command.args(["serve", "--name", &name]);
            self.spawn(&name, "server", command)?;
        }
        for name in self.backends() {
            self.host(&name)?
                .run(|| fetch_when_ready(([127, 0, 0, 1], HTTP_PORT).into(), SERVER_READY))?
                .with_context(|| format!("the server of {name} does not answer"))?;
        }
        Ok(())
    }

    /// Makes all flows to a VIP, or a prefix of VIPs, enter at these nodes.
    pub fn steer(&self, vips: &str, nodes: &[&str]) -> Result<()> {
        let mut roles = Vec::new();
        for name in nodes {
            match self.topology.find(name) {
                Some(role @ Role::Node(_)) => roles.push(role),
                _ => bail!("`{name}` is not a node of the lab `{}`", self.topology.name),
            }
        }
        ensure!(!roles.is_empty(), "name the nodes that {vips} shall enter at");
        let at = if self.topology.fabric == Fabric::Routed { Role::Fabric } else { Role::Client };
        self.role(at).ip(&[network::steer(&self.topology, vips, &roles)])
    }

    /// Has the client look for VIPs by ARP and neighbour discovery, and so send to whichever node holds them, instead of by
    /// routes over nodes; [`Lab::steer`] takes that back.
    pub fn on_link(&self) -> Result<()> {
        let fabric = self.topology.fabric;
        ensure!(
            fabric == Fabric::Switched,
            "VIPs are found by ARP on a segment of the client's, and a routed lab has none"
        );
        self.client().ip(&network::on_link())
    }

    /// Watches from now on which way the first packets of TCP flows go.
    pub fn watch(&self) -> Result<Witness> {
        Witness::start(self)
    }

    /// Starts a program on a host in the background; `what` names it among the host's programs.
    pub fn spawn(&self, host: &str, what: &str, command: Command) -> Result<Process> {
        Process::start(&self.directory, &self.host(host)?, what, command)
    }

    /// A program that was started in the background, by its label: `n1-agent`.
    pub fn process(&self, label: &str) -> Result<Process> {
        Process::recorded(&self.directory, label)
    }

    /// Every program that was started in the background.
    pub fn processes(&self) -> Result<Vec<Process>> {
        Process::all(&self.directory)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.servers.clear();
        if self.keep {
            return;
        }
        if let Err(error) = down(&self.topology.name) {
            eprintln!("the lab `{}` is not wholly down: {error:#}", self.topology.name);
        }
        ending::disown(&self.topology.name);
    }
}

/// A whole lab: network, servers, decap and agents, all of them ready; with `disks` each node has one of its own.
pub(crate) fn bring_up(topology: &Topology, config: &Config, disks: bool) -> Result<Lab> {
    let lab = Lab::up(topology)?;
    lab.serve_in_processes()?;
    if disks {
        lab.nodes().iter().try_for_each(|node| lab.give_disk(node))?;
    }
    lab.configure(config)?;
    lab.start_decaps()?;
    lab.start_agents()?;
    Ok(lab)
}

/// Takes down whatever exists of a lab. Nothing there is no error.
pub fn down(name: &str) -> Result<()> {
    topology::check_name(name)?;
    require_root()?;
    let directory = directory(name);
    disk::thaw_all(&directory)?;
    for process in Process::all(&directory)? {
        process.stop()?;
    }
    let prefix = namespace(name, "");
    for namespace in names_in("/run/netns", &prefix)? {
        process::sweep(&namespace)?;
        // Another may take the same lab down: what has gone meanwhile is as it should be.
        let file = Path::new("/run/netns").join(&namespace);
        let Ok(inode) = process::inode(file.clone()) else { continue };
        // What a decap that was killed has left.
        remove_pins(&format!("redirector-decap-{inode}-"))?;
        let deleted = host::ip_batch(Command::new("ip"), &[format!("netns del {namespace}")]);
        deleted.or_else(|error| if file.exists() { Err(error) } else { Ok(()) })?;
    }
    remove_pins(&prefix)?;
    disk::unmount_all(&directory)?;
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Removes pins whose names begin so.
pub(crate) fn remove_pins(prefix: &str) -> Result<()> {
    for pins in names_in("/sys/fs/bpf", prefix)? {
        let path = Path::new("/sys/fs/bpf").join(pins);
        fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// Takes down what runs that were killed have left. A lab that is kept has no owner, and is left alone.
pub(crate) fn take_down_abandoned() -> Result<()> {
    // One at a time: two would take down the same lab at once.
    let state = fs::File::open(STATE).and_then(|state| state.lock().map(|()| state));
    let _state = state.with_context(|| format!("cannot lock {STATE}"))?;
    for name in names_in(STATE, "")? {
        // One that resists is in nobody's way: names keep labs apart.
        if process::is_abandoned(&directory(&name))
            && let Err(error) = down(&name)
        {
            eprintln!("the lab `{name}` of a run that was killed is not wholly down: {error:#}");
        }
    }
    Ok(())
}

fn names_in(directory: &str, prefix: &str) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("cannot read {directory}"))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string().ok().filter(|name| name.starts_with(prefix)));
    }
    Ok(names)
}

fn directory(name: &str) -> PathBuf {
    Path::new(STATE).join(name)
}

fn namespace(lab: &str, host: &str) -> String {
    format!("rd-{lab}-{host}")
}

fn require_root() -> Result<()> {
    // SAFETY: takes nothing and cannot fail.
    let user = unsafe { libc::geteuid() };
    ensure!(user == 0, "network namespaces and XDP need root: run the same command under `sudo -E env \"PATH=$PATH\"`");
    Ok(())
}
