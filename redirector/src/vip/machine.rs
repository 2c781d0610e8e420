//! Who holds a VIP: one machine a node, without clock, socket or map. Views, answers to probes and the time go in, actions
//! come out.
//!
//! A node holds a VIP if every node before it in the plan is out. One is out if it says so itself, or if a majority of the
//! members suspect it: this node's own view is one voice, the views that peers beat out are the others. Where no majority
//! is in sight, a probe for the VIP must stay unanswered besides.
//!
//! | state | left when |
//! |---|---|
//! | off | this node becomes ready: a better one is in → standby, else → asking |
//! | standby | a majority says that every better one is out → held; it seems so without a majority → asking |
//! | asking | probes stay unanswered → held; somebody answers → refused; a better one is in → standby |
//! | refused | damped → held; without a majority, or if it was so at first, after a while → asking; a better one is in → standby |
//! | held | a better one is in, or this node drains → yielding |
//! | yielding | damped, and somebody else answers a probe → standby or off; every better one is out again → held |
//! | any | this node is unfit → off |
//!
//! So two may hold a VIP for a moment, which does no harm since every node serves it; nobody holding it lasts no longer
//! than detection, or detection and the probes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use redirector_ebpf::tables::AliveNodes;

use super::plan::Plan;

/// How patient a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Probes that must stay unanswered.
    pub probes: u8,
    /// How long each waits for its answer.
    pub answer: Duration,
    /// How long a better-ranked node must be back before the VIP goes back to it.
    pub damping: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { probes: 3, answer: Duration::from_millis(10), damping: Duration::from_secs(1) }
    }
}

/// Where no majority is in sight, a VIP that somebody answers for is asked for again after so many times of waiting.
const AGAIN: u32 = 10;

/// Whether this node may hold VIPs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fitness {
    /// It may.
    Ready,
    /// It hands over what it holds, and takes nothing.
    Draining,
    /// It is unhealthy or has no data plane: it lets go of everything at once.
    #[default]
    Unfit,
}

/// What a node knows of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Every member of the cluster, this node too: those whose voices count.
    pub members: BTreeSet<u8>,
    /// Who is alive in this node's own eyes, itself too.
    pub alive: AliveNodes,
    /// Who is alive in the eyes of the peers, as each last beat it out.
    pub peers: BTreeMap<u8, AliveNodes>,
    /// Peers that say of themselves that they hold nothing, since they drain or are unhealthy.
    pub unwilling: AliveNodes,
    /// What this node itself is.
    pub fitness: Fitness,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Answer for the VIP from now on.
    Hold(IpAddr),
    /// Answer for it no more.
    Release(IpAddr),
    /// Ask the segment whether anybody answers for it.
    Probe(IpAddr),
    /// Tell the segment that it is here, now and again and again.
    Announce(IpAddr),
}

/// How a VIP stands with this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// This node takes nothing.
    Off,
    /// A better-ranked node is in.
    Standby,
    /// It may be this node's turn: so many probes are left to send, and the last one sent waits until then.
    Asking(u8, Instant),
    /// It is this node's turn, as surely as this says, and somebody else still answers. Looked at again then.
    Refused(Turn, Instant),
    /// It is here.
    Held,
    /// It is here, and should be elsewhere: so many probes are left to send, and the next step is due then.
    Yielding(u8, Instant),
}

impl State {
    /// Whether this node answers for the VIP.
    pub fn holds(self) -> bool {
        matches!(self, Self::Held | Self::Yielding(..))
    }

    fn due(self) -> Option<Instant> {
        match self {
            Self::Asking(_, at) | Self::Refused(_, at) | Self::Yielding(_, at) => Some(at),
            _ => None,
        }
    }
}

/// Whose turn it is to hold a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Another's, or this node is not in the plan.
    Other,
    /// This node's, as far as it can see without a majority.
    Perhaps,
    /// This node's.
    Mine,
}

/// All VIPs of a plan on one node.
#[derive(Debug)]
pub struct Machine {
    me: u8,
    timing: Timing,
    view: View,
    vips: BTreeMap<IpAddr, (Vec<u8>, State)>,
    /// When what is left of a drain is let go of.
    give_up: Option<Instant>,
}

impl Machine {
    /// A machine that knows of nobody yet. What was `held` before it started is held on; what of it is not in the plan
    /// must be released by whoever starts the machine.
    pub fn new(me: u8, timing: Timing, plan: &Plan, held: &BTreeSet<IpAddr>) -> Self {
        let state = |vip| if held.contains(vip) { State::Held } else { State::Off };
        let vips = plan.iter().map(|(vip, ranks)| (*vip, (ranks.clone(), state(vip)))).collect();
        Self { me, timing, view: View::default(), vips, give_up: None }
    }

