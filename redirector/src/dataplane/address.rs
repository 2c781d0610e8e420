//! Addresses as the maps hold them.

use std::net::IpAddr;

use redirector_ebpf::packet::Address;
use redirector_ebpf::packet::headers::Mac;

/// An address as the maps hold it.
pub fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(v4) => Address::v4(u32::from_ne_bytes(v4.octets())),
        IpAddr::V6(v6) => {
            let o = v6.octets();
            let word = |i: usize| u32::from_ne_bytes([o[i], o[i + 1], o[i + 2], o[i + 3]]);
            Address { words: [word(0), word(4), word(8), word(12)] }
        }
    }
}

/// An address as keys hold it that must tell IPv4 from IPv6: IPv4 as IPv4-mapped (RFC 4291, section 2.5.5.2).
pub fn mapped(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(v4) => address(IpAddr::V6(v4.to_ipv6_mapped())),
        IpAddr::V6(_) => address(ip),
    }
}

/// The reverse of [`address`].
pub fn ip(address: &Address, v6: bool) -> IpAddr {
    if v6 {
        let mut octets = [0; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(address.words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        IpAddr::from(octets)
    } else {
        IpAddr::from(address.words[0].to_ne_bytes())
    }
}

/// A MAC address as the maps hold it.
pub fn mac_word(mac: [u8; 6]) -> u64 {
    let pair = |i: usize| u16::from_ne_bytes([mac[i], mac[i + 1]]);
    Mac([pair(0), pair(2), pair(4)]).word()
}

/// The reverse of [`mac_word`].
pub fn mac_bytes(word: u64) -> [u8; 6] {
    let [[a, b], [c, d], [e, f]] = Mac::from_word(word).0.map(u16::to_ne_bytes);
    [a, b, c, d, e, f]
}
