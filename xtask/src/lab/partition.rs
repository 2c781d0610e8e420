//! Frames that the fabric does not deliver: cuts between hosts, by nftables rules where it forwards.

use anyhow::{Result, bail, ensure};

use super::{Fabric, Lab, Role};

const CUTS: &str = "lab_cuts";
/// Where nodes ask each other whether they live.
const BEAT_PORT: u16 = 4200;
/// Where their agents talk.
const AGENT_PORT: u16 = 4201;

/// Which way a partition cuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Neither group hears the other.
    BothWays,
    /// The second group does not hear the first, which hears it.
    OneWay,
    /// Neither group hears the other's beats; all else goes through. So nodes suspect each other that are well.
    Beats,
    /// Neither group's agents hear the other's; all else goes through, beats too.
    Agents,
}

impl Lab {
    /// Cuts groups of hosts off from each other, in addition to cuts that there are, until [`Lab::heal`]. Hosts in
    /// neither group reach all.
    pub fn partition(&self, from: &[&str], to: &[&str], cut: Cut) -> Result<()> {
        ensure!(!from.is_empty() && !to.is_empty(), "name the hosts of two groups");
        for name in from.iter().chain(to) {
            self.member(name)?;
        }
        if let Some(both) = from.iter().find(|name| to.contains(name)) {
            bail!("{both} is in both groups");
        }
        let mut lines = table(self, CUTS);
        for (from, to) in from.iter().flat_map(|from| to.iter().map(move |to| (from, to))) {
            let (there, back) = (format!("iifname {from} oifname {to}"), format!("iifname {to} oifname {from}"));
            let port = match cut {
                Cut::BothWays | Cut::OneWay => None,
                Cut::Beats => Some(BEAT_PORT),
                Cut::Agents => Some(AGENT_PORT),
            };
            for way in [there, back].iter().take(if cut == Cut::OneWay { 1 } else { 2 }) {
                match port {
                    None => lines.push(deny(self, CUTS, way)),
                    // What is asked goes to the port, and what is answered may come from it.
                    Some(port) => {
                        lines.extend(["dport", "sport"].map(|end| deny(self, CUTS, &format!("{way} udp {end} {port}"))))
                    }
                }
            }
        }
        nft(self, &lines)
    }
}

/// Ends all partitions.
pub(super) fn lift(lab: &Lab) -> Result<()> {
    remove(lab, CUTS)
}

/// Drops packets to these prefixes that would be delivered to a host, until [`let_in`].
pub(super) fn keep_away(lab: &Lab, host: &str, prefixes: &[&str]) -> Result<()> {
    let name = away(host);
    let mut lines = table(lab, &name);
    lines.extend(prefixes.iter().map(|prefix| {
        let family = if prefix.contains(':') { "ip6" } else { "ip" };
        deny(lab, &name, &format!("oifname {host} {family} daddr {prefix}"))
    }));
    nft(lab, &lines)
}

/// Ends [`keep_away`].
pub(super) fn let_in(lab: &Lab, host: &str) -> Result<()> {
    remove(lab, &away(host))
}

fn away(host: &str) -> String {
    format!("lab_away_{host}")
}

fn family(lab: &Lab) -> &'static str {
    if lab.topology().fabric == Fabric::Switched { "bridge" } else { "inet" }
}

/// Makes a table with a chain, where it is missing.
fn table(lab: &Lab, name: &str) -> Vec<String> {
    let family = family(lab);
    let chain = "type filter hook forward priority 0; policy accept;";
    vec![format!("add table {family} {name}"), format!("add chain {family} {name} cut {{ {chain} }}")]
}

fn deny(lab: &Lab, table: &str, what: &str) -> String {
    format!("add rule {} {table} cut {what} drop", family(lab))
}

fn remove(lab: &Lab, table: &str) -> Result<()> {
    // Only what exists can be deleted.
    let family = family(lab);
    nft(lab, &[format!("add table {family} {table}"), format!("delete table {family} {table}")])
}

/// Carries all lines out at once, or none.
fn nft(lab: &Lab, lines: &[String]) -> Result<()> {
    lab.role(Role::Fabric).feed("nft", "nftables", &["-f", "-"], &lines.join("\n"))
}
