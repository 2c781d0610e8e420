//! Routes of this program's own: they lead nowhere, and are there for a routing daemon to read.

use std::io;
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_ROUTE;

use super::Error;
use super::connection::Connection;
use super::route::{HEADER, RTA_DST, RTM_GETROUTE, RTM_NEWROUTE};
use super::wire::{self, Message, Request, attributes};

const RTM_DELROUTE: u16 = 25;
/// Any scope, where one is taken out.
const RT_SCOPE_NOWHERE: u8 = 255;

/// Puts in a route that discards packets for a prefix, marked with the number of this program as its protocol. One that
/// is there already stays.
pub async fn put_route(prefix: (IpAddr, u8), table: u8, protocol: u8) -> Result<(), Error> {
    let flags = wire::NLM_F_CREATE | wire::NLM_F_REPLACE;
    let fixed = header(prefix, table, protocol, libc::RT_SCOPE_UNIVERSE);
    let request = Request::new("put in a route", RTM_NEWROUTE, flags, &fixed);
    ask(request.attribute(RTA_DST, &wire::octets(&prefix.0))).await
}

/// Takes such a route out. None there is no error.
pub async fn drop_route(prefix: (IpAddr, u8), table: u8, protocol: u8) -> Result<(), Error> {
    let fixed = header(prefix, table, protocol, RT_SCOPE_NOWHERE);
    let request = Request::new("take out a route", RTM_DELROUTE, 0, &fixed);
    match ask(request.attribute(RTA_DST, &wire::octets(&prefix.0))).await {
        Err(Error::Refused { source, .. })
            if source.kind() == io::ErrorKind::NotFound || source.raw_os_error() == Some(libc::ESRCH) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// The prefixes of the routes of a protocol in a table.
pub async fn owned_routes(table: u8, protocol: u8) -> Result<Vec<(IpAddr, u8)>, Error> {
    let mut connection = Connection::open(NETLINK_ROUTE, &[])?;
    let request = Request::dump("list routes", RTM_GETROUTE, &[0; HEADER]);
    connection.ask(request, |message| owned(message, table, protocol)).await
}

async fn ask(request: Request) -> Result<(), Error> {
    Connection::open(NETLINK_ROUTE, &[])?.ask(request, |_| None::<()>).await.map(drop)
}

/// The fixed part of a route's message: `struct rtmsg`.
fn header((address, length): (IpAddr, u8), table: u8, protocol: u8, scope: u8) -> [u8; HEADER] {
    let family = wire::family(&address);
    [family, length, 0, 0, table, protocol, scope, libc::RTN_BLACKHOLE, 0, 0, 0, 0]
}

fn owned(message: Message<'_>, table: u8, protocol: u8) -> Option<(IpAddr, u8)> {
    let body = message.body;
    if message.kind != RTM_NEWROUTE || body.get(4..6)? != [table, protocol] {
        return None;
    }
    let destination = attributes(body.get(HEADER..)?).find(|(kind, _)| *kind == RTA_DST);
    Some((wire::address(destination?.1)?, *body.get(1)?))
}
