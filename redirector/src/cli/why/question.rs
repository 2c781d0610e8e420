//! What is asked about, and a packet of it.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use anyhow::{Result, bail};
use clap::ValueEnum;
use redirector_ebpf::packet::headers::{
    Ethernet, Icmp, Ipv4, Ipv6, Mac, Ports, Tcp, Udp, Wire, ethertype, icmp, icmpv6,
};
use redirector_ebpf::packet::{Frame as _, Tuple, checksum, protocol, tcp};

use crate::dataplane::address::address;
use crate::dataplane::memory::MemoryFrame;

/// Protocols that flows have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Protocol {
    Tcp,
    Udp,
    /// ICMP of the VIP's family.
    Icmp,
}

/// One end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    address: IpAddr,
    port: Option<u16>,
}

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(both) = text.parse::<SocketAddr>() {
            return Ok(Self { address: both.ip(), port: Some(both.port()) });
        }
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        match bare.parse() {
            Ok(address) => Ok(Self { address, port: None }),
            Err(_) => Err("write address and port, such as `10.0.0.1:1234` or `[2001:db8::1]:1234`".to_owned()),
        }
    }
}

/// A flow that is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question {
    /// The client.
    pub(super) source: SocketAddr,
    /// The VIP.
    pub(super) destination: SocketAddr,
    /// IP protocol number.
    pub(super) protocol: u8,
    /// Whether it is asked as a new connection.
    pub(super) opens: bool,
    /// What its packets are marked with.
    pub(super) dscp: u8,
}

impl Question {
    pub(super) fn new(kind: Protocol, client: End, vip: End, syn: bool) -> Result<Self> {
        let v6 = client.address.is_ipv6();
        if v6 != vip.address.is_ipv6() {
            bail!("{} and {} are of different families", client.address, vip.address);
        }
        if syn && kind != Protocol::Tcp {
            bail!("`--syn` asks about TCP; other protocols have no packet that opens a flow");
        }
        let port = |end: End| match (end.port, kind) {
            (Some(port), _) => Ok(port),
            (None, Protocol::Icmp) => Ok(0),
            (None, _) if end.address.is_ipv6() => bail!("{} lacks its port: write `[{0}]:PORT`", end.address),
            (None, _) => bail!("{} lacks its port: write `{0}:PORT`", end.address),
        };
        let service = if kind == Protocol::Icmp { 0 } else { port(vip)? };
        Ok(Self {
            source: SocketAddr::new(client.address, port(client)?),
            destination: SocketAddr::new(vip.address, service),
            protocol: match kind {
                Protocol::Tcp => protocol::TCP,
                Protocol::Udp => protocol::UDP,
                Protocol::Icmp if v6 => protocol::ICMPV6,
                Protocol::Icmp => protocol::ICMP,
            },
            opens: syn,
            dscp: 0,
        })
    }

    /// The same, of packets with this mark.
    pub(super) fn marked(self, dscp: u8) -> Self {
        Self { dscp, ..self }
    }

    pub(super) fn v6(&self) -> bool {
        self.source.is_ipv6()
    }

    /// The flow as the tables know it.
    pub(super) fn tuple(&self) -> Tuple {
        Tuple {
            src: address(self.source.ip()),
            dst: address(self.destination.ip()),
            sport: self.source.port().to_be(),
            dport: self.destination.port().to_be(),
            protocol: self.protocol,
        }
    }

    /// A packet of the flow, to this MAC address, without payload. Transport checksums stay zero: no station reads them.
    pub(super) fn frame(&self, mac: u64) -> MemoryFrame {
        let tuple = self.tuple();
        let (l3_len, kind) = if self.v6() { (40, ethertype::IPV6) } else { (20, ethertype::IPV4) };
        let l4_len: usize = if self.protocol == protocol::TCP { 20 } else { 8 };
        let mut frame = MemoryFrame::new(&vec![0; 14 + l3_len + l4_len]);
        let src = Mac::from_word(0x02);
        put(&mut frame, 0, Ethernet { dst: Mac::from_word(mac), src, ethertype: kind.to_be() });
        if self.v6() {
            let header = Ipv6 {
                version_class_label: (6u32 << 28 | u32::from(self.dscp) << 22).to_be(),
                payload_len: (l4_len as u16).to_be(),
                next: self.protocol,
                hop_limit: 64,
                src: tuple.src.words,
                dst: tuple.dst.words,
            };
            put(&mut frame, 14, header);
        } else {
            let mut header = Ipv4 {
                version_ihl: 0x45,
                tos: self.dscp << 2,
                total_len: ((l3_len + l4_len) as u16).to_be(),
                id: 0,
                fragment: 0,
                ttl: 64,
                protocol: self.protocol,
                checksum: 0,
                src: tuple.src.words[0],
                dst: tuple.dst.words[0],
            };
            header.checksum = checksum::ipv4(&header);
            put(&mut frame, 14, header);
        }
        let ports = Ports { src: tuple.sport, dst: tuple.dport };
        let at = 14 + l3_len;
        match self.protocol {
            protocol::TCP => {
                let flags = if self.opens { tcp::SYN } else { tcp::ACK };
                let (seq, ack, window, checksum, urgent) = (0, 0, u16::MAX, 0, 0);
                put(&mut frame, at, Tcp { ports, seq, ack, data_offset: 5 << 4, flags, window, checksum, urgent });
            }
            protocol::UDP => put(&mut frame, at, Udp { ports, len: 8u16.to_be(), checksum: 0 }),
            _ => {
                let kind = if self.v6() { icmpv6::ECHO } else { icmp::ECHO };
                put(&mut frame, at, Icmp { kind, code: 0, checksum: 0, id: tuple.sport, sequence: 0 });
            }
        }
        frame
    }
}

/// Writes a header into a frame that was made long enough for it.
fn put<T: Wire>(frame: &mut MemoryFrame, at: usize, header: T) {
    let written = frame.write(at, header);
    debug_assert!(written.is_some());
}
