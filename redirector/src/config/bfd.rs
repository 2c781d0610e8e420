//! Routers that this node speaks BFD with.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::Serialize;

use super::reader::Reader;
use super::text::{self, Wrong, serialize_duration as duration};
use crate::bfd::auth::{KEY_MAX, Key, Kind, PASSWORD_MAX};

/// Intervals: below ten milliseconds no agent keeps time on a busy host, and above a minute nobody waits for the verdict.
const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60);

/// What is configured as `[[bfd]]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bfd {
    /// Who it is spoken with.
    pub peer: IpAddr,
    /// The interface that the peer is the next hop on; none where it is further away.
    pub interface: Option<String>,
    /// This side's address, if not the one that routes say.
    pub local: Option<IpAddr>,
    /// Packets are sent no faster.
    #[serde(serialize_with = "duration")]
    pub min_tx: Duration,
    /// Packets are taken no faster.
    #[serde(serialize_with = "duration")]
    pub min_rx: Duration,
    /// The peer's packets that may be missed.
    pub multiplier: u8,
    /// How packets prove who sent them.
    pub key: Option<Key>,
}

/// Reads a `[[bfd]]`.
pub(super) fn bfd(mut r: Reader<'_>) -> Bfd {
    let peer = r.parsed("peer", text::address);
    let peer = r.must("peer", peer, Ipv4Addr::UNSPECIFIED.into(), "add the router's address");
    let interface = r.parsed("interface", text::interface);
    let multihop = r.flag("multihop").unwrap_or(false);
    let local = r.parsed("local", text::address);
    let mend = "write the interface of a router that is the next hop, or multihop = true for one that is further away";
    match (r.has("interface"), multihop) {
        (true, true) => r.wrong("multihop", Wrong::new("a session over an interface is over a single hop", mend)),
        (false, false) => r.must("interface", None, (), mend),
        _ => {}
    }
    if local.is_some_and(|local| local.is_ipv4() != peer.is_ipv4()) && !peer.is_unspecified() {
        r.wrong("local", Wrong::new(format!("{peer} is of the other family"), "write both in one family"));
    }
    let bfd = Bfd {
        peer,
        interface,
        local,
        min_tx: r.duration("min_tx", INTERVAL).unwrap_or(Duration::from_millis(300)),
        min_rx: r.duration("min_rx", INTERVAL).unwrap_or(Duration::from_millis(300)),
        multiplier: r.number("multiplier", 1..=255).unwrap_or(3),
        key: key(&mut r),
    };
    r.done();
    bfd
}

/// `auth`, `key_id` and `password`, all of them or none.
fn key(r: &mut Reader<'_>) -> Option<Key> {
    let kind: Option<Kind> = r.choice("auth");
    let id = r.number("key_id", 0..=255).unwrap_or(1);
    let most = if kind == Some(Kind::Simple) { PASSWORD_MAX } else { KEY_MAX };
    let secret = r.parsed("password", |text| match text.len() {
        length if (1..=most).contains(&length) => Ok(text.as_bytes().to_vec()),
        length => Err(Wrong::new(format!("the password has {length} bytes"), format!("write 1 to {most} bytes"))),
    });
    if !["auth", "key_id", "password"].iter().any(|name| r.has(name)) {
        return None;
    }
    let mend =
        "give auth = \"simple\", \"sha1\" or \"meticulous-sha1\" and a password, as the router has them, or none";
    let kind = r.must("auth", kind, Kind::Simple, mend);
    Some(Key { kind, id, secret: r.must("password", secret, Vec::new(), mend) })
}
