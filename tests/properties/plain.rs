//! The short way: what it takes on, it does exactly as the long way does; what it does not, it leaves as it was.

use redirector::dataplane::memory::{MemoryFrame, MemoryTables};
use redirector_ebpf::reason::{Action, Reason};
use redirector_ebpf::stations::{self, Journey};
use redirector_ebpf::tables::Row;
use redirector_ebpf::tables::path::alive;
use suite::generate::Source;
use suite::node::{self, Family};
use suite::packet::{tcp, udp};
use suite::random::Random;

const SEEDS: u64 = 24;
const PACKETS: usize = 3_000;

/// Tables as chance has them, the same for the same seed.
fn tables(seed: u64, family: Family, me: u8) -> MemoryTables {
    let random = &mut Random::new(seed);
    let mut config = node::configuration_in(family, me);
    // Few buckets, so that some are full.
    (config.tables.flows4, config.tables.flows6) = (64, 64);
    config.limits.new_flows_per_second = random.pick(&[0, 0, 50]);
    config.limits.new_flows_per_source = random.pick(&[0, 0, 50]);
    config.limits.inserts_per_second = random.pick(&[0, 0, 20]);
    config.limits.shed_level = random.pick(&[0, 0, 1, 2, 3]);
    let mut tables = node::tables_of(node::image(&config), &config);
    // With a prefix among the VIPs nothing is known to be nobody's.
    if random.once_in(2) {
        tables.image.vips.retain(|prefix, _| prefix.is_single());
        tables.image.node.prefixes = 0;
    }
    tables.image.node.tells_refused = random.pick(&[0, 0, 1]);
    for slot in &mut tables.image.slots {
        slot.ranks = [0; 4].map(|_: u8| random.pick(&[0, 1, 2, 3, 4, me, me, me]));
        slot.previous = random.pick(&[0, 0, 0, 1, 2, 3, 4]);
    }
    (1..=5).for_each(|id| tables.image.alive.set(id, !random.once_in(4)));
    let off = tables.image.paths.keys().copied().filter(|_| random.once_in(6));
    tables.paths_off = off.map(|path| (path, alive::OFF)).collect();
    for id in tables.image.neighbours.keys().filter(|_| random.once_in(12)) {
        tables.neighbours.borrow_mut().remove(id);
    }
    let backends: Vec<(u16, u16)> = tables.image.backends.iter().map(|(id, row)| (*id, row.pool)).collect();
    for (id, pool) in tables.image.pools.keys().map(|id| (*id, tables.pools[id])).collect::<Vec<_>>() {
        let mut own: Vec<u16> = backends.iter().filter(|(_, of)| *of == id).map(|(backend, _)| *backend).collect();
        own.extend(own.clone());
        own.push(random.pick(&[0, 1, 2]));
        for row in tables.tables.get_mut(&pool.table).expect("each pool has a table") {
            *row = Row::new(random.pick(&own), random.pick(&own), random.once_in(2));
            if random.once_in(3) {
                // Of no pool, as who is dead is.
                *row = Row::new(row.current(), 0, row.disputed()).severed();
            }
        }
        if let Some(pool) = tables.pools.get_mut(&id) {
            pool.old_until = random.pick(&[0, u64::MAX]);
        }
    }
    tables
}

/// A packet of one of a few flows, as the short way likes it.
fn usual(random: &mut Random, me: u8) -> Vec<u8> {
    let v6 = random.once_in(3);
    let (client, vip) = if v6 {
        (format!("[2001:db8:9::{}]", random.below(8)), "[2001:db8:100::1]")
    } else {
        (format!("192.0.2.{}", random.below(8)), random.pick(&["198.51.100.1", "198.51.100.1", "198.51.100.2"]))
    };
    let client = format!("{client}:{}", 40_000 + random.below(16));
    let udp_port = if v6 { 5_060 } else { random.pick(&[53, 5_060]) };
    let packet = match random.below(8) {
        0 | 1 => udp(&client, &format!("{vip}:{udp_port}")).sized(random.pick(&[64, 200, 1_460])),
        2 => tcp(&client, &format!("{vip}:443")).syn(),
        3 => tcp(&client, &format!("{vip}:80")).syn(),
        4 => tcp(&client, &format!("{vip}:443")).flags(|header| header.fin = true),
        5 => tcp(&client, &format!("{vip}:80")),
        6 => {
            let (ip, port) = (if v6 { "[2001:db8:100::10]" } else { "198.51.100.10" }, 1 + random.below(7));
            tcp(&client, &format!("{ip}:{port}")).sized(random.pick(&[0, 100, 1_400]))
        }
        _ => tcp(&client, &format!("{vip}:443")),
    };
    let mut bytes = packet.bytes();
    bytes[..6].copy_from_slice(&node::mac(me, 0));
    if random.once_in(6) {
        bytes[6..12].copy_from_slice(&node::mac(2, 0));
    }
    bytes
}

