//! Offloads off: over veth they leave checksums unfinished and segments merged, and XDP sees packets in that state.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};

const SIOCETHTOOL: libc::c_ulong = 0x8946;

/// The old single-value commands of ethtool that set; each is one above the command that gets. Every driver knows them,
/// and no package is needed.
const OFFLOADS: [(&str, u32); 5] = [
    ("tx checksumming", 0x17), // ETHTOOL_STXCSUM
    ("TSO", 0x1f),             // ETHTOOL_STSO
    ("GSO", 0x24),             // ETHTOOL_SGSO
    ("GRO", 0x2c),             // ETHTOOL_SGRO
    // ETHTOOL_SFLAGS. A tag belongs in the packet's bytes, where XDP looks for it.
    ("LRO and VLAN acceleration", 0x26),
];

#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Switches them off for an interface of the network namespace that this thread is in. To be called after a program is
/// attached: attaching one to a veth switches GRO on.
pub(super) fn disable(interface: &str) -> Result<()> {
    ensure!(interface.len() < libc::IFNAMSIZ, "`{interface}` is too long for an interface's name");
    let socket = UdpSocket::bind("0.0.0.0:0").context("cannot make a socket for ethtool")?;
    for (what, set) in OFFLOADS {
        let done = match ethtool(&socket, interface, set) {
            // A program at the other end makes TSO of this one unchangeable, and off; on would be a mistake.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                match ethtool(&socket, interface, set - 1) {
                    Ok(0) => Ok(0),
                    _ => Err(error),
                }
            }
            other => other,
        };
        done.with_context(|| format!("cannot switch off {what} of {interface}"))?;
    }
    Ok(())
}

/// Carries a command out with the value 0, and returns the value that the kernel leaves.
fn ethtool(socket: &UdpSocket, interface: &str, command: u32) -> io::Result<u32> {
    let mut value = Value { command, data: 0 };
    // SAFETY: all bytes zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request and the value that it points to outlive the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } {
        0.. => Ok(value.data),
        _ => Err(io::Error::last_os_error()),
    }
}
