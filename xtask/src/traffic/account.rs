//! A flow's answers, kept account of. Pure: answers and times go in, figures come out.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

/// What became of a flow of numbered datagrams. Times are in microseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlowReport {
    /// The client's end.
    pub source: SocketAddr,
    /// The VIP's end.
    pub target: SocketAddr,
    /// Datagrams sent.
    pub sent: u64,
    /// Those that came back, each counted once.
    pub answered: u64,
    /// Those that did not.
    pub lost: u64,
    /// Answers that came again.
    pub duplicated: u64,
    /// Answers that came after a later one.
    pub reordered: u64,
    /// Answers that nobody asked for, and errors that the socket was told.
    pub wrong: u64,
    /// The longest time between two answers, or from the last one to the last question.
    pub gap_max_us: u64,
    /// When that began, since the stream did.
    pub gap_at_us: u64,
    /// Answers per backend.
    pub backends: BTreeMap<String, u64>,
}

/// The account of one flow.
#[derive(Clone, Debug, Default)]
pub(super) struct Account {
    seen: Vec<bool>,
    answered: u64,
    duplicated: u64,
    reordered: u64,
    wrong: u64,
    last: Option<Duration>,
    gap: Duration,
    gap_at: Duration,
    backends: BTreeMap<String, u64>,
}

impl Account {
    /// Different datagrams that were answered.
    pub(super) fn answered(&self) -> u64 {
        self.answered
    }

    /// Takes an answer in that came at `at`, when `sent` datagrams had been sent: a backend's name, a space, and the
    /// datagram's number. Whether it was a new and a right one.
    pub(super) fn count(&mut self, answer: &[u8], at: Duration, sent: u64) -> bool {
        let answer = std::str::from_utf8(answer).unwrap_or_default();
        let parts = answer.split_once(' ').and_then(|(name, number)| Some((name, number.parse::<u64>().ok()?)));
        let Some((backend, number)) = parts.filter(|(_, number)| *number < sent) else {
            self.wrong += 1;
            return false;
        };
        let number = number as usize;
        if self.seen.get(number) == Some(&true) {
            self.duplicated += 1;
            return false;
        }
        if number < self.seen.len() {
            self.reordered += 1;
        } else {
            self.seen.resize(number + 1, false);
        }
        self.seen[number] = true;
        self.answered += 1;
        match self.backends.get_mut(backend) {
            Some(count) => *count += 1,
            None => drop(self.backends.insert(backend.to_owned(), 1)),
        }
        self.silent_until(at);
        self.last = Some(at);
        true
    }

    /// Takes in that the socket was told of an error.
    pub(super) fn error(&mut self) {
        self.wrong += 1;
    }

    fn silent_until(&mut self, at: Duration) {
        if let Some(last) = self.last
            && at.saturating_sub(last) > self.gap
        {
            (self.gap, self.gap_at) = (at - last, last);
        }
    }

    /// The figures of a flow of which `sent` datagrams were sent, from `begun` to `end`.
    pub(super) fn report(
        &self,
        ends: (SocketAddr, SocketAddr),
        sent: u64,
        begun: Duration,
        end: Duration,
    ) -> FlowReport {
        let mut account = self.clone();
        // What was never answered was silent from the start.
        account.last.get_or_insert(begun);
        account.silent_until(end);
        FlowReport {
            source: ends.0,
            target: ends.1,
            sent,
            answered: self.answered,
            lost: sent.saturating_sub(self.answered),
            duplicated: self.duplicated,
            reordered: self.reordered,
            wrong: self.wrong,
            gap_max_us: account.gap.as_micros() as u64,
            gap_at_us: account.gap_at.saturating_sub(begun).as_micros() as u64,
            backends: account.backends,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn report(account: &Account, sent: u64, end: Duration) -> FlowReport {
        let address = SocketAddr::from(([10, 0, 0, 1], 1));
        account.report((address, address), sent, Duration::ZERO, end)
    }

    #[test]
    fn every_fate_of_a_datagram_is_counted() {
        let mut account = Account::default();
        for (number, at, new) in [(0, 1, true), (1, 2, true), (1, 3, false), (4, 30, true), (3, 31, true)] {
            assert_eq!(account.count(format!("b1 {number}").as_bytes(), MS * at, 6), new, "{number}");
        }
        for wrong in ["b1 6", "b1 x", "b1", "", "b1 -1", "b1 99999999999999999999"] {
            assert!(!account.count(wrong.as_bytes(), MS * 32, 6), "{wrong}");
        }
        assert!(account.count(b"b2 5", MS * 33, 6));
        account.error();
        let report = report(&account, 6, MS * 34);
        assert_eq!((report.answered, report.lost, report.duplicated, report.reordered), (5, 1, 1, 1));
        assert_eq!((report.wrong, report.backends.len()), (7, 2));
        assert_eq!((report.gap_max_us, report.gap_at_us), (28_000, 2_000));
    }

    #[test]
    fn a_flow_that_falls_silent_is_silent_to_the_end() {
        let mut account = Account::default();
        account.count(b"b1 0", MS, 1);
        assert_eq!(report(&account, 9, MS * 100).gap_max_us, 99_000);
        assert_eq!(report(&Account::default(), 9, MS * 100).gap_max_us, 100_000);
        assert_eq!(report(&Account::default(), 9, MS * 100).lost, 9);
    }
}
