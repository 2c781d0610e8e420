//! The packet's way: one station a file, read top to bottom here. A packet leaves at the first that decides.

pub mod admit;
pub mod beat;
pub mod flow;
pub mod fragment;
pub mod leg;
pub mod neighbour;
pub mod owner;
pub mod parse;
pub mod path;
pub mod plain;
pub mod reply;
pub mod row;
pub mod service;
pub mod suspect;
pub mod transmit;

use crate::beat::Beat;
use crate::hash::FlowHash;
use crate::hop::{self, Arrived};
use crate::packet::{Frame, Kind, Packet};
use crate::reason::{Reason, Station, Verdict};
use crate::tables::{Mark, Node, Path, Refusal, RefusedKey, Service, Slot, Tables};
use crate::verifier::{forget, put};
use owner::Decision;
use reply::Answer;
use suspect::Instead;

/// What was found on the way. It is counted, traced, and shown by `why`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Journey {
    /// The packet, as far as it was parsed.
    pub packet: Packet,
    /// Its mark.
    pub mark: Mark,
    /// Its service.
    pub service: Option<Service>,
    /// Its slot and that slot's version, where an owner was needed.
    pub slot: u32,
    /// Version of the slot.
    pub version: u64,
    /// The node that serves it, where an owner was needed; 0: not asked.
    pub owner: u8,
    /// Whether the flow table knew the flow.
    pub known: bool,
    /// Its backend; 0: not decided here.
    pub backend: u16,
    /// The path to the backend.
    pub path: u16,
    /// That path's rank.
    pub rank: u8,
    /// The backend that it did not go to, since no path of that one is alive; 0: it goes where it was to go.
    pub avoided: u16,
    /// Why it was refused: one more than the [`Refusal`]; 0: it was not.
    pub refused: u8,
    /// What became of the packet.
    pub verdict: Verdict,
    /// The beat that it is, or its answer, if it is one.
    pub beat: Beat,
}

impl Journey {
    /// Makes ready for the next packet. What is written before it is read stays as it was.
    #[inline(always)]
    fn restart(&mut self) {
        put(&mut self.mark, Mark::NONE);
        put(&mut self.service, None);
        put(&mut self.slot, 0);
        put(&mut self.version, 0);
        put(&mut self.owner, 0);
        put(&mut self.known, false);
        put(&mut self.backend, 0);
        put(&mut self.path, 0);
        put(&mut self.rank, 0);
        put(&mut self.avoided, 0);
        put(&mut self.refused, 0);
    }
}

/// What the stations before the last come to.
enum Next {
    /// To the journey's backend by its path.
    Backend,
    /// To the journey's owner, with this mark.
    Node(Mark, Reason),
    /// Back to where it came from.
    Answer(Answer),
}

/// Takes a packet through all stations, counts the verdict, and leaves in `journey` what was found on the way.
#[inline(always)]
pub fn run<F: Frame, T: Tables>(frame: &mut F, tables: &T, journey: &mut Journey) -> Verdict {
    journey.restart();
    journey.verdict = match travel(frame, tables, journey) {
        Ok(verdict) => verdict,
        // The stations that answer a frame on the spot leave this way too.
        Err(reason) => Verdict { reason, port: tables.ingress().map_or(0, |(port, _)| port) },
    };
    let journey = forget(journey);
    tables.count(journey.verdict.reason);
    if journey.refused != 0 {
        tables.count_refused(RefusedKey::of(journey));
    }
    // Traces are the first work that is given up under load.
    if tables.node().is_some_and(|node| node.trace != 0 && node.shed_level == 0) {
        tables.trace(journey);
    }
    journey.verdict
}

