//! A cluster that goes on without a majority of its voters, since an operator has given up those that are lost.

use std::collections::BTreeSet;

use super::{Member, Seat, State, slots};

/// Configurations that those who are lost may have agreed on meanwhile: no two have the same version.
const GAP: u64 = 1000;

impl State {
    /// The state in which a cluster goes on with one voter: `me`, with a disk of a new UUID. Whoever is given up is a member
    /// no more. All others stay members and lose their seats, since what their disks promised was promised to others. No
    /// disk of before has a word in it.
    pub fn recover(&mut self, index: u64, me: u8, disk: u128, lost: &BTreeSet<u8>) {
        self.version = index;
        self.specification.version += GAP;
        let seats = self.members.values().filter_map(|member| member.seat);
        self.given_up.extend(seats.map(|seat| seat.disk));
        for &id in lost.iter().filter(|id| **id != me) {
            self.members.remove(&id);
            slots::take_out(self, id, index);
            self.vips.values_mut().for_each(|holders| holders.retain(|&holder| holder != id));
        }
        for (&id, member) in &mut self.members {
            member.seat = (id == me).then_some(Seat { disk, votes: true });
        }
    }

    /// Members that vote.
    pub fn voters(&self) -> impl Iterator<Item = u8> {
        let votes = |(&id, member): (&u8, &Member)| member.seat.is_some_and(|seat| seat.votes).then_some(id);
        self.members.iter().filter_map(votes)
    }
}
