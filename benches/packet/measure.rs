//! Slices: a number of packets through a program under the wrapper, and how long they took.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, MapData, ProgramArray};
use aya::programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use redirector_ebpf::bench::{Run, TEMPLATE};
use redirector_ebpf::reason::Reason;
use xtask::bench::machine::{Slices, disturbances, undisturbed};

use crate::cells::{Cell, Table, XDP_TX};
use crate::node::Node;

/// Packets of one slice.
const SLICE: u32 = 100_000;

/// One in so many known flows may have no place of its own. Of a million, the last to come find one bucket in 25 full, and a
/// slice may meet them alone.
const FOUND_NO_PLACE: u64 = 20;

/// The wrapper, the floor, and the node.
pub(crate) struct Bench {
    ebpf: Ebpf,
    measured: ProgramArray<MapData>,
    run: Array<MapData, Run>,
    floor: ProgramFd,
    nothing: ProgramFd,
    program: ProgramFd,
    node: Node,
    base: u64,
    slices: Slices,
}

pub(crate) fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<ProgramFd> {
    let program: &mut Xdp = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?;
    program.load().with_context(|| format!("load {name}"))?;
    Ok(program.fd()?.try_clone()?)
}

/// This thread on one CPU, until this is dropped.
pub(crate) struct Pinned {
    before: libc::cpu_set_t,
}

impl Pinned {
    /// Among all others that run there.
    pub(crate) fn on(cpu: usize) -> Result<Self> {
        Self::with(cpu, libc::SCHED_OTHER, 0)
    }

    /// Before all that runs there at ordinary priority.
    ///
    /// Only while packets are run: a thread that waits in the kernel for another one of its CPU, as it may where processes
    /// are made or end, would keep that one from ever going on.
    pub(crate) fn alone_on(cpu: usize) -> Result<Self> {
        Self::with(cpu, libc::SCHED_FIFO, 1)
    }

    fn with(cpu: usize, policy: i32, priority: i32) -> Result<Self> {
        let error = || anyhow::anyhow!("cannot have one CPU for itself: {}", std::io::Error::last_os_error());
        let cpu = cpu % std::thread::available_parallelism()?.get();
        // SAFETY: a zeroed set is an empty one, and the call gets it by its own size.
        let (mut before, mut set): (libc::cpu_set_t, libc::cpu_set_t) = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        ensure!(unsafe { libc::sched_getaffinity(0, size_of_val(&before), &raw mut before) } == 0, error());
        // SAFETY: there are fewer CPUs than a set has room for.
        unsafe { libc::CPU_SET(cpu, &mut set) };
        let pinned = Self { before };
        ensure!(schedule(&set, policy, priority), error());
        Ok(pinned)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        schedule(&self.before, libc::SCHED_OTHER, 0);
    }
}

/// Gives this thread CPUs, a policy and a priority; says whether it has them.
fn schedule(cpus: &libc::cpu_set_t, policy: i32, priority: i32) -> bool {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: both calls get what they are given by its own size.
    unsafe {
        libc::sched_setaffinity(0, size_of_val(cpus), std::ptr::from_ref(cpus)) == 0
            && libc::sched_setscheduler(0, policy, &raw const parameters) == 0
    }
}

impl Bench {
    /// Loads everything.
    pub(crate) fn new(object: &[u8]) -> Result<Self> {
        Self::of(Node::new(object)?)
    }

    /// Loads what a node is measured by.
    pub(crate) fn of(node: Node) -> Result<Self> {
        let object = fs::read(xtask::test::build_object(xtask::ebpf::BENCH_OBJECT)?)?;
        let mut ebpf = EbpfLoader::new().load(&object)?;
        load(&mut ebpf, "bench_wrapper")?;
        let (floor, nothing) = (load(&mut ebpf, "bench_floor")?, load(&mut ebpf, "bench_return")?);
        let program: &Xdp = node.ebpf.program("redirector").context("no program redirector")?.try_into()?;
        let program = program.fd()?.try_clone()?;
        let measured = ProgramArray::try_from(ebpf.take_map("MEASURED").context("no map MEASURED")?)?;
        let run = Array::try_from(ebpf.take_map("RUN").context("no map RUN")?)?;
        Ok(Self { ebpf, measured, run, floor, nothing, program, node, base: 0, slices: Slices::default() })
    }

    /// Where the node's maps are pinned.
    pub(crate) fn directory(&self) -> &std::path::Path {
        &self.node.directory
    }

    /// Brings flow table and slots into the state that a cell wants.
    pub(crate) fn prepare(&mut self, cell: &Cell, flows: u64) -> Result<()> {
        match cell.table {
            Table::Shared => self.node.share_slots()?,
            Table::Elsewhere => self.node.own_slots(2)?,
            _ => self.node.own_slots(1)?,
        }
        self.node.sweep(true);
        if matches!(cell.table, Table::Known | Table::Others | Table::Shared) {
            // Flows of the same service, each opened and seen again after a pause, so that all are proven: flows that were
            // not seen to open fill half of a bucket at most, and only after seconds.
            let packets = (flows * 4).max(1_000);
            for opens in [true, false, false] {
                self.many(self.run_of(&cell.with(opens), flows, 0), packets)?;
                std::thread::sleep(std::time::Duration::from_millis(3));
            }
        }
        Ok(())
    }

