//! One fault under traffic.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::figures::Kill;
use crate::bench::random::Random;
use crate::lab::Lab;
use crate::traffic::{Stream, Users};

/// The fault is made so many milliseconds after the stream ran well.
const MOMENT_MS: std::ops::Range<u64> = 200..700;

/// Silences up to this are the machine's own.
const NOTHING_US: u64 = 5_000;

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
        fault: impl FnOnce() -> Result<Instant>,
        mend: impl FnOnce() -> Result<()>,
    ) -> Result<Kill> {
        let users = Users::start(self.lab.client(), self.stream.clone(), self.web, self.connections)?;
        thread::sleep(Duration::from_millis(random.within(MOMENT_MS)));
        let at = fault()?;
        let made = users.streaming_for().saturating_sub(at.elapsed());
        let (felt, users) = users.felt()?;
        // Without a fault, an answer comes within two of the stream's intervals.
        let flow = felt.flows.iter().max_by_key(|flow| flow.gap_max_us);
        let usual = 2_000_000 * self.stream.flows.len() as u64 / u64::from(self.stream.per_second.max(1));
        let first = flow.filter(|flow| flow.gap_max_us > usual.max(NOTHING_US));
        let first = first.map(|flow| (flow.gap_at_us + flow.gap_max_us).saturating_sub(made.as_micros() as u64));
        mend()?;
        let (returned, long) = users.finish()?;
        let ms = |us: u64| us as f64 / 1000.0;
        Ok(Kill {
            node: self.node.to_owned(),
            gap_ms: ms(felt.gap_max_us),
            first_ms: first.map(ms),
            lost: felt.lost,
            duplicated: felt.duplicated,
            reordered: felt.reordered,
            moved: felt.moved,
            connections: long.opened,
            broken_connections: long.broken,
            wait_max_ms: ms(long.wait_max_us),
            return_gap_ms: ms(returned.gap_max_us),
            return_lost: returned.lost,
            lateness_ms: ms(felt.lateness_max_us),
            realtime: felt.realtime,
            steal_pct: felt.steal_pct,
        })
    }
}
