//! Probes: how the far ends of paths are asked where nothing of ours runs there.
//!
//! [`Machine`] decides and knows neither socket nor clock; [`Prober`] runs the tries on a thread of its own, each behind a
//! circuit breaker; the other files each know how to ask one kind of question. Whatever an answer is, it is bounded in bytes
//! and in time, and a try that fails says why in a line.
//!
//! A probe goes to the address at which a path ends: the tunnel's far end, or the next hop where there is no tunnel. Its
//! sockets are bound to the path's interface, so that it leaves by it, whatever routes there are; with a VLAN, which no
//! socket can be bound to, the kernel's routes decide. It never asks the VIP: this node takes that for its own.

mod command;
mod connect;
mod datagram;
mod http;
mod icmp;
mod machine;
mod neighbour;
mod prober;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

pub use machine::{Machine, Rules};
pub use prober::{ProbeStatus, Probed, Prober};

use crate::config::{Probe, Question};
use connect::{Deadline, Failure};

/// What is asked, where, and how often.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The question.
    pub probe: Probe,
    /// Where the path ends.
    pub address: IpAddr,
    /// Who is asked for by ARP or neighbour discovery.
    pub next_hop: IpAddr,
    /// The interface that the path leaves by.
    pub interface: String,
    /// Whether packets are tagged there.
    pub is_tagged: bool,
    /// The interface's MAC address.
    pub mac: [u8; 6],
}

/// Asks once.
async fn ask(target: &Target) -> Result<(), Failure> {
    let deadline = Deadline::after(target.probe.timeout);
    match &target.probe.question {
        Question::Tcp { port } => connect::tcp(target, *port, deadline).await.map(drop),
        Question::Http { port, path, host, status, body } => {
            let stream = connect::tcp(target, *port, deadline).await?;
            let request = http::Request { path, host: host.as_deref(), status, body: body.as_deref() };
            http::ask(stream, target.address, *port, &request, deadline).await
        }
        Question::Https { port, path, host, status, body, ca } => {
            let stream = connect::tcp(target, *port, deadline).await?;
            let stream = connect::tls(stream, target.address, host.as_deref(), ca.as_deref(), deadline).await?;
            let request = http::Request { path, host: host.as_deref(), status, body: body.as_deref() };
            http::ask(stream, target.address, *port, &request, deadline).await
        }
        Question::Grpc { port, service } => {
            let stream = connect::tcp(target, *port, deadline).await?;
            http::grpc(stream, target.address, *port, service, deadline).await
        }
        Question::Icmp => icmp::ask(target, deadline).await,
        Question::Udp { port, send, receive } => datagram::bytes(target, *port, &send.0, &receive.0, deadline).await,
        Question::Dns { port, name } => datagram::dns(target, *port, name, deadline).await,
        Question::Sip { port, status } => datagram::sip(target, *port, status, deadline).await,
        Question::Neighbour => neighbour::ask(target, deadline).await,
        Question::Command { command } => command::ask(target, command, deadline).await,
    }
}
