//! How a node follows what the cluster agrees on: its maps, its configuration and its files.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::Result;
use redirector_ebpf::tables::names::kind;
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::sync::watch;

use super::agreement::{Agreement, AgreementStatus, Durable, Proposal};
use super::backup::Backup;
use super::change::{Applied, ApplyError};
use super::committed::{self, Committed};
use super::copies::Copies as _;
use super::liveness::Liveness;
use super::node::{Node, compile, override_mode};
use crate::config::{self, Config};
use crate::consensus::machine::{BootstrapError, RecoverError};
use crate::consensus::state::State;
use crate::dataplane::flows::now;
use crate::dataplane::liveness::LivenessTables as _;
use crate::dataplane::maps::MapsError;
use crate::dataplane::rows;

/// What becomes of a change.
pub(super) enum Change {
    /// It is done.
    Done(Applied),
    /// The cluster decides.
    Asked(Asked),
}

/// A change that the cluster is asked for.
pub(super) struct Asked {
    proposal: Proposal,
    changes: Vec<String>,
}

impl Asked {
    /// Awaits the decision.
    pub(super) async fn decide(self) -> Result<Applied, ApplyError> {
        let (version, durable) = self.proposal.decide().await?;
        Ok(Applied { version, changes: self.changes, durable })
    }
}

impl Node {
    /// Begins to agree with the others, if the agents talk.
    pub(super) fn start_agreement(&mut self) {
        if !Agreement::is_for(&self.config) {
            return;
        }
        let (Some(talk), Some(liveness)) = (&mut self.talk, &self.liveness) else { return };
        let in_force = if self.committed.agreed { self.committed.version } else { 0 };
        match Agreement::start(&self.config, talk, liveness, in_force, self.disk.clone()) {
            Ok(agreement) => self.agreement = Some(agreement),
            Err(error) => tracing::error!("this node takes no part in agreement: {error:#}"),
        }
    }

    /// Changes whenever what is agreed on does.
    pub(super) fn decisions(&self) -> watch::Receiver<Arc<State>> {
        self.agreement.as_ref().map_or_else(|| watch::channel(Arc::default()).1, Agreement::changes)
    }

    /// Makes the data plane go by what is agreed on. What cannot be followed here is told, and tried again.
    pub(super) async fn follow(&mut self) {
        if let Some(agreement) = &mut self.agreement {
            agreement.notice_loss();
        }
        let Some(state) = self.agreement.as_ref().and_then(Agreement::news) else { return };
        if state.slots.len() != self.config.cluster.slots as usize {
            let (agreed, here) = (state.slots.len(), self.config.cluster.slots);
            tracing::error!(
                agreed,
                here,
                "the cluster has another number of slots: correct `slots` in [cluster], and restart"
            );
            return;
        }
        let waits = self.waits(&state);
        if waits && !self.waiting {
            tracing::warn!("this node was cut off: it goes by its own tables until the others have its flows");
        }
        self.waiting = waits;
        if waits {
            return;
        }
        let mut whole = true;
        if self.agreement.as_ref().is_some_and(|agreement| agreement.follower().is_newer(&state))
            && let Err(error) = self.take(&state).await
        {
            let version = state.specification.version;
            tracing::error!(version, "what was agreed on is not in force here: {:#}", anyhow::Error::new(error));
            whole = false;
        }
        self.mark_fallen(&state);
        if let Err(error) = self.take_slots_and_rows(&state, whole) {
            tracing::error!("slots and rows were not written, and are soon: {:#}", anyhow::Error::new(error));
        }
        self.propose_file();
    }

    fn waits(&mut self, state: &Arc<State>) -> bool {
        let (Some(agreement), Some(liveness)) = (&mut self.agreement, &self.liveness) else { return false };
        agreement.follower_mut().waits(state, &self.image.slots, &liveness.maps().alive(), now())
    }

    /// Whether the data plane is behind on purpose.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Puts an agreed configuration in force.
    async fn take(&mut self, state: &State) -> Result<(), ApplyError> {
        let specification = &state.specification;
        let mut next = config::merge(&format!("version {}", specification.version), &specification.text, &self.config)?;
        override_mode(&mut next, self.mode);
        let mut image = compile(&next, self.key, &self.maps).await?;
        image.slots = state.slots.iter().map(|slot| (*slot).into()).collect();
        image.agreed = self.agreement.as_ref().map(|agreement| agreement.follower().rows(state, &image, true));
        let file = if self.file_says(&next) { self.file_digest() } else { None };
        let committed = Committed {
            version: specification.version,
            file: file.unwrap_or(self.committed.file),
            text: specification.text.clone(),
            agreed: true,
        };
        self.record.commit(&committed).await?;
        let changes = config::diff(&self.config, &next).len();
        self.put_in_force(next, image, committed).await?;
        if let Some(agreement) = &mut self.agreement {
            agreement.follower_mut().took(specification.version);
            agreement.configure(&self.config);
        }
        tracing::info!(version = specification.version, changes, "the configuration that was agreed on is in force");
        Ok(())
    }

