use std::path::PathBuf;

use raft::Storage as _;

use super::*;
use crate::consensus::disk::Memory;
use crate::consensus::redb::File;
use crate::consensus::state::State;

const IDENTITY: Identity = Identity { cluster: 7, node: 3, disk: 99 };

fn entry(index: u64, term: u64) -> eraftpb::Entry {
    eraftpb::Entry { index, term, data: format!("entry {index}").into_bytes().into(), ..Default::default() }
}

fn snapshot(index: u64) -> Snapshot {
    Snapshot { term: 1, voters: vec![1, 2], learners: vec![], state: State { version: index, ..State::default() } }
}

fn hard_state(term: u64, vote: u64, commit: u64) -> HardState {
    HardState { term, vote, commit, ..Default::default() }
}

/// A log with a snapshot at 5 and entries up to 12, of which 9 are committed.
fn written<D: Disk>(disk: D) -> Log<D> {
    let mut log = Log::create(disk, IDENTITY).map_err(|(_, error)| error).unwrap();
    log.persist(Some(snapshot(5)), &[], Some(&hard_state(1, 0, 5))).unwrap();
    log.persist(None, &(6..=10).map(|index| entry(index, 1)).collect::<Vec<_>>(), None).unwrap();
    let rest: Vec<_> = (9..=12).map(|index| entry(index, 2)).collect();
    log.persist(None, &rest, Some(&hard_state(2, 8, 9))).unwrap();
    log
}

/// All that a log says.
fn content<D: Disk>(log: &Log<D>) -> (Identity, Position, Option<Snapshot>, Vec<eraftpb::Entry>) {
    (log.identity, log.position, log.snapshot.clone(), log.entries.values().cloned().collect())
}

fn open<D: Disk>(disk: D) -> Result<Opening<D>, OpenError> {
    Opening::of(disk, 7, 3)
}

/// Whether a disk that was damaged gives what was written, tells what is missing, or is given up; never anything else.
fn is_honest<D: Disk>(opening: Result<Opening<D>, OpenError>, good: &Log<Memory>) -> bool {
    match opening {
        Ok(Opening::There(log, damage)) => {
            let (identity, position, snapshot, entries) = content(&log);
            let all: Vec<u64> = log.entries.keys().chain(damage.entries.keys()).copied().collect();
            identity == good.identity
                && (position.term, position.vote) == (good.position.term, good.position.vote)
                && (snapshot == good.snapshot || snapshot.is_none() && damage.snapshot.is_some())
                && entries.iter().all(|entry| good.entries.get(&entry.index) == Some(entry))
                && damage.entries.iter().all(|(index, mark)| mark.term == good.term(*index).unwrap())
                && all.len() == (position.last - position.base.0) as usize
                && position.last == good.position.last
        }
        Ok(Opening::Lost(..)) => true,
        Ok(Opening::Unread(..) | Opening::Fresh(_)) | Err(_) => false,
    }
}

#[test]
fn what_is_written_is_read() {
    let log = written(Memory::default());
    let Ok(Opening::There(again, damage)) = open(log.disk.clone()) else { panic!() };
    assert!(damage.is_empty());
    assert_eq!(content(&again), content(&log));
    assert_eq!((again.term(8).unwrap(), again.term(9).unwrap(), again.term(5).unwrap()), (1, 2, 1));
    assert_eq!(again.initial_state().unwrap().hard_state, hard_state(2, 8, 9));
    assert!(again.entries(5, 7, None, GetEntriesContext::empty(false)).is_err());
    assert_eq!(again.entries(6, 9, None, GetEntriesContext::empty(false)).unwrap().len(), 3);
}

#[test]
fn any_flipped_byte_of_any_record_is_found() {
    let good = written(Memory::default());
    for (key, record) in &good.disk.records {
        for byte in 0..record.len() {
            let mut disk = good.disk.clone();
            disk.records.get_mut(key).unwrap()[byte] ^= 0x40;
            let opening = open(disk);
            match (&opening, key.0) {
                (Ok(Opening::Lost(..)), 1 | 2) => {}
                (Ok(Opening::There(_, damage)), 3) => assert_eq!(damage.snapshot, Some(5)),
                (Ok(Opening::There(_, damage)), 4) => assert!(damage.entries.keys().eq([&key.1])),
                (Ok(Opening::There(log, damage)), 5) => {
                    assert!(damage.is_empty());
                    assert_eq!(log.disk.records, good.disk.records, "a damaged mark is drawn anew");
                }
                _ => panic!("{key:?}"),
            }
            assert!(is_honest(opening, &good), "{key:?}");
        }
    }
}

