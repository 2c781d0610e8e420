//! Machines on a network in memory, under virtual time.

use std::collections::{BTreeMap, BTreeSet};

use crate::consensus::disk::Memory;
use crate::consensus::machine::{Action, Config, Event, Machine, NotTaken, ProposalId, Role};
use crate::consensus::state::{Command, Member, Refusal, Seat, Standing, State};
use crate::ownership::target;

pub(in crate::consensus) const SLOTS: u32 = 64;

/// What became of a proposal.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::consensus) enum Fate {
    Committed { index: u64, outcome: Result<(), Refusal>, durable_on: usize, of: usize },
    Refused(NotTaken),
    Unknown,
}

pub(in crate::consensus) struct Net {
    pub(in crate::consensus) machines: BTreeMap<u8, Machine<Memory>>,
    pub(in crate::consensus) disks: BTreeMap<u8, Memory>,
    pub(in crate::consensus) fates: BTreeMap<(u8, ProposalId), Fate>,
    pub(in crate::consensus) events: Vec<(u8, Event)>,
    /// What each node applied at an index: the same everywhere.
    applied: BTreeMap<u64, (Command, u64)>,
    /// Directions that lose everything.
    pub(in crate::consensus) cut: BTreeSet<(u8, u8)>,
    /// Whether several clusters were begun, so that each may have a leader.
    pub(in crate::consensus) is_divided: bool,
    /// Messages lost, of 100.
    pub(in crate::consensus) loss: u64,
    flying: BTreeMap<(u64, u64), (u8, u8, Vec<u8>)>,
    sent: u64,
    now: u64,
    chance: u64,
    starts: u128,
    nodes: u8,
    /// Who starts as a witness from now on.
    pub(in crate::consensus) witnesses: BTreeSet<u8>,
}

impl Net {
    /// Nodes that have a seat each, the first of which began the cluster.
    pub(in crate::consensus) fn of(nodes: u8, seed: u64) -> Self {
        let mut net = Self::empty(nodes, seed);
        net.machines.get_mut(&1).unwrap().bootstrap(|disk| genesis(1, disk)).unwrap();
        for id in 2..=nodes {
            net.seat(id);
        }
        let ranks = target(&net.state(1).weights(), SLOTS as usize, 1).unwrap();
        net.commit(&Command::Move { first: 0, ranks });
        for id in 2..=nodes {
            net.commit(&Command::NodeUp { id, incarnation: 1 });
        }
        net
    }

    /// Nodes with empty disks.
    pub(in crate::consensus) fn empty(nodes: u8, seed: u64) -> Self {
        let mut net = Self {
            machines: BTreeMap::new(),
            disks: (1..=nodes).map(|id| (id, Memory::default())).collect(),
            fates: BTreeMap::new(),
            events: Vec::new(),
            applied: BTreeMap::new(),
            cut: BTreeSet::new(),
            is_divided: false,
            loss: 0,
            flying: BTreeMap::new(),
            sent: 0,
            now: 0,
            chance: seed,
            starts: u128::from(seed) << 64,
            nodes,
            witnesses: BTreeSet::new(),
        };
        (1..=nodes).for_each(|id| net.start(id));
        net
    }

    pub(in crate::consensus) fn start(&mut self, id: u8) {
        self.starts += 1;
        self.fates.retain(|(at, _), _| *at != id);
        let config = Config {
            cluster: 7,
            node: id,
            peers: (1..=self.nodes).filter(|&peer| peer != id).collect(),
            address: format!("node{id}"),
            weight: 1,
            witness: self.witnesses.contains(&id),
            incarnation: 1,
            seed: self.starts,
            snapshot_every: 50,
        };
        let disk = self.disks.remove(&id).unwrap();
        self.machines.insert(id, Machine::new(config, disk).unwrap());
    }

