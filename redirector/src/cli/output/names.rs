//! What numbers in the maps are called.

use anyhow::{Result, bail};
use redirector_ebpf::packet::headers::Mac;
use redirector_ebpf::packet::protocol as number;
use redirector_ebpf::tables::flow::State;
use redirector_ebpf::tables::names::kind;
use redirector_ebpf::tables::path::{RESOLVED, kind as carried};
use redirector_ebpf::tables::service::{echo as ping, unmatched as policy};

use crate::dataplane::maps::{Maps, MapsError};
use crate::dataplane::registry::{Registry, word};

/// Names of everything that the maps number.
#[derive(Debug)]
pub(in crate::cli) struct Names {
    /// The registry behind them.
    pub(in crate::cli) registry: Registry,
}

impl Names {
    pub(in crate::cli) fn new(registry: Registry) -> Self {
        Self { registry }
    }

    pub(in crate::cli) fn read(maps: &Maps) -> Result<Self, MapsError> {
        Ok(Self::new(maps.registry()?))
    }

    /// A thing's name, or its number where it has lost its name.
    fn name(&self, kind: u32, id: u32) -> String {
        self.registry.name(kind, id).map_or_else(|| format!("#{id}"), str::to_owned)
    }

    /// A node; its name follows from its number unless one is known.
    pub(in crate::cli) fn node(&self, id: u8) -> String {
        self.registry.name(kind::NODE, u32::from(id)).map_or_else(|| format!("n{id}"), str::to_owned)
    }

    /// A node where 0 stands for none.
    pub(in crate::cli) fn node_if(&self, id: u8) -> Option<String> {
        (id != 0).then(|| self.node(id))
    }

    /// The number of a node by its name.
    pub(in crate::cli) fn node_id(&self, name: &str) -> Result<u8> {
        match (1..=254).find(|id| self.node(*id) == name) {
            Some(id) => Ok(id),
            None => bail!("no node is called `{name}`; `redirector get nodes` lists them"),
        }
    }

    pub(in crate::cli) fn vip(&self, id: u32) -> String {
        self.name(kind::VIP, id)
    }

    pub(in crate::cli) fn service(&self, id: u16) -> String {
        self.name(kind::SERVICE, u32::from(id))
    }

    pub(in crate::cli) fn pool(&self, id: u16) -> String {
        self.name(kind::POOL, u32::from(id))
    }

    /// A backend's pool and its name within it.
    pub(in crate::cli) fn backend(&self, id: u16) -> (String, String) {
        let whole = self.name(kind::BACKEND, u32::from(id));
        match whole.split_once('/') {
            Some((pool, backend)) => (pool.to_owned(), backend.to_owned()),
            None => ("-".to_owned(), whole),
        }
    }

    /// A backend's whole name; 0 stands for none.
    pub(in crate::cli) fn backend_if(&self, id: u16) -> Option<String> {
        (id != 0).then(|| self.name(kind::BACKEND, u32::from(id)))
    }

    pub(in crate::cli) fn path(&self, id: u16) -> String {
        self.name(kind::PATH, u32::from(id))
    }

    /// The name of the path of a rank to a backend.
    pub(in crate::cli) fn path_of(&self, backend: u16, rank: u8) -> String {
        format!("{}/{}", self.name(kind::BACKEND, u32::from(backend)), rank + 1)
    }

    /// A port's interface. Ports count from 0, names from 1.
    pub(in crate::cli) fn port(&self, number: u8) -> String {
        self.name(kind::PORT, u32::from(number) + 1)
    }

    /// A next hop's address.
    pub(in crate::cli) fn neighbour(&self, id: u32) -> String {
        let name = self.name(kind::NEIGHBOUR, id);
        name.split_once('%').map_or(name.clone(), |(address, _)| address.to_owned())
    }

    /// Makes sure that there is something of this kind and name.
    pub(in crate::cli) fn require(&self, kind: u32, name: &str) -> Result<u32> {
        match self.registry.id(kind, name) {
            Some(id) => Ok(id),
            None => bail!("no {0} is called `{name}`; `redirector get {0}s` lists them", word(kind)),
        }
    }
}

/// A protocol by its number.
pub(in crate::cli) fn protocol(protocol: u8) -> &'static str {
    match protocol {
        number::TCP => "tcp",
        number::UDP => "udp",
        number::ICMP => "icmp",
        number::ICMPV6 => "icmpv6",
        _ => "other",
    }
}

/// A flow's state.
pub(in crate::cli) fn state(state: State) -> &'static str {
    match state {
        State::Opening => "opening",
        State::Established => "established",
        State::Closing => "closing",
        State::Datagrams => "datagrams",
        State::FirstDatagram => "first-datagram",
        State::TakenUp => "taken-up",
        State::Other => "other",
    }
}

/// How a path carries packets.
pub(in crate::cli) fn mode(kind: u8) -> &'static str {
    match kind {
        carried::L2 => "l2",
        carried::IPIP => "ipip",
        carried::GUE => "gue",
        _ => "hop",
    }
}

/// A service's class.
pub(in crate::cli) fn class(class: u8) -> &'static str {
    match class {
        0 => "critical",
        1 => "high",
        2 => "normal",
        _ => "low",
    }
}

/// What a VIP does with packets that no service takes.
pub(in crate::cli) fn unmatched(value: u8) -> &'static str {
    match value {
        policy::PASS => "pass",
        policy::REJECT => "reject",
        _ => "drop",
    }
}

/// What a VIP does with echo requests.
pub(in crate::cli) fn echo(value: u8) -> &'static str {
    match value {
        ping::ANSWER => "answer",
        ping::PASS => "pass",
        _ => "drop",
    }
}

/// A MAC address as the maps hold it; none where it is not known.
pub(in crate::cli) fn mac(word: u64) -> Option<String> {
    if word & !RESOLVED == 0 {
        return None;
    }
    let bytes = Mac::from_word(word).0.map(u16::to_ne_bytes);
    Some(bytes.as_flattened().iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"))
}
