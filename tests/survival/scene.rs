//! A lab with agents in it, and what is asked of it again and again.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use redirector::dataplane::load;
use redirector::dataplane::maps::Maps;
use redirector_ebpf::reason::{Action, Reason};
use redirector_ebpf::tables::Row;
use redirector_ebpf::tables::names::kind;
use xtask::lab::{Config, Lab, Pool, Ports, Service, Topology, Vip, vip4, vip6};
use xtask::traffic::{ECHO_PORT, HTTP_PORT, LoadReport};

/// How long anything that must happen may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How long an answer may take.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A lab that redirects.
pub(crate) struct Scene {
    pub(crate) lab: Lab,
    pub(crate) config: Config,
    _alone: MutexGuard<'static, ()>,
}

impl Scene {
    /// A lab with servers, agents and decap, all ready.
    pub(crate) fn up(topology: &Topology, config: Config) -> Result<Self> {
        let scene = Self::without_agents(topology, config)?;
        scene.lab.start_agents()?;
        Ok(scene)
    }

    /// The same, where nothing redirects yet.
    pub(crate) fn without_agents(topology: &Topology, config: Config) -> Result<Self> {
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lab = Lab::up(topology)?;
        lab.serve()?;
        lab.configure(&config)?;
        lab.start_decaps()?;
        Ok(Self { lab, config, _alone })
    }

    /// Where a node's maps and link are pinned.
    pub(crate) fn pins(&self, node: &str) -> Result<PathBuf> {
        Ok(Path::new("/sys/fs/bpf").join(self.lab.host(node)?.namespace()))
    }

    pub(crate) fn maps(&self, node: &str) -> Result<Maps> {
        Ok(Maps::open(&load::directory(&self.pins(node)?))?)
    }

    /// `redirector ARGS --config FILE` on a host, whatever becomes of it.
    pub(crate) fn run(&self, host: &str, args: &[&str]) -> Result<Output> {
        Ok(self.lab.redirector(host, args)?.output()?)
    }

    /// The same, which must succeed; returns what it prints.
    pub(crate) fn done(&self, host: &str, args: &[&str]) -> Result<String> {
        let output = self.run(host, args)?;
        ensure!(output.status.success(), "{args:?} on {host}: {}", words(&output));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The same, which must fail; returns its words.
    pub(crate) fn refused(&self, host: &str, args: &[&str]) -> Result<String> {
        let output = self.run(host, args)?;
        ensure!(output.status.code() == Some(1), "{args:?} on {host} was not refused: {}", words(&output));
        Ok(words(&output))
    }

    /// Changes all nodes to the scene's configuration, one after the other.
    pub(crate) fn apply(&self) -> Result<()> {
        self.lab.configure(&self.config)?;
        for node in self.lab.nodes() {
            let file = self.lab.config_file(&node);
            self.done(&node, &["apply", &file.display().to_string()])?;
        }
        Ok(())
    }

    /// The rows of a node's pools, by the pool's name.
    pub(crate) fn rows(&self, node: &str) -> Result<Vec<(String, Vec<Row>)>> {
        let maps = self.maps(node)?;
        let registry = maps.registry()?;
        let pools = registry.of(kind::POOL).into_iter();
        pools.map(|(id, name)| Ok((name.to_owned(), maps.rows(&maps.pools.get(&id, 0)?)?))).collect()
    }

    /// The number of the program on a node's interface.
    pub(crate) fn program(&self, node: &str) -> Result<Option<u32>> {
        let link = self.lab.host(node)?.command("ip").args(["-o", "link", "show", "eth0"]).output()?;
        ensure!(link.status.success(), "{}", words(&link));
        let id =
            words(&link).split_once("prog/xdp id ").map(|(_, rest)| rest.split(' ').next().unwrap_or_default().parse());
        Ok(id.transpose()?)
    }

    /// How often a node left a packet for this reason.
    pub(crate) fn count(&self, node: &str, reason: Reason) -> Result<u64> {
        Ok(self.maps(node)?.reasons.get(&(reason as u32), 0)?.iter().sum())
    }

    /// Makes sure that no node has dropped a packet: clients send lost ones again, and so would hide it.
    ///
    /// Beats end at whom they are for. Some come before a node that starts asks their sender, or answer an agent that is
    /// no more.
    pub(crate) fn nothing_was_dropped(&self) -> Result<()> {
        let ended = [Reason::BeatTaken, Reason::BeatForeign, Reason::BeatReplayed];
        let drops = |reason: &&Reason| matches!(reason.action(), Action::Drop) && !ended.contains(reason);
        for node in self.lab.nodes() {
            for reason in Reason::ALL.iter().filter(drops) {
                let count = self.count(&node, *reason)?;
                ensure!(count == 0, "{node} dropped {count} packets: {}", reason.name());
            }
        }
        Ok(())
    }
}

/// A configuration with a VIP of each family for every kind of service: TCP port 80 and UDP port 7 of all backends.
pub(crate) fn every_kind(topology: &Topology, modes: &[&str]) -> Config {
    let mut config = Config::default();
    let kinds = modes.iter().flat_map(|mode| ["shared", "owned"].map(|affinity| (*mode, affinity)));
    for (number, (mode, affinity)) in (1..).zip(kinds) {
        for vip in [IpAddr::from(vip4(number)), vip6(number).into()] {
            let name = format!("{mode}-{affinity}-{}", if vip.is_ipv4() { "v4" } else { "v6" });
            config.vip.push(Vip::new(vip));
            for (protocol, port) in [("tcp", HTTP_PORT), ("udp", ECHO_PORT)] {
                config.service.push(Service {
                    name: format!("{name}-{protocol}"),
                    vip: vip.to_string(),
                    protocol: protocol.into(),
                    ports: Ports::One(port),
                    class: "normal".into(),
                    affinity: affinity.into(),
                    pool: name.clone(),
                });
            }
            config.pool.push(Pool::of_all(topology, &name, mode, vip.is_ipv6()));
        }
    }
    config
}

/// The service that a VIP of [`every_kind`] stands for, by its pool's name.
pub(crate) fn pool_of(config: &Config, vip: IpAddr) -> &str {
    let of_vip = |service: &&Service| service.vip == vip.to_string();
    config.service.iter().find(of_vip).map_or("", |service| &service.pool)
}

/// Every VIP with this port.
pub(crate) fn targets(config: &Config, port: u16) -> Vec<SocketAddr> {
    config.targets(port)
}

/// What a command said.
pub(crate) fn words(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).trim().to_owned()
}

pub(crate) fn all_answered(load: &LoadReport) -> Result<()> {
    ensure!(load.failed == 0 && load.ok == load.sent && load.sent > 0, "requests failed: {load:#?}");
    Ok(())
}

/// Waits until something holds; what is awaited is named in case it never does.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds()? {
        if Instant::now() > deadline {
            bail!("in vain waited {PATIENCE:?} until {what}");
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
