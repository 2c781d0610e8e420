//! The log of decisions for `trace`. Cold: it runs only while somebody looks.

use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_xdp_get_buff_len, bpf_xdp_load_bytes};
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::info;
use redirector_ebpf::stations::Journey;
use redirector_ebpf::tables::trace::{CAPTURE_BYTES, Traced};

use super::maps;

/// Logs the decision if the packet matches the filter; says whether it does. Words, since each argument of a log line costs the verifier
/// thousands of instructions; [`Traced`] takes them apart again.
#[inline(never)]
pub(crate) fn log(ctx: &XdpContext, journey: &Journey) -> bool {
    let Some(filter) = maps::TRACE.get(0) else { return false };
    if !filter.takes(&journey.packet) {
        return false;
    }
    // In a map and not on the stack, of which the program that calls this needs most.
    let Some(place) = maps::TRACED.get_ptr_mut(0) else { return false };
    // SAFETY: a per-CPU value that only this function uses.
    let Traced { words } = unsafe {
        *place = Traced::of(journey);
        &*place
    };
    info!(
        ctx,
        "{:x} {:x} {:x} {:x} {:x} {:x} {:x}", words[0], words[1], words[2], words[3], words[4], words[5], words[6]
    );
    true
}

/// Keeps the packet as it leaves, rewritten as it is, for `trace --pcap`. A full ring loses it.
#[inline(never)]
pub(crate) fn capture(ctx: &XdpContext) -> bool {
    // SAFETY: the context is this program's own.
    let length = unsafe { bpf_xdp_get_buff_len(ctx.ctx) };
    // The kept bytes' last index, 0 to 511. A mask, since the verifier loses a comparison when the number is copied.
    let mut last = length.clamp(1, CAPTURE_BYTES as u64) - 1;
    // SAFETY: changes nothing.
    unsafe { core::arch::asm!("{0} &= 511", inout(reg) last, options(pure, nomem, nostack)) };
    let kept = last + 1;
    let Some(mut record) = maps::CAPTURED.reserve(0) else { return false };
    let place = record.as_mut_ptr();
    // SAFETY: the reserved place is as long as the record, and the kernel writes no more than `kept` bytes of it.
    let loaded = unsafe {
        (&raw mut (*place).time).write(bpf_ktime_get_ns());
        (&raw mut (*place).length).write(length as u32);
        (&raw mut (*place).kept).write(kept as u32);
        bpf_xdp_load_bytes(ctx.ctx, 0, (&raw mut (*place).bytes).cast(), kept as u32)
    };
    if loaded != 0 {
        record.discard(0);
        return false;
    }
    record.submit(0);
    true
}
