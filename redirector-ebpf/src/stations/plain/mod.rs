//! The short way, which nearly all packets go: whole TCP and UDP packets without tags, IP options or extension headers,
//! to a service on one port of one address, over a path that is alive, while nobody traces.
//!
//! It passes the same stations and decides nothing differently; it only needs no [`super::Journey`], no second look at the
//! headers, and no table that its [`crate::tables::cell`] replaces. Whatever it does not know how to finish it leaves to
//! [`super::run`], untouched and uncounted: all that it looks at is looked at before anything is changed.
//!
//! In the kernel it is a program of its own, small enough to stay in registers, which tail-calls the other.

mod carry;
mod read;

use super::{admit, flow, owner, path, row};
use crate::abi::{BEAT_PORT, HOP_PORT};
use crate::hash::{FlowHash, Toward};
use crate::packet::{Frame, Packet, protocol};
use crate::reason::{Reason, Verdict};
use crate::tables::{Mark, Node, Path, Refusal, RefusedKey, Service, Tables, cell};

/// What becomes of a packet that goes the short way; `None`: it does not, and [`super::run`] is to take it.
#[inline(always)]
pub fn run<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Option<Verdict> {
    let node = tables.node()?;
    let (ingress, port) = tables.ingress()?;
    if node.trace != 0 {
        return None;
    }
    match read::family(frame, port.mac)? {
        read::Family::V4(source_mac) => {
            let packet = read::ipv4(frame, source_mac)?;
            steer(frame, tables, node, ingress, &packet, false)
        }
        read::Family::V6(source_mac) => {
            let packet = read::ipv6(frame, source_mac)?;
            steer(frame, tables, node, ingress, &packet, true)
        }
    }
}

/// Where a packet goes.
#[derive(Clone, Copy)]
enum To<'a> {
    /// To this backend, whose flow is not to be recorded.
    Backend(u16),
    /// To the backend of a known flow.
    Known(flow::Place<'a>, flow::Found),
    /// To this backend, as a new flow, which is recorded with its slot's version; with none if no owner is reached.
    New(flow::Place<'a>, u16, u64),
    /// To this node.
    Node(u8),
}

#[inline(always)]
fn steer<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    node: &Node,
    ingress: u8,
    packet: &Packet,
    v6: bool,
) -> Option<Verdict> {
    let toward = Toward::of(&node.hash_key, &packet.tuple, v6);
    let Some(service) = tables.cells(toward.cells())?.find(&packet.tuple, v6) else {
        return not_ours(tables, node, ingress, packet, toward);
    };
    let hash = FlowHash::from(&node.hash_key, toward, &packet.tuple.src, packet.tuple.sport, v6);
    let place = row::find(tables, &service, hash).ok()?;
    let to =
        if place.needs_owner { owned(tables, node, &place, hash, packet)? } else { To::Backend(place.row.current()) };

    let (path, backend, rank) = match to {
        To::Node(node) => (tables.peer(node)?, 0, 0),
        To::Backend(id) | To::New(_, id, _) => backend(tables, &service, id)?,
        To::Known(_, found) => backend(tables, &service, found.entry.backend())?,
    };
    let link = carry::Link::of(tables, packet, path)?;

    if node.limits_new_flows() && node.tells_refused != 0 {
        return None;
    }

    // From here on things change, and the packet ends here.
    if node.limits_new_flows()
        && let Err(why) = admit(tables, node, &service, packet, &to)
    {
        if let (Refusal::Established, To::Known(place, found)) = (why, to) {
            flow::renew(tables, &place, found, node, packet, &service);
        }
        tables.count(why.reason());
        tables.count_refused(RefusedKey::new(service.id, admit::class(&service, packet), why));
        return Some(Verdict { reason: why.reason(), port: ingress });
    }
    match to {
        To::Known(place, found) => flow::renew(tables, &place, found, node, packet, &service),
        To::New(place, id, version) => flow::record(tables, node, &place, packet, &service, id, version),
        To::Backend(_) | To::Node(_) => {}
    }
    if backend != 0 && path::speaks(packet) {
        tables.note(path::bits(hash, packet), backend, rank, packet.tcp_flags);
    }
    if carry::send(frame, packet, path, &link, hash, v6).is_none() {
        tables.count(Reason::NoRoom);
        return Some(Verdict { reason: Reason::NoRoom, port: ingress });
    }
    tables.count_service(service.id, u64::from(packet.l3_len));
    let reason = if backend == 0 {
        Reason::Forwarded
    } else {
        tables.count_backend(backend, rank, u64::from(packet.l3_len));
        Reason::Served
    };
    tables.count(reason);
    Some(Verdict { reason, port: path.port })
}

