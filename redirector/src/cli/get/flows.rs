//! Flows that are recorded on this node, filtered and in pages.

use std::collections::HashMap;
use std::net::SocketAddr;

use anyhow::Result;
use redirector_ebpf::hash::FlowHash;
use redirector_ebpf::stations::{owner, path};
use redirector_ebpf::tables::flow::WAYS;
use redirector_ebpf::tables::names::kind;
use redirector_ebpf::tables::{AliveNodes, Slot};
use serde::Serialize;

use super::{View, all, ranges};
use crate::cli::output::{Output, Row, cell, protocol, state, yes};
use crate::cli::target::Target;
use crate::config::Prefix;
use crate::dataplane::flows::{Flow, now};
use crate::dataplane::image::Image;
use crate::dataplane::maps::{MapsError, read};
use crate::dataplane::memory::MemoryTables;

#[derive(Debug, clap::Args)]
pub(super) struct Flows {
    /// Only flows of this service.
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Only flows on this backend, `pool/name` or a name in any pool.
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Only flows whose packets take the path of this rank at present.
    #[arg(long, value_name = "RANK", value_parser = clap::value_parser!(u8).range(1..=3))]
    path: Option<u8>,
    /// Only flows whose slot this node owns at present.
    #[arg(long, value_name = "NODE")]
    owner: Option<String>,
    /// Only flows of clients in this prefix.
    #[arg(long, value_name = "PREFIX", value_parser = prefix)]
    source: Option<Prefix>,
    /// Only flows in this state.
    #[arg(long, value_parser = ["opening", "established", "closing", "datagrams", "first-datagram", "taken-up", "other"])]
    state: Option<String>,
    /// Show so many at most.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Go on after the place where an earlier page ended.
    #[arg(long, value_name = "CURSOR")]
    after: Option<u64>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

fn prefix(text: &str) -> Result<Prefix, String> {
    text.parse().map_err(|error| format!("it {error}"))
}

/// A flow as it is listed.
#[derive(Debug, Serialize)]
struct Listed<'a> {
    source: SocketAddr,
    destination: SocketAddr,
    protocol: &'static str,
    service: &'a str,
    backend: &'a str,
    pool: &'a str,
    /// Rank of the path that its packets take at present.
    path: u8,
    owner: &'a str,
    slot: u32,
    state: &'static str,
    proven: bool,
    idle_s: u64,
    since_s: u64,
}

impl Row for Listed<'_> {
    fn header() -> &'static [&'static str] {
        &[
            "SOURCE",
            "DESTINATION",
            "PROTOCOL",
            "SERVICE",
            "POOL",
            "BACKEND",
            "PATH",
            "OWNER",
            "SLOT",
            "STATE",
            "PROVEN",
            "IDLE",
            "SINCE",
        ]
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.source.to_string(),
            self.destination.to_string(),
            self.protocol.to_owned(),
            self.service.to_owned(),
            self.pool.to_owned(),
            self.backend.to_owned(),
            cell((self.path != 0).then_some(self.path)),
            self.owner.to_owned(),
            self.slot.to_string(),
            self.state.to_owned(),
            yes(self.proven),
            format!("{}s", self.idle_s),
            format!("{}s", self.since_s),
        ]
    }
}

impl Flows {
    pub(super) fn run(self) -> Result<()> {
        let view = View::open(&self.target)?;
        let table = Table::read(&view)?;
        if let Some(service) = &self.service {
            view.names.require(kind::SERVICE, service)?;
        }
        let owner =
            self.owner.as_ref().map(|name| view.names.node_id(name).map(|id| view.names.node(id))).transpose()?;
        let mut flows = view
            .maps
            .flows
            .iter(&view.node.hash_key)
            .filter(|flow| self.after.is_none_or(|after| position(flow) > after))
            .filter_map(|flow| Some((position(&flow), table.listed(&flow)?)))
            .filter(|(_, flow)| self.takes(flow) && owner.as_ref().is_none_or(|owner| flow.owner == owner));
        let mut last = 0;
        let page = flows.by_ref().take(self.limit.unwrap_or(usize::MAX)).map(|(position, flow)| {
            last = position;
            flow
        });
        self.output.list(page)?;
        if self.limit.is_some() && flows.next().is_some() {
            eprintln!("there are more: --after {last}");
        }
        self.tell_of_shared(&view)
    }

    fn takes(&self, flow: &Listed<'_>) -> bool {
        let is = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|wanted| wanted == found);
        let on_backend = self.backend.as_ref().is_none_or(|wanted| match wanted.split_once('/') {
            Some((pool, backend)) => (pool, backend) == (flow.pool, flow.backend),
            None => wanted == flow.backend,
        });
        is(&self.service, flow.service)
            && on_backend
            && self.path.is_none_or(|rank| rank == flow.path)
            && self.source.is_none_or(|prefix| prefix.contains(flow.source.ip()))
            && is(&self.state, flow.state)
    }

    /// What cannot be listed, if anything that was asked for cannot.
    fn tell_of_shared(&self, view: &View) -> Result<()> {
        let single = all(view.maps.services.iter(), "SERVICES")?.into_iter().map(|(_, line)| line);
        let lines = single.chain(ranges(&view.maps)?.into_iter().map(|(_, _, line)| line));
        let mut shared: Vec<_> = lines.filter(|line| line.owned == 0).map(|line| view.names.service(line.id)).collect();
        shared.sort_unstable();
        shared.dedup();
        shared.retain(|name| self.service.as_ref().is_none_or(|wanted| wanted == name));
        if !shared.is_empty() {
            let some = if shared.len() > 5 { ", …" } else { "" };
            eprintln!(
                "{} shared: {}{some}. Flows of their undisputed rows are served without a record, so they are not listed.",
                if shared.len() == 1 { "1 service is".to_owned() } else { format!("{} services are", shared.len()) },
                shared[..shared.len().min(5)].join(", "),
            );
        }
        Ok(())
    }
}

