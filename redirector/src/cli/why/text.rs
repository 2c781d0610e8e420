//! The answer for people.

use super::answer::{Answer, Known, NextHop, Rank, Row};
use crate::cli::get::Refused;
use crate::cli::output::text_pairs;

impl Answer {
    /// The answer in lines, in the order of the stations.
    pub(super) fn text(&self) -> String {
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
        let because = |what: String, why: &Option<String>| match why {
            Some(why) => format!("{what}: {why}"),
            None => what,
        };
        let mut lines = vec![
            ("flow", format!("{} {} → {}", self.protocol, self.source, self.destination)),
            (
                "asked",
                format!(
                    "at {}, as a packet of {}",
                    self.asked_at,
                    match self.asked_as {
                        "new" => "a new connection",
                        "established" => "an established connection",
                        _ => "the flow",
                    }
                ),
            ),
        ];
        if let (Some(service), Some(affinity), Some(class)) = (&self.service, self.affinity, self.class) {
            let class = match self.service_class {
                Some(own) if own != class => format!("{class} by DSCP {}, {own} by itself", self.dscp),
                _ => class.to_owned(),
            };
            lines.push(("service", format!("{service} ({affinity}, {class}), pool {}", or_none(&self.pool))));
        }
        if let Some(Row { index, current, previous, disputed, severed }) = &self.row {
            let dispute = match (disputed, severed) {
                (_, true) => ", disputed, the previous one dead",
                (true, false) => ", disputed",
                (false, false) => "",
            };
            let (current, previous) = (or_none(current), or_none(previous));
            lines.push(("row", format!("{index}: current {current}, previous {previous}{dispute}")));
        }
        if self.service.is_some() {
            let rank = |rank: &Rank| format!("{} ({})", rank.node, if rank.alive { "alive" } else { "not alive" });
            let ranks: Vec<_> = self.ranks.iter().map(rank).collect();
            let version = self.version.map_or_else(|| "none".to_owned(), |version| version.to_string());
            let previous = self.previous_owner.as_ref().map_or_else(String::new, |node| format!(", previously {node}"));
            lines.push(("slot", format!("{}, version {version}: {}{previous}", self.slot, ranks.join(", "))));
            lines.push(("owner", because(self.owner.clone().unwrap_or_else(|| "any".to_owned()), &self.owner_why)));
            lines.push((
                "flow table",
                match &self.flow {
                    Some(Known { state, proven, idle_s, backend }) => format!(
                        "known here: {state}, {}{} on {}",
                        if *proven { "proven" } else { "unproven" },
                        idle_s.map_or_else(String::new, |idle| format!(", idle {idle} s,")),
                        or_none(backend)
                    ),
                    None => "not known here".to_owned(),
                },
            ));
        }
        if let Some(backend) = &self.backend {
            let from = match (&self.avoided, self.backend_from) {
                (Some(avoided), _) => format!("another row, since no path of {avoided} is alive"),
                (None, Some("flow")) => "the flow table".to_owned(),
                (None, _) => "the row".to_owned(),
            };
            lines.push(("backend", format!("{backend}: from {from}")));
            lines.push((
                "path",
                because(self.path.map_or_else(|| "none".to_owned(), |rank| rank.to_string()), &self.path_why),
            ));
        }
        if let Some(NextHop { mode, interface, vlan, address, mac, remote }) = &self.next_hop {
            let vlan = vlan.map_or_else(String::new, |vlan| format!(" VLAN {vlan}"));
            let remote = remote.map_or_else(String::new, |remote| format!(" to {remote}"));
            let mac = mac.as_deref().unwrap_or("MAC address not known");
            lines.push(("next hop", format!("{address} ({mac}) over {interface}{vlan}, {mode}{remote}")));
        }
        let why = self.refused_for.filter(|why| *why != self.verdict);
        let why = why.map_or_else(String::new, |why| format!(" (refused: {why})"));
        lines.push(("verdict", format!("{}: {}{why}", self.verdict, self.meaning)));
        let refused = self.refused.iter();
        lines.extend(refused.map(|Refused { class, reason, packets, .. }| {
            ("refused", format!("of this service so far {packets} packets of class {class}: {reason}"))
        }));
        lines.extend(self.notes.iter().map(|note| ("note", note.clone())));
        text_pairs(lines)
    }
}