/// Station 5.
#[inline(always)]
fn admit<T: Tables>(tables: &T, node: &Node, service: &Service, packet: &Packet, to: &To<'_>) -> Result<(), Refusal> {
    let opens = packet.opens();
    let is_asked = match to {
        To::New(..) => opens || packet.tuple.protocol != protocol::TCP,
        _ => opens,
    };
    if is_asked && !(opens && comes_from_node(tables, packet)) {
        admit::new_flow(tables, node, service, packet)?;
    }
    match to {
        To::Backend(_) | To::Known(..) => admit::any(node, service, packet),
        To::New(..) | To::Node(_) => Ok(()),
    }
}

/// A packet that no cell knows: not ours, if no VIP, prefix or node can be meant.
#[inline(always)]
fn not_ours<T: Tables>(tables: &T, node: &Node, ingress: u8, packet: &Packet, toward: Toward) -> Option<Verdict> {
    let (word, bit) = cell::listed(toward);
    let between_nodes = packet.tuple.protocol == protocol::UDP
        && (packet.tuple.dport == HOP_PORT.to_be() || packet.tuple.dport == BEAT_PORT.to_be());
    if node.prefixes != 0 || between_nodes || tables.listed(word)? & bit != 0 {
        return None;
    }
    tables.count(Reason::NotOurs);
    Some(Verdict { reason: Reason::NotOurs, port: ingress })
}

/// Stations 7 and 8. Slots that have just changed hands are left to the long way.
#[inline(always)]
fn owned<'a, T: Tables>(
    tables: &'a T,
    node: &Node,
    place: &row::Place,
    hash: FlowHash,
    packet: &Packet,
) -> Option<To<'a>> {
    let slot = tables.slot(hash.slot(node.slot_mask))?;
    let first = owner::first_alive(slot, tables.alive()?);
    if first != 0 && first != node.id {
        return if slot.previous == node.id || comes_from_node(tables, packet) { None } else { Some(To::Node(first)) };
    }
    let flow_place = flow::place(tables, packet, hash).ok()?;
    if let Some(found) = flow::find(tables, &flow_place, packet) {
        return if found.reopens(packet) { None } else { Some(To::Known(flow_place, found)) };
    }
    let opens = packet.opens();
    if !opens && slot.previous != 0 {
        return None;
    }
    // The previous backend of a severed row is of no pool, so that the long way gets whatever would go to it.
    let is_old = !opens && (packet.tuple.protocol == protocol::TCP || tables.now() < place.old_until);
    let backend = if is_old { place.row.previous() } else { place.row.current() };
    let version = if first == 0 { 0 } else { slot.version };
    Some(To::New(flow_place, backend, version))
}

#[inline(always)]
fn comes_from_node<T: Tables>(tables: &T, packet: &Packet) -> bool {
    !tables.peer_of_mac(packet.source_mac).unwrap_or(Mark::NONE).is_none()
}

/// Station 9: path and rank for a backend of the service's pool.
#[inline(always)]
fn backend<'a, T: Tables>(tables: &'a T, service: &Service, id: u16) -> Option<(&'a Path, u16, u8)> {
    let backend = tables.backend(id)?;
    if id == 0 || backend.pool != service.pool {
        return None;
    }
    let choice = path::first_alive(tables, &backend)?;
    Some((tables.path(choice.path)?, id, choice.rank))
}
