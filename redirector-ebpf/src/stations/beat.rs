//! Station 2: is it a beat? Requests are answered here, whatever the agent does, so a node whose agent stalls or dies does
//! not look dead; and the answer says how old the agent's last sign of life is.
//!
//! Each kind of beat is taken once: requests by a number that only grows in a peer's incarnation, answers by the nonce of
//! one of the last requests and by this host's boot id. Nothing that an answer says is believed on the word of a request:
//! a peer's new incarnation is learnt from its answers alone, which nobody can have recorded before.

use crate::abi::BEAT_PORT;
use crate::beat::{BYTES, Beat, Kind, WORDS};
use crate::packet::headers::{Ethernet, Ipv4, Ipv6, Udp};
use crate::packet::{Frame, Packet, checksum, protocol};
use crate::reason::Reason;
use crate::tables::liveness::{REMEMBERED, Vitals, link, slot};
use crate::tables::{AliveNodes, Heard, Tables, Watch};

/// Whether a packet that is for no VIP claims to be a beat.
#[inline(always)]
pub fn is_beat<F: Frame>(frame: &F, packet: &Packet) -> bool {
    let at = usize::from(packet.l4);
    packet.tuple.protocol == protocol::UDP
        && !packet.is_fragment()
        && frame.read::<Udp>(at).is_some_and(|udp| udp.ports.dst == BEAT_PORT.to_be())
        && frame.read::<u64>(at + 8).is_some_and(|word| Beat::is_magic(u64::from_le(word)))
}

/// Takes a beat, or turns a request into its answer. `beat` is a place to work in.
#[inline(always)]
pub fn receive<F: Frame, T: Tables>(frame: &mut F, tables: &T, packet: &Packet, beat: &mut Beat) -> Reason {
    if !is_whole(frame, packet) || !read(frame, usize::from(packet.l4) + 8, beat) {
        return Reason::BeatMalformed;
    }
    match judge(tables, beat) {
        Reason::BeatAnswered => send_back(frame, tables, packet, beat),
        reason => reason,
    }
}

/// Bytes of a beat with its UDP header.
const UDP_BYTES: u16 = 8 + BYTES as u16;

/// Whether IP and UDP tell the length of a beat: an answer keeps what they tell.
#[inline(always)]
pub(crate) fn is_whole<F: Frame>(frame: &F, packet: &Packet) -> bool {
    let (l3, l4) = (usize::from(packet.l3), usize::from(packet.l4));
    l3 + usize::from(packet.l3_len) == l4 + usize::from(UDP_BYTES)
        && frame.read::<Udp>(l4).is_some_and(|udp| udp.len == UDP_BYTES.to_be())
}

/// Reads a beat's words.
#[inline(always)]
pub(crate) fn read<F: Frame>(frame: &F, payload: usize, beat: &mut Beat) -> bool {
    let mut i = 0;
    while i < WORDS {
        match frame.read(payload + i * 8) {
            Some(word) => beat.words[i] = u64::from_le(word),
            None => return false,
        }
        i += 1;
    }
    true
}

/// Takes a beat's words, or turns a request's into the answer's.
///
/// Not inlined, as the next: what they need of the stack is not the whole program's.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn judge<T: Tables>(tables: &T, beat: &mut Beat) -> Reason {
    match take(tables, beat) {
        Ok(reason) | Err(reason) => reason,
    }
}

#[inline(always)]
fn take<T: Tables>(tables: &T, beat: &mut Beat) -> Result<Reason, Reason> {
    if beat.is_path_answer() {
        return super::leg::take(tables, beat);
    }
    let node = tables.node().ok_or(Reason::NoTables)?;
    let watch = tables.watch().ok_or(Reason::NoTables)?;
    let (ingress, _) = tables.ingress().ok_or(Reason::NoTables)?;
    let link = link(beat.source(), ingress);
    let heard = tables.heard(link).ok_or(Reason::NoTables)?;
    let sent = tables.sent(link).ok_or(Reason::NoTables)?;
    // A node that this one does not ask on this port is no member of it. First of all, since before the agent has asked
    // anybody there may be no keys yet, and its members' beats are no forgeries.
    let own = sent.sequence.load();
    if own == 0 {
        return Err(Reason::BeatForeign);
    }
    beat.check(watch, node.cluster, node.id)?;
    let now = tables.fine_now();
    if beat.is_answer() {
        let number = beat.nonce().wrapping_sub(sent.nonce_base.load());
        let age = own.wrapping_sub(number);
        if age >= REMEMBERED as u64 || beat.asker() != watch.boot_id {
            return Err(Reason::BeatReplayed);
        }
        if !heard.answered.raise(number) {
            return Err(Reason::BeatReplayed);
        }
        slot(&heard.times, number).store(now);
        let incarnation = u64::from(beat.incarnation());
        if heard.incarnation.load() != incarnation {
            heard.asked.store(beat.sequence());
            heard.incarnation.store(incarnation);
        }
        note(heard, beat, now);
        return Ok(Reason::BeatTaken);
    }

    // A peer whose incarnation is not known yet is answered, and not believed. One of before was recorded, unless the peer's
    // clock went back and its disk is lost: then its answers tell soon.
    let (known, incarnation) = (heard.incarnation.load(), u64::from(beat.incarnation()));
    if incarnation < known {
        return Err(Reason::BeatReplayed);
    }
    if incarnation == known {
        if !heard.asked.raise(beat.sequence()) {
            return Err(Reason::BeatReplayed);
        }
        note(heard, beat, now);
    }
    answer(tables, watch, node.cluster, node.id, beat, own, now).ok_or(Reason::NoTables)?;
    Ok(Reason::BeatAnswered)
}

