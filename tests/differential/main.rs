//! The host's functions against the compiled program: the same tables, the same packets, and no difference allowed.
//!
//! Both keep their flow tables through a whole seed, so that what a packet leaves behind is compared as well.

mod beats;
mod decapsulation;
mod jumbo;
mod kernel;
mod routes;
mod settling;
mod telling;

use std::collections::HashSet;
use std::time::Instant;

use redirector::dataplane::memory::MemoryTables;
use redirector_ebpf::abi::PATHS;
use redirector_ebpf::reason::{Action, Reason};
use redirector_ebpf::tables::Row;
use redirector_ebpf::tables::flow::Entry;
use redirector_ebpf::tables::path::alive;
use suite::generate::{ASKED4, ASKED6, Source};
use suite::node::{self, Family};
use suite::random::Random;

use kernel::Kernel;

const SEEDS: u64 = 8;
const PACKETS: usize = 15_000;

/// Set to a number: only that seed is run, or so many of them.
const SEED_ENV: &str = "SEED";
const SEEDS_ENV: &str = "SEEDS";

const NOT_ROOT: &str =
    "running BPF programs needs root: `sudo -E env PATH=$PATH cargo test -p suite --test differential`";

/// The node's tables as chance bends them.
fn bend(tables: &mut MemoryTables, random: &mut Random) {
    let me = tables.image.node.id;
    for slot in &mut tables.image.slots {
        slot.ranks = [0; 4].map(|_: u8| random.pick(&[0, 1, 2, 3, 4, me, me, me]));
        slot.previous = random.pick(&[0, 0, 1, 2, 3, 4]);
        slot.version = random.number() >> 20;
    }
    (1..=5).for_each(|id| tables.image.alive.set(id, !random.once_in(4)));
    let words: Vec<u64> = tables
        .image
        .paths
        .keys()
        .map(|_| random.pick(&[alive::ON, alive::ON, alive::ON, alive::OFF, alive::UNPLUGGED]))
        .collect();
    let off = tables.image.paths.keys().copied().zip(words);
    tables.paths_off = off.filter(|(_, word)| *word != alive::ON).collect();
    tables.image.node.shed_level = random.pick(&[0, 0, 1, 2, 3]);
    tables.image.node.tells_refused = random.pick(&[0, 1]);
    // By key, not in a hash map's order, so that a seed repeats.
    let mut services: Vec<_> = tables.image.services.iter_mut().collect();
    services.sort_by_key(|(key, _)| key.words());
    for (_, service) in services {
        service.dscp = random.pick(&[0, 1]);
        service.class = random.pick(&[0, 1, 2, 3]);
    }
    let old_until = random.pick(&[0, u64::MAX]);
    for id in tables.image.neighbours.keys().filter(|_| random.once_in(12)) {
        tables.neighbours.borrow_mut().remove(id);
    }
    if random.once_in(4) {
        tables.image.ports[1].ifindex = 0;
    }
    if random.once_in(4) {
        let id = node::backend(tables, "gue4/a");
        tables.image.backends.get_mut(&id).expect("it has a row").paths = [0; 3];
    }
    let held = ASKED4.iter().chain(&ASKED6).filter(|_| !random.once_in(3));
    let held = held.map(|vip| (vip.parse().expect("an address"), tables.image.ports[0].ifindex));
    tables.held = held.collect();
    let backends = tables.image.backends.clone();
    // By number, not in a hash map's order, so that a seed repeats.
    for id in tables.image.pools.keys() {
        let pool = tables.pools.get_mut(id).expect("each pool has a row");
        pool.old_until = old_until;
        pool.panics = random.pick(&[0, 0, 0, 1]);
        let mut own: Vec<u16> = backends.iter().filter(|(_, row)| row.pool == *id).map(|(id, _)| *id).collect();
        // Nobody, and somebody of another pool: both are refused.
        own.extend(own.clone());
        own.extend([0, 1, 2].iter().filter(|_| random.once_in(3)));
        for row in tables.tables.get_mut(&pool.table).expect("each pool has a table") {
            if random.once_in(2) {
                *row = Row::new(random.pick(&own), random.pick(&own), random.once_in(2));
                if random.once_in(3) {
                    // Of no pool, as who is dead is.
                    *row = Row::new(row.current(), 0, row.disputed()).severed();
                }
            }
        }
    }
}

/// What the driver is told (`enum xdp_action`).
fn told(action: Action, same_port: bool) -> u32 {
    match action {
        Action::Drop => 1,
        Action::Pass => 2,
        Action::Transmit | Action::Redirect if same_port => 3,
        Action::Transmit | Action::Redirect => 4,
    }
}

