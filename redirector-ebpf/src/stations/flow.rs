//! Station 8: the flow's own backend. Known flows keep theirs; new ones get the row's and are recorded.
//!
//! A first entry is *unproven* and the first to make room; a second packet at least 1 ms later, for TCP one that does not
//! open, proves it. So floods of SYN, ACK or UDP find only each other to evict. Inserts have a budget of their own.
//!
//! TCP that goes on, though nobody here has seen it open, is served by its row and *taken up*: it belongs to a connection from
//! before a change of owners or of its row, or to a flood of ACKs, which one direction alone cannot tell apart. So it is
//! refused nothing, but proven only if it has lasted for seconds, and only while less than half of its bucket is: whatever a
//! flood sends, the other half is for flows that were seen to open. What is not proven is not told to other nodes either, and
//! loses nothing by that while it is recorded, nor by making room while its row says the same. On a disputed row it is the
//! record that keeps the dispute from ending under it: a flood that crowds out of a full bucket an old connection that sends
//! nothing until the dispute has ended may break that one. So may the sweep, which takes an unproven entry for over when it
//! was recorded longer ago than the state's idle time, whatever was seen of it since.

use super::admit;
use crate::hash::FlowHash;
use crate::packet::{Kind, Packet, protocol, tcp};
use crate::reason::{Reason, Station};
use crate::tables::flow::{Bucket, Entry, Instant, Record, State, WAYS};
use crate::tables::{Budget, Node, Service, Tables};
use crate::verifier::hide;

/// Where a flow's entry is, or would be.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    bucket: &'a Bucket,
    index: u32,
    tag: u32,
}

/// A flow's entry that was found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    way: usize,
    /// The entry.
    pub entry: Entry,
}

/// Where the flow of this hash has its place.
///
/// # Errors
/// [`Reason::NoTables`].
#[inline(always)]
pub fn place<'a, T: Tables>(tables: &'a T, packet: &Packet, hash: FlowHash) -> Station<Place<'a>> {
    let (index, tag) = hash.entry(tables.bucket_mask(packet.v6));
    if packet.opens() {
        // Two places in memory, far from any cache where flows are many: asked for at once, they are waited for once.
        tables.touch_tuple(packet.v6, tuple_index(index, preferred(tag)));
    }
    let bucket = tables.bucket(packet.v6, index).ok_or(Reason::NoTables)?;
    Ok(Place { bucket, index, tag })
}

/// The flow's entry. A packet that opens a flow is compared by its whole tuple: it must not take over another's entry.
#[inline(always)]
pub fn find<T: Tables>(tables: &T, place: &Place<'_>, packet: &Packet) -> Option<Found> {
    let first = preferred(place.tag);
    let entry = Entry(place.bucket.word(first).load());
    if is_of(tables, place, packet, first, entry) {
        return Some(Found { way: first, entry });
    }
    let mut way = 0;
    while way < WAYS {
        let entry = Entry(place.bucket.word(way).load());
        if is_of(tables, place, packet, way, entry) {
            return Some(Found { way: hide(u64::from(place.tag), way as u64) as usize, entry });
        }
        way += 1;
    }
    None
}

/// Whether this is the entry of the packet's flow.
#[inline(always)]
fn is_of<T: Tables>(tables: &T, place: &Place<'_>, packet: &Packet, way: usize, entry: Entry) -> bool {
    if entry.is_empty() || entry.tag() != place.tag {
        return false;
    }
    let compare = entry.ambiguous() || packet.opens();
    !compare || tables.is_tuple(packet.v6, tuple_index(place.index, way), &packet.tuple)
}

/// Where a flow's entry is looked for first, and put if there is nothing yet.
#[inline(always)]
pub fn preferred(tag: u32) -> usize {
    tag as usize & (WAYS - 1)
}

/// Where the whole tuple of an entry is kept.
#[inline(always)]
pub fn tuple_index(bucket: u32, way: usize) -> u32 {
    bucket * WAYS as u32 + way as u32
}

