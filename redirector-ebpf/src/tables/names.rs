//! What numbers are called, for people.

use super::no_padding;

/// Kinds of things that have numbers and names.
pub mod kind {
    /// A VIP; its name is the address or prefix.
    pub const VIP: u32 = 1;
    /// A service.
    pub const SERVICE: u32 = 2;
    /// A pool.
    pub const POOL: u32 = 3;
    /// A backend; its name is `pool/backend`.
    pub const BACKEND: u32 = 4;
    /// A path; its name is `pool/backend/rank`.
    pub const PATH: u32 = 5;
    /// A neighbour; its name is the address.
    pub const NEIGHBOUR: u32 = 6;
    /// A node.
    pub const NODE: u32 = 7;
    /// A port; its name is the interface's.
    pub const PORT: u32 = 8;
    /// A pool's Maglev table; its name is the pool's.
    pub const TABLE: u32 = 9;
}

/// What a name is of.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NameKey {
    /// A constant of [`kind`].
    pub kind: u32,
    /// The number.
    pub id: u32,
}

/// A name, UTF-8, ended by zeros.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// The bytes.
    pub bytes: [u8; 136],
}

no_padding! { NameKey = 8, Name = 136 }
