//! `trace`: decisions for matching packets, live.
//!
//! The filter is put into a map and a bit of the node's row turned on; the programs then log what they decide about
//! packets that match. On the way out the bit is turned off again, however that way out looks.

mod capture;
mod filter;
mod told;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use aya::programs::links::{FdLink, PinnedLink};
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use redirector_ebpf::tables::trace::{Traced, switch};
use tokio::signal::unix::{SignalKind, signal};

use super::output::{Names, Output, Reader};
use super::target::Target;
use crate::dataplane::load;
use crate::dataplane::maps::{Maps, MapsError, read, written};
use capture::Capture;
use filter::{Filter, Spot};
use told::Told;

/// How often the programs' logs are emptied. They hold a few hundred decisions; what does not fit is lost.
const EVERY: Duration = Duration::from_millis(5);

/// Show the decisions for matching packets, live, until Ctrl-C.
#[derive(Debug, clap::Args)]
pub(super) struct Trace {
    /// Only packets of clients in this prefix, and from this port.
    #[arg(long, value_name = "PREFIX[:PORT]")]
    client: Option<Spot>,
    /// Only packets to this VIP, and this port.
    #[arg(long, value_name = "IP[:PORT]")]
    vip: Option<Spot>,
    /// Only packets of this protocol.
    #[arg(long, value_name = "PROTOCOL", value_parser = filter::protocol)]
    protocol: Option<u8>,
    /// End after so many packets.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// End after this time, such as 10s.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// Also write the packets, as they leave, to this file: the first 512 bytes of each.
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// Take over from a trace that is running or was killed.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

impl Trace {
    pub(super) fn run(self) -> Result<()> {
        let filter = Filter { client: self.client, vip: self.vip, protocol: self.protocol }.compile()?;
        let mut maps = self.target.maps()?;
        let names = Names::read(&maps)?;
        if maps.node.get(&0, 0).map_err(read("NODE"))?.trace != 0 && !self.force {
            bail!("another trace is running on this node, or was killed; `--force` takes over from it");
        }
        let (sender, decisions) = channel();
        let directory = load::directory(&self.target.pins()?);
        let mut logs = logs(&directory, &sender)?;
        let mut capture = self.pcap.as_deref().map(|file| Capture::open(&directory, file)).transpose()?;
        if logs.is_empty() {
            bail!(
                "the data plane is loaded but attached to no interface: `redirector run` or `redirector load` attaches it"
            );
        }
        maps.trace.set(0, filter, 0).map_err(written("TRACE"))?;
        // What an earlier trace left behind is nobody's.
        logs.iter_mut().for_each(EbpfLogger::flush);
        decisions.try_iter().for_each(drop);
        let mut switch = Switch::on(maps, if capture.is_some() { switch::CAPTURE } else { switch::LOG })?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.follow(&mut switch, &mut logs, &decisions, &mut capture, &names))
    }

    async fn follow(
        &self,
        switch: &mut Switch,
        logs: &mut [EbpfLogger<ToChannel>],
        decisions: &Receiver<Traced>,
        capture: &mut Option<Capture>,
        names: &Names,
    ) -> Result<()> {
        let mut interrupted = signal(SignalKind::interrupt())?;
        let mut terminated = signal(SignalKind::terminate())?;
        let mut turn = tokio::time::interval(EVERY);
        let mut renew = tokio::time::interval(Duration::from_secs(1));
        let end = tokio::time::sleep(self.duration.unwrap_or(Duration::MAX));
        tokio::pin!(end);
        let mut left = self.count.unwrap_or(u64::MAX);
        while left > 0 {
            tokio::select! {
                _ = interrupted.recv() => break,
                _ = terminated.recv() => break,
                () = &mut end => break,
                _ = renew.tick() => switch.turn(true)?,
                _ = turn.tick() => {
                    if let Some(capture) = capture {
                        capture.drain()?;
                    }
                    logs.iter_mut().for_each(EbpfLogger::flush);
                    for decision in decisions.try_iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
                        let told = Told::new(&decision, names, SystemTime::now());
                        if self.output.line(&told, || told.to_string())? == Reader::Gone {
                            return Ok(());
                        }
                        left -= 1;
                    }
                }
            }
        }
        Ok(())
    }
}

/// What has the programs log; it goes off with this value.
struct Switch {
    maps: Maps,
    on: u8,
}

impl Switch {
    fn on(maps: Maps, on: u8) -> Result<Self, MapsError> {
        let mut switch = Self { maps, on };
        switch.turn(true)?;
        Ok(switch)
    }

    /// Makes sure that it is on or off. The agent writes the node's row as a whole, so a change of its configuration
    /// turns the bit off.
    fn turn(&mut self, on: bool) -> Result<(), MapsError> {
        let mut node = self.maps.node.get(&0, 0).map_err(read("NODE"))?;
        let wanted = if on { self.on } else { switch::OFF };
        if node.trace != wanted {
            node.trace = wanted;
            self.maps.node.set(0, node, 0).map_err(written("NODE"))?;
        }
        Ok(())
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        if let Err(error) = self.turn(false) {
            eprintln!("redirector: the trace could not be turned off: {:#}", anyhow::Error::new(error));
        }
    }
}

/// The logs of the programs behind the pinned links.
fn logs(directory: &Path, decisions: &Sender<Traced>) -> Result<Vec<EbpfLogger<ToChannel>>> {
    let mut logs = Vec::new();
    for entry in std::fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let path = entry?.path();
        if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("link-")) {
            continue;
        }
        let link: FdLink =
            PinnedLink::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?.into();
        let program = link.info()?.program_id();
        let log = EbpfLogger::init_from_id_with_logger(program, ToChannel(decisions.clone()))
            .with_context(|| format!("cannot read the log of the program behind {}", path.display()))?;
        logs.push(log);
    }
    Ok(logs)
}

/// Takes log records apart and hands the decisions on.
struct ToChannel(Sender<Traced>);

impl Log for ToChannel {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if let Some(words) = told::words(&record.args().to_string()) {
            // The receiver outlives the logs.
            let _ = self.0.send(Traced { words });
        }
    }

    fn flush(&self) {}
}
