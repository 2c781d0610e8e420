//! What only exists within the kernel: packets as pointers, tables as maps, and the programs.

mod calls;
mod event;
mod frame;
mod maps;
mod tables;
mod timer;
mod trace;

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use redirector_ebpf::reason::{Action, Reason, Verdict};
use redirector_ebpf::{decap, stations};

use frame::XdpFrame;
use tables::{BackendTables, MapTables};

/// The data plane of a node: the short way, and a jump to the long one.
#[xdp(frags)]
#[inline(always)]
pub(crate) fn redirector(ctx: XdpContext) -> u32 {
    match stations::plain::run(&mut XdpFrame::new(&ctx), &MapTables::new(&ctx)) {
        Some(verdict) => told(verdict),
        None => {
            // SAFETY: the map is an array of programs of this type.
            unsafe { maps::PROGRAMS.tail_call(&ctx, maps::PORT.load()) };
            tables::count(Reason::NoTables);
            XDP_DROP
        }
    }
}

/// The long way.
///
/// Inlined into the entry that the macro makes, whose frame would count against the stack.
#[xdp(frags)]
#[inline(always)]
pub(crate) fn redirector_whole(ctx: XdpContext) -> u32 {
    let Some(journey) = maps::JOURNEY.get_ptr_mut(0) else { return XDP_ABORTED };
    // SAFETY: a per-CPU value that no other program uses; an XDP program is not interrupted by another.
    let journey = unsafe { &mut *journey };
    told(stations::run(&mut XdpFrame::new(&ctx), &MapTables::new(&ctx), journey))
}

/// What the driver is told of a verdict.
#[inline(always)]
fn told(verdict: Verdict) -> u32 {
    match verdict.reason.action() {
        Action::Pass => XDP_PASS,
        Action::Drop => XDP_DROP,
        _ if u32::from(verdict.port) == maps::PORT.load() => XDP_TX,
        _ => maps::DEVICES.redirect(u32::from(verdict.port), 0).unwrap_or(XDP_ABORTED),
    }
}

/// The backend's side of the tunnels.
#[xdp(frags)]
pub(crate) fn redirector_decap(ctx: XdpContext) -> u32 {
    let Some(journey) = maps::JOURNEY.get_ptr_mut(0) else { return XDP_ABORTED };
    // SAFETY: as above.
    let beat = unsafe { &mut (*journey).beat };
    let reason = decap::run(&mut XdpFrame::new(&ctx), &BackendTables, beat);
    tables::count(reason);
    match reason.action() {
        Action::Drop => XDP_DROP,
        Action::Transmit => XDP_TX,
        _ => XDP_PASS,
    }
}

/// Passes everything. A veth's end needs some native program for its peer's `XDP_TX` and redirects to arrive.
#[xdp(frags)]
pub(crate) fn redirector_pass(_: XdpContext) -> u32 {
    XDP_PASS
}

/// Starts the timer when it is run once. It is of no use on an interface.
#[xdp]
pub(crate) fn redirector_timer(_: XdpContext) -> u32 {
    if timer::start() == 0 { XDP_PASS } else { XDP_ABORTED }
}
