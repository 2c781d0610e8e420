//! Beats: the program takes, answers and refuses what the host's function does, and keeps the same of it.

use std::collections::HashSet;

use redirector::dataplane::liveness::LivenessTables as _;
use redirector::dataplane::memory::MemoryTables;
use redirector_ebpf::abi::PORTS;
use redirector_ebpf::beat::{Beat, Kind, WORDS};
use redirector_ebpf::reason::{Action, Reason};
use redirector_ebpf::tables::AliveNodes;
use redirector_ebpf::tables::liveness::{Heard, Vitals, Watch, link, state};
use suite::beat::{self, beat_of, packet, words};
use suite::generate::damage;
use suite::node::{self, Done, Family};
use suite::random::Random;

use super::kernel::Kernel;
use super::{NOT_ROOT, told};

const SEEDS: u64 = 4;
const BEATS: usize = 3_000;
const ME: u8 = 1;

/// Whoever sends beats to node 1.
struct Source {
    random: Random,
    /// The last request of each node.
    asked: [u64; 256],
    /// Frames of before, and whether they are as they should be.
    sent: Vec<(Vec<u8>, bool)>,
}

impl Source {
    /// The next frame, and whether headers and checksums are as they should be.
    fn frame(&mut self, host: &MemoryTables) -> (Vec<u8>, bool) {
        if !self.sent.is_empty() && self.random.once_in(5) {
            let recent = self.sent.len().min(40);
            return self.sent[self.sent.len() - 1 - self.random.below(recent)].clone();
        }
        let beat = self.beat(host);
        let family = self.random.pick(&[Family::V4, Family::V6]);
        let (from, tags) = (self.random.pick(&[2, 3, 4]), self.random.below(8));
        let packet = packet(family, from, ME, beat::bytes(&beat)).tags(&[12, 13][..tags.saturating_sub(5)]);
        let options = if family == Family::V4 && self.random.once_in(6) { 8 } else { 0 };
        let mut frame = packet.options(options).ttl(self.random.number() as u8).bytes();
        let sound = !self.random.once_in(5);
        if !sound {
            damage(&mut self.random, &mut frame);
        }
        self.sent.push((frame.clone(), sound));
        (frame, sound)
    }

    /// A beat that is mostly as it should be; what is not is sealed as well.
    fn beat(&mut self, host: &MemoryTables) -> Beat {
        let random = &mut self.random;
        let from = random.pick(&[2, 2, 2, 3, 3, 4, 4, 5, ME, 0, 255]);
        let watch = Watch {
            incarnation: random.pick(&[102, 102, 102, 102, 103, 104, 0]),
            boot_id: random.number(),
            key_ids: [random.pick(&[7, 7, 7, 9, 8]), 0],
            keys: [host.watch.keys[random.pick(&[0, 0, 0, 1])]; 2],
            ..host.watch
        };
        let watch = if watch.key_ids[0] == 9 { Watch { keys: [host.watch.keys[1]; 2], ..watch } } else { watch };
        let mut beat = Beat::default();
        let (cluster, target) = (random.pick(&[7, 7, 7, 7, 7, 7, 8]), random.pick(&[ME, ME, ME, ME, ME, ME, 2]));
        let sent = &host.sent[link(from, 0) as usize];
        let now = random.number();
        if random.once_in(2) {
            let asked = &mut self.asked[usize::from(from)];
            *asked += random.pick(&[1, 1, 1, 2, 0]);
            beat.set_head(&watch, cluster, Kind::Request, from, target);
            beat.set_turn(*asked, random.number(), 0, now);
        } else {
            let number = (sent.sequence.load() + 1).saturating_sub(random.pick(&[0, 1, 1, 1, 2, 3, 15, 16, 17, 18]));
            let asker = random.pick(&[host.watch.boot_id, host.watch.boot_id, host.watch.boot_id, 1]);
            beat.set_head(&watch, cluster, Kind::Answer, from, target);
            beat.set_turn(self.asked[usize::from(from)], sent.nonce_base.load() + number, asker, now);
        }
        // Mostly up to what may be.
        let mut upto =
            |most: usize| if random.once_in(20) { random.number() as u8 } else { random.below(most + 1) as u8 };
        let (state, health, load, shed) = (upto(3), upto(100), upto(100), upto(3));
        let vitals = Vitals { state, health, load, shed, agent_age: random.number() as u32 };
        let view = AliveNodes { words: std::array::from_fn(|_| random.number()) };
        beat.set_condition(vitals, [random.number(), random.number(), random.number()], &view);
        if random.once_in(12) {
            beat.words[random.below(WORDS)] ^= 1 << random.below(64);
        }
        beat.seal(&watch);
        beat
    }
}

