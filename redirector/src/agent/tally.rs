//! What nodes tell each other of the flows that backends which drain have left: each counts those that it serves, and the sum
//! is the cluster's.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::consensus::frame::{self, FrameError, Kind};
use crate::transport::Incoming;

/// How long what a node told holds: it tells every second.
const HOLDS: Duration = Duration::from_secs(5);

/// By pool and backend, how many flows a node serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tally(pub(super) BTreeMap<String, BTreeMap<String, u64>>);

impl Tally {
    /// Its form on the wire.
    pub(super) fn seal(&self, cluster: u32) -> Vec<u8> {
        frame::seal(Kind::Tally, cluster.into(), self)
    }

    fn open(cluster: u32, bytes: &[u8]) -> Result<Self, FrameError> {
        frame::open(Kind::Tally, cluster.into(), bytes)
    }

    /// What it says of a backend.
    pub(super) fn of(&self, pool: &str, backend: &str) -> Option<u64> {
        self.0.get(pool)?.get(backend).copied()
    }
}

/// What each peer told last, and when.
type Told = Arc<Mutex<BTreeMap<u8, (Instant, Tally)>>>;

/// What peers tell.
#[derive(Clone, Debug, Default)]
pub(super) struct Tallies(Told);

impl Tallies {
    /// Takes what comes in, as long as agents talk.
    pub(super) fn start(cluster: u32, mut inbox: mpsc::Receiver<Incoming>) -> Self {
        let tallies = Self::default();
        let told = tallies.clone();
        tokio::spawn(async move {
            while let Some(Incoming { from, payload, .. }) = inbox.recv().await {
                told.take(cluster, from, &payload, Instant::now());
            }
        });
        tallies
    }

    fn take(&self, cluster: u32, from: u8, payload: &[u8], now: Instant) {
        match Tally::open(cluster, payload) {
            Ok(tally) => drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(from, (now, tally))),
            // Whoever is newer may have more to tell.
            Err(error) => tracing::debug!(from, %error, "what a node tells of its flows is not understood"),
        }
    }

    /// What a peer told of a backend lately.
    pub(super) fn of(&self, node: u8, pool: &str, backend: &str, now: Instant) -> Option<u64> {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, tally) = told.get(&node)?;
        (now.saturating_duration_since(*at) <= HOLDS).then(|| tally.of(pool, backend)).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_lately_and_of_this_cluster_counts() {
        let tally = Tally([("web".to_owned(), [("b1".to_owned(), 7)].into())].into());
        let (tallies, now) = (Tallies::default(), Instant::now());
        tallies.take(3, 2, &tally.seal(3), now);
        let of = |node, backend, now| tallies.of(node, "web", backend, now);
        assert_eq!((of(2, "b1", now), of(2, "b2", now), of(4, "b1", now)), (Some(7), None, None));
        for bad in [tally.seal(4), tally.seal(3)[1..].to_vec(), Vec::new(), vec![11; 4000]] {
            tallies.take(3, 2, &bad, now);
        }
        assert_eq!(of(2, "b1", now + HOLDS), Some(7), "bad words change nothing");
        assert_eq!(of(2, "b1", now + HOLDS + Duration::from_millis(1)), None);
        tallies.take(3, 2, &Tally::default().seal(3), now + HOLDS);
        assert_eq!(of(2, "b1", now + HOLDS), None, "it does not drain there");
    }
}
