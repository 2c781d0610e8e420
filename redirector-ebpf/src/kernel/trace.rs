//! The log of decisions for `trace`. Cold: it runs only while somebody looks.

use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::info;
use redirector_ebpf::stations::Journey;
use redirector_ebpf::tables::trace::Traced;

use super::maps;

/// Logs the decision if the packet matches the filter. Words, since each argument of a log line costs the verifier
/// thousands of instructions; [`Traced`] takes them apart again.
#[inline(never)]
pub(crate) fn log(ctx: &XdpContext, journey: &Journey) {
    let Some(filter) = maps::TRACE.get(0) else { return };
    if !filter.takes(&journey.packet) {
        return;
    }
    // In a map and not on the stack, of which the program that calls this needs most.
    let Some(place) = maps::TRACED.get_ptr_mut(0) else { return };
    // SAFETY: a per-CPU value that only this function uses.
    let Traced { words } = unsafe {
        *place = Traced::of(journey);
        &*place
    };
    info!(
        ctx,
        "{:x} {:x} {:x} {:x} {:x} {:x} {:x}", words[0], words[1], words[2], words[3], words[4], words[5], words[6]
    );
}
