//! Changes of links and neighbours as they happen.

use std::collections::VecDeque;
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_ROUTE;

use super::connection::Connection;
use super::neighbour::{self, RTM_DELNEIGH, RTM_NEWNEIGH};
use super::wire::{self, Message, u32_at};
use super::{Error, Neighbour, interface};

const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_NEIGH: u32 = 3;
const RTM_DELLINK: u16 = 17;

/// Something that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A neighbour entry is new or has changed.
    Neighbour(Neighbour),
    /// A neighbour entry is gone.
    NeighbourGone {
        /// Index of its interface.
        index: u32,
        /// Whose entry it was.
        address: IpAddr,
    },
    /// An interface is new or has changed.
    Link {
        /// Its index.
        index: u32,
        /// Whether something is at the other end.
        carrier: bool,
        /// Whether it is switched on.
        up: bool,
        /// The largest IP packet that it carries.
        mtu: u32,
        /// Its MAC address.
        mac: [u8; 6],
    },
    /// An interface is gone.
    LinkGone {
        /// Its index.
        index: u32,
    },
    /// More happened at once than the kernel could keep for this watch: read everything again.
    Missed,
}

/// A subscription to changes, from [`watch`].
pub struct Watch {
    connection: Connection,
    events: VecDeque<Event>,
}

/// Watches the network namespace of this thread from now on: subscribe first, then read the tables, and nothing is
/// lost in between. Needs a tokio runtime.
pub fn watch() -> Result<Watch, Error> {
    Ok(Watch { connection: Connection::open(NETLINK_ROUTE, &[RTNLGRP_LINK, RTNLGRP_NEIGH])?, events: VecDeque::new() })
}

impl Watch {
    /// The next change. May be cancelled without losing one. `None` is the end: the socket has failed.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            match self.connection.receive().await {
                Ok(datagram) => self.events.extend(wire::messages(&datagram).filter_map(event)),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.connection.drain();
                    return Some(Event::Missed);
                }
                Err(error) => {
                    tracing::error!(%error, "links and neighbours are no longer watched");
                    return None;
                }
            }
        }
    }
}

fn event(message: Message<'_>) -> Option<Event> {
    match message.kind {
        RTM_NEWNEIGH => neighbour::neighbour(message).map(Event::Neighbour),
        RTM_DELNEIGH => {
            let Neighbour { index, address, .. } = neighbour::neighbour(message)?;
            Some(Event::NeighbourGone { index, address })
        }
        RTM_DELLINK if *message.body.first()? == libc::AF_UNSPEC as u8 => {
            Some(Event::LinkGone { index: u32_at(message.body, 4)? })
        }
        _ => {
            let link = interface::link(&message)?;
            Some(Event::Link { index: link.index, carrier: link.carrier, up: link.up, mtu: link.mtu, mac: link.mac })
        }
    }
}
