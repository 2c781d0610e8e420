//! An interface as the segment that VIPs are announced on: packet sockets, and the multicast groups in which IPv6 VIPs are
//! asked for.

use std::ffi::CString;
use std::io;
use std::mem::{size_of, size_of_val, zeroed};
use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::announce::{self, ADVERTISEMENT, ICMPV6, Mac};

/// Longest frame that is looked at; what is listened for is shorter.
const FRAME_MAX: usize = 256;

/// Accepts neighbour advertisements without VLAN tags and extension headers; see `linux/filter.h`.
const ADVERTISEMENTS: [libc::sock_filter; 6] = [
    // Load the byte of the next header; unless it is ICMPv6, skip to the end.
    filter(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, 20),
    filter(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 3, ICMPV6 as u32),
    filter(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, 54),
    filter(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, ADVERTISEMENT as u32),
    filter(libc::BPF_RET | libc::BPF_K, 0, 0, FRAME_MAX as u32),
    filter(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
];

const fn filter(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

/// An interface with its sockets.
pub(crate) struct Segment {
    name: CString,
    index: u32,
    mac: Mac,
    arp: OwnedFd,
    ip6: OwnedFd,
    groups: Option<UdpSocket>,
    probes: u32,
}

/// The kernel's index of an interface.
pub(super) fn index(name: &str) -> io::Result<u32> {
    let name = CString::new(name)?;
    // SAFETY: a string that ends with NUL.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

impl Segment {
    /// Opens the sockets of an interface, which has this MAC address.
    pub(crate) fn open(name: &str, mac: Mac) -> io::Result<Self> {
        let index = index(name)?;
        let arp = socket(index, libc::ETH_P_ARP, &[])?;
        let ip6 = socket(index, libc::ETH_P_IPV6, &ADVERTISEMENTS)?;
        // Without IPv6 on this host there are no IPv6 VIPs to ask for.
        let groups = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).ok();
        Ok(Self { name: CString::new(name)?, index, mac, arp, ip6, groups, probes: 0 })
    }

    /// What is to be polled for reading.
    pub(super) fn descriptors(&self) -> [RawFd; 2] {
        [self.arp.as_raw_fd(), self.ip6.as_raw_fd()]
    }

    /// Says that a VIP is here.
    pub(super) fn announce(&self, vip: IpAddr) -> io::Result<()> {
        announce::announcement(vip, self.mac).iter().try_for_each(|frame| self.send(frame))
    }

    /// Asks who answers for a VIP.
    pub(crate) fn probe(&mut self, vip: IpAddr) -> io::Result<()> {
        self.probes = self.probes.wrapping_add(1);
        self.send(&announce::probe(vip, self.mac, self.probes))
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the frame is as long as is told.
        match unsafe { libc::send(self.arp.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// The addresses that others said are with them since this was last asked.
    pub(crate) fn told(&self) -> Vec<IpAddr> {
        let mut told = Vec::new();
        for socket in self.descriptors() {
            let mut frame = [0u8; FRAME_MAX];
            loop {
                // SAFETY: the buffer is as long as is told; what does not fit is cut.
                let len = unsafe { libc::recv(socket, frame.as_mut_ptr().cast(), frame.len(), 0) };
                let Ok(len) = usize::try_from(len) else { break };
                told.extend(announce::told(&frame[..len.min(FRAME_MAX)], self.mac));
            }
        }
        told
    }

    /// Joins the group in which an address is asked for. The card's filter is left open when the agent ends, since the
    /// data plane goes on answering; switches that watch for members are told while it runs.
    pub(super) fn join(&self, address: Ipv6Addr) -> io::Result<()> {
        let group = announce::solicited_node(address);
        self.let_in(announce::group_mac(group))?;
        match self.groups.as_ref().map(|socket| socket.join_multicast_v6(&group, self.index)) {
            // Another VIP has the same group.
            Some(Err(error)) if error.raw_os_error() == Some(libc::EADDRINUSE) => Ok(()),
            Some(result) => result,
            None => Ok(()),
        }
    }

    fn let_in(&self, group: Mac) -> io::Result<()> {
        // SAFETY: integers and arrays of them, for which zero is a value.
        let mut request: libc::ifreq = unsafe { zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(self.name.as_bytes()).take(libc::IFNAMSIZ - 1) {
            *to = *from as libc::c_char;
        }
        // SAFETY: as above.
        let mut address: libc::sockaddr = unsafe { zeroed() };
        for (to, from) in address.sa_data.iter_mut().zip(group) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_hwaddr = address;
        // SAFETY: the request is of the form that this call takes, and outlives it.
        match unsafe { libc::ioctl(self.arp.as_raw_fd(), libc::SIOCADDMULTI as _, &raw mut request) } {
            -1 => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
                error => Err(error),
            },
            _ => Ok(()),
        }
    }
}

/// A packet socket of an interface for one ethertype. It is bound last, so that nothing comes in past its filter.
fn socket(index: u32, ethertype: i32, program: &[libc::sock_filter]) -> io::Result<OwnedFd> {
    let checked = |result: libc::c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: integers in; the descriptor is checked and owned from here on.
    let socket = unsafe { OwnedFd::from_raw_fd(checked(libc::socket(libc::AF_PACKET, kind, 0))?) };
    if !program.is_empty() {
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
        let (value, len) = (&raw const program, size_of_val(&program) as u32);
        // SAFETY: the program outlives the call, which copies it and writes nothing.
        checked(unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, value.cast(), len)
        })?;
    }
    // SAFETY: integers and arrays of them, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (ethertype as u16).to_be();
    address.sll_ifindex = index as i32;
    let len = size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: an address of the length that is told.
    checked(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(socket)
}