#[inline(always)]
fn travel<F: Frame, T: Tables>(frame: &mut F, tables: &T, journey: &mut Journey) -> Station<Verdict> {
    let node = tables.node().ok_or(Reason::NoTables)?;
    let (ingress, port) = tables.ingress().ok_or(Reason::NoTables)?;
    let next = match parse::network(frame, port) {
        Ok(packet) => {
            journey.packet = packet;
            steer(frame, tables, node, port, journey)
        }
        Err(reason) => Err(reason),
    };
    if let Err(reason @ (Reason::NotForMe | Reason::NotIp | Reason::NeighbourDiscovery)) = next {
        return Ok(Verdict { reason: neighbour::respond(frame, tables, port, reason), port: ingress });
    }
    match next? {
        Next::Backend => {
            let path = tables.path(journey.path).ok_or(Reason::NoPath)?;
            send(frame, tables, node, ingress, journey, path, Mark::NONE, Reason::Served)
        }
        Next::Node(mark, reason) => {
            let path = tables.peer(journey.owner).ok_or(Reason::NoTables)?;
            send(frame, tables, node, ingress, journey, path, mark, reason)
        }
        Next::Answer(answer) => reply::send(frame, tables, node, ingress, forget(journey), answer),
    }
}

/// Stations 4 to 9: everything between parsing and sending.
#[inline(always)]
fn steer<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    node: &Node,
    port: &crate::tables::Port,
    journey: &mut Journey,
) -> Station<Next> {
    let mut arrived = None;
    let vip = match service::find_vip(tables, &journey.packet) {
        Ok(vip) => vip,
        Err(reason) => {
            if !hop::is_hop(frame, &journey.packet, node) {
                if beat::is_beat(frame, &journey.packet) {
                    return Err(beat::receive(frame, tables, &journey.packet, &mut journey.beat));
                }
                neighbour::advertisement(frame, tables, port, &journey.packet);
                return Err(reason);
            }
            arrived = Some(hop::unwrap(frame, &journey.packet, node, tables)?);
            journey.packet = parse::network(frame, port)?;
            // It was taken out of its header, so it cannot pass untouched any more, nor was its tag checked.
            service::find_vip(tables, &journey.packet).map_err(|_| Reason::TunnelNotVip)?
        }
    };
    parse::transport(frame, &mut journey.packet)?;
    let journey = forget(journey);

    if journey.packet.is_fragment() {
        let hash = FlowHash::of_fragment(&node.hash_key, &journey.packet.tuple, journey.packet.v6);
        journey.mark = mark(tables, node, &journey.packet, &arrived, hash)?;
        if let Some(next) = fragment::steer(tables, node, journey, hash)? {
            return Ok(next);
        }
    }

    let hash = FlowHash::of(&node.hash_key, &journey.packet.tuple, journey.packet.v6);
    if arrived.is_some() && !journey.packet.is_fragment() {
        journey.mark = mark(tables, node, &journey.packet, &arrived, hash)?;
    }
    let Some(service) = service::find(tables, &vip, &journey.packet) else {
        return match service::unmatched(&vip, &journey.packet) {
            service::Unmatched::Leave(reason) => Err(reason),
            service::Unmatched::AnswerEcho => Ok(Next::Answer(Answer::Echo)),
            service::Unmatched::Reject => Ok(Next::Answer(Answer::Reject)),
        };
    };
    journey.service = Some(service);

    let place = row::find(tables, &service, hash)?;
    let admission = journey.packet.opens() && node.limits_new_flows();
    let mut marked = arrived.is_some() || journey.packet.is_fragment();
    if admission && !marked {
        journey.mark = tables.peer_of_mac(journey.packet.source_mac).unwrap_or_default();
        marked = true;
    }
    if admission
        && journey.mark.is_none()
        && let Err(why) = admit::new_flow(tables, node, &service, &journey.packet)
    {
        return refuse(node, journey, why);
    }
    let backend = if place.needs_owner {
        match owned(tables, node, &service, &place, hash, marked, journey)? {
            Owned::Backend(backend) => backend,
            Owned::Refused(why) => return refuse(node, journey, why),
            Owned::Severed => return sever(tables, journey),
            Owned::Elsewhere(mark, reason) => {
                if matches!(journey.packet.kind, Kind::FirstFragment) {
                    fragment::remember(tables, journey, journey.owner, 0);
                }
                return Ok(Next::Node(mark, reason));
            }
        }
    } else {
        if let Err(why) = admit::any(node, &service, &journey.packet) {
            return refuse(node, journey, why);
        }
        place.row.current()
    };
    let next = toward_backend(tables, journey, &service, backend)?;
    if matches!(journey.packet.kind, Kind::FirstFragment) {
        fragment::remember(tables, journey, 0, journey.backend);
    }
    Ok(next)
}

