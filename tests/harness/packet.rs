//! Packets to send, built by etherparse from what a test says of them.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpAuthHeader,
    IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, SingleVlanHeader, TcpHeader,
    UdpHeader, VlanId,
};

/// A MAC address.
pub type Mac = [u8; 6];

/// What stands in the IP packet.
#[derive(Clone, Debug)]
pub enum Layer {
    /// A TCP segment.
    Tcp(TcpHeader),
    /// A UDP datagram from this port to that.
    Udp(u16, u16),
    /// An ICMP message.
    Icmp4(Icmpv4Type),
    /// An ICMPv6 message.
    Icmp6(Icmpv6Type),
    /// Anything else: a protocol number, and nothing before the payload.
    Raw(u8),
}

/// An IPv6 extension header.
#[derive(Clone, Copy, Debug)]
pub enum Extension {
    /// Hop-by-hop options.
    HopByHop,
    /// Destination options, so many units of eight bytes longer than the shortest.
    Destination(u8),
    /// A routing header with so many segments left.
    Routing(u8),
    /// An authentication header.
    Authentication,
}

/// A packet in the making.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Destination MAC address.
    pub to: Mac,
    /// Source MAC address.
    pub from: Mac,
    /// VLAN ids, the outer first.
    pub tags: Vec<u16>,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Type of service or traffic class.
    pub tos: u8,
    /// IPv4 options; a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers.
    pub extensions: Vec<Extension>,
    /// What stands in it.
    pub layer: Layer,
    /// What stands behind the transport header.
    pub payload: Vec<u8>,
}

/// The MAC address of the router that packets come from.
pub const ROUTER: Mac = [2, 0xee, 0, 0, 0, 1];

fn packet(src: IpAddr, dst: IpAddr, layer: Layer) -> Packet {
    Packet {
        to: super::node::mac(1, 0),
        from: ROUTER,
        tags: Vec::new(),
        src,
        dst,
        ttl: 63,
        tos: 0,
        options: Vec::new(),
        extensions: Vec::new(),
        layer,
        payload: b"what is carried".to_vec(),
    }
}

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// A TCP segment with ACK set.
pub fn tcp(src: &str, dst: &str) -> Packet {
    tcp_between(socket(src), socket(dst))
}

/// A TCP segment with ACK set.
pub fn tcp_between(src: SocketAddr, dst: SocketAddr) -> Packet {
    let mut header = TcpHeader::new(src.port(), dst.port(), 1_000, 8_192);
    header.ack = true;
    header.acknowledgment_number = 2_000;
    packet(src.ip(), dst.ip(), Layer::Tcp(header))
}

/// A UDP datagram.
pub fn udp(src: &str, dst: &str) -> Packet {
    udp_between(socket(src), socket(dst))
}

/// A UDP datagram.
pub fn udp_between(src: SocketAddr, dst: SocketAddr) -> Packet {
    packet(src.ip(), dst.ip(), Layer::Udp(src.port(), dst.port()))
}

/// An ICMP echo request.
pub fn echo(src: &str, dst: &str, id: u16) -> Packet {
    let (src, dst): (IpAddr, IpAddr) = (src.parse().expect("an address"), dst.parse().expect("an address"));
    let header = IcmpEchoHeader { id, seq: 1 };
    let layer = match dst {
        IpAddr::V4(_) => Layer::Icmp4(Icmpv4Type::EchoRequest(header)),
        IpAddr::V6(_) => Layer::Icmp6(Icmpv6Type::EchoRequest(header)),
    };
    packet(src, dst, layer)
}

/// A packet of any protocol.
pub fn raw(src: IpAddr, dst: IpAddr, protocol: u8, payload: Vec<u8>) -> Packet {
    Packet { payload, ..packet(src, dst, Layer::Raw(protocol)) }
}

/// The ICMP error "too big" that the router at `from` sends to the source of `about`, whose beginning it quotes.
pub fn too_big(from: &str, about: &Packet) -> Packet {
    use etherparse::icmpv4::DestUnreachableHeader;
    let layer = match about.src {
        IpAddr::V4(_) => Layer::Icmp4(Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
            next_hop_mtu: 1_400,
        })),
        IpAddr::V6(_) => Layer::Icmp6(Icmpv6Type::PacketTooBig { mtu: 1_400 }),
    };
    let mut quote = about.ip_bytes();
    quote.truncate(if about.src.is_ipv4() { 20 + about.options.len() + 8 } else { 40 + 8 });
    Packet { payload: quote, ..packet(from.parse().expect("an address"), about.src, layer) }
}

impl Packet {
    /// To this MAC address.
    pub fn to(self, to: Mac) -> Self {
        Self { to, ..self }
    }

    /// From this MAC address.
    pub fn from(self, from: Mac) -> Self {
        Self { from, ..self }
    }

