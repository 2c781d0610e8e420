//! What is said on a segment about a VIP, byte by byte: that it is here, and the question whether it is anywhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

/// A MAC address as it is in a frame.
pub type Mac = [u8; 6];

const BROADCAST: Mac = [0xff; 6];
const NOBODY: Mac = [0; 6];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
/// Ethernet, IPv4, and the lengths of their addresses (RFC 826).
const ARP_HEAD: [u8; 6] = [0, 1, 0x08, 0, 6, 4];
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
pub(super) const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
pub(super) const ADVERTISEMENT: u8 = 136;
/// An advertisement's flag that it replaces what was known (RFC 4861, section 4.4).
const OVERRIDE: u8 = 0x20;
const SOURCE_OPTION_NONCE: u8 = 14;

/// The frames that say that a VIP is at this MAC address: gratuitous ARP, as a request and as a reply, since some take
/// note of the one and some of the other (RFC 5227, section 3); an unsolicited advertisement (RFC 4861, section 7.2.6).
pub fn announcement(vip: IpAddr, mac: Mac) -> Vec<Vec<u8>> {
    match vip {
        IpAddr::V4(vip) => vec![arp(REQUEST, (mac, vip), (NOBODY, vip)), arp(REPLY, (mac, vip), (mac, vip))],
        IpAddr::V6(vip) => {
            let message = [&[ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0][..], &vip.octets(), &[2, 1], &mac].concat();
            vec![icmp6(mac, vip, ALL_NODES, message)]
        }
    }
}

/// The frame that asks whether anybody answers for a VIP: an ARP probe (RFC 5227, section 2.1.1), or a solicitation from
/// the unspecified address (RFC 4862, section 5.4.2). Neither changes what anybody knows.
pub fn probe(vip: IpAddr, mac: Mac, nonce: u32) -> Vec<u8> {
    match vip {
        IpAddr::V4(vip) => arp(REQUEST, (mac, Ipv4Addr::UNSPECIFIED), (NOBODY, vip)),
        IpAddr::V6(vip) => {
            // A nonce tells an echo of this very probe from a probe of somebody else's (RFC 7527).
            let option = [&[SOURCE_OPTION_NONCE, 1, 0, 0][..], &nonce.to_be_bytes()].concat();
            let message = [&[SOLICITATION, 0, 0, 0, 0, 0, 0, 0][..], &vip.octets(), &option].concat();
            icmp6(mac, Ipv6Addr::UNSPECIFIED, solicited_node(vip), message)
        }
    }
}

/// The address for which a frame says that it is at another MAC address than `own`, if it says so.
pub fn told(frame: &[u8], own: Mac) -> Option<IpAddr> {
    let from = frame.get(6..12)?;
    if from == own {
        return None;
    }
    if frame.get(12..14)? == ETHERTYPE_ARP {
        let sender: [u8; 4] = frame.get(28..32)?.try_into().ok()?;
        let plain = frame.get(14..20)? == ARP_HEAD && frame.get(22..28)? != own;
        return (plain && sender != [0; 4]).then(|| sender.into());
    }
    let is_advertisement = frame.get(12..14)? == ETHERTYPE_IPV6
        && frame.get(20..22)? == [ICMPV6, 255]
        && frame.get(54..56)? == [ADVERTISEMENT, 0]
        && checksum_is_right(frame);
    let target: [u8; 16] = frame.get(62..78)?.try_into().ok()?;
    is_advertisement.then(|| target.into())
}

/// The group in which an address is asked for (RFC 4291, section 2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

/// The MAC address to which packets for a group go (RFC 2464, section 7).
pub fn group_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

fn arp(operation: u8, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let head = [&BROADCAST[..], &sender.0, &ETHERTYPE_ARP, &ARP_HEAD, &[0, operation]].concat();
    [&head[..], &sender.0, &sender.1.octets(), &target.0, &target.1.octets()].concat()
}