    fn take_slots_and_rows(&mut self, state: &Arc<State>, whole: bool) -> Result<(), MapsError> {
        let (Some(agreement), Some(liveness)) = (&mut self.agreement, &self.liveness) else { return Ok(()) };
        agreement.follower_mut().take(state, whole, &mut self.image, &mut self.maps, liveness.maps())?;
        agreement.tell_done();
        Ok(())
    }

    /// The digest of the file that `run` was given, as it is now.
    fn file_digest(&self) -> Option<u64> {
        std::fs::read_to_string(&self.file).ok().map(|text| committed::digest(&text))
    }

    /// Whether the file that `run` was given says what a configuration does.
    fn file_says(&self, config: &Config) -> bool {
        let Ok(text) = std::fs::read_to_string(&self.file) else { return false };
        let merged = config::merge(&self.file.display().to_string(), &text, config);
        merged.is_ok_and(|merged| config::diff(config, &merged).is_empty())
    }

    /// Where the file that `run` was given was edited while no agent looked, the cluster is asked for what it says.
    pub(super) fn propose_file(&mut self) {
        if let Some(asking) = &mut self.asking {
            match asking.try_recv() {
                Err(TryRecvError::Empty) => return,
                Ok(true) => self.edited = None,
                Ok(false) | Err(TryRecvError::Closed) => {}
            }
            self.asking = None;
        }
        let is_begun = self.agreement.as_ref().is_some_and(|agreement| agreement.follower().followed().is_some());
        let Some(text) = self.edited.clone().filter(|_| is_begun) else { return };
        let name = self.file.display().to_string();
        match self.change(&name, &text, None) {
            Ok(Change::Asked(asked)) if !asked.changes.is_empty() => {
                let (answer, asking) = oneshot::channel();
                self.asking = Some(asking);
                tokio::spawn(async move {
                    let decided = asked.decide().await;
                    // The agent may have ended meanwhile.
                    let _ = answer.send(decided.is_ok());
                    match decided {
                        Ok(applied) => tracing::info!(version = applied.version, "the edited file was agreed on"),
                        Err(error) => tracing::error!(file = name, "{:#}; asked again soon", anyhow::Error::new(error)),
                    }
                });
            }
            Ok(_) => self.edited = None,
            Err(error) => {
                let error = anyhow::Error::new(error);
                tracing::error!(file = name, "the file is not applied; what was in force stays: {error:#}");
                self.edited = None;
            }
        }
    }

    /// Checks a change that the cluster is to decide on, on this node.
    pub(super) fn change(&self, name: &str, text: &str, expected: Option<u64>) -> Result<Change, ApplyError> {
        let mut next = config::parse(name, text)?;
        override_mode(&mut next, self.mode);
        let changes: Vec<String> = config::diff(&self.config, &next).iter().map(ToString::to_string).collect();
        self.only_shared_parts(&next)?;
        let version = self.committed.version;
        if changes.is_empty() && expected.is_none_or(|expected| expected == version) {
            let under_way = self.agreement.as_ref().and_then(Agreement::under_way);
            return Ok(match under_way {
                Some(proposal) => Change::Asked(Asked { proposal, changes }),
                None => Change::Done(Applied { version, changes, durable: None }),
            });
        }
        let agreement = self.agreement.as_ref().ok_or(ApplyError::Alone)?;
        Ok(Change::Asked(Asked { proposal: agreement.propose(&next, text, expected), changes }))
    }

    /// Whether the cluster decides on changes.
    pub(super) fn is_in_agreement(&self) -> bool {
        let has_begun = self.agreement.as_ref().is_some_and(|agreement| agreement.state().is_some());
        has_begun || self.committed.agreed && Agreement::is_for(&self.config)
    }

    /// Begins a cluster with what is in force here: those that live keep their slots. Disputes that are not over end by that: nobody else knows of them.
    pub(super) fn bootstrap(
        &mut self,
    ) -> Result<impl Future<Output = Result<(), BootstrapError>> + Send + use<>, ApplyError> {
        let sizes = rows::sizes(&self.maps, &self.image)?;
        let name = |id: u16| self.image.registry.name(kind::POOL, u32::from(id)).map(str::to_owned);
        let sizes = sizes.into_iter().filter_map(|(id, rows)| Some((name(id)?, rows))).collect();
        let (config, committed) = (&self.config, &self.committed);
        let agreement = self.agreement.as_mut().ok_or(ApplyError::Alone)?;
        let peers = self.liveness.as_ref().map(Liveness::alive).unwrap_or_default();
        Ok(agreement.bootstrap(config, &committed.text, committed.version, sizes, &peers, &self.image.slots))
    }

