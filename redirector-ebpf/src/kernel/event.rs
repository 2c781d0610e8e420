//! Changes of flows, told to the agent. Cold: a flow comes here two or three times in its life.

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use redirector_ebpf::packet::Packet;
use redirector_ebpf::reason::Reason;
use redirector_ebpf::tables::flow::Entry;

use super::{maps, tables};

/// Tells of the flow at a place of the flow table. Whoever reads the ring looks often enough: waking it for every event
/// would cost more than the event.
#[inline(never)]
pub(crate) fn tell(packet: &Packet, service: u16, index: u32, entry: Entry) -> bool {
    let Some(mut event) = maps::FLOW_EVENTS.reserve(0) else {
        tables::count(Reason::NoteEventLost);
        return false;
    };
    let recorded = if packet.v6 {
        maps::TUPLES6.get(index).map(|record| (record.since, record.version))
    } else {
        maps::TUPLES4.get(index).map(|record| (record.since, record.version))
    };
    let recorded = recorded.unwrap_or((0, 0));
    // SAFETY: takes nothing.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    // SAFETY: the reserved place is as long as the event, and whatever is in it is one: it is made of integers.
    unsafe { (*event.as_mut_ptr()).fill(packet, service, entry, recorded, now) }
    event.submit(u64::from(BPF_RB_NO_WAKEUP));
    true
}
