//! Checksums against plain recomputation, flow entries against their fields.

use proptest::prelude::*;
use redirector_ebpf::packet::checksum;
use redirector_ebpf::stations::admit;
use redirector_ebpf::sync::Word;
use redirector_ebpf::tables::flow::{Entry, State, TAG_MAX};

/// RFC 1071, word by word.
fn plain(words: &[u16]) -> u16 {
    let mut sum: u64 = words.iter().map(|word| u64::from(*word)).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn states() -> impl Strategy<Value = State> {
    prop::sample::select(vec![
        State::Opening,
        State::Established,
        State::Closing,
        State::Datagrams,
        State::Other,
        State::FirstDatagram,
    ])
}

/// All checksums, with some TTLs and protocols: there is nothing else that it could depend on.
#[test]
fn a_checksum_after_a_hop_is_the_updated_one() {
    for (ttl, protocol) in [(2_u8, 6_u8), (64, 17), (255, 47), (1, 0)] {
        let (old, new) = (u16::from_ne_bytes([ttl, protocol]), u16::from_ne_bytes([ttl - 1, protocol]));
        for before in 0..=u16::MAX {
            assert_eq!(checksum::after_hop(before), checksum::update(before, old, new), "{before:#06x}, TTL {ttl}");
        }
    }
}

const SECOND: u64 = 1_000_000_000;

proptest! {
    #[test]
    fn an_updated_checksum_is_the_recomputed_one(
        mut words in prop::collection::vec(any::<u16>(), 2..40),
        at: prop::sample::Index,
        new: u16,
    ) {
        let at = at.index(words.len());
        let updated = checksum::update(plain(&words), words[at], new);
        words[at] = new;
        // Both forms of zero are the same sum; a header that is not all zeros never has the sum zero.
        prop_assert!(updated == plain(&words) || words.iter().all(|word| *word == 0));
    }

    #[test]
    fn sums_fold_to_the_plain_one(words in prop::collection::vec(any::<u32>(), 0..20)) {
        let sum = words.iter().map(|word| checksum::halves(*word)).sum();
        let halves: Vec<u16> = words.iter().flat_map(|word| [*word as u16, (*word >> 16) as u16]).collect();
        prop_assert_eq!(!checksum::fold(sum), plain(&halves));
    }

    #[test]
    fn an_entry_holds_what_was_put_in(
        tag in 0..=TAG_MAX,
        backend in 1u16..=0x7fff,
        state in states(),
        ambiguous: bool,
        now in 0u64..1 << 60,
    ) {
        let first = Entry::first(tag, backend, state, ambiguous, now);
        let fields = |entry: Entry| (entry.tag(), entry.backend(), entry.state(), entry.ambiguous(), entry.proven());
        prop_assert_eq!(fields(first), (tag, backend, state, ambiguous, false));
        prop_assert_eq!(first.idle(now), 0);
        prop_assert!(!first.is_empty());
        prop_assert_eq!(fields(first.marked_ambiguous()), (tag, backend, state, true, false));
        let other = !backend & 0x7fff;
        prop_assert_eq!(fields(first.with_backend(other)), (tag, other, state, ambiguous, false));
        for (next, proven) in [(State::Closing, true), (State::Datagrams, false)] {
            prop_assert_eq!(fields(first.touched(next, proven, now)), (tag, backend, next, ambiguous, proven));
        }
    }

    /// The stamp counts 8,192 units: milliseconds before, seconds after a flow is proven. The last 64 are of packets that came
    /// after the time was read.
    #[test]
    fn an_entry_expires_when_its_state_s_time_is_over(
        state in states(),
        now in 1u64 << 40..1 << 60,
        limit in 1u16..=7_200,
        idle in 0u64..8_127,
    ) {
        let limits = [limit; 8];
        let proven = Entry::first(1, 1, state, false, now).touched(state, true, now);
        let later = now + idle * SECOND;
        // A stamp says the second in which the packet came, so an idle time is right to one second.
        let shown = proven.idle(later);
        prop_assert!(shown == idle || shown == idle + 1 || shown + 1 == idle, "{} for {}", shown, idle);
        prop_assert_eq!(proven.expired(&limits, later), shown > u64::from(limit));
        let unproven = Entry::first(1, 1, state, false, now);
        let later = now + idle * 1_000_000;
        prop_assert_eq!(unproven.expired(&limits, later), unproven.idle(later) / 1_000 > u64::from(limit));
        prop_assert!(idle <= 1_000 || !unproven.expired(&[8; 8], later), "within its time");
    }

    /// In any window, no more than the rate and one burst.
    #[test]
    fn a_budget_lets_through_its_rate(rate in 1u32..100_000, gaps in prop::collection::vec(0u64..50_000_000, 1..400)) {
        let budget = Word::new(0);
        let (start, mut now) = (SECOND, SECOND);
        let mut spent = 0u64;
        for gap in gaps {
            now += gap;
            spent += u64::from(admit::spend(Some(&budget), rate, now));
        }
        // Besides its rate a budget has a burst of a tenth of a second, or of one.
        let most = (now - start) * u64::from(rate) / SECOND + u64::from(rate) / 10 + 2;
        prop_assert!(spent >= 1 && spent <= most, "{} spent, {} allowed", spent, most);
    }
}

#[test]
fn classes_are_shed_from_the_lowest() {
    for level in 0..=3 {
        let refused: Vec<u8> = (0..=3).filter(|class| admit::is_shed(*class, level)).collect();
        assert_eq!(refused, (4 - level.min(3)..=3).collect::<Vec<u8>>(), "level {level}");
    }
}
