//! The short way to a service: one look by address, protocol and port, where the tables of VIPs and services take two
//! look-ups in hash tables of the kernel. What is not found here is looked for there; so it need not hold everything.

use super::service::Service;
use crate::hash::Toward;
use crate::packet::{Address, Tuple};

/// Sets of cells; a power of two.
pub const SETS: usize = 1 << 14;

/// Words of the map of listed addresses.
pub const LISTED_WORDS: usize = 1 << 10;

/// Where a service on one port of one address is known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// Port, protocol and family; see [`Cell::sort_of`]; 0: an empty cell.
    pub sort: u32,
    /// The VIP.
    pub vip: Address,
    /// Zero.
    pub pad: u32,
    /// The service.
    pub service: Service,
}

/// The cells of all services whose keys hash alike: a cache line. Services that find no place are not here.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cells {
    /// In any order.
    pub ways: [Cell; 2],
}

impl Cell {
    /// Port in network order (16 bits), protocol (8), and 4 or 6.
    #[inline(always)]
    pub const fn sort_of(port: u16, protocol: u8, v6: bool) -> u32 {
        port as u32 | (protocol as u32) << 16 | (if v6 { 6 } else { 4 }) << 24
    }

    #[inline(always)]
    fn is_of(&self, tuple: &Tuple, v6: bool) -> bool {
        self.sort == Self::sort_of(tuple.dport, tuple.protocol, v6)
            && self.vip.words[0] == tuple.dst.words[0]
            && (!v6
                || self.vip.words[1] == tuple.dst.words[1]
                    && self.vip.words[2] == tuple.dst.words[2]
                    && self.vip.words[3] == tuple.dst.words[3])
    }
}

impl Cells {
    /// The service to which a flow of this tuple goes, if it has its cell here.
    #[inline(always)]
    pub fn find(&self, tuple: &Tuple, v6: bool) -> Option<Service> {
        if self.ways[0].is_of(tuple, v6) {
            Some(self.ways[0].service)
        } else if self.ways[1].is_of(tuple, v6) {
            Some(self.ways[1].service)
        } else {
            None
        }
    }

    /// Puts a service in, if there is room.
    pub fn put(&mut self, port: u16, protocol: u8, v6: bool, vip: Address, service: Service) -> bool {
        let Some(cell) = self.ways.iter_mut().find(|cell| cell.sort == 0) else { return false };
        *cell = Cell { sort: Cell::sort_of(port, protocol, v6), vip, pad: 0, service };
        true
    }
}

/// The word of the map of listed addresses, and the bit in it, that stand for a destination.
#[inline(always)]
pub fn listed(toward: Toward) -> (u32, u64) {
    let place = toward.address_bits();
    (place >> 6, 1 << (place & 63))
}

super::no_padding! { Cell = 4 + 16 + 4 + 8, Cells = 64 }