    /// With VLAN tags.
    pub fn tags(self, tags: &[u16]) -> Self {
        Self { tags: tags.to_vec(), ..self }
    }

    /// With this TTL.
    pub fn ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }

    /// With this type of service.
    pub fn tos(self, tos: u8) -> Self {
        Self { tos, ..self }
    }

    /// With a payload of so many bytes.
    pub fn sized(self, len: usize) -> Self {
        Self { payload: (0..len).map(|at| at as u8).collect(), ..self }
    }

    /// With so many bytes of IPv4 options.
    pub fn options(self, len: usize) -> Self {
        // No operation (RFC 791).
        Self { options: vec![1; len], ..self }
    }

    /// With these extension headers.
    pub fn extensions(self, extensions: &[Extension]) -> Self {
        Self { extensions: extensions.to_vec(), ..self }
    }

    /// Changes the TCP header.
    pub fn flags(mut self, change: impl FnOnce(&mut TcpHeader)) -> Self {
        if let Layer::Tcp(header) = &mut self.layer {
            change(header);
        }
        self
    }

    /// The segment that opens a connection.
    pub fn syn(self) -> Self {
        Self { payload: Vec::new(), ..self }.flags(|tcp| {
            (tcp.syn, tcp.ack, tcp.acknowledgment_number) = (true, false, 0);
        })
    }

    /// The segment that opens a connection, if it is a segment at all.
    pub fn syn_if_tcp(self) -> Self {
        if matches!(self.layer, Layer::Tcp(_)) { self.syn() } else { self }
    }

    /// The same packet the other way round, as the one who was asked answers.
    pub fn answer(mut self) -> Self {
        (self.src, self.dst) = (self.dst, self.src);
        match &mut self.layer {
            Layer::Tcp(tcp) => (tcp.source_port, tcp.destination_port) = (tcp.destination_port, tcp.source_port),
            Layer::Udp(src, dst) => (*src, *dst) = (*dst, *src),
            Layer::Icmp4(kind) => {
                if let Icmpv4Type::EchoRequest(header) = *kind {
                    *kind = Icmpv4Type::EchoReply(header);
                }
            }
            Layer::Icmp6(kind) => {
                if let Icmpv6Type::EchoRequest(header) = *kind {
                    *kind = Icmpv6Type::EchoReply(header);
                }
            }
            Layer::Raw(_) => {}
        }
        self
    }

    /// The frame.
    pub fn bytes(&self) -> Vec<u8> {
        let mut frame = self.link();
        frame.extend(self.ip_bytes());
        frame
    }

    /// The IP packet.
    pub fn ip_bytes(&self) -> Vec<u8> {
        let (protocol, body) = self.body();
        self.ip(protocol, &body, None)
    }

    /// The frames of its fragments, cut every `size` bytes, a multiple of eight.
    pub fn fragments(&self, id: u32, size: usize) -> Vec<Vec<u8>> {
        let (protocol, body) = self.body();
        let count = body.len().div_ceil(size);
        let part = |at: usize| {
            let offset = IpFragOffset::try_new((at * size / 8) as u16).expect("a short packet");
            let chunk = &body[at * size..body.len().min((at + 1) * size)];
            let mut frame = self.link();
            frame.extend(self.ip(protocol, chunk, Some((offset, at + 1 < count, id))));
            frame
        };
        (0..count).map(part).collect()
    }

    fn link(&self) -> Vec<u8> {
        let kind = if self.src.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
        // The ethertype of each tag stands in the header before it.
        let outer = match self.tags.len() {
            0 => kind,
            1 => EtherType::VLAN_TAGGED_FRAME,
            _ => EtherType::PROVIDER_BRIDGING,
        };
        let mut bytes = Vec::new();
        let ethernet = Ethernet2Header { source: self.from, destination: self.to, ether_type: outer };
        bytes.extend(ethernet.to_bytes());
        for (at, &id) in self.tags.iter().enumerate() {
            let tag = SingleVlanHeader {
                vlan_id: VlanId::try_new(id).expect("a VLAN id"),
                ether_type: if at + 1 < self.tags.len() { EtherType::VLAN_TAGGED_FRAME } else { kind },
                ..SingleVlanHeader::default()
            };
            bytes.extend(tag.to_bytes());
        }
        bytes
    }

    /// Transport header and payload, and their protocol number.
    fn body(&self) -> (IpNumber, Vec<u8>) {
        let payload = &self.payload;
        let mut body = Vec::new();
        let protocol = match &self.layer {
            Layer::Tcp(header) => {
                let mut header = header.clone();
                header.checksum = match (self.src, self.dst) {
                    (IpAddr::V4(src), IpAddr::V4(dst)) => {
                        header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), payload)
                    }
                    (IpAddr::V6(src), IpAddr::V6(dst)) => {
                        header.calc_checksum_ipv6_raw(src.octets(), dst.octets(), payload)
                    }
                    _ => panic!("one family"),
                }
                .expect("a short payload");
                body.extend(header.to_bytes());
                IpNumber::TCP
            }
            &Layer::Udp(from, to) => {
                let length = (UdpHeader::LEN + payload.len()) as u16;
                let mut header = UdpHeader { source_port: from, destination_port: to, length, checksum: 0 };
                header.checksum = match (self.src, self.dst) {
                    (IpAddr::V4(src), IpAddr::V4(dst)) => {
                        header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), payload)
                    }
                    (IpAddr::V6(src), IpAddr::V6(dst)) => {
                        header.calc_checksum_ipv6_raw(src.octets(), dst.octets(), payload)
                    }
                    _ => panic!("one family"),
                }
                .expect("a short payload");
                body.extend(header.to_bytes());
                IpNumber::UDP
            }
            Layer::Icmp4(kind) => {
                body.extend(Icmpv4Header::with_checksum(kind.clone(), payload).to_bytes());
                IpNumber::ICMP
            }
            Layer::Icmp6(kind) => {
                let (IpAddr::V6(src), IpAddr::V6(dst)) = (self.src, self.dst) else { panic!("ICMPv6 in IPv4") };
                let header = Icmpv6Header::with_checksum(*kind, src.octets(), dst.octets(), payload);
                body.extend(header.expect("a short payload").to_bytes());
                IpNumber::IPV6_ICMP
            }
            Layer::Raw(protocol) => IpNumber(*protocol),
        };
        body.extend(payload);
        (protocol, body)
    }

    fn ip(&self, protocol: IpNumber, body: &[u8], fragment: Option<(IpFragOffset, bool, u32)>) -> Vec<u8> {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let len = (self.options.len() + body.len()) as u16;
                let mut header =
                    Ipv4Header::new(len, self.ttl, protocol, src.octets(), dst.octets()).expect("a short payload");
                header.options = self.options.as_slice().try_into().expect("a multiple of four bytes");
                header.dscp = (self.tos >> 2).try_into().expect("six bits");
                header.ecn = (self.tos & 3).try_into().expect("two bits");
                header.dont_fragment = fragment.is_none();
                header.set_payload_len(body.len()).expect("a short payload");
                if let Some((offset, more, id)) = fragment {
                    (header.fragment_offset, header.more_fragments, header.identification) = (offset, more, id as u16);
                }
                header.header_checksum = header.calc_header_checksum();
                [&header.to_bytes()[..], body].concat()
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let (next, chain) = self.chain(protocol, fragment);
                let header = Ipv6Header {
                    traffic_class: self.tos,
                    flow_label: Default::default(),
                    payload_length: (chain.len() + body.len()) as u16,
                    next_header: next,
                    hop_limit: self.ttl,
                    source: src.octets(),
                    destination: dst.octets(),
                };
                [&header.to_bytes()[..], &chain, body].concat()
            }
            _ => panic!("one family"),
        }
    }

    /// The extension headers, a fragment header behind them, and the first one's number.
    fn chain(&self, last: IpNumber, fragment: Option<(IpFragOffset, bool, u32)>) -> (IpNumber, Vec<u8>) {
        let (mut next, mut chain) = (last, Vec::new());
        if let Some((fragment_offset, more_fragments, identification)) = fragment {
            let header = Ipv6FragmentHeader { next_header: next, fragment_offset, more_fragments, identification };
            (next, chain) = (IpNumber::IPV6_FRAGMENTATION_HEADER, header.to_bytes().to_vec());
        }
        for extension in self.extensions.iter().rev() {
            let options = |next, len: usize| {
                // One PadN option over all of it (RFC 8200, section 4.2).
                let mut payload = vec![0; len];
                (payload[0], payload[1]) = (1, len as u8 - 2);
                Ipv6RawExtHeader::new_raw(next, &payload).expect("a multiple of eight").to_bytes().to_vec()
            };
            let (kind, bytes) = match *extension {
                Extension::HopByHop => (IpNumber::IPV6_HEADER_HOP_BY_HOP, options(next, 6)),
                Extension::Destination(more) => {
                    (IpNumber::IPV6_DESTINATION_OPTIONS, options(next, 6 + 8 * usize::from(more)))
                }
                Extension::Routing(left) => {
                    let payload = [4, left, 0, 0, 0, 0];
                    let header = Ipv6RawExtHeader::new_raw(next, &payload).expect("a multiple of eight");
                    (IpNumber::IPV6_ROUTE_HEADER, header.to_bytes().to_vec())
                }
                Extension::Authentication => {
                    let header = IpAuthHeader::new(next, 1, 1, &[0; 12]).expect("a short value");
                    (IpNumber::AUTHENTICATION_HEADER, header.to_bytes().to_vec())
                }
            };
            chain.splice(0..0, bytes);
            next = kind;
        }
        (next, chain)
    }
}
