//! The routes that matter to a backend: what counts as this host's own address, and what its TCP announces.

use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_ROUTE;
use serde::Serialize;

use super::Error;
use super::connection::Connection;
use super::wire::{self, Message, Request, attributes, u32_at};

pub(super) const RTM_NEWROUTE: u16 = 24;
pub(super) const RTM_GETROUTE: u16 = 26;
pub(super) const HEADER: usize = 12;
pub(super) const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_METRICS: u16 = 8;
const RTAX_ADVMSS: u16 = 8;
const RTM_F_CLONED: u32 = 0x200;

/// Routes, as far as they are asked for here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Routes {
    /// Prefixes whose addresses this host takes for its own.
    pub local: Vec<(IpAddr, u8)>,
    /// Default routes.
    pub default: Vec<DefaultRoute>,
}

/// A default route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DefaultRoute {
    /// IPv6, or IPv4.
    pub v6: bool,
    /// Index of the interface that it leads out of; 0 where it has several.
    pub interface: u32,
    /// The largest TCP segment that is announced to peers behind it, where that is set.
    pub advmss: Option<u32>,
}

enum Route {
    Local(IpAddr, u8),
    Default(DefaultRoute),
}

/// Reads the routes of this network namespace.
pub async fn routes() -> Result<Routes, Error> {
    let mut connection = Connection::open(NETLINK_ROUTE, &[])?;
    let mut routes = Routes::default();
    for route in connection.ask(Request::dump("list routes", RTM_GETROUTE, &[0; HEADER]), route).await? {
        match route {
            Route::Local(address, length) => routes.local.push((address, length)),
            Route::Default(default) => routes.default.push(default),
        }
    }
    Ok(routes)
}

fn route(message: Message<'_>) -> Option<Route> {
    let body = message.body;
    let (family, length, kind) = (i32::from(*body.first()?), *body.get(1)?, *body.get(7)?);
    if message.kind != RTM_NEWROUTE || u32_at(body, 8)? & RTM_F_CLONED != 0 {
        return None;
    }
    let (mut destination, mut interface, mut advmss) = (None, 0, None);
    for (kind, value) in attributes(body.get(HEADER..)?) {
        match kind {
            RTA_DST => destination = wire::address(value),
            RTA_OIF => interface = u32_at(value, 0)?,
            RTA_METRICS => {
                let metric = attributes(value).find(|(kind, _)| *kind == RTAX_ADVMSS);
                advmss = metric.and_then(|(_, value)| u32_at(value, 0));
            }
            _ => {}
        }
    }
    match (kind, length) {
        (libc::RTN_LOCAL, _) => Some(Route::Local(destination?, length)),
        (libc::RTN_UNICAST, 0) => {
            Some(Route::Default(DefaultRoute { v6: family == libc::AF_INET6, interface, advmss }))
        }
        _ => None,
    }
}
