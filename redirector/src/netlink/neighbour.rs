//! The neighbour table: which MAC address an IP address has.

use std::io;
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_ROUTE;
use serde::Serialize;

use super::Error;
use super::connection::Connection;
use super::wire::{self, Message, Request, attributes, u16_at, u32_at};

pub(super) const RTM_NEWNEIGH: u16 = 28;
pub(super) const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;
const HEADER: usize = 12;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_FLAGS_EXT: u16 = 15;
const NTF_USE: u8 = 1 << 0;
const NTF_EXT_LEARNED: u8 = 1 << 4;
const NTF_EXT_MANAGED: u32 = 1 << 0;
const NUD_NONE: u16 = 0;

/// An entry of the neighbour table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Neighbour {
    /// Index of the interface.
    pub index: u32,
    /// Whose MAC address it tells.
    pub address: IpAddr,
    /// The MAC address, once it is known.
    pub mac: Option<[u8; 6]>,
    /// How sure the kernel is.
    pub state: NeighbourState,
    /// Whether the kernel keeps it fresh by itself.
    pub managed: bool,
}

/// How sure the kernel is of a neighbour entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NeighbourState {
    /// Nothing is known, and nothing asked.
    None,
    /// The first question is on its way.
    Incomplete,
    /// It answered a moment ago.
    Reachable,
    /// It answered once.
    Stale,
    /// As stale; about to be asked again.
    Delay,
    /// It is being asked again.
    Probe,
    /// It does not answer.
    Failed,
    /// The interface needs no MAC addresses.
    NoArp,
    /// The operator has set it.
    Permanent,
}

impl NeighbourState {
    fn from_bits(bits: u16) -> Self {
        match bits {
            0x01 => Self::Incomplete,
            0x02 => Self::Reachable,
            0x04 => Self::Stale,
            0x08 => Self::Delay,
            0x10 => Self::Probe,
            0x20 => Self::Failed,
            0x40 => Self::NoArp,
            0x80 => Self::Permanent,
            _ => Self::None,
        }
    }

    /// Whether packets are sent to the entry's MAC address.
    pub fn is_usable(self) -> bool {
        !matches!(self, Self::None | Self::Incomplete | Self::Failed)
    }
}

/// What [`keep_neighbour`] achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The kernel keeps the entry, and asks the neighbour again and again, until the interface goes down.
    ByKernel,
    /// The operator has set the entry for good; it was left as it is.
    ByOperator,
    /// This kernel only asks when told to: call again, more often than the entry ages (a minute does by default).
    NotKept,
}

/// Has the kernel find the neighbour's MAC address, and keep it fresh by itself while nobody uses the entry and no
/// agent runs. An interface that goes down or loses its carrier loses its entries: call again when it is back.
pub async fn keep_neighbour(index: u32, address: IpAddr) -> Result<Kept, Error> {
    let mut connection = Connection::open(NETLINK_ROUTE, &[])?;
    let state = find(&mut connection, index, address).await?.map(|neighbour| neighbour.state);
    if matches!(state, Some(NeighbourState::Permanent | NeighbourState::NoArp)) {
        return Ok(Kept::ByOperator);
    }
    let request = |managed: bool| {
        // A kernel older than 5.16 passes over the attribute that it does not know, and is left with the flag to ask.
        // An entry that is being kept is still collected as garbage in the moment when its neighbour does not answer,
        // and is then kept no more; one that somebody else has learned is not.
        let fixed = header(index, &address, NUD_NONE, NTF_USE | NTF_EXT_LEARNED);
        let flags = wire::NLM_F_CREATE | wire::NLM_F_REPLACE;
        let request = Request::new("keep a neighbour entry", RTM_NEWNEIGH, flags, &fixed)
            .attribute(NDA_DST, &wire::octets(&address));
        if managed { request.attribute(NDA_FLAGS_EXT, &NTF_EXT_MANAGED.to_ne_bytes()) } else { request }
    };
    match connection.ask(request(true), |_| None::<()>).await {
        Err(Error::Refused { source, .. })
            if matches!(source.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) =>
        {
            connection.ask(request(false), |_| None::<()>).await?;
        }
        other => drop(other?),
    }
    let managed = find(&mut connection, index, address).await?.is_some_and(|neighbour| neighbour.managed);
    Ok(if managed { Kept::ByKernel } else { Kept::NotKept })
}

/// Takes a neighbour entry out, kept or not. None there is no error.
pub async fn drop_neighbour(index: u32, address: IpAddr) -> Result<(), Error> {
    let mut connection = Connection::open(NETLINK_ROUTE, &[])?;
    let request = Request::new("drop a neighbour entry", RTM_DELNEIGH, 0, &header(index, &address, NUD_NONE, 0))
        .attribute(NDA_DST, &wire::octets(&address));
    match connection.ask(request, |_| None::<()>).await {
        Err(Error::Refused { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map(drop),
    }
}

/// Every neighbour entry of this network namespace, of both families.
pub async fn neighbours() -> Result<Vec<Neighbour>, Error> {
    let mut connection = Connection::open(NETLINK_ROUTE, &[])?;
    connection.ask(Request::dump("list neighbours", RTM_GETNEIGH, &[0; HEADER]), neighbour).await
}

async fn find(connection: &mut Connection, index: u32, address: IpAddr) -> Result<Option<Neighbour>, Error> {
    let request = Request::new("look up a neighbour", RTM_GETNEIGH, 0, &header(index, &address, NUD_NONE, 0))
        .attribute(NDA_DST, &wire::octets(&address));
    match connection.ask(request, neighbour).await {
        Ok(found) => Ok(found.into_iter().next()),
        Err(Error::Refused { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn header(index: u32, address: &IpAddr, state: u16, flags: u8) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = wire::family(address);
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header[10] = flags;
    header
}

/// Reads an entry's message; entries of bridges, which have no IP address, are passed over.
pub(super) fn neighbour(message: Message<'_>) -> Option<Neighbour> {
    let body = message.body;
    let ip = matches!(i32::from(*body.first()?), libc::AF_INET | libc::AF_INET6);
    if !ip || !matches!(message.kind, RTM_NEWNEIGH | RTM_DELNEIGH) {
        return None;
    }
    let (mut address, mut mac, mut managed) = (None, None, false);
    for (kind, value) in attributes(body.get(HEADER..)?) {
        match kind {
            NDA_DST => address = wire::address(value),
            NDA_LLADDR => mac = value.try_into().ok(),
            NDA_FLAGS_EXT => managed = u32_at(value, 0)? & NTF_EXT_MANAGED != 0,
            _ => {}
        }
    }
    let state = NeighbourState::from_bits(u16_at(body, 8)?);
    // A failed entry may still hold the address that it had.
    let mac = mac.filter(|_| state.is_usable());
    Some(Neighbour { index: u32_at(body, 4)?, address: address?, mac, state, managed })
}
