//! What an interface has received, and what it has lost.

use netlink_sys::protocols::NETLINK_ROUTE;

use super::Error;
use super::connection::Connection;
use super::wire::{Message, Request, attributes, u64_at};

const RTM_NEWSTATS: u16 = 92;
const RTM_GETSTATS: u16 = 94;
const HEADER: usize = 12;
const IFLA_STATS_LINK_64: u16 = 1;
/// `IFLA_STATS_LINK_64` alone.
const FILTER: u32 = 1 << (IFLA_STATS_LINK_64 - 1);

/// Counts of an interface, of `struct rtnl_link_stats64`, since it is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Packets that the driver has taken over.
    pub packets: u64,
    /// Packets that the card had no room for (`rx_missed_errors`): not among `packets`.
    pub missed: u64,
    /// Packets that overran a queue of the card (`rx_fifo_errors`): by some drivers the same ones.
    pub overruns: u64,
    /// Packets that were taken over and dropped before any program looked at them, or that no protocol understood
    /// (`rx_dropped`); by some drivers also those that XDP has dropped.
    pub dropped: u64,
}

/// What interfaces have received, by their numbers; those that are gone are not among them.
pub async fn received(indices: &[u32]) -> Result<Vec<(u32, Received)>, Error> {
    let mut connection = Connection::open(NETLINK_ROUTE, &[])?;
    let mut all = Vec::with_capacity(indices.len());
    for index in indices {
        let mut fixed = [0; HEADER];
        fixed[4..8].copy_from_slice(&index.to_ne_bytes());
        fixed[8..].copy_from_slice(&FILTER.to_ne_bytes());
        let request = Request::new("count packets", RTM_GETSTATS, 0, &fixed);
        match connection.ask(request, |message| counts(&message)).await {
            Ok(counts) => all.extend(counts.into_iter().map(|counts| (*index, counts))),
            Err(Error::Refused { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

fn counts(message: &Message<'_>) -> Option<Received> {
    if message.kind != RTM_NEWSTATS {
        return None;
    }
    let (_, stats) = attributes(message.body.get(HEADER..)?).find(|(kind, _)| *kind == IFLA_STATS_LINK_64)?;
    let count = |place: usize| u64_at(stats, 8 * place);
    Some(Received { packets: count(0)?, dropped: count(6)?, overruns: count(14)?, missed: count(15)? })
}
