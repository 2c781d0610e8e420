//! One fault under traffic.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::figures::Kill;
use crate::bench::random::Random;
use crate::lab::Lab;
use crate::traffic::{LongConnections, Stream, Streaming};

const LINE_EVERY: Duration = Duration::from_millis(50);
/// What a connection may wait before it counts as broken: longer than any fault should be felt.
const PATIENCE: Duration = Duration::from_secs(10);
/// The stream runs well if no flow was silent for so long.
const WELL: Duration = Duration::from_millis(100);
const POLL: Duration = Duration::from_millis(5);
/// The fault is made so many milliseconds after the stream ran well.
const MOMENT_MS: std::ops::Range<u64> = 200..700;
/// How long the stream is watched after a fault at least, and at most.
const WATCH: Duration = Duration::from_secs(1);
const WATCH_MAX: Duration = Duration::from_secs(10);

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
        let client = self.lab.client();
        let long = client.run(|| LongConnections::open(self.web, self.connections, LINE_EVERY, PATIENCE))??;
        let stream = client.run(|| self.stream.start())??;
        await_well(&stream)?;
        thread::sleep(Duration::from_millis(random.within(MOMENT_MS)));
        fault()?;
        let made = Instant::now();
        while made.elapsed() < WATCH || (stream.silence() > WELL && made.elapsed() < WATCH_MAX) {
            thread::sleep(POLL);
        }
        let felt = stream.finish()?;

        let stream = client.run(|| self.stream.start())??;
        mend()?;
        thread::sleep(WATCH);
        let returned = stream.finish()?;
        let long = long.finish();
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

/// Waits until answers come to all flows.
fn await_well(stream: &Streaming) -> Result<()> {
    let begun = Instant::now();
    // At first no flow counts as silent for long.
    thread::sleep(WELL);
    while stream.silence() > WELL / 2 {
        if begun.elapsed() > PATIENCE {
            bail!("the stream gets no answers, before any fault was made");
        }
        thread::sleep(POLL);
    }
    Ok(())
}
