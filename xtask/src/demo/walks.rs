//! The way that each flow went: what the client was told, joined with what the witness saw.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde::Serialize;

use crate::lab::{Config, Flow, Journey};
use crate::traffic::Response;

/// Examples that a failed check shows.
const EXAMPLES: usize = 5;

/// A flow's way.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    /// Client and VIP.
    pub(super) flow: Flow,
    /// Index of its service in [`Walks::services`].
    pub(super) service: usize,
    /// Who answered.
    pub(super) answered_by: String,
    /// Where its first packet was seen.
    pub(super) journey: Journey,
}

/// A service over TCP, as far as its flows' ways depend on it.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) vip: String,
    pub(super) owned: bool,
    pub(super) mode: String,
}

/// All ways.
#[derive(Debug)]
pub(super) struct Walks {
    pub(super) services: Vec<Service>,
    pub(super) all: Vec<Walk>,
}

/// Something that must hold, and where it does not.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Check {
    pub(super) what: String,
    pub(super) wrong: Vec<String>,
}

/// Sums for the JSON result.
#[derive(Debug, Serialize)]
pub(super) struct Totals {
    flows_per_backend: BTreeMap<String, u64>,
    flows_per_ingress: BTreeMap<String, u64>,
    flows_per_service: BTreeMap<String, u64>,
    owned_flows: u64,
    owned_flows_that_entered_elsewhere_and_were_answered: u64,
    tunnelled_flows: u64,
}

impl Walk {
    /// The node that it entered at.
    pub(super) fn entered(&self) -> &str {
        self.journey.hops.first().map_or("nowhere", String::as_str)
    }

    /// The node that sent it to its backend.
    pub(super) fn served(&self) -> &str {
        match self.journey.hops.as_slice() {
            [.., node, _] => node,
            _ => "nobody",
        }
    }

    /// The backend that it was sent to.
    pub(super) fn delivered(&self) -> &str {
        self.journey.hops.last().map_or("nobody", String::as_str)
    }
}

impl Walks {
    pub(super) fn new(config: &Config, answers: Vec<Response>, seen: &BTreeMap<Flow, Journey>) -> Self {
        let mode = |pool: &str| config.pool.iter().find(|known| known.name == pool).map(|pool| pool.mode.clone());
        let services: Vec<Service> = config
            .service
            .iter()
            .filter(|service| service.protocol == "tcp")
            .map(|service| Service {
                name: service.name.clone(),
                vip: service.vip.clone(),
                owned: service.affinity == "owned",
                mode: mode(&service.pool).unwrap_or_default(),
            })
            .collect();
        let of = |server: SocketAddr| services.iter().position(|service| service.vip == server.ip().to_string());
        let all = answers
            .into_iter()
            .filter_map(|answer| {
                let flow = (answer.client, answer.server);
                let journey = seen.get(&flow).cloned().unwrap_or_default();
                Some(Walk { flow, service: of(answer.server)?, answered_by: answer.backend, journey })
            })
            .collect();
        Self { services, all }
    }

    pub(super) fn of(&self, service: usize) -> impl Iterator<Item = &Walk> {
        self.all.iter().filter(move |walk| walk.service == service)
    }

    pub(super) fn owned(&self) -> impl Iterator<Item = &Walk> {
        self.all.iter().filter(|walk| self.services[walk.service].owned)
    }

    /// Flows of owned services that a node received which did not own them.
    pub(super) fn carried_over(&self) -> impl Iterator<Item = &Walk> {
        self.owned().filter(|walk| walk.entered() != walk.served())
    }

    /// What must hold without asking anybody else.
    pub(super) fn checks(&self) -> Vec<Check> {
        let backends: BTreeSet<&str> = self.all.iter().map(Walk::delivered).collect();
        let mut several = Check::new("flows went to two backends at least");
        if backends.len() < 2 {
            several.wrong.push(format!("they went to {backends:?}"));
        }
        let mut carried =
            Check::new("flows of owned services entered at nodes that did not own them, and were answered");
        if self.carried_over().next().is_none() {
            carried.wrong.push("none did".into());
        }
        vec![
            several,
            carried,
            self.each("every flow reached the backend that answered it", |walk, _| {
                walk.delivered() == walk.answered_by
            }),
            self.each("no flow was forwarded more than twice", |walk, _| (2..=4).contains(&walk.journey.hops.len())),
            self.each("flows of shared services were served where they entered", |walk, service| {
                service.owned || walk.journey.hops.len() == 2
            }),
            self.each("tunnels were used where the pool says so, and only there", |walk, service| {
                walk.journey.tunnelled == (service.mode != "l2")
            }),
        ]
    }

    fn each(&self, what: &str, holds: impl Fn(&Walk, &Service) -> bool) -> Check {
        Check::of(what, self.all.iter().filter(|walk| !holds(walk, &self.services[walk.service])).map(Walk::to_string))
    }

    pub(super) fn totals(&self) -> Totals {
        Totals {
            flows_per_backend: count(self.all.iter().map(Walk::delivered)),
            flows_per_ingress: count(self.all.iter().map(Walk::entered)),
            flows_per_service: count(self.all.iter().map(|walk| self.services[walk.service].name.as_str())),
            owned_flows: self.owned().count() as u64,
            owned_flows_that_entered_elsewhere_and_were_answered: self.carried_over().count() as u64,
            tunnelled_flows: self.all.iter().filter(|walk| walk.journey.tunnelled).count() as u64,
        }
    }
}

impl Check {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), wrong: Vec::new() }
    }

    /// A check that fails if there is anything wrong; a few of many wrongs are kept.
    pub(super) fn of(what: impl Into<String>, mut wrong: impl Iterator<Item = String>) -> Self {
        let mut check = Self { what: what.into(), wrong: wrong.by_ref().take(EXAMPLES).collect() };
        match wrong.count() {
            0 => {}
            more => check.wrong.push(format!("and {more} more")),
        }
        check
    }
}

impl std::fmt::Display for Walk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (client, vip) = self.flow;
        let way = self.journey.hops.join(" → ");
        write!(f, "{client} to {vip}: {way}, answered by {}", self.answered_by)
    }
}

/// How often each name comes.
pub(super) fn count<'a>(names: impl Iterator<Item = &'a str>) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name.to_owned()).or_default() += 1;
    }
    counts
}
