//! The backend's side of tunnels.

use serde::Serialize;

use super::reader::Reader;
use super::text::{self, Wrong};
use super::{Key, Prefix};

/// The backend's side, for `redirector decap`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decap {
    /// Where tunnel packets arrive.
    #[serde(rename = "interface")]
    pub interfaces: Vec<String>,
    /// Who may send them.
    pub sources: Vec<Prefix>,
    /// Which inner destinations are accepted.
    pub vips: Vec<Prefix>,
    /// UDP port of GUE.
    pub gue_port: u16,
    /// The cluster whose beats are answered.
    pub cluster: u32,
    /// The key of beats to far ends of paths, the nodes' `path_key`; without it none are answered.
    pub path_key: Option<Key>,
}

/// Reads `[decap]` and lets a node's tables be.
pub(super) fn decap_alone(root: &mut Reader<'_>) -> Decap {
    let others = [
        "node",
        "cluster",
        "tables",
        "limits",
        "timeouts",
        "replication",
        "shedding",
        "health",
        "interface",
        "bfd",
        "member",
        "witness",
        "vip",
        "service",
        "pool",
        "decap",
    ];
    for name in others {
        root.item(name);
    }
    match root.table("decap") {
        Some(table) => decap(table),
        None => {
            root.must("decap", None, (), "add [decap] with interface, sources and vips");
            Decap {
                interfaces: Vec::new(),
                sources: Vec::new(),
                vips: Vec::new(),
                gue_port: 0,
                cluster: 0,
                path_key: None,
            }
        }
    }
}

/// Reads `[decap]`.
pub(super) fn decap(mut r: Reader<'_>) -> Decap {
    let interfaces = decap_interfaces(&mut r);
    let sources = prefixes(&mut r, "sources", "add sources = [\"10.0.0.0/24\"], the redirectors' addresses");
    let vips = prefixes(&mut r, "vips", "add vips = [\"192.0.2.1\"], the addresses that this backend serves");
    let decap = Decap {
        interfaces,
        sources,
        vips,
        gue_port: r.number("gue_port", 1..=u16::MAX).unwrap_or(6080),
        cluster: r.number("cluster", 0..=u32::MAX).unwrap_or(1),
        path_key: r.parsed("path_key", text::key),
    };
    r.done();
    decap
}

/// One interface, or a list of several.
fn decap_interfaces(r: &mut Reader<'_>) -> Vec<String> {
    let mend = "add the interface that tunnel packets arrive at, or a list of several";
    let item = r.item("interface");
    let interfaces: Vec<String> = match &item {
        Some(item) if item.is_list() => {
            let elements = item.elements(mend).unwrap_or_default();
            elements.iter().filter_map(|element| element.parsed(text::interface)).collect()
        }
        Some(item) => item.parsed(text::interface).into_iter().collect(),
        None => r.must("interface", None, Vec::new(), mend),
    };
    if item.is_some_and(|item| item.is_list() && item.elements(mend).is_some_and(|list| list.is_empty())) {
        r.wrong("interface", Wrong::new("the list is empty", mend));
    }
    interfaces
}

fn prefixes(r: &mut Reader<'_>, name: &'static str, mend: &str) -> Vec<Prefix> {
    let elements = r.item(name).and_then(|item| item.elements(mend));
    if elements.as_ref().is_some_and(Vec::is_empty) {
        r.wrong(name, Wrong::new("the list is empty", mend));
    }
    let elements = r.must(name, elements, Vec::new(), mend);
    elements.iter().filter_map(|element| element.parsed(text::vip)).collect()
}
