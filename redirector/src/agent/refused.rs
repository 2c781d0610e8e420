//! What an agent has refused of what came from outside, since it started.

use serde::{Deserialize, Serialize};

use crate::consensus::machine::Counters as Agreement;
use crate::transport::Counters as Transport;

/// What was refused; what came from peers that are known stands beside each of them as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RefusedStatus {
    /// Connections from outside that ended with a certificate refused, or were made by no member.
    pub strangers: u64,
    /// Connections from outside that were turned away since too many were being made.
    pub crowded: u64,
    /// Times that one end refused the other's certificate when this node dialled.
    pub certificates: u64,
    /// Frames that were cut short, too long, changed, or of an unknown version.
    pub damaged_frames: u64,
    /// Messages of agreement whose checksum does not hold.
    pub bad_checksums: u64,
    /// Those of a newer format.
    pub newer_formats: u64,
    /// Those of another cluster, or that make no sense.
    pub foreign: u64,
    /// Those meant for, or sent by, a disk that has no such seat.
    pub wrong_seat: u64,
    /// Those that a sound peer does not send.
    pub implausible: u64,
    /// Those that came when there was no use for them.
    pub out_of_turn: u64,
}

impl RefusedStatus {
    pub(super) fn of(transport: &Transport, agreement: &Agreement) -> Self {
        let peers = || transport.peers.values();
        Self {
            strangers: transport.strangers,
            crowded: transport.crowded,
            certificates: peers().map(|peer| peer.refused_certificates).sum(),
            damaged_frames: peers().map(|peer| peer.damaged_frames).sum(),
            bad_checksums: agreement.bad_checksums,
            newer_formats: agreement.newer_formats,
            foreign: agreement.foreign,
            wrong_seat: agreement.wrong_seat,
            implausible: agreement.implausible,
            out_of_turn: agreement.out_of_turn,
        }
    }

    /// Whatever was refused at all, in a line; none where nothing was.
    pub fn in_words(&self) -> Option<String> {
        let counts = [
            (self.strangers, "connections of strangers"),
            (self.crowded, "connections in a crowd"),
            (self.certificates, "certificates"),
            (self.damaged_frames, "damaged frames"),
            (self.bad_checksums, "damaged messages of agreement"),
            (self.newer_formats, "of a newer format"),
            (self.foreign, "of another cluster"),
            (self.wrong_seat, "for or from a seat that is none"),
            (self.implausible, "that no sound peer sends"),
            (self.out_of_turn, "out of turn"),
        ];
        let said = counts.iter().filter(|(count, _)| *count != 0).map(|(count, what)| format!("{count} {what}"));
        let said: Vec<String> = said.collect();
        (!said.is_empty()).then(|| format!("refused since the agent started: {}", said.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::PeerCounters;

    #[test]
    fn what_was_refused_is_summed_up_and_said() {
        let peer = |refused_certificates, damaged_frames| PeerCounters {
            refused_certificates,
            damaged_frames,
            ..PeerCounters::default()
        };
        let peers = [(2, peer(3, 0)), (3, peer(1, 5))].into();
        let transport = Transport { peers, strangers: 7, crowded: 0 };
        let agreement = Agreement { foreign: 2, out_of_turn: 1, ..Agreement::default() };
        let refused = RefusedStatus::of(&transport, &agreement);
        assert_eq!((refused.certificates, refused.damaged_frames), (4, 5));
        assert_eq!(
            refused.in_words().unwrap(),
            "refused since the agent started: 7 connections of strangers, 4 certificates, 5 damaged frames, \
             2 of another cluster, 1 out of turn"
        );
        assert_eq!(RefusedStatus::default().in_words(), None);
    }
}