fn icmp6(from: Mac, source: Ipv6Addr, group: Ipv6Addr, mut message: Vec<u8>) -> Vec<u8> {
    let sum = !checksum(source, group, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let [high, low] = (message.len() as u16).to_be_bytes();
    let header = [&[0x60, 0, 0, 0, high, low, ICMPV6, 255][..], &source.octets(), &group.octets()].concat();
    [&group_mac(group)[..], &from, &ETHERTYPE_IPV6, &header, &message].concat()
}

fn checksum_is_right(frame: &[u8]) -> bool {
    let address = |at: usize| frame.get(at..at + 16).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
    let len = frame.get(18..20).map_or(0, |bytes| usize::from(bytes[0]) << 8 | usize::from(bytes[1]));
    match (address(22), address(38), frame.get(54..54 + len)) {
        (Some(source), Some(to), Some(message)) => checksum(source.into(), to.into(), message) == 0xffff,
        _ => false,
    }
}

/// The one's complement sum of a message and its pseudo-header (RFC 8200, section 8.1).
fn checksum(source: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> u32 {
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low))).sum()
    };
    let sum = words(&source.octets()) + words(&to.octets()) + message.len() as u32 + u32::from(ICMPV6) + words(message);
    let folded = (sum & 0xffff) + (sum >> 16);
    ((folded & 0xffff) + (folded >> 16)) as u16
}

/// When a VIP is announced: five times within 100 ms, since a frame may be lost; each second for ten more, for those who
/// were not ready to listen; each minute from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    next: Instant,
    said: u32,
}

impl Schedule {
    /// One whose first announcement is due now.
    pub fn new(now: Instant) -> Self {
        Self { next: now, said: 0 }
    }

    /// When the next one is due.
    pub fn due(&self) -> Instant {
        self.next
    }

    /// Whether an announcement is due. Then it counts as made.
    pub fn take(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        let pause = match self.said {
            0..4 => Duration::from_millis(25),
            4..14 => Duration::from_secs(1),
            _ => Duration::from_secs(60),
        };
        self.said = self.said.saturating_add(1);
        // From now: one that comes late is not made up for by two at once.
        self.next = now + pause;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];
    const VIPS: [IpAddr; 2] =
        [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0x12, 0x3456))];

    #[test]
    fn others_understand_an_announcement() {
        for vip in VIPS {
            for frame in announcement(vip, OTHER) {
                assert_eq!((told(&frame, OWN), told(&frame, OTHER)), (Some(vip), None), "{frame:02x?}");
            }
        }
    }

    #[test]
    fn a_probe_claims_nothing() {
        for vip in VIPS {
            assert_eq!(told(&probe(vip, OTHER, 7), OWN), None);
        }
    }

    #[test]
    fn frames_are_as_the_standards_say() {
        let [request, reply] = <[Vec<u8>; 2]>::try_from(announcement(VIPS[0], OWN)).unwrap();
        let head = "ffffffffffff 020000000001 0806 0001 0800 06 04";
        let hex = |text: &str| -> Vec<u8> {
            let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b' ').collect();
            let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
            digits.chunks(2).map(byte).collect()
        };
        assert_eq!(request, hex(&format!("{head} 0001 020000000001 c0000201 000000000000 c0000201")));
        assert_eq!(reply, hex(&format!("{head} 0002 020000000001 c0000201 020000000001 c0000201")));
        let asked = probe(VIPS[0], OWN, 0);
        assert_eq!(asked, hex(&format!("{head} 0001 020000000001 00000000 000000000000 c0000201")));
        let asked = probe(VIPS[1], OWN, 0);
        assert_eq!(asked[..6], hex("3333ff123456"));
        assert!(checksum_is_right(&asked));
    }

    #[test]
    fn damaged_frames_tell_nothing() {
        for vip in VIPS {
            for frame in announcement(vip, OTHER) {
                (0..frame.len()).for_each(|len| assert_eq!(told(&frame[..len], OWN).filter(|_| len < 32), None));
            }
        }
        let frame = announcement(VIPS[1], OTHER).remove(0);
        for at in 54..frame.len() {
            let mut damaged = frame.clone();
            damaged[at] ^= 4;
            assert_eq!(told(&damaged, OWN), None, "byte {at}");
        }
    }

    #[test]
    fn announcements_come_in_a_burst_and_then_seldom() {
        let begin = Instant::now();
        let mut schedule = Schedule::new(begin);
        let mut at = Vec::new();
        while at.len() < 17 {
            let now = schedule.due();
            assert!(schedule.take(now) && !schedule.take(now));
            at.push((now - begin).as_millis());
        }
        assert_eq!(at[..6], [0, 25, 50, 75, 100, 1_100]);
        assert_eq!(at[13..17], [9_100, 10_100, 70_100, 130_100]);
    }
}