/// Sends a frame through both; an error says what differs.
fn send(host: &MemoryTables, kernel: &Kernel, counted: &mut [u64], frame: &[u8]) -> Result<(), String> {
    let done = node::send(host, frame);
    let reason = done.verdict.reason;
    done.notes.iter().chain([&reason]).for_each(|reason| counted[*reason as usize] += 1);
    let (verdict, bytes) = kernel.run(frame);
    let expected = told(reason.action(), done.verdict.port == host.ingress);
    if verdict != expected {
        return Err(format!(
            "`{}` is {expected} on the host, {verdict} in the kernel\n{:?}",
            reason.name(),
            done.journey
        ));
    }
    if kernel.counted(reason) != counted[reason as usize] {
        return Err(format!("`{}` is not the kernel's reason\n{:?}", reason.name(), done.journey));
    }
    // What a dropped packet's bytes are is nobody's business.
    if reason.action() != Action::Drop && bytes != done.bytes {
        return Err(format!("`{}`, the bytes\nhost   {:02x?}\nkernel {bytes:02x?}", reason.name(), done.bytes));
    }
    Ok(())
}

fn compare(seed: u64, reached: &mut HashSet<&'static str>) -> usize {
    let (family, me) = [(Family::V4, 1), (Family::V4, 3), (Family::V6, 4)][seed as usize % 3];
    let mut config = node::configuration_in(family, me);
    // Large enough for each flow to find a place: who makes room for whom depends on the clock, which differs.
    (config.tables.flows4, config.tables.flows6) = (1 << 18, 1 << 18);
    let mut host = node::tables_of(node::image(&config), &config);
    bend(&mut host, &mut Random::new(seed));
    host.leg_rules.noted = 1 + seed as u8 % 2;
    let kernel = Kernel::load(&config, &host);
    let mut source = Source::new(seed, family, me);
    let mut counted = vec![0u64; Reason::ALL.len()];
    for at in 0..PACKETS {
        let frame = source.frame();
        send(&host, &kernel, &mut counted, &frame).unwrap_or_else(|difference| {
            let again = format!("{SEED_ENV}={seed} cargo test -p suite --test differential");
            panic!("seed {seed}, packet {at}: {difference}\nframe  {frame:02x?}\nagain: {again}")
        });
        host.now.set(host.now.get() + 1_000_000);
    }
    for reason in Reason::ALL {
        assert_eq!(kernel.counted(*reason), counted[*reason as usize], "seed {seed}: `{}` counted", reason.name());
    }
    let mut refused: Vec<_> = host.refused.borrow().iter().map(|(key, count)| (key.parts(), *count)).collect();
    refused.sort_unstable_by_key(|(key, _)| (key.0, key.1, key.2 as u8));
    assert_eq!(kernel.refused(), refused, "seed {seed}: refused packets by service, class and reason");
    for (&id, rank) in host.image.backends.keys().flat_map(|id| (0..PATHS as u8).map(move |rank| (id, rank))) {
        let (there, here) = (kernel.signals(id, rank), &host.signals[usize::from(id)][usize::from(rank)]);
        // What comes again depends on the clock.
        let here = (here.opened.load(), here.resets.load());
        assert_eq!((there.opened, there.resets), here, "seed {seed}: signals of path {rank} of backend {id}");
    }
    let of = |v6| host.entries(v6).into_iter().map(move |(_, word)| fields((v6, Entry(word))));
    let mut flows: Vec<_> = of(false).chain(of(true)).collect();
    flows.sort_unstable();
    assert_eq!(kernel.flows(), flows, "seed {seed}: the flows that were recorded");
    println!("seed {seed}: node {me}, {} flows recorded", flows.len());
    reached.extend(Reason::ALL.iter().filter(|reason| counted[**reason as usize] > 0).map(|reason| reason.name()));
    PACKETS
}

/// Of an entry what does not depend on the clock.
fn fields((v6, entry): (bool, Entry)) -> (bool, u32, u16, bool) {
    (v6, entry.tag(), entry.backend(), entry.ambiguous())
}

#[test]
fn the_program_decides_as_the_host_does() {
    assert!(xtask::step::is_root(), "{NOT_ROOT}");
    let started = Instant::now();
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number(SEED_ENV) {
        Some(seed) => seed..seed + 1,
        None => 0..number(SEEDS_ENV).unwrap_or(SEEDS),
    };
    let mut reached = HashSet::new();
    let packets: usize = seeds.into_iter().map(|seed| compare(seed, &mut reached)).sum();
    let never: Vec<_> = Reason::ALL.iter().map(|reason| reason.name()).filter(|name| !reached.contains(name)).collect();
    println!("reasons never reached: {}", never.join(", "));
    let asked = number(SEED_ENV).is_some() || number(SEEDS_ENV).is_some();
    assert!(asked || reached.contains(Reason::NoteAvoided.name()), "no new flow met a suspect backend");
    println!("{packets} packets compared, 0 differences, in {:.1?}", started.elapsed());
}
