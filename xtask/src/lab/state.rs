//! What the nodes say of their cluster, through the command line that users have: who is alive, who holds a VIP, who owns
//! a flow.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Lab;
use super::agents::wait_for;
use crate::step;

/// How long a cluster may take until it is whole.
const WHOLE: Duration = Duration::from_secs(60);

/// A node in another's eyes: the part of an entry of `get nodes -o json` that says whether it serves.
#[derive(Clone, Debug, Deserialize)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// `alive`, `suspect`, `returning` and the like.
    pub state: String,
    /// Whether flows go to it.
    pub alive: bool,
}

/// The part of an entry of `get vips -o json` that says who should hold it and whether it is here.
#[derive(Debug, Deserialize)]
struct Vip {
    address: String,
    held: bool,
    plan: Vec<String>,
}

/// The part of an entry of `get paths -o json` that says whether it is used.
#[derive(Debug, Deserialize)]
struct Path {
    backend: String,
    rank: u8,
    alive: bool,
}

/// The part of `why -o json` that names the owner.
#[derive(Debug, Deserialize)]
struct Why {
    owner: Option<String>,
}

impl Lab {
    /// `redirector ARGS -o json` on a node.
    pub fn ask<T: DeserializeOwned>(&self, node: &str, args: &[impl AsRef<str>]) -> Result<T> {
        let mut command = self.redirector(node, args)?;
        let text = step::read(command.args(["-o", "json"]))?;
        serde_json::from_str(&text).with_context(|| format!("{command:?} on {node} says what is not understood here"))
    }

    /// The nodes, as one of them sees them; witnesses are none.
    pub fn seen(&self, by: &str) -> Result<Vec<Seen>> {
        let mut seen: Vec<Seen> = self.ask(by, &["get", "nodes"])?;
        seen.retain(|one| self.nodes().contains(&one.name));
        match seen.len() == self.nodes().len() {
            true => Ok(seen),
            false => bail!("{by} knows of {seen:?} only"),
        }
    }

    /// Whom the nodes do not see alive, in words.
    pub fn suspicions(&self) -> Result<Vec<String>> {
        let mut suspicions = Vec::new();
        for node in self.nodes() {
            let away = self.seen(&node)?.into_iter().filter(|seen| !seen.alive);
            suspicions.extend(away.map(|seen| format!("for {node}, {} is {}", seen.name, seen.state)));
        }
        Ok(suspicions)
    }

    /// The VIPs for which a node answers ARP or neighbour discovery.
    pub fn held(&self, node: &str) -> Result<Vec<IpAddr>> {
        let held = self.ask::<Vec<Vip>>(node, &["get", "vips"])?.into_iter().filter(|vip| vip.held);
        held.map(|vip| vip.address.parse().with_context(|| format!("{} is no address", vip.address))).collect()
    }

    /// The nodes that answer ARP or neighbour discovery for a VIP; the dead do not count.
    pub fn holders(&self, vip: IpAddr) -> Result<Vec<String>> {
        let mut holders = Vec::new();
        for node in self.nodes().into_iter().filter(|node| !self.is_dead(node)) {
            if self.held(&node)?.contains(&vip) {
                holders.push(node);
            }
        }
        Ok(holders)
    }

    /// The node that alone holds a VIP.
    pub fn holder(&self, vip: IpAddr) -> Result<String> {
        let holders = self.holders(vip)?;
        match holders.as_slice() {
            [holder] => Ok(holder.clone()),
            [] => bail!("no node holds {vip}"),
            several => bail!("several nodes hold {vip}: {}", several.join(", ")),
        }
    }

    /// Who owns a UDP flow, by the word of a node; none if the flow needs no owner.
    pub fn owner(&self, by: &str, source: SocketAddr, target: SocketAddr) -> Result<Option<String>> {
        let Why { owner } = self.ask(by, &["why", "udp", &source.to_string(), &target.to_string()])?;
        Ok(owner)
    }

    /// The first of these sources whose UDP flow to a target a node owns.
    pub fn source_of(
        &self,
        owner: &str,
        sources: impl IntoIterator<Item = SocketAddr>,
        target: SocketAddr,
    ) -> Result<SocketAddr> {
        let (mut tried, mut last) = (0, None);
        for source in sources {
            if self.owner(owner, source, target)?.as_deref() == Some(owner) {
                return Ok(source);
            }
            (tried, last) = (tried + 1, Some(source));
        }
        let Some(last) = last else { bail!("no flow to {target} was named") };
        let mut why = self.redirector(owner, &["why", "udp", &last.to_string(), &target.to_string()])?;
        bail!("none of {tried} flows to {target} is owned by {owner}; of the last it says:\n{}", step::read(&mut why)?)
    }

    /// Waits until every node sees every other alive, and each VIP that nodes hold is with the first of its plan alone.
    pub fn whole(&self) -> Result<()> {
        for node in self.nodes() {
            let agent = self.process(&format!("{node}-agent"))?;
            wait_for(&agent, WHOLE, || {
                // Until its data plane is there, it cannot say anything.
                let missing = self.missing_at(&node).unwrap_or_else(|error| vec![format!("{error:#}")]);
                Ok(if missing.is_empty() { None } else { Some(missing.join("; ")) })
            })?;
        }
        Ok(())
    }

    /// Waits until every path is alive to every node.
    pub fn paths_whole(&self) -> Result<()> {
        for node in self.nodes() {
            let agent = self.process(&format!("{node}-agent"))?;
            wait_for(&agent, WHOLE, || {
                let paths: Vec<Path> = self.ask(&node, &["get", "paths"])?;
                let away = paths.iter().filter(|path| !path.alive);
                let away: Vec<String> = away.map(|path| format!("{} by way {}", path.backend, path.rank)).collect();
                Ok(if away.is_empty() { None } else { Some(format!("not alive to {node}: {}", away.join(", "))) })
            })?;
        }
        Ok(())
    }

    fn missing_at(&self, node: &str) -> Result<Vec<String>> {
        let away = self.seen(node)?.into_iter().filter(|seen| !seen.alive || seen.state != "alive");
        let mut missing: Vec<String> =
            away.map(|seen| format!("for {node}, {} is {}", seen.name, seen.state)).collect();
        for Vip { address, held, plan } in self.ask::<Vec<Vip>>(node, &["get", "vips"])? {
            let first = plan.first().is_some_and(|first| first == node);
            match (held, first) {
                (false, true) => missing.push(format!("{node} does not hold {address} yet")),
                (true, false) => missing.push(format!("{node} holds {address}, which is for another")),
                _ => {}
            }
        }
        Ok(missing)
    }
}
