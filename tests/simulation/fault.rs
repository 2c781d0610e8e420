//! What happens to hosts and network, as a seed has it.

use redirector::consensus::machine::Role;
use suite::random::Random;

use super::host::Host;
use super::world::{World, nonce};
use super::{HOSTS, MS};

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

impl World {
    pub(super) fn strike(&mut self, fault: Fault) {
        // A second fault before the first is dealt with: nothing is promised any more.
        let keeps = matches!(fault, Fault::KillAgent | Fault::RestartAgent | Fault::PauseAgent | Fault::FillDisk);
        if !self.calm && !keeps || matches!(fault, Fault::KillLeaderAndHolder | Fault::KillAllButOne) {
            self.connections.iter_mut().for_each(|connection| connection.guaranteed = false);
        }
        (self.calm, self.faulty, self.disturbed) = (false, true, self.now);
        let at = self.random.below(self.hosts.len());
        self.tell(format_args!("{fault:?} (n{})", at + 1));
        match fault {
            Fault::Kill => self.hosts[at].die(self.now),
            Fault::KillLeaderAndHolder => {
                let holder = self
                    .hosts
                    .iter()
                    .position(|host| host.plane.as_ref().is_some_and(|plane| !plane.tables.memory.held.is_empty()));
                let leads = |host: &Host| host.agent.as_ref().is_some_and(|agent| agent.status().role == Role::Leader);
                let leader = self.hosts.iter().position(leads);
                for at in [holder, leader].into_iter().flatten() {
                    self.hosts[at].die(self.now);
                }
            }
            Fault::KillAgent => self.hosts[at].lose_agent(),
            Fault::KillAllAgents => self.hosts.iter_mut().for_each(Host::lose_agent),
            Fault::Pause => self.hosts[at].paused = self.hosts[at].plane.is_some(),
            Fault::PauseAgent => self.hosts[at].agent_paused = self.hosts[at].agent.is_some(),
            Fault::RestartAgent => {
                self.hosts[at].lose_agent();
                self.start(at);
            }
            Fault::LoseDisk => {
                self.hosts[at].die(self.now);
                self.hosts[at].disk.lose();
            }
            Fault::TearDisk => {
                self.hosts[at].die(self.now);
                self.hosts[at].disk.tear(&mut self.random);
            }
            Fault::FillDisk => self.hosts[at].disk.set_full(true),
            Fault::Partition => {
                let part: Vec<bool> = (0..HOSTS).map(|_| self.random.once_in(2)).collect();
                self.cut(|one, other| part[usize::from(one) - 1] != part[usize::from(other) - 1]);
            }
            Fault::OneWay => {
                let part: Vec<bool> = (0..HOSTS).map(|_| self.random.once_in(3)).collect();
                self.cut(|one, other| part[usize::from(one) - 1] && !part[usize::from(other) - 1]);
            }
            Fault::NonTransitive => {
                let (one, other) = (at as u8 + 1, (at + 1 + self.random.below(4)) as u8 % HOSTS + 1);
                self.cut(|from, to| (from, to) == (one, other) || (from, to) == (other, one));
            }
            Fault::Storm => {
                self.network.loss = 1 + self.random.below(20);
                self.network.twice = self.random.below(20);
                self.network.jitter = self.random.number() % (self.beats.1 / 4);
            }
            Fault::KillAllButOne => {
                for other in (0..self.hosts.len()).filter(|&other| other != at) {
                    self.hosts[other].die(self.now);
                }
            }
        }
    }

    pub(super) fn cut(&mut self, is_cut: impl Fn(u8, u8) -> bool) {
        let pairs = (1..=HOSTS).flat_map(|one| (1..=HOSTS).map(move |other| (one, other)));
        self.network.cuts.extend(pairs.filter(|&(one, other)| one != other && is_cut(one, other)));
        let cuts: Vec<String> = self.network.cuts.iter().map(|(from, to)| format!("{from}→{to}")).collect();
        self.tell(format_args!("cut: {}", cuts.join(" ")));
    }

    pub(super) fn heal(&mut self) {
        self.network.heal();
        for at in 0..self.hosts.len() {
            let host = &mut self.hosts[at];
            host.disk.set_full(false);
            (host.paused, host.agent_paused) = (false, false);
            let waiting = std::mem::take(&mut host.waiting);
            let id = host.id;
            for bytes in waiting {
                // The last byte but one of a node's MAC address is its id.
                let from = bytes[10];
                self.checks.owed(id, from, nonce(&bytes), self.now + 3 * MS);
                self.network.send_frame(from, id, &bytes, self.now + self.random.number() % (2 * MS), &mut self.random);
            }
            self.start(at);
        }
        (self.faulty, self.disturbed) = (false, self.now);
        self.tell("all is healed");
    }
}
