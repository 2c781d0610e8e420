//! Agreement within the agent: what it asks the cluster to decide, how far it has followed, and what it reports.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use redirector_ebpf::tables::Slot;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::TryRecvError;
use tokio::sync::{broadcast, watch};
use tokio::time::timeout;

use super::copies::Delivered;
use super::follower::Follower;
use super::liveness::Liveness;
use super::refused::RefusedStatus;
use super::talk::Talk;
use super::terms;
use crate::breaker::Breaker;
use crate::config::Config;
use crate::consensus::driver::{self, Handle, Overview, ProposeError, Settings};
use crate::consensus::machine::{self, Role};
use crate::consensus::planner::Report;
use crate::consensus::state::{Command, Member, MemberState, State};
use crate::transport::{Counters, Transport};

/// How long a decided change waits at most until this node has followed it, before it is told as done.
const FOLLOWED: Duration = Duration::from_secs(10);

/// How often the leader is told the same again.
const REPORT: Duration = Duration::from_secs(1);

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
    /// `up`, `draining`, `drained`, `returning`, `down`, or `witness`.
    pub standing: String,
    /// Where its agent is reached.
    #[serde(default)]
    pub address: String,
    /// Whether its agent is reached from here just now.
    #[serde(default)]
    pub reached: bool,
    /// Times that one end refused the other's certificate when this node dialled it.
    #[serde(default)]
    pub refused_certificates: u64,
    /// Frames of its agent that were refused: cut short, too long, changed, or of an unknown version.
    #[serde(default)]
    pub damaged_frames: u64,
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
    /// Whether all others that live have this node's flows that they should have.
    #[serde(default)]
    pub copied: bool,
    /// Whether a majority of the voters would be left without any one of those that are reached.
    #[serde(default)]
    pub spare: bool,
    /// How the log has fared since the agent started.
    #[serde(default)]
    pub log: LogStatus,
    /// What was refused since the agent started.
    #[serde(default)]
    pub refused: RefusedStatus,
    /// The members.
    pub members: Vec<MemberStatus>,
    /// Who holds each VIP, and who after it.
    #[serde(default)]
    pub vips: BTreeMap<String, Vec<u8>>,
}

/// How a node's log has fared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStatus {
    /// Damaged records that were found.
    pub damaged: usize,
    /// Times that all damaged records had been fetched from peers.
    pub repaired: usize,
    /// Times that the log was lost, and this node began anew as a learner.
    pub reborn: usize,
    /// Times that an operator had recovered the cluster without this node's log, and it began anew as a learner.
    #[serde(default)]
    pub given_up: usize,
    /// Writes that its disk did not take.
    pub disk_failures: u64,
}

/// A node's part in agreement.
pub(super) struct Agreement {
    handle: Handle,
    transport: Transport,
    state: watch::Receiver<Arc<State>>,
    follower: Follower,
    /// The version of the configuration in force; 0: none that was agreed on, or one whose pools' new backends get no flows
    /// yet.
    done: watch::Sender<u64>,
    events: broadcast::Receiver<machine::Event>,
    /// What the leader was told last, and when.
    reported: Option<(Report, Instant)>,
}

/// A change that the cluster is asked for, or that it has decided on and that is under way.
pub(super) struct Proposal {
    handle: Handle,
    command: Option<Command>,
    version: u64,
    done: watch::Receiver<u64>,
}

impl Agreement {
    /// Whether nodes of a configuration agree on anything: there are several, and they can prove who they are.
    pub(super) fn is_for(config: &Config) -> bool {
        config.cluster.identity.is_some() && config.voters().count() > 1
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
        let machine = terms::machine(config, incarnation, u128::from_le_bytes(seed));
        let (patience, welcome) = (terms::patience(config), terms::others(config));
        let file = config.node.data.join("agreement.redb");
        let settings = Settings { machine, file, breaker: disk, patience, welcome, alone: None };
        std::fs::create_dir_all(&config.node.data)?;
        let handle = driver::start(settings, transport.clone(), inbox)?;
        // Before it can lead: a leader that knew of none would give backends that start slowly all at once, and end no draining.
        handle.plan_times(terms::times(config));
        let state = handle.state();
        let known = Some(state.borrow().clone()).filter(|_| handle.overview().borrow().status.role != Role::Unread);
        let follower = Follower::new(config.node.id, incarnation, known.as_deref(), liveness.applied(), in_force);
        let events = handle.events();
        Ok(Self { handle, transport, state, follower, done: watch::channel(0).0, events, reported: None })
    }

