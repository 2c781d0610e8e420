//! Who uses the cluster: clients with connections through the VIP, and an operator who changes the pool.

use std::net::SocketAddr;

use redirector_ebpf::hash::FlowHash;
use redirector_ebpf::packet::Tuple;
use suite::node;
use suite::packet::{self, Packet};
use suite::random::Random;

use super::{MS, SECOND, VIP};

/// Connections at a time.
pub(crate) const CONNECTIONS: usize = 24;

/// A client's connection.
pub(crate) struct Connection {
    /// The client.
    pub client: SocketAddr,
    /// The service's address.
    pub service: SocketAddr,
    /// The backend that it was served by first.
    pub backend: Option<String>,
    /// Packets served.
    pub served: u64,
    /// When the next packet is sent.
    pub next: u64,
    /// When it ends.
    pub ends: u64,
    /// Whether it must stay on its backend.
    pub guaranteed: bool,
    /// A node that served it by another backend, since none of its slot's owners could be reached.
    pub strayed: Option<u8>,
}

impl Connection {
    /// A new one, of a client that was never there before.
    pub(crate) fn new(number: u64, now: u64, random: &mut Random) -> Self {
        let port = 1_024 + (number % 60_000) as u16;
        let client = format!("192.0.2.{}:{port}", 1 + number / 60_000 % 250).parse().expect("an address");
        let service = format!("{VIP}:{}", if random.once_in(3) { 80 } else { 443 }).parse().expect("an address");
        let ends = now + SECOND + random.number() % (30 * SECOND);
        Self {
            client,
            service,
            backend: None,
            served: 0,
            next: now + random.number() % (500 * MS),
            ends,
            guaranteed: false,
            strayed: None,
        }
    }

    /// The next packet.
    pub(crate) fn packet(&self) -> Packet {
        let packet = packet::tcp_between(self.client, self.service);
        if self.served == 0 { packet.syn() } else { packet }
    }

    /// The tuple, as tables have it.
    pub(crate) fn tuple(&self) -> Tuple {
        node::tuple((self.client.ip(), self.client.port()), (self.service.ip(), self.service.port()), 6)
    }

    /// Its slot, of `mask + 1`.
    pub(crate) fn slot(&self, key: &redirector_ebpf::hash::HashKey, mask: u32) -> u32 {
        FlowHash::of(key, &self.tuple(), false).slot(mask)
    }

    /// How long until the packet after the next.
    pub(crate) fn wait(&self, random: &mut Random) -> u64 {
        if self.served <= 1 { 2 * MS + random.number() % (20 * MS) } else { 200 * MS + random.number() % (700 * MS) }
    }
}

/// The configuration of a node, with the pool as the operator's change of this number has it.
pub(crate) fn configuration(me: u8, beats: &str, down_after: &str, change: u64) -> String {
    let mut text = format!(
        "# change {change}\n[node]\nid = {me}\n[cluster]\nid = 7\nkey = \"000102030405060708090a0b0c0d0e0f\"\n\
         slots = 256\nbeats = \"{beats}\"\ndown_after = \"{down_after}\"\n\
         [limits]\nicmp_per_second = 0\n[tables]\nflows4 = 1024\nflows6 = 1024\n\
         [timeouts]\ntcp_established = \"20s\"\n\
         [[interface]]\nname = \"eth0\"\n[[vip]]\naddress = \"{VIP}\"\ningress = \"arp\"\n\
         [[pool]]\nname = \"pool\"\nmode = \"l2\"\nsettle = \"1s\"\n"
    );
    for (name, port, affinity) in [("shared", 80, "shared"), ("owned", 443, "owned")] {
        text += &format!(
            "[[service]]\nname = \"{name}\"\nvip = \"{VIP}\"\nprotocol = \"tcp\"\nports = {port}\n\
             affinity = \"{affinity}\"\npool = \"pool\"\n"
        );
    }
    for (place, backend) in ["a", "b", "c"].iter().enumerate() {
        // Each change takes one backend out of use for new flows, and the last one back in.
        let state = if change % 4 == place as u64 + 1 { "state = \"draining\"\n" } else { "" };
        text += &format!(
            "[[pool.backend]]\nname = \"{backend}\"\naddress = \"10.0.0.{}\"\n{state}\
             [[pool.backend.path]]\ninterface = \"eth0\"\n",
            101 + place
        );
    }
    for id in 1..=5 {
        text += &format!("[[member]]\nid = {id}\naddress = \"10.0.0.{id}\"\ninterface = \"eth0\"\n");
    }
    text
}
