//! What interfaces receive, counted beside the agent's main task, which must not wait for a driver that is slow to answer.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::netlink::{self, Received};

/// How often it is counted.
const EVERY: Duration = Duration::from_millis(500);

/// The counting, which ends some time after this has gone.
#[derive(Debug)]
pub(super) struct Counts {
    wanted: watch::Sender<Vec<u32>>,
    found: watch::Receiver<BTreeMap<u32, Received>>,
}

impl Counts {
    /// Begins to count. Needs a tokio runtime.
    pub(super) fn start() -> Self {
        let (wanted, indices) = watch::channel(Vec::new());
        let (finds, found) = watch::channel(BTreeMap::new());
        tokio::spawn(count(indices, finds));
        Self { wanted, found }
    }

    /// These interfaces are to be counted, by their numbers.
    pub(super) fn want(&self, indices: Vec<u32>) {
        self.wanted.send_if_modified(|wanted| {
            let is_other = *wanted != indices;
            *wanted = indices;
            is_other
        });
    }

    /// What was counted since it was last asked for; of no interface where it could not be.
    pub(super) fn news(&mut self) -> Option<BTreeMap<u32, Received>> {
        self.found.has_changed().unwrap_or(false).then(|| self.found.borrow_and_update().clone())
    }
}

async fn count(indices: watch::Receiver<Vec<u32>>, finds: watch::Sender<BTreeMap<u32, Received>>) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut fails = false;
    loop {
        ticks.tick().await;
        let wanted = indices.borrow().clone();
        let counted = netlink::received(&wanted).await;
        match &counted {
            Err(error) if !fails => tracing::warn!(%error, "what interfaces receive is not known"),
            _ => {}
        }
        fails = counted.is_err();
        if finds.send(counted.unwrap_or_default().into_iter().collect()).is_err() {
            return;
        }
    }
}
