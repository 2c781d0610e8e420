//! What must hold at every moment, and what must hold again once all is healed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use redirector::agent::lookout::digest;
use redirector::consensus::disk::key;
use redirector::consensus::frame::{self, Kind};
use redirector::consensus::machine::Role;
use redirector::dataplane::liveness::LivenessTables as _;
use redirector::replication::key::FlowKey;
use redirector_ebpf::stations::owner::first_alive;
use redirector_ebpf::tables::Slot;

use super::host::Host;
use super::world::World;
use super::{HOSTS, MS, SECOND};

/// Changes of flows that may still be on their way to where copies are kept, nanoseconds.
const LAG: u64 = SECOND;
/// How long a node that comes back waits at most for its flows; then it is let in without.
const FLOWS: u64 = 10 * SECOND;
/// How long nobody may hold the VIP, or serve all that it should, once nothing happens any more.
const UNSERVED: u64 = 8 * SECOND;

/// A request for a sign of life.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// Its nonce.
    pub nonce: u64,
    /// When it was sent, by its sender's clock.
    pub at: u64,
}

/// A disk's vote: term and whom it voted for.
type Vote = (u64, u64);

/// What is known from watching.
#[derive(Default)]
pub(crate) struct Checks {
    /// What does not hold, once something does not.
    pub broken: Option<String>,
    /// What happened lately.
    pub story: Vec<String>,
    /// Requests that were sent and not answered, by asker and peer.
    asked: BTreeMap<(u8, u8), VecDeque<Asked>>,
    /// Nonces of answers that came while their receiver stood still, and until when each waits to be taken.
    owed: BTreeMap<(u8, u8), Vec<(u64, u64)>>,
    /// Digest of what is agreed on, by version.
    states: BTreeMap<u64, u64>,
    /// Digest of the rows in force, by when pools changed last.
    rows: BTreeMap<Vec<u64>, u64>,
    /// Votes by disk.
    votes: BTreeMap<(u8, Vec<u8>), Vote>,
    leaders: BTreeMap<u64, u8>,
    /// Slot versions in force, by node.
    slots: BTreeMap<u8, Vec<u64>>,
    /// The last change that was acknowledged: index, version.
    last: (u64, u64),
    /// What each acknowledged version says.
    acknowledged: BTreeMap<u64, String>,
    /// A digest of all that has happened.
    pub digest: u64,
    unserved_since: Option<u64>,
    unheld_since: Option<u64>,
}

impl Checks {
    pub(super) fn break_with(&mut self, what: impl std::fmt::Display) {
        self.broken.get_or_insert_with(|| what.to_string());
    }