    /// What has happened since this was asked last.
    pub(super) fn events(&mut self) -> Vec<machine::Event> {
        let mut events = Vec::new();
        loop {
            match self.events.try_recv() {
                Ok(event) => events.push(event),
                Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => return events,
            }
        }
    }

    /// Has another node lead, if this one does.
    pub(super) fn resign(&self) {
        self.handle.resign();
    }

    /// Has the agreed state fetched anew from a node.
    pub(super) fn refetch(&self, from: u8) {
        self.handle.refetch(from);
    }

    /// How it stands, and what was refused or went wrong.
    pub(super) fn overview(&self) -> driver::Overview {
        self.handle.overview().borrow().clone()
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

    /// Takes note of whether the log was lost meanwhile: then versions of before mean nothing.
    pub(super) fn notice_loss(&mut self) {
        let was_given_up = self.handle.overview().borrow().counters.given_up > 0;
        if self.state().is_none() && (self.follower.followed().is_some() || was_given_up) {
            self.follower.forget();
        }
    }

    /// What is agreed on, if the data plane is behind it.
    pub(super) fn news(&self) -> Option<Arc<State>> {
        self.state().filter(|state| self.follower.is_behind(state))
    }

    /// How far the data plane follows.
    pub(super) fn follower(&self) -> &Follower {
        &self.follower
    }

    /// The same, to go on with.
    pub(super) fn follower_mut(&mut self) -> &mut Follower {
        &mut self.follower
    }

    /// Tells whoever waits for a change that it is done, if it is.
    pub(super) fn tell_done(&self) {
        if let Some(version) = self.follower.done() {
            self.done.send_replace(version);
        }
    }

    /// Tells the leader what this node sees and has done, where that has changed or was not taken; and now and then where it
    /// was.
    pub(super) fn report(&mut self, report: Report) {
        let is_known = |(known, at): &(Report, Instant)| *known == report && at.elapsed() < REPORT;
        if !self.reported.as_ref().is_some_and(is_known) && self.handle.report(report.clone()) {
            self.reported = Some((report, Instant::now()));
        }
    }

    /// Asks for a change to another configuration.
    pub(super) fn propose(&self, config: &Config, text: &str, expect: Option<u64>) -> Proposal {
        self.asks(Some(terms::apply(config, text, expect)))
    }

    /// Asks for a node to be no member any more.
    pub(super) fn leave(&self, node: u8) -> Proposal {
        self.asks(Some(Command::Leave(node)))
    }

    /// Asks for a node to give its slots and VIPs away, or to have some again.
    pub(super) fn drain(&self, node: u8, drains: bool) -> Proposal {
        self.asks(Some(if drains { Command::Drain(node) } else { Command::Undrain(node) }))
    }

    /// The change that is under way, if one is.
    pub(super) fn under_way(&self) -> Option<Proposal> {
        (self.follower.in_force() > *self.done.borrow()).then(|| self.asks(None))
    }

    fn asks(&self, command: Option<Command>) -> Proposal {
        let (handle, version) = (self.handle.clone(), self.follower.in_force());
        Proposal { handle, command, version, done: self.done.subscribe() }
    }

    /// Begins a cluster of this node, with what is in force here: a configuration, its version, how many rows pools have,
    /// and who else owns slots. The others join by themselves.
    pub(super) fn bootstrap(
        &mut self,
        config: &Config,
        text: &str,
        version: u64,
        sizes: BTreeMap<String, u32>,
        peers: &[(u8, u64)],
        slots: &[Slot],
    ) -> impl Future<Output = Result<(), machine::BootstrapError>> + Send + use<> {
        let genesis = terms::genesis(config, text, version, sizes, self.follower.incarnation());
        let genesis = terms::genesis_of(genesis, config, peers, slots);
        let handle = self.handle.clone();
        async move { handle.bootstrap(genesis).await }
    }

    /// Has the cluster go on without a majority of its voters, which is lost.
    pub(super) fn recover(
        &self,
        lost: BTreeSet<u8>,
    ) -> impl Future<Output = Result<(), machine::RecoverError>> + Send + use<> {
        let handle = self.handle.clone();
        async move { handle.recover(lost).await }
    }

    /// Takes over who may be a member. If this node leads, it has members' shares of the slots follow the configuration.
    pub(super) fn configure(&self, config: &Config) {
        self.handle.welcome(terms::others(config));
        self.handle.plan_vips(terms::vips(config));
        self.handle.plan_times(terms::times(config));
        let Some(state) = self.state().filter(|_| self.handle.overview().borrow().status.role == Role::Leader) else {
            return;
        };
        if let Some(shares) = terms::shares(config, &state) {
            let handle = self.handle.clone();
            tokio::spawn(async move {
                if let Err(error) = handle.propose(shares).await {
                    tracing::warn!(%error, "shares of slots are not changed yet");
                }
            });
        }
    }

    /// How it stands. `lives` says who is alive in this node's eyes, `delivered` who has its flows, where they are copied.
    pub(super) fn status(&self, lives: impl Fn(u8) -> bool, delivered: Option<&Delivered>) -> AgreementStatus {
        let transport = self.transport.counters();
        let state = self.state.borrow().clone();
        let overview = self.handle.overview().borrow().clone();
        let has_flows = |id: u8| id == overview.me || delivered.is_some_and(|delivered| delivered.to.contains(&id));
        // Who owns nothing is to have nobody's flows.
        let is_owed = |id: u8| state.is_up(id) && !state.owns_nothing(id) && lives(id);
        let copied = state.members.keys().all(|&id| !is_owed(id) || has_flows(id));
        let status = AgreementStatus::of(overview, &state, &transport, lives, copied);
        AgreementStatus { applied: self.follower.installed(), ..status }
    }

    /// What the transport has counted.
    pub(super) fn transport(&self) -> Counters {
        self.transport.counters()
    }

    /// Ends this node's part, after another leads.
    pub(super) async fn end(self) {
        self.handle.resign();
        self.handle.end().await;
    }
}

impl AgreementStatus {
    /// How it stands, where the transport has counted this.
    pub(super) fn of(
        overview: Overview,
        state: &State,
        transport: &Counters,
        lives: impl Fn(u8) -> bool,
        copied: bool,
    ) -> Self {
        let Overview { me, status, counters } = overview;
        let peer = |id: u8| transport.peers.get(&id);
        let is_reached = |id: u8| id == me || peer(id).is_some_and(|peer| peer.connected);
        // Connections outlive who died without a word for a while.
        let is_down = |id: u8| state.members.get(&id).is_some_and(|member| member.state() == MemberState::Down);
        let (voters, there) =
            (state.voters().count(), state.voters().filter(|id| is_reached(*id) && !is_down(*id)).count());
        let member = |(&node, member): (&u8, &Member)| MemberStatus {
            node,
            standing: match member.state() {
                MemberState::Up => "up",
                MemberState::Draining => "draining",
                MemberState::Drained => "drained",
                MemberState::Returning => "returning",
                MemberState::Down => "down",
                MemberState::Witness => "witness",
            }
            .to_owned(),
            address: member.address.clone(),
            reached: is_reached(node),
            refused_certificates: peer(node).map_or(0, |peer| peer.refused_certificates),
            damaged_frames: peer(node).map_or(0, |peer| peer.damaged_frames),
            seat: member.seat.map(|seat| if seat.votes { "voter" } else { "learner" }.to_owned()),
            matched: status.peers.iter().find(|peer| peer.id == node).and_then(|peer| peer.matched),
        };
        Self {
            role: status.role,
            leader: status.leader,
            term: status.term,
            commit: status.commit,
            applied: status.applied,
            last: status.last,
            version: state.specification.version,
            quorum: status.has_quorum,
            redundant: status.is_redundant && state.has_two_owners_of(lives) && copied,
            copied,
            spare: status.has_quorum && there.saturating_sub(1) * 2 > voters,
            log: LogStatus {
                damaged: counters.damaged,
                repaired: counters.repaired,
                reborn: counters.reborn,
                given_up: counters.given_up,
                disk_failures: counters.disk_failures,
            },
            refused: RefusedStatus::of(transport, &counters),
            members: state.members.iter().map(member).collect(),
            vips: state.vips.clone(),
        }
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
