//! Beats to the far ends of paths: answered by whoever runs there, and taken once by whoever asked.

use redirector_ebpf::beat::{Beat, Kind};
use redirector_ebpf::reason::Reason;
use suite::backend::{Backend, NOW, PATH_KEY};
use suite::beat::beat_of;
use suite::decode::decode;
use suite::leg::{Carried, ask, frame, node};
use suite::node::{Family, mac, send};

const ALL: [Carried; 3] = [Carried::Plain, Carried::Ipip, Carried::Gue];
const LEG: u32 = 3;

#[test]
fn a_request_is_answered_through_any_tunnel_and_its_answer_taken_once() {
    for family in [Family::V4, Family::V6] {
        for carried in ALL {
            let tables = node(family);
            let request = ask(&tables, LEG);
            let (reason, answered) = Backend::default().run(&frame(family, carried, &request));
            assert_eq!(reason, Reason::BeatAnswered, "{family:?} {carried:?}");
            let seen = decode(&answered);
            assert_eq!((seen.from, seen.to, seen.ips.len()), (mac(9, 0), mac(1, 0), 1), "{family:?} {carried:?}");
            let answer = beat_of(&answered);
            assert!(answer.check_path(&PATH_KEY, 5, tables.image.node.cluster, Kind::PathAnswer).is_ok());
            assert_eq!((answer.leg(), answer.nonce(), answer.asker()), (LEG, request.nonce(), tables.watch.boot_id));
            assert_eq!((answer.boot_id(), answer.words[6], answer.target()), (0xb00d, NOW, 1));

            assert_eq!(send(&tables, &answered).verdict.reason, Reason::BeatTaken, "{family:?} {carried:?}");
            let heard = &tables.leg_heard[LEG as usize];
            assert_eq!((heard.answered.load(), heard.at.load(), heard.boot_id.load()), (1, tables.now.get(), 0xb00d));
            assert_eq!(send(&tables, &answered).verdict.reason, Reason::BeatReplayed, "again");
        }
    }
}

/// What a far end makes of a request that was bent.
fn asked(bend: impl Fn(&mut Beat), seal: [u64; 2]) -> Reason {
    let tables = node(Family::V4);
    let mut request = ask(&tables, LEG);
    bend(&mut request);
    request.seal_with(&seal);
    Backend::default().run(&frame(Family::V4, Carried::Ipip, &request)).0
}

#[test]
fn far_ends_answer_their_cluster_alone() {
    assert_eq!(asked(|_| (), PATH_KEY), Reason::BeatAnswered);
    assert_eq!(asked(|_| (), [1, 2]), Reason::BeatTag, "another key");
    assert_eq!(asked(|beat| beat.words[0] ^= 1 << 48, PATH_KEY), Reason::BeatTag, "another key's number");
    assert_eq!(asked(|beat| beat.words[0] ^= 1 << 16, PATH_KEY), Reason::BeatVersion);
    assert_eq!(asked(|beat| beat.words[1] ^= 1, PATH_KEY), Reason::BeatForeign);
    assert_eq!(asked(|beat| beat.answer_path(1, 1), PATH_KEY), Reason::BeatMalformed, "an answer, not a request");
    assert_eq!(asked(|beat| beat.words[7] |= 1 << 40, PATH_KEY), Reason::BeatMalformed);

    let request = ask(&node(Family::V4), LEG);
    let stranger = Backend { sources: Vec::new(), ..Backend::default() };
    for carried in ALL {
        assert_eq!(stranger.run(&frame(Family::V4, carried, &request)).0, Reason::TunnelUnknownSource, "{carried:?}");
    }
    let mut silent = Backend::default();
    silent.settings.key_id = 0;
    assert_eq!(silent.run(&frame(Family::V4, Carried::Ipip, &request)).0, Reason::TunnelNotVip);
    let plain = frame(Family::V4, Carried::Plain, &request);
    assert_eq!(silent.run(&plain), (Reason::NotOurs, plain), "without a key it is left to the kernel");
    for carried in ALL {
        let whole = frame(Family::V4, carried, &request);
        for len in 14..whole.len() {
            let (reason, _) = Backend::default().run(&whole[..len]);
            assert_ne!(reason, Reason::BeatAnswered, "{carried:?} cut off at {len}");
        }
    }
}

#[test]
fn answers_count_by_nonce_leg_and_boot() {
    let tables = node(Family::V4);
    let answer_to = |request: &Beat| Backend::default().run(&frame(Family::V4, Carried::Plain, request)).1;
    let taken = |frame: &[u8]| send(&tables, frame).verdict.reason;
    let first = answer_to(&ask(&tables, LEG));
    // So many requests later it is too old.
    for _ in 0..16 {
        ask(&tables, LEG);
    }
    assert_eq!(taken(&first), Reason::BeatReplayed, "an answer that is too old");
    let mut early = ask(&tables, LEG);
    (early.words[3], early.words[4]) = (early.words[3] + 1, early.words[4] + 1);
    early.seal_with(&PATH_KEY);
    assert_eq!(taken(&answer_to(&early)), Reason::BeatReplayed, "an answer to what was not asked yet");
    let mut other = ask(&tables, LEG);
    other.words[2] += 1;
    other.seal_with(&PATH_KEY);
    assert_eq!(taken(&answer_to(&other)), Reason::BeatReplayed, "an answer to another boot");
    let mut beyond = ask(&tables, LEG);
    beyond.words[7] = 4096;
    beyond.seal_with(&PATH_KEY);
    assert_eq!(taken(&answer_to(&beyond)), Reason::BeatForeign, "a leg that there is not");
    let mut another = ask(&tables, LEG);
    another.words[0] ^= 3 << 32;
    another.seal_with(&PATH_KEY);
    assert_eq!(taken(&answer_to(&another)), Reason::BeatForeign, "an answer for another node");
    assert_eq!(tables.leg_heard[LEG as usize].answered.load(), 0);
    assert_eq!(taken(&answer_to(&ask(&tables, LEG))), Reason::BeatTaken);
}
