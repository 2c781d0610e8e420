//! The end of all faults.

use anyhow::{Context, Result};

use super::stub::Stub;
use super::{Lab, Role, VIPS4, VIPS6, disk, fabric, faults, partition};
use crate::step;

impl Lab {
    /// Ends all faults: cables are plugged in, partitions are lifted, paused agents go on, disks answer, processors rest, and what was killed is started
    /// anew, a dead node's agent with an empty data plane. Returns when every agent answers; the cluster may need longer.
    pub fn heal(&self) -> Result<()> {
        disk::restore(&self.directory)?;
        self.nodes().iter().try_for_each(|node| self.rest(node))?;
        partition::lift(self)?;
        fabric::restore(self)?;
        let up = step::read(self.role(Role::Fabric).command("ip").args(["-o", "link", "show", "up"]))?;
        for role in self.topology.hosts() {
            let name = role.name(self.topology.fabric);
            if self.topology.ends(role).iter().any(|end| !up.contains(&format!(" {end}@"))) {
                self.plug(&name)?;
            }
        }
        let nodes = self.nodes();
        for node in nodes.iter().filter(|node| self.is_dead(node)) {
            self.revive(node).with_context(|| format!("cannot revive {node}"))?;
        }
        let mut agents = Vec::new();
        for node in &nodes {
            // Where no agent was ever started, there is none to wait for.
            let Ok(agent) = self.process(&format!("{node}-agent")) else { continue };
            agent.signal(libc::SIGCONT);
            agents.push((node, if agent.alive() { agent } else { self.spawn_agent(node)? }));
        }
        agents.iter().try_for_each(|(node, agent)| self.agent_ready(node, agent))
    }

    /// Gives a dead node its network back and starts its agent. Until that has attached its program the fabric keeps the
    /// VIPs' packets away, as an upstream router would that checks who announces them: the kernel would answer that it
    /// knows no such host.
    fn revive(&self, node: &str) -> Result<()> {
        partition::keep_away(self, node, &[VIPS4, VIPS6])?;
        faults::exhume(self, node)?;
        let pass = Stub::pass()?;
        let ends = self.topology.ends(self.member(node)?);
        self.role(Role::Fabric).run(|| ends.iter().try_for_each(|end| pass.attach(end)))??;
        if self.process(&format!("{node}-agent")).is_ok() {
            let agent = self.spawn_agent(node)?;
            self.attached(node, &agent)?;
        }
        partition::let_in(self, node)
    }
}
