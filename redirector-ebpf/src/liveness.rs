//! Who is alive? The rule by which the kernel's timer turns alive bits off, as functions of what was sent and heard.
//!
//! A peer is *silent* on a link when a multiplier of my own requests, sent at due spacing, are unanswered there, and falls
//! when it is silent on all its links, or when its incarnation has changed, since then what it knew is lost. No verdict is
//! passed in a round that comes late (answers may wait to be taken), while my own agent makes no progress, and, for the
//! time of one timeout, when most peers fall silent at once: that is more likely my own fault. Peers behind ports without a
//! carrier are not asked about: they fall at once, however many.
//!
//! Packets to a peer leave by the port that is first for it, or by another one where it answers while it is silent there.
//!
//! Off is latched: the agent alone lets a peer be alive again, by a new term, when the peer has the flows that it is to own.

use crate::abi::PORTS;
use crate::sync::Word;
use crate::tables::Node;
use crate::tables::liveness::{Admission, Condition, Heard, Latch, Pulse, Sent, Watch, Watched, link};

/// Nanoseconds between two rounds.
pub const ROUND: u64 = 1_000_000;

/// A round that comes later than this after the last one passes no verdict, nanoseconds.
pub const LATE: u64 = 4 * ROUND;

/// An agent that has given no sign of life for so long does not see what its shed level does any more, nanoseconds.
pub const ABANDONED: u64 = 5_000_000_000;

/// What the rule looks at.
pub trait Watching {
    /// By what rules.
    fn watch(&self) -> Option<&Watch>;
    /// This node's own condition.
    fn condition(&self) -> Option<&Condition>;
    /// The timer's state.
    fn pulse(&self) -> Option<&Pulse>;
    /// A peer, by its place in the list.
    fn watched(&self, index: u32) -> Option<&Watched>;
    /// What was sent on a link.
    fn sent(&self, link: u32) -> Option<&Sent>;
    /// What was heard on a link.
    fn heard(&self, link: u32) -> Option<&Heard>;
    /// The verdict on a node.
    fn latch(&self, node: u8) -> Option<&Latch>;
    /// The port that packets to a node leave by.
    fn way(&self, node: u8) -> Option<&Word>;
}

/// The shed level that holds: the agent's, or, where its last sign of life is too old, what is configured as the least. A load
/// that nobody measures any more must not keep users out.
#[inline(always)]
pub fn shed_level(node: &Node, condition: &Condition, now: u64) -> u8 {
    let is_abandoned = now.saturating_sub(condition.agent.load()) > ABANDONED;
    if is_abandoned && node.shed_level > node.shed_least { node.shed_least } else { node.shed_level }
}

/// Whether as many requests as count are unanswered on a link, and for as long as it takes.
#[inline(always)]
pub fn is_silent(watch: &Watch, sent: &Sent, heard: &Heard, now: u64) -> bool {
    if sent.down.load() != 0 {
        return true;
    }
    let (sequence, answered) = (sent.sequence.load(), heard.answered.load());
    let due = u64::from(watch.multiplier);
    if sequence < answered || sequence - answered < due || due == 0 {
        return false;
    }
    let (first, last) = (sent.time(answered + 1), sent.time(answered + due));
    now.saturating_sub(first) >= (due - 1) * watch.interval + watch.grace && now.saturating_sub(last) >= watch.grace
}

/// Opens a round: clears what belongs to one, and says whether verdicts may be passed in it so far.
#[inline(always)]
pub fn open<W: Watching>(watching: &W, now: u64) -> Option<bool> {
    let (watch, pulse, condition) = (watching.watch()?, watching.pulse()?, watching.condition()?);
    let last = pulse.last.load();
    let gap = now.saturating_sub(last);
    pulse.last.store(now);
    pulse.tick(now);
    pulse.rounds.store(pulse.rounds.load() + 1);
    pulse.alive.store(0);
    pulse.silent.store(0);
    let mut word = 0;
    while word < 4 {
        pulse.falling[word].store(0);
        pulse.standing[word].store(0);
        word += 1;
    }
    if last != 0 && gap > pulse.gap_max.load() {
        pulse.gap_max.store(gap);
    }
    if last == 0 || gap > LATE {
        pulse.late.store(pulse.late.load() + 1);
        pulse.hold_until.store(now + watch.interval);
    }
    let timeout = u64::from(watch.multiplier) * watch.interval;
    let stalled = now.saturating_sub(condition.sender.load()) > timeout;
    if stalled {
        pulse.frozen.store(pulse.frozen.load() + 1);
    }
    let may = !stalled && now >= pulse.hold_until.load();
    pulse.may.store(u64::from(may));
    Some(may)
}

