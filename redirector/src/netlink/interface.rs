//! Interfaces and their addresses.

use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_ROUTE;
use serde::Serialize;

use super::Error;
use super::connection::Connection;
use super::wire::{self, Message, Request, attributes, u32_at};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_CARRIER: u16 = 33;
const IFLA_XDP: u16 = 43;
const IFLA_INFO_KIND: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// Counters are the greater part of a link's message, and not needed.
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// The kernel's number of it.
    pub index: u32,
    /// Its MAC address; zero where it has none.
    pub mac: [u8; 6],
    /// The largest IP packet that it carries.
    pub mtu: u32,
    /// Whether it is switched on.
    pub up: bool,
    /// Whether something is at the other end.
    pub carrier: bool,
    /// Its addresses and their prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
    /// What the kernel calls a virtual one: `veth`, `bond`, `vlan`, `bridge`; real ones have no kind.
    pub kind: Option<String>,
    /// Index of the bond or bridge that it is a member of.
    pub controller: Option<u32>,
    /// XDP programs that are attached.
    pub xdp: Vec<Attached>,
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Attached {
    /// Where it runs.
    pub mode: AttachedMode,
    /// The kernel's id of the program.
    pub program: u32,
}

/// Where an attached program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachedMode {
    /// In the driver.
    Native,
    /// In the kernel's stack.
    Generic,
    /// On the card.
    Hardware,
}

/// Every interface of this network namespace.
pub async fn interfaces() -> Result<Vec<Interface>, Error> {
    let mut connection = Connection::open(NETLINK_ROUTE, &[])?;
    let links = Request::dump("list interfaces", RTM_GETLINK, &[0; LINK_HEADER])
        .attribute(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    let mut interfaces = connection.ask(links, |message| link(&message)).await?;
    let addresses = Request::dump("list addresses", RTM_GETADDR, &[0; ADDRESS_HEADER]);
    for (index, address, length) in connection.ask(addresses, address).await? {
        if let Some(interface) = interfaces.iter_mut().find(|interface| interface.index == index) {
            interface.addresses.push((address, length));
        }
    }
    Ok(interfaces)
}

/// The interface of this name. If there is none, the error names those that may have been meant.
pub async fn interface(name: &str) -> Result<Interface, Error> {
    let mut all = interfaces().await?;
    match all.iter().position(|interface| interface.name == name) {
        Some(found) => Ok(all.swap_remove(found)),
        None => {
            let names = all.into_iter().map(|interface| interface.name);
            let (near, others) = names.partition(|other| strsim::damerau_levenshtein(name, other) <= 2);
            Err(Error::NoInterface { name: name.to_owned(), near, others })
        }
    }
}

/// Reads a link's message; not those that a bridge sends about its ports, and not those that tell only a part.
pub(super) fn link(message: &Message<'_>) -> Option<Interface> {
    let body = message.body;
    if message.kind != RTM_NEWLINK || *body.first()? != libc::AF_UNSPEC as u8 {
        return None;
    }
    let mut link = Interface {
        name: String::new(),
        index: u32_at(body, 4)?,
        mac: [0; 6],
        mtu: 0,
        up: u32_at(body, 8)? & libc::IFF_UP as u32 != 0,
        carrier: false,
        addresses: Vec::new(),
        kind: None,
        controller: None,
        xdp: Vec::new(),
    };
    for (kind, value) in attributes(body.get(LINK_HEADER..)?) {
        match kind {
            IFLA_IFNAME => link.name = wire::text(value),
            IFLA_ADDRESS => link.mac = value.try_into().unwrap_or_default(),
            IFLA_MTU => link.mtu = u32_at(value, 0)?,
            IFLA_CARRIER => link.carrier = value.first().is_some_and(|&carrier| carrier != 0),
            IFLA_MASTER => link.controller = u32_at(value, 0).filter(|&index| index != 0),
            IFLA_LINKINFO => {
                let kind = attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                link.kind = kind.map(|(_, value)| wire::text(value));
            }
            IFLA_XDP => link.xdp = attached(value),
            _ => {}
        }
    }
    (link.mtu != 0 && !link.name.is_empty()).then_some(link)
}

fn attached(value: &[u8]) -> Vec<Attached> {
    const IFLA_XDP_DRV_PROG_ID: u16 = 5;
    const IFLA_XDP_SKB_PROG_ID: u16 = 6;
    const IFLA_XDP_HW_PROG_ID: u16 = 7;
    let program = |(kind, value)| {
        let mode = match kind {
            IFLA_XDP_DRV_PROG_ID => AttachedMode::Native,
            IFLA_XDP_SKB_PROG_ID => AttachedMode::Generic,
            IFLA_XDP_HW_PROG_ID => AttachedMode::Hardware,
            _ => return None,
        };
        Some(Attached { mode, program: u32_at(value, 0)? })
    };
    attributes(value).filter_map(program).collect()
}

fn address(message: Message<'_>) -> Option<(u32, IpAddr, u8)> {
    let (mut address, body) = (None, message.body);
    if message.kind != RTM_NEWADDR {
        return None;
    }
    for (kind, value) in attributes(body.get(ADDRESS_HEADER..)?) {
        match kind {
            // On a point-to-point link the one is the peer's, and the other its own.
            IFA_LOCAL => address = wire::address(value),
            IFA_ADDRESS if address.is_none() => address = wire::address(value),
            _ => {}
        }
    }
    Some((u32_at(body, 4)?, address?, *body.get(1)?))
}
