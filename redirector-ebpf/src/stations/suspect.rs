//! Between stations 8 and 9: a flow that only begins does not go to a suspect backend, one of which no path is alive while
//! nobody has agreed on its death yet. It takes another one, which has, and keeps it like any flow off its row.
//!
//! That takes somebody who remembers it: the flow's owner, where the flow is recorded. What is not recorded stays with its
//! row, about which all nodes must agree. So does everything while the pool is in a panic: too few others are left.

use super::{Journey, flow, path};
use crate::hash::FlowHash;
use crate::packet::{Kind, Packet, protocol};
use crate::reason::Reason;
use crate::tables::{Backend, Pool, Tables};

/// Rows that are looked at, the flow's own among them: it may name another backend since the flow was recorded.
const TRIES: u32 = 4;

/// From one row to the next. Neighbours in a Maglev table have nothing to do with each other, so any number does; odd, so
/// that it leads to other rows in a table of any even size.
const STRIDE: u32 = 101;

/// A backend that is taken instead, and the path to it, in one word, which a function of its own can return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instead(u64);

impl Instead {
    /// None: the flow stays where it is.
    pub const NONE: Self = Self(0);

    /// Of its word.
    #[inline(always)]
    pub const fn of(word: u64) -> Self {
        Self(word)
    }

    /// In one word.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    #[inline(always)]
    fn new(backend: u16, choice: path::Choice) -> Self {
        Self(u64::from(backend) | u64::from(choice.path) << 16 | u64::from(choice.rank) << 32)
    }

    /// The backend; 0: none.
    #[inline(always)]
    pub const fn backend(self) -> u16 {
        self.0 as u16
    }

    /// The path to it.
    #[inline(always)]
    pub const fn path(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// That path's rank.
    #[inline(always)]
    pub const fn rank(self) -> u8 {
        (self.0 >> 32) as u8
    }
}

/// What the journey's packet may go to instead of the journey's backend, of which no path is alive.
#[inline(always)]
pub fn instead<T: Tables>(tables: &T, journey: &Journey) -> Instead {
    find(tables, journey).unwrap_or(Instead::NONE)
}

#[inline(always)]
fn find<T: Tables>(tables: &T, journey: &Journey) -> Option<Instead> {
    let packet = &journey.packet;
    let (node, service) = (tables.node()?, journey.service?);
    let is_whole = matches!(packet.kind, Kind::Whole | Kind::FirstFragment);
    let begins = if is_tcp(packet) { packet.opens() } else { !journey.known };
    if !is_whole || !begins || journey.owner != node.id {
        return None;
    }
    let &Pool { table, panics, rows, old_until } = tables.pool(service.pool)?;
    if panics != 0 {
        return None;
    }
    let first = FlowHash::of(&node.hash_key, &packet.tuple, packet.v6).row(rows);
    if !is_tcp(packet) {
        // What was taken for a flow from before a change of the pool is one that lasts. While a change is only announced, the
        // row says nothing of that: its backends are the same yet.
        let own = tables.row(table.into(), first)?;
        if own.current() != journey.backend || own.disputed() && tables.now() < old_until {
            return None;
        }
    }
    let mut tries = 0;
    while tries < TRIES {
        let row = (first + tries * STRIDE).checked_rem(rows)?;
        let id = tables.row(table.into(), row)?.current();
        let is_other = |backend: &Backend| id != 0 && id != journey.backend && backend.pool == service.pool;
        let other = tables.backend(id).filter(is_other);
        if let Some(choice) = other.and_then(|backend| path::first_alive(tables, &backend)) {
            return Some(Instead::new(id, choice));
        }
        tries += 1;
    }
    None
}

/// Has the journey's flow go to this backend from now on; whether it does. A flow that has no entry, or one that lasts, does
/// not.
#[inline(always)]
pub fn turn<T: Tables>(tables: &T, journey: &Journey, backend: u16) -> bool {
    let packet = &journey.packet;
    let Some(node) = tables.node() else { return false };
    let hash = FlowHash::of(&node.hash_key, &packet.tuple, packet.v6);
    let Ok(place) = flow::place(tables, packet, hash) else { return false };
    let turned = match flow::find(tables, &place, packet) {
        Some(found) if found.begins(packet, journey.backend) => flow::turn(&place, found, backend),
        _ => false,
    };
    if turned {
        tables.count(Reason::NoteAvoided);
    }
    turned
}

#[inline(always)]
fn is_tcp(packet: &Packet) -> bool {
    packet.tuple.protocol == protocol::TCP
}
