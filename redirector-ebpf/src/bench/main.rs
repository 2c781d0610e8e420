//! The benchmark's programs: a wrapper that measures another program packet by packet, and what it is compared with.
//!
//! `BPF_PROG_TEST_RUN` repeats a program on the packet that the last run left. The wrapper writes a fresh packet first,
//! with one of F sources, tail-calls the program from a function of its own, so that control comes back, and puts the
//! packet's head back to where it was. It takes the time before the first packet and after the last one: the duration
//! that the call returns is rounded where repeats are many.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
mod live;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_TX};
    use aya_ebpf::btf_maps::{Array, ProgramArray};
    use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_xdp_adjust_head, bpf_xdp_get_buff_len};
    use aya_ebpf::macros::{btf_map, xdp};
    use aya_ebpf::programs::XdpContext;
    use redirector_ebpf::bench::{Run, TEMPLATE};

    /// The program that is measured.
    #[btf_map]
    static MEASURED: ProgramArray<1> = ProgramArray::new();

    /// What to measure, and what was found.
    #[btf_map]
    static RUN: Array<Run, 1> = Array::new();

    /// Measures `MEASURED` on one packet of `RUN`.
    #[xdp(frags)]
    fn bench_wrapper(ctx: XdpContext) -> u32 {
        let Some(run) = RUN.get_ptr_mut(0) else { return XDP_ABORTED };
        // SAFETY: an array's value; the benchmark runs the wrapper on one CPU at a time.
        let run = unsafe { &mut *run };
        if run.counter == 0 {
            // SAFETY: takes nothing.
            run.started = unsafe { bpf_ktime_get_ns() };
        }
        if write(&ctx, run).is_none() {
            return XDP_ABORTED;
        }
        let action = call(&ctx);
        if action == run.expected {
            run.as_expected += 1;
        }
        // SAFETY: the context is this program's own.
        let grown = unsafe { bpf_xdp_get_buff_len(ctx.ctx) } as i32 - run.len as i32;
        // SAFETY: as above.
        if grown != 0 && unsafe { bpf_xdp_adjust_head(ctx.ctx, grown) } != 0 {
            return XDP_ABORTED;
        }
        run.counter += 1;
        if run.counter == run.packets {
            // SAFETY: takes nothing.
            run.ended = unsafe { bpf_ktime_get_ns() };
        }
        XDP_DROP
    }

    /// Writes the template with the next source into the packet.
    #[inline(always)]
    pub(crate) fn write(ctx: &XdpContext, run: &Run) -> Option<()> {
        let start = ctx.data();
        if start + TEMPLATE > ctx.data_end() {
            return None;
        }
        let packet = start as *mut u64;
        let mut i = 0;
        while i < TEMPLATE / 8 {
            // SAFETY: within the packet, as was checked; the kernel allows unaligned access to it.
            unsafe { packet.add(i).write(run.template[i]) };
            i += 1;
        }
        // A multiplicative hash of the counter, scaled to the number of flows, spreads the order in which they come.
        let flow = ((run.base + run.counter).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).wrapping_mul(run.flows) >> 32;
        let source = (run.first_source + flow) as u32;
        let at = run.source_at as usize & 0x3f;
        if start + at + 4 > ctx.data_end() {
            return None;
        }
        // SAFETY: as above.
        unsafe { ((start + at) as *mut u32).write(source.to_be()) };
        Some(())
    }

    /// A function of its own, to which control returns when the program that it calls ends.
    #[inline(never)]
    fn call(ctx: &XdpContext) -> u32 {
        // SAFETY: the map is an array of programs of this type.
        unsafe { MEASURED.tail_call(ctx, 0) };
        let action: u32;
        // SAFETY: `XDP_ABORTED`, in a way that the compiler cannot know: else it would take it for what every call returns.
        unsafe { core::arch::asm!("{0} = 0", out(reg) action) };
        action
    }

    /// The floor: what any program that sends a packet back must do.
    #[xdp(frags)]
    fn bench_floor(ctx: XdpContext) -> u32 {
        let start = ctx.data();
        if start + 14 > ctx.data_end() {
            return XDP_ABORTED;
        }
        let mac = start as *mut [u16; 3];
        // SAFETY: within the packet, as was checked.
        unsafe {
            let (dst, src) = (*mac, *mac.add(1));
            *mac = src;
            *mac.add(1) = dst;
        }
        XDP_TX
    }

    /// The wrapper's own cost.
    #[xdp(frags)]
    fn bench_return(_: XdpContext) -> u32 {
        XDP_TX
    }
}