/// A node that asks nodes 2, 3 and 4 over its first port.
fn host() -> MemoryTables {
    let mut host = beat::node(Family::V4, ME, &[2, 3, 4]);
    let vitals = Vitals { state: state::RETURNING, health: 77, load: 33, shed: 2, agent_age: 0 };
    host.condition.vitals.store(vitals.word());
    host.condition.applied.store(0x0102_0304_0506_0708);
    host.condition.slots.store(u64::MAX);
    host.condition.pools.store(1 << 63);
    host.image.alive.set(200, true);
    host
}

/// A frame's answer, but for the time, the agent's age, the tag and the checksum over them.
fn timeless(done: &Done, bytes: &[u8]) -> Vec<u8> {
    let udp = usize::from(done.journey.packet.l4);
    let mut bytes = bytes.to_vec();
    for (from, len) in [(6, 2), (8 + 48, 8), (8 + 84, 4), (8 + 120, 8)] {
        bytes[udp + from..][..len].fill(0);
    }
    bytes
}

/// What was heard, but for when: of times only whether there is one.
fn heard(heard: &Heard) -> Vec<u64> {
    let time = |at: usize| at == 3 || at >= 16;
    words(heard).into_iter().enumerate().map(|(at, word)| if time(at) { u64::from(word != 0) } else { word }).collect()
}

fn compare(host: &MemoryTables, kernel: &Kernel, counted: &mut [u64], frame: &[u8], sound: bool) -> Reason {
    let done = node::send(host, frame);
    let reason = done.verdict.reason;
    done.notes.iter().chain([&reason]).for_each(|reason| counted[*reason as usize] += 1);
    let (verdict, bytes) = kernel.run(frame);
    let expected = told(reason.action(), done.verdict.port == host.ingress);
    assert_eq!(verdict, expected, "`{}`: {frame:02x?}", reason.name());
    assert_eq!(kernel.counted(reason), counted[reason as usize], "`{}` is not its reason: {frame:02x?}", reason.name());
    if reason == Reason::BeatAnswered {
        assert_eq!(timeless(&done, &bytes), timeless(&done, &done.bytes), "{frame:02x?}");
        let payload = usize::from(done.journey.packet.l4) + 8;
        let word = |at: usize| u64::from_le_bytes(bytes[payload + at * 8..][..8].try_into().expect("eight bytes"));
        let answer = Beat { words: std::array::from_fn(word) };
        assert_eq!(answer.check(&host.watch, 7, answer.target()), Ok(()), "what its asker says of it");
        if sound {
            // With all checksums.
            assert_eq!(beat_of(&bytes), answer);
        }
    } else if reason.action() != Action::Drop {
        assert_eq!(bytes, done.bytes, "`{}`", reason.name());
    }
    for node in [0, 1, 2, 3, 4, 5, 255] {
        let (ours, kernels) = (beat::heard(host, node), kernel.liveness().heard(node, 0));
        assert_eq!(heard(kernels), heard(ours), "after `{}`, heard of node {node}: {frame:02x?}", reason.name());
    }
    reason
}

#[test]
fn the_program_takes_beats_as_the_host_does() {
    assert!(xtask::step::is_root(), "{NOT_ROOT}");
    let mut reached = HashSet::new();
    for seed in 0..SEEDS {
        let host = host();
        let kernel = Kernel::load(&node::configuration(ME), &host);
        let mut source = Source { random: Random::new(seed), asked: [30; 256], sent: Vec::new() };
        let mut counted = vec![0; Reason::ALL.len()];
        for _ in 0..BEATS {
            let (frame, sound) = source.frame(&host);
            reached.insert(compare(&host, &kernel, &mut counted, &frame, sound).name());
            if source.random.once_in(4) {
                let peer = source.random.pick(&[2, 3, 4]);
                let sent = &host.sent[link(peer, 0) as usize].sequence;
                sent.store(sent.load() + 1);
                kernel.liveness().sent(peer, 0).sequence.store(sent.load());
            }
            host.now.set(host.now.get() + 100_000);
        }
        for reason in Reason::ALL {
            assert_eq!(kernel.counted(*reason), counted[*reason as usize], "seed {seed}: `{}`", reason.name());
        }
        for (node, port) in (0..=u8::MAX).flat_map(|node| (0..PORTS as u8).map(move |port| (node, port))) {
            let ours = &host.heard[link(node, port) as usize];
            assert_eq!(
                heard(kernel.liveness().heard(node, port)),
                heard(ours),
                "seed {seed}: node {node}, port {port}"
            );
        }
    }
    for reason in Reason::ALL.iter().map(|reason| reason.name()).filter(|name| name.starts_with("beat-")) {
        assert!(reached.contains(reason), "no beat met `{reason}`");
    }
}