/// Refuses a packet; who sent it may be told so, unless there is nothing to answer to.
#[inline(always)]
fn refuse(node: &Node, journey: &mut Journey, why: Refusal) -> Station<Next> {
    journey.refused = why as u8 + 1;
    if node.tells_refused != 0 && matches!(journey.packet.kind, Kind::Whole) {
        return Ok(Next::Answer(Answer::Reject));
    }
    Err(why.reason())
}

/// Tells the client that the flow is lost, so that it connects anew at once. Of a fragment it is not told.
#[inline(always)]
fn sever<T: Tables>(tables: &T, journey: &Journey) -> Station<Next> {
    if !matches!(journey.packet.kind, Kind::Whole) {
        return Err(Reason::NoBackend);
    }
    tables.count(Reason::NoteSevered);
    Ok(Next::Answer(Answer::Reject))
}

/// Where the packet comes from within the cluster.
#[inline(always)]
fn mark<T: Tables>(
    tables: &T,
    node: &Node,
    packet: &Packet,
    arrived: &Option<Arrived>,
    hash: FlowHash,
) -> Station<Mark> {
    match arrived {
        Some(arrived) => arrived.verify(node, hash),
        None => Ok(tables.peer_of_mac(packet.source_mac).unwrap_or_default()),
    }
}

enum Owned {
    Backend(u16),
    Refused(Refusal),
    Severed,
    Elsewhere(Mark, Reason),
}

/// Stations 7 and 8, for flows that need their owner. If the packet is not `marked` yet, whose MAC address it comes from is
/// looked up only where that makes a difference: not for the known flows of this node's own slots.
#[inline(always)]
fn owned<T: Tables>(
    tables: &T,
    node: &Node,
    service: &Service,
    place: &row::Place,
    hash: FlowHash,
    marked: bool,
    journey: &mut Journey,
) -> Station<Owned> {
    let me = node.id;
    journey.slot = hash.slot(node.slot_mask);
    let slot: &Slot = tables.slot(journey.slot).ok_or(Reason::NoTables)?;
    let alive = tables.alive().ok_or(Reason::NoTables)?;
    journey.version = slot.version;
    let first = owner::first_alive(slot, alive);
    let mine = first == 0 || first == me;
    if !marked && !mine {
        journey.mark = tables.peer_of_mac(journey.packet.source_mac).unwrap_or_default();
    }

    let decision = if matches!(journey.packet.kind, Kind::FirstFragment) {
        fragment::owner(slot, alive, me, journey.mark)
    } else {
        owner::before_flow(slot, alive, me, journey.mark)
    };
    let elsewhere = match decision {
        // Flows that moved away by a change of owners are still known here, and the new owner would only send them back.
        Decision::Forward(_) | Decision::HandBack(_) if slot.previous == me => decision,
        Decision::Forward(to) => return Ok(forward(to, me, journey)),
        Decision::HandBack(to) => return Ok(hand_back(to, me, journey)),
        Decision::Here => decision,
    };

    let flow_place = flow::place(tables, &journey.packet, hash)?;
    if let Some(found) = flow::find(tables, &flow_place, &journey.packet) {
        let current = place.row.current();
        if let Some(backend) = flow::known(tables, &flow_place, found, node, &journey.packet, service, current) {
            journey.known = true;
            journey.owner = me;
            if let Err(why) = admit::any(node, service, &journey.packet) {
                return Ok(Owned::Refused(why));
            }
            return Ok(Owned::Backend(backend));
        }
    }
    match elsewhere {
        Decision::Forward(to) => return Ok(forward(to, me, journey)),
        Decision::HandBack(to) => return Ok(hand_back(to, me, journey)),
        Decision::Here => {}
    }

    let opens = journey.packet.opens();
    let backend = if opens {
        place.row.current()
    } else {
        if !marked && mine && slot.previous != 0 {
            journey.mark = tables.peer_of_mac(journey.packet.source_mac).unwrap_or_default();
        }
        if let Decision::HandBack(to) = owner::unknown_flow(slot, alive, me, journey.mark) {
            return Ok(hand_back(to, me, journey));
        }
        let tcp = journey.packet.tuple.protocol == crate::packet::protocol::TCP;
        // An error message about an unknown flow opens none.
        if !tcp
            && !matches!(journey.packet.kind, Kind::Error)
            && node.limits_new_flows()
            && let Err(why) = admit::new_flow(tables, node, service, &journey.packet)
        {
            return Ok(Owned::Refused(why));
        }
        let severed = place.row.is_severed(slot.version);
        // Nothing else has a connection to lose.
        if tcp && severed {
            journey.owner = me;
            return Ok(Owned::Severed);
        }
        if !severed && (tcp || tables.now() < place.old_until) { place.row.previous() } else { place.row.current() }
    };
    journey.owner = me;
    // Who chooses since nobody who would know the flow is reached must not be believed over those. Looked up again, since
    // there is no room on the stack to keep who is first.
    let version = if owner::first_alive(slot, alive) == 0 { 0 } else { slot.version };
    flow::record(tables, node, &flow_place, &journey.packet, service, backend, version);
    Ok(Owned::Backend(backend))
}

