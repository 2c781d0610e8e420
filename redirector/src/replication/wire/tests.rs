use proptest::prelude::*;
use redirector_ebpf::packet::{Address, Tuple, protocol};

use super::*;

const CLUSTER: u32 = 7;

fn header() -> impl Strategy<Value = Header> {
    (1..=254u8, any::<u64>(), any::<u64>(), any::<u64>(), any::<bool>(), any::<u64>()).prop_map(
        |(sender, incarnation, sequence, receiver, complete, as_of)| Header {
            cluster: CLUSTER,
            sender,
            incarnation,
            sequence,
            receiver,
            complete,
            as_of,
        },
    )
}

/// A flow of the services and backends 0 to 4.
fn flow() -> impl Strategy<Value = FlowCopy> {
    let kinds = prop::sample::select(vec![
        (State::Established, protocol::TCP),
        (State::Closing, protocol::TCP),
        (State::Datagrams, protocol::UDP),
        (State::Other, protocol::ICMP),
    ]);
    let addresses = (any::<bool>(), any::<[u32; 4]>(), any::<[u32; 4]>(), any::<u16>(), any::<u16>());
    let numbers = (0..5u16, 0..5u16, 0..=8191u16, any::<u32>(), any::<u32>(), 1..=254u8);
    (kinds, addresses, numbers).prop_map(
        |((state, protocol), (v6, src, dst, sport, dport), (service, backend, idle, age, version, origin))| {
            let address = |words: [u32; 4]| if v6 { Address { words } } else { Address::v4(words[0]) };
            let tuple = Tuple { src: address(src), dst: address(dst), sport, dport, protocol };
            FlowCopy { key: FlowKey::new(&tuple, v6), state, service, backend, idle, age, version, origin }
        },
    )
}

fn written(header: Header, flows: &[FlowCopy]) -> Vec<u8> {
    let mut writer = BatchWriter::new(header, BATCH_BYTES_MAX);
    for flow in flows {
        writer.push(flow, &format!("service-{}", flow.service), &format!("pool/{}", flow.backend)).unwrap();
    }
    writer.finish()
}

/// Seals changed bytes again, as a peer would that lies.
fn resealed(mut bytes: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    bytes.truncate(bytes.len() - CHECKSUM);
    change(&mut bytes);
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend(checksum.to_be_bytes());
    bytes
}

proptest! {
    #[test]
    fn batches_come_back_as_they_were(header in header(), flows in prop::collection::vec(flow(), 0..60)) {
        let batch = Batch::read(&written(header, &flows), CLUSTER).unwrap();
        prop_assert_eq!(batch.header, header);
        prop_assert_eq!(batch.flows.len(), flows.len());
        for (read, flow) in batch.flows.iter().zip(&flows) {
            let (service, backend) = (usize::from(read.service), usize::from(read.backend));
            prop_assert_eq!(&batch.services[service], &format!("service-{}", flow.service));
            prop_assert_eq!(&batch.backends[backend], &format!("pool/{}", flow.backend));
            prop_assert_eq!(FlowCopy { service: flow.service, backend: flow.backend, ..*read }, *flow);
        }
    }

    #[test]
    fn any_changed_byte_is_found(
        header in header(),
        flows in prop::collection::vec(flow(), 0..20),
        at: prop::sample::Index,
        flip in 1..=255u8,
    ) {
        let mut bytes = written(header, &flows);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert_eq!(Batch::read(&bytes, CLUSTER), Err(Refused::Damaged));
    }

    #[test]
    fn what_is_cut_off_or_goes_on_is_refused(
        header in header(),
        flows in prop::collection::vec(flow(), 1..20),
        at: prop::sample::Index,
        more in prop::collection::vec(any::<u8>(), 1..9),
    ) {
        let bytes = written(header, &flows);
        let length = at.index(bytes.len());
        prop_assert!(Batch::read(&bytes[..length], CLUSTER).is_err());
        prop_assert!(Batch::read(&[&bytes[..], &more].concat(), CLUSTER).is_err());
        // Also where the checksum was made to fit.
        let length = length.min(bytes.len() - CHECKSUM - 1);
        prop_assert!(Batch::read(&resealed(bytes.clone(), |bytes| bytes.truncate(length)), CLUSTER).is_err());
        prop_assert!(Batch::read(&resealed(bytes, |bytes| bytes.extend(more)), CLUSTER).is_err());
    }

    #[test]
    fn no_bytes_are_read_that_a_node_would_not_write(
        start in prop::collection::vec(any::<u8>(), 0..300),
        header in header(),
        flows in prop::collection::vec(flow(), 0..9),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        prop_assert!(Batch::read(&start, CLUSTER).is_err());
        prop_assert!(Answer::read(&start, CLUSTER).is_err());
        let bent = resealed(written(header, &flows), |bytes| {
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
        });
        if let Ok(batch) = Batch::read(&bent, CLUSTER) {
            let mut writer = BatchWriter::new(batch.header, BATCH_BYTES_MAX);
            for flow in &batch.flows {
                let (service, backend) = (usize::from(flow.service), usize::from(flow.backend));
                prop_assert!((1..=254).contains(&flow.origin) && flow.idle <= 8191);
                writer.push(flow, &batch.services[service], &batch.backends[backend]).unwrap();
            }
        }
    }

    #[test]
    fn answers_come_back_and_changed_ones_do_not(
        verdict in prop::sample::select(vec![Verdict::Taken, Verdict::Damaged, Verdict::Stale, Verdict::Refused]),
        numbers: (u64, u64),
        missed in prop::collection::vec(any::<u16>(), 0..30),
        at: prop::sample::Index,
        flip in 1..=255u8,
    ) {
        let (incarnation, sequence) = numbers;
        let answer = Answer { verdict, node: 3, cluster: CLUSTER, incarnation, sequence, missed };
        let mut bytes = answer.write();
        prop_assert_eq!(Answer::read(&bytes, CLUSTER), Ok(answer));
        prop_assert_eq!(Answer::read(&bytes, CLUSTER + 1), Err(Refused::Cluster(CLUSTER)));
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert_eq!(Answer::read(&bytes, CLUSTER), Err(Refused::Damaged));
    }
}

