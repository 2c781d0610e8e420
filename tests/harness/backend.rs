//! The backend's side in memory.

use std::net::IpAddr;

use redirector::dataplane::address::{ip, mac_word};
use redirector::dataplane::memory::MemoryFrame;
use redirector_ebpf::abi::GUE_PORT;
use redirector_ebpf::beat::Beat;
use redirector_ebpf::decap::{self, Settings, Sources};
use redirector_ebpf::packet::Address;
use redirector_ebpf::reason::Reason;

use super::node::{self, mac};
use super::packet::Packet;

/// A backend that takes tunnels from the standard cluster's node 1.
pub struct Backend {
    /// Whose tunnels are taken.
    pub sources: Vec<IpAddr>,
    /// What may be within.
    pub vips: Vec<IpAddr>,
    /// Who it is.
    pub settings: Settings,
}

/// The time on its clock.
pub const NOW: u64 = 77_000_000_000;

/// The backend of the standard cluster: it answers beats.
fn settings() -> Settings {
    Settings {
        mac: mac_word(mac(9, 0)),
        key: PATH_KEY,
        boot_id: 0xb00d,
        cluster: 7,
        gue_port: GUE_PORT.to_be(),
        key_id: 5,
        pad: 0,
    }
}

/// The key of beats to the far ends of paths.
pub const PATH_KEY: [u64; 2] = [0x1716_1514_1312_1110, 0x1f1e_1d1c_1b1a_1918];

impl Default for Backend {
    fn default() -> Self {
        let all = |list: &[&str]| list.iter().map(|text| text.parse().expect("an address")).collect();
        Self {
            sources: all(&["10.0.0.1", "2001:db8:1::1"]),
            vips: all(&["198.51.100.10", "2001:db8:100::10"]),
            settings: settings(),
        }
    }
}

impl Sources for Backend {
    fn is_source(&self, address: &Address, v6: bool) -> bool {
        self.sources.contains(&ip(address, v6))
    }

    fn is_vip(&self, address: &Address, v6: bool) -> bool {
        self.vips.contains(&ip(address, v6))
    }

    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings)
    }

    fn now(&self) -> u64 {
        NOW
    }
}

impl Backend {
    /// Takes a frame apart.
    pub fn run(&self, frame: &[u8]) -> (Reason, Vec<u8>) {
        let mut memory = MemoryFrame::new(frame);
        let reason = decap::run(&mut memory, self, &mut Beat::default());
        (reason, memory.bytes().to_vec())
    }
}

/// What node 1 sends for the packet, as it reaches the backend.
pub fn tunnelled(packet: &Packet) -> Vec<u8> {
    let done = node::send(&node::node(1), &packet.bytes());
    assert_eq!(done.verdict.reason, Reason::Served);
    let mut frame = done.bytes;
    // The switch takes the tag off at an access port.
    if frame[12..14] == [0x81, 0] {
        frame.drain(12..16);
    }
    frame[..6].copy_from_slice(&mac(9, 0));
    frame
}
