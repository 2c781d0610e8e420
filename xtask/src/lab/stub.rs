//! Native XDP programs that treat all frames alike, or spoil some by chance.
//!
//! One that passes: a veth takes frames that the other end redirects or sends back only while it runs NAPI itself, for which
//! a native program is the dependable way. One that drops: what a dead host does with all that it gets. They are attached
//! over netlink, so that they stay for as long as the interface.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};

use super::bpf;

const XDP_DROP: u8 = 1;
const XDP_PASS: u8 = 2;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_FD: u16 = 1;
const IFLA_XDP_FLAGS: u16 = 3;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
/// In place of a program: none.
const DETACH: i32 = -1;
const NLA_F_NESTED: u16 = 1 << 15;
const NLMSG_HEADER: usize = 16;

/// The loaded program.
pub(super) struct Stub(OwnedFd);

impl Stub {
    /// One that passes every frame.
    pub(super) fn pass() -> Result<Self> {
        Self::load(XDP_PASS)
    }

    /// One that drops every frame.
    pub(super) fn drop() -> Result<Self> {
        Self::load(XDP_DROP)
    }

    /// One that drops this share of frames by chance, of a million.
    pub(super) fn lossy(per_million: u32) -> Result<Self> {
        bpf::load_lossy(threshold(per_million)).map(Self).context("cannot load the lab's XDP program that loses frames")
    }

    /// One that spoils a byte of this share of frames by chance, of a million.
    pub(super) fn corrupting(per_million: u32) -> Result<Self> {
        bpf::load_corrupting(threshold(per_million))
            .map(Self)
            .context("cannot load the lab's XDP program that spoils frames")
    }

    fn load(action: u8) -> Result<Self> {
        bpf::load(action).map(Self).context("cannot load the lab's XDP stub (bpf(BPF_PROG_LOAD))")
    }

    /// The program's descriptor.
    pub(super) fn program(&self) -> &OwnedFd {
        &self.0
    }

    /// Attaches to an interface of the network namespace that this thread is in.
    pub(super) fn attach(&self, interface: &str) -> Result<()> {
        set_link(interface, self.0.as_raw_fd())
            .with_context(|| format!("cannot attach the lab's XDP stub to {interface}"))
    }
}

/// What a random number of 32 bits is below in so many of a million cases.
fn threshold(per_million: u32) -> u32 {
    (u64::from(per_million) * u64::from(u32::MAX) / 1_000_000) as u32
}

/// Detaches what [`Stub::attach`] has attached to an interface of the network namespace that this thread is in.
pub(super) fn detach(interface: &str) -> Result<()> {
    set_link(interface, DETACH).with_context(|| format!("cannot detach the lab's XDP stub from {interface}"))
}

fn set_link(interface: &str, program: i32) -> Result<()> {
    let name = CString::new(interface)?;
    // SAFETY: a string that ends with NUL.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: integers in; the descriptor is checked and owned.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE);
        if fd < 0 {
            return Err(io::Error::last_os_error().into());
        }
        OwnedFd::from_raw_fd(fd)
    };
    let request = set_xdp(index, program);
    // SAFETY: pointer and length are of one vector.
    if unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) } < 0 {
        return Err(io::Error::last_os_error().into());
    }
    let mut answer = [0u8; 4096];
    // SAFETY: as above; the kernel answers a request that asks for it at once, so this cannot wait for long.
    let length = unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
    if length < 0 {
        return Err(io::Error::last_os_error().into());
    }
    let verdict = answer[..length as usize].get(NLMSG_HEADER..NLMSG_HEADER + 4).context("short netlink answer")?;
    match i32::from_ne_bytes(verdict.try_into()?) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(-errno).into()),
    }
}

/// RTM_SETLINK with the program's descriptor, acknowledged.
fn set_xdp(index: u32, program: i32) -> Vec<u8> {
    let mut nested = attribute(IFLA_XDP_FD, &program.to_ne_bytes());
    nested.extend(attribute(IFLA_XDP_FLAGS, &XDP_FLAGS_DRV_MODE.to_ne_bytes()));
    // struct ifinfomsg: family and padding, type, index, flags, change
    let mut body = [[0; 4], index.to_ne_bytes(), [0; 4], [0; 4]].concat();
    body.extend(attribute(IFLA_XDP | NLA_F_NESTED, &nested));

    let length = (NLMSG_HEADER + body.len()) as u32;
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let mut message = Vec::with_capacity(length as usize);
    message.extend(length.to_ne_bytes());
    message.extend(libc::RTM_SETLINK.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]); // sequence number and port: one request, one answer
    message.extend(body);
    message
}

/// A netlink attribute; every payload here is a multiple of four bytes, so none needs padding.
fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = (4 + payload.len()) as u16;
    [&length.to_ne_bytes(), &kind.to_ne_bytes(), payload].concat()
}
