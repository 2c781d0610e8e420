//! A node: its configuration in force, its maps, and the changes to both.

mod start;

use std::fs::File;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use redirector_ebpf::reason::Reason;
use redirector_ebpf::tables::AliveNodes;
use redirector_ebpf::tables::names::kind;
use tokio::sync::{oneshot, watch};

pub use start::load_alone;
pub(super) use start::{DISK, compile, override_mode};

use super::PULSE;
use super::agreement::Agreement;
use super::audit::Audit;
use super::backends::Backends;
use super::change::{Applied, ApplyError};
use super::committed::Committed;
use super::condition::Condition;
use super::drains::Drains;
use super::follow::Change;
use super::health::{HealthStatus, SelfHealth};
use super::incidents::Incidents;
use super::liveness::{Liveness, LivenessStatus};
use super::lookout;
use super::next_hops;
use super::paths::PathStatus;
use super::record::Record;
use super::talk::Talk;
use crate::bfd::{self, Speaker};
use crate::breaker::{Breaker, Breakers};
use crate::config::{self, Config, XdpMode};
use crate::consensus::planner::Report;
use crate::dataplane::flows::now;
use crate::dataplane::image::{Image, NextHop};
use crate::dataplane::install::{self, Sweep};
use crate::dataplane::maps::Maps;
use crate::netlink::{self, Neighbour};
use crate::paths::health::Sign;
use crate::replication;
use crate::vip::{self, View};

/// A running node.
pub struct Node {
    pub(super) config: Config,
    pub(super) mode: Option<XdpMode>,
    pub(super) key: [u8; 16],
    pub(super) committed: Committed,
    pub(super) image: Image,
    pub(super) maps: Maps,
    sweep: Sweep,
    kept_by_agent: Vec<NextHop>,
    pub(super) liveness: Option<Liveness>,
    pub(super) talk: Option<Talk>,
    pub(super) agreement: Option<Agreement>,
    /// The file that `run` was given.
    pub(super) file: PathBuf,
    /// Its text, where it was edited and the cluster has not been asked for it yet.
    pub(super) edited: Option<String>,
    /// Whether the cluster has taken it, once it is known.
    pub(super) asking: Option<oneshot::Receiver<bool>>,
    /// Whether what was agreed on has to wait until others have this node's flows.
    pub(super) waiting: bool,
    pub(super) backends: Backends,
    pub(super) drains: Drains,
    attached: bool,
    /// Whether routes to VIPs may be there.
    announces: bool,
    began: Duration,
    breakers: Breakers,
    /// Stands before writing to the data directory.
    pub(super) disk: Arc<Breaker>,
    pub(super) record: Record,
    pub(super) incidents: Incidents,
    pub(super) audit: Audit,
    /// How often tables were to be looked at.
    pub(super) audits: u32,
    /// The version that they were last looked at in.
    pub(super) audited: u64,
    condition: Condition,
    health: SelfHealth,
    speaker: Option<Speaker>,
    _held: File,
}

