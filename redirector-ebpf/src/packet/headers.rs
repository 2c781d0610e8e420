//! Headers as they stand in the packet. All multi-byte fields are in network order; alignment is that of the fields, and
//! a [`super::Frame`] reads and writes them at any address.

/// Plain old data that may be read from and written to a packet's bytes.
///
/// # Safety
/// Every bit pattern is a value, and there is no padding.
pub unsafe trait Wire: Copy {}

// SAFETY: integers have neither padding nor invalid patterns.
unsafe impl Wire for u8 {}
// SAFETY: as above.
unsafe impl Wire for u16 {}
// SAFETY: as above.
unsafe impl Wire for u32 {}
// SAFETY: as above.
unsafe impl Wire for u64 {}
// SAFETY: as above.
unsafe impl Wire for [u32; 4] {}

macro_rules! wire {
    ($($name:ident = $size:literal),* $(,)?) => {$(
        // SAFETY: integers only; the size, asserted here, is the sum of its fields', so there is no padding.
        unsafe impl Wire for $name {}
        const _: () = assert!(core::mem::size_of::<$name>() == $size);
    )*};
}

wire! {
    Mac = 6, Ethernet = 14, Vlan = 4, Ipv4 = 20, Ipv6 = 40, Ports = 4, Tcp = 20, Udp = 8, Icmp = 8, Extension = 8, Gue = 4,
}

/// Ethernet types.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// Address resolution.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// VLAN tag (IEEE 802.1Q).
    pub const VLAN: u16 = 0x8100;
    /// Outer VLAN tag (IEEE 802.1ad).
    pub const SERVICE_VLAN: u16 = 0x88a8;
}

/// A MAC address as three words.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mac(pub [u16; 3]);

impl Mac {
    /// As one number: the bytes in the packet's order from the least significant on, the upper 16 bits zero.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0[0] as u64 | (self.0[1] as u64) << 16 | (self.0[2] as u64) << 32
    }

    /// Whether it stands for several hosts: a broadcast or multicast address.
    #[inline(always)]
    pub const fn is_group(self) -> bool {
        self.0[0].to_ne_bytes()[0] & 1 == 1
    }

    /// The address that [`Mac::word`] made this number of; the upper 16 bits do not count.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self([word as u16, (word >> 16) as u16, (word >> 32) as u16])
    }
}

/// Ethernet II header.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ethernet {
    /// Destination.
    pub dst: Mac,
    /// Source.
    pub src: Mac,
    /// What follows.
    pub ethertype: u16,
}

/// VLAN tag, without the ethertype before it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Vlan {
    /// Priority, drop eligibility and VLAN id.
    pub tci: u16,
    /// What follows.
    pub ethertype: u16,
}

/// IPv4 header without options (RFC 791).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ipv4 {
    /// Version and header length in words.
    pub version_ihl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Length with this header.
    pub total_len: u16,
    /// Identification.
    pub id: u16,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Header checksum.
    pub checksum: u16,
    /// Source.
    pub src: u32,
    /// Destination.
    pub dst: u32,
}

/// IPv4 "don't fragment", as it stands in [`Ipv4::fragment`].
pub const DONT_FRAGMENT: u16 = 0x4000u16.to_be();

/// IPv6 header (RFC 8200).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ipv6 {
    /// Version, traffic class, flow label.
    pub version_class_label: u32,
    /// Length without this header.
    pub payload_len: u16,
    /// Type of the next header.
    pub next: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source.
    pub src: [u32; 4],
    /// Destination.
    pub dst: [u32; 4],
}

impl Ipv6 {
    /// The traffic class: DSCP and ECN.
    #[inline(always)]
    pub fn class(&self) -> u8 {
        (u32::from_be(self.version_class_label) >> 20) as u8
    }
}

/// The first eight bytes of an IPv6 extension header.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Extension {
    /// Type of the header after this one.
    pub next: u8,
    /// Length in units that the type tells.
    pub len: u8,
    /// Fragment header: offset and flags. Routing header: type and segments left.
    pub detail: u16,
    /// Fragment header: identification.
    pub id: u32,
}

/// The first four bytes of TCP and UDP.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// Source port.
    pub src: u16,
    /// Destination port.
    pub dst: u16,
}

/// TCP header without options.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tcp {
    /// Ports.
    pub ports: Ports,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Header length in words, in the upper four bits.
    pub data_offset: u8,
    /// Flags.
    pub flags: u8,
    /// Window.
    pub window: u16,
    /// Checksum.
    pub checksum: u16,
    /// Urgent pointer.
    pub urgent: u16,
}

/// UDP header.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Udp {
    /// Ports.
    pub ports: Ports,
    /// Length with this header.
    pub len: u16,
    /// Checksum; 0 means none.
    pub checksum: u16,
}

/// ICMP and ICMPv6 header.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum.
    pub checksum: u16,
    /// Echo: identifier. Error: the upper half of its field.
    pub id: u16,
    /// Echo: sequence number. Error: the lower half of its field (IPv4: next hop's MTU).
    pub sequence: u16,
}

/// GUE header, variant 0, no flags (draft-ietf-intarea-gue).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Gue {
    /// Variant, control bit and length of options: all zero.
    pub variant: u8,
    /// IP protocol number of the payload.
    pub protocol: u8,
    /// Flags: none.
    pub flags: u16,
}

/// ICMP types (RFC 792).
pub mod icmp {
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Echo request.
    pub const ECHO: u8 = 8;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER: u8 = 12;
}

/// ICMPv6 types (RFC 4443).
pub mod icmpv6 {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big.
    pub const TOO_BIG: u8 = 2;
    /// Parameter problem; the last of the errors.
    pub const PARAMETER: u8 = 4;
    /// Echo request.
    pub const ECHO: u8 = 128;
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 129;
    /// Neighbour solicitation (RFC 4861).
    pub const SOLICITATION: u8 = 135;
    /// Neighbour advertisement (RFC 4861).
    pub const ADVERTISEMENT: u8 = 136;
}