    /// Mixes something that happened into the digest of all that has.
    pub(super) fn mix(&mut self, value: u64) {
        self.digest = (self.digest.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    /// A node's tables are new.
    pub(super) fn forget(&mut self, id: u8) {
        self.slots.remove(&id);
        self.asked.retain(|(asker, _), _| *asker != id);
        self.owed.retain(|(asker, _), _| *asker != id);
    }

    pub(super) fn asked(&mut self, asker: u8, peer: u8, asked: Asked) {
        let all = self.asked.entry((asker, peer)).or_default();
        all.push_back(asked);
        if all.len() > 64 {
            all.pop_front();
        }
    }

    pub(super) fn answered(&mut self, asker: u8, peer: u8, nonce: u64) {
        if let Some(all) = self.asked.get_mut(&(asker, peer))
            && let Some(at) = all.iter().position(|asked| asked.nonce == nonce)
        {
            all.drain(..=at);
        }
    }

    pub(super) fn owed(&mut self, asker: u8, peer: u8, nonce: u64, until: u64) {
        self.owed.entry((asker, peer)).or_default().push((nonce, until));
    }

    /// Whether an answer waits to be taken. One that a later answer has overtaken is never taken, nor one that is cut off
    /// on its last millisecond.
    fn is_owed(&mut self, asker: u8, peer: u8, now: u64) -> bool {
        let Some(owed) = self.owed.get_mut(&(asker, peer)) else { return false };
        owed.retain(|(_, until)| *until >= now);
        let asked = self.asked.get(&(asker, peer));
        owed.iter().any(|(nonce, _)| asked.is_some_and(|all| all.iter().any(|asked| asked.nonce == *nonce)))
    }

    pub(super) fn acknowledged(&mut self, index: u64, version: u64, text: String) {
        self.last = self.last.max((index, version));
        self.mix(index ^ version << 32);
        if let Some(other) = self.acknowledged.insert(version, text.clone())
            && other != text
        {
            self.break_with(format_args!("two changes were acknowledged as version {version}"));
        }
    }
}

impl World {
    /// All that is looked at with every step.
    pub(super) fn look(&mut self) {
        for at in 0..self.hosts.len() {
            self.look_at_state(at);
        }
        if self.now.is_multiple_of(10 * MS) {
            for at in 0..self.hosts.len() {
                self.look_at_vote(at);
            }
            self.look_at_leaders();
        }
        if self.now.is_multiple_of(100 * MS) {
            self.look_at_service();
            if !self.faulty && !self.calm && self.is_calm() {
                self.calm = true;
                self.guarantee();
            } else if self.calm {
                self.guarantee();
            }
        }
    }

    /// The same index is the same state everywhere, acknowledged changes are in it, and tables follow from it.
    fn look_at_state(&mut self, at: usize) {
        let Host { id, agent: Some(agent), plane: Some(plane), seen, .. } = &mut self.hosts[at] else { return };
        let (id, state) = (*id, agent.desk.state().clone());
        if Arc::ptr_eq(seen, &state) {
            return;
        }
        seen.clone_from(&state);
        if state.version == 0 {
            return;
        }
        let checks = &mut self.checks;
        let of_all = state.digest();
        checks.mix(of_all ^ u64::from(id));
        let known = *checks.states.entry(state.version).or_insert(of_all);
        if known != of_all {
            checks.break_with(format_args!("n{id} has another state at {} than others", state.version));
        }
        let (index, version) = checks.last;
        if state.version >= index && state.specification.version < version {
            checks.break_with(format_args!("n{id} at {} lacks the acknowledged version {version}", state.version));
        }
        if checks.acknowledged.get(&state.specification.version).is_some_and(|text| *text != state.specification.text) {
            let version = state.specification.version;
            checks.break_with(format_args!("n{id}: version {version} is not what was acknowledged"));
        }
        let applied = plane.board.condition().applied.load();
        if applied == state.version {
            let agreed: Vec<Slot> = state.slots.iter().map(|slot| (*slot).into()).collect();
            if digest(plane.slots()) != digest(&agreed) || plane.board.condition().slots.load() != digest(&agreed) {
                checks.break_with(format_args!("n{id} applied {applied} and has another slot table"));
            }
        }
        if agent.follower.installed() == state.version {
            let since: Vec<u64> = state.pools.values().map(|pool| pool.since).collect();
            let rows = std::hash::BuildHasher::hash_one(
                &std::hash::BuildHasherDefault::<std::hash::DefaultHasher>::default(),
                format!("{:?}", plane.rows()),
            );
            // Previous backends that a node never had are named by none; only a node that was there throughout compares.
            if *checks.rows.entry(since).or_insert(rows) != rows {
                checks.break_with(format_args!("n{id} applied {applied} and has other rows"));
            }
        }
        let versions: Vec<u64> = plane.slots().iter().map(|slot| slot.version).collect();
        if agent.follower.followed().is_some() {
            let before = checks.slots.insert(id, versions.clone()).unwrap_or_default();
            if before.iter().zip(&versions).any(|(before, after)| before > after) {
                checks.break_with(format_args!("n{id}: a slot's version went back"));
            }
        }
    }

    /// Terms go up, and a disk votes once in each.
    fn look_at_vote(&mut self, at: usize) {
        let Host { id, disk, agent: Some(_), .. } = &self.hosts[at] else { return };
        let (Some(identity), Some(position)) =
            (disk.record(key(Kind::Identity, 0)), disk.record(key(Kind::Position, 0)))
        else {
            return;
        };
        // As the log has it: term, vote, commit, base, snapshot, last.
        type Position = (u64, u64, u64, (u64, u64), (u64, u64), u64);
        let Ok((term, vote, ..)) = frame::open::<Position>(Kind::Position, 0, &position) else { return };
        let before = self.checks.votes.insert((*id, identity), (term, vote)).unwrap_or_default();
        if term < before.0 || term == before.0 && before.1 != 0 && vote != before.1 {
            let what = format!("n{id}'s vote went from {before:?} to {:?}", (term, vote));
            self.checks.break_with(what);
        }
    }

    fn look_at_leaders(&mut self) {
        for host in &self.hosts {
            let Some(agent) = &host.agent else { continue };
            let status = agent.status();
            if status.role == Role::Leader {
                let leader = *self.checks.leaders.entry(status.term).or_insert(host.id);
                if leader != host.id {
                    let what = format!("n{leader} and n{} led in term {}", host.id, status.term);
                    self.checks.break_with(what);
                }
            }
        }
    }

    /// Nobody is suspected without own requests that are unanswered, and whose answers do not wait to be taken.
    pub(super) fn check_suspicion(&mut self, at: usize, peer: u8) {
        let host = &self.hosts[at];
        let Some(plane) = &host.plane else { return };
        let Ok(watch) = plane.board.watch() else { return };
        let time = host.time(self.now);
        let reborn = plane.board.admission(peer).is_some_and(|(row, _)| {
            let heard = plane.board.heard(peer, 0).incarnation.load();
            heard != 0 && heard != plane.board.watched(row).incarnation.load()
        });
        let due = watch.multiplier as usize;
        let asked = self.checks.asked.get(&(host.id, peer));
        let is_silent = asked.is_some_and(|asked| {
            let age = |place: usize| asked.get(place).map_or(0, |asked| time.saturating_sub(asked.at));
            let long = (due as u64 - 1) * watch.interval + watch.grace;
            asked.len() >= due && age(0) + MS >= long && age(due - 1) + MS >= watch.grace
        });
        let id = host.id;
        let waits = self.checks.is_owed(id, peer, self.now);
        self.checks.mix(u64::from(id) << 8 | u64::from(peer));
        self.summary.suspicions += 1;
        if !reborn && !is_silent {
            self.checks.break_with(format_args!("n{id} suspects n{peer} without unanswered requests of its own"));
        } else if !reborn && waits {
            self.checks.break_with(format_args!("n{id} suspects n{peer}, whose answers wait to be taken"));
        }
    }

    /// Nobody is let in before it has the flows that it is to have.
    pub(super) fn check_admission(&mut self, at: usize, peer: u8) {
        let (host, other) = (&self.hosts[at], &self.hosts[usize::from(peer) - 1]);
        self.checks.mix(u64::from(host.id) << 16 | u64::from(peer));
        let (Some(plane), Some(theirs)) = (&host.plane, &other.plane) else {
            // Its answers may have been on their way when it died.
            return;
        };
        // Who does not serve yet lets in one after the other, and sends nobody's packets to the wrong one meanwhile.
        let Some(agent) = host.agent.as_ref().filter(|_| host.is_fit) else { return };
        // An agent that stood still goes for a moment by what it knew before.
        // Nor is there a bound to how late copies are where the network loses and delays.
        if self.now - host.acts_since < LAG || self.network.loss > 0 {
            return;
        }
        let time = host.time(self.now);
        let long = |since: u64| time.saturating_sub(since) >= FLOWS;
        let state = agent.lookout.detector().peers().get(&peer);
        if state.is_some_and(|state| long(state.since.as_nanos() as u64)) {
            return;
        }
        let incarnation = theirs.board.watch().map_or(0, |watch| u64::from(watch.incarnation));
        let admitted = plane.board.admission(peer).map_or(0, |(row, _)| plane.board.watched(row).incarnation.load());
        if incarnation != admitted {
            return;
        }
        if let Some(missing) = self.missing(host, other) {
            let id = host.id;
            self.checks.break_with(format_args!("n{id} lets n{peer} in, which has not got {missing}"));
        }
    }

    /// A flow of a host that another one is to serve in its eyes, and has not got.
    fn missing(&self, host: &Host, other: &Host) -> Option<String> {
        let (plane, theirs) = (host.plane.as_ref()?, other.plane.as_ref()?);
        let (memory, time) = (&plane.tables.memory, host.time(self.now));
        let (hash, idle) = (memory.image.node.hash_key, memory.image.node.idle);
        let mask = memory.image.slots.len() as u32 - 1;
        memory.flows.iter(&hash).find_map(|flow| {
            // Only of proven flows others hear; one that was copied here has been for longer than it was recorded.
            let is_young = |since: &u64| self.now - since <= LAG;
            let is_old = time.saturating_sub(flow.record.since) > LAG
                && !host.proven.get(&flow.source()).is_some_and(is_young)
                && flow.entry.idle(time) + 1 < 16;
            let live = flow.entry.proven() && !flow.entry.expired(&idle, time) && is_old;
            let flow_key = FlowKey::new(&flow.record.tuple, flow.v6);
            let slot = flow_key.slot(&hash, mask) as usize;
            // Where others come first it may be on its way to become an owner, and yet to be given flows.
            if !live || first_alive(&memory.image.slots[slot], &memory.image.alive) != other.id {
                return None;
            }
            let copy = theirs.tables.memory.flows.find(&hash, &flow.record.tuple, flow.v6);
            let copied = copy.and_then(|copy| theirs.backend(copy.entry.backend()));
            let own = plane.backend(flow.entry.backend());
            (copied.is_none()).then(|| format!("{} on {own:?}, of slot {slot}", flow.source()))
        })
    }

    /// The nodes that hold the VIP.
    pub(super) fn holders(&self) -> Vec<u8> {
        let holds = |host: &&Host| host.plane.as_ref().is_some_and(|plane| !plane.tables.memory.held.is_empty());
        self.hosts.iter().filter(|host| host.forwards()).filter(holds).map(|host| host.id).collect()
    }

    /// While one node lives, some node serves, and some node holds the VIP.
    fn look_at_service(&mut self) {
        let lives = self.hosts.iter().any(Host::acts);
        let serves = self.hosts.iter().any(|host| host.forwards() && host.is_fit);
        let holds = !self.holders().is_empty();
        let formed = self.checks.last.0 > 0;
        let since = self.disturbed;
        let mut look = |holds: bool, place: fn(&mut super::checks::Checks) -> &mut Option<u64>, what: &str| {
            let now = self.now;
            let begun = place(&mut self.checks);
            if holds || !lives || !formed {
                *begun = None;
                return;
            }
            let begun = (*begun.get_or_insert(now)).max(since);
            if now - begun > UNSERVED {
                self.checks.break_with(format_args!("for {} s {what}", UNSERVED / SECOND));
            }
        };
        look(serves, |checks| &mut checks.unserved_since, "no node has served all that it should, though one lives");
        look(holds, |checks| &mut checks.unheld_since, "no node has held the VIP, though one lives");
    }

    /// One leader, one table, two owners of each slot.
    pub(super) fn is_well(&self) -> bool {
        let Some(first) = self.hosts[0].agent.as_ref() else { return false };
        let (leader, version) = (first.status().leader, first.desk.state().version);
        let slots = self.hosts[0].plane.as_ref().map(|plane| digest(plane.slots()));
        leader.is_some()
            && self.hosts.iter().all(|host| {
                let Some((agent, plane)) = host.agent.as_ref().zip(host.plane.as_ref()) else { return false };
                let status = agent.status();
                let leads = status.role == Role::Leader;
                status.leader == leader
                    && leads == (leader == Some(host.id))
                    && (!leads || status.is_redundant)
                    && agent.desk.state().version == version
                    && Some(digest(plane.slots())) == slots
            })
    }

    /// That, and everybody is up, votes, is alive in everybody's eyes and has all copies.
    pub(super) fn is_calm(&self) -> bool {
        self.is_well()
            && self.hosts.iter().all(|host| {
                let Some((agent, plane)) = host.agent.as_ref().zip(host.plane.as_ref()) else { return false };
                let state = agent.desk.state();
                let votes = |id| state.members.get(&id).and_then(|member| member.seat).is_some_and(|seat| seat.votes);
                let others: Vec<u8> = (1..=HOSTS).filter(|id| *id != host.id).collect();
                (1..=HOSTS).all(|id| state.is_up(id) && votes(id) && plane.tables.memory.image.alive.is_alive(id))
                    && agent.follower.installed() == state.version
                    && agent.owes_nothing(&others)
            })
    }

    /// Connections whose flow all its slot's owners have must stay where they are.
    fn guarantee(&mut self) {
        let hosts = &self.hosts;
        for connection in self.connections.iter_mut().filter(|connection| connection.served >= 2) {
            let Some(backend) = &connection.backend else { continue };
            let has = |host: &Host| {
                let Some(plane) = &host.plane else { return false };
                let memory = &plane.tables.memory;
                let slot = connection.slot(&memory.image.node.hash_key, memory.image.slots.len() as u32 - 1);
                let slot = memory.image.slots[slot as usize];
                let flow = memory.flows.find(&memory.image.node.hash_key, &connection.tuple(), false);
                if !slot.ranks.contains(&host.id) {
                    // A previous owner that has chosen otherwise has lost the client its connection already.
                    let strays = flow.is_some_and(|flow| plane.backend(flow.entry.backend()) != Some(backend));
                    return slot.previous != host.id || !strays;
                }
                let time = host.time(self.now);
                flow.is_some_and(|flow| {
                    let lives = flow.entry.proven() && !flow.entry.expired(&memory.image.node.idle, time);
                    lives && plane.backend(flow.entry.backend()) == Some(backend)
                })
            };
            connection.guaranteed = hosts.iter().all(has);
        }
    }
}
