//! Sockets of BFD: some that hear of everybody and tell where from, and one a peer that sends.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd as _, RawFd};

use socket2::{Domain, Protocol, Socket, Type};

use super::packet::LENGTH_MAX;

/// The port of sessions over a single hop (RFC 5881, section 4).
pub(super) const SINGLE_HOP: u16 = 3784;
/// The port of sessions over several hops (RFC 5883, section 5).
pub(super) const MULTIHOP: u16 = 4784;
/// The TTL of all packets; over a single hop they have to come with it (RFC 5881, section 5).
pub(super) const TTL: u8 = 255;
/// Source ports (RFC 5881, section 4).
const SOURCES: std::ops::RangeInclusive<u16> = 49_152..=65_535;
/// Class selector 6, network control.
const TOS: u32 = 0xc0;

/// A datagram, as far as it is looked at.
pub(super) struct Datagram {
    pub(super) bytes: [u8; LENGTH_MAX],
    /// How much of them came.
    pub(super) length: usize,
    pub(super) source: IpAddr,
    /// The interface that it came by; 0: not told.
    pub(super) interface: u32,
    pub(super) ttl: u8,
}

/// Hears of all peers of a family and kind.
pub(super) struct Ear {
    socket: UdpSocket,
    pub(super) v6: bool,
    pub(super) multihop: bool,
}

impl Ear {
    pub(super) fn open(v6: bool, multihop: bool) -> io::Result<Self> {
        let (domain, any) = match v6 {
            true => (Domain::IPV6, IpAddr::from(Ipv6Addr::UNSPECIFIED)),
            false => (Domain::IPV4, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
        };
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        let options = match v6 {
            true => {
                socket.set_only_v6(true)?;
                [(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO), (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT)]
            }
            false => [(libc::IPPROTO_IP, libc::IP_PKTINFO), (libc::IPPROTO_IP, libc::IP_RECVTTL)],
        };
        for (level, option) in options {
            let on: libc::c_int = 1;
            let size = size_of_val(&on) as u32;
            // SAFETY: an integer that outlives the call.
            let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), size) };
            if set < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        socket.bind(&SocketAddr::new(any, if multihop { MULTIHOP } else { SINGLE_HOP }).into())?;
        Ok(Self { socket: socket.into(), v6, multihop })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// The next datagram that waits. What is longer than any packet is cut off.
    pub(super) fn hear(&self) -> Option<Datagram> {
        let mut bytes = [0; LENGTH_MAX];
        // SAFETY: all bytes zero is a valid value of both.
        let (mut from, mut message): (libc::sockaddr_storage, libc::msghdr) = unsafe { std::mem::zeroed() };
        let mut control = [0u64; 16];
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = size_of_val(&from) as u32;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: the message points to live buffers with their true lengths.
        let length = unsafe { libc::recvmsg(self.fd(), &raw mut message, 0) };
        let length = usize::try_from(length).ok()?;
        // SAFETY: the kernel has filled the address in, and its family says which of the two it is.
        let source = unsafe {
            match i32::from(from.ss_family) {
                libc::AF_INET => {
                    IpAddr::from((*(&raw const from).cast::<libc::sockaddr_in>()).sin_addr.s_addr.to_ne_bytes())
                }
                _ => IpAddr::from((*(&raw const from).cast::<libc::sockaddr_in6>()).sin6_addr.s6_addr),
            }
        };
        let (mut interface, mut ttl) = (0, 0);
        // SAFETY: the kernel has filled the control buffer in; each message's kind says what its data is.
        unsafe {
            let mut head = libc::CMSG_FIRSTHDR(&raw const message);
            while !head.is_null() {
                let data = libc::CMSG_DATA(head);
                match ((*head).cmsg_level, (*head).cmsg_type) {
                    (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                        interface = data.cast::<libc::in_pktinfo>().read_unaligned().ipi_ifindex as u32;
                    }
                    (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                        interface = data.cast::<libc::in6_pktinfo>().read_unaligned().ipi6_ifindex;
                    }
                    (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                        ttl = data.cast::<libc::c_int>().read_unaligned() as u8;
                    }
                    _ => {}
                }
                head = libc::CMSG_NXTHDR(&raw const message, head);
            }
        }
        Some(Datagram { bytes, length, source, interface, ttl })
    }
}

/// Waits until somebody is heard, or for so long, in nanoseconds.
pub(super) fn wait(ears: &[Ear], time: u64) {
    let mut places: Vec<libc::pollfd> =
        ears.iter().map(|ear| libc::pollfd { fd: ear.fd(), events: libc::POLLIN, revents: 0 }).collect();
    let time = libc::timespec { tv_sec: (time / 1_000_000_000) as i64, tv_nsec: (time % 1_000_000_000) as i64 };
    // SAFETY: live places with their true count, and a time that outlives the call. A signal ends it early.
    unsafe { libc::ppoll(places.as_mut_ptr(), places.len() as u64, &raw const time, std::ptr::null()) };
}

/// Sends to one peer.
pub(super) struct Mouth {
    socket: Socket,
    peer: SocketAddr,
    /// The interface's number; 0 over several hops.
    pub(super) interface: u32,
}

impl Mouth {
    /// Opens one, from a source port that `choice` decides and that nobody else has.
    pub(super) fn open(peer: IpAddr, interface: Option<&str>, local: Option<IpAddr>, choice: u32) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address((peer, 0).into()), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        let mut index = 0;
        if let Some(name) = interface {
            index = interface_index(name).ok_or(io::ErrorKind::NotFound)?;
            socket.bind_device(Some(name.as_bytes()))?;
        }
        let port = if interface.is_some() { SINGLE_HOP } else { MULTIHOP };
        let (any, peer) = match peer {
            IpAddr::V4(v4) => {
                socket.set_ttl_v4(TTL.into())?;
                socket.set_tos_v4(TOS)?;
                (IpAddr::from(Ipv4Addr::UNSPECIFIED), SocketAddr::from((v4, port)))
            }
            IpAddr::V6(v6) => {
                socket.set_unicast_hops_v6(TTL.into())?;
                socket.set_tclass_v6(TOS)?;
                let scope = if v6.is_unicast_link_local() { index } else { 0 };
                (Ipv6Addr::UNSPECIFIED.into(), SocketAddrV6::new(v6, port, 0, scope).into())
            }
        };
        let count = u32::from(SOURCES.end() - SOURCES.start()) + 1;
        let mut ports = (0..64).map(|step| SOURCES.start() + (choice.wrapping_add(step) % count) as u16);
        let mut bound = Err(io::Error::from(io::ErrorKind::AddrInUse));
        while let (Err(error), Some(port)) = (&bound, ports.next())
            && error.kind() == io::ErrorKind::AddrInUse
        {
            bound = socket.bind(&SocketAddr::new(local.unwrap_or(any), port).into());
        }
        bound?;
        Ok(Self { socket, peer, interface: index })
    }

    pub(super) fn say(&self, bytes: &[u8]) -> io::Result<()> {
        self.socket.send_to(bytes, &self.peer.into()).map(drop)
    }
}

/// The kernel's number of an interface, if there is one of this name.
pub(super) fn interface_index(name: &str) -> Option<u32> {
    let name = std::ffi::CString::new(name).ok()?;
    // SAFETY: a terminated string that outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}