#[test]
fn any_missing_record_is_found() {
    let good = written(Memory::default());
    for key in good.disk.records.keys() {
        let mut disk = good.disk.clone();
        disk.records.remove(key);
        assert!(is_honest(open(disk), &good), "{key:?}");
    }
    let mut disk = good.disk.clone();
    disk.records.remove(&key(Kind::Entry, 8));
    disk.records.remove(&key(Kind::Mark, 8));
    assert!(matches!(open(disk), Ok(Opening::Lost(..))), "nobody knows what was promised there");
}

#[test]
fn entries_before_the_snapshot_are_given_up_when_damaged() {
    let mut log = written(Memory::default());
    log.compact(snapshot(9)).unwrap();
    log.disk.records.get_mut(&key(Kind::Entry, 7)).unwrap()[20] ^= 1;
    let Ok(Opening::There(log, damage)) = open(log.disk) else { panic!() };
    assert!(damage.is_empty());
    assert_eq!((log.first_index().unwrap(), log.term(7).unwrap(), log.last_index().unwrap()), (8, 1, 12));
}

#[test]
fn others_disks_and_newer_formats_are_left_alone() {
    let log = written(Memory::default());
    assert!(matches!(Opening::of(log.disk.clone(), 7, 4), Err(OpenError::Foreign(IDENTITY))));
    assert!(matches!(Opening::of(log.disk.clone(), 8, 3), Err(OpenError::Foreign(IDENTITY))));
    let mut disk = log.disk;
    let record = disk.records.get_mut(&key(Kind::Position, 0)).unwrap();
    record[1] = 200;
    let body = record.len() - 4;
    let checksum = crc32c::crc32c(&record[..body]).to_le_bytes();
    record[body..].copy_from_slice(&checksum);
    let Err(error) = open(disk) else { panic!() };
    assert!(error.to_string().contains("format 200") && error.to_string().contains("upgrade this node"), "{error}");
}

#[test]
fn a_failed_write_changes_nothing_and_may_be_repeated() {
    let mut log = written(Memory::default());
    let before = (content(&log), log.disk.records.clone());
    log.disk.is_full = true;
    assert!(log.persist(None, &[entry(13, 2)], Some(&hard_state(3, 1, 9))).is_err());
    assert!(log.persist(Some(snapshot(20)), &[], None).is_err());
    assert!(log.compact(snapshot(9)).is_err());
    assert!(log.truncate(11).is_err());
    assert_eq!((content(&log), log.disk.records.clone()), before);
    log.disk.is_full = false;
    log.persist(None, &[entry(13, 2)], Some(&hard_state(3, 1, 9))).unwrap();
    assert_eq!(log.last_index().unwrap(), 13);
}

#[test]
fn a_peers_snapshot_leaves_what_follows_it() {
    let mut log = written(Memory::default());
    log.disk.records.get_mut(&key(Kind::Entry, 7)).unwrap()[20] ^= 1;
    log.disk.records.get_mut(&key(Kind::Entry, 11)).unwrap()[20] ^= 1;
    let Ok(Opening::There(mut log, mut damage)) = open(log.disk) else { panic!() };
    let before = damage.clone();
    log.disk.is_full = true;
    assert!(log.adopt(snapshot(8), &mut damage).is_err());
    assert_eq!(damage, before, "what was not written has made nothing good");
    log.disk.is_full = false;
    log.adopt(snapshot(8), &mut damage).unwrap();
    assert!(damage.entries.keys().eq([&11]));
    assert_eq!((log.first_index().unwrap(), log.last_index().unwrap()), (9, 12));
    log.restore((&entry(11, 2)).into()).unwrap();
    let Ok(Opening::There(again, damage)) = open(log.disk.clone()) else { panic!() };
    assert!(damage.is_empty());
    assert_eq!(content(&again), content(&log));
    assert_eq!(again.position.vote, 8, "the vote stays what it was");
}

/// A directory of a test's own, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("redirector-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_file_keeps_what_memory_keeps() {
    let scratch = Scratch::new("log-file");
    let path = scratch.0.join("consensus.redb");
    let good = written(Memory::default());
    let mut log = written(File::new(path.clone()));
    assert_eq!(log.disk.read().unwrap(), good.disk.records);
    drop(log);
    let Ok(Opening::There(again, damage)) = open(File::new(path.clone())) else { panic!() };
    assert!(damage.is_empty());
    assert_eq!(content(&again), content(&good));
    let mut disk = again.into_disk();
    disk.set_aside().unwrap();
    assert!(disk.read().unwrap().is_empty());
    assert!(path.with_extension("damaged").exists());
}

