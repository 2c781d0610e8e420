//! What the benchmark and its programs agree on.

/// Bytes of the template that is written into each packet.
pub const TEMPLATE: usize = 96;

/// One run of the wrapper.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// The packet's first bytes.
    pub template: [u64; TEMPLATE / 8],
    /// Flows among which the source varies.
    pub flows: u64,
    /// Source of the first flow; the others follow.
    pub first_source: u64,
    /// Where the count that the sources are drawn by goes on.
    pub base: u64,
    /// Packets of this run.
    pub packets: u64,
    /// Packets so far.
    pub counter: u64,
    /// Packets of which the program made what it should.
    pub as_expected: u64,
    /// Monotonic nanoseconds before the first packet.
    pub started: u64,
    /// Monotonic nanoseconds after the last packet.
    pub ended: u64,
    /// Where the source's lowest four bytes are.
    pub source_at: u32,
    /// The packet's length.
    pub len: u32,
    /// The action that the program should return.
    pub expected: u32,
    /// Zero.
    pub pad: u32,
}

crate::tables::no_padding! { Run = 96 + 64 + 16 }
