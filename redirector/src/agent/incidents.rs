//! Which of all that a node sees is an incident. Told what there is to see again and again, without IO; what is new goes
//! into the journal.

use std::collections::BTreeMap;

use crate::consensus::driver::Overview;
use crate::consensus::machine::Event;
use crate::journal::{Journal, Kind};
use crate::liveness::{Detector, Own, State};
use crate::{replication, transport};

/// Looks at which verdicts have not been frozen once more until they count as passed again.
const THAWED: u32 = 50;

/// Looks at a count between two lines about it: what somebody sends without end must not push all else out of the journal.
const PAUSE: u32 = 20;

/// What was seen last.
#[derive(Default)]
pub(super) struct Incidents {
    journal: Journal,
    peers: BTreeMap<u8, (State, u64)>,
    own: Option<Own>,
    quorum: Option<bool>,
    frozen: Option<u64>,
    /// Rounds without a verdict in a row so far, and looks since the last one.
    freeze: Option<(u64, u32)>,
    beats: Option<u64>,
    counts: BTreeMap<(&'static str, Option<u8>), Count>,
    /// Peers that packets do not leave for by the interface that is first, and by which they do.
    detours: BTreeMap<u8, String>,
}

/// A count as it was when its growth was noted last.
#[derive(Default)]
struct Count {
    noted: u64,
    /// Looks until it may be noted again.
    pause: u32,
}

impl Incidents {
    pub(super) fn new(journal: Journal) -> Self {
        Self { journal, ..Self::default() }
    }

    /// Where else what happens is noted.
    pub(super) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// How peers and this node itself live.
    pub(super) fn lives(&mut self, detector: &Detector, own: Own) {
        self.peers.retain(|id, _| detector.peers().contains_key(id));
        for (&id, peer) in detector.peers() {
            let Some((state, falses)) = self.peers.insert(id, (peer.state, peer.false_suspicions)) else { continue };
            if state == peer.state {
                continue;
            }
            let what = match peer.state {
                State::Unknown => "nothing is known of it any more",
                State::Away => "it is configured not to be used",
                State::Returning => "it answers, and may not serve yet",
                State::Alive if peer.false_suspicions > falses => "it serves again; it had not died",
                State::Alive => "it serves",
                State::AgentSilent => "it serves, and its agent is silent",
                State::Suspect => "suspected: its slots are served by the next ranks",
            };
            self.journal.note(Kind::Peer, Some(id), what);
        }
        if self.own.replace(own).is_some_and(|before| before != own) {
            let what = match own {
                Own::Returning => "this node serves nothing until it has the flows that others have",
                Own::Active => "this node serves",
                Own::CutOff => "every peer is silent: this node is cut off, or the last one",
            };
            self.journal.note(Kind::Own, None, what);
        }
    }

    /// The interface by which packets to a peer leave, and whether that is the one that is first.
    pub(super) fn way(&mut self, node: u8, interface: &str, is_first: bool) {
        let what = match is_first {
            true if self.detours.remove(&node).is_some() => format!("packets to it leave by {interface} again"),
            false if self.detours.get(&node).is_none_or(|before| before != interface) => {
                self.detours.insert(node, interface.to_owned());
                format!("packets to it leave by {interface}, since it is silent on the interface that is first")
            }
            _ => return,
        };
        self.journal.note(Kind::Peer, Some(node), what);
    }

    /// Rounds of the timer without a verdict, since its maps were made.
    pub(super) fn frozen(&mut self, rounds: u64) {
        let new = self.frozen.replace(rounds).map_or(0, |before| rounds.saturating_sub(before));
        self.freeze = match (self.freeze, new) {
            (None, 0) => None,
            (None, new) => {
                let what = "no verdicts are passed: this node's agent stalled, or most peers fell silent at once";
                self.journal.note(Kind::Frozen, None, what);
                Some((new, 0))
            }
            (Some((rounds, THAWED)), 0) => {
                self.journal.note(Kind::Frozen, None, format!("verdicts are passed again, after {rounds} ms without"));
                None
            }
            (Some((rounds, looks)), 0) => Some((rounds, looks + 1)),
            (Some((rounds, _)), new) => Some((rounds + new, 0)),
        };
    }

