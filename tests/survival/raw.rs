//! Packets that no socket would send of its own accord.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Result, ensure};

/// TCP's flags.
pub(crate) const SYN: u8 = 0x02;
/// The same.
pub(crate) const ACK: u8 = 0x10;

const TTL: u8 = 64;

/// Sends a TCP segment without data from a source that need not be here. Its checksum is wrong, so that no server answers.
pub(crate) fn send_segment(from: SocketAddr, to: SocketAddr, flags: u8) -> Result<()> {
    let tcp = [
        &[from.port().to_be_bytes(), to.port().to_be_bytes()].concat()[..],
        &[0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0xba, 0xd0, 0, 0],
    ]
    .concat();
    let protocol = libc::IPPROTO_TCP as u8;
    let head = match (from.ip(), to.ip()) {
        // The kernel fills in length, identifier and checksum.
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            [&[0x45, 0, 0, 0, 0, 0, 0x40, 0, TTL, protocol, 0, 0][..], &from.octets(), &to.octets()].concat()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            [&[0x60, 0, 0, 0, 0, tcp.len() as u8, protocol, TTL][..], &from.octets(), &to.octets()].concat()
        }
        _ => anyhow::bail!("{from} and {to} are of two families"),
    };
    send(libc::IPPROTO_RAW, to.ip(), &[head, tcp].concat())
}

/// Sends what follows an IP header of this protocol, or with `IPPROTO_RAW` the header too, from this network namespace.
pub(crate) fn send(protocol: libc::c_int, to: IpAddr, packet: &[u8]) -> Result<()> {
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let (data, length) = (packet.as_ptr().cast(), packet.len());
    // SAFETY: integers in, the descriptor is checked and owned; all bytes zero is a valid address of either family; address
    // and packet outlive the calls, and their sizes are given.
    let sent = unsafe {
        let fd = libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol);
        ensure!(fd >= 0, "no raw socket: {}", io::Error::last_os_error());
        let socket = OwnedFd::from_raw_fd(fd);
        match to {
            IpAddr::V4(to) => {
                let mut address: libc::sockaddr_in = std::mem::zeroed();
                address.sin_family = family as u16;
                address.sin_addr.s_addr = u32::from_ne_bytes(to.octets());
                let size = size_of_val(&address) as u32;
                libc::sendto(socket.as_raw_fd(), data, length, 0, (&raw const address).cast(), size)
            }
            IpAddr::V6(to) => {
                let mut address: libc::sockaddr_in6 = std::mem::zeroed();
                address.sin6_family = family as u16;
                address.sin6_addr.s6_addr = to.octets();
                let size = size_of_val(&address) as u32;
                libc::sendto(socket.as_raw_fd(), data, length, 0, (&raw const address).cast(), size)
            }
        }
    };
    ensure!(sent == length as isize, "to {to}: {}", io::Error::last_os_error());
    Ok(())
}
