//! Ports, backends, and the paths that lead to backends and to other nodes.

use super::no_padding;
use crate::abi::PATHS;
use crate::packet::Address;

/// Set in a neighbour's word when its MAC address is known.
pub const RESOLVED: u64 = 1 << 48;

/// An interface that the data plane is attached to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// Its MAC address, as [`crate::packet::headers::Mac::word`]; the same with the locally administered bit turned over
    /// is the mark of a packet that its receiver must keep.
    pub mac: u64,
    /// The kernel's interface index; 0: no such port.
    pub ifindex: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// What a neighbour is known by: one address may be two hosts' on two interfaces.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NeighbourKey {
    /// Its address, IPv4 as IPv4-mapped.
    pub address: Address,
    /// The kernel's index of the interface that it is reached over.
    pub ifindex: u32,
    /// Zero.
    pub pad: u32,
}

/// Turned over in a source MAC address to mark a forwarded packet as final.
pub const FINAL_BIT: u64 = 0x02;

/// A backend, in one word: what a flow keeps while paths come and go.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// The pool that it belongs to.
    pub pool: u16,
    /// Its paths by rank; 0: none.
    pub paths: [u16; PATHS],
}

/// What a path's word says: that its alive bit is set, and else whether it is worth a try where no other is.
pub mod alive {
    /// It is dead.
    pub const OFF: u64 = 0;
    /// It is alive.
    pub const ON: u64 = 1;
    /// It is dead, and its port has no carrier, so that nothing can leave by it.
    pub const UNPLUGGED: u64 = 2;
}

/// How a path carries packets.
pub mod kind {
    /// The MAC addresses are rewritten; the backend holds the VIP (direct server return).
    pub const L2: u8 = 0;
    /// Within an IP header (RFC 2003, RFC 2473).
    pub const IPIP: u8 = 1;
    /// Within GUE over UDP.
    pub const GUE: u8 = 2;
    /// To another node, within [`crate::hop`]'s header over UDP.
    pub const HOP: u8 = 3;
}

/// An immutable way to a backend or another node, a cache line long.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Path {
    /// How it carries packets: a constant of [`kind`].
    pub kind: u8,
    /// The port that it leaves by.
    pub port: u8,
    /// VLAN id that its frames carry, in host order; 0: untagged.
    pub vlan: u16,
    /// Number of its next hop's neighbour word.
    pub neighbour: u32,
    /// Longest IP packet that it takes, tunnel headers included.
    pub mtu: u16,
    /// Whether its tunnel runs over IPv6.
    pub outer_v6: u8,
    /// Bits of the tunnel's source address, from its end, that vary by flow (at most 16).
    pub source_bits: u8,
    /// UDP port of the tunnel's far end, in network order.
    pub remote_port: u16,
    /// Zero.
    pub pad: u16,
    /// Tunnel source.
    pub local: Address,
    /// Tunnel destination.
    pub remote: Address,
    /// Zero.
    pub pad2: [u64; 2],
}

no_padding! { Port = 16, NeighbourKey = 16 + 4 + 4, Backend = 8, Path = 64 }
