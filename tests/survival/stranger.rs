//! Tunnel packets that nobody should send.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::{fs, io};

use anyhow::{Context, Result, ensure};
use aya::maps::{Map, MapData, PerCpuArray};
use redirector::dataplane::load;
use redirector_ebpf::abi::GUE_PORT;
use redirector_ebpf::reason::Reason;
use xtask::lab::{Config, Role, Topology, vip4};
use xtask::traffic::ECHO_PORT;

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
            ipip(Role::Backend(1).v4(), packet)?;
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

/// Sends a packet within another IPv4 header, from this host.
fn ipip(to: Ipv4Addr, packet: &[u8]) -> Result<()> {
    // SAFETY: integers in, the descriptor is checked and owned; the address and the packet outlive the call.
    let sent = unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_IPIP);
        ensure!(fd >= 0, "no raw socket: {}", io::Error::last_os_error());
        let socket = OwnedFd::from_raw_fd(fd);
        let mut address: libc::sockaddr_in = std::mem::zeroed();
        address.sin_family = libc::AF_INET as u16;
        address.sin_addr.s_addr = u32::from_ne_bytes(to.octets());
        let (data, size) = (packet.as_ptr().cast(), size_of_val(&address) as u32);
        libc::sendto(socket.as_raw_fd(), data, packet.len(), 0, (&raw const address).cast(), size)
    };
    ensure!(sent == packet.len() as isize, "to {}: {}", IpAddr::from(to), io::Error::last_os_error());
    Ok(())
}
