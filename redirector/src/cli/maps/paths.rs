//! The maps of paths' health in words.

use redirector_ebpf::abi::PATHS;
use redirector_ebpf::sync::Word;
use redirector_ebpf::tables::leg::{LEGS, NO_LEG};
use redirector_ebpf::tables::names::kind;
use serde_json::json;

use super::Entry;
use super::decode::entry;
use crate::cli::output::Names;
use crate::dataplane::flows::now;
use crate::dataplane::maps::MapsError;
use crate::dataplane::paths::PathMaps;
use crate::paths::signals::Counts;

/// The entries of one of the maps. The key of beats is a secret.
pub(super) fn entries(maps: &PathMaps, names: &Names, name: &str) -> Result<Vec<Entry>, MapsError> {
    let ago = |time: &Word| now().saturating_sub(time.load()) / 1000;
    let legs = || (0..LEGS as u16).filter(|leg| maps.sent(*leg).sequence.load() != 0);
    Ok(match name {
        "LEG_RULES" => {
            let rules = maps.rules()?;
            vec![entry(0, json!({"paths": rules.paths, "key": "hidden", "key_number": rules.key_id}))]
        }
        "LEG_SENT" => legs()
            .map(|leg| (leg, maps.sent(leg)))
            .map(|(leg, sent)| {
                let value = json!({
                    "requests": sent.sequence.load(),
                    "interval_us": sent.interval.load() / 1000, "grace_us": sent.grace.load() / 1000,
                    "multiplier": sent.multiplier.load(),
                });
                entry(leg, value)
            })
            .collect(),
        "LEG_HEARD" => legs()
            .map(|leg| (leg, maps.heard(leg)))
            .filter(|(_, heard)| heard.at.load() != 0)
            .map(|(leg, heard)| entry(leg, json!({"answered": heard.answered.load(), "us_ago": ago(&heard.at)})))
            .collect(),
        "WATCHED_PATHS" => (0..maps.rows())
            .map(|row| (row, maps.admission(row)))
            .filter(|(_, admission)| admission.path != 0)
            .map(|(row, admission)| {
                let leg = (admission.leg != NO_LEG).then_some(admission.leg);
                let (path, carrier) = (names.path(admission.path), !admission.unplugged);
                entry(row, json!({"path": path, "leg": leg, "carrier": carrier, "term": admission.term}))
            })
            .collect(),
        "PATH_LATCHES" => {
            let paths = names.registry.of(kind::PATH).into_iter().map(|(id, name)| (id as u16, name));
            paths
                .filter(|(id, _)| maps.latch(*id).term.load() != 0)
                .map(|(id, name)| {
                    let latch = maps.latch(id);
                    entry(name, json!({"term": latch.term.load(), "us_ago": ago(&latch.at)}))
                })
                .collect()
        }
        "SIGNALS" => {
            let ranks = |id: u16| (0..PATHS as u8).map(move |rank| (id, rank));
            let places = names.registry.backends.keys().flat_map(|id| ranks(*id));
            places
                .map(|(id, rank)| (id, rank, maps.signals(id, rank)))
                .filter(|(.., counts)| *counts != Counts::default())
                .map(|(id, rank, counts)| entry(names.path_of(id, rank), json!(counts)))
                .collect()
        }
        "SIGHTINGS" => maps
            .sightings()
            .filter(|sighting| sighting.as_ref().map_or(true, |(_, sighting)| sighting.word() != 0))
            .map(|sighting| {
                let (cell, sighting) = sighting?;
                let (tag, place, ago) = sighting.parts(now() / 1_000_000);
                Ok(entry(cell, json!({"tag": tag, "path": names.path_of(place >> 2, place as u8 & 3), "ms_ago": ago})))
            })
            .collect::<Result<_, MapsError>>()?,
        _ => Vec::new(),
    })
}