/// Flips bytes all over a file, as it is after an end in order and as a crash leaves it.
#[test]
fn a_damaged_file_is_never_read_as_something_else() {
    let scratch = Scratch::new("log-flips");
    let (path, copy) = (scratch.0.join("consensus.redb"), scratch.0.join("copy.redb"));
    let good = written(Memory::default());
    let log = written(File::new(path.clone()));
    let crashed = std::fs::read(&path).unwrap();
    drop(log);
    let ended = std::fs::read(&path).unwrap();
    let (mut whole, mut told, mut dishonest) = (0, 0, Vec::new());
    for bytes in [&ended, &crashed] {
        let used: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at] != 0).collect();
        let anywhere = used.iter().step_by(used.len() / 100 + 1).copied();
        let header = (0..320).step_by(8);
        let records = good.disk.records.values().flat_map(|record| {
            let places = bytes.windows(record.len()).enumerate().filter(|(_, window)| window == record);
            places.map(|(at, _)| at + record.len() / 2).collect::<Vec<_>>()
        });
        for at in anywhere.chain(header).chain(records) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x08;
            std::fs::write(&copy, &damaged).unwrap();
            let opening = open(File::new(copy.clone()));
            match &opening {
                Ok(Opening::There(log, damage)) if damage.is_empty() && log.position == good.position => whole += 1,
                _ => told += 1,
            }
            let says = match &opening {
                Ok(Opening::Unread(_, error)) => error.to_string(),
                Ok(Opening::There(log, damage)) => format!("{:?} {damage:?}", log.position),
                Ok(Opening::Fresh(_)) => "fresh".to_owned(),
                Ok(Opening::Lost(_, why)) => why.clone(),
                Err(error) => error.to_string(),
            };
            if !is_honest(opening, &good) {
                dishonest.push((at, says));
            }
        }
        for length in [0, 1, 100, 4096, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&copy, &bytes[..length]).unwrap();
            let opening = open(File::new(copy.clone()));
            let is_empty_file = length == 0 && matches!(opening, Ok(Opening::Fresh(_)));
            if !is_empty_file && !is_honest(opening, &good) {
                dishonest.push((length, "cut".to_owned()));
            }
        }
    }
    println!("{whole} flips were of no consequence, {told} were told of");
    assert_eq!(dishonest, []);
    assert!(told >= 2 * good.disk.records.len());
}

/// Needs the right to mount a small file system, and says so where it lacks it.
#[test]
fn a_full_file_system_is_an_error_until_there_is_room() {
    let scratch = Scratch::new("log-full");
    let directory = scratch.0.clone();
    let thread = std::thread::spawn(move || {
        if !mount_small(&directory) {
            println!("skipped: no right to mount a file system");
            return;
        }
        let filler = directory.join("filler");
        let mut log = written(File::new(directory.join("consensus.redb")));
        let mut ballast = vec![0u8; 64 << 20];
        while std::fs::write(&filler, &ballast).is_err() {
            ballast.truncate(ballast.len() - (64 << 10));
            if ballast.is_empty() {
                break;
            }
        }
        let big = eraftpb::Entry { index: 13, term: 2, data: vec![7; 3 << 20].into(), ..Default::default() };
        let error = log.persist(None, std::slice::from_ref(&big), None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
        assert_eq!(log.last_index().unwrap(), 12);
        std::fs::remove_file(&filler).unwrap();
        log.persist(None, std::slice::from_ref(&big), None).unwrap();
        let before = content(&log);
        drop(log);
        let Ok(Opening::There(again, _)) = open(File::new(directory.join("consensus.redb"))) else { panic!() };
        assert_eq!(content(&again), before);
    });
    thread.join().unwrap();
}

/// Mounts 16 MiB of memory at a directory, seen by this thread alone.
fn mount_small(directory: &std::path::Path) -> bool {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt as _;
    let target = CString::new(directory.as_os_str().as_bytes()).unwrap();
    let (kind, size) = (c"tmpfs", c"size=16m");
    // SAFETY: the strings outlive the calls, and a namespace of this thread's own leaves the others' mounts alone.
    unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(
                c"none".as_ptr(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            ) == 0
            && libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, size.as_ptr().cast()) == 0
    }
}
