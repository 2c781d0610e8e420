//! A file that is there while a guard has its node drain, for the next guard to know.
//!
//! It stands behind a breaker of the guard's own process, which tells of itself in the log: the agent neither reads the file
//! nor lists the breaker.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use crate::breaker::{Breaker, Policy};

const POLICY: Policy = Policy {
    failures: 3,
    window: Duration::from_secs(60),
    timeout: Duration::from_secs(10),
    patience: Duration::from_secs(5),
};

/// The file.
pub(super) struct Mark {
    path: PathBuf,
    is_there: AtomicBool,
    breaker: Breaker,
}

impl Mark {
    /// The file at a path, which may be there.
    pub(super) fn at(path: PathBuf) -> Self {
        let breaker = Breaker::new(path.display().to_string(), POLICY);
        Self { is_there: AtomicBool::new(path.exists()), path, breaker }
    }

    /// Whether it is there, as far as is known.
    pub(super) fn is_there(&self) -> bool {
        self.is_there.load(Relaxed)
    }

    /// Makes it unless it is there. To be called again and again while it should be: it may fail, or be left alone.
    pub(super) fn set(&self) {
        if self.is_there() {
            return;
        }
        let Ok(permit) = self.breaker.ask() else { return };
        let made = fs::write(&self.path, "");
        permit.told(&made);
        match made {
            Ok(()) => self.is_there.store(true, Relaxed),
            Err(error) => {
                let file = self.path.display();
                tracing::error!(%error, %file, "until it can be made, the next guard would not know that this node drains");
            }
        }
    }

    /// Removes it. Once, and so whatever the breaker says: nobody would try it again.
    pub(super) fn clear(&self) {
        self.is_there.store(false, Relaxed);
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let file = self.path.display();
                tracing::error!(%error, %file, "remove it, else the next guard puts this node back unasked");
            }
            _ => {}
        }
    }

    /// Finds out whether the disk has stalled, so that the log tells.
    pub(super) fn look(&self) {
        self.breaker.look();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::breaker::State;

    #[test]
    fn a_disk_that_fails_is_left_alone_and_the_file_is_made_when_it_works() {
        let directory = std::env::temp_dir().join(format!("redirector-mark-{}", std::process::id()));
        let path = directory.join("drains");
        let policy = Policy { timeout: Duration::from_secs(3600), ..POLICY };
        let mut mark = Mark { breaker: Breaker::new("mark", policy), ..Mark::at(path.clone()) };
        (0..5).for_each(|_| mark.set());
        let status = mark.breaker.status();
        assert_eq!((status.state, status.failed, status.refused), (State::Open, 3, 2));
        assert!(!mark.is_there());
        fs::create_dir_all(&directory).unwrap();
        mark.breaker = Breaker::new("mark", policy);
        (0..5).for_each(|_| mark.set());
        assert!(path.exists() && mark.is_there() && Mark::at(path.clone()).is_there());
        assert_eq!(mark.breaker.status().succeeded, 1, "it is there: the disk is left in peace");
        mark.clear();
        assert!(!path.exists() && !mark.is_there());
        fs::remove_dir(directory).unwrap();
    }
}
