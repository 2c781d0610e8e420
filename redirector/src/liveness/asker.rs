//! Which requests go out when, without threads and sockets: the sender's thread carries them out.

use std::ops::RangeInclusive;

use redirector_ebpf::beat::{Beat, Kind};
use redirector_ebpf::stations::beat::age_ms;
use redirector_ebpf::sync::Word;
use redirector_ebpf::tables::liveness::{Vitals, Watch, slot};
use redirector_ebpf::tables::{AliveNodes, Path};

use crate::dataplane::liveness::LivenessTables;

/// How often alive bits are looked at, nanoseconds: half an interval, so that every second look falls onto a round and costs
/// no waking up of its own; but within these bounds, and never less often than once an interval.
const LOOK: RangeInclusive<u64> = 4_000_000..=10_000_000;

/// A link that requests go over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkPlan {
    /// The peer.
    pub node: u8,
    /// The way to it; it names port, VLAN, next hop and both addresses.
    pub path: Path,
    /// The kernel's index of the interface.
    pub interface: u32,
    /// The interface's MAC address.
    pub mac: u64,
}

/// Whom to ask, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// This node.
    pub node: u8,
    /// The cluster.
    pub cluster: u32,
    /// The rules, as the map has them.
    pub watch: Watch,
    /// The links.
    pub links: Vec<LinkPlan>,
}

/// What has changed since it was last looked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// An alive bit: it is to be beaten out at once.
    pub alive: bool,
    /// That, or what peers say of theirs or of themselves.
    pub any: bool,
}

/// Who asks. Times are monotonic nanoseconds.
pub struct Asker {
    plan: Option<Plan>,
    nonce_base: u64,
    /// When the next round of requests is due.
    round: u64,
    alive: AliveNodes,
    views: u64,
}

impl Asker {
    /// Nobody is asked yet. `nonce_base` is drawn anew with every start, so that no answer to an earlier one fits.
    pub fn new(nonce_base: u64, time: u64) -> Self {
        Self { plan: None, nonce_base: nonce_base >> 1, round: time, alive: AliveNodes::default(), views: 0 }
    }

    /// The plan in force.
    pub fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref()
    }

    /// Changes whom to ask and how.
    pub fn set_plan(&mut self, maps: &impl LivenessTables, plan: Plan) {
        for link in &plan.links {
            // No answer that was asked for before counts any more.
            maps.sent(link.node, link.path.port).nonce_base.store(self.nonce_base);
        }
        self.plan = Some(plan);
    }

    fn interval(&self) -> u64 {
        self.plan.as_ref().map_or(*LOOK.start(), |plan| plan.watch.interval.max(1_000_000))
    }

    /// Whether a round is due. Those that were missed are left out, so that a stall of this node looks like nobody's death;
    /// says how many.
    pub fn round(&mut self, time: u64) -> Option<u64> {
        let interval = self.interval();
        let missed = time.checked_sub(self.round)? / interval;
        self.round += (missed + 1) * interval;
        Some(missed)
    }

    /// When to look again, for a round or for changes.
    pub fn due(&self, time: u64) -> u64 {
        let interval = self.interval();
        self.round.min(time + (interval / 2).clamp(*LOOK.start(), *LOOK.end()).min(interval))
    }

    /// Asks on every link, or between two rounds on those whose last request was answered: else what is remembered of a link
    /// would reach back less far than its rounds, and a silent peer's time be over early.
    /// `send` gets each link with its place in the plan, and the request.
    pub fn ask(
        &self,
        maps: &impl LivenessTables,
        time: u64,
        between: bool,
        mut send: impl FnMut(usize, &LinkPlan, &Beat),
    ) {
        let Some(plan) = &self.plan else { return };
        let condition = maps.condition();
        let mut vitals = Vitals::of(condition.vitals.load());
        vitals.agent_age = age_ms(condition.agent.load(), time);
        let tables = [condition.applied.load(), condition.slots.load(), condition.pools.load()];
        let view = maps.alive();
        for (at, link) in plan.links.iter().enumerate() {
            let (node, port) = (link.node, link.path.port);
            let sent = maps.sent(node, port);
            let last = sent.sequence.load();
            if between && maps.heard(node, port).answered.load() != last {
                continue;
            }
            let number = last + 1;
            let mut beat = Beat::default();
            beat.set_head(&plan.watch, plan.cluster, Kind::Request, plan.node, node);
            beat.set_turn(number, self.nonce_base.wrapping_add(number), 0, time);
            beat.set_condition(vitals, tables, &view);
            beat.seal(&plan.watch);
            // Before it is sent: else the answer could come before the number. A request to a next hop that is not known
            // counts too, since whoever cannot be asked cannot be used.
            slot(&sent.times, number).store(time);
            sent.sequence.store(number);
            send(at, link, &beat);
        }
        condition.sender.store(time);
    }

    /// Looks what has changed.
    pub fn look(&mut self, maps: &impl LivenessTables) -> Changes {
        let alive = maps.alive();
        let links = self.plan.iter().flat_map(|plan| &plan.links);
        let heard = links.map(|link| maps.heard(link.node, link.path.port));
        let words = heard.flat_map(|heard| heard.view.iter().map(Word::load).chain([heard.vitals.load() & 0xff]));
        let views = words.fold(0u64, |sum, word| sum.rotate_left(7).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ word);
        let turned = std::mem::replace(&mut self.alive, alive) != alive;
        let any = std::mem::replace(&mut self.views, views) != views || turned;
        Changes { alive: turned, any }
    }
}
