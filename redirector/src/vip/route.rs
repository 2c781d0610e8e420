//! Routes to VIPs, for BIRD or FRR to announce: there while this node is ready, and gone while it is not.
//!
//! They are in a table of their own, which no rule of the kernel names, and discard: so they change nothing of what the
//! kernel does with packets that XDP leaves to it, need no device, and no address becomes local. A routing daemon is told
//! of the table. BIRD, for IPv4 (and likewise for `ipv6`):
//!
//! ```text
//! protocol kernel vips4 { kernel table 201; learn; ipv4 { import where krt_source = 201; export none; }; }
//! ```
//!
//! FRR: `ip import-table 201`, and `redistribute table 201`.
//!
//! A killed agent leaves them, as its data plane goes on; the next agent puts right what it finds.

use std::collections::BTreeSet;

use crate::config::{Config, Ingress, Prefix};
use crate::netlink;

/// The kernel's table of the routes.
pub const TABLE: u8 = 201;

/// The number that marks them as this program's.
pub const PROTOCOL: u8 = 201;

/// The VIPs and prefixes that a configuration has announced.
pub fn announced(config: &Config) -> BTreeSet<Prefix> {
    config.vips.iter().filter(|vip| vip.ingress == Ingress::Route).map(|vip| vip.address).collect()
}

/// Makes the kernel's table hold the routes to these and no others of this program's; says how many it put in and took
/// out. A route that resists does not keep the others from being changed.
///
/// # Errors
/// The first refusal of the kernel.
pub async fn hold(wanted: &BTreeSet<Prefix>) -> Result<(usize, usize), netlink::Error> {
    let present: BTreeSet<Prefix> = netlink::owned_routes(TABLE, PROTOCOL)
        .await?
        .into_iter()
        .map(|(address, length)| Prefix::around(address, length))
        .collect();
    let pair = |prefix: &Prefix| (prefix.address(), prefix.length());
    let (mut put, mut dropped, mut result) = (0, 0, Ok(()));
    for prefix in present.difference(wanted) {
        match netlink::drop_route(pair(prefix), TABLE, PROTOCOL).await {
            Ok(()) => dropped += 1,
            error => result = result.and(error),
        }
    }
    for prefix in wanted.difference(&present) {
        match netlink::put_route(pair(prefix), TABLE, PROTOCOL).await {
            Ok(()) => put += 1,
            error => result = result.and(error),
        }
    }
    result.map(|()| (put, dropped))
}
