//! Next hops that the kernel finds no MAC address of, and which of them are this node's fault.
//!
//! A next hop that does not answer may be dead itself: a backend in a path by the segment, or a gateway. That is for its
//! path's health to say, every node finds the same, and none can help it. What a node can know of itself is that *nothing*
//! answers it by one of its interfaces: so a next hop counts against the node only where no next hop of that interface is
//! resolved, peers included. Peers speak for an interface by that alone; that they do not answer is for liveness to say, and
//! they are no part of the count, else a killed node would make the others ill.
//!
//! The figure is the share of such next hops, over all interfaces, and the network's quarter of the score falls with it: a
//! node that lost one of two ways to its backends loses half a quarter, and one that reaches none a whole one. By itself that
//! makes a node's share sink, and has none hand all over, since a lone backend's death looks the same from every node without
//! neighbours: they sink alike, and nothing moves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::netlink::{Neighbour, NeighbourState};

/// The kernel asks three times, a second apart, before it gives up.
const ASKED: Duration = Duration::from_secs(3);

/// An entry that the kernel has no more, or not yet, is soon asked for again: at least so often.
const ABSENT: Duration = Duration::from_secs(30);

/// Which neighbour: the interface's number, and an address.
type Key = (u32, IpAddr);

/// A next hop, as it is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The kernel's number of the interface that it is reached by.
    pub interface: u32,
    /// That interface's name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Whether it is a node of the cluster.
    pub is_peer: bool,
}

/// What is known of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Resolved,
    /// Asked for, since then.
    Asked(Duration),
    /// Not there, since then.
    Absent(Duration),
    /// The kernel gave it up, and it has not answered since.
    Failed,
}

impl Entry {
    fn next(self, state: Option<NeighbourState>, now: Duration) -> Self {
        match (self, state) {
            (_, Some(state)) if state.is_usable() => Self::Resolved,
            (_, Some(NeighbourState::Failed)) | (Self::Failed, _) => Self::Failed,
            (Self::Asked(since), Some(_)) => Self::Asked(since),
            (Self::Absent(since), None) => Self::Absent(since),
            (_, Some(_)) => Self::Asked(now),
            (_, None) => Self::Absent(now),
        }
    }

    fn is_unresolved(self, now: Duration) -> bool {
        match self {
            Self::Resolved => false,
            Self::Failed => true,
            Self::Asked(since) => now.saturating_sub(since) >= ASKED,
            Self::Absent(since) => now.saturating_sub(since) >= ABSENT,
        }
    }
}

/// The entries of next hops, followed. Times are durations since any moment that stays the same.
#[derive(Clone, Debug, Default)]
pub struct Neighbours {
    entries: BTreeMap<Key, Entry>,
}

/// What is wrong with next hops.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unresolved {
    /// Next hops that count.
    pub of: usize,
    /// Of these, those that are unresolved by this node's fault.
    pub own: usize,
    /// All that are unresolved, and how, in words.
    pub words: String,
}

impl Neighbours {
    /// An entry is as it is told; none: it is gone. What is no next hop is passed over.
    pub fn observe(&mut self, index: u32, address: IpAddr, state: Option<NeighbourState>, now: Duration) {
        if let Some(entry) = self.entries.get_mut(&(index, address)) {
            *entry = entry.next(state, now);
        }
    }

    /// From now on these are the next hops, and `all` is what the kernel knows.
    pub fn read<'a>(
        &mut self,
        hops: impl Iterator<Item = Key>,
        all: impl Iterator<Item = &'a Neighbour>,
        now: Duration,
    ) {
        let states: BTreeMap<Key, NeighbourState> = all.map(|one| ((one.index, one.address), one.state)).collect();
        let entry = |key: Key| {
            let before = self.entries.get(&key).copied().unwrap_or(Entry::Absent(now));
            (key, before.next(states.get(&key).copied(), now))
        };
        self.entries = hops.map(entry).collect();
    }

    /// Which next hops are unresolved.
    pub fn judge(&self, hops: &[Hop], now: Duration) -> Unresolved {
        let entry = |hop: &Hop| self.entries.get(&(hop.interface, hop.address)).copied();
        let is_resolved = |hop: &&Hop| entry(hop) == Some(Entry::Resolved);
        let works: BTreeSet<u32> = hops.iter().filter(is_resolved).map(|hop| hop.interface).collect();
        let counted = || hops.iter().filter(|hop| !hop.is_peer);
        let failed: Vec<&Hop> =
            counted().filter(|hop| entry(hop).is_some_and(|entry| entry.is_unresolved(now))).collect();
        let own = failed.iter().filter(|hop| !works.contains(&hop.interface)).count();
        Unresolved { of: counted().count(), own, words: words(&failed, counted().count(), &works) }
    }
}

