//! What happens to hosts and network, as a seed has it.

use suite::random::Random;

use super::MS;

/// A fault. Nodes are named when it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A host dies with all that is in its memory.
    Kill,
    /// The leader's host and that of the VIP's holder die together.
    KillLeaderAndHolder,
    /// The agent dies; its data plane goes on.
    KillAgent,
    /// Every agent dies at once.
    KillAllAgents,
    /// A host stands still, and goes on later as if nothing had been.
    Pause,
    /// An agent stands still; its data plane goes on.
    PauseAgent,
    /// An agent dies and starts anew at once.
    RestartAgent,
    /// A host dies, and its disk with it.
    LoseDisk,
    /// A host dies, and a record on its disk is damaged.
    TearDisk,
    /// A disk takes no writes.
    FillDisk,
    /// The nodes fall into two parts.
    Partition,
    /// What some nodes send does not reach the others.
    OneWay,
    /// Two nodes do not reach each other, and everybody else both.
    NonTransitive,
    /// Frames are lost, late and doubled.
    Storm,
    /// All hosts but one die.
    KillAllButOne,
}

const ALL: [Fault; 15] = [
    Fault::Kill,
    Fault::KillLeaderAndHolder,
    Fault::KillAgent,
    Fault::KillAllAgents,
    Fault::Pause,
    Fault::PauseAgent,
    Fault::RestartAgent,
    Fault::LoseDisk,
    Fault::TearDisk,
    Fault::FillDisk,
    Fault::Partition,
    Fault::OneWay,
    Fault::NonTransitive,
    Fault::Storm,
    Fault::KillAllButOne,
];

/// Faults that strike one after the other, before all is healed.
#[derive(Clone, Debug)]
pub struct Episode {
    /// Faults, and how long after the one before each strikes.
    pub faults: Vec<(u64, Fault)>,
    /// How long after the last one hosts that are dead come back, while everything else stays.
    pub back: u64,
    /// How long after that all is healed.
    pub healed: u64,
}

impl Episode {
    /// Chance's next episode: one fault, or a second one while the first is being dealt with.
    pub fn draw(random: &mut Random) -> Self {
        let first = (200 * MS + random.number() % (600 * MS), random.pick(&ALL));
        let mut faults = vec![first];
        if random.once_in(2) {
            faults.push((20 * MS + random.number() % (2_500 * MS), random.pick(&ALL)));
        }
        let back = 100 * MS + random.number() % (2_500 * MS);
        Self { faults, back, healed: 100 * MS + random.number() % (1_500 * MS) }
    }
}
