//! Faults, made real: a host that dies without a word, a pulled cable, an agent that stalls or is killed.
//!
//! What a fault changes is found again in the kernel and in the lab's records, by whichever process; [`Lab::heal`] ends
//! them all.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::stub::{self, Stub};
use super::{Lab, Process, Role, bpf, namespace, network, process};
use crate::step;

const BPFFS: &str = "/sys/fs/bpf";
const LINK: &str = "link-";

impl Lab {
    /// Lets a node die as if its power had failed, but with its carrier up: from one moment on it says nothing, then hears
    /// nothing; its processes are killed and its maps removed. Returns the moment, on the monotonic clock.
    pub fn kill(&self, node: &str) -> Result<Instant> {
        self.node(node)?;
        ensure!(!self.is_dead(node), "{node} is dead already; revive it with: cargo xtask lab heal");
        // Whatever takes time is done before.
        let dropper = Stub::drop()?;
        let links = self.links(node)?;
        let opened: Vec<_> = links
            .iter()
            .map(|link| bpf::pinned(link).with_context(|| format!("cannot open {}", link.display())))
            .collect::<Result<_>>()?;
        let grave = self.grave(node);
        fs::create_dir(&grave).with_context(|| format!("cannot make {}", grave.display()))?;

        let ends = self.topology.ends(self.node(node)?);
        let died = self.role(Role::Fabric).run(|| {
            let died = Instant::now();
            ends.iter().try_for_each(|end| dropper.attach(end)).map(|()| died)
        })??;
        for (path, link) in links.iter().zip(&opened) {
            bpf::update_link(link, dropper.program())
                .with_context(|| format!("cannot replace the program of {}", path.display()))?;
        }
        if links.is_empty() {
            let interfaces = self.interfaces(node)?;
            self.host(node)?.run(|| interfaces.iter().try_for_each(|interface| dropper.attach(interface)))??;
        }
        let processes = self.processes_of(node)?;
        processes.iter().for_each(|process| process.signal(libc::SIGKILL));
        process::kill_all(&namespace(&self.topology.name, node))?;
        processes.iter().try_for_each(Process::kill)?;

        // A link lives as long as its pin; the maps go with theirs.
        for link in links {
            let name = link.file_name().context("a pin without a name")?;
            fs::rename(&link, grave.join(name)).with_context(|| format!("cannot move {}", link.display()))?;
        }
        remove(&self.pins(node))?;
        Ok(died)
    }

    /// Kills a node's agent, and nothing else: its data plane goes on. Returns the moment, on the monotonic clock.
    pub fn kill_agent(&self, node: &str) -> Result<Instant> {
        let agent = self.agent(node)?;
        let died = Instant::now();
        agent.kill()?;
        Ok(died)
    }

    /// Stops a node's agent in the midst of what it does, until [`Lab::resume`].
    pub fn pause(&self, node: &str) -> Result<()> {
        self.agent(node)?.signal(libc::SIGSTOP);
        Ok(())
    }

    /// Lets a paused agent go on.
    pub fn resume(&self, node: &str) -> Result<()> {
        self.agent(node)?.signal(libc::SIGCONT);
        Ok(())
    }

    /// Has a node give away what it owns, and returns when the cluster says that nobody would miss it.
    pub fn drain(&self, node: &str) -> Result<()> {
        let by = self.another(node)?;
        step::read(&mut self.redirector(&by, &["drain", node])?).map(drop)
    }

    /// Lets a drained node have slots and VIPs again, and returns when it has its share.
    pub fn undrain(&self, node: &str) -> Result<()> {
        let by = self.another(node)?;
        step::read(&mut self.redirector(&by, &["undrain", node])?)?;
        self.settled()
    }

    /// A node that lives, besides this one.
    fn another(&self, node: &str) -> Result<String> {
        self.node(node)?;
        let other = self.nodes().into_iter().find(|other| other != node && !self.is_dead(other));
        other.with_context(|| format!("there is no node besides {node}"))
    }

    /// Takes a host's carrier away. Returns the moment, on the monotonic clock.
    pub fn unplug(&self, host: &str) -> Result<Instant> {
        let ends = self.topology.ends(self.member(host)?);
        let lines: Vec<String> = ends.iter().map(|end| format!("link set {end} down")).collect();
        let cut = Instant::now();
        self.role(Role::Fabric).ip(&lines)?;
        Ok(cut)
    }

    /// Gives a host its carrier back. In a routed lab all nodes are then the VIPs' next hops again.
    pub fn plug(&self, host: &str) -> Result<()> {
        let role = self.member(host)?;
        self.role(Role::Fabric).ip(&network::plug(&self.topology, role))
    }

    /// The interfaces of a node or backend that packets come in by.
    pub(super) fn interfaces(&self, host: &str) -> Result<Vec<&'static str>> {
        let further = self.topology.fabrics_of(self.member(host)?).iter().map(|between| between.interface());
        Ok(std::iter::once("eth0").chain(further).collect())
    }

    /// Whether a node was killed and not yet revived.
    pub(super) fn is_dead(&self, node: &str) -> bool {
        self.grave(node).exists()
    }

    /// Where a dead node's links are kept, which drop all that comes in.
    pub(super) fn grave(&self, node: &str) -> PathBuf {
        Path::new(BPFFS).join(namespace(&self.topology.name, &format!("{node}-dead")))
    }

    /// A node's pins, of whatever version.
    fn pins(&self, node: &str) -> PathBuf {
        Path::new(BPFFS).join(namespace(&self.topology.name, node))
    }

    /// The pinned links of a node's data plane.
    fn links(&self, node: &str) -> Result<Vec<PathBuf>> {
        let mut links = Vec::new();
        for version in entries(&self.pins(node))? {
            for pin in entries(&version)? {
                if pin.file_name().is_some_and(|name| name.to_string_lossy().starts_with(LINK)) {
                    links.push(pin);
                }
            }
        }
        Ok(links)
    }

    /// The processes that were started on a host.
    pub(super) fn processes_of(&self, host: &str) -> Result<Vec<Process>> {
        let prefix = format!("{host}-");
        Ok(self.processes()?.into_iter().filter(|process| process.label.starts_with(&prefix)).collect())
    }

    fn agent(&self, node: &str) -> Result<Process> {
        self.node(node)?;
        let agent = self.process(&format!("{node}-agent"))?;
        ensure!(agent.alive(), "the agent of {node} does not run");
        Ok(agent)
    }

    fn node(&self, name: &str) -> Result<Role> {
        match self.topology.find(name) {
            Some(role @ Role::Node(_)) => Ok(role),
            _ => {
                bail!("`{name}` is not a node of the lab `{}`; it has {}", self.topology.name, self.nodes().join(", "))
            }
        }
    }

    /// A host that has a link to the fabric.
    pub(super) fn member(&self, name: &str) -> Result<Role> {
        let role = self.topology.find(name);
        self.host(name)?;
        role.filter(|&role| role != Role::Fabric)
            .with_context(|| format!("`{name}` is what joins the hosts, not one of them"))
    }
}

/// Ends what [`Lab::kill`] has done to a node's interface.
pub(super) fn exhume(lab: &Lab, node: &str) -> Result<()> {
    let grave = lab.grave(node);
    if entries(&grave)?.is_empty() {
        let interfaces = lab.interfaces(node)?;
        let free = |interface: &&str| stub::detach(interface).and_then(|()| super::offload::disable(interface));
        lab.host(node)?.run(|| interfaces.iter().try_for_each(free))??;
    }
    remove(&grave)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

fn remove(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    Ok(())
}