    /// Has the cluster go on without a majority of its voters, which is lost.
    pub(super) fn recover(
        &self,
        lost: BTreeSet<u8>,
    ) -> Result<impl Future<Output = Result<(), RecoverError>> + Send + use<>, ApplyError> {
        Ok(self.agreement.as_ref().ok_or(ApplyError::Alone)?.recover(lost))
    }

    /// What is agreed on, to be kept elsewhere; of a node alone, what is in force.
    pub(super) fn backup(&self) -> Backup {
        match self.agreement.as_ref().and_then(Agreement::state) {
            Some(state) => Backup::of(self.config.cluster.id, &state),
            None => Backup::of_one(&self.config, self.committed.version, &self.committed.text),
        }
    }

    /// Begins a cluster with what a backup says.
    pub(super) async fn restore(
        &mut self,
        backup: &Backup,
    ) -> Result<impl Future<Output = Result<(), BootstrapError>> + Send + use<>, ApplyError> {
        let mut next = config::merge("the backup", &backup.text, &self.config)?;
        override_mode(&mut next, self.mode);
        // What cannot be in force here is not begun with.
        compile(&next, self.key, &self.maps).await?;
        let agreement = self.agreement.as_mut().ok_or(ApplyError::Alone)?;
        let version = backup.version.max(self.committed.version) + 1;
        Ok(agreement.bootstrap(&next, &backup.text, version, BTreeMap::new(), &[], &[]))
    }

    /// Asks the cluster to let a node go.
    pub(super) fn leave(&self, node: u8) -> Result<Asked, ApplyError> {
        let agreement = self.agreement.as_ref().ok_or(ApplyError::Alone)?;
        Ok(Asked { proposal: agreement.leave(node), changes: vec![format!("- node {node}")] })
    }

    /// Asks the cluster to let a node give its slots and VIPs away, or have some again.
    pub(super) fn drain(&self, node: u8, drains: bool) -> Result<Asked, ApplyError> {
        let agreement = self.agreement.as_ref().ok_or(ApplyError::Alone)?;
        let word = if drains { "drains" } else { "drains no more" };
        Ok(Asked { proposal: agreement.drain(node, drains), changes: vec![format!("node {node} {word}")] })
    }

    /// Whether a node gives its slots and VIPs away, or has.
    pub(super) fn is_draining(&self, node: u8) -> Result<bool, ApplyError> {
        let state = self.agreement.as_ref().and_then(Agreement::state).ok_or(ApplyError::Alone)?;
        Ok(state.members.get(&node).is_some_and(|member| member.draining))
    }

    /// Whether a node besides this one is alive and serves, as far as it sees.
    pub(super) fn others_serve(&self) -> bool {
        self.liveness.as_ref().is_some_and(Liveness::others_serve)
    }

    /// Looks which disputed rows have old flows still, and whether there is anything to ask the cluster for.
    pub(super) fn look_after_agreement(&mut self) {
        self.propose_file();
        let Some(agreement) = &mut self.agreement else { return };
        agreement.configure(&self.config);
        if let Err(error) = agreement.follower_mut().look_for_old_flows(&self.maps, &self.image) {
            tracing::error!("old flows cannot be looked for: {:#}", anyhow::Error::new(error));
        }
    }

    /// Who holds each VIP, and who after it, as far as that is agreed on.
    pub(super) fn planned_vips(&self) -> BTreeMap<String, Vec<u8>> {
        let followed = self.agreement.as_ref().and_then(|agreement| agreement.follower().followed());
        followed.map(|state| state.vips.clone()).unwrap_or_default()
    }

    /// How agreement stands, where there is any.
    pub(super) fn agreement(&self) -> Option<AgreementStatus> {
        let alive = self.liveness.as_ref().map(|liveness| liveness.maps().alive());
        let lives = |id| id == self.config.node.id || alive.is_none_or(|alive| alive.is_alive(id));
        let delivered = self.talk.as_ref().and_then(|talk| talk.delivered());
        self.agreement.as_ref().map(|agreement| agreement.status(lives, delivered.as_ref()))
    }
}

/// On how many disks a change is, in words.
impl std::fmt::Display for Durable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "durable on {} of {}", self.on, self.of)
    }
}
