use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use super::*;
use crate::breaker::Policy;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("redirector-journal-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn log(&self) -> PathBuf {
        self.0.join("incidents.log")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn told(data: &Scratch) -> Vec<String> {
    let words = |entry| match entry {
        Entry::Incident(incident) => incident.what,
        Entry::Damaged { line, damage, .. } => format!("{line}: {damage}"),
    };
    read(&data.0).unwrap().into_iter().map(words).collect()
}

/// One that is tried again soon.
fn start(data: &Scratch) -> Journal {
    let time = Duration::from_millis(10);
    let policy = Policy { failures: 1, window: time, timeout: time, patience: Duration::from_secs(60) };
    Journal::start(&data.0, Arc::new(Breaker::new("journal", policy)))
}

fn noted(data: &Scratch, whats: &[&str]) {
    let journal = start(data);
    whats.iter().for_each(|what| journal.note(Kind::Peer, Some(3), *what));
    journal.flush();
}

#[test]
fn what_is_noted_is_read_over_restarts() {
    let data = Scratch::new("kept");
    assert_eq!(told(&data), [""; 0]);
    noted(&data, &["one", "two\nlines"]);
    noted(&data, &["three"]);
    assert_eq!(told(&data), ["one", "two\nlines", "three"]);
    let Entry::Incident(first) = &read(&data.0).unwrap()[0] else { panic!("it is damaged") };
    assert_eq!((first.kind, first.node), (Kind::Peer, Some(3)));
    assert!(first.at_ms > 0 && first.uptime_ms > 0);
}

#[test]
fn a_torn_end_costs_one_record() {
    let data = Scratch::new("torn");
    noted(&data, &["one", "two"]);
    let whole = fs::read(data.log()).unwrap();
    let second = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for cut in second + 1..whole.len() {
        fs::write(data.log(), &whole[..cut]).unwrap();
        noted(&data, &["three"]);
        let told = told(&data);
        assert_eq!((told.len(), told[0].as_str(), told[2].as_str()), (3, "one", "three"), "cut at {cut}: {told:?}");
        // The last byte is the end of the line, without which the record is whole.
        assert!(told[1].starts_with("2: it is ") || cut + 1 == whole.len(), "cut at {cut}: {told:?}");
    }
}

#[test]
fn any_flipped_bit_is_told() {
    let data = Scratch::new("flipped");
    noted(&data, &["one", "two", "three"]);
    let whole = fs::read(data.log()).unwrap();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 7);
        fs::write(data.log(), &damaged).unwrap();
        let told = told(&data);
        assert!(told.iter().any(|line| line.contains(": it is ")), "byte {at} was flipped, and it says {told:?}");
        let whole = ["one", "two", "three"].iter().filter(|what| told.iter().any(|line| line == *what)).count();
        // An end of line that is none any more takes two with it.
        assert!(whole >= 1, "byte {at} was flipped, and it says {told:?}");
    }
}

#[test]
fn its_size_is_bounded() {
    let data = Scratch::new("bounded");
    let mut file = file::File::new(&data.0);
    let incident = Incident::now(Kind::Own, None, "x".repeat(5000));
    let batch = vec![incident; 100];
    for _ in 0..40 {
        file.append(&batch).unwrap();
    }
    let sizes: Vec<u64> = fs::read_dir(&data.0).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).collect();
    assert_eq!(sizes.len(), 2);
    assert!(sizes.iter().all(|size| *size < (1 << 20) + 200_000), "{sizes:?}");
    assert!(told(&data).iter().all(|what| what.len() == 1000));
}

#[test]
fn what_a_disk_does_not_take_is_held_up_to_a_bound_and_counted_beyond() {
    let data = Scratch::new("failing");
    fs::create_dir(data.log()).unwrap();
    let journal = start(&data);
    let until = Instant::now() + Duration::from_secs(30);
    let wait_until = |what: &str, holds: &dyn Fn() -> bool| {
        while !holds() {
            assert!(Instant::now() < until, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    journal.note(Kind::Own, None, "0");
    wait_until("nobody takes the first", &|| journal.inputs.as_ref().is_some_and(Sender::is_empty));
    (1..WAITING + 8).for_each(|at| journal.note(Kind::Own, None, at.to_string()));
    fs::remove_dir(data.log()).unwrap();
    wait_until("what was held is never written", &|| journal.counts.waiting.load(Relaxed) == 0);
    journal.note(Kind::Own, None, "the last");
    journal.flush();
    let held = (0..=WAITING).map(|at| at.to_string());
    let expected: Vec<_> = held.chain(["7 incidents before this were not kept".into(), "the last".into()]).collect();
    assert_eq!(told(&data), expected);
}

#[test]
fn a_newer_format_is_told_apart_from_damage() {
    let data = Scratch::new("newer");
    noted(&data, &["one"]);
    let text = fs::read_to_string(data.log()).unwrap();
    fs::write(data.log(), text.replacen("1 ", "2 ", 1)).unwrap();
    assert_eq!(told(&data), ["1: it is of format 2, and this version knows 1 alone"]);
}
