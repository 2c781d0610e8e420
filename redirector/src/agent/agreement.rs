//! Agreement within the agent: what it asks the cluster to decide, how far it has followed, and what it reports.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use redirector_ebpf::tables::names::kind;
use redirector_ebpf::tables::{AliveNodes, Row};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::timeout;

use super::liveness::Liveness;
use super::talk::Talk;
use crate::breaker::Breaker;
use crate::config::{BackendState, Config};
use crate::consensus::driver::{self, Genesis, Handle, ProposeError, Settings};
use crate::consensus::machine::{self, Role};
use crate::consensus::planner::{Patience, Report};
use crate::consensus::state::{Command, Definition, Member, MemberState, Phase, RowSet, Seat, Standing, State};
use crate::dataplane::registry::Registry;
use crate::liveness::State as Peer;

/// Entries of the log after which a snapshot takes their place.
const SNAPSHOT_EVERY: u64 = 1000;

/// How long a decided change waits at most until this node has followed it, before it is told as done.
const FOLLOWED: Duration = Duration::from_secs(10);

/// On how many voters' disks a change is known to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Durable {
    /// On so many.
    pub on: usize,
    /// Of so many.
    pub of: usize,
}

/// A member, as agreed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MemberStatus {
    /// The node.
    pub node: u8,
    /// `up`, `draining`, `returning` or `down`.
    pub standing: String,
    /// `voter` or `learner`; none for a node without a seat.
    pub seat: Option<String>,
    /// Up to which index it is known to have the log; only the leader knows.
    pub matched: Option<u64>,
}

/// How agreement stands, as one node sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgreementStatus {
    /// This node's role.
    pub role: Role,
    /// The node that leads, if one does.
    pub leader: Option<u8>,
    /// Raft's term.
    pub term: u64,
    /// Up to which index the log is known to be committed.
    pub commit: u64,
    /// Index of the last entry that this node's data plane goes by.
    pub applied: u64,
    /// Index of the log's last entry.
    pub last: u64,
    /// Version of the configuration that is agreed on; 0: none is.
    pub version: u64,
    /// Whether a majority of the voters is reached, as far as this node can know.
    pub quorum: bool,
    /// Whether any one node may fail, as far as this node can know.
    pub redundant: bool,
    /// The members.
    pub members: Vec<MemberStatus>,
}

/// A node's part in agreement.
pub(super) struct Agreement {
    handle: Handle,
    state: watch::Receiver<Arc<State>>,
    me: u8,
    incarnation: u64,
    /// What slots and rows in the maps follow from; empty until there is something.
    followed: Arc<State>,
    /// The version of everything that the data plane goes by.
    installed: u64,
    /// The version of the configuration in force; 0: none that was agreed on.
    in_force: u64,
    /// The same, but for one whose pools' new backends get no flows yet.
    done: watch::Sender<u64>,
    resynced: u64,
    restless: BTreeMap<String, RowSet>,
}

/// A change that the cluster is asked for, or that it has decided on and that is under way.
pub(super) struct Proposal {
    handle: Handle,
    command: Option<Command>,
    version: u64,
    done: watch::Receiver<u64>,
}

/// The pools of a configuration, as they are agreed on.
fn definitions(config: &Config) -> BTreeMap<String, Definition> {
    let definition = |pool: &crate::config::Pool| {
        let weight = |state| move |weight| if state == BackendState::Active { weight } else { 0 };
        Definition(pool.backends.iter().map(|one| (one.name.clone(), weight(one.state)(one.weight))).collect())
    };
    config.pools.iter().map(|pool| (pool.name.clone(), definition(pool))).collect()
}

/// The shares of the slots that a configuration gives to nodes.
fn weights(config: &Config) -> BTreeMap<u8, u32> {
    config.members.iter().map(|member| (member.id, if member.alive { member.weight } else { 0 })).collect()
}

/// Who may be a member besides this node.
fn others(config: &Config) -> BTreeSet<u8> {
    config.members.iter().map(|member| member.id).filter(|id| *id != config.node.id).collect()
}

fn address(config: &Config) -> String {
    let own = config.members.iter().find(|member| member.id == config.node.id);
    own.map(|own| std::net::SocketAddr::new(own.address, config.cluster.port).to_string()).unwrap_or_default()
}

impl Agreement {
    /// Whether nodes of a configuration agree on anything: there are several, and they can prove who they are.
    pub(super) fn is_for(config: &Config) -> bool {
        config.cluster.identity.is_some() && config.members.len() > 1
    }

