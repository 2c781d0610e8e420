//! `forward`: packets a second through a real veth pair with native XDP, against the floor program in the same place, and
//! against Linux that does the same job by nftables DNAT.
//!
//! ```text
//!            eth1                       eth0
//!  live frames ─► veth ─────────────────► what is measured
//!  counted, end ◄─────────────────────────┘ sends each frame back
//! ```
//!
//! Frames are made on the CPU on which they are then handled, so one core makes, carries, handles and ends them all; with
//! all cores each has such a stream of its own. Rates are of frames that came to their end. Everything is in a network
//! namespace that goes with the measurement.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use aya::EbpfLoader;
use aya::maps::{MapData, PerCpuArray, PerCpuValues};
use aya::programs::xdp::XdpMode;
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use redirector_ebpf::bench::{Run, TEMPLATE};
use serde::Serialize;
use xtask::bench::machine::{Disturbance, Slices, Watch, stolen, undisturbed};
use xtask::bench::rows::Rows;
use xtask::bench::spread::{Ratios, median};
use xtask::step;

use crate::Options;
use crate::cells::{Cell, Table, XDP_TX, cell};
use crate::measure::{Pinned, load, template};
use crate::node::{NODE_MAC, Node};

/// The ratio to the floor that is aimed at: shared, one core.
const TARGET: f64 = 0.6;
/// How many frames are made at a time: no more than veth has room for.
const BATCH: u32 = 64;
/// Frames that a slice makes between two looks at the clock.
const STEP: u32 = 16_384;
/// Flows that connection tracking must have room for.
const TRACKED: u64 = 2 << 20;

/// What sends frames back.
#[derive(Clone, Copy)]
enum Way {
    /// A program that swaps two MAC addresses.
    Floor,
    /// Redirector, to a cell's service.
    Redirector(Cell),
    /// Linux, by nftables DNAT to one of two backends, chosen by a hash.
    Nftables,
}

#[derive(Debug, Serialize)]
struct Figure {
    way: &'static str,
    cores: usize,
    flows: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_run: Option<String>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    rates: Option<Rates>,
}

#[derive(Debug, Serialize)]
struct Rates {
    packets_per_second: f64,
    floor_packets_per_second: f64,
    /// Frames that were made and did not come to their end, of a hundred; of the floor's likewise.
    lost_pct: f64,
    floor_lost_pct: f64,
    #[serde(flatten)]
    ratios: Ratios,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<f64>,
    #[serde(flatten)]
    disturbance: Disturbance,
    #[serde(flatten)]
    slices: Slices,
}

/// How a slice, or several, went.
#[derive(Clone, Copy, Debug, Default)]
struct Went {
    made: u64,
    ended: u64,
    /// Frames that came to their end, a second.
    rate: f64,
}

impl Went {
    fn add(&mut self, other: Self) {
        (self.made, self.ended) = (self.made + other.made, self.ended + other.ended);
    }

    fn lost_pct(self) -> f64 {
        let lost = self.made.saturating_sub(self.ended) as f64;
        (lost * 1e4 / self.made.max(1) as f64).round() / 100.0
    }
}