/// Takes note of what a beat says of its sender.
#[inline(always)]
fn note(heard: &Heard, beat: &Beat, now: u64) {
    heard.at.store(now);
    heard.vitals.store(beat.vitals().word());
    heard.boot_id.store(beat.boot_id());
    let [applied, slots, pools] = beat.tables();
    heard.applied.store(applied);
    heard.slots.store(slots);
    heard.pools.store(pools);
    let view = beat.view();
    heard.view[0].store(view[0]);
    heard.view[1].store(view[1]);
    heard.view[2].store(view[2]);
    heard.view[3].store(view[3]);
}

/// Turns a request into the answer to it.
#[inline(always)]
fn answer<T: Tables>(
    tables: &T,
    watch: &Watch,
    cluster: u32,
    me: u8,
    beat: &mut Beat,
    own: u64,
    now: u64,
) -> Option<()> {
    let condition = tables.condition()?;
    let alive: &AliveNodes = tables.alive()?;
    let (asker, nonce, boot_id) = (beat.source(), beat.nonce(), beat.boot_id());
    let mut vitals = Vitals::of(condition.vitals.load());
    vitals.agent_age = age_ms(condition.agent.load(), now);
    beat.set_head(watch, cluster, Kind::Answer, me, asker);
    beat.set_turn(own, nonce, boot_id, now);
    let said = [condition.applied.load(), condition.slots.load(), condition.pools.load()];
    beat.set_condition(vitals, said, alive);
    beat.seal(watch);
    Some(())
}

/// Whole milliseconds since `then`, bounded.
#[inline(always)]
pub fn age_ms(then: u64, now: u64) -> u32 {
    let age = now.saturating_sub(then) / 1_000_000;
    if age > 0xffff_ffff { u32::MAX } else { age as u32 }
}

/// Sends the frame back to where it came from, with this beat in it.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn send_back<F: Frame, T: Tables>(frame: &mut F, tables: &T, packet: &Packet, beat: &Beat) -> Reason {
    let Some((_, port)) = tables.ingress() else { return Reason::NoTables };
    match turn_round(frame, packet, port.mac, beat) {
        Some(()) => Reason::BeatAnswered,
        None => Reason::BeatMalformed,
    }
}

/// Turns a frame round, with this beat in it.
#[inline(always)]
pub(crate) fn turn_round<F: Frame>(frame: &mut F, packet: &Packet, own_mac: u64, beat: &Beat) -> Option<()> {
    let (l3, l4) = (usize::from(packet.l3), usize::from(packet.l4));
    let mut ethernet: Ethernet = frame.read(0)?;
    ethernet.dst = ethernet.src;
    ethernet.src = crate::packet::headers::Mac::from_word(own_mac);
    frame.write(0, ethernet)?;
    let mut sum;
    if packet.v6 {
        let mut ip: Ipv6 = frame.read(l3)?;
        (ip.src, ip.dst) = (ip.dst, ip.src);
        ip.hop_limit = 64;
        frame.write(l3, ip)?;
        sum = words_sum(&ip.src) + words_sum(&ip.dst);
    } else {
        let mut ip: Ipv4 = frame.read(l3)?;
        let old = u16::from_ne_bytes([ip.ttl, ip.protocol]);
        (ip.src, ip.dst) = (ip.dst, ip.src);
        ip.ttl = 64;
        ip.checksum = checksum::update(ip.checksum, old, u16::from_ne_bytes([ip.ttl, ip.protocol]));
        frame.write(l3, ip)?;
        sum = u64::from(ip.src) + u64::from(ip.dst);
    }
    let udp: Udp = frame.read(l4)?;
    let payload = l4 + 8;
    let mut i = 0;
    while i < WORDS {
        let word = beat.words[i].to_le();
        frame.write(payload + i * 8, word)?;
        sum += (word & 0xffff_ffff) + (word >> 32);
        i += 1;
    }
    let len = UDP_BYTES.to_be();
    let ports = crate::packet::headers::Ports { src: udp.ports.dst, dst: udp.ports.src };
    sum += u64::from(ports.src) + u64::from(ports.dst) + 2 * u64::from(len) + u64::from(17u16.to_be());
    frame.write(l4, Udp { ports, len, checksum: udp_checksum(sum) })
}

#[inline(always)]
fn words_sum(words: &[u32; 4]) -> u64 {
    words[0] as u64 + words[1] as u64 + words[2] as u64 + words[3] as u64
}

/// The checksum of a sum of 32-bit words; a sum of zero is sent as all ones (RFC 768).
#[inline(always)]
pub fn udp_checksum(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    match !checksum::fold(checksum::halves(sum as u32)) {
        0 => 0xffff,
        checksum => checksum,
    }
}