    /// Ends a machine; its disk is left.
    pub(in crate::consensus) fn kill(&mut self, id: u8) -> &mut Memory {
        let mut machine = self.machines.remove(&id).unwrap();
        let disk = std::mem::take(machine.disk_mut().unwrap());
        self.disks.entry(id).or_insert(disk)
    }

    pub(in crate::consensus) fn state(&self, id: u8) -> &State {
        self.machines[&id].state()
    }

    /// Cuts these nodes off from all others, both ways.
    pub(in crate::consensus) fn cut_off(&mut self, ids: &[u8]) {
        for one in 1..=self.nodes {
            for other in 1..=self.nodes {
                if ids.contains(&one) != ids.contains(&other) {
                    self.cut.insert((one, other));
                }
            }
        }
    }

    pub(in crate::consensus) fn heal(&mut self) {
        self.cut.clear();
        self.loss = 0;
    }

    fn draw(&mut self) -> u64 {
        self.chance = self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.chance >> 33
    }

    pub(in crate::consensus) fn run(&mut self, ticks: u64) {
        for _ in 0..ticks {
            self.now += 1;
            self.machines.values_mut().for_each(Machine::tick);
            self.collect();
            while let Some(entry) = self.flying.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let (from, to, bytes) = entry.remove();
                if let Some(machine) = self.machines.get_mut(&to) {
                    machine.handle_message(from, &bytes);
                }
                self.collect();
            }
        }
    }

    /// Runs until something holds.
    pub(in crate::consensus) fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..3000 {
            if holds(self) {
                return;
            }
            self.run(1);
        }
        panic!("not within a minute: {what}; {:#?}", self.machines.values().map(Machine::status).collect::<Vec<_>>());
    }

    fn collect(&mut self) {
        let ids: Vec<u8> = self.machines.keys().copied().collect();
        for id in ids {
            let machine = self.machines.get_mut(&id).unwrap();
            let actions = machine.poll();
            let digest = if actions.is_empty() { 0 } else { machine.state().digest() };
            let applies = actions.iter().filter(|action| matches!(action, Action::Applied { .. })).count();
            for action in actions {
                match action {
                    Action::Send { to, bytes } => self.fly(id, to, bytes),
                    Action::Applied { index, command, .. } => {
                        // After one command alone the digest is that of its index.
                        let digest = if applies == 1 { digest } else { 0 };
                        let version = self.machines[&id].state().version;
                        let known = self.applied.entry(index).or_insert_with(|| (command.clone(), 0));
                        assert_eq!(known.0, command, "node {id} applied something else at {index}");
                        if digest != 0 && version == index {
                            assert!(known.1 == 0 || known.1 == digest, "node {id} has another state at {index}");
                            known.1 = digest;
                        }
                    }
                    Action::Committed { proposal, index, outcome, durable_on, of, .. } => {
                        self.fates.insert((id, proposal), Fate::Committed { index, outcome, durable_on, of });
                    }
                    Action::Refused { proposal, why } => drop(self.fates.insert((id, proposal), Fate::Refused(why))),
                    Action::Unknown { proposal } => drop(self.fates.insert((id, proposal), Fate::Unknown)),
                    Action::Told(event) => self.events.push((id, event)),
                    Action::StateChanged => {}
                }
            }
        }
        if self.is_divided {
            return;
        }
        let leaders: Vec<(u8, u64)> = self.leaders();
        for (at, one) in leaders.iter().enumerate() {
            assert!(leaders[..at].iter().all(|other| other.1 != one.1), "two leaders in one term: {leaders:?}");
        }
    }

    fn fly(&mut self, from: u8, to: u8, bytes: Vec<u8>) {
        let lost = self.draw() % 100 < self.loss;
        let delay = self.draw() % 3;
        if !lost && !self.cut.contains(&(from, to)) {
            self.sent += 1;
            self.flying.insert((self.now + delay, self.sent), (from, to, bytes));
        }
    }

    fn leaders(&self) -> Vec<(u8, u64)> {
        let statuses = self.machines.iter().map(|(&id, machine)| (id, machine.status()));
        statuses.filter(|(_, status)| status.role == Role::Leader).map(|(id, status)| (id, status.term)).collect()
    }

    /// The leader with the highest term.
    pub(in crate::consensus) fn leader(&mut self) -> u8 {
        let follows_one = |net: &Self| net.leaders().iter().any(|&(id, _)| net.machines[&id].status().has_quorum);
        self.until("a leader", follows_one);
        self.leaders().into_iter().max_by_key(|leader| leader.1).unwrap().0
    }

    pub(in crate::consensus) fn propose(&mut self, id: u8, command: &Command) -> Option<Fate> {
        let proposal = self.machines.get_mut(&id).unwrap().propose(command);
        self.collect();
        for _ in 0..400 {
            if let Some(fate) = self.fates.get(&(id, proposal)) {
                return Some(fate.clone());
            }
            self.run(1);
        }
        None
    }

    /// Has the leader commit a command, however often it takes.
    pub(in crate::consensus) fn commit(&mut self, command: &Command) -> u64 {
        for _ in 0..40 {
            let leader = self.leader();
            match self.propose(leader, command) {
                Some(Fate::Committed { index, outcome: Ok(()), .. }) => return index,
                Some(Fate::Committed { outcome: Err(refusal), .. }) => panic!("{command:?}: {refusal}"),
                _ => self.run(30),
            }
        }
        panic!("never committed: {command:?}");
    }

    /// Gives a stranger's disk a seat and a vote.
    pub(in crate::consensus) fn seat(&mut self, id: u8) {
        self.until("a greeting", |net| {
            let greeted = |machine: &Machine<Memory>| machine.strangers().any(|(stranger, _)| stranger == id);
            net.leaders().iter().any(|(leader, _)| greeted(&net.machines[leader]))
        });
        let leader = self.leader();
        let stranger = self.machines[&leader].strangers().find(|(at, _)| *at == id).unwrap().1.clone();
        if let Some(Seat { disk, .. }) = self.state(leader).members.get(&id).and_then(|member| member.seat) {
            self.commit(&Command::Retire { id, disk });
        }
        let (disk, incarnation, address) = (stranger.disk, stranger.incarnation, stranger.address);
        self.commit(&match stranger.witness {
            true => Command::Witness { id, disk, address },
            false => Command::Join { id, disk, address, weight: stranger.weight, incarnation },
        });
        self.until("the log", |net| net.state(id).version == net.state(leader).version);
        self.commit(&Command::Promote { id, disk });
        self.until("a seat", |net| net.machines[&id].status().role == Role::Follower);
    }

    /// All machines that run have applied the same and follow one leader.
    pub(in crate::consensus) fn until_agreed(&mut self) {
        self.until("agreement", |net| {
            let mut statuses = net.machines.values().map(Machine::status);
            let first = statuses.next().unwrap();
            let same = |status: &crate::consensus::machine::Status| {
                (status.leader, status.applied, status.term) == (first.leader, first.applied, first.term)
            };
            first.leader.is_some() && statuses.all(|status| same(&status))
        });
        let digests: BTreeSet<u64> = self.machines.values().map(|machine| machine.state().digest()).collect();
        assert_eq!(digests.len(), 1, "the same log gave different states");
    }
}

pub(in crate::consensus) fn genesis(id: u8, disk: u128) -> State {
    let member = Member {
        address: format!("node{id}"),
        weight: 1,
        seat: Some(Seat { disk, votes: true }),
        standing: Standing::Up,
        draining: false,
        drained: false,
        incarnation: 1,
    };
    State::genesis(id, member, SLOTS, "genesis".to_owned(), BTreeMap::new())
}

pub(in crate::consensus) fn text(text: &str) -> Command {
    Command::Apply { text: text.to_owned(), expect: None, pools: BTreeMap::new() }
}