/// Measures all of it.
pub(crate) fn run(options: &Options, rows: &mut Rows) -> Result<()> {
    // Only the machine's own network may do this.
    let _tracking = Tracking::make_room()?;
    // The namespace is the thread's, and those of threads that it starts.
    thread::scope(|scope| {
        let work = || {
            isolate()?;
            measure(options, rows)
        };
        scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn measure(options: &Options, rows: &mut Rows) -> Result<()> {
    let all = thread::available_parallelism()?.get();
    let (rounds, slice) = if options.short { (5, 80) } else { (7, 400) };
    let mut bench = Live::new(all, Duration::from_millis(slice))?;
    let ways = [
        ("redirector, shared", Way::Redirector(cell("shared-l2", 80, Table::Empty, [TARGET; 3])), Some(TARGET)),
        ("redirector, owned", Way::Redirector(cell("owned-l2", 84, Table::Known, [TARGET; 3])), None),
        ("nftables DNAT", Way::Nftables, None),
    ];
    println!(
        "{:<20} {:>5} {:>9} {:>12} {:>12} {:>7} {:>13}",
        "way", "cores", "flows", "packets/s", "floor", "ratio", "p10..p90"
    );
    for cores in [1, all] {
        for flows in [1, 10_000, 1_000_000] {
            for (name, way, target) in ways {
                if !rows.begin(format_args!("{name}, {cores} cores, {flows} flows")) {
                    continue;
                }
                let rates = match bench.rates(way, cores, flows, rounds, target.filter(|_| cores == 1)) {
                    Ok(rates) => rates,
                    // What it is compared with may fail here, and the rest is worth having.
                    Err(error) if matches!(way, Way::Nftables) => {
                        println!("{name:<20} {cores:>5} {flows:>9} not run: {error:#}");
                        let not_run = Some(format!("{error:#}"));
                        rows.push(&Figure { way: name, cores, flows, not_run, rates: None })?;
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                let Ratios { ratio_median, ratio_p10, ratio_p90 } = rates.ratios;
                let missed = rates.target.is_some_and(|target| ratio_median < target);
                println!(
                    "{name:<20} {cores:>5} {flows:>9} {:>12.0} {:>12.0} {ratio_median:>7.2} {ratio_p10:>6.2}..{ratio_p90:<5.2}{}",
                    rates.packets_per_second,
                    rates.floor_packets_per_second,
                    if missed { " missed" } else { "" }
                );
                rows.push(&Figure { way: name, cores, flows, not_run: None, rates: Some(rates) })?;
            }
        }
        if all == 1 {
            break;
        }
    }
    let why = if has_ipvs() { "it is not built: nftables alone is" } else { "this kernel has no IPVS" };
    println!("{:<20} not run: {why}", "IPVS");
    rows.push(&Figure { way: "IPVS", cores: 1, flows: 1, not_run: Some(why.to_owned()), rates: None })
}

/// Whether the kernel has IPVS; its file is there once the module is.
fn has_ipvs() -> bool {
    let _ = Command::new("modprobe").arg("ip_vs").output();
    fs::exists("/proc/net/ip_vs").unwrap_or(false)
}

/// Gives this thread a network of its own.
fn isolate() -> Result<()> {
    // SAFETY: touches this thread's network alone.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    ensure!(done == 0, "no network namespace: {}", std::io::Error::last_os_error());
    Ok(())
}

/// The veth pair, and what is put at its ends.
struct Live {
    ebpf: Ebpf,
    node: Node,
    made: PerCpuArray<MapData, Run>,
    ended: PerCpuArray<MapData, [u64; 2]>,
    outside: u32,
    slice: Duration,
    base: u64,
    slices: Slices,
}

impl Live {
    fn new(cores: usize, slice: Duration) -> Result<Self> {
        let mac = NODE_MAC.map(|byte| format!("{byte:02x}")).join(":");
        let queues = format!("numrxqueues {cores} numtxqueues {cores}");
        ip(&[
            "link set lo up",
            &format!("link add eth0 address {mac} {queues} type veth peer name eth1 {queues}"),
            "address add 10.0.0.1/16 dev eth0",
            "link set eth0 up",
            "link set eth1 up",
            // Where clients are, for Linux: back the way that they came.
            "route add default dev eth0",
            "neighbour add 10.0.1.1 lladdr 02:00:00:01:00:11 dev eth0 nud permanent",
            "neighbour add 10.0.1.2 lladdr 02:00:00:01:00:12 dev eth0 nud permanent",
        ])?;
        for (name, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/eth0/rp_filter", "0"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/eth0/send_redirects", "0"),
            // The wrapper changes sources and leaves TCP's checksum as it was; connections are tracked all the same.
            ("netfilter/nf_conntrack_checksum", "0"),
        ] {
            fs::write(format!("/proc/sys/net/{name}"), value).with_context(|| name.to_owned())?;
        }
        let object = fs::read(xtask::test::build_object(xtask::ebpf::BENCH_OBJECT)?)?;
        let mut ebpf = EbpfLoader::new().load(&object)?;
        for name in ["bench_generate", "bench_end", "bench_floor", "bench_pass"] {
            load(&mut ebpf, name)?;
        }
        let end: &mut Xdp = ebpf.program_mut("bench_end").context("no bench_end")?.try_into()?;
        end.attach("eth1", XdpMode::Driver).context("native XDP on veth")?;
        // A program's first use is made known to the kernel's dispatcher, which takes many milliseconds, and so it would be
        // for every run of it, if it were not in use elsewhere all the time.
        let generate: &mut Xdp = ebpf.program_mut("bench_generate").context("no generator")?.try_into()?;
        generate.attach("lo", XdpMode::Skb).context("generic XDP on the loopback")?;
        let made = PerCpuArray::try_from(ebpf.take_map("MADE").context("no map MADE")?)?;
        let ended = PerCpuArray::try_from(ebpf.take_map("ENDED").context("no map ENDED")?)?;
        let node = Node::of(include_str!("node.toml"), index("eth0")?)?;
        let outside = index("eth1")?;
        Ok(Self { ebpf, node, made, ended, outside, slice, base: 0, slices: Slices::default() })
    }

    fn rates(&mut self, way: Way, cores: usize, flows: u64, rounds: usize, target: Option<f64>) -> Result<Rates> {
        let cell = match way {
            Way::Redirector(cell) => cell,
            _ => super::cells::ALL[0],
        };
        self.prepare(way, &cell, flows)?;
        let (mut own, mut floors, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        let (mut all, mut all_floors) = (Went::default(), Went::default());
        let watch = Watch::start();
        self.slices = Slices::default();
        for _ in 0..rounds {
            let floor = self.rate(Way::Floor, &cell, cores, flows)?;
            let went = self.rate(way, &cell, cores, flows)?;
            floors.push(floor.rate);
            own.push(went.rate);
            ratios.push(went.rate / floor.rate);
            all_floors.add(floor);
            all.add(went);
        }
        Ok(Rates {
            packets_per_second: median(own)?.round(),
            floor_packets_per_second: median(floors)?.round(),
            lost_pct: all.lost_pct(),
            floor_lost_pct: all_floors.lost_pct(),
            ratios: Ratios::of(ratios)?,
            target,
            disturbance: watch.seen(),
            slices: self.slices,
        })
    }

    /// Has all flows known where flows are tracked, so that none opens while it is measured.
    fn prepare(&mut self, way: Way, cell: &Cell, flows: u64) -> Result<()> {
        self.node.own_slots(1)?;
        self.node.sweep(true);
        let known = match way {
            Way::Floor => false,
            Way::Redirector(cell) => cell.table == Table::Known,
            Way::Nftables => true,
        };
        if known {
            // Conntrack would take an ACK after a SYN that nobody answered for invalid.
            let opens = matches!(way, Way::Redirector(_));
            self.with(way, |live| {
                let mut made = 0;
                while made < flows * 4 {
                    live.make(&cell.with(opens), flows, STEP)?;
                    made += u64::from(STEP);
                }
                Ok(())
            })?;
            // A second packet at least a tick of the kernel's coarse clock later proves a flow.
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Does something while a way's program is attached, and takes that off again.
    fn with<T>(&mut self, way: Way, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if matches!(way, Way::Nftables) {
            nft(&dnat())?;
        }
        let link = self.program(way)?.attach("eth0", XdpMode::Driver)?;
        let done = work(self);
        self.program(way)?.detach(link)?;
        if matches!(way, Way::Nftables) {
            nft("delete table ip forward")?;
        }
        done
    }

    fn program(&mut self, way: Way) -> Result<&mut Xdp> {
        let program = match way {
            Way::Redirector(_) => self.node.ebpf.program_mut("redirector"),
            // Frames reach the stack behind a program; without one, a veth that gathers them gives up after some hundred.
            Way::Nftables => self.ebpf.program_mut("bench_pass"),
            Way::Floor => self.ebpf.program_mut("bench_floor"),
        };
        Ok(program.context("no program")?.try_into()?)
    }

    fn rate(&mut self, way: Way, cell: &Cell, cores: usize, flows: u64) -> Result<Went> {
        self.with(way, |live| {
            // What the attaching has left undone, and caches.
            live.make(cell, flows, STEP)?;
            let mut slices = live.slices;
            // A part of the work is that of the kernel's threads: that streams make room for them is no disturbance.
            let went = undisturbed(&mut slices, || live.slice(cell, cores, flows), stolen);
            live.slices = slices;
            went
        })
    }

    fn slice(&mut self, cell: &Cell, cores: usize, flows: u64) -> Result<Went> {
        self.set(cell, flows)?;
        let before = self.at_end()?;
        let begun = Instant::now();
        let generator: &Xdp = self.ebpf.program("bench_generate").context("no generator")?.try_into()?;
        let (outside, slice, node) = (self.outside, self.slice, &self.node);
        let made: u64 = thread::scope(|scope| {
            let stream = |cpu: usize| {
                move || {
                    // With one core that one, on which interrupts of the machine's own are rare.
                    let _alone = Pinned::alone_on(if cores == 1 { 1 } else { cpu })?;
                    let mut made = 0u64;
                    while begun.elapsed() < slice {
                        node.tick();
                        generate(generator, outside, STEP)?;
                        made += u64::from(STEP);
                    }
                    Ok(made)
                }
            };
            let streams: Vec<_> = (0..cores).map(|cpu| scope.spawn(stream(cpu))).collect();
            let made =
                streams.into_iter().map(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            made.sum::<Result<u64>>()
        })?;
        let took = begun.elapsed();
        let ended = self.at_end()? - before;
        self.base += made;
        ensure!(ended * 2 > made, "only {ended} of {made} frames came back");
        Ok(Went { made, ended, rate: ended as f64 / took.as_secs_f64() })
    }

    fn make(&mut self, cell: &Cell, flows: u64, frames: u32) -> Result<()> {
        self.set(cell, flows)?;
        let generator: &Xdp = self.ebpf.program("bench_generate").context("no generator")?.try_into()?;
        let _alone = Pinned::alone_on(1)?;
        generate(generator, self.outside, frames)?;
        self.base += u64::from(frames);
        Ok(())
    }

    /// Says what each CPU makes.
    fn set(&mut self, cell: &Cell, flows: u64) -> Result<()> {
        let run = Run {
            template: template(cell),
            flows,
            first_source: cell.first(),
            source_at: cell.source_at(),
            len: TEMPLATE as u32,
            expected: XDP_TX,
            ..Run::default()
        };
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        // CPUs are far apart in the order of flows, so that they do not meet the same at the same time.
        let mut runs = vec![run; cpus];
        for (run, cpu) in runs.iter_mut().zip(0u64..) {
            run.base = self.base + (cpu << 40);
        }
        self.made.set(0, PerCpuValues::try_from(runs)?, 0)?;
        Ok(())
    }

    fn at_end(&self) -> Result<u64> {
        Ok(self.ended.get(&0, 0)?.iter().map(|[frames, _]| frames).sum())
    }
}

/// Sends so many frames out of an interface.
fn generate(generator: &Xdp, interface: u32, frames: u32) -> Result<()> {
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
    let context = [0, TEMPLATE as u32, 0, interface, 0, 0];
    let context: Vec<u8> = context.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let options = TestRunOptions {
        data_in: Some(&[0; TEMPLATE]),
        ctx_in: Some(&context),
        repeat: frames,
        attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
        ..TestRunOptions::default()
    };
    generator.test_run(options).context("live frames")?;
    Ok(())
}

/// What redirector does, as nftables does it.
fn dnat() -> String {
    let hook = "type nat hook prerouting priority dstnat;";
    let rule = "ip daddr 198.51.100.1 tcp dport 80 dnat to jhash ip saddr mod 2 map { 0 : 10.0.1.1, 1 : 10.0.1.2 }";
    format!("table ip forward {{ chain in {{ {hook} {rule}; }}; }}")
}

/// Room in the kernel's table of connections, which all namespaces share; as it was when this is dropped.
struct Tracking(Option<(String, String)>);

const TRACKED_MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const TRACKED_BUCKETS: &str = "/sys/module/nf_conntrack/parameters/hashsize";

impl Tracking {
    fn make_room() -> Result<Self> {
        let (max, buckets) = (fs::read_to_string(TRACKED_MAX), fs::read_to_string(TRACKED_BUCKETS));
        let (Ok(max), Ok(buckets)) = (max, buckets) else { return Ok(Self(None)) };
        fs::write(TRACKED_BUCKETS, (TRACKED / 2).to_string()).context(TRACKED_BUCKETS)?;
        fs::write(TRACKED_MAX, TRACKED.to_string()).context(TRACKED_MAX)?;
        Ok(Self(Some((max, buckets))))
    }
}

impl Drop for Tracking {
    fn drop(&mut self) {
        if let Some((max, buckets)) = &self.0 {
            for (file, before) in [(TRACKED_MAX, max), (TRACKED_BUCKETS, buckets)] {
                if let Err(error) = fs::write(file, before.trim()) {
                    eprintln!("{file} is not as it was, {}: {error}", before.trim());
                }
            }
        }
    }
}

fn index(interface: &str) -> Result<u32> {
    let name = std::ffi::CString::new(interface)?;
    // SAFETY: a string that ends with NUL.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    ensure!(index > 0, "no interface {interface}");
    Ok(index)
}

fn ip(lines: &[&str]) -> Result<()> {
    lines.iter().try_for_each(|line| step::run(Command::new("ip").args(line.split(' '))))
}

fn nft(text: &str) -> Result<()> {
    step::run(Command::new("nft").arg(text))
}