    /// Starts this node's part in it, over what the agents talk by. `applied` is the version that the maps go by.
    pub(super) fn start(
        config: &Config,
        talk: &mut Talk,
        liveness: &Liveness,
        in_force: u64,
        disk: Arc<Breaker>,
    ) -> Result<Self> {
        let (transport, inbox) = talk.for_agreement().context("agreement runs already")?;
        let mut seed = [0; 16];
        getrandom::fill(&mut seed).map_err(|error| anyhow::anyhow!("the kernel gives no random number: {error}"))?;
        let incarnation = liveness.incarnation()?;
        let machine = machine::Config {
            cluster: config.cluster.id,
            node: config.node.id,
            peers: others(config).into_iter().collect(),
            address: address(config),
            weight: weights(config).get(&config.node.id).copied().unwrap_or(1),
            incarnation,
            seed: u128::from_le_bytes(seed),
            snapshot_every: SNAPSHOT_EVERY,
        };
        let patience = Patience { down: config.cluster.down_after.as_millis() as u64, ..Patience::default() };
        let file = config.node.data.join("agreement.redb");
        let settings = Settings { machine, file, breaker: disk, patience, welcome: others(config), alone: None };
        std::fs::create_dir_all(&config.node.data)?;
        let handle = driver::start(settings, transport, inbox)?;
        let state = handle.state();
        // Whoever has no log yet follows whatever it is told first.
        let is_new = state.borrow().version == 0;
        let (installed, in_force) = if is_new { (0, 0) } else { (liveness.applied(), in_force) };
        Ok(Self {
            handle,
            state,
            me: config.node.id,
            incarnation,
            followed: Arc::default(),
            installed,
            in_force,
            done: watch::channel(0).0,
            resynced: 0,
            restless: BTreeMap::new(),
        })
    }

    /// Changes whenever what is agreed on does.
    pub(super) fn changes(&self) -> watch::Receiver<Arc<State>> {
        self.handle.state()
    }

    /// What is agreed on; none before the cluster has begun and this node has heard of it.
    pub(super) fn state(&self) -> Option<Arc<State>> {
        let state = self.state.borrow().clone();
        (state.version > 0).then_some(state)
    }

    /// What is agreed on, if the data plane is behind it.
    pub(super) fn news(&self) -> Option<Arc<State>> {
        let is_first = self.followed.version == 0;
        self.state().filter(|state| state.version > self.installed || is_first && state.version == self.installed)
    }

    /// What slots and rows in the maps follow from, once they follow from anything.
    pub(super) fn followed(&self) -> Option<&State> {
        (self.followed.version > 0).then_some(&*self.followed)
    }

    /// Whether a configuration is newer than the one in force.
    pub(super) fn is_newer(&self, state: &State) -> bool {
        state.specification.version > self.in_force
    }

    /// A configuration is in force.
    pub(super) fn took(&mut self, version: u64) {
        self.in_force = version;
    }

    /// Slots and rows in the maps follow from this state; with `whole`, everything does.
    pub(super) fn follows(&mut self, state: Arc<State>, whole: bool) {
        if self.followed.slots != state.slots {
            self.restless.clear();
        }
        let before = &self.followed.pools;
        self.restless.retain(|name, _| before.get(name) == state.pools.get(name));
        if whole {
            self.installed = state.version;
        }
        if whole && !state.pools.values().any(|pool| pool.phase() == Phase::Announced) {
            self.done.send_replace(state.specification.version);
        }
        self.followed = state;
    }

    /// The rows of pools whose agreed steps the maps have not taken yet; of all pools, if `all`.
    pub(super) fn rows(&self, state: &State, registry: &Registry, all: bool) -> BTreeMap<u16, Vec<Row>> {
        let is_news = |name: &String| all || self.followed.pools.get(name) != state.pools.get(name);
        let news = state.pools.iter().filter(|(name, _)| is_news(name));
        news.filter_map(|(name, pool)| {
            let id = registry.id(kind::POOL, name)? as u16;
            let number = |backend: &str| registry.id(kind::BACKEND, &format!("{name}/{backend}")).unwrap_or(0) as u16;
            let mut rows = pool.rows(number);
            for row in rows.iter_mut().filter(|row| row.previous() == 0) {
                // The backend of before is gone here, and with it every flow of it that this node could serve.
                *row = Row::new(row.current(), row.current(), row.disputed());
            }
            Some((id, rows))
        })
        .collect()
    }

    /// Which rows have flows off their current backend, by pool.
    pub(super) fn set_restless(&mut self, restless: BTreeMap<String, RowSet>) {
        self.restless = restless;
    }

    /// Tells the leader what this node sees and has done.
    pub(super) fn report(&mut self, liveness: &Liveness, complete_from: Option<&BTreeSet<u8>>) {
        let own = self.incarnation;
        let out: BTreeSet<u8> = liveness.peers_in(&[Peer::Suspect, Peer::Unknown]).collect();
        let silent: BTreeSet<u8> = liveness.peers_in(&[Peer::AgentSilent]).collect();
        let fallen: BTreeSet<u8> = liveness.peers_in(&[Peer::Suspect, Peer::AgentSilent]).collect();
        if let Some(state) = self.followed() {
            // Who serves may have flows that this node should have. Whoever is dead has none to give any more.
            let me = self.me;
            let owes = |(&id, member): (&u8, &Member)| {
                let serves = id != me && member.standing == Standing::Up && !fallen.contains(&id);
                serves && complete_from.is_some_and(|from| !from.contains(&id))
            };
            if !state.members.iter().any(owes) {
                self.resynced = state.version;
            }
        }
        let report = Report {
            incarnation: own,
            suspects: out,
            silent,
            installed: self.installed,
            resynced: self.resynced,
            restless: self.restless.clone(),
        };
        self.handle.report(report);
    }

