//! What is fuzzed: whatever the bytes, no decision panics, and what must hold of every packet holds.

use std::sync::LazyLock;

use redirector::dataplane::address::mac_word;
use redirector::dataplane::image::Image;
use redirector::dataplane::memory::{MemoryFrame, MemoryTables};
use redirector_ebpf::packet::{Frame, Head, HeadMut, Wire};
use redirector_ebpf::reason::{Action, Reason};
use redirector_ebpf::stations::parse;
use redirector_ebpf::tables::Port;

use super::generate::{ASKED4, ASKED6};
use super::node;

/// A frame that fails when a header is looked for farther in than the kernel's side ever looks.
struct Watched(MemoryFrame);

/// Deeper offsets are refused on the kernel's side, and there only: no station may ask for one.
const OFFSET_MAX: usize = 0x3fff;

impl Frame for Watched {
    fn length(&self) -> usize {
        self.0.length()
    }

    fn holds(&self, len: usize) -> bool {
        self.0.holds(len)
    }

    fn read<T: Wire>(&self, offset: usize) -> Option<T> {
        assert!(offset <= OFFSET_MAX, "looked for a header at {offset}");
        self.0.read(offset)
    }

    fn write<T: Wire>(&mut self, _: usize, _: T) -> Option<()> {
        panic!("the parser writes")
    }

    fn head<const N: usize>(&self) -> Option<Head<'_, N>> {
        self.0.head()
    }

    fn head_mut<const N: usize>(&mut self) -> Option<HeadMut<'_, N>> {
        panic!("the parser writes")
    }

    fn move_head(&mut self, _: i32) -> Option<()> {
        panic!("the parser moves the packet's start")
    }

    fn cut(&mut self, _: usize) -> Option<()> {
        panic!("the parser cuts the packet")
    }
}

/// Addresses a frame to node 1, which would else look at one in 2^48.
fn addressed(data: &[u8]) -> Vec<u8> {
    let mut frame = data.to_vec();
    if frame.len() >= 6 {
        frame[..6].copy_from_slice(&node::mac(1, 0));
    }
    frame
}

/// The parser: what it finds lies within the IP packet, and bytes behind that packet change nothing.
pub fn parser(data: &[u8]) {
    let port = Port { mac: mac_word(node::mac(1, 0)), ifindex: 1, mtu: 1_500 };
    let parsed = |bytes: &[u8]| {
        let frame = Watched(MemoryFrame::new(bytes));
        let mut packet = parse::network(&frame, &port)?;
        let end = usize::from(packet.l3) + usize::from(packet.l3_len);
        assert!(end <= bytes.len(), "the packet ends at {end}, the frame at {}", bytes.len());
        parse::transport(&frame, &mut packet)?;
        assert!(usize::from(packet.l4) <= end, "the transport header starts at {} behind {end}", packet.l4);
        Ok::<_, Reason>((packet, end))
    };
    let frame = addressed(data);
    let Ok((packet, end)) = parsed(&frame) else { return };
    let (cut, padded) = (&frame[..end], [&frame[..end], &[0xff; 64]].concat());
    for other in [cut, &padded] {
        let (again, _) = parsed(other).expect("the same packet parses again");
        assert_eq!(
            (again.tuple, again.kind, again.l4),
            (packet.tuple, packet.kind, packet.l4),
            "what is behind it counts"
        );
    }
}

/// The whole decision: what passes from outside passes untouched, and what leaves is a frame.
pub fn decision(data: &[u8]) {
    static IMAGE: LazyLock<Image> = LazyLock::new(|| node::image(&node::configuration(1)));
    thread_local! {
        static NODE: MemoryTables = {
            let mut tables = node::tables_of(IMAGE.clone(), &node::configuration(1));
            let interface = tables.image.ports[0].ifindex;
            tables.held = ASKED4.iter().chain(&ASKED6).map(|vip| (vip.parse().expect("an address"), interface)).collect();
            tables
        };
    }
    let frame = addressed(data);
    NODE.with(|tables| {
        let done = node::send(tables, &frame);
        match done.verdict.reason.action() {
            Action::Pass if done.journey.mark.is_none() => assert_eq!(done.bytes, frame, "{:?}", done.verdict),
            Action::Transmit | Action::Redirect => assert!(done.bytes.len() >= 34, "{:?}", done.verdict),
            _ => {}
        }
    });
}
