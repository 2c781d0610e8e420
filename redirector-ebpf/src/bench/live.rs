//! Programs for live frames: one that makes packets, in place of a network, and one at which they end.

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use redirector_ebpf::bench::Run;

use crate::programs::write;

/// What each CPU makes.
#[btf_map]
static MADE: PerCpuArray<Run, 1> = PerCpuArray::new();

/// Frames that came to their end on each CPU, and their bytes.
#[btf_map]
static ENDED: PerCpuArray<[u64; 2], 1> = PerCpuArray::new();

/// Makes the next packet of `MADE`, and sends it out. What is made is sent on by hosts too, so its checksum is right.
#[xdp(frags)]
fn bench_generate(ctx: XdpContext) -> u32 {
    let Some(run) = MADE.get_ptr_mut(0) else { return XDP_ABORTED };
    // SAFETY: this CPU's own value.
    let run = unsafe { &mut *run };
    if write(&ctx, run).is_none() || correct(&ctx).is_none() {
        return XDP_ABORTED;
    }
    run.counter += 1;
    XDP_TX
}

/// Brings the checksum of an IPv4 header without options up to date.
#[inline(always)]
fn correct(ctx: &XdpContext) -> Option<()> {
    let start = ctx.data();
    if start + 34 > ctx.data_end() {
        return None;
    }
    let words = start as *mut u16;
    // SAFETY: within the frame, as was checked, here and below.
    unsafe {
        if words.add(6).read() != 0x0800u16.to_be() {
            return Some(());
        }
        let mut sum = 0u32;
        let mut i = 0;
        while i < 10 {
            if i != 5 {
                sum += u32::from(words.add(7 + i).read());
            }
            i += 1;
        }
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        words.add(12).write(!(sum as u16));
    }
    Some(())
}

/// Counts a frame, and drops it.
#[xdp(frags)]
fn bench_end(ctx: XdpContext) -> u32 {
    if let Some(ended) = ENDED.get_ptr_mut(0) {
        // SAFETY: this CPU's own value.
        unsafe {
            (*ended)[0] += 1;
            (*ended)[1] += (ctx.data_end() - ctx.data()) as u64;
        }
    }
    XDP_DROP
}

/// Leaves a frame to the kernel's stack.
#[xdp(frags)]
fn bench_pass(_: XdpContext) -> u32 {
    XDP_PASS
}