fn one() -> FlowCopy {
    let tuple = Tuple {
        src: Address::v4(u32::from_ne_bytes([10, 0, 0, 1])),
        dst: Address::v4(u32::from_ne_bytes([192, 0, 2, 1])),
        sport: 40_000_u16.to_be(),
        dport: 443_u16.to_be(),
        protocol: protocol::TCP,
    };
    let key = FlowKey::new(&tuple, false);
    FlowCopy { key, state: State::Established, service: 3, backend: 9, idle: 1, age: 2, version: 5, origin: 1 }
}

const HEAD: Header =
    Header { cluster: CLUSTER, sender: 1, incarnation: 2, sequence: 3, receiver: 5, complete: true, as_of: 4 };

/// A format that nodes of two versions speak must not change by accident.
#[test]
fn the_bytes_are_those_of_the_description() {
    let bytes = written(HEAD, &[one()]);
    let mut expected = vec![1, 1, 1, 1, 0, 0, 0, 7];
    [2u64, 3, 5, 4].iter().for_each(|word| expected.extend(word.to_be_bytes()));
    expected.extend([0, 1, 0, 1, 0, 1, 0, 0]);
    expected.extend(b"\x09service-3\x06pool/9");
    expected.extend([2, 6, 10, 0, 0, 1, 192, 0, 2, 1, 0x9c, 0x40, 0x01, 0xbb, 0, 0, 1, 2, 5]);
    expected.extend(crc32c::crc32c(&expected).to_be_bytes());
    assert_eq!(bytes, expected);
}

#[test]
fn a_flow_takes_some_twenty_bytes() {
    let flows = vec![FlowCopy { age: 600, version: 4_000, ..one() }; 1_000];
    let each = written(HEAD, &flows).len() / flows.len();
    assert!((16..=24).contains(&each), "{each} bytes");
}

#[test]
fn other_versions_clusters_and_states_are_refused() {
    let bytes = written(HEAD, &[one()]);
    assert_eq!(Batch::read(&bytes, 8), Err(Refused::Cluster(CLUSTER)));
    let state = HEADER + 10 + 7;
    for (at, value, refused) in [
        (0, ANSWER, Refused::Absurd("kind")),
        (1, 2, Refused::Version(2)),
        (2, 2, Refused::Absurd("flags")),
        (3, 0, Refused::Absurd("node id")),
        (3, 255, Refused::Absurd("node id")),
        (43, 0, Refused::Absurd("state")),
        (47, 1, Refused::Absurd("header")),
        (HEADER, 0, Refused::Absurd("name")),
        (HEADER, 255, Refused::Absurd("name")),
        (HEADER + 1, 0xff, Refused::Absurd("name")),
        (state, 0x82, Refused::Absurd("flow's first byte")),
        (state, State::Opening as u8, Refused::Absurd("state")),
        (state, State::Datagrams as u8, Refused::Absurd("state")),
        (state, 7, Refused::Absurd("state")),
        (state + 1, protocol::UDP, Refused::Absurd("state")),
        (state + 14, 1, Refused::Absurd("service")),
        (state + 15, 1, Refused::Absurd("backend")),
        (state + 17, 0x80, Refused::Absurd("slot version")),
    ] {
        let bent = resealed(bytes.clone(), |bytes| bytes[at] = value);
        assert_eq!(Batch::read(&bent, CLUSTER), Err(refused), "{value} at {at}");
    }
    assert_eq!(Batch::read(&vec![0; BATCH_BYTES_MAX + 1], CLUSTER), Err(Refused::Absurd("length")));
}

#[test]
fn a_batch_keeps_its_limit_and_takes_nothing_that_would_be_refused() {
    let mut writer = BatchWriter::new(HEAD, 1_000);
    while writer.push(&one(), "web", "pool/a") == Ok(()) {}
    assert_eq!(writer.push(&one(), "", "pool/a"), Err(NotWritten::Name));
    assert_eq!(writer.push(&one(), "web", &"a".repeat(136)), Err(NotWritten::Name));
    let absurd = FlowCopy { state: State::Datagrams, ..one() };
    assert_eq!(writer.push(&absurd, "web", "pool/a"), Err(NotWritten::State));
    let count = writer.count();
    let bytes = writer.finish();
    assert!(bytes.len() <= 1_000 && count > 40, "{count} flows in {} bytes", bytes.len());
    assert_eq!(Batch::read(&bytes, CLUSTER).unwrap().flows.len(), usize::from(count));
}
