//! VIPs, services, pools and the rows of their Maglev tables.

use super::no_padding;
use crate::verifier::hide;

/// What is configured for an address as such.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vip {
    /// The VIP's number, part of its services' keys.
    pub id: u32,
    /// Bit 0: it has services on ranges of ports.
    pub ranges: u8,
    /// What happens to packets for ports without a service: one of the constants of [`unmatched`].
    pub unmatched: u8,
    /// What happens to echo requests that no service takes: one of the constants of [`echo`].
    pub echo: u8,
    /// Zero.
    pub pad: u8,
}

/// Values of [`Vip::unmatched`].
pub mod unmatched {
    /// Dropped.
    pub const DROP: u8 = 0;
    /// Answered by a TCP reset or ICMP port unreachable.
    pub const REJECT: u8 = 1;
    /// Left to the kernel.
    pub const PASS: u8 = 2;
}

/// Values of [`Vip::echo`].
pub mod echo {
    /// Answered here.
    pub const ANSWER: u8 = 0;
    /// Left to the kernel.
    pub const PASS: u8 = 1;
    /// Dropped.
    pub const DROP: u8 = 2;
}

/// Key of a service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ServiceKey {
    /// The VIP's number.
    pub vip: u32,
    /// IP protocol number, as IPv4 numbers it (ICMPv6 counts as ICMP).
    pub protocol: u8,
    /// Zero. It stands before the port so that a prefix of the key can end within the port.
    pub pad: u8,
    /// Port in network order; 0 for ICMP.
    pub port: u16,
}

impl ServiceKey {
    /// The key's bytes as two words, for longest-prefix matching.
    #[inline(always)]
    pub fn words(&self) -> [u32; 2] {
        let port = self.port.to_ne_bytes();
        [self.vip, u32::from_ne_bytes([self.protocol, self.pad, port[0], port[1]])]
    }
}

/// A service, in one word.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its number, by which it is counted.
    pub id: u16,
    /// Its pool.
    pub pool: u16,
    /// Priority class: 0 critical, 1 high, 2 normal, 3 low.
    pub class: u8,
    /// 1: `owned`; 0: `shared`.
    pub owned: u8,
    /// 1: a packet's DSCP says its class, where it says any; see [`crate::stations::admit::class`].
    pub dscp: u8,
    /// Zero.
    pub pad: u8,
}

/// A pool.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// Number of its present Maglev table.
    pub table: u16,
    /// Not 0: too little of it is healthy, so all of it is used; see [`crate::stations::suspect`].
    pub panics: u16,
    /// Rows of that table. In one word with its number, so that both change at once.
    pub rows: u32,
    /// Until this monotonic time in nanoseconds, unknown flows of protocols without an opening packet are old ones.
    pub old_until: u64,
}

/// A row of a pool's Maglev table.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row(pub u32);

impl Row {
    const DISPUTED: u32 = 1 << 31;
    const SEVERED: u32 = 1 << 15;

    /// A row; it is disputed where `disputed` says so or its backends differ.
    pub const fn new(current: u16, previous: u16, disputed: bool) -> Self {
        let flag = if disputed || current != previous { Self::DISPUTED } else { 0 };
        Self(current as u32 & 0x7fff | (previous as u32 & 0x7fff) << 16 | flag)
    }

    /// The backend of new flows.
    #[inline(always)]
    pub const fn current(self) -> u16 {
        self.0 as u16 & 0x7fff
    }

    /// The backend of flows from before the last change.
    #[inline(always)]
    pub const fn previous(self) -> u16 {
        (self.0 >> 16) as u16 & 0x7fff
    }

    /// The same row, whose previous backend is dead: its unknown TCP flows get a reset, and what else it had is current's.
    pub const fn severed(self) -> Self {
        Self(self.0 | Self::SEVERED)
    }

    /// Whether it is [`severed`](Self::severed). `noise` is any number that the verifier does not know: it must not learn
    /// of the row what is asked here, else it follows all that comes after once for each answer.
    #[inline(always)]
    pub fn is_severed(self, noise: u64) -> bool {
        hide(noise, u64::from(self.0)) & u64::from(Self::SEVERED) != 0
    }

    /// Whether flows of this row must go to their slot's owner. Also while a change is only announced and both backends
    /// are still the same, so that nodes that learn of it a moment apart never disagree.
    #[inline(always)]
    pub const fn disputed(self) -> bool {
        self.0 & Self::DISPUTED != 0
    }
}

no_padding! { Vip = 8, ServiceKey = 8, Service = 8, Pool = 16, Row = 4 }
