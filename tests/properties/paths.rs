//! The rule by which paths' alive bits are written.

use std::cell::RefCell;

use redirector_ebpf::paths::{Judging, settle};
use redirector_ebpf::sync::Word;
use redirector_ebpf::tables::leg::{LegHeard, LegSent, NO_LEG, PathAdmission};
use redirector_ebpf::tables::liveness::{Latch, slot};
use redirector_ebpf::tables::path::alive;

const MS: u64 = 1_000_000;
const PATH: u16 = 5;
const LEG: u16 = 2;

#[derive(Default)]
struct World {
    rows: Vec<Word>,
    latches: Vec<Latch>,
    bits: Vec<Word>,
    sent: Vec<LegSent>,
    heard: Vec<LegHeard>,
    now: RefCell<u64>,
}

impl Judging for World {
    fn admission(&self, row: u32) -> Option<&Word> {
        self.rows.get(row as usize)
    }

    fn path_latch(&self, path: u16) -> Option<&Latch> {
        self.latches.get(usize::from(path))
    }

    fn path_bit(&self, path: u16) -> Option<&Word> {
        self.bits.get(usize::from(path))
    }

    fn leg_sent(&self, leg: u16) -> Option<&LegSent> {
        self.sent.get(usize::from(leg))
    }

    fn leg_heard(&self, leg: u16) -> Option<&LegHeard> {
        self.heard.get(usize::from(leg))
    }
}

impl World {
    /// One path, asked every 10 ms, that falls when three requests are unanswered.
    fn new(leg: u16, term: u32) -> Self {
        let world = Self {
            rows: (0..4).map(|_| Word::default()).collect(),
            latches: (0..8).map(|_| Latch::default()).collect(),
            bits: (0..8).map(|_| Word::default()).collect(),
            sent: (0..4).map(|_| LegSent::default()).collect(),
            heard: (0..4).map(|_| LegHeard::default()).collect(),
            now: RefCell::new(1_000 * MS),
        };
        world.rows[1].store(PathAdmission { path: PATH, leg, unplugged: false, term }.word());
        let sent = &world.sent[usize::from(LEG)];
        sent.interval.store(10 * MS);
        sent.grace.store(2 * MS);
        sent.multiplier.store(3);
        world
    }

    /// Lives for so long, and asks when it is due; `answers` says whether a request is answered. Gives the time at which the
    /// bit was off first.
    fn live(&self, ms: u64, may: bool, answers: impl Fn(u64) -> bool) -> Option<u64> {
        let (sent, heard) = (&self.sent[usize::from(LEG)], &self.heard[usize::from(LEG)]);
        let mut off = None;
        for _ in 0..ms {
            let now = *self.now.borrow() + MS;
            *self.now.borrow_mut() = now;
            if now.is_multiple_of(10 * MS) {
                let number = sent.sequence.load() + 1;
                slot(&sent.times, number).store(now);
                sent.sequence.store(number);
                if answers(number) {
                    heard.answered.store(number);
                }
            }
            settle(self, 1, now, may);
            if !self.alive() {
                off.get_or_insert(now);
            }
        }
        off
    }

    fn alive(&self) -> bool {
        self.bits[usize::from(PATH)].load() == alive::ON
    }
}

#[test]
fn a_path_falls_when_its_requests_go_unanswered_and_stays_down_in_its_term() {
    let world = World::new(LEG, 1);
    assert_eq!(world.live(100, true, |_| true), None, "all are answered");
    let last = *world.now.borrow();
    let off = world.live(100, true, |_| false).expect("it falls");
    // Three requests at 10, 20 and 30 ms, and what the last one's answer may take.
    assert_eq!((off - last) / MS, 32);
    assert!(world.live(100, true, |_| true).is_some() && !world.alive(), "off is latched, whatever is answered");
    world.rows[1].store(PathAdmission { path: PATH, leg: LEG, unplugged: false, term: 2 }.word());
    assert_eq!(world.live(100, true, |_| true), None, "let in again");
    assert!(world.alive());
}

#[test]
fn no_verdict_without_cause() {
    assert_eq!(World::new(LEG, 1).live(500, true, |_| false), None, "nothing was ever answered there");
    assert_eq!(World::new(NO_LEG, 1).live(500, true, |_| false), None, "no beats go there");
    for lost in [1, 2] {
        let world = World::new(LEG, 1);
        assert_eq!(world.live(2000, true, |number| number % 4 >= lost), None, "{lost} of four are lost");
    }
    let world = World::new(LEG, 1);
    world.live(50, true, |_| true);
    assert_eq!(world.live(500, false, |_| false), None, "no verdict may be passed");
    assert!(world.live(20, true, |_| false).is_some(), "and then it may");
}

#[test]
fn who_is_not_let_in_is_off_and_a_port_without_carrier_too() {
    let world = World::new(LEG, 0);
    assert!(world.live(20, true, |_| true).is_some() && !world.alive());
    for leg in [LEG, NO_LEG] {
        let world = World::new(leg, 1);
        world.live(50, true, |_| true);
        let row = PathAdmission { path: PATH, leg, unplugged: true, term: 1 };
        assert_eq!(PathAdmission::of(row.word()), row);
        world.rows[1].store(row.word());
        let now = *world.now.borrow();
        assert_eq!(world.live(5, true, |_| true), Some(now + MS), "at once");
        let word = || world.bits[usize::from(PATH)].load();
        assert_eq!(word(), alive::UNPLUGGED);
        world.rows[1].store(PathAdmission { unplugged: false, ..row }.word());
        assert!(
            world.live(5, true, |_| true).is_some() && word() == alive::OFF,
            "plugged in again, it is not let in yet"
        );
    }
    let (world, now) = (World::new(LEG, 1), 0);
    // Rows that hold nothing, and rows beyond the list.
    assert_eq!(settle(&world, 0, now, true), Some(()));
    assert_eq!(settle(&world, 99, now, true), None);
}