/// What a packet leaves behind: verdict, frame, what was counted and told.
type Left = (u32, u8, Vec<u8>, Vec<Reason>, usize);

/// Sends a frame through tables; says whether it went the short way.
fn send(tables: &MemoryTables, bytes: &[u8], short: bool) -> (Left, bool) {
    tables.counted.borrow_mut().clear();
    let mut frame = MemoryFrame::new(bytes);
    let taken = if short { stations::plain::run(&mut frame, tables) } else { None };
    if taken.is_none() {
        assert_eq!(frame.bytes(), bytes, "left to the long way, and changed");
        assert!(tables.counted.borrow().is_empty(), "left to the long way, and counted");
    }
    let verdict = taken.unwrap_or_else(|| stations::run(&mut frame, tables, &mut Journey::default()));
    // What a dropped packet's bytes are, and by which port it does not leave, is nobody's business.
    let (port, bytes) = match verdict.reason.action() {
        Action::Drop => (0, Vec::new()),
        _ => (verdict.port, frame.bytes().to_vec()),
    };
    let counted = tables.counted.borrow().clone();
    ((verdict.reason as u32, port, bytes, counted, tables.told.borrow().len()), taken.is_some())
}

#[test]
fn the_short_way_ends_where_the_long_one_does() {
    let mut reasons = std::collections::BTreeMap::new();
    let mut taken = 0;
    for seed in 0..SEEDS {
        let (family, me) = [(Family::V4, 1), (Family::V4, 3), (Family::V6, 4)][seed as usize % 3];
        let (short, long) = (tables(seed, family, me), tables(seed, family, me));
        let (mut source, random) = (Source::new(seed, family, me), &mut Random::new(!seed));
        for at in 0..PACKETS {
            let bytes = if random.once_in(2) { source.frame() } else { usual(random, me) };
            let (got, took) = send(&short, &bytes, true);
            let (expected, _) = send(&long, &bytes, false);
            assert_eq!(got, expected, "seed {seed}, packet {at}, short way: {took}\n{bytes:02x?}");
            if took {
                taken += 1;
                for reason in &got.3 {
                    *reasons.entry(reason.name()).or_insert(0) += 1;
                }
            }
            for tables in [&short, &long] {
                tables.now.set(tables.now.get() + 1_000_000);
            }
        }
        for v6 in [false, true] {
            assert_eq!(short.entries(v6), long.entries(v6), "seed {seed}: the flows");
        }
        assert_eq!(*short.refused.borrow(), *long.refused.borrow(), "seed {seed}: who was refused");
        assert_eq!(*short.told.borrow(), *long.told.borrow(), "seed {seed}: what was told of flows");
    }
    println!("{taken} of {} packets went the short way: {reasons:?}", SEEDS * PACKETS as u64);
    let reached = |reason: Reason| reasons.contains_key(reason.name());
    for reason in [
        Reason::Served,
        Reason::Forwarded,
        Reason::NotOurs,
        Reason::Shed,
        Reason::ShedEstablished,
        Reason::NewFlowBudget,
        Reason::SourceBudget,
        Reason::NoteRecorded,
        Reason::NoteEvicted,
        Reason::NoteInsertBudget,
    ] {
        assert!(reached(reason), "no packet of the short way met `{}`: {reasons:?}", reason.name());
    }
}
