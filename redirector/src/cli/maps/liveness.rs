//! The maps of liveness in words.

use redirector_ebpf::abi::{NODES, PORTS};
use redirector_ebpf::sync::Word;
use redirector_ebpf::tables::AliveNodes;
use redirector_ebpf::tables::liveness::{Admission, Vitals};
use serde_json::{Value, json};

use super::Entry;
use super::decode::entry;
use crate::cli::output::Names;
use crate::dataplane::flows::now;
use crate::dataplane::liveness::{LivenessMaps, LivenessTables as _};
use crate::dataplane::maps::MapsError;

/// The entries of one of the maps. The keys of beats are a secret, and a timer has nothing to show.
pub(super) fn entries(maps: &LivenessMaps, names: &Names, name: &str) -> Result<Vec<Entry>, MapsError> {
    let ago = |time: &Word| now().saturating_sub(time.load()) / 1000;
    let links = || (1..=254u8).flat_map(|node| (0..PORTS as u8).map(move |port| (node, port)));
    let key = |node: u8, port: u8| format!("{}/{}", names.node(node), names.port(port));
    Ok(match name {
        "WATCH" => {
            let watch = maps.watch()?;
            let value = json!({
                "interval_us": watch.interval / 1000, "multiplier": watch.multiplier, "grace_us": watch.grace / 1000,
                "incarnation": watch.incarnation, "boot_id": watch.boot_id, "peers": watch.peers,
                "keys": "hidden", "key_numbers": watch.key_ids,
            });
            vec![entry(0, value)]
        }
        "CONDITION" => {
            let said = maps.condition();
            let value = json!({
                "vitals": vitals(&said.vitals), "applied": said.applied.load(), "slots_digest": said.slots.load(),
                "pools_digest": said.pools.load(), "agent_us_ago": ago(&said.agent), "sent_us_ago": ago(&said.sender),
            });
            vec![entry(0, value)]
        }
        "SENT" => links()
            .map(|(node, port)| (key(node, port), maps.sent(node, port)))
            .filter(|(_, sent)| sent.sequence.load() != 0)
            .map(|(key, sent)| entry(key, json!({"requests": sent.sequence.load(), "carrier": sent.down.load() == 0})))
            .collect(),
        "HEARD" => links()
            .map(|(node, port)| (key(node, port), maps.heard(node, port)))
            .filter(|(_, heard)| heard.at.load() != 0)
            .map(|(key, heard)| {
                let view = AliveNodes { words: std::array::from_fn(|at| heard.view[at].load()) };
                let sees: Vec<_> = (1..=254).filter(|id| view.is_alive(*id)).map(|id| names.node(id)).collect();
                let value = json!({
                    "incarnation": heard.incarnation.load(), "asked": heard.asked.load(),
                    "answered": heard.answered.load(), "us_ago": ago(&heard.at), "vitals": vitals(&heard.vitals),
                    "applied": heard.applied.load(), "slots_digest": heard.slots.load(),
                    "pools_digest": heard.pools.load(), "sees": sees,
                });
                entry(key, value)
            })
            .collect(),
        "WATCHED" => (0..NODES)
            .map(|row| (row, Admission::of(maps.watched(row).word.load()), maps.watched(row)))
            .filter(|(_, admission, _)| admission.node != 0)
            .map(|(row, admission, watched)| {
                let ports: Vec<_> = (0..PORTS as u8).filter(|port| admission.ports >> port & 1 == 1).collect();
                let ports: Vec<_> = ports.into_iter().map(|port| names.port(port)).collect();
                let value = json!({
                    "node": names.node(admission.node), "interfaces": ports, "term": admission.term,
                    "incarnation": watched.incarnation.load(),
                });
                entry(row, value)
            })
            .collect(),
        "LATCHES" => (1..=254u8)
            .filter(|node| maps.latch(*node).term.load() != 0)
            .map(|node| {
                let latch = maps.latch(node);
                entry(names.node(node), json!({"term": latch.term.load(), "us_ago": ago(&latch.at)}))
            })
            .collect(),
        "PULSE" => {
            let pulse = maps.pulse();
            let value = json!({
                "us_ago": ago(&pulse.last), "rounds": pulse.rounds.load(), "late": pulse.late.load(),
                "frozen": pulse.frozen.load(), "gap_max_us": pulse.gap_max.load() / 1000,
            });
            vec![entry(0, value)]
        }
        _ => Vec::new(),
    })
}

fn vitals(word: &Word) -> Value {
    let Vitals { state, health, load, shed, agent_age } = Vitals::of(word.load());
    json!({"state": state, "health": health, "load": load, "shed": shed, "agent_age_ms": agent_age})
}
