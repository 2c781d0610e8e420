//! The node that is measured, loaded and filled by the agent's own code.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};
use redirector::config::{self, Config};
use redirector::dataplane::address::mac_word;
use redirector::dataplane::flows::now;
use redirector::dataplane::image::{self, Image, Link};
use redirector::dataplane::maps::Maps;
use redirector::dataplane::{batch, install, load};
use redirector_ebpf::reason::Reason;
use redirector_ebpf::tables::{LegRules, Slot};

/// Source of the packets.
pub(crate) const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];
/// The node's own address.
pub(crate) const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Pins that go with the value.
pub(crate) struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = load::unload(&self.0) {
            eprintln!("{error}");
        }
    }
}

/// The loaded node. Its maps are closed before its pins go.
pub(crate) struct Node {
    /// Its maps.
    pub(crate) maps: Maps,
    /// What they hold.
    pub(crate) image: Image,
    /// Its program.
    pub(crate) ebpf: aya::Ebpf,
    /// Where its maps are pinned.
    pub(crate) directory: PathBuf,
    _pins: Pins,
}

impl Node {
    /// Loads the node; it is attached to nothing, and the loopback stands for its interface.
    pub(crate) fn new(object: &[u8]) -> Result<Self> {
        Self::with(object, include_str!("node.toml"), 1)
    }

    /// Loads a node of another configuration, in whose text `PINS` stands for the directory of its maps, and whose
    /// interface has this index.
    pub(crate) fn of(text: &str, interface: u32) -> Result<Self> {
        Self::with(redirector::OBJECT, text, interface)
    }

    fn with(object: &[u8], text: &str, interface: u32) -> Result<Self> {
        static LOADED: AtomicU32 = AtomicU32::new(0);
        let number = LOADED.fetch_add(1, Ordering::Relaxed);
        let pins = PathBuf::from(format!("/sys/fs/bpf/redirector-bench-{}-{number}", std::process::id()));
        let text = text.replace("PINS", &pins.display().to_string());
        let config = config::parse("node.toml", &text)?;
        let directory = load::prepare(&pins)?;
        let pins = Pins(pins);
        let mut ebpf = load::open_object(object, &directory, &config, 0)?;
        load::data_plane(&mut ebpf, 0)?;
        let (maps, image) = fill(&directory, &config, interface)?;
        Ok(Self { maps, image, ebpf, directory, _pins: pins })
    }

    /// Puts the slots into the hands of the nodes that the configuration's members make them belong to.
    pub(crate) fn share_slots(&mut self) -> Result<()> {
        let table = batch::new_array(&self.image.slots, "SLOTS")?;
        self.maps.slots.set(0, &table, 0).context("the slot table")
    }

    /// Puts all slots into the hands of one node, which has always had them.
    pub(crate) fn own_slots(&mut self, node: u8) -> Result<()> {
        let slot = Slot { ranks: [node, 3 - node, 0, 0], version: 1, ..Slot::default() };
        let table = batch::new_array(&vec![slot; self.image.slots.len()], "SLOTS")?;
        self.maps.slots.set(0, &table, 0).context("the slot table")
    }

    /// Takes note of the time, as the kernel's timer would every millisecond.
    pub(crate) fn tick(&self) {
        self.maps.liveness.pulse().tick(now());
    }

    /// How often a reason was counted.
    pub(crate) fn count(&self, reason: Reason) -> Result<u64> {
        Ok(self.maps.reasons.get(&(reason as u32), 0)?.iter().sum())
    }

    /// Takes flows out of the table.
    pub(crate) fn sweep(&mut self, proven_too: bool) {
        let key = self.image.node.hash_key;
        self.maps.flows.sweep((0, 1), &key, |entry, _| proven_too || !entry.proven(), |_| ());
    }
}

fn fill(directory: &Path, config: &Config, interface: u32) -> Result<(Maps, Image)> {
    let addresses = ["10.0.0.1", "2001:db8::1"].into_iter().filter_map(|address| address.parse().ok()).collect();
    let link = Link { index: interface, mac: NODE_MAC, mtu: 1500, addresses };
    let links = HashMap::from([("eth0".to_owned(), link)]);
    let mut maps = Maps::open(directory)?;
    let image = image::compile(config, [7; 16], &links, maps.registry()?)?;
    install::install(&mut maps, &image)?;
    // As an agent has it where nothing else is configured: all flows are asked what they say of their paths.
    maps.path_health.set_rules(&LegRules { noted: 1, ..LegRules::default() })?;
    for (id, hop) in &image.neighbours {
        let [high, low] = (*id as u16).to_be_bytes();
        let mac = [2, 0, 0, 1, high, low];
        install::set_neighbour(&mut maps, *id, mac_word(mac), hop.peer)?;
    }
    Ok((maps, image))
}
