//! What the nodes say: their flows, their reasons, their counters, through the command line that users have.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Deserialize;

use super::walks::{Check, Walk, Walks};
use crate::lab::{Flow, Lab};
use crate::step;

/// How many flows of each service are asked about with `why`; each question is a process.
const ASKED: usize = 10;

/// The answers.
#[derive(Debug)]
pub(super) struct Maps {
    /// Per node, the flows of owned services that it lists, with their backends.
    listed: BTreeMap<String, BTreeMap<Flow, String>>,
    /// Flows that were asked about, and what the node where they entered said.
    explained: Vec<(Walk, Why)>,
    /// One explanation as a user sees it.
    pub(super) why: Option<String>,
    /// Per node, packets by reason.
    pub(super) counters: BTreeMap<String, BTreeMap<String, u64>>,
}

/// An entry of `redirector get flows -o json`.
#[derive(Debug, Deserialize)]
struct Listed {
    source: std::net::SocketAddr,
    destination: std::net::SocketAddr,
    backend: String,
}

/// The part of `redirector why -o json` that is checked.
#[derive(Debug, Deserialize)]
struct Why {
    owner: Option<String>,
    backend: Option<String>,
}

/// The part of `redirector get stats -o json` that is shown.
#[derive(Debug, Deserialize)]
struct Stats {
    reasons: BTreeMap<String, u64>,
}

impl Maps {
    pub(super) fn read(lab: &Lab, walks: &Walks) -> Result<Self> {
        let (mut listed, mut by_reason) = (BTreeMap::new(), BTreeMap::new());
        for node in lab.nodes() {
            let flows: Vec<Listed> = lab.ask(&node, &["get", "flows"])?;
            listed.insert(
                node.clone(),
                flows.into_iter().map(|flow| ((flow.source, flow.destination), flow.backend)).collect(),
            );
            by_reason.insert(node.clone(), counters(lab, &node)?);
        }
        let mut explained = Vec::new();
        for index in 0..walks.services.len() {
            for walk in walks.of(index).take(ASKED) {
                explained.push((walk.clone(), lab.ask(walk.entered(), &words(walk))?));
            }
        }
        let why = match walks.carried_over().next() {
            Some(walk) => Some(step::read(&mut lab.redirector(walk.entered(), &words(walk))?)?),
            None => None,
        };
        Ok(Self { listed, explained, why, counters: by_reason })
    }

    /// Whether the maps say what was seen.
    pub(super) fn checks(&self, walks: &Walks) -> Vec<Check> {
        let listed = |walk: &&Walk| self.listed.get(walk.served()).and_then(|flows| flows.get(&walk.flow));
        vec![
            Check::of(
                "every flow of an owned service is in its owner's table, with the backend that answered",
                walks.owned().filter(|walk| listed(walk) != Some(&walk.answered_by)).map(Walk::to_string),
            ),
            Check::of(
                "`why`, asked where flows entered, names the owner and the backend that they went to",
                self.explained
                    .iter()
                    .filter(|(walk, why)| !agrees(walks, walk, why))
                    .map(|(walk, why)| format!("{walk}, but {} says {why:?}", walk.entered())),
            ),
        ]
    }
}

/// A node's packets by reason, without reasons that none had.
pub(super) fn counters(lab: &Lab, node: &str) -> Result<BTreeMap<String, u64>> {
    let Stats { mut reasons } = lab.ask(node, &["get", "stats"])?;
    reasons.retain(|_, count| *count > 0);
    Ok(reasons)
}

/// Shared services have no owner. Where a flow entered at the previous owner of its slot, which has a copy of it by now, that
/// one serves it by itself from then on.
fn agrees(walks: &Walks, walk: &Walk, why: &Why) -> bool {
    let owners = [Some(walk.served()), Some(walk.entered())];
    let owner_agrees = !walks.services[walk.service].owned || owners.contains(&why.owner.as_deref());
    owner_agrees && why.backend.as_ref() == Some(&walk.answered_by)
}

fn words(walk: &Walk) -> [String; 4] {
    let (client, vip) = walk.flow;
    ["why".into(), "tcp".into(), client.to_string(), vip.to_string()]
}
