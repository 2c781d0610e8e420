//! The sender's part for paths: requests to far ends, over each leg at its own interval.

use std::collections::BTreeMap;

use aya::maps::{Array, MapData};
use redirector_ebpf::beat::Beat;
use redirector_ebpf::tables::leg::LegSent;
use redirector_ebpf::tables::liveness::{REMEMBERED, slot};
use redirector_ebpf::tables::path::{RESOLVED, kind};
use serde::{Deserialize, Serialize};

use super::frame::{self, Tunnel, Way};
use super::sender::octets;
use super::socket::PacketSocket;
use crate::dataplane::address::ip;
use crate::dataplane::image::Leg;
use crate::dataplane::paths::PathMaps;

/// A leg that requests go over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FarEnd {
    /// Its number.
    pub number: u16,
    /// The way.
    pub leg: Leg,
    /// The kernel's index of the interface.
    pub interface: u32,
    /// The interface's MAC address.
    pub mac: u64,
    /// Nanoseconds between two requests.
    pub interval: u64,
}

/// Which far ends to ask, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FarPlan {
    /// This node.
    pub node: u8,
    /// The cluster.
    pub cluster: u32,
    /// This host's boot id.
    pub boot_id: u64,
    /// The key, and its number.
    pub key: ([u64; 2], u8),
    /// The legs.
    pub ends: Vec<FarEnd>,
}

/// What is measured of a leg.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LegFigures {
    /// Requests sent.
    pub sent: u64,
    /// Answers taken.
    pub answered: u64,
    /// Round trip, smoothed as TCP does (RFC 6298), microseconds.
    pub round_trip_us: f64,
    /// The longest, microseconds.
    pub round_trip_max_us: u64,
    /// The longest time between two answers, microseconds.
    pub gap_max_us: u64,
}

/// Sockets by interface, each with the frames that are about to leave.
pub(super) type Sockets = BTreeMap<u32, (PacketSocket, Vec<Vec<u8>>)>;

/// A leg that is being asked over.
struct Asked {
    end: FarEnd,
    way: Way,
    target_mac: Option<[u8; 6]>,
    due: u64,
    /// The last answer that is in the figures, and when it came.
    recorded: u64,
    came: u64,
}

/// All legs.
pub(super) struct Legs {
    maps: PathMaps,
    plan: FarPlan,
    asked: Vec<Asked>,
    nonce_base: u64,
    due: u64,
    pub(super) figures: BTreeMap<u16, LegFigures>,
}

/// Without legs nothing is due.
const NEVER: u64 = u64::MAX;

impl Legs {
    pub(super) fn new(maps: PathMaps, nonce_base: u64) -> Self {
        let plan = FarPlan::default();
        Self { maps, plan, asked: Vec::new(), nonce_base, due: NEVER, figures: BTreeMap::new() }
    }

    /// Takes over whom to ask. Legs that share an interval are asked spread over it, not all at once.
    pub(super) fn set_plan(&mut self, plan: FarPlan, now: u64) {
        let count = plan.ends.len().max(1) as u64;
        self.asked = plan
            .ends
            .iter()
            .enumerate()
            .map(|(at, end)| {
                let (sent, heard) = (self.maps.sent(end.number), self.maps.heard(end.number));
                // No answer that was asked for before counts any more.
                sent.nonce_base.store(self.nonce_base);
                let due = now + end.interval * at as u64 / count;
                let recorded = heard.answered.load();
                Asked { end: end.clone(), way: way(end), target_mac: None, due, recorded, came: 0 }
            })
            .collect();
        self.figures.retain(|number, _| plan.ends.iter().any(|end| end.number == *number));
        self.due = if self.asked.is_empty() { NEVER } else { now };
        self.plan = plan;
    }

    /// When the next request is due.
    pub(super) fn due(&self) -> u64 {
        self.due
    }

    pub(super) fn read_next_hops(&mut self, neighbours: &Array<MapData, u64>) {
        for asked in &mut self.asked {
            let word = neighbours.get(&asked.end.leg.path.neighbour, 0).unwrap_or(0);
            asked.target_mac = (word & RESOLVED != 0).then(|| octets(word));
        }
    }

    /// Writes the requests that are due. Rounds that were missed are left out: a stall of this thread is nobody's silence.
    pub(super) fn ask(&mut self, time: u64, sockets: &mut Sockets) {
        self.due = NEVER;
        for asked in &mut self.asked {
            if time >= asked.due {
                let missed = (time - asked.due) / asked.end.interval;
                asked.due += (missed + 1) * asked.end.interval;
                let number = asked.end.number;
                let sent = self.maps.sent(number);
                let beat = request(&self.plan, number, sent, self.nonce_base, time);
                let (Some(target_mac), Some((_, frames))) = (asked.target_mac, sockets.get_mut(&asked.end.interface))
                else {
                    self.due = self.due.min(asked.due);
                    continue;
                };
                let mut bytes = Vec::with_capacity(256);
                if frame::write(&mut bytes, &Way { target_mac, ..asked.way }, &beat) {
                    frames.push(bytes);
                    self.figures.entry(number).or_default().sent += 1;
                }
            }
            self.due = self.due.min(asked.due);
        }
    }

    /// Puts new answers into the figures.
    pub(super) fn record(&mut self) {
        for asked in &mut self.asked {
            let number = asked.end.number;
            let (sent, heard) = (self.maps.sent(number), self.maps.heard(number));
            let answered = heard.answered.load();
            let from = (asked.recorded + 1).max((answered + 1).saturating_sub(REMEMBERED as u64 - 1));
            for request in from..=answered {
                let (went, came) = (sent.time(request), slot(&heard.times, request).load());
                // One that was never answered leaves an older time in its place.
                if went == 0 || came < went {
                    continue;
                }
                let figures = self.figures.entry(number).or_default();
                let round_trip = (came - went) / 1000;
                let share = if figures.answered == 0 { 1.0 } else { 0.125 };
                figures.answered += 1;
                figures.round_trip_us += (round_trip as f64 - figures.round_trip_us) * share;
                figures.round_trip_max_us = figures.round_trip_max_us.max(round_trip);
                if asked.came != 0 {
                    figures.gap_max_us = figures.gap_max_us.max(came.saturating_sub(asked.came) / 1000);
                }
                asked.came = came;
            }
            asked.recorded = answered.max(asked.recorded);
        }
    }
}

/// The next request over a leg. It is written down before it is sent: else its answer could come before its number. One to
/// a next hop that is not known counts too, since whoever cannot be asked cannot be used.
fn request(plan: &FarPlan, leg: u16, sent: &LegSent, nonce_base: u64, time: u64) -> Beat {
    let number = sent.sequence.load() + 1;
    let turn = [number, nonce_base.wrapping_add(number), time];
    let (key, key_id) = &plan.key;
    let mut beat = Beat::path_request(*key_id, plan.cluster, plan.node, plan.boot_id, u32::from(leg), turn);
    beat.seal_with(key);
    slot(&sent.times, number).store(time);
    sent.sequence.store(number);
    beat
}

fn way(end: &FarEnd) -> Way {
    let Leg { path, source, target } = &end.leg;
    let v6 = path.outer_v6 != 0;
    let tunnel = Tunnel {
        source: ip(&path.local, v6),
        target: ip(&path.remote, v6),
        gue: (path.kind == kind::GUE).then_some(path.remote_port),
    };
    Way {
        source_mac: octets(end.mac),
        target_mac: [0; 6],
        vlan: path.vlan,
        source: *source,
        target: *target,
        tunnel: (path.kind != kind::L2).then_some(tunnel),
    }
}
