//! What a node does whatever the phase that it is in: it opens its disk, and tells of what it finds.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::repair::Repair;
use super::running::Running;
use super::{AGAIN, Action, Event, Own, Phase};
use crate::consensus::disk::Disk;
use crate::consensus::log::{Damage, Identity, Log, OpenError, Opening};
use crate::consensus::wire::{Body, Letter};

impl Own {
    /// A node that was lately part of a cluster which this one is not part of.
    pub(super) fn begun_elsewhere(&self) -> Option<u8> {
        self.begun.iter().find(|(_, at)| self.tick - **at <= 8 * AGAIN).map(|(&node, _)| node)
    }

    /// A node says that it is part of a cluster. If this one is part of one without it, there are two.
    pub(super) fn hears_of_a_cluster(&mut self, node: u8) {
        self.begun.insert(node, self.tick);
        let is_rival = self.state.version > 0 && !self.state.members.contains_key(&node);
        if is_rival && self.rivals.insert(node) {
            self.out.push(Action::Told(Event::Rival(node)));
        }
    }

    /// Looks at what is on a disk.
    pub(super) fn open<D: Disk>(&mut self, disk: D) -> Result<Phase<D>, OpenError> {
        let phase = match Opening::of(disk, self.config.cluster, self.config.node)? {
            Opening::Unread(disk, error) => {
                self.disk_fails(&error);
                return Ok(Phase::Unread(disk));
            }
            Opening::Fresh(disk) => Phase::Blank { disk, has_remains: false },
            Opening::Lost(disk, why) => self.reborn(disk, why),
            Opening::There(log, damage) => self.begin(*log, damage),
        };
        self.disk_works();
        Ok(phase)
    }

    /// What follows when a disk's promises are lost.
    pub(super) fn reborn<D: Disk>(&mut self, disk: D, why: String) -> Phase<D> {
        self.counters.reborn += 1;
        self.out.push(Action::Told(Event::Reborn { why }));
        self.state = Arc::default();
        Phase::Blank { disk, has_remains: true }
    }

    /// Makes an empty log, under a new UUID.
    pub(super) fn blank<D: Disk>(&mut self, mut disk: D, has_remains: bool) -> Phase<D> {
        if has_remains && let Err(error) = disk.set_aside() {
            self.disk_fails(&error);
            return Phase::Blank { disk, has_remains };
        }
        let identity = Identity { cluster: self.config.cluster, node: self.config.node, disk: self.draws.uuid() };
        match Log::create(disk, identity) {
            Ok(log) => self.begin(log, Damage::default()),
            Err((disk, error)) => {
                self.disk_fails(&error);
                Phase::Blank { disk, has_remains: false }
            }
        }
    }

    /// Goes on with a log.
    pub(super) fn begin<D: Disk>(&mut self, log: Log<D>, damage: Damage) -> Phase<D> {
        if let Some((snapshot, _)) = log.snapshot() {
            self.state = Arc::new(snapshot.state.clone());
        }
        if damage.is_empty() {
            return match Running::start(self, log) {
                Ok(running) => Phase::Running(Box::new(running)),
                Err(why) => {
                    self.counters.stopped = Some(why.clone());
                    self.out.push(Action::Told(Event::Stopped(why)));
                    Phase::Stopped
                }
            };
        }
        let (entries, snapshots) = (damage.entries.len(), usize::from(damage.snapshot.is_some()));
        self.counters.damaged += entries + snapshots;
        self.out.push(Action::Told(Event::Damaged { entries, snapshots }));
        if self.peers().is_empty() {
            return self.reborn(log.into_disk(), "records are damaged and there is no peer to ask".to_owned());
        }
        Phase::Repairing(Box::new(Repair::new(log, damage)))
    }

    /// All other nodes that are known of.
    pub(super) fn peers(&self) -> Vec<u8> {
        let known = self.config.peers.iter().chain(self.state.members.keys()).copied();
        let peers: BTreeSet<u8> = known.filter(|&id| id != self.config.node).collect();
        peers.into_iter().collect()
    }

    pub(super) fn send(&mut self, to: u8, disk: u128, body: Body) {
        let bytes = Letter { disk, body }.seal(self.config.cluster);
        self.out.push(Action::Send { to, bytes });
    }

    pub(super) fn disk_fails(&mut self, error: &std::io::Error) {
        self.counters.disk_failures += 1;
        if !self.disk_fails {
            self.disk_fails = true;
            self.out.push(Action::Told(Event::DiskFails(error.to_string())));
        }
    }

    pub(super) fn disk_works(&mut self) {
        if self.disk_fails {
            self.disk_fails = false;
            self.out.push(Action::Told(Event::DiskWorks));
        }
    }
}
