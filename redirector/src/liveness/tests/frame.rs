//! Requests as frames, taken apart by hand and by the program's own parser.

use std::net::IpAddr;

use redirector_ebpf::abi::BEAT_PORT;
use redirector_ebpf::beat::{BYTES, Beat, WORDS};
use redirector_ebpf::stations::beat::is_beat;
use redirector_ebpf::stations::parse;
use redirector_ebpf::tables::Port;

use super::super::frame::{Way, write};
use crate::dataplane::address::mac_word;
use crate::dataplane::memory::MemoryFrame;

const SOURCE_MAC: [u8; 6] = [2, 0, 0, 0, 1, 0];
const TARGET_MAC: [u8; 6] = [2, 0, 0, 0, 2, 0];

fn way(source: &str, target: &str, vlan: u16) -> Way {
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    Way { source_mac: SOURCE_MAC, target_mac: TARGET_MAC, vlan, source: ip(source), target: ip(target), tunnel: None }
}

fn beat(seed: u64) -> Beat {
    let mut words: [u64; WORDS] =
        std::array::from_fn(|at| seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(at as u32));
    words[0] = words[0] & !0xffff | u64::from(u16::from_le_bytes(*b"RB"));
    Beat { words }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn be(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The Internet checksum's sum (RFC 1071), which is all ones over a whole that holds its checksum.
fn sum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(be(&[pair, &[0]].concat(), 0))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[test]
fn a_request_is_a_sound_frame() {
    for (source, target) in [("10.0.0.1", "10.0.0.2"), ("2001:db8::1", "2001:db8:2::2"), ("255.255.255.254", "0.0.0.1")]
    {
        for vlan in [0, 1, 4_094] {
            // What was in it before does not matter.
            let (mut frame, way) = (vec![0xff; 300], way(source, target, vlan));
            for seed in 0..200 {
                assert!(write(&mut frame, &way, &beat(seed)));
                is_sound(&frame, &way, &beat(seed));
            }
        }
    }
}

fn is_sound(frame: &[u8], way: &Way, beat: &Beat) {
    assert_eq!((&frame[..6], &frame[6..12]), (&TARGET_MAC[..], &SOURCE_MAC[..]));
    let mut at = 12;
    if way.vlan != 0 {
        assert_eq!((be(frame, 12), be(frame, 14)), (0x8100, way.vlan));
        at = 16;
    }
    let (kind, l3) = (be(frame, at), at + 2);
    let ip = &frame[l3..];
    let (l4, addresses) = match way.source {
        IpAddr::V4(_) => {
            assert_eq!(kind, 0x0800);
            assert_eq!(
                (ip[0], ip[1], usize::from(be(ip, 2)), be(ip, 6), ip[8], ip[9]),
                (0x45, 0xc0, ip.len(), 0x4000, 64, 17)
            );
            assert_eq!(sum(&ip[..20]), 0xffff, "the IPv4 header's checksum");
            (20, &ip[12..20])
        }
        IpAddr::V6(_) => {
            assert_eq!(kind, 0x86dd);
            assert_eq!((be(ip, 0), be(ip, 2)), (0x6c00, 0), "version 6, class CS6, no flow label");
            assert_eq!((usize::from(be(ip, 4)), ip[6], ip[7]), (ip.len() - 40, 17, 64));
            (40, &ip[8..40])
        }
    };
    assert_eq!(addresses, [octets(way.source), octets(way.target)].concat());
    let udp = &ip[l4..];
    assert_eq!((be(udp, 0), be(udp, 2), usize::from(be(udp, 4))), (BEAT_PORT, BEAT_PORT, udp.len()));
    assert_ne!(be(udp, 6), 0, "there is a checksum");
    let pseudo = [addresses, &[0, 0, 0, 17], &(udp.len() as u32).to_be_bytes()].concat();
    assert_eq!(sum(&[&pseudo, udp].concat()), 0xffff, "the UDP checksum");
    assert_eq!(udp.len(), 8 + BYTES);
    let payload: Vec<u8> = beat.words.iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!(&udp[8..], payload);

    let port = Port { mac: mac_word(TARGET_MAC), ifindex: 1, mtu: 1_500 };
    let frame = MemoryFrame::new(frame);
    let packet = parse::network(&frame, &port).expect("it parses");
    assert!(is_beat(&frame, &packet), "the receiver knows it");
}

#[test]
fn two_families_make_no_frame() {
    for (source, target) in [("10.0.0.1", "2001:db8::2"), ("2001:db8::1", "10.0.0.2")] {
        assert!(!write(&mut Vec::new(), &way(source, target, 0), &beat(1)));
    }
}
