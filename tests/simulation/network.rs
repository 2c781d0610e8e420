//! What lies between the hosts: a segment that loses, delays and duplicates frames, and the connections that agents keep
//! over it, which lose nothing while they stand.

use std::collections::{BTreeMap, BTreeSet};

use suite::random::Random;

use super::{MS, SECOND};

/// Nothing came over a connection for so long: it is dead.
const IDLE: u64 = 5 * SECOND;
/// What could not be delivered over a connection is tried again.
const AGAIN: u64 = 40 * MS;

/// What goes from host to host.
pub enum Content {
    /// A frame on the segment.
    Frame(Vec<u8>),
    /// From desk to desk.
    Word(Vec<u8>),
    /// A batch of flows.
    Batch(u64, Vec<u8>),
    /// The answer to one.
    Answer(u64, Vec<u8>),
}

/// Something on its way.
pub struct Parcel {
    /// The sender.
    pub from: u8,
    /// The receiver.
    pub to: u8,
    /// What it is.
    pub content: Content,
    /// The connection that it goes over, if any.
    connection: Option<u64>,
}

struct Connection {
    id: u64,
    /// The processes at its ends.
    lives: (u64, u64),
    broken_since: Option<u64>,
}

/// The network.
#[derive(Default)]
pub struct Network {
    flying: BTreeMap<(u64, u64), Parcel>,
    sent: u64,
    /// Directions in which nothing gets through.
    pub cuts: BTreeSet<(u8, u8)>,
    /// Frames lost, of 100.
    pub loss: usize,
    /// Frames that come twice, of 100.
    pub twice: usize,
    /// What a frame may be late beyond the usual, nanoseconds.
    pub jitter: u64,
    connections: BTreeMap<(u8, u8), Connection>,
    redial: BTreeMap<(u8, u8), u64>,
    opened: u64,
}

fn pair(one: u8, other: u8) -> (u8, u8) {
    (one.min(other), one.max(other))
}

impl Network {
    /// Whether what one host sends reaches another.
    pub fn is_open(&self, from: u8, to: u8) -> bool {
        !self.cuts.contains(&(from, to))
    }

    fn fly(&mut self, at: u64, parcel: Parcel) {
        self.sent += 1;
        self.flying.insert((at, self.sent), parcel);
    }

    /// Puts a frame on the segment.
    pub fn send_frame(&mut self, from: u8, to: u8, bytes: &[u8], now: u64, random: &mut Random) {
        if !self.is_open(from, to) || self.loss > 0 && random.below(100) < self.loss {
            return;
        }
        let times = if self.twice > 0 && random.below(100) < self.twice { 2 } else { 1 };
        for _ in 0..times {
            let late = if self.jitter > 0 { random.number() % self.jitter } else { 0 };
            let at = now + 100_000 + random.number() % 300_000 + late;
            self.fly(at, Parcel { from, to, content: Content::Frame(bytes.to_vec()), connection: None });
        }
    }

    /// Sends over the connection between two agents, if there is one.
    pub fn send(&mut self, from: u8, to: u8, content: Content, now: u64, random: &mut Random) {
        let Some(connection) = self.connections.get(&pair(from, to)) else { return };
        let connection = Some(connection.id);
        // What is lost is sent again, later.
        let lost = self.loss > 0 && random.below(100) < self.loss;
        let late = if self.jitter > 0 { random.number() % self.jitter } else { 0 } + if lost { AGAIN } else { 0 };
        let at = now + 200_000 + random.number() % 600_000 + late;
        self.fly(at, Parcel { from, to, content, connection });
    }

    /// The next thing that arrives until `now`, and when. What a connection cannot deliver yet stays on its way, as long as
    /// the connection stands; `listens` says who takes anything at present.
    pub fn arrival(&mut self, now: u64, listens: impl Fn(u8) -> bool) -> Option<(u64, Parcel)> {
        loop {
            let (&key, _) = self.flying.first_key_value()?;
            if key.0 > now {
                return None;
            }
            let parcel = self.flying.remove(&key)?;
            let open = self.is_open(parcel.from, parcel.to);
            match parcel.connection {
                None if open => return Some((key.0, parcel)),
                None => {}
                Some(id) => {
                    let stands = self.connections.get(&pair(parcel.from, parcel.to)).is_some_and(|one| one.id == id);
                    match (stands, open && listens(parcel.to)) {
                        (true, true) => return Some((key.0, parcel)),
                        (true, false) => self.fly(key.0.max(now) + AGAIN, parcel),
                        (false, _) => {}
                    }
                }
            }
        }
    }

    /// Looks after connections. `lives` are the processes that run, by node, and whether each does anything at present.
    pub fn look_after(&mut self, lives: &BTreeMap<u8, (u64, bool)>, now: u64, random: &mut Random) {
        let pairs = |(&one, _)| lives.keys().filter(move |other| **other > one).map(move |&other| (one, other));
        let both: Vec<(u8, u8)> = lives.iter().flat_map(pairs).collect();
        let life = |id: u8| lives.get(&id).map_or(0, |(life, _)| *life);
        self.connections.retain(|&(one, other), connection| {
            let well = |id: u8| lives.get(&id).is_some_and(|(_, awake)| *awake);
            let open = !self.cuts.contains(&(one, other)) && !self.cuts.contains(&(other, one));
            let same = connection.lives == (life(one), life(other));
            if same && open && well(one) && well(other) {
                connection.broken_since = None;
                return true;
            }
            let since = *connection.broken_since.get_or_insert(now);
            // A new process takes the old one's place at once, one that is gone is missed after a while.
            let replaced = !same && life(one) != 0 && life(other) != 0;
            !replaced && now - since < IDLE
        });
        for (one, other) in both {
            if self.connections.contains_key(&(one, other)) {
                self.redial.remove(&(one, other));
                continue;
            }
            let well = |id: u8| lives.get(&id).is_some_and(|(_, awake)| *awake);
            if !well(one) || !well(other) || !self.is_open(one, other) || !self.is_open(other, one) {
                self.redial.remove(&(one, other));
                continue;
            }
            let at = *self.redial.entry((one, other)).or_insert_with(|| now + 20 * MS + random.number() % (400 * MS));
            if at <= now {
                self.opened += 1;
                let connection = Connection { id: self.opened, lives: (life(one), life(other)), broken_since: None };
                self.connections.insert((one, other), connection);
            }
        }
    }

    /// The agents that one has a connection with.
    pub fn connected(&self, id: u8) -> Vec<u8> {
        let other = |&(one, other): &(u8, u8)| match id {
            _ if one == id => Some(other),
            _ if other == id => Some(one),
            _ => None,
        };
        self.connections.keys().filter_map(other).collect()
    }

    /// Ends all cuts, losses and delays.
    pub fn heal(&mut self) {
        self.cuts.clear();
        (self.loss, self.twice, self.jitter) = (0, 0, 0);
    }
}