    /// The states of all VIPs.
    pub fn states(&self) -> impl Iterator<Item = (IpAddr, State)> + '_ {
        self.vips.iter().map(|(vip, (_, state))| (*vip, *state))
    }

    /// Something about the cluster changed.
    pub fn handle_view(&mut self, view: View, now: Instant) -> Vec<Action> {
        let old = std::mem::replace(&mut self.view, view);
        let changed =
            |from: &AliveNodes, to: &AliveNodes| from.words.iter().zip(to.words).any(|(from, to)| to & !from != 0);
        let gained = changed(&old.alive, &self.view.alive);
        let lost = changed(&self.view.alive, &old.alive) || changed(&old.unwilling, &self.view.unwilling);
        let draining = self.view.fitness == Fitness::Draining;
        self.give_up = if draining { self.give_up.or(Some(now + self.timing.damping)) } else { None };
        let mut actions = Vec::new();
        self.each(|machine, vip, ranks, state| {
            let next = machine.seen(vip, ranks, state, lost, now, &mut actions);
            // Whoever was away may have heard another holder meanwhile.
            if gained && next == State::Held && state == State::Held {
                actions.push(Action::Announce(vip));
            }
            next
        });
        actions
    }

    /// Another plan is committed.
    pub fn handle_plan(&mut self, plan: &Plan, now: Instant) -> Vec<Action> {
        let gone = self.vips.iter().filter(|(vip, (_, state))| !plan.contains_key(vip) && state.holds());
        let mut actions: Vec<Action> = gone.map(|(vip, _)| Action::Release(*vip)).collect();
        let state = |vip: &IpAddr, ranks: &Vec<u8>| match self.vips.get(vip) {
            // It is not out whom this node has waited for: it asks, as one that comes back.
            Some((before, State::Standby)) if before != ranks => State::Off,
            known => known.map_or(State::Off, |(_, state)| *state),
        };
        self.vips = plan.iter().map(|(vip, ranks)| (*vip, (ranks.clone(), state(vip, ranks)))).collect();
        self.each(|machine, vip, ranks, state| machine.seen(vip, ranks, state, false, now, &mut actions));
        actions
    }

    /// Somebody else answers for a VIP.
    pub fn handle_answer(&mut self, vip: IpAddr, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some((ranks, state)) = self.vips.get(&vip) else { return actions };
        let next = match *state {
            State::Asking(..) => match self.turn(ranks) {
                Turn::Mine => State::Refused(Turn::Mine, now + self.timing.damping),
                // Whoever answers may be about to leave, and no majority would tell.
                turn => State::Refused(turn, now + AGAIN * self.timing.answer),
            },
            State::Yielding(left, _) if left < self.timing.probes => {
                actions.push(Action::Release(vip));
                self.resting()
            }
            // An answer that comes late, or to somebody else's question.
            other => other,
        };
        if let Some((_, state)) = self.vips.get_mut(&vip) {
            *state = next;
        }
        actions
    }

    /// The time that [`Machine::due`] told of has come.
    pub fn handle_time(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        self.each(|machine, vip, ranks, state| match state.due() {
            Some(at) if at <= now => machine.expired(vip, ranks, state, now, &mut actions),
            _ => state,
        });
        actions
    }

    /// When [`Machine::handle_time`] is to be called next, if at all.
    pub fn due(&self) -> Option<Instant> {
        self.vips.values().filter_map(|(_, state)| state.due()).min()
    }

    fn each(&mut self, mut next: impl FnMut(&Self, IpAddr, &[u8], State) -> State) {
        let mut vips = std::mem::take(&mut self.vips);
        for (vip, (ranks, state)) in &mut vips {
            *state = next(self, *vip, ranks, *state);
        }
        self.vips = vips;
    }

    /// Where a VIP comes to rest that is not this node's to hold.
    fn resting(&self) -> State {
        if self.view.fitness == Fitness::Ready { State::Standby } else { State::Off }
    }

    fn seen(
        &self,
        vip: IpAddr,
        ranks: &[u8],
        state: State,
        lost: bool,
        now: Instant,
        actions: &mut Vec<Action>,
    ) -> State {
        let all = self.timing.probes;
        match (self.view.fitness, state) {
            // Without a majority a successor asks first, and must not be answered.
            (Fitness::Draining, state) if state.holds() && !self.has_quorum() => {
                actions.push(Action::Release(vip));
                return State::Off;
            }
            (Fitness::Unfit, state) => {
                if state.holds() {
                    actions.push(Action::Release(vip));
                }
                return State::Off;
            }
            (Fitness::Draining, State::Held) => return self.yielding(vip, all, now, actions),
            (Fitness::Draining, State::Yielding(left, _)) if left == all => {
                return self.yielding(vip, all, now, actions);
            }
            (Fitness::Draining, State::Yielding(..)) => return state,
            (Fitness::Draining, _) => return State::Off,
            (Fitness::Ready, _) => {}
        }
        match (state, self.turn(ranks)) {
            (State::Held, Turn::Other) => State::Yielding(all, now + 2 * self.timing.damping),
            (State::Yielding(..), Turn::Perhaps | Turn::Mine) => State::Held,
            (State::Held | State::Yielding(..), _) => state,
            (_, Turn::Other) => State::Standby,
            // This node has watched the holder, and knows that it is out.
            (State::Standby, Turn::Mine) => hold(vip, actions),
            (State::Refused(..), _) if !lost => state,
            (State::Asking(..), _) => state,
            (State::Off | State::Standby | State::Refused(..), _) => self.asking(vip, all, now, actions),
        }
    }

    fn expired(&self, vip: IpAddr, ranks: &[u8], state: State, now: Instant, actions: &mut Vec<Action>) -> State {
        let all = self.timing.probes;
        match state {
            State::Asking(0, _) => hold(vip, actions),
            State::Asking(left, _) => self.asking(vip, left, now, actions),
            // Whoever was refused without a majority has not waited for long, and asks again when one is in sight.
            State::Refused(Turn::Mine, _) if self.turn(ranks) == Turn::Mine => hold(vip, actions),
            State::Refused(..) => self.asking(vip, all, now, actions),
            State::Yielding(0, _) if self.give_up.is_some_and(|at| at <= now) => {
                actions.push(Action::Release(vip));
                State::Off
            }
            // Nobody has taken it over yet.
            State::Yielding(0, _) if self.give_up.is_some() => self.yielding(vip, all, now, actions),
            State::Yielding(0, _) => State::Yielding(all, now + self.timing.damping),
            State::Yielding(left, _) => self.yielding(vip, left, now, actions),
            other => other,
        }
    }

    fn asking(&self, vip: IpAddr, left: u8, now: Instant, actions: &mut Vec<Action>) -> State {
        actions.push(Action::Probe(vip));
        State::Asking(left.saturating_sub(1), now + self.timing.answer)
    }

    fn yielding(&self, vip: IpAddr, left: u8, now: Instant, actions: &mut Vec<Action>) -> State {
        actions.push(Action::Probe(vip));
        State::Yielding(left.saturating_sub(1), now + self.timing.answer)
    }

    fn turn(&self, ranks: &[u8]) -> Turn {
        let Some(rank) = ranks.iter().position(|node| *node == self.me) else { return Turn::Other };
        let Some(better) = ranks.get(..rank) else { return Turn::Other };
        let quorum = self.has_quorum();
        for &node in better.iter().filter(|node| self.view.members.contains(node)) {
            let out = self.view.unwilling.is_alive(node)
                || match quorum {
                    true => self.is_majority(|member| self.suspects(member, node)),
                    false => !self.view.alive.is_alive(node),
                };
            if !out {
                return Turn::Other;
            }
        }
        if quorum { Turn::Mine } else { Turn::Perhaps }
    }

    /// Whether a member is known to suspect a node. Those that are away have no voice.
    fn suspects(&self, member: u8, node: u8) -> bool {
        if member == self.me {
            return !self.view.alive.is_alive(node);
        }
        let heard = self.view.peers.get(&member).filter(|_| self.view.alive.is_alive(member) && member != node);
        heard.is_some_and(|view| !view.is_alive(node))
    }

    fn has_quorum(&self) -> bool {
        self.is_majority(|member| self.view.alive.is_alive(member))
    }

    fn is_majority(&self, says: impl Fn(u8) -> bool) -> bool {
        self.view.members.iter().filter(|member| says(**member)).count() * 2 > self.view.members.len()
    }
}

fn hold(vip: IpAddr, actions: &mut Vec<Action>) -> State {
    actions.extend([Action::Hold(vip), Action::Announce(vip)]);
    State::Held
}

#[cfg(test)]
mod tests;