    /// How agreement stands.
    pub(super) fn agreement(&mut self, overview: &Overview) {
        let quorum = overview.status.has_quorum;
        if self.quorum.replace(quorum).is_some_and(|before| before != quorum) {
            let what = match quorum {
                true => "a majority of the voters is reached: changes are possible",
                false => "no majority of the voters is reached: nothing can be changed",
            };
            self.journal.note(Kind::Agreement, None, what);
        }
        let counters = &overview.counters;
        for (kind, what, count) in [
            (Kind::Damage, "messages of agreement whose checksum does not hold", counters.bad_checksums),
            (Kind::Damage, "messages of agreement that a sound peer does not send", counters.implausible),
            (Kind::Refused, "messages of agreement of another cluster, or without a sense", counters.foreign),
            (Kind::Refused, "messages of agreement for or from a seat that is none", counters.wrong_seat),
            (Kind::Refused, "messages of agreement that came out of turn", counters.out_of_turn),
        ] {
            self.counted(kind, None, what, count);
        }
    }

    /// Beats that were dropped since their version is not known here, since the maps were made.
    pub(super) fn beats(&mut self, unknown: u64) {
        let what = "beats of a version that is not known here were dropped: upgrade this node, or whoever sends them";
        // Those of before were another agent's to tell of.
        let before = *self.beats.get_or_insert(unknown);
        let more = self.counted(Kind::Refused, None, what, unknown.saturating_sub(before));
        if more > 0 {
            tracing::warn!("{more} {what}");
        }
    }

    /// What the transport has counted.
    pub(super) fn transport(&mut self, counters: &transport::Counters) {
        self.counted(Kind::Refused, None, "connections of strangers were refused", counters.strangers);
        self.counted(Kind::Refused, None, "connections were turned away, as too many were made", counters.crowded);
        for (&node, peer) in &counters.peers {
            let certificates = "times a certificate was refused, its own or this node's";
            self.counted(Kind::Refused, Some(node), certificates, peer.refused_certificates);
            self.counted(Kind::Damage, Some(node), "frames that came damaged or in another form", peer.damaged_frames);
        }
    }

    /// What replication has counted.
    pub(super) fn replication(&mut self, counters: &replication::Counters) {
        let received = &counters.received;
        self.counted(Kind::Conflict, None, "flows for which two nodes had chosen a backend", received.conflicts);
        self.counted(Kind::Damage, None, "batches of flows that came damaged, and are sent again", received.damaged);
        self.counted(Kind::Damage, None, "batches of flows that were refused", received.refused);
    }

    /// What agreement tells.
    pub(super) fn told(&mut self, event: &Event) {
        let kind = match event {
            Event::Role { .. } => Kind::Role,
            Event::Rival(_) | Event::Recovered(_) | Event::GivenUp(_) => Kind::Agreement,
            Event::Damaged { .. } | Event::Reborn { .. } | Event::Stopped(_) => Kind::Damage,
            Event::Newer { .. } => Kind::Refused,
            Event::Repaired { .. } | Event::Refetched { .. } => Kind::Repair,
            Event::DiskFails(_) | Event::DiskWorks => Kind::Disk,
        };
        let about = match event {
            Event::Rival(node) | Event::GivenUp(node) | Event::Newer { from: node, .. } => Some(*node),
            _ => None,
        };
        self.journal.note(kind, about, event.to_string());
    }

