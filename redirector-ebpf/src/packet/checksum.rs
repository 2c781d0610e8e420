//! The Internet checksum (RFC 1071): whole for small headers, incremental (RFC 1624) for changed fields.

use super::headers::Ipv4;

/// Folds the carries of a sum of 16-bit words in.
#[inline(always)]
pub fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The checksum after one 16-bit word changed from `old` to `new`: eqn. 3 of RFC 1624. All in network order.
#[inline(always)]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(u32::from(!checksum) + u32::from(!old) + u32::from(new))
}

/// The checksum of an IPv4 header after its TTL went down by one, which is what [`update`] gives, in fewer steps: the header's
/// sum is less by 0x0100, the checksum is more by it. In network order.
#[inline(always)]
pub fn after_hop(checksum: u16) -> u16 {
    let sum = u32::from(checksum) + u32::from(0x0100_u16.to_be());
    // One more where the sum is 0xffff, or has a carry.
    (sum + ((sum + 1) >> 16)) as u16
}

/// Both halves of a word in a sum.
#[inline(always)]
pub fn halves(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

/// The sum of an IPv4 header's words, without its checksum field, in network order.
#[inline(always)]
fn sum_ipv4(header: &Ipv4) -> u32 {
    u32::from(u16::from_ne_bytes([header.version_ihl, header.tos]))
        + u32::from(header.total_len)
        + u32::from(header.id)
        + u32::from(header.fragment)
        + u32::from(u16::from_ne_bytes([header.ttl, header.protocol]))
        + halves(header.src)
        + halves(header.dst)
}

/// The checksum of an IPv4 header without options.
#[inline(always)]
pub fn ipv4(header: &Ipv4) -> u16 {
    !fold(sum_ipv4(header))
}
