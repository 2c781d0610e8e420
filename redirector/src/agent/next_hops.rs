//! MAC addresses of next hops: the kernel keeps them, the data plane gets what it knows.

use std::time::{Duration, Instant};

use crate::dataplane::address::mac_word;
use crate::dataplane::image::{Image, NextHop};
use crate::dataplane::install;
use crate::dataplane::maps::Maps;
use crate::netlink::{self, Kept, Neighbour};

/// How long a change waits for next hops that do not answer.
const LEARN: Duration = Duration::from_millis(500);

/// Has the kernel keep an image's next hops, and takes over their MAC addresses before the first packet is sent to them.
/// Says which of them the agent must ask for again.
pub(super) async fn learn(maps: &mut Maps, image: &Image) -> Vec<NextHop> {
    let by_agent = keep(image.neighbours.values()).await;
    let deadline = Instant::now() + LEARN;
    loop {
        let known = read(maps, image).await;
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

/// Takes over what the kernel knows of an image's next hops; says of how many.
pub(super) async fn read(maps: &mut Maps, image: &Image) -> usize {
    match netlink::neighbours().await {
        Ok(all) => all.iter().map(|neighbour| take_over(maps, image, neighbour)).sum(),
        Err(error) => {
            tracing::error!(%error, "the kernel's neighbours cannot be read");
            0
        }
    }
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
