//! The same where routers lie between all hosts: packets go from node to node behind a header.

use std::net::UdpSocket;

use anyhow::Result;
use redirector_ebpf::abi::HOP_PORT;
use redirector_ebpf::reason::Reason;
use xtask::lab::{Fabric, Role, Topology};

use crate::scene::{Scene, every_kind, wait_until};
use crate::services::unmatched_ports_are_refused;
use crate::services::{echo_requests_are_answered, every_datagram_is_answered, every_request_is_answered};

#[test]
fn every_kind_of_service_answers_everything_across_routers() -> Result<()> {
    let topology = Topology { fabric: Fabric::Routed, ..Topology::for_test("routed") };
    let config = every_kind(&topology, &["gue", "ipip"]);
    let scene = Scene::up(&topology, config)?;
    every_request_is_answered(&scene)?;
    every_datagram_is_answered(&scene, b"one datagram", 12)?;
    every_datagram_is_answered(&scene, &[b'x'; 4000], 12)?;
    echo_requests_are_answered(&scene)?;
    unmatched_ports_are_refused(&scene)?;
    headers_of_strangers_are_dropped(&scene)
}

/// Node 2's header with a wrong tag, then the same from an address that is no node's.
fn headers_of_strangers_are_dropped(scene: &Scene) -> Result<()> {
    let mut header = Vec::from(*b"RD\x01\x01\x02\0\0\0");
    header.extend(7_u32.to_be_bytes());
    header.extend([0; 12]);
    header.extend(crate::stranger::udp_to(xtask::lab::vip4(2), xtask::traffic::ECHO_PORT));
    for (from, reason) in [("n2", Reason::HopTag), ("c1", Reason::HopUnknownSender)] {
        let before = scene.count("n1", reason)?;
        scene.lab.host(from)?.run(|| -> Result<()> {
            UdpSocket::bind("0.0.0.0:0")?.send_to(&header, (Role::Node(1).v4(), HOP_PORT))?;
            Ok(())
        })??;
        wait_until("the header is dropped and counted", || Ok(scene.count("n1", reason)? == before + 1))?;
    }
    Ok(())
}
