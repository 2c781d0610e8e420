//! The data directory, tried by a thread that may wait for it for ever.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::breaker::{Breakers, Policy};

/// How often it is tried.
const EVERY: Duration = Duration::from_millis(500);

/// Stands before the data directory as it is tried here. That it works again is to be noticed no later than that it does
/// not, so it is left alone for no longer than tries are apart anyway.
const POLICY: Policy =
    Policy { failures: 3, window: Duration::from_secs(60), timeout: EVERY, patience: Duration::from_secs(5) };

/// How the last tries went.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// When the one that is under way began.
    trying: Option<Instant>,
    /// How long the last one took; none if it failed.
    took: Option<Duration>,
    failure: Option<String>,
    /// Per cent of the file system that is free to root or not, whichever is less.
    free: f64,
}

/// The data directory's health, as it was tried last.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    seen: Arc<Mutex<Seen>>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    /// How long a write takes until it is durable, or has not been so far; none where it fails.
    pub(super) fsync: Option<Duration>,
    /// Per cent that is free.
    pub(super) free: f64,
    /// Why it failed.
    pub(super) failure: Option<String>,
}

impl Storage {
    /// Begins to try. The thread ends some time after the last of these has gone, unless it waits for the disk.
    pub(super) fn start(data: &Path, breakers: &Breakers) -> io::Result<Self> {
        let seen = Arc::new(Mutex::new(Seen { took: Some(Duration::ZERO), free: 100.0, ..Seen::default() }));
        let (weak, data) = (Arc::downgrade(&seen), data.to_owned());
        let breaker = breakers.breaker("storage probe", POLICY);
        std::thread::Builder::new().name("storage".into()).spawn(move || {
            while let Some(seen) = weak.upgrade() {
                if let Ok(permit) = breaker.ask() {
                    let begun = Instant::now();
                    lock(&seen).trying = Some(begun);
                    let tried = attempt(&data);
                    permit.told(&tried);
                    let mut seen = lock(&seen);
                    seen.trying = None;
                    match tried {
                        Ok(free) => (seen.took, seen.failure, seen.free) = (Some(begun.elapsed()), None, free),
                        Err(error) => (seen.took, seen.failure) = (None, Some(error.to_string())),
                    }
                }
                drop(seen);
                std::thread::sleep(EVERY);
            }
        })?;
        Ok(Self { seen })
    }

    pub(super) fn found(&self) -> Found {
        let Seen { trying, took, failure, free } = lock(&self.seen).clone();
        let waited = trying.map_or(Duration::ZERO, |since| since.elapsed());
        Found { fsync: took.map(|took| took.max(waited)), free, failure }
    }
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes some bytes and waits until they are durable; says how much is free. They are written beside the last ones, whose
/// place would be found again on a file system that is full.
fn attempt(data: &Path) -> io::Result<f64> {
    let (last, next): (PathBuf, PathBuf) = (data.join("health-probe"), data.join("health-probe.next"));
    let free = free(data)?;
    let written = File::create(&next).and_then(|mut file| {
        file.write_all(&[0x5a; 4096])?;
        file.sync_all()?;
        fs::rename(&next, &last)
    });
    if written.is_err() {
        // Others need the place; where it cannot be given back, the failure is told already.
        let _ = fs::remove_file(&next);
    }
    written.map(|()| free)
}

fn free(data: &Path) -> io::Result<f64> {
    let path = std::ffi::CString::new(data.as_os_str().as_bytes())?;
    let mut stats = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: a path that is ended by a zero, and a place for the answer, which is read only if the call fills it.
    let stats = unsafe {
        if libc::statvfs(path.as_ptr(), stats.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        stats.assume_init()
    };
    Ok(if stats.f_blocks == 0 { 100.0 } else { stats.f_bavail as f64 * 100.0 / stats.f_blocks as f64 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::breaker::State;

    #[test]
    fn a_directory_that_is_not_there_fails_and_one_that_is_does_not() {
        let data = std::env::temp_dir().join(format!("redirector-storage-{}", std::process::id()));
        assert!(attempt(&data).is_err());
        fs::create_dir_all(&data).unwrap();
        let free = attempt(&data).unwrap();
        assert!((0.0..=100.0).contains(&free), "{free}");
        let breakers = Breakers::default();
        let storage = Storage::start(&data, &breakers).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while storage.found().fsync == Some(Duration::ZERO) {
            assert!(Instant::now() < deadline, "it was never tried");
            std::thread::sleep(Duration::from_millis(10));
        }
        fs::remove_dir_all(&data).unwrap();
        while storage.found().failure.is_none() {
            assert!(Instant::now() < deadline, "nobody noticed that the directory is gone");
            std::thread::sleep(Duration::from_millis(10));
        }
        let state = || breakers.statuses().first().map(|one| one.state);
        while state() != Some(State::Open) {
            assert!(Instant::now() < deadline, "the breaker never opens");
            std::thread::sleep(Duration::from_millis(10));
        }
        fs::create_dir_all(&data).unwrap();
        while storage.found().failure.is_some() || state() != Some(State::Closed) {
            assert!(Instant::now() < deadline, "nobody noticed that the directory is back");
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(storage);
        fs::remove_dir_all(&data).unwrap();
    }
}
