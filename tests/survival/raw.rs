//! Packets that no socket would send of its own accord, and frames that none would tell of.

use std::ffi::CString;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

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

/// Longest frame that is kept whole.
const FRAME_MAX: usize = 2048;
/// How often a tap looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// What passes an interface of this network namespace, from now on, with the moment at which it was read.
pub(crate) struct Tap {
    thread: JoinHandle<io::Result<()>>,
    stop: Arc<AtomicBool>,
    frames: Arc<Mutex<Vec<Frame>>>,
}

/// When a frame was read, and its bytes.
pub(crate) type Frame = (Instant, Vec<u8>);

impl Tap {
    /// Listens on `interface`, and keeps the frames that are wanted.
    pub(crate) fn open(interface: &str, wanted: impl Fn(&[u8]) -> bool + Send + 'static) -> Result<Self> {
        let socket = every_frame(interface)?;
        let (stop, frames) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (ends, kept) = (stop.clone(), frames.clone());
        let listen = move || {
            let mut frame = [0; FRAME_MAX];
            while !ends.load(Ordering::Relaxed) {
                // SAFETY: as many bytes as are told; longer frames are cut.
                let len = unsafe { libc::recv(socket.as_raw_fd(), frame.as_mut_ptr().cast(), FRAME_MAX, 0) };
                match usize::try_from(len) {
                    Ok(len) if wanted(&frame[..len]) => {
                        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                        kept.push((Instant::now(), frame[..len].to_vec()));
                    }
                    Ok(_) => {}
                    Err(_) => match io::Error::last_os_error() {
                        error if error.kind() == io::ErrorKind::WouldBlock => {}
                        error => return Err(error),
                    },
                }
            }
            Ok(())
        };
        Ok(Self { thread: thread::Builder::new().spawn(listen)?, stop, frames })
    }

    /// What was kept so far.
    pub(crate) fn frames(&self) -> Vec<Frame> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Listens no longer.
    pub(crate) fn close(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.thread.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))?)
    }
}

/// A socket for all frames of an interface that waits for each no longer than [`LOOK`].
fn every_frame(interface: &str) -> io::Result<OwnedFd> {
    let checked = |result: libc::c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
    let name = CString::new(interface)?;
    let timeout = libc::timeval { tv_sec: 0, tv_usec: LOOK.as_micros() as libc::suseconds_t };
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: integers and a string that ends with NUL in; the descriptor is checked and owned; all bytes zero is a valid
    // address; address and time outlive the calls, and their sizes are given.
    unsafe {
        let index = libc::if_nametoindex(name.as_ptr());
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        let socket = OwnedFd::from_raw_fd(checked(libc::socket(libc::AF_PACKET, kind, i32::from(protocol)))?);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index as i32;
        let size = size_of_val(&address) as u32;
        checked(libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size))?;
        let (value, size) = ((&raw const timeout).cast(), size_of_val(&timeout) as u32);
        checked(libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVTIMEO, value, size))?;
        Ok(socket)
    }
}
