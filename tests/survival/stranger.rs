//! Tunnel packets that nobody should send.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use aya::maps::{Map, MapData, PerCpuArray};
use redirector::dataplane::load;
use redirector_ebpf::abi::GUE_PORT;
use redirector_ebpf::reason::Reason;
use xtask::lab::{Config, Role, Topology, vip4};
use xtask::traffic::ECHO_PORT;

use crate::raw;
use crate::scene::{Scene, wait_until};

#[test]
fn tunnel_packets_of_strangers_and_for_strangers_are_dropped_and_counted() -> Result<()> {
    let topology = Topology { nodes: 1, backends: 1, ..Topology::for_test("stranger") };
    let scene = Scene::without_agents(&topology, Config::standard(&topology))?;
    let to_vip = udp_to(vip4(1), ECHO_PORT);
    let to_other = udp_to(vip4(99), ECHO_PORT);
    for (from, packet, reason) in [
        ("c1", &to_vip, Reason::TunnelUnknownSource),
        ("n1", &to_other, Reason::TunnelNotVip),
        ("n1", &to_vip, Reason::Unwrapped),
    ] {
        let before = count(&scene, reason)?;
        scene.lab.host(from)?.run(|| -> Result<()> {
            raw::send(libc::IPPROTO_IPIP, Role::Backend(1).v4().into(), packet)?;
            let gue = [&[0, 4, 0, 0], packet.as_slice()].concat();
            UdpSocket::bind("0.0.0.0:0")?.send_to(&gue, (Role::Backend(1).v4(), GUE_PORT))?;
            Ok(())
        })??;
        wait_until(reason.name(), || Ok(count(&scene, reason)? == before + 2))?;
    }
    Ok(())
}

/// How often the backend's decap met this.
fn count(scene: &Scene, reason: Reason) -> Result<u64> {
    let namespace = fs::metadata(format!("/run/netns/{}", scene.lab.host("b1")?.namespace()))?.ino();
    let pins = PathBuf::from(format!("/sys/fs/bpf/redirector-decap-{namespace}-eth0"));
    let map = MapData::from_pin(load::directory(&pins).join("REASONS")).context("the counters of decap")?;
    let reasons: PerCpuArray<_, u64> = Map::PerCpuArray(map).try_into()?;
    Ok(reasons.get(&(reason as u32), 0)?.iter().sum())
}

/// An IPv4 packet with a datagram from a client's address.
pub(crate) fn udp_to(vip: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, 17, 0, 0];
    packet.extend(Role::Client.v4().octets());
    packet.extend(vip.octets());
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(4000_u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend([0, 12, 0, 0]);
    packet.extend(b"hey!");
    packet
}