/// Looks at a peer.
#[inline(always)]
pub fn look<W: Watching>(watching: &W, index: u32) -> Option<()> {
    let (watch, pulse) = (watching.watch()?, watching.pulse()?);
    let watched = watching.watched(index)?;
    let Admission { node, ports, first, term } = Admission::of(watched.word.load());
    if node == 0 || term == 0 || watching.latch(node)?.term.load() == u64::from(term) {
        return Some(());
    }
    let now = pulse.now.load();
    let (mut silent, mut way) = (true, first);
    // A word and no condition: one more would double what the verifier has to follow in each turn of the loop.
    let (mut lost, mut unplugged) = (false, 1);
    let mut port = 0;
    while port < PORTS as u8 {
        if ports >> port & 1 == 1 {
            let (sent, heard) = (watching.sent(link(node, port))?, watching.heard(link(node, port))?);
            let is_heard = !is_silent(watch, sent, heard, now);
            if is_heard && (silent || port == first) {
                way = port;
            }
            silent &= !is_heard;
            unplugged &= sent.down.load();
            let incarnation = heard.incarnation.load();
            lost |= incarnation != 0 && incarnation != watched.incarnation.load();
        }
        port += 1;
    }
    if unplugged == 0 {
        pulse.alive.store(pulse.alive.load() + 1);
        if silent {
            pulse.silent.store(pulse.silent.load() + 1);
        }
    }
    if silent || lost {
        set(&pulse.falling, node);
    }
    let place = watching.way(node)?;
    // What is right already is not touched, under packets that read it.
    if !silent && place.load() != u64::from(way) {
        place.store(u64::from(way));
    }
    Some(())
}

/// Whether this round's verdicts count, when all peers have been looked at.
#[inline(always)]
pub fn judge<W: Watching>(watching: &W, may: bool) -> Option<()> {
    let (watch, pulse) = (watching.watch()?, watching.pulse()?);
    let (alive, silent, now) = (pulse.alive.load(), pulse.silent.load(), pulse.now.load());
    let timeout = u64::from(watch.multiplier) * watch.interval;
    let alone = alive >= 2 && silent * 2 > alive;
    let mut verdict = may;
    if !alone {
        pulse.alone_since.store(0);
    } else {
        if pulse.alone_since.load() == 0 {
            pulse.alone_since.store(now);
        }
        if now.saturating_sub(pulse.alone_since.load()) < timeout {
            pulse.frozen.store(pulse.frozen.load() + 1);
            verdict = false;
        }
    }
    pulse.verdict.store(u64::from(verdict));
    Some(())
}

/// Settles a peer's bit: latched off if it fell and verdicts count.
#[inline(always)]
pub fn settle<W: Watching>(watching: &W, index: u32) -> Option<()> {
    let pulse = watching.pulse()?;
    let Admission { node, term, .. } = Admission::of(watching.watched(index)?.word.load());
    if node == 0 || term == 0 {
        return Some(());
    }
    let latch = watching.latch(node)?;
    if latch.term.load() == u64::from(term) {
        return Some(());
    }
    if pulse.verdict.load() != 0 && is_set(&pulse.falling, node) {
        latch.at.store(pulse.now.load());
        latch.term.store(u64::from(term));
        return Some(());
    }
    set(&pulse.standing, node);
    Some(())
}

/// A whole round as the timer makes it, but for its loops; gives the words of the alive bits, without this node's own.
pub fn round<W: Watching>(watching: &W, now: u64) -> Option<[u64; 4]> {
    let may = open(watching, now)?;
    let peers = watching.watch()?.peers;
    (0..peers).try_for_each(|index| look(watching, index))?;
    judge(watching, may)?;
    (0..peers).try_for_each(|index| settle(watching, index))?;
    let standing = &watching.pulse()?.standing;
    Some([standing[0].load(), standing[1].load(), standing[2].load(), standing[3].load()])
}

#[inline(always)]
fn set(words: &[crate::sync::Word; 4], node: u8) {
    let word = &words[usize::from(node >> 6)];
    word.store(word.load() | 1 << (node & 63));
}

#[inline(always)]
fn is_set(words: &[crate::sync::Word; 4], node: u8) -> bool {
    words[usize::from(node >> 6)].load() >> (node & 63) & 1 == 1
}
