//! What the rows of each measurement hold: which fields tell rows apart, which are figures, and which way is better.

use serde_json::Value;

/// A measurement's rows.
#[derive(Debug)]
pub(super) struct Shape {
    /// The measurement.
    pub(super) name: &'static str,
    /// What is measured, in a few words.
    pub(super) title: &'static str,
    /// How, and what of it is not as in a real network.
    pub(super) how: &'static str,
    /// Fields that tell rows apart.
    pub(super) keys: &'static [&'static str],
    /// What is measured.
    pub(super) figures: &'static [Figure],
    /// Which of them a row's single target is for.
    pub(super) target: usize,
}

/// A figure of a row.
#[derive(Debug)]
pub(super) struct Figure {
    /// Where it is, as `gap_ms.p99`.
    pub(super) path: &'static str,
    /// What it is called.
    pub(super) label: &'static str,
    /// Whether a larger one is better.
    pub(super) more_is_better: bool,
    /// Changes by a smaller part than this, or by less than that, are noise. None: it is not compared.
    pub(super) noise: Option<(f64, f64)>,
}

const fn less(path: &'static str, label: &'static str, part: f64, least: f64) -> Figure {
    Figure { path, label, more_is_better: false, noise: Some((part, least)) }
}

const fn more(path: &'static str, label: &'static str, part: f64, least: f64) -> Figure {
    Figure { path, label, more_is_better: true, noise: Some((part, least)) }
}

const fn shown(path: &'static str, label: &'static str) -> Figure {
    Figure { path, label, more_is_better: false, noise: None }
}

/// All measurements, in the order in which they are shown.
pub(super) const ALL: &[Shape] = &[
    Shape {
        name: "packet",
        title: "What a packet costs",
        how: "The loaded program under BPF_PROG_TEST_RUN: no driver, no DMA, warm caches. Ratio to a floor that swaps two \
              MAC addresses, measured in turn with it; both under the same wrapper.",
        keys: &["cell", "flows"],
        figures: &[
            less("ratio_median", "ratio", 0.10, 0.15),
            shown("ratio_p10", "p10"),
            shown("ratio_p90", "p90"),
            shown("ns_median", "ns"),
            less("net_ns_median", "ns without the wrapper", 0.10, 4.0),
            shown("floor_ns_median", "floor ns"),
            shown("wrapper_ns_median", "wrapper ns"),
            shown("slices_dropped", "slices dropped"),
            shown("slices_disturbed", "kept though disturbed"),
            shown("steal_pct", "steal %"),
            shown("load", "load"),
        ],
        target: 0,
    },
    Shape {
        name: "forward",
        title: "Packets a second over a wire",
        how: "Live frames through a real veth pair with native XDP; the CPU that handles a frame also makes, carries and \
              counts it. Ratio to the floor program in the same place. A veth is not a network card.",
        keys: &["way", "cores", "flows"],
        figures: &[
            more("ratio_median", "of the floor", 0.10, 0.02),
            shown("ratio_p10", "p10"),
            shown("ratio_p90", "p90"),
            shown("packets_per_second", "packets/s"),
            shown("floor_packets_per_second", "floor packets/s"),
            shown("lost_pct", "frames lost %"),
            shown("floor_lost_pct", "floor's lost %"),
            shown("slices_dropped", "slices dropped"),
            shown("slices_disturbed", "kept though disturbed"),
            shown("steal_pct", "steal %"),
            shown("load", "load"),
        ],
        target: 0,
    },
    Shape {
        name: "failover",
        title: "For how long faults interrupt a stream",
        how: "A paced stream through real agents and data planes in network namespaces, joined by veth and a bridge, on \
              one machine. Gap: the longest time without an answer. Moments are chosen by chance, and so are victims where \
              more than one node fits: of leaders there is one, and of a VIP's holders the one that is planned first.",
        keys: &["fault", "profile"],
        figures: &[
            shown("kills", "kills"),
            less("gap_ms.p50", "gap ms p50", 0.25, 3.0),
            less("gap_ms.p99", "p99", 0.25, 5.0),
            shown("gap_ms.max", "max"),
            less("lost.p50", "lost p50", 0.25, 5.0),
            less("lost.max", "max", 0.25, 10.0),
            shown("first_ms.p50", "first at new owner, ms p50"),
            shown("duplicated", "duplicated"),
            shown("reordered", "reordered"),
            less("broken_connections", "connections broken", 0.0, 0.5),
            shown("connections", "of"),
            shown("wait_ms.max", "longest wait of one, ms"),
            less("return_lost.max", "lost on return, max", 0.25, 10.0),
            shown("lateness_ms_max", "own lateness ms"),
            shown("steal_pct", "steal %"),
        ],
        target: 2,
    },
    Shape {
        name: "replicate",
        title: "Copies of flows",
        how: "Two real agents, QUIC over veth, on one machine. Flows are recorded by the loaded program under \
              BPF_PROG_TEST_RUN. Lag: from a flow's change to the peer's acknowledgement, of flows whose change was told. \
              Bytes on the wire are the batch's, before QUIC and UDP; in memory those of tables and indexes at their worst.",
        keys: &["flows", "flush_ms"],
        figures: &[
            more("flows_per_second", "flows/s", 0.15, 1000.0),
            less("lag_ms.p50", "lag ms p50", 0.25, 5.0),
            less("lag_ms.p99", "p99", 0.25, 10.0),
            shown("lag_ms.max", "max"),
            less("wire_bytes", "bytes on the wire", 0.05, 1.0),
            less("memory_bytes", "in memory", 0.05, 1.0),
            less("bytes", "in all", 0.05, 1.0),
            less("events_lost", "events lost", 0.0, 0.5),
            less("agents_cpu_pct", "CPU % of both", 0.25, 10.0),
            shown("steal_pct", "steal %"),
            shown("load", "load"),
        ],
        target: 0,
    },
    Shape {
        name: "rewrite",
        title: "From a committed change of the members to the new slot table in force",
        how: "The cluster's state machine and the agent's code on a loaded node's maps; in force means that the data plane's \
              map shows the new table.",
        keys: &["change", "nodes"],
        figures: &[
            shown("ms.p50", "ms p50"),
            less("ms.p99", "p99", 0.3, 1.0),
            shown("ms.max", "max"),
            shown("ranks_ms.p50", "of it ranks, p50"),
            shown("returned_ms.p50", "call returned, p50"),
            shown("steal_pct", "steal %"),
            shown("load", "load"),
        ],
        target: 1,
    },
    Shape {
        name: "scale",
        title: "Cost and memory as things become many",
        how: "The loaded program under BPF_PROG_TEST_RUN, as packets are measured; memory is what the kernel charges for all maps of the node.",
        keys: &["axis", "count", "cell"],
        figures: &[
            less("ratio_median", "ratio", 0.10, 0.2),
            shown("ratio_p10", "p10"),
            shown("ratio_p90", "p90"),
            shown("ns_median", "ns"),
            less("memory_bytes", "memory bytes", 0.05, 1e6),
            shown("steal_pct", "steal %"),
            shown("load", "load"),
        ],
        target: 0,
    },
    Shape {
        name: "cpu",
        title: "What agents take",
        how: "Five real agents on one machine, joined by veth, whose work on a beat's way to the peer is charged to its \
              sender; the share of one core that each takes, and its resident memory.",
        keys: &["profile", "at"],
        figures: &[
            less("cpu_pct.p50", "CPU % p50", 0.25, 0.3),
            shown("cpu_pct.max", "max"),
            less("resident_mib.p50", "resident MiB p50", 0.15, 5.0),
            shown("own_mib.p50", "of it own"),
            shown("flows_per_second", "flows/s"),
            shown("steal_pct", "steal %"),
            shown("load", "load"),
        ],
        target: 0,
    },
];

