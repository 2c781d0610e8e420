//! Time of the pure logic: what every packet, every batch of flows, every beat and every change of members or pools costs
//! the CPU alone. `cargo bench -p suite --bench logic`.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use redirector::ownership;
use redirector::pool::{self, Member};
use redirector::replication::key::FlowKey;
use redirector::replication::wire::{Batch, BatchWriter, FlowCopy, Header};
use redirector_ebpf::beat::{Beat, Kind};
use redirector_ebpf::hash::{FlowHash, HashKey};
use redirector_ebpf::packet::{Address, Tuple, protocol};
use redirector_ebpf::tables::AliveNodes;
use redirector_ebpf::tables::Watch;
use redirector_ebpf::tables::flow::State;
use redirector_ebpf::tables::liveness::Vitals;

const SLOTS: usize = 16_384;
const CLUSTER: u32 = 7;

fn main() {
    divan::main();
}

fn tuple(number: u32) -> Tuple {
    let mut src = Address::default();
    src.words[0] = number.to_be();
    Tuple { src, sport: 40_000u16.to_be(), dport: 80u16.to_be(), protocol: protocol::TCP, ..Tuple::default() }
}

/// The keyed hash of a flow, from which slot, row, bucket and tag are taken.
#[divan::bench(args = [false, true])]
fn flow_hash(bencher: Bencher<'_, '_>, v6: bool) {
    let key: HashKey = std::array::from_fn(|word| 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(word as u64 + 1));
    let tuple = tuple(3);
    bencher.bench(|| FlowHash::of(&key, black_box(&tuple), v6).slot(SLOTS as u32 - 1));
}

/// The table of a pool.
#[divan::bench(args = [2, 16, 256, 4_096])]
fn maglev(bencher: Bencher<'_, '_>, backends: u16) {
    let member = |id: u16| Member { hash: pool::stable_hash(&format!("backend-{id}")), weight: 1, id };
    let members: Vec<Member> = (0..backends).map(member).collect();
    let rows = pool::rows(members.len());
    bencher.counter(ItemsCount::new(rows)).bench(|| pool::build(black_box(&members), rows));
}

/// The ranks that all slots should have.
#[divan::bench(args = [3, 8, 64])]
fn slot_target(bencher: Bencher<'_, '_>, nodes: u8) {
    let members: Vec<(u8, u32)> = (1..=nodes).map(|id| (id, 1)).collect();
    bencher.counter(ItemsCount::new(SLOTS)).bench(|| ownership::target(black_box(&members), SLOTS, 1));
}

/// The ranks of all slots after a death.
#[divan::bench]
fn slot_promotion(bencher: Bencher<'_, '_>) {
    let ranks = ownership::target(&[(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)], SLOTS, 1).unwrap_or_default();
    bencher
        .counter(ItemsCount::new(SLOTS))
        .bench(|| black_box(&ranks).iter().map(|&ranks| ownership::promote(ranks, 3)).collect::<Vec<_>>());
}

fn copy(number: u32) -> FlowCopy {
    FlowCopy {
        key: FlowKey::new(&tuple(number), false),
        state: State::Established,
        service: 1,
        backend: (number % 8) as u16,
        idle: 3,
        age: 200,
        version: 9,
        origin: 1,
    }
}

/// A batch of as many flows.
fn batch(flows: u32) -> Vec<u8> {
    let header = Header { cluster: CLUSTER, sender: 1, incarnation: 5, sequence: 6, ..Header::default() };
    let mut writer = BatchWriter::new(header, 1 << 18);
    for number in 0..flows {
        writer.push(&copy(number), "service", ["a", "b", "c", "d", "e", "f", "g", "h"][number as usize % 8]).ok();
    }
    writer.finish()
}

/// Flows written into a batch.
#[divan::bench(args = [100, 3_000])]
fn batch_write(bencher: Bencher<'_, '_>, flows: u32) {
    bencher.counter(ItemsCount::new(flows)).bench(|| batch(black_box(flows)));
}

/// A batch read, all of it checked.
#[divan::bench(args = [100, 3_000])]
fn batch_read(bencher: Bencher<'_, '_>, flows: u32) {
    let bytes = batch(flows);
    bencher.counter(ItemsCount::new(flows)).bench(|| Batch::read(black_box(&bytes), CLUSTER).is_ok());
}

fn watch() -> Watch {
    Watch { keys: [[1, 2], [3, 4]], key_ids: [1, 2], ..Watch::default() }
}

fn beat(watch: &Watch) -> Beat {
    let mut beat = Beat::default();
    beat.set_head(watch, CLUSTER, Kind::Request, 1, 2);
    beat.set_turn(9, 10, 0, 11);
    beat.set_condition(Vitals::default(), [1, 2, 3], &AliveNodes::default());
    beat.seal(watch);
    beat
}

/// A beat filled in and sealed.
#[divan::bench]
fn beat_seal(bencher: Bencher<'_, '_>) {
    let watch = watch();
    bencher.bench(|| beat(black_box(&watch)));
}

/// A beat checked, its tag above all.
#[divan::bench]
fn beat_check(bencher: Bencher<'_, '_>) {
    let watch = watch();
    let beat = beat(&watch);
    bencher.bench(|| black_box(&beat).check(&watch, CLUSTER, 2).is_ok());
}
