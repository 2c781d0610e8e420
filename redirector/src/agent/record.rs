//! The record of the configuration in force, as the agent's one task writes it: behind a breaker, and by a thread that waits
//! for the disk in its stead.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::committed::{self, Committed};
use crate::breaker::Breaker;

/// How long a write is waited for.
const SOON: Duration = Duration::from_secs(1);

/// The record in a data directory.
pub(super) struct Record {
    data: PathBuf,
    disk: Arc<Breaker>,
    /// One at a time, so that an older one never comes last.
    writing: Option<Writing>,
}

struct Writing {
    what: Committed,
    until: Instant,
    written: oneshot::Receiver<io::Result<()>>,
}

impl Record {
    /// The record in this directory, behind this breaker.
    pub(super) fn new(data: &Path, disk: Arc<Breaker>) -> Self {
        Self { data: data.to_owned(), disk, writing: None }
    }

    /// Makes a configuration durable.
    ///
    /// # Errors
    /// Where the disk fails, or is left alone since it does: then the old record is still there. Where it takes its time
    /// ([`io::ErrorKind::TimedOut`]), nobody knows; the same one asked for again gets the result once it is there.
    pub(super) async fn commit(&mut self, committed: &Committed) -> io::Result<()> {
        loop {
            let writing = match &mut self.writing {
                Some(writing) => writing,
                none => none.insert(Writing::begin(&self.data, &self.disk, committed)?),
            };
            let Ok(written) = timeout_at(writing.until, &mut writing.written).await else {
                let says = format!("it has not answered within {SOON:?}, and may take the change yet");
                return Err(io::Error::new(io::ErrorKind::TimedOut, says));
            };
            let is_this = writing.what == *committed;
            self.writing = None;
            if is_this {
                return written.unwrap_or_else(|_| Err(io::Error::other("the thread that wrote has failed")));
            }
        }
    }
}

impl Writing {
    fn begin(data: &Path, disk: &Arc<Breaker>, what: &Committed) -> io::Result<Self> {
        let (tell, written) = oneshot::channel();
        let (data, disk, record) = (data.to_owned(), disk.clone(), what.clone());
        std::thread::Builder::new().name("record".into()).spawn(move || {
            // Who asked may have ended.
            let _ = tell.send(disk.call(|| committed::write(&data, &record)));
        })?;
        Ok(Self { what: what.clone(), until: Instant::now() + SOON, written })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::process::Command;

    use super::*;
    use crate::agent::node::DISK;
    use crate::journal::Journal;

    fn version(version: u64) -> Committed {
        Committed { version, file: 4, text: "[node]\nid = 1\n".to_owned(), agreed: false }
    }

    #[tokio::test]
    async fn a_disk_that_does_not_answer_is_not_waited_for_and_the_last_record_stays_the_last() {
        let data = std::env::temp_dir().join(format!("redirector-record-{}", std::process::id()));
        fs::create_dir_all(&data).unwrap();
        let mut record = Record::new(&data, Arc::new(Breaker::new("disk", DISK)));
        let on_disk = || committed::read(&data, &Journal::none()).unwrap();
        record.commit(&version(1)).await.unwrap();
        assert_eq!(on_disk(), Some(version(1)));

        // Where the next one is written first: who opens it waits for a reader.
        let stalls = data.join("committed.next");
        assert!(Command::new("mkfifo").arg(&stalls).status().unwrap().success());
        for _ in 0..2 {
            let late = record.commit(&version(2)).await.unwrap_err();
            assert_eq!(late.kind(), io::ErrorKind::TimedOut, "{late}");
        }
        let late = record.commit(&version(3)).await.unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut, "another one comes before it: {late}");
        assert_eq!(on_disk(), Some(version(1)));

        // The writer goes on, and fails: a pipe cannot be made durable.
        let reader = File::open(&stalls).unwrap();
        let answered = async {
            loop {
                match record.commit(&version(2)).await {
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => tokio::task::yield_now().await,
                    other => break other,
                }
            }
        };
        let failed = tokio::time::timeout(Duration::from_secs(30), answered).await.unwrap();
        assert!(failed.is_err());
        drop(reader);
        fs::remove_file(&stalls).unwrap();
        record.commit(&version(3)).await.unwrap();
        assert_eq!(on_disk(), Some(version(3)));
        fs::remove_dir_all(data).unwrap();
    }
}
