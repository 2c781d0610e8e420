//! Versions and limits that both sides are built with.

/// Version of the pinned maps' shapes and meanings. It stands in the pin path; maps of another version are never adopted.
pub const ABI_VERSION: u32 = 5;

/// Interfaces that one node attaches to. A program instance serves one of them, its *port*.
pub const PORTS: usize = 16;

/// Node ids are 1..=254; 0 means none.
pub const NODES: usize = 256;

/// Ranks of a slot: primary, secondary, two more.
pub const RANKS: usize = 4;

/// Ranked paths of one backend.
pub const PATHS: usize = 3;

/// Most slots that a table can have; the slot takes 16 bits of the hash.
pub const SLOTS_MAX: usize = 1 << 16;

/// Backend ids are 1..=32,767, since a flow entry keeps them in 15 bits; 0 means none.
pub const BACKENDS_MAX: usize = (1 << 15) - 1;

/// Cells of the per-source budget.
pub const SOURCE_CELLS: usize = 1 << 16;

/// UDP port of the header that carries packets between nodes across routers.
pub const HOP_PORT: u16 = 4199;

/// UDP port of beats.
pub const BEAT_PORT: u16 = 4200;

/// UDP port of Generic UDP Encapsulation, as IANA assigned it.
pub const GUE_PORT: u16 = 6080;

/// IPv6 extension headers that are walked before a packet is refused.
pub const EXTENSION_HEADERS_MAX: usize = 6;