/// So many next hops are named.
const NAMED: usize = 4;

fn words(failed: &[&Hop], of: usize, works: &BTreeSet<u32>) -> String {
    if failed.is_empty() {
        return String::new();
    }
    let name = |hop: &&Hop| {
        let others = if works.contains(&hop.interface) { " (others there answer)" } else { "" };
        format!("{} by {}{others}", hop.address, hop.name)
    };
    let mut named: Vec<String> = failed.iter().take(NAMED).map(name).collect();
    if failed.len() > NAMED {
        named.push(format!("and {} more", failed.len() - NAMED));
    }
    format!("next hops unresolved: {} of {of}: {}", failed.len(), named.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Duration = Duration::from_secs(100);
    const MS: Duration = Duration::from_millis(1);

    fn hop(interface: u32, last: u8, is_peer: bool) -> Hop {
        Hop {
            interface,
            name: format!("eth{interface}"),
            address: IpAddr::from([10, 0, interface as u8, last]),
            is_peer,
        }
    }

    /// Follows hops of which each is in a state; says what is wrong once those that are asked have been for long.
    fn judged(hops: &[(Hop, NeighbourState)]) -> Unresolved {
        let mut neighbours = Neighbours::default();
        let keys = || hops.iter().map(|(hop, _)| (hop.interface, hop.address));
        neighbours.read(keys(), [].iter(), T0);
        hops.iter().for_each(|(hop, state)| neighbours.observe(hop.interface, hop.address, Some(*state), T0));
        let hops: Vec<Hop> = hops.iter().map(|(hop, _)| hop.clone()).collect();
        neighbours.judge(&hops, T0 + ASKED)
    }

    #[test]
    fn only_an_interface_on_which_nothing_answers_counts() {
        use NeighbourState::{Failed, Incomplete, Reachable, Stale};
        // Backends and gateways, and peers, of interfaces 1 and 2; how many next hops count, and against how many.
        let (b1, b2, c1, peer1, peer2) =
            (hop(1, 1, false), hop(1, 2, false), hop(2, 1, false), hop(1, 9, true), hop(2, 9, true));
        for (hops, own, of) in [
            (vec![], 0, 0),
            (vec![(&b1, Reachable), (&b2, Stale)], 0, 2),
            // A dead backend, where another answers.
            (vec![(&b1, Failed), (&b2, Reachable)], 0, 2),
            // A dead backend, where a peer answers.
            (vec![(&b1, Failed), (&peer1, Reachable)], 0, 1),
            // A killed peer, and one that was never there.
            (vec![(&b1, Reachable), (&peer1, Failed)], 0, 1),
            (vec![(&peer1, Failed), (&peer2, Incomplete)], 0, 0),
            // Nothing answers, by one of two interfaces, and by both.
            (vec![(&b1, Failed), (&b2, Incomplete), (&peer1, Failed), (&c1, Reachable)], 2, 3),
            (vec![(&b1, Failed), (&c1, Reachable), (&peer2, Failed)], 1, 2),
            (vec![(&b1, Failed), (&c1, Failed)], 2, 2),
            // Who answers by another interface is no excuse.
            (vec![(&b1, Failed), (&peer2, Reachable)], 1, 1),
        ] {
            let hops: Vec<_> = hops.into_iter().map(|(hop, state)| (hop.clone(), state)).collect();
            let found = judged(&hops);
            assert_eq!((found.own, found.of), (own, of), "{hops:?}: {found:?}");
        }
    }

    #[test]
    fn an_entry_is_given_time_and_one_that_failed_is_given_none() {
        use NeighbourState::{Failed, Incomplete, None as Unasked, Permanent, Probe, Reachable};
        // What is told, one after another, each half a second after the last; how long after that it is unresolved.
        for (told, after) in [
            (vec![], Some(ABSENT)),
            (vec![Some(Incomplete)], Some(ASKED)),
            (vec![Some(Incomplete), Some(Unasked)], Some(ASKED - 500 * MS)),
            (vec![Some(Failed)], Some(Duration::ZERO)),
            // The kernel asks again and again for what it keeps.
            (vec![Some(Failed), Some(Incomplete)], Some(Duration::ZERO)),
            (vec![Some(Failed), None], Some(Duration::ZERO)),
            (vec![Some(Failed), Some(Reachable)], None),
            (vec![Some(Failed), Some(Reachable), Some(Incomplete)], Some(ASKED)),
            (vec![Some(Reachable), None], Some(ABSENT)),
            (vec![Some(Reachable), None, None], Some(ABSENT - 500 * MS)),
            (vec![Some(Reachable), Some(Probe)], None),
            (vec![Some(Permanent)], None),
        ] {
            let one = hop(1, 1, false);
            let (mut neighbours, mut now) = (Neighbours::default(), T0);
            neighbours.read([(one.interface, one.address)].into_iter(), [].iter(), now);
            for (number, state) in told.iter().enumerate() {
                now = T0 + 500 * MS * number as u32;
                neighbours.observe(one.interface, one.address, *state, now);
            }
            let hops = [one];
            let is_unresolved = |at: Duration| neighbours.judge(&hops, at).own == 1;
            match after {
                Some(after) => {
                    assert!(after.is_zero() || !is_unresolved(now + after - MS), "{told:?}: too soon");
                    assert!(is_unresolved(now + after), "{told:?}: never");
                }
                None => assert!(!is_unresolved(now + Duration::from_secs(3600)), "{told:?}: it is resolved"),
            }
        }
    }

    #[test]
    fn reading_all_forgets_what_is_no_next_hop_and_keeps_since_when() {
        let (one, other) = (hop(1, 1, false), hop(1, 2, false));
        let key = |hop: &Hop| (hop.interface, hop.address);
        let entry = |hop: &Hop, state| Neighbour {
            index: hop.interface,
            address: hop.address,
            mac: None,
            state,
            managed: true,
        };
        let mut neighbours = Neighbours::default();
        let asked = [entry(&one, NeighbourState::Incomplete), entry(&other, NeighbourState::Incomplete)];
        neighbours.read([key(&one)].into_iter(), asked.iter(), T0);
        neighbours.read([key(&one), key(&other)].into_iter(), asked.iter(), T0 + 2 * ASKED / 3);
        let found = neighbours.judge(&[one.clone(), other.clone()], T0 + ASKED);
        assert_eq!((found.own, found.of), (1, 2));
        assert_eq!(found.words, "next hops unresolved: 1 of 2: 10.0.1.1 by eth1");
        neighbours.read([key(&other)].into_iter(), [].iter(), T0 + ASKED);
        assert_eq!(neighbours.entries.len(), 1, "what is no next hop is forgotten");
        neighbours.observe(1, one.address, Some(NeighbourState::Failed), T0 + ASKED);
        assert_eq!(neighbours.entries.len(), 1, "and stays so");
    }

    #[test]
    fn many_are_counted_and_few_are_named() {
        let hops: Vec<_> = (1..=9).map(|last| (hop(1, last, false), NeighbourState::Failed)).collect();
        let found = judged(&hops);
        assert_eq!((found.own, found.of), (9, 9));
        assert!(found.words.ends_with("10.0.1.4 by eth1, and 5 more"), "{}", found.words);
        let excused = judged(&[(hop(1, 1, false), NeighbourState::Failed), (hop(1, 9, true), NeighbourState::Stale)]);
        assert_eq!(excused.words, "next hops unresolved: 1 of 1: 10.0.1.1 by eth1 (others there answer)");
        assert_eq!(judged(&[]).words, "");
    }
}
