//! What became of packets, and how full the flow tables are.

use std::time::{Duration, Instant};

use anyhow::Result;
use redirector_ebpf::reason::Reason;
use serde::Serialize;

use super::View;
use crate::cli::output::{Names, Output, Reader, class, ordered, text_table};
use crate::cli::target::Target;
use crate::dataplane::maps::{Maps, MapsError};

#[derive(Debug, clap::Args)]
pub(super) struct Stats {
    /// Show reasons too that no packet had.
    #[arg(long)]
    all: bool,
    /// Go on showing them, with what came in a second.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    watch: Option<u32>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Counters {
    /// Packets by reason, in the order in which the packet path knows them.
    #[serde(serialize_with = "ordered")]
    reasons: Vec<(&'static str, u64)>,
    /// Packets that were refused since load was shed or a budget was spent.
    refused: Vec<Refused>,
    flows: Tables,
}

/// Packets of one service that were refused since load was shed or a budget was spent.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Refused {
    pub(in crate::cli) service: String,
    /// Their class, which may be another than their service's.
    pub(in crate::cli) class: &'static str,
    pub(in crate::cli) reason: &'static str,
    pub(in crate::cli) packets: u64,
}

#[derive(Serialize)]
struct Tables {
    ipv4: Fill,
    ipv6: Fill,
}

#[derive(Default, Serialize)]
struct Fill {
    used: usize,
    capacity: usize,
}

impl Stats {
    pub(super) fn run(self) -> Result<()> {
        let view = View::open(&self.target)?;
        let mut before = counters(&view)?;
        let Some(every) = self.watch else {
            return self.output.one(&before, || self.text(&before, None));
        };
        let mut read_at = Instant::now();
        loop {
            std::thread::sleep(Duration::from_secs(u64::from(every)));
            let now = counters(&view)?;
            let seconds = read_at.elapsed().as_secs_f64();
            read_at = Instant::now();
            if self.output.line(&now, || self.text(&now, Some((&before, seconds))))? == Reader::Gone {
                return Ok(());
            }
            before = now;
        }
    }

    /// Both tables; with an earlier state and its age, also what was counted in a second.
    fn text(&self, counters: &Counters, since: Option<(&Counters, f64)>) -> String {
        let mut rows = Vec::new();
        for (index, (reason, (name, count))) in Reason::ALL.iter().zip(&counters.reasons).enumerate() {
            if *count == 0 && !self.all {
                continue;
            }
            let mut row = vec![(*name).to_owned(), count.to_string()];
            row.extend(since.map(|(before, seconds)| {
                let earlier = before.reasons.get(index).map_or(0, |(_, count)| *count);
                format!("{:.0}", count.saturating_sub(earlier) as f64 / seconds)
            }));
            row.push(reason.meaning().to_owned());
            rows.push(row);
        }
        let header: &[&str] = match since {
            Some(_) => &["REASON", "COUNT", "A-SECOND", "MEANING"],
            None => &["REASON", "COUNT", "MEANING"],
        };
        let fill = |name: &str, fill: &Fill| {
            let percent = fill.used as f64 * 100.0 / fill.capacity.max(1) as f64;
            vec![name.to_owned(), fill.used.to_string(), fill.capacity.to_string(), format!("{percent:.1}%")]
        };
        let Tables { ipv4, ipv6 } = &counters.flows;
        let flows = text_table(&["FLOWS", "USED", "CAPACITY", "FILL"], vec![fill("ipv4", ipv4), fill("ipv6", ipv6)]);
        let refused =
            |one: &Refused| vec![one.service.clone(), one.class.into(), one.reason.into(), one.packets.to_string()];
        let refused = match counters.refused.is_empty() {
            true => String::new(),
            false => {
                let rows = counters.refused.iter().map(refused).collect();
                format!("\n{}", text_table(&["REFUSED", "CLASS", "REASON", "PACKETS"], rows))
            }
        };
        format!("{}{refused}\n{flows}", text_table(header, rows))
    }
}

fn counters(view: &View) -> Result<Counters, MapsError> {
    let counts = view.maps.all_reasons.sums()?;
    let count = |reason: &Reason| counts.get(*reason as usize).copied().unwrap_or_default();
    let reasons = Reason::ALL.iter().map(|reason| (reason.name(), count(reason))).collect();
    let (capacity4, capacity6) = view.maps.flows.capacity();
    let mut flows = Tables { ipv4: Fill { used: 0, capacity: capacity4 }, ipv6: Fill { used: 0, capacity: capacity6 } };
    for flow in view.maps.flows.iter(&view.node.hash_key) {
        let fill = if flow.v6 { &mut flows.ipv6 } else { &mut flows.ipv4 };
        fill.used += 1;
    }
    Ok(Counters { reasons, refused: refused(&view.maps, &view.names)?, flows })
}

/// What was refused so far, service by service.
pub(in crate::cli) fn refused(maps: &Maps, names: &Names) -> Result<Vec<Refused>, MapsError> {
    let refused = maps.refused()?.into_iter().map(|(key, packets)| {
        let (service, kind, why) = key.parts();
        Refused { service: names.service(service), class: class(kind), reason: why.reason().name(), packets }
    });
    Ok(refused.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(all: bool) -> Stats {
        Stats { all, watch: None, target: Target::default(), output: Output::default() }
    }

    fn counted(served: u64) -> Counters {
        let count = |reason: &Reason| if *reason == Reason::Served { served } else { 0 };
        let reasons = Reason::ALL.iter().map(|reason| (reason.name(), count(reason))).collect();
        let refused = vec![Refused { service: "web".into(), class: "low", reason: "shed", packets: 3 }];
        Counters { reasons, refused, flows: Tables { ipv4: Fill { used: 2, capacity: 8 }, ipv6: Fill::default() } }
    }

    #[test]
    fn a_table_shows_what_happened_and_json_all() {
        let text = stats(false).text(&counted(5), None);
        assert!(text.contains("served   5       Sent to its backend."), "{text}");
        assert!(text.contains("ipv4    2      8          25.0%"), "{text}");
        assert!(!text.contains("no-path"), "{text}");
        assert!(text.contains("web       low     shed     3"), "{text}");
        assert!(stats(true).text(&counted(5), None).contains("no-path"));
        let json = serde_json::to_value(counted(5)).unwrap();
        assert_eq!(json["reasons"]["served"], 5);
        assert_eq!(json["reasons"]["no-path"], 0);
        assert_eq!(json["flows"]["ipv4"], serde_json::json!({"used": 2, "capacity": 8}));
    }

    #[test]
    fn watching_shows_what_came_in_a_second() {
        let text = stats(false).text(&counted(25), Some((&counted(5), 2.0)));
        assert!(text.contains("served   25      10         Sent"), "{text}");
    }
}
