//! The timer that writes the alive bits. It runs every millisecond from when it is started until its map goes, whether
//! the agent lives or not.

use aya_ebpf::bindings::bpf_timer;
use aya_ebpf::helpers::generated::{bpf_loop, bpf_timer_init, bpf_timer_set_callback, bpf_timer_start};
use core::ffi::c_void;
use redirector_ebpf::liveness::{self, ROUND, Watching};
use redirector_ebpf::paths::{self, Judging};
use redirector_ebpf::sync::Word;
use redirector_ebpf::tables::AliveNodes;
use redirector_ebpf::tables::leg::{LegHeard, LegSent, PATHS_A_ROUND};
use redirector_ebpf::tables::liveness::{Condition, Heard, Latch, Pulse, Sent, Watch, Watched};

use super::maps;

/// The timer in its map.
#[repr(C)]
pub(crate) struct Clock {
    timer: bpf_timer,
}

const CLOCK_MONOTONIC: u64 = 1;

/// The maps that the rule looks at.
struct MapWatching;

impl Watching for MapWatching {
    #[inline(always)]
    fn watch(&self) -> Option<&Watch> {
        maps::WATCH.get(0)
    }

    #[inline(always)]
    fn condition(&self) -> Option<&Condition> {
        maps::CONDITION.get(0)
    }

    #[inline(always)]
    fn pulse(&self) -> Option<&Pulse> {
        maps::PULSE.get(0)
    }

    #[inline(always)]
    fn watched(&self, index: u32) -> Option<&Watched> {
        maps::WATCHED.get(index)
    }

    #[inline(always)]
    fn sent(&self, link: u32) -> Option<&Sent> {
        maps::SENT.get(link)
    }

    #[inline(always)]
    fn heard(&self, link: u32) -> Option<&Heard> {
        maps::HEARD.get(link)
    }

    #[inline(always)]
    fn latch(&self, node: u8) -> Option<&Latch> {
        maps::LATCHES.get(u32::from(node))
    }

    #[inline(always)]
    fn way(&self, node: u8) -> Option<&Word> {
        maps::WAYS.get(u32::from(node))
    }
}

impl Judging for MapWatching {
    #[inline(always)]
    fn admission(&self, row: u32) -> Option<&Word> {
        maps::WATCHED_PATHS.get(row)
    }

    #[inline(always)]
    fn path_latch(&self, path: u16) -> Option<&Latch> {
        maps::PATH_LATCHES.get(u32::from(path))
    }

    #[inline(always)]
    fn path_bit(&self, path: u16) -> Option<&Word> {
        maps::PATH_ALIVE.get(u32::from(path))
    }

    #[inline(always)]
    fn leg_sent(&self, leg: u16) -> Option<&LegSent> {
        maps::LEG_SENT.get(u32::from(leg))
    }

    #[inline(always)]
    fn leg_heard(&self, leg: u16) -> Option<&LegHeard> {
        maps::LEG_HEARD.get(u32::from(leg))
    }
}

/// Starts the timer, or has one that runs go on by this program; 0: done.
#[inline(always)]
pub(crate) fn start() -> i64 {
    let Some(clock) = maps::CLOCK.get_ptr_mut(0) else { return -1 };
    // SAFETY: the timer lies within the map that is named; it is initialised once, and the kernel says if it was before.
    unsafe {
        let timer = &raw mut (*clock).timer;
        bpf_timer_init(timer, (&raw const maps::CLOCK).cast_mut().cast(), CLOCK_MONOTONIC);
        let set = bpf_timer_set_callback(timer, tick as *mut c_void);
        if set != 0 {
            return set;
        }
        bpf_timer_start(timer, ROUND, 0)
    }
}

#[inline(never)]
extern "C" fn tick(_map: *mut c_void, _key: *mut u32, clock: *mut Clock) -> i32 {
    // SAFETY: takes nothing.
    let now = unsafe { aya_ebpf::helpers::bpf_ktime_get_ns() };
    let _ = round(now);
    let _ = settle_paths();
    let _ = relieve(now);
    // SAFETY: the timer that called.
    unsafe { bpf_timer_start(&raw mut (*clock).timer, ROUND, 0) };
    0
}

#[inline(always)]
fn round(now: u64) -> Option<()> {
    let may = liveness::open(&MapWatching, now)?;
    let peers = MapWatching.watch()?.peers & 0xff;
    // SAFETY: the callbacks take what the kernel gives them, and no context.
    unsafe { bpf_loop(peers, look as *mut c_void, core::ptr::null_mut(), 0) };
    liveness::judge(&MapWatching, may)?;
    // SAFETY: as above.
    unsafe { bpf_loop(peers, settle as *mut c_void, core::ptr::null_mut(), 0) };
    let standing = &MapWatching.pulse()?.standing;
    let me = maps::NODE.get(0)?.id;
    let place = maps::ALIVE.get_ptr_mut(0)?;
    let mut word = 0;
    while word < 4 {
        let own = if usize::from(me >> 6) == word { 1u64 << (me & 63) } else { 0 };
        let next = standing[word].load() | own;
        // SAFETY: a word of the map's value; whole-word accesses.
        unsafe {
            let place = (&raw mut (*place.cast::<AliveNodes>()).words).cast::<u64>().add(word);
            if place.read_volatile() != next {
                place.write_volatile(next);
            }
        }
        word += 1;
    }
    Some(())
}

/// Lowers a shed level that its agent has abandoned.
#[inline(always)]
fn relieve(now: u64) -> Option<()> {
    let node = maps::NODE.get_ptr_mut(0)?;
    // SAFETY: the map's value. Whoever else writes it sees to it that the level is right in the end.
    unsafe {
        let level = liveness::shed_level(&*node, MapWatching.condition()?, now);
        let place = &raw mut (*node).shed_level;
        if place.read_volatile() != level {
            place.write_volatile(level);
        }
    }
    Some(())
}

/// Goes on through the list of paths from where the last round ended.
#[inline(always)]
fn settle_paths() -> Option<()> {
    let rows = maps::LEG_RULES.get(0)?.paths & 0xffff;
    let pulse = MapWatching.pulse()?;
    if rows == 0 {
        return Some(());
    }
    if pulse.row.load() >= u64::from(rows) {
        pulse.row.store(0);
    }
    let count = if rows < PATHS_A_ROUND { rows } else { PATHS_A_ROUND };
    // SAFETY: the callback takes what the kernel gives it, and no context.
    unsafe { bpf_loop(count, settle_path as *mut c_void, core::ptr::null_mut(), 0) };
    let next = pulse.row.load() + u64::from(count);
    pulse.row.store(if next >= u64::from(rows) { next - u64::from(rows) } else { next });
    Some(())
}

#[inline(never)]
extern "C" fn settle_path(index: u32, _context: *mut c_void) -> i64 {
    let _ = settle_row(index & 0xffff);
    0
}

#[inline(always)]
fn settle_row(index: u32) -> Option<()> {
    let (pulse, rows) = (MapWatching.pulse()?, maps::LEG_RULES.get(0)?.paths);
    let row = pulse.row.load() as u32 + index;
    let row = if row >= rows { row - rows } else { row };
    paths::settle(&MapWatching, row, pulse.now.load(), pulse.may.load() != 0)
}

#[inline(never)]
extern "C" fn look(index: u32, _context: *mut c_void) -> i64 {
    let _ = liveness::look(&MapWatching, index & 0xff);
    0
}

#[inline(never)]
extern "C" fn settle(index: u32, _context: *mut c_void) -> i64 {
    let _ = liveness::settle(&MapWatching, index & 0xff);
    0
}
