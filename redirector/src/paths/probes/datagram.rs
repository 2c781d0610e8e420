//! Questions in one datagram: bytes as configured, DNS (RFC 1035) and SIP `OPTIONS` (RFC 3261).

use std::net::SocketAddr;

use socket2::{Protocol, Type};
use tokio::net::UdpSocket;

use super::Target;
use super::connect::{Deadline, Failure, socket};
use crate::config::Statuses;

/// Bytes of an answer that are looked at.
const ANSWER_MAX: usize = 2048;

/// Sends a datagram and takes answers until one is taken or the time is over. An answer that is not for this question is
/// passed over; why it was is told if nothing better comes.
async fn exchange(
    target: &Target,
    port: u16,
    deadline: Deadline,
    question: impl FnOnce(SocketAddr) -> Vec<u8>,
    check: impl Fn(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let to = SocketAddr::new(target.address, port);
    let socket = UdpSocket::from_std(socket(target, Type::DGRAM, Some(Protocol::UDP))?.into()).map_err(Failure::new)?;
    let failed = |what: &'static str| move |error: std::io::Error| Failure::new(format!("{what} {to}: {error}"));
    socket.connect(to).await.map_err(failed("no way to"))?;
    let own = socket.local_addr().map_err(Failure::new)?;
    socket.send(&question(own)).await.map_err(failed("sending to"))?;
    let mut last = None;
    let mut answer = [0; ANSWER_MAX];
    loop {
        let received = deadline.within("an answer", socket.recv(&mut answer)).await;
        let len = match (received, last) {
            (Err(_), Some(last)) => return Err(last),
            (received, _) => received?.map_err(failed("no answer from"))?,
        };
        match check(&answer[..len]) {
            Ok(()) => return Ok(()),
            Err(why) => last = Some(why),
        }
    }
}

/// Bytes for bytes.
pub(super) async fn bytes(
    target: &Target,
    port: u16,
    send: &[u8],
    receive: &[u8],
    deadline: Deadline,
) -> Result<(), Failure> {
    let check = |answer: &[u8]| match answer.starts_with(receive) {
        true => Ok(()),
        false => Err(Failure::new(format!("an answer of {} bytes does not begin as it should", answer.len()))),
    };
    exchange(target, port, deadline, |_| send.to_vec(), check).await
}

fn random() -> Result<u64, Failure> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(Failure::new)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Asks for a name's address.
pub(super) async fn dns(target: &Target, port: u16, name: &str, deadline: Deadline) -> Result<(), Failure> {
    let id = random()? as u16;
    exchange(target, port, deadline, |_| query(id, name), |answer| reply(id, answer)).await
}

/// A query for an address, recursion desired.
fn query(id: u16, name: &str) -> Vec<u8> {
    let mut query = id.to_be_bytes().to_vec();
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}

/// Whether this is an answer to the query of that number that holds a record.
fn reply(id: u16, answer: &[u8]) -> Result<(), Failure> {
    let Some((head, _)) = answer.split_first_chunk::<12>() else {
        return Err(Failure::new(format!("the answer is truncated: {} bytes", answer.len())));
    };
    if head[..2] != id.to_be_bytes() || head[2] & 0x80 == 0 {
        return Err(Failure::new("the answer is to another question"));
    }
    match (head[3] & 0xf, u16::from_be_bytes([head[6], head[7]])) {
        (0, 0) => Err(Failure::new("the answer holds no address")),
        (0, _) => Ok(()),
        (1, _) => Err(Failure::new("it says FORMERR")),
        (2, _) => Err(Failure::new("it says SERVFAIL")),
        (3, _) => Err(Failure::new("it says NXDOMAIN")),
        (5, _) => Err(Failure::new("it says REFUSED")),
        (code, _) => Err(Failure::new(format!("it says error {code}"))),
    }
}

/// Asks a SIP server what it can do.
pub(super) async fn sip(target: &Target, port: u16, statuses: &Statuses, deadline: Deadline) -> Result<(), Failure> {
    let call = format!("{:016x}", random()?);
    let to = SocketAddr::new(target.address, port);
    exchange(target, port, deadline, |own| options(own, to, &call), |answer| response(answer, &call, statuses)).await
}

fn options(own: SocketAddr, to: SocketAddr, call: &str) -> Vec<u8> {
    let lines = [
        format!("OPTIONS sip:{to} SIP/2.0"),
        format!("Via: SIP/2.0/UDP {own};branch=z9hG4bK{call};rport"),
        "Max-Forwards: 70".to_owned(),
        format!("From: <sip:probe@{own}>;tag={call}"),
        format!("To: <sip:{to}>"),
        format!("Call-ID: {call}"),
        "CSeq: 1 OPTIONS".to_owned(),
        format!("Contact: <sip:probe@{own}>"),
        "Accept: application/sdp".to_owned(),
        "Content-Length: 0".to_owned(),
    ];
    format!("{}\r\n\r\n", lines.join("\r\n")).into_bytes()
}

fn response(answer: &[u8], call: &str, statuses: &Statuses) -> Result<(), Failure> {
    let text = String::from_utf8_lossy(answer);
    let status = text.strip_prefix("SIP/2.0 ").and_then(|rest| rest.get(..3)?.parse::<u16>().ok());
    let Some(status) = status else { return Err(Failure::new("the answer is not SIP/2.0")) };
    if !text.contains(call) {
        return Err(Failure::new("the answer is to another call"));
    }
    match status {
        100..=199 => Err(Failure::new(format!("no final answer followed status {status}"))),
        _ if statuses.contains(status) => Ok(()),
        _ => Err(Failure::new(format!("status {status} is not {statuses}"))),
    }
}
