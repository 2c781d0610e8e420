//! Echo requests (RFC 792, RFC 4443), by a raw socket: groups that may open the kernel's own ping sockets are empty by default.

use std::io::{ErrorKind, Read as _};
use std::net::SocketAddr;

use redirector_ebpf::packet::headers::{icmp, icmpv6};
use socket2::{Protocol, Type};
use tokio::io::unix::AsyncFd;

use super::Target;
use super::connect::{Deadline, Failure, socket};

/// Bytes of an answer that are looked at; the IPv4 header is there too.
const ANSWER_MAX: usize = 128;
const HEADER: usize = 8;

/// Asks for an echo of random bytes, and awaits it.
pub(super) async fn ask(target: &Target, deadline: Deadline) -> Result<(), Failure> {
    let v4 = target.address.is_ipv4();
    let protocol = if v4 { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
    let socket = socket(target, Type::RAW, Some(protocol))?;
    // SAFETY: the socket is kept open within, and nothing takes it out or replaces its file.
    let socket = unsafe { AsyncFd::register(socket) }.map_err(Failure::new)?;
    let mut nonce = [0; 12];
    getrandom::fill(&mut nonce).map_err(Failure::new)?;
    let request = request(v4, &nonce);
    let to = SocketAddr::new(target.address, 0);
    socket
        .get_ref()
        .connect(&to.into())
        .map_err(|error| Failure::new(format!("no way to {}: {error}", target.address)))?;
    socket.get_ref().send(&request).map_err(|error| Failure::new(format!("sending: {error}")))?;
    let mut answer = [0; ANSWER_MAX];
    loop {
        let mut ready = deadline.within("an echo", socket.readable()).await?.map_err(Failure::new)?;
        match ready.get_inner().read(&mut answer) {
            Ok(len) if is_echo(v4, &nonce, &answer[..len]) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => ready.clear_ready(),
            Err(error) => return Err(Failure::new(format!("no echo: {error}"))),
        }
    }
}

/// A request of these bytes: four of them are its number, the others its data. IPv6's checksum is the kernel's to make.
fn request(v4: bool, nonce: &[u8; 12]) -> Vec<u8> {
    let mut request = vec![if v4 { icmp::ECHO } else { icmpv6::ECHO }, 0, 0, 0];
    request.extend(nonce);
    let sum = request.chunks(2).fold(0u32, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    request[2..4].copy_from_slice(&sum.to_be_bytes());
    request
}

fn is_echo(v4: bool, nonce: &[u8; 12], answer: &[u8]) -> bool {
    let skipped = if v4 { answer.first().map_or(0, |first| usize::from(first & 0xf) * 4) } else { 0 };
    let kind = if v4 { icmp::ECHO_REPLY } else { icmpv6::ECHO_REPLY };
    let Some(message) = answer.get(skipped..) else { return false };
    message.len() >= HEADER && message[0] == kind && message[4..] == *nonce
}