/// The backend of a known flow, if it is of the service's pool; its entry is brought up to date.
#[inline(always)]
pub fn known<T: Tables>(
    tables: &T,
    place: &Place<'_>,
    found: Found,
    node: &Node,
    packet: &Packet,
    service: &Service,
    current: u16,
) -> Option<u16> {
    let backend = tables.backend(found.entry.backend())?;
    if backend.pool != service.pool {
        // The service has another pool now: the entry would hide the one that is to take its place.
        place.bucket.word(found.way).replace(found.entry.0, 0);
        return None;
    }
    if found.reopens(packet) {
        let entry = found.entry;
        let reopened = Entry::first(place.tag, current, State::Opening, entry.ambiguous(), tables.instant());
        touch(tables, place, found, node, packet, service, reopened, false);
        return Some(current);
    }
    renew(tables, place, found, node, packet, service);
    Some(found.entry.backend())
}

impl Found {
    /// Whether the packet opens a flow anew that was closed: it may get another backend.
    #[inline(always)]
    pub fn reopens(&self, packet: &Packet) -> bool {
        packet.opens() && matches!(self.entry.state(), State::Closing)
    }
}

impl Found {
    /// Whether the flow is on `backend` and has only begun with this packet, or with one like it.
    #[inline(always)]
    pub fn begins(&self, packet: &Packet, backend: u16) -> bool {
        let is_new = match packet.tuple.protocol {
            protocol::TCP => matches!(self.entry.state(), State::Opening),
            _ => !self.entry.proven(),
        };
        is_new && self.entry.backend() == backend
    }
}

/// Has a flow that has only begun go to another backend; whether it does. Nobody was told of it yet.
#[inline(always)]
pub fn turn(place: &Place<'_>, found: Found, backend: u16) -> bool {
    place.bucket.word(found.way).replace(found.entry.0, found.entry.with_backend(backend).0)
}

/// Brings the entry of a known flow up to date.
#[inline(always)]
pub fn renew<T: Tables>(tables: &T, place: &Place<'_>, found: Found, node: &Node, packet: &Packet, service: &Service) {
    let entry = found.entry;
    let is_crowded = entry.must_last() && place.bucket.is_half_proven();
    let renewed = renewed(entry, packet, tables.instant(), is_crowded);
    touch(tables, place, found, node, packet, service, renewed, is_crowded);
}

/// Replaces the entry, if it differs, and tells of it, if others are to know.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "inlined; a struct would be made for it alone")]
fn touch<T: Tables>(
    tables: &T,
    place: &Place<'_>,
    found: Found,
    node: &Node,
    packet: &Packet,
    service: &Service,
    entry_now: Entry,
    is_crowded: bool,
) {
    let Found { way, entry } = found;
    if entry_now.0 == entry.0 {
        return;
    }
    let word = place.bucket.word(way);
    let mut before = entry;
    let mut after = entry_now;
    let mut put = word.replace(entry.0, entry_now.0);
    if !put {
        // Another CPU was first with a packet of the flow; what this one changes, the end of a connection above all,
        // is put on top of it.
        before = Entry(word.load());
        after = renewed(before, packet, tables.instant(), is_crowded);
        put = before.tag() == place.tag && !before.is_empty() && word.replace(before.0, after.0);
    }
    if node.tells_flows != 0 && put && after.tells(before) {
        tables.tell_flow(packet, service.id, tuple_index(place.index, way), after);
    }
}

/// The entry after this packet of its flow, which proves none where it `is_crowded`.
#[inline(always)]
fn renewed(entry: Entry, packet: &Packet, now: Instant, is_crowded: bool) -> Entry {
    if matches!(packet.kind, Kind::Error | Kind::LaterFragment) {
        return entry;
    }
    let proves = !is_crowded && entry.proves(now);
    let state = match (packet.tuple.protocol, entry.state()) {
        (protocol::TCP, State::Closing) => State::Closing,
        (protocol::TCP, _) if packet.tcp_flags & (tcp::FIN | tcp::RST) != 0 => State::Closing,
        (protocol::TCP, state) if packet.opens() => state,
        (protocol::TCP, _) => State::Established,
        (protocol::UDP, _) => State::Datagrams,
        _ => State::Other,
    };
    if entry.proven() {
        if entry.passed(now) == 0 && state as u8 == entry.state_bits() {
            entry
        } else {
            entry.touched(state, true, now)
        }
    } else if packet.opens() {
        entry
    } else if proves || state as u8 != entry.state_bits() && (entry.is_used() || matches!(state, State::Closing)) {
        entry.touched(state, proves, now)
    } else {
        entry
    }
}