impl Node {
    /// Changes whenever alive bits do, or what peers say of them.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        match &self.liveness {
            Some(liveness) => liveness.changes(),
            None => watch::channel(0).1,
        }
    }

    /// Takes note of whether routes to VIPs may be there.
    pub(super) fn set_announces(&mut self, announces: bool) {
        self.announces = announces;
    }

    /// Whether this node drains, and holds no VIP and announces none any more.
    fn has_withdrawn(&self) -> bool {
        let drains = self.liveness.as_ref().is_some_and(Liveness::drains);
        // What cannot be read may be there.
        drains && !self.announces && vip::held(&self.maps).is_ok_and(|held| held.is_empty())
    }

    /// Takes note of how this node's interfaces are. What is not known counts as attached.
    pub(super) fn set_links(&mut self, links: Option<vip::Links>) {
        self.attached = links.is_none_or(|links| links.is_attached);
        // Ports that no interface has are numbered too.
        let indices = self.image.ports.iter().map(|port| port.ifindex).filter(|index| *index != 0);
        self.health.set_interfaces(self.config.interfaces.len(), indices.collect());
        self.health.host.links = links.map(|links| (links.carried, links.attached));
    }

    /// What this node knows of the cluster, as far as VIPs depend on it.
    pub(super) fn view(&self) -> View {
        let view = |liveness: &Liveness| liveness.view(&self.config, self.attached);
        self.liveness.as_ref().map(view).unwrap_or_default()
    }

    /// Measures this node's load, and has beats say how it is.
    fn look_at_self(&mut self) {
        let time = Duration::from_nanos(now());
        if let Err(error) = self.condition.observe(&self.config, &mut self.maps, self.talk.as_ref(), time) {
            tracing::error!("the shed level does not follow the load: {:#}", anyhow::Error::new(error));
        }
        self.health.host.heard_first = self.liveness.as_ref().map(Liveness::heard_first).unwrap_or_default();
        if self.health.is_due(time) {
            let hops = next_hops::judged(&self.config, &self.image);
            self.health.look_at_network(&hops, self.condition.refused(), time);
        }
        self.health.observe(&self.config.health, PULSE, time);
        let (load, shed) = (self.condition.load(), self.condition.level(&self.config));
        let (health, share) = (self.health.score(), self.health.share(&self.config.health));
        if let Some(liveness) = &mut self.liveness {
            liveness.set_condition(lookout::Condition { health, load, shed, share });
        }
    }

    /// Goes by what this host was found to take since it started.
    pub(super) fn learn_capacity(&mut self) {
        self.condition.learn(&self.config);
    }

    /// How this node is.
    pub(super) fn health(&self) -> HealthStatus {
        let time = Duration::from_nanos(now());
        let hands_over = self.liveness.as_ref().is_some_and(Liveness::hands_over);
        let load = self.condition.status(&self.config, time);
        self.health.status(&self.config.health, hands_over, load, time)
    }

    /// Gives a sign of life, lets peers be alive that may be, and tells the leader what this node sees and has done.
    pub(super) fn look_at_peers(&mut self) {
        self.look_at_self();
        let has_withdrawn = self.has_withdrawn();
        let Some(liveness) = &mut self.liveness else { return };
        let follower = self.agreement.as_mut().map(Agreement::follower_mut);
        let report = liveness.pulse(&self.image.slots, self.talk.as_mut(), follower);
        if let (Some(agreement), Some(report)) = (&mut self.agreement, report) {
            agreement.report(Report { has_withdrawn, dead: self.backends.found().clone(), ..report });
        }
        self.look_at_backends();
    }

    /// Notes what is new of what this node sees; `all`: also of what is looked at now and then only.
    pub(super) fn note_incidents(&mut self, all: bool) {
        if let Some(liveness) = &self.liveness {
            let (detector, own) = liveness.lives();
            self.incidents.lives(detector, own);
            self.incidents.frozen(liveness.maps().pulse().frozen.load());
        }
        self.note_ways();
        let events = self.agreement.as_mut().map(Agreement::events).unwrap_or_default();
        events.iter().for_each(|event| self.incidents.told(event));
        if !all {
            return;
        }
        if let Some(agreement) = &self.agreement {
            self.incidents.agreement(&agreement.overview());
            self.incidents.transport(&agreement.transport());
        }
        if let Some(counters) = self.replication() {
            self.incidents.replication(&counters);
        }
        // What cannot be read is read again soon.
        if let Ok(unknown) = self.maps.reasons.get(&(Reason::BeatVersion as u32), 0) {
            self.incidents.beats(unknown.iter().sum());
        }
    }

    /// Notes where packets to peers leave by others of their links.
    fn note_ways(&mut self) {
        for (&node, first) in &self.image.peers {
            if self.image.ways.range((node, 0)..=(node, u8::MAX)).nth(1).is_none() {
                continue;
            }
            // What cannot be read is read again soon.
            let Ok(taken) = self.maps.ways.get(&u32::from(node), 0) else { continue };
            let name = self.image.registry.name(kind::PORT, taken as u32 + 1).unwrap_or("another interface");
            self.incidents.way(node, name, taken == u64::from(first.port));
        }
    }

    /// An interface lost its carrier, or has it again.
    pub(super) fn carrier(&mut self, index: u32, carrier: bool) {
        let port = self.image.ports.iter().position(|port| port.ifindex == index && index != 0);
        if let (Some(liveness), Some(port)) = (&mut self.liveness, port) {
            liveness.carrier(port as u8, carrier);
        }
    }

    /// Reads all interfaces' carriers.
    pub(super) async fn read_carriers(&mut self) {
        match netlink::interfaces().await {
            Ok(all) => all.iter().for_each(|interface| self.carrier(interface.index, interface.carrier)),
            Err(error) => tracing::error!(%error, "the kernel's interfaces cannot be read"),
        }
    }

    /// Has who holds VIPs told of changes at once.
    pub(super) fn tell_at_once(&self, vips: vip::Handle) {
        let Some(liveness) = &self.liveness else { return };
        let mut base = self.view();
        base.alive = AliveNodes::default();
        base.alive.set(self.config.node.id, true);
        liveness.tell_at_once(vips, base);
    }

    /// What replication has counted, where there is any.
    pub(super) fn replication(&self) -> Option<replication::Counters> {
        self.talk.as_ref().and_then(Talk::counters)
    }

    /// Ends shedding and talking to the peers.
    pub(super) async fn end(&mut self) {
        if let Err(error) = self.condition.relieve(&self.config, &mut self.maps) {
            tracing::error!("the shed level stays for some seconds more: {:#}", anyhow::Error::new(error));
        }
        drop(self.speaker.take());
        if let Some(agreement) = self.agreement.take() {
            agreement.end().await;
        }
        if let Some(talk) = self.talk.take() {
            talk.end().await;
        }
    }

    /// What liveness has to tell.
    pub(super) fn liveness(&self) -> Option<LivenessStatus> {
        self.liveness.as_ref().map(|liveness| liveness.status(self.began))
    }

    /// Speaks BFD with the routers that are configured; what sessions say of paths.
    ///
    /// # Errors
    /// Where there is no thread for it.
    pub(super) fn start_bfd(&mut self) -> Result<watch::Receiver<Vec<Sign>>> {
        if self.config.bfds.is_empty() {
            return Ok(watch::channel(Vec::new()).1);
        }
        let speaker = Speaker::start(&self.config.bfds, self.incidents.journal().clone())?;
        Ok(self.speaker.insert(speaker).signs())
    }

    /// BFD sessions say something else of paths.
    pub(super) fn set_sessions(&mut self, signs: Vec<Sign>) {
        if let Some(liveness) = &mut self.liveness {
            liveness.set_sessions(signs);
        }
    }

    /// What there is to tell of BFD sessions.
    pub(super) fn sessions(&self) -> Vec<bfd::Status> {
        self.speaker.as_ref().map(Speaker::statuses).unwrap_or_default()
    }

    /// What is known of paths.
    pub(super) fn paths(&self) -> Option<Vec<PathStatus>> {
        self.liveness.as_ref().map(Liveness::path_status)
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its version.
    pub fn version(&self) -> u64 {
        self.committed.version
    }

    /// Its text.
    pub fn text(&self) -> &str {
        &self.committed.text
    }

    /// What a configuration would change.
    ///
    /// # Errors
    /// Its mistakes.
    pub fn diff(&self, name: &str, text: &str) -> Result<Vec<String>, ApplyError> {
        let mut next = config::parse(name, text)?;
        override_mode(&mut next, self.mode);
        Ok(config::diff(&self.config, &next).iter().map(ToString::to_string).collect())
    }

    /// Changes to another configuration, all or nothing. In a cluster that agrees, it decides, and every node follows.
    ///
    /// # Errors
    /// [`ApplyError`]; the configuration in force stays.
    pub(super) async fn apply(&mut self, name: &str, text: &str, expect: Option<u64>) -> Result<Change, ApplyError> {
        if self.is_in_agreement() {
            let change = self.change(name, text, expect)?;
            // What cannot be in force here is not asked for: most nodes are like this one.
            compile(&config::merge(name, text, &self.config)?, self.key, &self.maps).await?;
            return Ok(change);
        }
        let present = self.committed.version;
        if let Some(expected) = expect.filter(|expected| *expected != present) {
            return Err(ApplyError::Version { present, expected });
        }
        let mut next = config::parse(name, text)?;
        override_mode(&mut next, self.mode);
        let changes: Vec<String> = config::diff(&self.config, &next).iter().map(ToString::to_string).collect();
        self.only_shared_parts(&next)?;
        let image = compile(&next, self.key, &self.maps).await?;
        let committed = match changes.is_empty() {
            true => self.committed.clone(),
            false => {
                Committed { version: present + 1, file: self.committed.file, text: text.to_owned(), agreed: false }
            }
        };
        self.record.commit(&committed).await?;
        self.put_in_force(next, image, committed).await?;
        Ok(Change::Done(Applied { version: self.committed.version, changes, durable: None }))
    }

    /// The breakers before what this node depends on.
    pub fn breakers(&self) -> &Breakers {
        &self.breakers
    }

    /// Has all parts of the node go by a configuration that is on disk.
    pub(super) async fn put_in_force(
        &mut self,
        next: Config,
        mut image: Image,
        on_disk: Committed,
    ) -> Result<(), ApplyError> {
        self.kept_by_agent = next_hops::learn(&mut self.maps, &image).await;
        image.node.shed_level = self.condition.level(&next);
        self.keep_out(&mut image);
        install::install(&mut self.maps, &image)?;
        self.condition.was_written(image.node.shed_level);
        (self.config, self.image, self.committed) = (next, image, on_disk);
        self.read_next_hops().await;
        self.backends.forget();
        self.audit.forget();
        if let Some(liveness) = &mut self.liveness {
            liveness.configure(&self.config, self.key, &self.image)?;
        }
        if let Some(talk) = &mut self.talk {
            talk.configure(&self.config);
        }
        Ok(())
    }

    pub(super) fn only_shared_parts(&self, next: &Config) -> Result<(), ApplyError> {
        let now = &self.config;
        let own = [
            ("node", now.node == next.node),
            ("cluster", now.cluster == next.cluster),
            ("tables", now.tables == next.tables),
            ("interface", now.interfaces == next.interfaces),
            ("bfd", now.bfds == next.bfds),
        ];
        own.into_iter().find(|(_, same)| !same).map_or(Ok(()), |(part, _)| Err(ApplyError::Own(part)))
    }

    /// Has the kernel keep all next hops.
    pub(super) async fn keep_next_hops(&mut self) {
        self.kept_by_agent = next_hops::keep(self.image.neighbours.values()).await;
    }

    /// Asks again for next hops that the kernel does not keep.
    pub(super) async fn refresh_next_hops(&mut self) {
        for hop in &self.kept_by_agent {
            if let Err(error) = netlink::keep_neighbour(hop.interface, hop.address).await {
                tracing::debug!(next_hop = %hop.address, %error, "asked in vain");
            }
        }
    }

    /// Takes over what the kernel knows of next hops.
    pub(super) async fn read_next_hops(&mut self) {
        let time = Duration::from_nanos(now());
        next_hops::read(&mut self.maps, &self.image, &mut self.health.neighbours, time).await;
    }

    /// Takes over one neighbour entry, if it is a next hop's.
    pub(super) fn neighbour(&mut self, neighbour: &Neighbour) {
        next_hops::take_over(&mut self.maps, &self.image, neighbour);
        let (index, address, time) = (neighbour.index, neighbour.address, Duration::from_nanos(now()));
        self.health.neighbours.observe(index, address, Some(neighbour.state), time);
    }

    /// The kernel has forgotten a neighbour.
    pub(super) fn neighbour_gone(&mut self, index: u32, address: IpAddr) {
        self.health.neighbours.observe(index, address, None, Duration::from_nanos(now()));
    }

    /// Takes flows out that are over, in the next part of the flow tables.
    pub(super) fn sweep(&mut self) {
        self.sweep.step(&self.maps, &self.image);
    }

    /// Ends disputes that have settled, gives numbers back.
    pub(super) fn tidy(&mut self) {
        match install::settle(&mut self.maps, &mut self.image, &mut self.sweep) {
            Ok(done) if done == install::Settled::default() => {}
            Ok(done) => {
                tracing::debug!(flows = done.swept, rows = done.rows, numbers = done.released, "tidied up");
            }
            Err(error) => {
                tracing::error!("tidying up failed, and is tried again soon: {:#}", anyhow::Error::new(error));
            }
        }
    }
}
