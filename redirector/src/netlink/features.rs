//! What a driver's XDP can do, as the driver itself tells it. Minimum kernel version: 6.3.

use netlink_sys::protocols::NETLINK_GENERIC;
use serde::Serialize;

use super::Error;
use super::connection::Connection;
use super::wire::{Request, attributes, u16_at, u32_at};

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const HEADER: usize = 4;

/// What a driver's XDP can do at present; for some it changes with settings or with what is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct XdpFeatures {
    /// Runs programs natively: pass, drop and send back.
    pub native: bool,
    /// Redirects packets that it received.
    pub redirect: bool,
    /// Sends what others redirect to it.
    pub transmit: bool,
    /// Receives packets larger than a page.
    pub receive_frags: bool,
    /// Sends packets larger than a page that others redirect to it.
    pub transmit_frags: bool,
}

impl XdpFeatures {
    fn from_bits(bits: u32) -> Self {
        let has = |bit: u32| bits & (1 << bit) != 0;
        Self { native: has(0), redirect: has(1), transmit: has(2), receive_frags: has(5), transmit_frags: has(6) }
    }
}

/// Asks an interface's driver. `None` is a kernel that cannot be asked.
pub async fn xdp_features(index: u32) -> Result<Option<XdpFeatures>, Error> {
    let mut connection = Connection::open(NETLINK_GENERIC, &[])?;
    let family = Request::new("find the netlink family `netdev`", GENL_ID_CTRL, 0, &[CTRL_CMD_GETFAMILY, 1, 0, 0])
        .attribute(CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    let family = connection.ask(family, |message| u16_at(find(message.body, CTRL_ATTR_FAMILY_ID)?, 0)).await;
    let family = match family {
        Err(Error::Refused { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        other => other?.first().copied(),
    };
    let Some(family) = family else { return Ok(None) };
    let request = Request::new("tell XDP features", family, 0, &[NETDEV_CMD_DEV_GET, 1, 0, 0])
        .attribute(NETDEV_A_DEV_IFINDEX, &index.to_ne_bytes());
    // 64 bits, of which the lower half comes first or last with the byte order; all that is defined is in the lower.
    let lower = if cfg!(target_endian = "big") { 4 } else { 0 };
    let features = connection.ask(request, |message| u32_at(find(message.body, NETDEV_A_DEV_XDP_FEATURES)?, lower));
    Ok(features.await?.first().copied().map(XdpFeatures::from_bits))
}

fn find(body: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(body.get(HEADER..)?).find_map(|(kind, value)| (kind == wanted).then_some(value))
}