/// The first state of a flow whose first packet is this one.
#[inline(always)]
fn first_state(packet: &Packet) -> State {
    match packet.tuple.protocol {
        protocol::TCP if packet.opens() => State::Opening,
        protocol::TCP => State::TakenUp,
        protocol::UDP => State::FirstDatagram,
        _ => State::Other,
    }
}

/// Records a flow on `backend`, if its bucket has room for it and the budget allows.
#[inline(always)]
pub fn record<T: Tables>(
    tables: &T,
    node: &Node,
    place: &Place<'_>,
    packet: &Packet,
    service: &Service,
    backend: u16,
    version: u64,
) {
    if backend == 0 || matches!(packet.kind, Kind::Error | Kind::LaterFragment) {
        return;
    }
    let now = tables.instant();
    if node.inserts != 0 && !admit::spend(tables.budget(Budget::Inserts), node.inserts, now.now) {
        tables.count(Reason::NoteInsertBudget);
        return;
    }
    let Some((way, old, ambiguous)) = room(node, place, now) else {
        tables.count(Reason::NoteBucketFull);
        return;
    };
    let entry = Entry::first(place.tag, backend, first_state(packet), ambiguous, now);
    if !place.bucket.word(way).replace(old.0, entry.0) {
        // Another CPU took the place first; the next packet of the flow tries again.
        return;
    }
    let record = Record { tuple: packet.tuple, service: service.id, since: now.now, version: version as u32 };
    tables.keep_tuple(packet.v6, tuple_index(place.index, way), &record);
    tables.count(if old.is_empty() { Reason::NoteRecorded } else { Reason::NoteEvicted });
}

/// The way to put a new entry in: empty, else expired, else unproven, the longest idle first; and whether its tag stands in the bucket already.
#[inline(always)]
fn room(node: &Node, place: &Place<'_>, now: Instant) -> Option<(usize, Entry, bool)> {
    // First what nearly all buckets have: an empty way. One more than its number; 0: there is none.
    let mut empty = 0;
    let mut ambiguous = 0;
    let mut way = 0;
    while way < WAYS {
        let word = place.bucket.word(way);
        let entry = Entry(word.load());
        if entry.is_empty() {
            empty = way as u64 + 1;
        } else if entry.tag() == place.tag {
            ambiguous = 1;
            word.replace(entry.0, entry.marked_ambiguous().0);
        }
        empty = hide(u64::from(place.tag), empty);
        ambiguous = hide(u64::from(place.tag), ambiguous);
        way += 1;
    }
    let first = preferred(place.tag);
    let way = if Entry(place.bucket.word(first).load()).is_empty() {
        first as u64
    } else if empty != 0 {
        empty - 1
    } else {
        evicted(node, place, now)?
    };
    let way = way as usize & (WAYS - 1);
    Some((way, Entry(place.bucket.word(way).load()), ambiguous != 0))
}

/// Of a full bucket, the way whose entry must go.
#[inline(always)]
fn evicted(node: &Node, place: &Place<'_>, now: Instant) -> Option<u64> {
    // The best way so far: how well it fits, how long it was idle, and which it is, as one number to be compared.
    let mut best = 0;
    let mut way = 0;
    while way < WAYS {
        let entry = Entry(place.bucket.word(way).load());
        let fit = if entry.expired(&node.idle, now) { 2 } else { u64::from(!entry.proven()) };
        let candidate = hide(u64::from(place.tag), fit << 16 | entry.passed(now) << 3 | way as u64);
        best = hide(u64::from(place.tag), if candidate > best { candidate } else { best });
        way += 1;
    }
    if best >> 16 == 0 { None } else { Some(best) }
}
