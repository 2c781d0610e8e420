//! MAC addresses of next hops: the kernel keeps them, the data plane gets what it knows.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use redirector_ebpf::tables::names::kind;

use crate::config::Config;
use crate::dataplane::address::mac_word;
use crate::dataplane::image::{Image, NextHop};
use crate::dataplane::install;
use crate::dataplane::maps::Maps;
use crate::health::{Hop, Neighbours};
use crate::netlink::{self, Kept, Neighbour};

/// How long a change waits for next hops that do not answer.
const LEARN: Duration = Duration::from_millis(500);

/// Has the kernel keep an image's next hops, and takes over their MAC addresses before the first packet is sent to them.
/// Says which of them the agent must ask for again.
pub(super) async fn learn(maps: &mut Maps, image: &Image) -> Vec<NextHop> {
    let by_agent = keep(image.neighbours.values()).await;
    let deadline = Instant::now() + LEARN;
    loop {
        let known = entries().await.iter().map(|neighbour| take_over(maps, image, neighbour)).sum::<usize>();
        if known >= image.neighbours.len() || Instant::now() > deadline {
            return by_agent;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Has the kernel keep next hops; says which of them it does not.
pub(super) async fn keep(hops: impl Iterator<Item = &NextHop>) -> Vec<NextHop> {
    let mut by_agent = Vec::new();
    for hop in hops {
        match netlink::keep_neighbour(hop.interface, hop.address).await {
            Ok(Kept::NotKept) => by_agent.push(hop.clone()),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(next_hop = %hop.address, %error, "the kernel does not keep this next hop");
                by_agent.push(hop.clone());
            }
        }
    }
    by_agent
}

/// Takes over what the kernel knows of an image's next hops, and follows them from then on.
pub(super) async fn read(maps: &mut Maps, image: &Image, neighbours: &mut Neighbours, now: Duration) {
    let all = entries().await;
    all.iter().for_each(|neighbour| _ = take_over(maps, image, neighbour));
    let hops = image.neighbours.values().map(|hop| (hop.interface, hop.address));
    neighbours.read(hops, all.iter(), now);
}

/// What the kernel knows.
async fn entries() -> Vec<Neighbour> {
    netlink::neighbours().await.unwrap_or_else(|error| {
        tracing::error!(%error, "the kernel's neighbours cannot be read");
        Vec::new()
    })
}

/// All next hops, as health judges them: who is a node of the cluster is none that packets leave by.
pub(super) fn judged(config: &Config, image: &Image) -> Vec<Hop> {
    let links = config.members.iter().flat_map(|member| member.links.iter().map(|link| link.address));
    let members: BTreeSet<IpAddr> = config.members.iter().map(|member| member.address).chain(links).collect();
    let hop = |hop: &NextHop| {
        let port = image.ports.iter().position(|port| port.ifindex == hop.interface);
        let name = port.and_then(|port| image.registry.name(kind::PORT, port as u32 + 1));
        Hop {
            interface: hop.interface,
            name: name.unwrap_or("an interface that is gone").to_owned(),
            address: hop.address,
            is_peer: hop.peer.is_some() || members.contains(&hop.address),
        }
    };
    image.neighbours.values().map(hop).collect()
}

/// Takes over one neighbour entry, if it is a next hop's; says of how many. A next hop that does not answer keeps its
/// last address: whether its path is alive is not for ARP to say.
pub(super) fn take_over(maps: &mut Maps, image: &Image, neighbour: &Neighbour) -> usize {
    let Some(mac) = neighbour.mac.filter(|_| neighbour.state.is_usable()) else { return 0 };
    let fits = |hop: &NextHop| hop.interface == neighbour.index && hop.address == neighbour.address;
    let mut known = 0;
    for (&id, hop) in image.neighbours.iter().filter(|(_, hop)| fits(hop)) {
        known += 1;
        if let Err(error) = install::set_neighbour(maps, id, mac_word(mac), hop.peer) {
            let error = anyhow::Error::new(error);
            tracing::error!("the MAC address of {} could not be written: {error:#}", neighbour.address);
        }
    }
    known
}
