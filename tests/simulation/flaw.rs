//! Known bugs, put in by the simulation where a node's decisions meet its shells: a simulation that does not find them
//! proves nothing. No agent has them, since they are made of the simulation's own shells.

/// A bug.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flaw {
    /// There is none.
    #[default]
    None,
    /// The disk acknowledges what a power cut then undoes: votes are forgotten.
    ForgetfulDisk,
    /// Flows are called delivered before they are: whoever returns is let in without them.
    EarlyDelivery,
    /// The slot table is not switched, and called so.
    StaleSlots,
    /// Packets from other nodes are taken for packets from outside: they lose their way.
    Unmarked,
    /// Copies of flows are acknowledged and not kept.
    LostCopies,
    /// A node whose maps are lost calls itself by its old incarnation.
    SameIncarnation,
    /// A change is acknowledged before a majority has it.
    EarlyAcknowledgement,
}

impl Flaw {
    /// All that are bugs.
    pub const ALL: [Self; 7] = [
        Self::ForgetfulDisk,
        Self::EarlyDelivery,
        Self::StaleSlots,
        Self::Unmarked,
        Self::LostCopies,
        Self::SameIncarnation,
        Self::EarlyAcknowledgement,
    ];
}
