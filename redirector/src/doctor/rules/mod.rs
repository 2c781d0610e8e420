//! Judgements: pure functions from facts to findings.

mod host;
mod interface;

pub(super) use host::host;
pub(super) use interface::{interface, link, others_programs};

/// A tunnel's largest head: GUE in IPv6.
pub(super) const TUNNEL_BYTES: u32 = 40 + 8 + 4;
/// What the internet carries.
pub(super) const INNER_MTU: u32 = 1500;

/// An interface's name as a part of a sysctl's: its dots are slashes there.
pub(super) fn sysctl_name(interface: &str) -> String {
    interface.replace('.', "/")
}