    /// Notes by how much a count, of a node or of all, has grown since that was noted last, unless it was just now; and
    /// returns what it has noted.
    fn counted(&mut self, kind: Kind, node: Option<u8>, what: &'static str, count: u64) -> u64 {
        let known = self.counts.entry((what, node)).or_default();
        known.pause = known.pause.saturating_sub(1);
        // Who was no member for a while is counted anew.
        known.noted = known.noted.min(count);
        let more = count - known.noted;
        if more == 0 || known.pause > 0 {
            return 0;
        }
        *known = Count { noted: count, pause: PAUSE };
        self.journal.note(kind, node, format!("{more} {what}"));
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::node::DISK;
    use crate::breaker::Breakers;

    /// What a journal says after this.
    fn noted(name: &str, happens: impl FnOnce(&mut Incidents)) -> String {
        let directory = std::env::temp_dir().join(format!("redirector-incidents-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let breaker = Breakers::default().breaker("journal", DISK);
        let mut incidents = Incidents::new(Journal::start(&directory, breaker));
        happens(&mut incidents);
        incidents.journal().flush();
        let text = std::fs::read_to_string(directory.join("incidents.log")).unwrap();
        std::fs::remove_dir_all(directory).unwrap();
        text
    }

    fn lines(text: &str, what: &str) -> usize {
        text.lines().filter(|line| line.contains(what)).count()
    }

    #[test]
    fn damage_on_the_way_is_noted_once_and_soon_again() {
        let text = noted("damage", |incidents| {
            let mut counters = replication::Counters::default();
            for (damaged, conflicts) in [(0, 0), (2, 0), (2, 0), (3, 1)] {
                (counters.received.damaged, counters.received.conflicts) = (damaged, conflicts);
                incidents.replication(&counters);
            }
            (0..2 * PAUSE).for_each(|_| incidents.replication(&counters));
        });
        assert_eq!(lines(&text, "2 batches of flows that came damaged"), 1, "{text}");
        assert_eq!(lines(&text, "\"1 batches of flows"), 1, "{text}");
        assert_eq!((lines(&text, "came damaged"), lines(&text, "two nodes had chosen")), (2, 1), "{text}");
    }

    #[test]
    fn what_does_not_end_takes_a_line_now_and_then() {
        let text = noted("endless", |incidents| {
            for strangers in 1..=10 * u64::from(PAUSE) {
                incidents.transport(&transport::Counters { strangers, ..transport::Counters::default() });
            }
        });
        let about = "connections of strangers were refused";
        assert_eq!(lines(&text, about), 10, "{text}");
        assert_eq!(lines(&text, &format!("\"{PAUSE} {about}")), 9, "{text}");
    }

    #[test]
    fn newer_versions_are_told_with_peer_and_mend() {
        let text = noted("newer", |incidents| {
            [7, 7, 9].into_iter().for_each(|unknown| incidents.beats(unknown));
            incidents.told(&Event::Newer { from: 2, found: 9, known: 2 });
        });
        assert_eq!(lines(&text, "\"2 beats of a version that is not known here"), 1, "{text}");
        assert_eq!((lines(&text, "in format 9"), lines(&text, "\"node\":2")), (1, 1), "{text}");
        assert_eq!((lines(&text, "upgrade this node"), lines(&text, "")), (2, 2), "{text}");
    }

    #[test]
    fn what_is_refused_of_a_peer_is_noted_with_its_name() {
        let text = noted("refused", |incidents| {
            let peer = |damaged_frames, refused_certificates| transport::PeerCounters {
                damaged_frames,
                refused_certificates,
                ..transport::PeerCounters::default()
            };
            let peers = [(2, peer(4, 0)), (3, peer(0, 1))].into();
            incidents.transport(&transport::Counters { peers, ..transport::Counters::default() });
        });
        let about = |node: u8, what: &str| {
            let node = format!("\"node\":{node}");
            text.lines().filter(|line| line.contains(&node) && line.contains(what)).count()
        };
        assert_eq!(
            (about(2, "4 frames that came damaged"), about(3, "1 times a certificate was refused")),
            (1, 1),
            "{text}"
        );
        assert_eq!(text.lines().count(), 2, "{text}");
    }
}