    /// A slice of the cell's packets through the data plane: nanoseconds a packet.
    pub(crate) fn cell(&mut self, cell: &Cell, flows: u64) -> Result<f64> {
        self.set(Measured::Program)?;
        // New flows come from sources beyond the known ones, each once.
        let run = match cell.table {
            Table::Others => self.run_of(cell, 1 << 24, 1 << 24),
            _ => self.run_of(cell, flows, 0),
        };
        let time = self.undisturbed(Run { expected: cell.action(), ..run }, Some(cell))?;
        if cell.table == Table::Others {
            self.node.sweep(false);
        }
        Ok(time)
    }

    /// The same packets through the floor.
    pub(crate) fn floor(&mut self, cell: &Cell, flows: u64) -> Result<f64> {
        self.set(Measured::Floor)?;
        self.undisturbed(self.run_of(cell, flows, 0), None)
    }

    /// The same packets through a program that returns at once.
    pub(crate) fn wrapper(&mut self, cell: &Cell, flows: u64) -> Result<f64> {
        self.set(Measured::Nothing)?;
        self.undisturbed(self.run_of(cell, flows, 0), None)
    }

    /// How slices were disturbed since this was last asked.
    pub(crate) fn slices(&mut self) -> Slices {
        std::mem::take(&mut self.slices)
    }

    fn run_of(&self, cell: &Cell, flows: u64, first: u64) -> Run {
        Run {
            template: template(cell),
            flows,
            first_source: cell.first() + first,
            source_at: cell.source_at(),
            len: TEMPLATE as u32,
            expected: XDP_TX,
            ..Run::default()
        }
    }

    fn set(&mut self, measured: Measured) -> Result<()> {
        let program = match measured {
            Measured::Program => &self.program,
            Measured::Floor => &self.floor,
            Measured::Nothing => &self.nothing,
        };
        Ok(self.measured.set(0, program, 0)?)
    }

    fn many(&mut self, run: Run, packets: u64) -> Result<()> {
        self.set(Measured::Program)?;
        let mut left = packets;
        while left > 0 {
            let slice = left.min(u64::from(SLICE)) as u32;
            self.slice(run, slice)?;
            left -= u64::from(slice);
        }
        Ok(())
    }

    /// A slice that was left alone, or the last of those tried. Of one through the data plane, all packets have to meet what
    /// the cell is for.
    fn undisturbed(&mut self, run: Run, cell: Option<&Cell>) -> Result<f64> {
        let mut slices = self.slices;
        let slice = || {
            let before = cell.map(|cell| self.met(cell)).transpose()?;
            let done = self.slice(run, SLICE)?;
            ensure!(
                done.as_expected == u64::from(SLICE),
                "only {} of {SLICE} packets met what they should",
                done.as_expected
            );
            if let (Some(cell), Some([reason, recorded])) = (cell, before) {
                let [reason, recorded] = [self.met(cell)?[0] - reason, self.met(cell)?[1] - recorded];
                let few = u64::from(SLICE) / FOUND_NO_PLACE;
                let (least, most) = if cell.table == Table::Others { (SLICE.into(), SLICE.into()) } else { (0, few) };
                let is_right = (least..=most).contains(&recorded) && reason == u64::from(SLICE);
                ensure!(
                    is_right,
                    "{}: of {SLICE} packets {reason} were `{}`, and {recorded} were recorded or looked for a place",
                    cell.name,
                    cell.reason.name()
                );
            }
            Ok((done.ended - done.started) as f64 / f64::from(SLICE))
        };
        let time = undisturbed(&mut slices, slice, disturbances);
        self.slices = slices;
        time
    }

    /// Packets that were what a cell is for, and those that were recorded as new flows or found no place.
    fn met(&self, cell: &Cell) -> Result<[u64; 2]> {
        let count = |reason| self.node.count(reason);
        // Where the slots are all nodes', some packets go to each.
        let elsewhere = if cell.table == Table::Shared { count(Reason::Forwarded)? } else { 0 };
        let new = [Reason::NoteRecorded, Reason::NoteEvicted, Reason::NoteBucketFull];
        Ok([count(cell.reason)? + elsewhere, new.into_iter().map(count).sum::<Result<u64>>()?])
    }

    fn slice(&mut self, run: Run, packets: u32) -> Result<Run> {
        self.run.set(0, Run { packets: u64::from(packets), base: self.base, ..run }, 0)?;
        // Each slice goes on where the last one ended, else it would meet the same few of many flows again.
        self.base += u64::from(packets);
        self.node.tick();
        let wrapper: &Xdp = self.ebpf.program("bench_wrapper").context("no wrapper")?.try_into()?;
        let packet = [0u8; TEMPLATE];
        let options = TestRunOptions { data_in: Some(&packet), repeat: packets, ..TestRunOptions::default() };
        let alone = Pinned::alone_on(1)?;
        wrapper.test_run(options)?;
        drop(alone);
        let done = self.run.get(&0, 0)?;
        ensure!(done.counter == u64::from(packets), "the wrapper stopped after {} packets", done.counter);
        Ok(done)
    }
}

#[derive(Clone, Copy)]
enum Measured {
    Program,
    Floor,
    Nothing,
}

pub(crate) fn template(cell: &Cell) -> [u64; TEMPLATE / 8] {
    let packet = cell.packet();
    let mut words = [0; TEMPLATE / 8];
    for (word, bytes) in words.iter_mut().zip(packet.chunks_exact(8)) {
        *word = u64::from_ne_bytes(std::array::from_fn(|i| bytes[i]));
    }
    words
}
