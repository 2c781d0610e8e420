//! One packet: its bytes ([`Frame`]), the headers in them, and what the parse station found ([`Packet`]).

pub mod checksum;
pub mod headers;

use core::marker::PhantomData;

pub use headers::Wire;

use crate::verifier::put;

/// The bytes of one packet. The XDP programs implement it over `(data, data_end)`, tests over a vector.
///
/// Every access is checked against the packet's end; a `None` means "not there", never a fault.
pub trait Frame {
    /// Length in bytes, with the fragments of a jumbo frame that are not in linear memory.
    fn length(&self) -> usize;

    /// Whether it is at least `len` bytes long; cheaper than [`Frame::length`].
    fn holds(&self, len: usize) -> bool;

    /// The header at `offset`.
    fn read<T: Wire>(&self, offset: usize) -> Option<T>;

    /// Replaces the header at `offset`.
    fn write<T: Wire>(&mut self, offset: usize, header: T) -> Option<()>;

    /// Its first `N` bytes, if it has as many in linear memory: for many reads after one check.
    fn head<const N: usize>(&self) -> Option<Head<'_, N>>;

    /// Likewise for many writes.
    fn head_mut<const N: usize>(&mut self) -> Option<HeadMut<'_, N>>;

    /// Moves the packet's start: a positive number takes bytes away, a negative one makes room (its content is undefined).
    fn move_head(&mut self, by: i32) -> Option<()>;

    /// Cuts the packet to `len` bytes.
    fn cut(&mut self, len: usize) -> Option<()>;
}

/// The first `N` bytes of a frame.
#[derive(Clone, Copy)]
pub struct Head<'a, const N: usize> {
    start: *const u8,
    frame: PhantomData<&'a [u8; N]>,
}

impl<const N: usize> Head<'_, N> {
    /// The head that starts here.
    ///
    /// # Safety
    /// So many bytes can be read there for as long as it lives.
    #[inline(always)]
    pub unsafe fn new(start: *const u8) -> Self {
        Self { start, frame: PhantomData }
    }

    /// The header at offset `AT`.
    #[inline(always)]
    pub fn get<const AT: usize, T: Wire>(&self) -> T {
        const { assert!(AT + size_of::<T>() <= N, "beyond the head") };
        // SAFETY: within the head, and any bytes are a `T`. Where BPF loads, the kernel allows unaligned access to packets.
        unsafe {
            let place = self.start.add(AT).cast::<T>();
            if cfg!(target_arch = "bpf") { place.read() } else { place.read_unaligned() }
        }
    }

    /// The four bytes at offset `AT` as one word, read by halves.
    ///
    /// For a word on both sides of a multiple of eight bytes from the frame's start. Where a packet has just been written,
    /// eight bytes at a time, a load of which two stores have a part waits until both have left the store buffer.
    #[inline(always)]
    pub fn word<const AT: usize>(&self) -> u32 {
        const { assert!(AT + size_of::<u32>() <= N, "beyond the head") };
        let half = |at: usize| {
            // SAFETY: as in `get`.
            unsafe {
                let place = self.start.add(at).cast::<u16>();
                if cfg!(target_arch = "bpf") { place.read() } else { place.read_unaligned() }
            }
        };
        let (first, second) = (u32::from(half(AT).to_le()), u32::from(half(AT + 2).to_le()));
        u32::from_le(first | second << 16)
    }
}

/// The first `N` bytes of a frame, to be written.
pub struct HeadMut<'a, const N: usize> {
    start: *mut u8,
    frame: PhantomData<&'a mut [u8; N]>,
}

impl<const N: usize> HeadMut<'_, N> {
    /// The head that starts here.
    ///
    /// # Safety
    /// So many bytes can be written there, by nobody else, for as long as it lives.
    #[inline(always)]
    pub unsafe fn new(start: *mut u8) -> Self {
        Self { start, frame: PhantomData }
    }

    /// Replaces the header at offset `AT`.
    #[inline(always)]
    pub fn put<const AT: usize, T: Wire>(&mut self, header: T) {
        const { assert!(AT + size_of::<T>() <= N, "beyond the head") };
        // SAFETY: as in `Head::get`.
        unsafe {
            let place = self.start.add(AT).cast::<T>();
            if cfg!(target_arch = "bpf") { place.write(header) } else { place.write_unaligned(header) }
        }
    }
}

/// Makes the IP packet at offset `inner` the frame's only one: outer headers go, the link-layer addresses stay.
#[inline(always)]
pub fn unwrap_to<F: Frame>(frame: &mut F, inner: usize, v6: bool) -> Option<()> {
    use headers::{Ethernet, ethertype};
    let mut ethernet: Ethernet = frame.read(0)?;
    ethernet.ethertype = if v6 { ethertype::IPV6 } else { ethertype::IPV4 }.to_be();
    frame.move_head((inner - 14) as i32)?;
    frame.write(0, ethernet)
}