    /// Asks for a change to another configuration.
    pub(super) fn propose(&self, config: &Config, text: &str, expect: Option<u64>) -> Proposal {
        self.asks(Some(Command::Apply { text: text.to_owned(), expect, pools: definitions(config) }))
    }

    /// Asks for a node to be no member any more.
    pub(super) fn leave(&self, node: u8) -> Proposal {
        self.asks(Some(Command::Leave(node)))
    }

    /// The change that is under way, if one is.
    pub(super) fn under_way(&self) -> Option<Proposal> {
        (self.in_force > *self.done.borrow()).then(|| self.asks(None))
    }

    fn asks(&self, command: Option<Command>) -> Proposal {
        Proposal { handle: self.handle.clone(), command, version: self.in_force, done: self.done.subscribe() }
    }

    /// Begins a cluster of this node, with what is in force here: a configuration, its version, and how many rows pools
    /// have. The others join by themselves.
    pub(super) fn bootstrap(
        &mut self,
        config: &Config,
        text: &str,
        version: u64,
        sizes: BTreeMap<String, u32>,
    ) -> impl Future<Output = Result<(), machine::BootstrapError>> + Send + 'static {
        let weight = weights(config).get(&self.me).copied().unwrap_or(1);
        let (address, incarnation, text) = (address(config), self.incarnation, text.to_owned());
        let (me, slots, pools) = (self.me, config.cluster.slots, definitions(config));
        let genesis: Genesis = Box::new(move |disk| {
            let seat = Some(Seat { disk, votes: true });
            let member = Member { address, weight, seat, standing: Standing::Up, draining: false, incarnation };
            let mut state = State::genesis(me, member, slots, text, pools);
            state.specification.version = version;
            // A table of another size would send the flows of today elsewhere.
            for (name, pool) in &mut state.pools {
                pool.size = pool.size.max(sizes.get(name).copied().unwrap_or(0));
            }
            state
        });
        let handle = self.handle.clone();
        async move { handle.bootstrap(genesis).await }
    }

    /// Takes over who may be a member. If this node leads, it has members' shares of the slots follow the configuration.
    pub(super) fn configure(&self, config: &Config) {
        self.handle.welcome(others(config));
        let Some(state) = self.state().filter(|_| self.handle.overview().borrow().status.role == Role::Leader) else {
            return;
        };
        let is_other = |(id, weight): &(u8, u32)| state.members.get(id).is_some_and(|one| one.weight != *weight);
        let other: BTreeMap<u8, u32> = weights(config).into_iter().filter(is_other).collect();
        if !other.is_empty() {
            let handle = self.handle.clone();
            tokio::spawn(async move {
                if let Err(error) = handle.propose(Command::SetWeights(other)).await {
                    tracing::warn!(%error, "shares of slots are not changed yet");
                }
            });
        }
    }

    /// How it stands.
    pub(super) fn status(&self) -> AgreementStatus {
        let status = self.handle.overview().borrow().status.clone();
        let state = self.state.borrow().clone();
        let member = |(&node, member): (&u8, &Member)| MemberStatus {
            node,
            standing: match member.state() {
                MemberState::Up => "up",
                MemberState::Draining => "draining",
                MemberState::Returning => "returning",
                MemberState::Down => "down",
            }
            .to_owned(),
            seat: member.seat.map(|seat| if seat.votes { "voter" } else { "learner" }.to_owned()),
            matched: status.peers.iter().find(|peer| peer.id == node).and_then(|peer| peer.matched),
        };
        AgreementStatus {
            role: status.role,
            leader: status.leader,
            term: status.term,
            commit: status.commit,
            applied: self.installed,
            last: status.last,
            version: state.specification.version,
            quorum: status.has_quorum,
            redundant: status.is_redundant,
            members: state.members.iter().map(member).collect(),
        }
    }

    /// Ends this node's part, after another leads.
    pub(super) async fn end(self) {
        self.handle.resign();
        self.handle.end().await;
    }
}

impl Proposal {
    /// Has the cluster decide. When this returns, this node goes by the decision, if it can.
    pub(super) async fn decide(mut self) -> Result<(u64, Option<Durable>), ProposeError> {
        let (version, durable) = match self.command {
            None => (self.version, None),
            Some(command) => {
                let done = self.handle.propose(command).await?;
                (done.version, Some(Durable { on: done.durable_on, of: done.of }))
            }
        };
        if timeout(FOLLOWED, self.done.wait_for(|done| *done >= version)).await.is_err() {
            tracing::warn!(version, "not all nodes go by what was decided yet");
        }
        Ok((version, durable))
    }
}

/// Who is there to have copies of flows.
pub(super) fn present(state: &State) -> AliveNodes {
    let mut present = AliveNodes::default();
    state.members.iter().filter(|(_, member)| member.is_present()).for_each(|(&id, _)| present.set(id, true));
    present
}
