//! The hash: its spread, and that what is taken from it is independent.

use proptest::prelude::*;
use redirector_ebpf::hash::{FlowHash, HashKey};
use suite::node::tuple;
use suite::random::Random;

/// The first digits of pi's fraction, as secret as any others.
const KEY: HashKey = [
    0x243f_6a88_85a3_08d3,
    0x1319_8a2e_0370_7344,
    0xa409_3822_299f_31d0,
    0x082e_fa98_ec4e_6c89,
    0x4528_21e6_38d0_1377,
    0xbe54_66cf_34e9_0c6c,
    0xc0ac_29b7_c97c_50dd,
    0x3f84_d5b5_b547_0917,
    0x9216_d5d9_8979_fb1b,
    0xd131_0ba6_98df_b5ac,
    0x2ffd_72db_d01a_dfb7,
    0xb8e1_afed_6a26_7e96,
];

proptest! {
    #[test]
    fn every_part_of_the_tuple_counts(client: u32, port: u16, bit in 0usize..32 + 16) {
        let hash = |client: u32, port: u16| {
            let client = std::net::Ipv4Addr::from(client).into();
            FlowHash::of(&KEY, &tuple((client, port), ("198.51.100.1".parse().unwrap(), 80), 6), false)
        };
        let other = if bit < 32 { hash(client ^ 1 << bit, port) } else { hash(client, port ^ 1 << (bit - 32)) };
        prop_assert_ne!(hash(client, port), other);
    }
}

/// Flows as they come: few clients with consecutive ports, or many with one; IPv4 or IPv6.
fn populations() -> Vec<(&'static str, Vec<FlowHash>)> {
    const FLOWS: usize = 1 << 16;
    let vip = "198.51.100.1".parse().unwrap();
    let vip6 = "2001:db8:100::1".parse().unwrap();
    let v4 = |client: u32, port: u16| {
        FlowHash::of(&KEY, &tuple((std::net::Ipv4Addr::from(client).into(), port), (vip, 443), 6), false)
    };
    let v6 = |client: u128, port: u16| {
        FlowHash::of(&KEY, &tuple((std::net::Ipv6Addr::from(client).into(), port), (vip6, 443), 6), true)
    };
    let mut random = Random::new(1);
    vec![
        ("one client, all ports", (0..FLOWS).map(|port| v4(0xc000_0207, port as u16)).collect()),
        ("consecutive clients", (0..FLOWS).map(|client| v4(0x0a00_0000 + client as u32, 40_000)).collect()),
        ("clients a /24 apart", (0..FLOWS).map(|client| v4((client as u32) << 8, 40_000)).collect()),
        ("random flows", (0..FLOWS).map(|_| v4(random.number() as u32, random.number() as u16)).collect()),
        ("one IPv6 client, all ports", (0..FLOWS).map(|port| v6(0x2001_0db8 << 96 | 7, port as u16)).collect()),
        ("consecutive /64", (0..FLOWS).map(|client| v6(0x2001_0db8 << 96 | (client as u128) << 64, 1)).collect()),
    ]
}

type Part = (&'static str, fn(&FlowHash) -> usize);

/// Parts of the hash, each cut to 16 classes.
const PARTS: [Part; 8] = [
    ("slot, low bits", |hash| hash.slot(0xf) as usize),
    ("slot, high bits", |hash| hash.slot(0xffff) as usize >> 12),
    ("row", |hash| hash.row(16) as usize),
    ("row, fine", |hash| hash.row(1 << 19) as usize & 15),
    ("entropy", |hash| usize::from(hash.entropy() & 15)),
    ("entropy, high bits", |hash| usize::from(hash.entropy() >> 12)),
    ("bucket", |hash| hash.entry(0xf).0 as usize),
    ("tag", |hash| hash.entry(0).1 as usize & 15),
];

/// Pearson's chi-squared against an even spread.
fn chi_squared(counts: &[usize]) -> f64 {
    let expected = counts.iter().sum::<usize>() as f64 / counts.len() as f64;
    counts.iter().map(|&count| (count as f64 - expected).powi(2) / expected).sum()
}

/// A value that chance exceeds less than once in a million, by the normal approximation of the distribution.
fn bound(classes: usize) -> f64 {
    let freedom = (classes - 1) as f64;
    freedom + 5.5 * (2.0 * freedom).sqrt() + 15.0
}

#[test]
fn each_part_is_spread_evenly() {
    for (population, hashes) in populations() {
        for (part, of) in PARTS {
            let mut counts = [0; 16];
            hashes.iter().for_each(|hash| counts[of(hash)] += 1);
            let chi = chi_squared(&counts);
            assert!(chi < bound(16), "{population}: {part}: {chi:.0}, {counts:?}");
        }
        let mut slots = vec![0; 4_096];
        hashes.iter().for_each(|hash| slots[hash.slot(0xfff) as usize] += 1);
        assert!(chi_squared(&slots) < bound(4_096), "{population}: slots");
        let mut rows = vec![0; 1_000];
        hashes.iter().for_each(|hash| rows[hash.row(1_000) as usize] += 1);
        assert!(chi_squared(&rows) < bound(1_000), "{population}: rows");
        let mut buckets = vec![0; 4_096];
        hashes.iter().for_each(|hash| buckets[hash.entry(0xfff).0 as usize] += 1);
        assert!(chi_squared(&buckets) < bound(4_096), "{population}: buckets");
    }
}

#[test]
fn parts_are_independent_of_each_other() {
    for (population, hashes) in populations() {
        for (at, (one, of_one)) in PARTS.iter().enumerate() {
            for (other, of_other) in &PARTS[at + 1..] {
                let mut counts = [0; 256];
                hashes.iter().for_each(|hash| counts[of_one(hash) * 16 + of_other(hash)] += 1);
                let chi = chi_squared(&counts);
                assert!(chi < bound(256), "{population}: {one} and {other}: {chi:.0}");
            }
        }
    }
}

#[test]
fn a_finer_table_splits_rows() {
    let mut random = Random::new(2);
    for _ in 0..10_000 {
        let flow =
            tuple((std::net::Ipv4Addr::from(random.number() as u32).into(), 7), ("192.0.2.1".parse().unwrap(), 80), 6);
        let hash = FlowHash::of(&KEY, &flow, false);
        assert_eq!(hash.row(2_048) / 2, hash.row(1_024));
    }
}
