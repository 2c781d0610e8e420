//! Copies in a real flow table: where they find room, and whom they leave alone.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use redirector::dataplane::flows::{Copied, Put, now};
use redirector::dataplane::load;
use redirector::dataplane::maps::Maps;
use redirector_ebpf::packet::protocol;
use redirector_ebpf::tables::flow::{Entry, Record, State};
use suite::cluster::{self, Between};
use suite::node;

use super::{client, in_a_world};

const SECOND: u64 = 1_000_000_000;
/// One of each family.
const VIPS: [&str; 2] = ["198.51.100.1:443", "[2001:db8:100::1]:443"];

/// A node's maps, as small as they can be.
struct Small {
    maps: Maps,
    hash_key: [u64; 12],
    idle: [u16; 8],
    vip: SocketAddr,
}

impl Small {
    fn load(vip: &str) -> Result<Self> {
        let mut config = cluster::configuration(1, 2, Between::Mac);
        (config.tables.flows4, config.tables.flows6) = (1_024, 1_024);
        let directory = load::prepare("/sys/fs/bpf/small".as_ref())?;
        let vip = vip.parse()?;
        drop(load::open(&directory, &config, 0)?);
        let node = node::image(&config).node;
        Ok(Self { maps: Maps::open(&directory)?, hash_key: node.hash_key, idle: node.idle, vip })
    }

    fn client(&self, number: u32) -> SocketAddr {
        match (self.vip, client(number)) {
            (SocketAddr::V6(_), SocketAddr::V4(v4)) => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
            (_, client) => client,
        }
    }

    /// Puts a client's flow in, on this backend, last seen then; over an older copy of it if `over`.
    fn put(&self, number: u32, backend: u16, proven: bool, at: u64, over: bool) -> Put {
        let (src, dst) = (self.client(number), self.vip);
        let tuple = node::tuple((src.ip(), src.port()), (dst.ip(), dst.port()), protocol::TCP);
        let record = Record { tuple, service: 1, since: at, version: 1 };
        let copy = Copied { record: &record, v6: self.vip.is_ipv6(), idle: &self.idle, now: now() };
        let entry =
            |tag| Entry::first(tag, backend, State::Established, false, at).touched(State::Established, proven, at);
        self.maps.flows.put(&self.hash_key, &copy, entry, |_| over)
    }

    fn on(&self, backend: u16) -> BTreeSet<SocketAddr> {
        let flows = self.maps.flows.iter(&self.hash_key).filter(|flow| flow.entry.backend() == backend);
        flows.map(|flow| flow.source()).collect()
    }
}

#[test]
fn copies_make_room_among_the_expired_and_unproven_and_never_among_the_proven() -> Result<()> {
    for vip in VIPS {
        in_a_world(|| room_is_made(&Small::load(vip)?))?;
    }
    Ok(())
}

fn room_is_made(small: &Small) -> Result<()> {
    let now = now();
    // The first third is proven, the second is not, the last was idle for longer than it may be. Stamps of the
    // expired must not wrap, however short a time this host has been up.
    let long_ago = now + (8_192 - u64::from(small.idle[State::Established as usize]) - 60) * SECOND;
    for number in 0..300 {
        ensure!(small.put(number, 1, true, now, false) != Put::Kept);
    }
    let proven = small.on(1);
    for number in 300..600 {
        small.put(number, 2, false, now, false);
    }
    for number in 600..900 {
        small.put(number, 3, true, long_ago, false);
    }
    let (unproven, expired) = (small.on(2).len(), small.on(3).len());
    ensure!(proven.len() > 280 && unproven > 100 && expired > 200, "{} {unproven} {expired}", proven.len());

    let mut full = 0;
    for number in 1_000..4_000 {
        full += u32::from(small.put(number, 4, true, now, false) == Put::Full);
    }
    let copies = small.on(4).len();
    ensure!(small.on(1) == proven, "proven flows made room");
    ensure!(small.on(2).is_empty() && small.on(3).is_empty(), "others kept theirs");
    ensure!(copies + proven.len() == 1_024 && copies as u32 + full == 3_000, "{copies} copies, {full} refused");
    Ok(())
}

#[test]
fn a_flow_that_is_there_is_changed_in_its_place() -> Result<()> {
    for vip in VIPS {
        in_a_world(|| is_changed(&Small::load(vip)?))?;
    }
    Ok(())
}

fn is_changed(small: &Small) -> Result<()> {
    ensure!(small.put(1, 1, true, now(), true) == Put::Inserted);
    ensure!(small.put(1, 2, true, now(), false) == Put::Kept && small.on(1).len() == 1);
    ensure!(small.put(1, 2, true, now(), true) == Put::Updated);
    ensure!(small.on(1).is_empty() && small.on(2).len() == 1);
    Ok(())
}
