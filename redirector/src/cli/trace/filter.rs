//! Which packets are wanted.

use std::net::IpAddr;
use std::str::FromStr;

use anyhow::{Result, bail};
use redirector_ebpf::packet::{Address, protocol as number};
use redirector_ebpf::tables::trace::TraceFilter;

use crate::config::Prefix;
use crate::dataplane::address::address;

/// A prefix, with or without a port: `10.0.0.0/8`, `10.0.0.1:80`, `2001:db8::1`, `[2001:db8::/32]:443`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    prefix: Prefix,
    port: Option<u16>,
}

impl FromStr for Spot {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let whole = text.parse::<Prefix>();
        let (prefix, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((prefix, "")) => (prefix, None),
            Some((prefix, rest)) => (prefix, Some(rest.strip_prefix(':').unwrap_or(rest))),
            None if whole.is_ok() => (text, None),
            None => text.rsplit_once(':').map_or((text, None), |(prefix, port)| (prefix, Some(port))),
        };
        let wrong = |what: String| format!("{what}; write `10.0.0.0/8`, `10.0.0.1:80` or `[2001:db8::1]:80`");
        let prefix = prefix.parse::<Prefix>().map_err(|error| wrong(format!("`{prefix}` {error}")))?;
        let port = port.map(|port| match port.parse() {
            Ok(port @ 1..) => Ok(port),
            _ => Err(wrong(format!("`{port}` is not a port"))),
        });
        Ok(Self { prefix, port: port.transpose()? })
    }
}

/// The protocol of a name.
pub(super) fn protocol(name: &str) -> Result<u8, String> {
    match name {
        "tcp" => Ok(number::TCP),
        "udp" => Ok(number::UDP),
        "icmp" => Ok(number::ICMP),
        "icmpv6" => Ok(number::ICMPV6),
        _ => Err("it is none of tcp, udp, icmp, icmpv6".to_owned()),
    }
}

/// What was asked for.
pub(super) struct Filter {
    pub(super) client: Option<Spot>,
    pub(super) vip: Option<Spot>,
    pub(super) protocol: Option<u8>,
}

impl Filter {
    /// The filter as the programs know it.
    pub(super) fn compile(&self) -> Result<TraceFilter> {
        let versions: Vec<u8> =
            [self.client, self.vip].into_iter().flatten().map(|spot| version(spot.prefix.address())).collect();
        if let [client, vip] = versions[..]
            && client != vip
        {
            bail!("`--client` is IPv{client} and `--vip` is IPv{vip}: no packet is both");
        }
        let (src, src_mask, sport) = parts(self.client);
        let (dst, dst_mask, dport) = parts(self.vip);
        Ok(TraceFilter {
            src,
            src_mask,
            dst,
            dst_mask,
            sport,
            dport,
            protocol: self.protocol.unwrap_or(0),
            version: versions.first().copied().unwrap_or(0),
            pad: 0,
        })
    }
}

fn version(address: IpAddr) -> u8 {
    if address.is_ipv4() { 4 } else { 6 }
}

/// Address, mask and port, all in network order.
fn parts(spot: Option<Spot>) -> (Address, Address, u16) {
    let Some(Spot { prefix, port }) = spot else { return Default::default() };
    let ones = match prefix.address() {
        IpAddr::V4(_) => IpAddr::from([0xff; 4]),
        IpAddr::V6(_) => IpAddr::from([0xff; 16]),
    };
    let mask = Prefix::around(ones, prefix.length()).address();
    (address(prefix.address()), address(mask), port.unwrap_or(0).to_be())
}

#[cfg(test)]
mod tests {
    use redirector_ebpf::packet::{Packet, Tuple};

    use super::*;

    fn packet(src: &str, sport: u16, dst: &str, dport: u16) -> Packet {
        let (src, dst): (IpAddr, IpAddr) = (src.parse().unwrap(), dst.parse().unwrap());
        let tuple = Tuple {
            src: address(src),
            dst: address(dst),
            sport: sport.to_be(),
            dport: dport.to_be(),
            protocol: number::TCP,
        };
        Packet { v6: src.is_ipv6(), tuple, ..Packet::default() }
    }

    #[test]
    fn spots_are_read_with_and_without_ports() {
        let read = |text: &str| text.parse::<Spot>().map(|spot| (spot.prefix.to_string(), spot.port));
        assert_eq!(read("10.0.0.0/8"), Ok(("10.0.0.0/8".into(), None)));
        assert_eq!(read("10.0.0.1:80"), Ok(("10.0.0.1".into(), Some(80))));
        assert_eq!(read("10.0.0.0/8:80"), Ok(("10.0.0.0/8".into(), Some(80))));
        assert_eq!(read("2001:db8::1"), Ok(("2001:db8::1".into(), None)));
        assert_eq!(read("[2001:db8::/32]:443"), Ok(("2001:db8::/32".into(), Some(443))));
        assert_eq!(read("[2001:db8::1]"), Ok(("2001:db8::1".into(), None)));
        for wrong in ["", "x", "10.0.0.1:x", "10.0.0.1:0", "10.0.0.1/8", "[2001:db8::1", "10.0.0.1:70000"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_filter_takes_what_it_was_asked_for() {
        let filter = |client: Option<&str>, vip: Option<&str>, protocol| {
            let spot = |text: &str| text.parse().unwrap();
            Filter { client: client.map(spot), vip: vip.map(spot), protocol }.compile()
        };
        let v4 = packet("10.1.2.3", 4000, "10.77.0.1", 80);
        let v6 = packet("2001:db8::1", 4000, "2001:db8:77::1", 80);
        let all = filter(None, None, None).unwrap();
        assert!(all.takes(&v4) && all.takes(&v6));
        let some = filter(Some("10.0.0.0/8"), Some("10.77.0.1:80"), Some(number::TCP)).unwrap();
        assert!(some.takes(&v4) && !some.takes(&v6));
        assert!(!filter(Some("10.2.0.0/16"), None, None).unwrap().takes(&v4));
        assert!(!filter(None, Some("10.77.0.1:81"), None).unwrap().takes(&v4));
        assert!(!filter(None, None, Some(number::UDP)).unwrap().takes(&v4));
        assert!(filter(Some("[2001:db8::/32]:4000"), None, None).unwrap().takes(&v6));
        assert!(filter(Some("10.0.0.0/8"), Some("2001:db8::1"), None).is_err());
    }
}
