//! Packets that came and were lost before the data plane could look at them.

use std::collections::{BTreeMap, VecDeque};

use crate::netlink::Received;

/// Few packets are no measure: drops are a share of at least so many. A switch that speaks of spanning trees once in two
/// seconds, which the kernel does not understand and counts as dropped, is no fault of an idle card.
const LEAST: u64 = 500;

/// What interfaces have received, by the kernel's numbers of them, and the packets that XDP has dropped on purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Counts {
    received: BTreeMap<u32, Received>,
    refused: u64,
}

/// The share of packets that is lost, from counts that are taken one after another.
///
/// Some drivers count what XDP drops among the packets dropped, others do not: what XDP has dropped is taken off, and of a
/// longer time, since the two are not counted in the same moment. So under a flood that is refused, drops that are none of
/// ours may go unseen, but for those of a full ring, which are counted apart.
#[derive(Clone, Debug, Default)]
pub(super) struct Arrivals {
    /// The last three.
    counts: VecDeque<Counts>,
}

impl Arrivals {
    /// Takes new counts.
    pub(super) fn observe(&mut self, received: BTreeMap<u32, Received>, refused: u64) {
        self.counts.push_back(Counts { received, refused });
        if self.counts.len() > 3 {
            self.counts.pop_front();
        }
    }

    /// The share that was lost between the first two of the last three counts, in per cent; none
    /// before there are three, or where nothing was counted.
    pub(super) fn lost(&self) -> Option<f64> {
        let [first, second, third] = self.counts.iter().collect::<Vec<_>>().try_into().ok()?;
        // One that is new, or another by the same number, has no share.
        let both = second.received.iter().filter_map(|(index, after)| Some((first.received.get(index)?, after)));
        let both: Vec<_> = both.collect();
        if both.is_empty() {
            return None;
        }
        let (mut came, mut missed, mut dropped) = (0, 0, 0);
        for (before, after) in both {
            came += after.packets.saturating_sub(before.packets);
            // Drivers count a full ring as the one or as the other, some as both.
            let overruns = after.overruns.saturating_sub(before.overruns);
            missed += after.missed.saturating_sub(before.missed).max(overruns);
            dropped += after.dropped.saturating_sub(before.dropped);
        }
        let lost = missed + dropped.saturating_sub(third.refused.saturating_sub(first.refused));
        Some((lost as f64 * 100.0 / (came + missed).max(LEAST) as f64).min(100.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(packets: u64, missed: u64, overruns: u64, dropped: u64) -> Received {
        Received { packets, missed, overruns, dropped }
    }

    #[test]
    fn what_rings_lose_counts_and_what_xdp_refuses_does_not() {
        // What came within a window, what XDP refused from its beginning to the end of the next, the share lost.
        for (delta, refused, share) in [
            (received(0, 0, 0, 0), 0, 0.0),
            (received(100_000, 0, 0, 0), 0, 0.0),
            (received(99_000, 1_000, 0, 0), 0, 1.0),
            // Both are the same packets.
            (received(99_000, 1_000, 1_000, 0), 0, 1.0),
            (received(99_500, 0, 500, 0), 0, 0.5),
            (received(10_000, 0, 0, 100), 0, 1.0),
            // A driver that counts what XDP drops, and one that does not, under a flood that is refused.
            (received(100_000, 0, 0, 90_000), 95_000, 0.0),
            (received(100_000, 0, 0, 0), 95_000, 0.0),
            (received(100_000, 0, 0, 99_000), 95_000, 4.0),
            (received(90_000, 10_000, 0, 0), 95_000, 10.0),
            // An idle card, and a switch that speaks of spanning trees.
            (received(1, 0, 0, 1), 0, 0.2),
            (received(0, 5_000, 0, 0), 0, 100.0),
        ] {
            let base = received(7, 7, 7, 7);
            let after = received(7 + delta.packets, 7 + delta.missed, 7 + delta.overruns, 7 + delta.dropped);
            let mut arrivals = Arrivals::default();
            arrivals.observe([(3, base)].into(), 11);
            arrivals.observe([(3, after)].into(), 11);
            assert_eq!(arrivals.lost(), None, "too early");
            arrivals.observe([(3, received(u64::MAX, 0, 0, 0))].into(), 11 + refused);
            assert_eq!(arrivals.lost(), Some(share), "{delta:?}, {refused} refused");
        }
    }

    #[test]
    fn an_interface_that_is_new_or_begins_anew_loses_nothing() {
        let mut arrivals = Arrivals::default();
        arrivals.observe([(3, received(5, 900, 0, 9))].into(), 50);
        arrivals.observe([(3, received(1, 1, 0, 1)), (4, received(1, 100_000, 0, 1))].into(), 50);
        arrivals.observe(BTreeMap::new(), 0);
        assert_eq!(arrivals.lost(), Some(0.0));
        arrivals.observe(BTreeMap::new(), 0);
        assert_eq!(arrivals.lost(), None, "nothing was counted");
    }
}
