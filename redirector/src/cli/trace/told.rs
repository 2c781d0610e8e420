//! A decision in words.

use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::time::SystemTime;

use redirector_ebpf::packet::Tuple;
use redirector_ebpf::reason::Action;
use redirector_ebpf::tables::trace::Traced;
use serde::Serialize;

use crate::cli::output::{Names, protocol};
use crate::dataplane::address::ip;

/// A decision as it is shown.
#[derive(Debug, Serialize)]
pub(super) struct Told {
    /// When it was read, shortly after it was made.
    time: String,
    /// Both ends and the protocol; none of packets that were not looked into.
    client: Option<SocketAddr>,
    vip: Option<SocketAddr>,
    protocol: Option<&'static str>,
    reason: &'static str,
    service: Option<String>,
    /// Slot and owner, where an owner was needed.
    slot: Option<u32>,
    owner: Option<String>,
    known: bool,
    /// The node that forwarded it to here.
    from: Option<String>,
    backend: Option<String>,
    /// The backend that it did not go to, since no path of that one is alive.
    avoided: Option<String>,
    pool: Option<String>,
    /// Rank of the path.
    path: Option<u8>,
    /// The interface that it leaves by.
    port: Option<String>,
    length: u16,
}

impl Told {
    pub(super) fn new(traced: &Traced, names: &Names, time: SystemTime) -> Self {
        let tuple = traced.tuple();
        let is_parsed = tuple != Tuple::default();
        let end = |address, port: u16| is_parsed.then(|| SocketAddr::new(ip(address, traced.v6()), u16::from_be(port)));
        let (pool, backend) = match traced.backend() {
            0 => (None, None),
            id => {
                let (pool, backend) = names.backend(id);
                (Some(pool), Some(backend))
            }
        };
        let leaves = traced.reason().is_some_and(|reason| reason.action() == Action::Transmit);
        Self {
            time: humantime::format_rfc3339_millis(time).to_string(),
            client: end(&tuple.src, tuple.sport),
            vip: end(&tuple.dst, tuple.dport),
            protocol: is_parsed.then(|| protocol(tuple.protocol)),
            reason: traced.reason().map_or("unknown", |reason| reason.name()),
            service: traced.service().map(|id| names.service(id)),
            slot: (traced.owner() != 0).then(|| traced.slot()),
            owner: names.node_if(traced.owner()),
            known: traced.known(),
            from: names.node_if(traced.mark().sender()),
            path: backend.is_some().then(|| traced.rank() + 1),
            backend,
            avoided: Some(traced.avoided()).filter(|id| *id != 0).map(|id| names.backend(id).1),
            pool,
            port: leaves.then(|| names.port(traced.port())),
            length: traced.length(),
        }
    }
}

impl Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { time, reason, length, .. } = self;
        match (self.protocol, self.client, self.vip) {
            (Some(protocol), Some(client), Some(vip)) => {
                write!(f, "{time} {protocol} {client} → {vip} {length} B: {reason}")?
            }
            _ => write!(f, "{time} {reason}")?,
        }
        if let Some(from) = &self.from {
            write!(f, ", from {from}")?;
        }
        if let Some(service) = &self.service {
            write!(f, ", service {service}")?;
        }
        if let (Some(slot), Some(owner)) = (self.slot, &self.owner) {
            write!(f, ", slot {slot} of {owner}{}", if self.known { ", known" } else { "" })?;
        }
        if let (Some(pool), Some(backend), Some(path)) = (&self.pool, &self.backend, self.path) {
            write!(f, ", backend {pool}/{backend} by path {path}")?;
        }
        if let Some(avoided) = &self.avoided {
            write!(f, ", as no path of {avoided} is alive")?;
        }
        match &self.port {
            Some(port) => write!(f, ", out by {port}"),
            None => Ok(()),
        }
    }
}

/// The words of a log line.
pub(super) fn words(line: &str) -> Option<[u64; 7]> {
    let mut words = [0; 7];
    let mut parts = line.split_whitespace();
    for word in &mut words {
        *word = u64::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use redirector_ebpf::packet::{Address, Packet, Tuple, protocol as number};
    use redirector_ebpf::reason::{Reason, Verdict};
    use redirector_ebpf::stations::Journey;
    use redirector_ebpf::tables::names::{NameKey, kind};
    use redirector_ebpf::tables::{Mark, Service};

    use super::*;
    use crate::dataplane::registry::Registry;

    fn journey() -> Journey {
        let tuple = Tuple {
            src: Address::v4(u32::from_ne_bytes([10, 0, 0, 1])),
            dst: Address::v4(u32::from_ne_bytes([10, 77, 0, 1])),
            sport: 1234u16.to_be(),
            dport: 80u16.to_be(),
            protocol: number::TCP,
        };
        Journey {
            packet: Packet { tuple, l3_len: 60, ..Packet::default() },
            service: Some(Service { id: 2, pool: 3, owned: 1, ..Service::default() }),
            mark: Mark::forwarded(3),
            slot: 777,
            owner: 1,
            known: true,
            backend: 5,
            rank: 1,
            verdict: Verdict { reason: Reason::Served, port: 0 },
            ..Journey::default()
        }
    }

    fn names() -> Names {
        let named = [(kind::SERVICE, 2, "web"), (kind::BACKEND, 5, "ipip4/b1"), (kind::PORT, 1, "eth0")];
        Names::new(Registry::new(named.map(|(kind, id, name)| (NameKey { kind, id }, name.to_owned()))))
    }

    #[test]
    fn a_decision_survives_the_log() {
        let traced = Traced::of(&journey());
        let line = traced.words.map(|word| format!("{word:x}")).join(" ");
        assert_eq!(words(&line), Some(traced.words));
        assert_eq!(words("1 2 3"), None);
        assert_eq!(words("a b c d e f g"), None);
        assert_eq!(words("1 2 3 4 5 6 7 8"), None);
    }

    #[test]
    fn a_decision_is_told_in_one_line() {
        let told = Told::new(&Traced::of(&journey()), &names(), SystemTime::UNIX_EPOCH);
        assert_eq!(
            told.to_string(),
            "1970-01-01T00:00:00.000Z tcp 10.0.0.1:1234 → 10.77.0.1:80 60 B: served, from n3, service web, \
             slot 777 of n1, known, backend ipip4/b1 by path 2, out by eth0"
        );
    }

    #[test]
    fn a_backend_that_was_avoided_is_told() {
        let journey = Journey { backend: 6, avoided: 5, known: false, ..journey() };
        let told = Told::new(&Traced::of(&journey), &names(), SystemTime::UNIX_EPOCH);
        assert!(told.to_string().contains(" by path 2, as no path of b1 is alive, out by eth0"), "{told}");
    }

    #[test]
    fn what_was_not_decided_is_left_out() {
        let mut journey = journey();
        (journey.service, journey.owner, journey.backend) = (None, 0, 0);
        journey.mark = Mark::NONE;
        journey.verdict = Verdict { reason: Reason::UnmatchedDrop, port: 0 };
        let told = Told::new(&Traced::of(&journey), &names(), SystemTime::UNIX_EPOCH);
        assert!(told.to_string().ends_with("60 B: unmatched-drop"), "{told}");
        assert!(told.service.is_none() && told.slot.is_none() && told.port.is_none());
        let told = Told::new(&Traced::of(&Journey::default()), &names(), SystemTime::UNIX_EPOCH);
        assert_eq!(told.to_string(), "1970-01-01T00:00:00.000Z no-tables");
    }
}
