//! Users of a cluster: long connections and a paced stream at once, and what they feel of what is done to it.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::{LongConnections, LongReport, Stream, StreamReport, Streaming};
use crate::lab::Host;

const LINE_EVERY: Duration = Duration::from_millis(50);
/// What a connection may wait before it counts as broken: longer than any fault should be felt.
const PATIENCE: Duration = Duration::from_secs(10);
/// The stream runs well if no flow was silent for so long.
const WELL: Duration = Duration::from_millis(100);
const POLL: Duration = Duration::from_millis(5);
/// How long the stream is watched after a fault at least, and at most.
const WATCH: Duration = Duration::from_secs(1);
const WATCH_MAX: Duration = Duration::from_secs(10);

/// Users that are at it.
#[derive(Debug)]
pub struct Users {
    client: Host,
    stream: Stream,
    streaming: Streaming,
    long: LongConnections,
}

impl Users {
    /// Opens as many connections to these servers, starts the stream, and waits until it runs well.
    pub fn start(client: Host, stream: Stream, web: &[SocketAddr], connections: usize) -> Result<Self> {
        let long = client.run(|| LongConnections::open(web, connections, LINE_EVERY, PATIENCE))??;
        let streaming = client.run(|| stream.start())??;
        await_well(&streaming)?;
        Ok(Self { client, stream, streaming, long })
    }

    /// For how long the stream has run.
    pub fn streaming_for(&self) -> Duration {
        self.streaming.elapsed()
    }

    /// Watches the stream for a while, longer where answers do not come again, and says what became of it since it
    /// started. Another one takes its place.
    pub fn felt(self) -> Result<(StreamReport, Self)> {
        let begun = Instant::now();
        while begun.elapsed() < WATCH || (self.streaming.silence() > WELL && begun.elapsed() < WATCH_MAX) {
            thread::sleep(POLL);
        }
        let felt = self.streaming.finish()?;
        let streaming = self.client.run(|| self.stream.start())??;
        Ok((felt, Self { streaming, ..self }))
    }

    /// Ends it all a while later, and says what became of the last stream and of the connections.
    pub fn finish(self) -> Result<(StreamReport, LongReport)> {
        thread::sleep(WATCH);
        Ok((self.streaming.finish()?, self.long.finish()))
    }
}

/// Waits until answers come to all flows.
fn await_well(stream: &Streaming) -> Result<()> {
    let begun = Instant::now();
    // At first no flow counts as silent for long.
    thread::sleep(WELL);
    while stream.silence() > WELL / 2 {
        if begun.elapsed() > PATIENCE {
            bail!("the stream gets no answers, before anything was done to the cluster");
        }
        thread::sleep(POLL);
    }
    Ok(())
}
