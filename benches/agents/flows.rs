//! Flows that come about at a node: packets of connections, run through the node's loaded program.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, MapData, ProgramArray};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpMode;
use aya::programs::{TestRun as _, TestRunOptions, Xdp, loaded_programs};
use aya::{Ebpf, EbpfLoader};
use etherparse::PacketBuilder;
use redirector::agent::control::{self, Answer, Request};
use redirector::config::{self, Config};
use redirector::dataplane::load;
use redirector::replication::Counters;
use redirector_ebpf::bench::{Run, TEMPLATE};
use xtask::lab::{Lab, Role, vip4};
use xtask::traffic::HTTP_PORT;

const XDP_TX: u32 = 3;
/// Sources are addresses of 10.0.0.0/8.
const FIRST: u64 = 0x0a00_0000;
/// Sources that are drawn from. The wrapper's hash meets each of a few million neighbouring counts at another of these.
const SOURCES: u64 = 1 << 24;

/// A packet of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Opening,
    Established,
}

/// A node of a lab, with packets for its program and questions for its agent.
pub(crate) struct Node {
    ebpf: Ebpf,
    run: Array<MapData, Run>,
    template: [[u64; TEMPLATE / 8]; 2],
    config: Config,
    /// Its agent.
    pub(crate) pid: i32,
}

impl Node {
    /// A node of a lab whose agents run.
    pub(crate) fn of(lab: &Lab, number: u8) -> Result<Self> {
        let name = format!("n{number}");
        let file = lab.config_file(&name);
        let text = std::fs::read_to_string(&file)?;
        let config = config::parse(&file.display().to_string(), &text)?;
        let object = std::fs::read(xtask::test::build_object(xtask::ebpf::BENCH_OBJECT)?)?;
        let mut ebpf = EbpfLoader::new().load(&object)?;
        let wrapper: &mut Xdp = ebpf.program_mut("bench_wrapper").context("no wrapper")?.try_into()?;
        wrapper.load()?;
        // A program that is attached nowhere is made known to the kernel's dispatcher by each run of it, and forgotten
        // again, which takes longer than thousands of packets. Nothing comes over this interface.
        lab.host(&name)?.run(|| wrapper.attach("lo", XdpMode::Skb))??;
        let mut measured = ProgramArray::try_from(ebpf.take_map("MEASURED").context("no map MEASURED")?)?;
        let link = load::directory(&config.node.pins).join("link-eth0");
        measured.set(0, &attached(&link)?, 0)?;
        let run = Array::try_from(ebpf.take_map("RUN").context("no map RUN")?)?;
        // The map goes with the program that uses it; what is in it stays only as long as somebody has it.
        std::mem::forget(measured);
        let template = [Kind::Opening, Kind::Established].map(|kind| template(number, kind));
        let pid = lab.process(&format!("{name}-agent"))?.pid;
        Ok(Self { ebpf, run, template, config, pid })
    }

    /// Has the program see a packet of each of `count` connections from the `first` one on.
    pub(crate) fn send(&mut self, kind: Kind, first: u64, count: u32) -> Result<()> {
        let run = Run {
            template: self.template[kind as usize],
            flows: SOURCES,
            first_source: FIRST,
            base: first,
            packets: u64::from(count),
            source_at: 14 + 12,
            len: TEMPLATE as u32,
            expected: XDP_TX,
            ..Run::default()
        };
        self.run.set(0, run, 0)?;
        let wrapper: &Xdp = self.ebpf.program("bench_wrapper").context("no wrapper")?.try_into()?;
        let packet = [0; TEMPLATE];
        wrapper.test_run(TestRunOptions { data_in: Some(&packet), repeat: count, ..TestRunOptions::default() })?;
        let done = self.run.get(&0, 0)?;
        let sent = done.as_expected;
        ensure!(sent == u64::from(count), "only {sent} of {count} packets were sent on: {kind:?}");
        Ok(())
    }

    /// Up to which index it knows the log to be committed, and whether any one node may fail.
    pub(crate) fn agreement(&self) -> Result<(u64, bool)> {
        match control::ask(&control::path(&self.config), &Request::Nodes)? {
            Answer::Nodes { agreement: Some(status), .. } => Ok((status.commit, status.redundant)),
            Answer::Nodes { .. } => bail!("the agent takes no part in agreement"),
            other => bail!("the agent answers what was not asked: {other:?}"),
        }
    }

    /// What its agent has counted of replication.
    pub(crate) fn counters(&self) -> Result<Counters> {
        match control::ask(&control::path(&self.config), &Request::Replication)? {
            Answer::Replication { counters } => serde_json::from_value(counters).context("what the agent has counted"),
            other => bail!("the agent answers what was not asked: {other:?}"),
        }
    }
}

/// The program that a pinned link has attached.
fn attached(link: &Path) -> Result<aya::programs::ProgramFd> {
    let link = PinnedLink::from_pin(link).with_context(|| format!("no link at {}", link.display()))?;
    let id = FdLink::from(link).info()?.program_id();
    for program in loaded_programs() {
        let program = program?;
        if program.id() == id {
            return Ok(program.fd()?);
        }
    }
    bail!("the program {id} is gone")
}

/// The first bytes of a packet of a connection to the lab's owned IPv4 service, at a node.
fn template(node: u8, kind: Kind) -> [u64; TEMPLATE / 8] {
    let link = PacketBuilder::ethernet2(Role::Client.mac_bytes(), Role::Node(node).mac_bytes());
    let tcp = link.ipv4([10, 0, 0, 0], vip4(2).octets(), 64).tcp(40_000, HTTP_PORT, 1, 1000);
    let tcp = if kind == Kind::Opening { tcp.syn() } else { tcp.ack(1) };
    let mut packet = Vec::new();
    // Writing to a vector fails never.
    let _ = tcp.write(&mut packet, &[0; TEMPLATE - 54]);
    std::array::from_fn(|word| u64::from_ne_bytes(std::array::from_fn(|byte| packet[word * 8 + byte])))
}
