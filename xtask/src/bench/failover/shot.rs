//! One fault under traffic.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::figures::Kill;
use crate::bench::random::Random;
use crate::lab::Lab;
use crate::traffic::{Stream, Users};

/// The fault is made so many milliseconds after the stream ran well.
const MOMENT_MS: std::ops::Range<u64> = 200..700;

/// The traffic that a fault is made under.
pub(super) struct Shot<'a> {
    pub(super) lab: &'a Lab,
    pub(super) node: &'a str,
    pub(super) stream: &'a Stream,
    /// What long TCP connections go to, and how many.
    pub(super) web: &'a [SocketAddr],
    pub(super) connections: usize,
}

impl Shot<'_> {
    /// Makes a fault and ends it, and says what the traffic has felt.
    pub(super) fn fire(
        &self,
        random: &mut Random,
        fault: impl FnOnce() -> Result<()>,
        mend: impl FnOnce() -> Result<()>,
    ) -> Result<Kill> {
        let users = Users::start(self.lab.client(), self.stream.clone(), self.web, self.connections)?;
        thread::sleep(Duration::from_millis(random.within(MOMENT_MS)));
        fault()?;
        let (felt, users) = users.felt()?;
        mend()?;
        let (returned, long) = users.finish()?;
        let ms = |us: u64| us as f64 / 1000.0;
        Ok(Kill {
            node: self.node.to_owned(),
            gap_ms: ms(felt.gap_max_us),
            lost: felt.lost,
            duplicated: felt.duplicated,
            reordered: felt.reordered,
            moved: felt.moved,
            connections: long.opened,
            broken_connections: long.broken,
            return_gap_ms: ms(returned.gap_max_us),
            return_lost: returned.lost,
            lateness_ms: ms(felt.lateness_max_us),
            realtime: felt.realtime,
            steal_pct: felt.steal_pct,
        })
    }
}