#[inline(always)]
fn forward(to: u8, me: u8, journey: &mut Journey) -> Owned {
    journey.owner = to;
    Owned::Elsewhere(Mark::forwarded(me), Reason::Forwarded)
}

#[inline(always)]
fn hand_back(to: u8, me: u8, journey: &mut Journey) -> Owned {
    journey.owner = to;
    Owned::Elsewhere(Mark::kept(me), Reason::HandedBack)
}

/// Station 9, for a backend that was decided on.
#[inline(always)]
fn toward_backend<T: Tables>(tables: &T, journey: &mut Journey, service: &Service, id: u16) -> Station<Next> {
    let backend = tables.backend(id).ok_or(Reason::NoBackend)?;
    if id == 0 || backend.pool != service.pool {
        return Err(Reason::NoBackend);
    }
    journey.backend = id;
    let choice = path::choose(tables, &backend)?;
    journey.path = choice.path;
    journey.rank = choice.rank;
    if !choice.alive {
        let instead = Instead::of(tables.instead(journey));
        if instead == Instead::NONE || !tables.turn(journey, instead.backend()) {
            tables.count(Reason::NoteLeastBad);
            return Ok(Next::Backend);
        }
        journey.avoided = id;
        journey.backend = instead.backend();
        journey.path = instead.path();
        journey.rank = instead.rank();
    }
    Ok(Next::Backend)
}

/// Station 10, and what is counted about it.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "inlined into its one caller; a struct would be made for it alone")]
fn send<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    node: &Node,
    ingress: u8,
    journey: &Journey,
    path: &Path,
    mark: Mark,
    reason: Reason,
) -> Station<Verdict> {
    let packet = &journey.packet;
    match transmit::send(frame, tables, node, packet, path, mark, journey.version) {
        Ok(port) => {
            if let Some(service) = journey.service {
                tables.count_service(service.id, u64::from(packet.l3_len));
            }
            if journey.backend != 0 {
                tables.count_backend(journey.backend, journey.rank, u64::from(packet.l3_len));
                if path::speaks(packet) {
                    tables.note_journey(journey);
                }
            }
            Ok(Verdict { reason, port })
        }
        // Nobody is told about an error message or a later fragment (RFC 1812, section 4.3.2.7).
        Err(Reason::TooBig) if !matches!(packet.kind, Kind::Error | Kind::LaterFragment) => {
            reply::send(frame, tables, node, ingress, journey, Answer::TooBig(transmit::room(path)))
        }
        Err(reason) => Err(reason),
    }
}
