//! Watches the fabric: which way the first packet of each TCP flow really went.
//!
//! A view from outside. It reads frames as the bridge or router hands them to the hosts, and knows nothing of the
//! redirectors' own accounts, which can be held against it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CStr;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Lab, Role};

/// Client and server of a TCP flow.
pub type Flow = (SocketAddr, SocketAddr);

/// The hosts that a flow's first packet was handed to, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Journey {
    /// Nodes, then a backend.
    pub hops: Vec<String>,
    /// Whether it came to the last hop in a tunnel.
    pub tunnelled: bool,
}

static BUFFER_BYTES: libc::c_int = 32 << 20;
// Enough of a frame for any headers that are looked at.
const SNAP_BYTES: usize = 256;
const GUE_PORT: u16 = 6080;
/// Where nodes take each other's packets, and the bytes before the packet within.
const HOP: (u16, usize) = (4199, 32);
const LINGER: Duration = Duration::from_secs(1);
static TIMEOUT: libc::timeval = libc::timeval { tv_sec: 0, tv_usec: 100_000 };

/// The MAC addresses and names of hosts, by the fabric's ends of their links.
type Ends = HashMap<String, ([u8; 6], String)>;

/// A watch that is being kept.
#[derive(Debug)]
pub struct Witness {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<BTreeMap<Flow, Journey>>>,
}

impl Witness {
    pub(super) fn start(lab: &Lab) -> Result<Self> {
        let topology = lab.topology();
        let mut macs: Ends = HashMap::new();
        for role in topology.hosts() {
            let name = role.name(topology.fabric);
            for between in topology.fabrics_of(role) {
                macs.insert(role.end(topology.fabric, *between), (role.mac_on(*between), name.clone()));
            }
            macs.insert(name.clone(), (role.mac_bytes(), name));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let thread = lab.role(Role::Fabric).run(|| -> Result<_> {
            let socket = open().context("cannot watch the fabric")?;
            let stop = stop.clone();
            Ok(thread::spawn(move || watch(&socket, &macs, &stop)))
        })??;
        Ok(Self { stop, thread })
    }

    /// Ends the watch. Frames that were missed are an error: the account would have gaps.
    pub fn finish(self) -> Result<BTreeMap<Flow, Journey>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))
    }
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: integers in, the descriptor is checked and owned; then options whose values outlive the calls.
    unsafe {
        let every = i32::from((libc::ETH_P_ALL as u16).to_be());
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, every);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(fd);
        let size = size_of_val(&BUFFER_BYTES) as u32;
        let mut set =
            libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, (&raw const BUFFER_BYTES).cast(), size);
        let size = size_of_val(&TIMEOUT) as u32;
        set |= libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const TIMEOUT).cast(), size);
        if set < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
    }
}

fn watch(socket: &OwnedFd, macs: &Ends, stop: &AtomicBool) -> Result<BTreeMap<Flow, Journey>> {
    let mut journeys: BTreeMap<Flow, Journey> = BTreeMap::new();
    let mut buffer = [0; SNAP_BYTES];
    // What is in the buffer when the watch ends still counts; so it ends with the first time-out after the word to stop,
    // or a while later where traffic goes on.
    let mut end = None;
    while end.is_none_or(|end| Instant::now() < end) {
        if stop.load(Ordering::Relaxed) && end.is_none() {
            end = Some(Instant::now() + LINGER);
        }
        let (frame, end) = match next_frame(socket, &mut buffer) {
            Ok(Some(seen)) => seen,
            Ok(None) => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && end.is_some() => break,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error).context("watching the fabric"),
        };
        // A frame that a bridge floods is no hop of any but the host that it is addressed to.
        let Some((_, host)) = macs.get(&end).filter(|(mac, _)| frame.starts_with(mac)) else { continue };
        let Some((flow, tunnelled)) = opening(frame) else { continue };
        let journey = journeys.entry(flow).or_default();
        if journey.hops.last() != Some(host) {
            journey.hops.push(host.clone());
        }
        journey.tunnelled = tunnelled;
    }
    let missed = missed(socket)?;
    ensure!(missed == 0, "{missed} frames passed unseen: the machine is too busy to watch");
    Ok(journeys)
}

/// The next frame, and the host that the fabric sends it to; none for a frame that it receives.
fn next_frame<'a>(socket: &OwnedFd, buffer: &'a mut [u8]) -> io::Result<Option<(&'a [u8], String)>> {
    let mut name = [0_u8; libc::IFNAMSIZ];
    // SAFETY: all bytes zero is a valid address; pointers and lengths are of live buffers; the kernel ends names with NUL.
    let length = unsafe {
        let mut from: libc::sockaddr_ll = std::mem::zeroed();
        let mut size = size_of_val(&from) as u32;
        let (data, space) = (buffer.as_mut_ptr().cast(), buffer.len());
        let length = libc::recvfrom(socket.as_raw_fd(), data, space, 0, (&raw mut from).cast(), &raw mut size);
        if length < 0 {
            return Err(io::Error::last_os_error());
        }
        if from.sll_pkttype != libc::PACKET_OUTGOING
            || libc::if_indextoname(from.sll_ifindex as u32, name.as_mut_ptr().cast()).is_null()
        {
            return Ok(None);
        }
        length as usize
    };
    let host = CStr::from_bytes_until_nul(&name).ok().and_then(|name| name.to_str().ok());
    Ok(host.map(|host| (&buffer[..length], host.to_owned())))
}

/// How many frames did not fit the buffer.
fn missed(socket: &OwnedFd) -> io::Result<u32> {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut size = size_of_val(&statistics) as u32;
    // SAFETY: the value and its length are live.
    let got = unsafe {
        let value = (&raw mut statistics).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS, value, &raw mut size)
    };
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(statistics.tp_drops) }
}

/// The flow that this frame opens, if it does, and whether it is in a tunnel.
fn opening(frame: &[u8]) -> Option<(Flow, bool)> {
    let mut at = 12;
    let mut ethertype = word(frame, at)?;
    while ethertype == 0x8100 || ethertype == 0x88a8 {
        at += 4;
        ethertype = word(frame, at)?;
    }
    let packet = frame.get(at + 2..)?;
    match ethertype {
        0x0800 => ip(packet, 4, false),
        0x86dd => ip(packet, 41, false),
        _ => None,
    }
}

/// `kind` is the protocol number that announces the packet inside another: 4 for IPv4, 41 for IPv6.
fn ip(packet: &[u8], kind: u8, tunnelled: bool) -> Option<(Flow, bool)> {
    let (protocol, client, server, payload) = if kind == 4 {
        let address = |at| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?).into());
        (*packet.get(9)?, address(12)?, address(16)?, packet.get(usize::from(packet[0] & 15) * 4..)?)
    } else {
        let address = |at| Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?).into());
        (*packet.get(6)?, address(8)?, address(24)?, packet.get(40..)?)
    };
    match protocol {
        6 => {
            // SYN without ACK
            let opens = payload.get(13)? & 0x12 == 0x02;
            let flow = (SocketAddr::new(client, word(payload, 0)?), SocketAddr::new(server, word(payload, 2)?));
            opens.then_some((flow, tunnelled))
        }
        4 | 41 if !tunnelled => ip(payload, protocol, true),
        17 if !tunnelled && word(payload, 2)? == HOP.0 => {
            let inner = payload.get(HOP.1..)?;
            ip(inner, if inner.first()? >> 4 == 4 { 4 } else { 41 }, false)
        }
        17 if !tunnelled && word(payload, 2)? == GUE_PORT => ip(payload.get(12..)?, *payload.get(9)?, true),
        _ => None,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}
