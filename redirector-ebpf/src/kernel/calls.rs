//! Functions of their own within the programs: seldom needed, or with a stack that must not be the whole program's.

use aya_ebpf::bindings::bpf_fib_lookup;
use aya_ebpf::helpers::generated::bpf_fib_lookup as fib_lookup;
use aya_ebpf::programs::XdpContext;
use redirector_ebpf::packet::Address;
use redirector_ebpf::packet::headers::Mac;
use redirector_ebpf::stations::neighbour::{self, Question};
use redirector_ebpf::stations::{path, suspect};
use redirector_ebpf::tables::Tables;
use redirector_ebpf::tables::path::RESOLVED;

use super::frame::XdpFrame;
use super::maps;
use super::tables::MapTables;

/// The kernel's route to `address`: neighbour word, and the port's number in the upper eight bits; 0: none.
///
/// A function of its own, and its parameters in a map, so that their stack is not the whole program's.
#[inline(never)]
pub(super) fn kernel_route(ctx: &XdpContext, address: &Address, v6: bool, ifindex: u32) -> u64 {
    let Some(params) = maps::ROUTE.get_ptr_mut(0) else { return 0 };
    // SAFETY: a per-CPU value that only this function uses.
    let params = unsafe { &mut *params };
    params.family = if v6 { 10 } else { 2 };
    params.l4_protocol = 0;
    params.sport = 0;
    params.dport = 0;
    params.__bindgen_anon_1.tot_len = 0;
    params.__bindgen_anon_2.flowinfo = 0;
    params.__bindgen_anon_3.ipv6_src = [0; 4];
    params.ifindex = ifindex;
    params.__bindgen_anon_4.ipv6_dst = address.words;
    let size = core::mem::size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: the context is this program's own, the parameters are of the size that is told.
    if unsafe { fib_lookup(ctx.ctx.cast(), &raw mut *params, size, 0) } != 0 {
        return 0;
    }
    let d = params.dmac;
    let mac =
        Mac([u16::from_ne_bytes([d[0], d[1]]), u16::from_ne_bytes([d[2], d[3]]), u16::from_ne_bytes([d[4], d[5]])]);
    // SAFETY: a copy is taken at once; an entry that is replaced meanwhile gives the old or the new value.
    match unsafe { maps::PORT_NUMBERS.get(params.ifindex).copied() } {
        Some(number) => mac.word() | RESOLVED | u64::from(number) << 56,
        None => 0,
    }
}

/// Counts a refused packet. A function of its own, as its key and first count need stack.
#[inline(never)]
pub(super) fn count_refused(key: u32) -> bool {
    match maps::REFUSED.get_ptr_mut(key) {
        Some(count) => {
            // SAFETY: a per-CPU value; the program is not preempted by itself.
            unsafe { *count += 1 }
            true
        }
        // A full table counts no more kinds; the verdict's own counter still does.
        None => maps::REFUSED.insert(key, 1, 0).is_ok(),
    }
}

/// What a packet says of its path. A function of its own, as few packets say anything.
#[inline(never)]
pub(super) fn note(ctx: &XdpContext, bits: u64, place: u32, tcp_flags: u32) -> u32 {
    path::note(&MapTables::new(ctx), bits, (place >> 2) as u16, place as u8 & 3, tcp_flags as u8);
    0
}

/// The least bad of dead paths. A function of its own, as it is seldom asked for.
#[inline(never)]
pub(super) fn least_bad(ctx: &XdpContext, paths: u64) -> u32 {
    path::least_bad(&MapTables::new(ctx), paths).into()
}

/// The backend for the packet in hand that is taken instead of a suspect one, likewise.
#[inline(never)]
pub(super) fn instead(ctx: &XdpContext) -> u64 {
    let Some(journey) = maps::JOURNEY.get_ptr(0) else { return 0 };
    // SAFETY: a per-CPU value that no other program uses.
    suspect::instead(&MapTables::new(ctx), unsafe { &*journey }).word()
}

/// Has its flow stay there. Not in one function with the search: of both the stack would be too deep.
#[inline(never)]
pub(super) fn turn(ctx: &XdpContext, backend: u32) -> u32 {
    let Some(journey) = maps::JOURNEY.get_ptr(0) else { return 0 };
    // SAFETY: as above.
    suspect::turn(&MapTables::new(ctx), unsafe { &*journey }, backend as u16).into()
}

/// What the packet in hand says of its path, likewise.
#[inline(never)]
pub(super) fn note_journey(ctx: &XdpContext) -> u32 {
    let Some(journey) = maps::JOURNEY.get_ptr(0) else { return 0 };
    // SAFETY: a per-CPU value that no other program uses.
    path::note_journey(&MapTables::new(ctx), unsafe { &*journey });
    0
}

pub(super) const REQUEST: u32 = 1;
pub(super) const SOLICITATION: u32 = 2;

/// Station 3, with a frame of the same packet. A function of its own, as the next one is, so that its stack is not the
/// whole program's.
#[inline(never)]
pub(super) fn hear(ctx: &XdpContext) -> u32 {
    let tables = MapTables::new(ctx);
    let Some((_, port)) = tables.ingress() else { return 0 };
    match neighbour::hear(&mut XdpFrame::new(ctx), &tables, port) {
        Question::Nothing => 0,
        Question::Request => REQUEST,
        Question::Solicitation => SOLICITATION,
    }
}

#[inline(never)]
pub(super) fn advertise(ctx: &XdpContext) -> bool {
    let tables = MapTables::new(ctx);
    tables.ingress().and_then(|(_, port)| neighbour::advertise(&mut XdpFrame::new(ctx), port)).is_some()
}
