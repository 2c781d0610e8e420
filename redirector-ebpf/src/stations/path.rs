//! Station 9: the backend's best-ranked path whose alive bit is set; if none is, the least bad: the first whose port has a
//! carrier, or just the first. The backend stays.
//!
//! What packets say of the path that they take is noted: that they open a flow, once more maybe, or end one by a reset.

use super::Journey;
use crate::abi::PATHS;
use crate::hash::FlowHash;
use crate::packet::{Kind, Packet, protocol, tcp};
use crate::reason::{Reason, Station};
use crate::tables::path::alive;
use crate::tables::signal::{SIGHTINGS, Sight, Sighting, place};
use crate::tables::{Backend, Tables};

/// A path that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Its id.
    pub path: u16,
    /// Its rank among the backend's.
    pub rank: u8,
    /// Whether its alive bit is set.
    pub alive: bool,
}

/// Chooses the path of a backend.
///
/// # Errors
/// [`Reason::NoPath`] where the backend has none at all.
#[inline(always)]
pub fn choose<T: Tables>(tables: &T, backend: &Backend) -> Station<Choice> {
    if let Some(choice) = first_alive(tables, backend) {
        return Ok(choice);
    }
    if backend.paths[0] == 0 {
        return Err(Reason::NoPath);
    }
    let paths = packed(backend);
    let rank = tables.least_bad(paths);
    Ok(Choice { path: of_rank(paths, rank.into()), rank, alive: false })
}

/// The first path that is alive.
#[inline(always)]
pub fn first_alive<T: Tables>(tables: &T, backend: &Backend) -> Option<Choice> {
    let mut rank = 0;
    while rank < PATHS {
        let path = backend.paths[rank];
        if path != 0 && tables.path_alive(path) == alive::ON {
            return Some(Choice { path, rank: rank as u8, alive: true });
        }
        rank += 1;
    }
    None
}

/// A backend's paths in one word, the first in the lowest bits.
#[inline(always)]
fn packed(backend: &Backend) -> u64 {
    let [first, second, third] = backend.paths;
    first as u64 | (second as u64) << 16 | (third as u64) << 32
}

#[inline(always)]
fn of_rank(paths: u64, rank: u32) -> u16 {
    paths.wrapping_shr(rank * u16::BITS) as u16
}

/// The rank of the path to take where none of these, in one word, is alive.
#[inline(always)]
pub fn least_bad<T: Tables>(tables: &T, paths: u64) -> u8 {
    let mut rank = 0;
    while rank < PATHS {
        let path = of_rank(paths, rank as u32);
        if path != 0 && tables.path_alive(path) != alive::UNPLUGGED {
            return rank as u8;
        }
        rank += 1;
    }
    0
}

/// Whether a packet says anything of its path.
#[inline(always)]
pub fn speaks(packet: &Packet) -> bool {
    packet.tcp_flags & (tcp::SYN | tcp::RST) != 0 && packet.tuple.protocol == protocol::TCP
}

/// Bits that stand for a packet's connection: the lower half for its flow, the upper half for its sequence number too. A SYN
/// that comes again has the same; one that opens another connection from the same port does not.
#[inline(always)]
pub fn bits(hash: FlowHash, packet: &Packet) -> u64 {
    hash.own() ^ u64::from(packet.sequence) << 32
}

/// Takes note of a TCP packet that [`speaks`], by the [`bits`] of its connection, the path that it takes, and its flags.
#[inline(always)]
pub fn note<T: Tables>(tables: &T, bits: u64, backend: u16, rank: u8, tcp_flags: u8) {
    if !tables.leg_rules().is_some_and(|rules| rules.notes(bits)) {
        return;
    }
    let Some(signals) = tables.signals(backend, rank) else { return };
    if tcp_flags & tcp::RST != 0 {
        signals.resets.add(1);
        return;
    }
    if tcp_flags & tcp::ACK != 0 {
        return;
    }
    let Some(cell) = tables.sighting(bits as u32 & (SIGHTINGS as u32 - 1)) else { return };
    let seen = Sighting::new((bits >> 32) as u32, place(backend, rank), tables.instant().milliseconds);
    match seen.after(cell.load()) {
        Sight::Doubled => return,
        Sight::New => signals.opened.add(1),
        Sight::Again => signals.again.add(1),
    }
    cell.store(seen.word());
}

/// Takes note of a journey's packet, if it speaks of its path.
#[inline(always)]
pub fn note_journey<T: Tables>(tables: &T, journey: &Journey) {
    let packet = &journey.packet;
    if !matches!(packet.kind, Kind::Whole) || !speaks(packet) {
        return;
    }
    let Some(node) = tables.node() else { return };
    let hash = FlowHash::of(&node.hash_key, &packet.tuple, packet.v6);
    note(tables, bits(hash, packet), journey.backend, journey.rank, packet.tcp_flags);
}