/// An IPv4 or IPv6 address as it stands in the packet, in four words; an IPv4 address is the first, the others are zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Address {
    /// The words in network byte order.
    pub words: [u32; 4],
}

impl Address {
    /// The address of an IPv4 header's word.
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self { words: [word, 0, 0, 0] }
    }

    /// The IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2), for keys that must tell both families apart.
    #[inline(always)]
    pub const fn mapped(word: u32) -> Self {
        Self { words: [0, 0, 0xffff_u32.to_be(), word] }
    }

    /// Two words as one.
    #[inline(always)]
    pub(crate) const fn pair(&self, index: usize) -> u64 {
        self.words[index * 2] as u64 | (self.words[index * 2 + 1] as u64) << 32
    }

    /// Whether both are the same address.
    #[inline(always)]
    pub fn same(&self, other: &Self) -> bool {
        self.pair(0) == other.pair(0) && self.pair(1) == other.pair(1)
    }
}

/// What tells flows apart. For an ICMP error it is the tuple of the quoted packet, turned round, so that the error meets
/// the same slot, row and flow entry as the flow's own packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// The client.
    pub src: Address,
    /// The VIP.
    pub dst: Address,
    /// The client's port in network order; an ICMP echo's identifier.
    pub sport: u16,
    /// The service's port in network order; 0 for ICMP.
    pub dport: u16,
    /// IP protocol number of the transport.
    pub protocol: u8,
}

/// IP protocol numbers (IANA).
pub mod protocol {
    /// IPv6 hop-by-hop options (RFC 8200).
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4 (RFC 792).
    pub const ICMP: u8 = 1;
    /// IPv4 within IP (RFC 2003).
    pub const IPIP: u8 = 4;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// IPv6 within IP (RFC 2473, RFC 4213).
    pub const IPV6: u8 = 41;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// IP authentication header (RFC 4302).
    pub const AUTHENTICATION: u8 = 51;
    /// ICMP for IPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION: u8 = 60;
}

/// TCP's flags that matter here (RFC 9293, section 3.1).
pub mod tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Breaks a connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
}

/// What sort of packet it is, as far as the stations treat sorts differently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// A whole packet of a transport with ports.
    #[default]
    Whole,
    /// An ICMP echo request.
    Echo,
    /// An ICMP error about a packet that a backend sent.
    Error,
    /// The first fragment: it has the ports.
    FirstFragment,
    /// A later fragment: it has no ports.
    LaterFragment,
}

/// What the parse station found. Offsets are from the frame's first byte.
#[derive(Clone, Copy, Debug, Default)]
pub struct Packet {
    /// Whether it is IPv6.
    pub v6: bool,
    /// Sort.
    pub kind: Kind,
    /// TCP flags; 0 for others.
    pub tcp_flags: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// The IPv4 type of service or IPv6 traffic class: DSCP and ECN.
    pub tos: u8,
    /// Offset of the IP header: 14, 18 or 22.
    pub l3: u16,
    /// Offset of the transport header.
    pub l4: u16,
    /// Length of the IP packet, header included.
    pub l3_len: u16,
    /// Identification of a fragmented packet.
    pub fragment_id: u32,
    /// TCP sequence number, in network order; 0 for others.
    pub sequence: u32,
    /// Source MAC address, as [`headers::Mac::word`].
    pub source_mac: u64,
    /// What tells the flow.
    pub tuple: Tuple,
}

impl Packet {
    /// Whether it opens a TCP connection.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        self.tuple.protocol == protocol::TCP
            && self.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
            && !matches!(self.kind, Kind::Error)
    }

    /// Copies what tells the flow, field by field: the copy of a whole struct would go over the stack.
    #[inline(always)]
    pub fn keep(&self, place: &mut Self) {
        put(&mut place.v6, self.v6);
        let (from, to) = (&self.tuple, &mut place.tuple);
        let mut word = 0;
        while word < 4 {
            put(&mut to.src.words[word], from.src.words[word]);
            put(&mut to.dst.words[word], from.dst.words[word]);
            word += 1;
        }
        put(&mut to.sport, from.sport);
        put(&mut to.dport, from.dport);
        put(&mut to.protocol, from.protocol);
    }

    /// Whether it is a fragment of either sort.
    #[inline(always)]
    pub fn is_fragment(&self) -> bool {
        matches!(self.kind, Kind::FirstFragment | Kind::LaterFragment)
    }
}
