//! Station 4: which service is it for? The VIP by address, exact before prefix; the service by port, exact before range.

use crate::packet::{Kind, Packet, protocol};
use crate::reason::{Reason, Station};
use crate::tables::{Service, ServiceKey, Tables, Vip};

/// The key under which a flow's service stands. ICMPv6 counts as ICMP, so that one service of a VIP takes both.
#[inline(always)]
fn key(vip: &Vip, packet: &Packet) -> ServiceKey {
    let protocol = match packet.tuple.protocol {
        protocol::ICMPV6 => protocol::ICMP,
        other => other,
    };
    ServiceKey { vip: vip.id, protocol, pad: 0, port: packet.tuple.dport }
}

/// The VIP that the packet is for.
///
/// # Errors
/// [`Reason::NotOurs`].
#[inline(always)]
pub fn find_vip<T: Tables>(tables: &T, packet: &Packet) -> Station<Vip> {
    tables.vip(&packet.tuple.dst, packet.v6).ok_or(Reason::NotOurs)
}

/// The service of a VIP that the packet is for, if there is one.
#[inline(always)]
pub fn find<T: Tables>(tables: &T, vip: &Vip, packet: &Packet) -> Option<Service> {
    let key = key(vip, packet);
    match tables.service(&key) {
        Some(service) => Some(service),
        None if vip.ranges & 1 == 1 => tables.service_range(&key),
        None => None,
    }
}

/// What a VIP does with a packet that no service takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmatched {
    /// It ends with this reason as it is.
    Leave(Reason),
    /// An echo request to be answered here.
    AnswerEcho,
    /// To be answered by a reset or port unreachable.
    Reject,
}

/// The VIP's policy for a packet that no service takes.
#[inline(always)]
pub fn unmatched(vip: &Vip, packet: &Packet) -> Unmatched {
    use crate::tables::service::{echo, unmatched};
    if matches!(packet.kind, Kind::Echo) {
        return match vip.echo {
            echo::ANSWER => Unmatched::AnswerEcho,
            echo::PASS => Unmatched::Leave(Reason::EchoPass),
            _ => Unmatched::Leave(Reason::EchoDrop),
        };
    }
    match vip.unmatched {
        unmatched::PASS => Unmatched::Leave(Reason::UnmatchedPass),
        unmatched::REJECT if !matches!(packet.kind, Kind::Error | Kind::LaterFragment) => Unmatched::Reject,
        _ => Unmatched::Leave(Reason::UnmatchedDrop),
    }
}