/// A flow's place in both tables, the one of IPv6 behind the one of IPv4.
fn position(flow: &Flow) -> u64 {
    let (bucket, way) = flow.place;
    let place = u64::from(bucket) * WAYS as u64 + way as u64;
    (u64::from(flow.v6) << 40) | place
}

/// What a backend's flows have in common.
struct OnBackend {
    pool: String,
    name: String,
    rank: u8,
}

/// Everything that is needed to tell a flow, read once.
struct Table<'a> {
    view: &'a View,
    slots: Vec<Slot>,
    alive: AliveNodes,
    backends: HashMap<u16, OnBackend>,
    services: HashMap<u16, String>,
    nodes: Vec<String>,
    now: u64,
}

impl<'a> Table<'a> {
    fn read(view: &'a View) -> Result<Self, MapsError> {
        let registry = &view.names.registry;
        let services = registry.of(kind::SERVICE).into_iter().map(|(id, name)| (id as u16, name.to_owned())).collect();
        Ok(Self {
            view,
            slots: view.maps.slots()?,
            alive: view.maps.alive.get(&0, 0).map_err(read("ALIVE"))?,
            backends: backends(view)?,
            services,
            nodes: (0..=u8::MAX).map(|id| view.names.node(id)).collect(),
            now: now(),
        })
    }

    /// A flow in words; none if it lives on a backend that is gone meanwhile.
    fn listed(&self, flow: &Flow) -> Option<Listed<'_>> {
        let node = &self.view.node;
        let backend = self.backends.get(&flow.entry.backend())?;
        let slot = FlowHash::of(&node.hash_key, &flow.record.tuple, flow.v6).slot(node.slot_mask);
        let owner = match self.slots.get(slot as usize).map_or(0, |slot| owner::first_alive(slot, &self.alive)) {
            0 => node.id,
            owner => owner,
        };
        let since_s = self.now.saturating_sub(flow.record.since) / 1_000_000_000;
        Some(Listed {
            source: flow.source(),
            destination: flow.destination(),
            protocol: protocol(flow.record.tuple.protocol),
            service: self.services.get(&flow.record.service).map_or("-", String::as_str),
            backend: &backend.name,
            pool: &backend.pool,
            path: backend.rank,
            owner: &self.nodes[usize::from(owner)],
            slot,
            state: state(flow.state()),
            proven: flow.entry.proven(),
            // A stamp has whole seconds, so it may be older than its flow. An unproven entry's wraps after eight of them, but
            // was not renewed since it was made.
            idle_s: if flow.entry.proven() { flow.entry.idle(self.now).min(since_s) } else { since_s },
            since_s,
        })
    }
}

/// Backends with the rank of the path that is taken to them at present, as the path station chooses it.
fn backends(view: &View) -> Result<HashMap<u16, OnBackend>, MapsError> {
    let registry = &view.names.registry;
    let mut tables = MemoryTables::new(Image::default(), 1);
    let mut backends = HashMap::new();
    for (&id, row) in &registry.backends {
        tables.paths_off.clear();
        for path in row.paths.into_iter().filter(|path| *path != 0) {
            tables.paths_off.insert(path, view.path_word(path)?);
        }
        let (pool, name) = view.names.backend(id);
        let rank = path::choose(&tables, row).map_or(0, |choice| choice.rank + 1);
        backends.insert(id, OnBackend { pool, name, rank });
    }
    Ok(backends)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flows: Flows,
    }

    fn parse(line: &str) -> Result<Flows, clap::Error> {
        Line::try_parse_from(["x"].into_iter().chain(line.split_whitespace())).map(|line| line.flows)
    }

    fn listed() -> Listed<'static> {
        Listed {
            source: "10.0.0.7:4000".parse().unwrap(),
            destination: "10.77.0.1:80".parse().unwrap(),
            protocol: "tcp",
            service: "owned4",
            backend: "b1",
            pool: "ipip4",
            path: 1,
            owner: "n1",
            slot: 123,
            state: "established",
            proven: true,
            idle_s: 0,
            since_s: 12,
        }
    }

    #[test]
    fn a_flow_is_listed_with_these_fields() {
        let text = concat!(
            r#"{"source":"10.0.0.7:4000","destination":"10.77.0.1:80","protocol":"tcp","service":"owned4","#,
            r#""backend":"b1","pool":"ipip4","path":1,"owner":"n1","slot":123,"state":"established","proven":true,"#,
            r#""idle_s":0,"since_s":12}"#
        );
        assert_eq!(serde_json::to_string(&listed()).unwrap(), text);
        assert_eq!(listed().cells().len(), Listed::header().len());
    }

    #[test]
    fn filters_take_what_they_name() {
        let takes = |line: &str| parse(line).unwrap().takes(&listed());
        for line in ["", "--service owned4", "--backend b1", "--backend ipip4/b1", "--path 1", "--source 10.0.0.0/8"] {
            assert!(takes(line), "{line}");
        }
        for line in ["--service x", "--backend b2", "--backend l2/b1", "--path 2", "--source 10.1.0.0/16"] {
            assert!(!takes(line), "{line}");
        }
        assert!(takes("--state established") && !takes("--state closing") && !takes("--source 2001:db8::/32"));
    }

    #[test]
    fn wrong_filters_are_refused() {
        for line in ["--path 4", "--path 0", "--source 10.0.0.1/8", "--state alive", "--limit x"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