impl Shape {
    /// What tells a row apart, in words.
    pub(super) fn label(&self, row: &Value) -> String {
        let words = self.keys.iter().filter_map(|key| {
            let value = row.get(key)?;
            Some(match value.as_str() {
                Some(text) => text.to_owned(),
                None => counted(value.as_f64()?, key),
            })
        });
        words.collect::<Vec<_>>().join(", ")
    }

    /// Whether two rows are of the same thing.
    pub(super) fn is_same(&self, one: &Value, other: &Value) -> bool {
        self.keys.iter().all(|key| one.get(key) == other.get(key))
    }
}

/// A number of what a key names: 1 flow, 3 nodes, flush 10 ms.
fn counted(count: f64, key: &str) -> String {
    let count_text = number(count);
    match key.strip_suffix("_ms") {
        Some(what) => format!("{what} {count_text} ms"),
        None if count == 1.0 => format!("{count_text} {}", key.trim_end_matches('s')),
        None => format!("{count_text} {key}"),
    }
}

/// A figure of a row by its path.
pub(super) fn figure(row: &Value, path: &str) -> Option<f64> {
    path.split('.').try_fold(row, |value, key| value.get(key))?.as_f64()
}

/// A figure as people write it: three digits that count, and thousands apart.
pub(super) fn number(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 || value.fract() == 0.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    let (whole, fraction) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut apart = String::new();
    for (at, digit) in whole.chars().enumerate() {
        let left = whole.len() - at;
        if at > 0 && left.is_multiple_of(3) && !apart.ends_with('-') {
            apart.push(',');
        }
        apart.push(digit);
    }
    apart + fraction
}
