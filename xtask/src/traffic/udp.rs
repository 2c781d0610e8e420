//! Datagrams: an echo that answers from the address it was asked at, and a client for it.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::client::any_port;
use super::server::NOTICE;

const DATAGRAM_BYTES_MAX: usize = 65536;
const CONTROL_BYTES: usize = 64;
/// Room for what comes in while the machine does other things: a frame of native XDP takes a page of it, so that the usual
/// 208 KiB would lose all but fifty datagrams, and none of them by what is tested.
const BUFFER_BYTES: libc::c_int = 4 << 20;

/// A server socket. A VIP is one of many addresses of its host, so the answer must name its source.
pub(super) struct Echo(UdpSocket);

impl Echo {
    pub(super) fn bind(port: u16) -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
        socket.set_read_timeout(Some(NOTICE))?;
        set(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
        // Without the privilege the usual room has to do.
        let _ = set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER_BYTES);
        Ok(Self(socket))
    }

    /// Answers each datagram with the name, a space, and the datagram.
    pub(super) fn serve(&self, name: &str, stop: &AtomicBool) {
        let prefix = format!("{name} ");
        let mut buffer = vec![0; prefix.len() + DATAGRAM_BYTES_MAX];
        buffer[..prefix.len()].copy_from_slice(prefix.as_bytes());
        while !stop.load(Ordering::Relaxed) {
            // Time-outs are how a stop is noticed; an answer that cannot be sent is its client's to miss.
            let _ = self.answer_one(&mut buffer, prefix.len());
        }
    }

    /// Receives behind the prefix and sends both back, with the control message that says which address was asked.
    fn answer_one(&self, buffer: &mut [u8], prefix: usize) -> io::Result<()> {
        // SAFETY: all bytes zero is a valid value of both.
        let (mut peer, mut message): (libc::sockaddr_in6, libc::msghdr) = unsafe { std::mem::zeroed() };
        let mut control = [0u64; CONTROL_BYTES / 8];
        let mut part = libc::iovec { iov_base: buffer[prefix..].as_mut_ptr().cast(), iov_len: buffer.len() - prefix };
        message.msg_name = (&raw mut peer).cast();
        message.msg_namelen = size_of_val(&peer) as u32;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = CONTROL_BYTES;
        // SAFETY: the message points to live buffers with their true lengths.
        let length = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, 0) };
        if length < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has filled in the control buffer; the one message that was asked for holds an in6_pktinfo.
        unsafe {
            let head = libc::CMSG_FIRSTHDR(&raw const message);
            if !head.is_null() && (*head).cmsg_type == libc::IPV6_PKTINFO {
                // The way back is the routes' to choose, not the interface's that the question came in by.
                (*libc::CMSG_DATA(head).cast::<libc::in6_pktinfo>()).ipi6_ifindex = 0;
            }
        }
        part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: prefix + length as usize };
        message.msg_iov = &raw mut part;
        // SAFETY: as above, with the part that is now to be sent.
        match unsafe { libc::sendmsg(self.0.as_raw_fd(), &raw const message, 0) } {
            sent if sent < 0 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

fn set(socket: &UdpSocket, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let size = size_of_val(&value) as u32;
    // SAFETY: the option's value outlives the call, and its size is given.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), size) } {
        failed if failed < 0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Sends a datagram and returns the name of the backend that echoed it, unchanged and from the address that was asked.
pub fn ask(server: SocketAddr, source: Option<IpAddr>, payload: &[u8], timeout: Duration) -> Result<String> {
    let socket = UdpSocket::bind((source.unwrap_or(any_port(server).ip()), 0)).context("binding a UDP socket")?;
    socket.set_read_timeout(Some(timeout))?;
    // A connected socket takes datagrams from this peer alone.
    socket.connect(server).with_context(|| format!("no way to {server}"))?;
    socket.send(payload).with_context(|| format!("sending to {server}"))?;
    let mut answer = vec![0; DATAGRAM_BYTES_MAX];
    let length = socket.recv(&mut answer).with_context(|| format!("no answer from {server} within {timeout:?}"))?;
    let answer = &answer[..length];
    let space = answer.iter().position(|&byte| byte == b' ').context("an answer that names no backend")?;
    ensure!(&answer[space + 1..] == payload, "{server} answered something else than it was sent");
    String::from_utf8(answer[..space].to_vec()).context("a backend's name that is not text")
}
