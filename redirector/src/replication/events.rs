//! Events from the data plane: from the ring into the queue, and a note of every one that is lost.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use aya::maps::{Map, MapData, PerCpuArray, RingBuf};
use redirector_ebpf::reason::Reason;

use super::key::FlowKey;
use crate::dataplane::flows::read_event;
use crate::dataplane::maps::MapsError;
use crate::doorbell::Letterbox;

/// A change of a flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Changed {
    pub(super) key: FlowKey,
    pub(super) backend: u16,
    /// When, in monotonic nanoseconds.
    pub(super) time: u64,
}

/// What is counted of events.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) events: AtomicU64,
    pub(super) lost: AtomicU64,
    /// Set when events were lost and not yet made up for.
    pub(super) loss: AtomicBool,
}

impl Heard {
    /// Notes lost events.
    pub(super) fn lose(&self, count: u64) {
        self.lost.fetch_add(count, Relaxed);
        self.loss.store(true, Relaxed);
    }
}

/// The ring and the counter of what did not fit.
pub(super) struct Ring {
    ring: RingBuf<MapData>,
    reasons: PerCpuArray<MapData, u64>,
    lost: u64,
}

impl Ring {
    /// Opens both; what is in the ring by now is dropped, since the flow tables will be walked anyway.
    pub(super) fn open(directory: &Path) -> Result<Self, MapsError> {
        let open = |name: &'static str| {
            let error = move |source| MapsError::Open { directory: directory.to_owned(), name, source };
            (MapData::from_pin(directory.join(name)), error)
        };
        let (ring, error) = open("FLOW_EVENTS");
        let mut ring = ring.and_then(|map| RingBuf::try_from(Map::RingBuf(map))).map_err(error)?;
        while ring.next().is_some() {}
        let (reasons, error) = open("REASONS");
        let reasons = reasons.and_then(|map| PerCpuArray::try_from(Map::PerCpuArray(map))).map_err(error)?;
        let mut ring = Self { ring, reasons, lost: 0 };
        ring.newly_lost();
        Ok(ring)
    }

    /// Events that did not fit into the ring since this was last asked.
    fn newly_lost(&mut self) -> u64 {
        let values = self.reasons.get(&(Reason::NoteEventLost as u32), 0);
        let lost = values.map_or(self.lost, |values| values.iter().sum());
        lost.saturating_sub(std::mem::replace(&mut self.lost, lost))
    }

    /// Puts what has come into the queue; says whether anything had.
    pub(super) fn drain(&mut self, queue: &Letterbox<Changed>, heard: &Heard) -> bool {
        let (mut events, mut lost) = (0, 0);
        while let Some(bytes) = self.ring.next() {
            events += 1;
            // An event of another version of the program is none that can be read: the flow is found by walking.
            let queued = read_event(&bytes).is_some_and(|event| {
                let key = FlowKey::new(&event.tuple(), event.v6 != 0);
                queue.try_send(Changed { key, backend: event.backend, time: event.time }).is_ok()
            });
            lost += u64::from(!queued);
        }
        if events == 0 {
            // Events are lost where the ring is full only.
            return false;
        }
        heard.events.fetch_add(events, Relaxed);
        lost += self.newly_lost();
        if lost > 0 {
            heard.lose(lost);
        }
        true
    }
}
