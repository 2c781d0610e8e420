//! Records on a real disk, in one `redb` file.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use redb::{Database, ReadableDatabase as _, ReadableTable as _, StorageError, TableDefinition, TableError};

use super::disk::{Batch, Disk, Key};

const RECORDS: TableDefinition<'_, Key, &[u8]> = TableDefinition::new("records");

/// Bytes that `redb` may hold in memory: the log is held by its reader already.
const CACHE: usize = 1 << 20;

/// A file of records.
pub struct File {
    path: PathBuf,
    /// None until it is first used, and after a failure: `redb` takes no more writes then until it is opened anew.
    database: Option<Database>,
}

impl File {
    /// The file at a path; it is made when it is first read or written.
    pub fn new(path: PathBuf) -> Self {
        Self { path, database: None }
    }

    /// Works on the open database. After any failure it is closed.
    fn with<T>(&mut self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> io::Result<T> {
        let database = match self.database.take() {
            Some(database) => database,
            None => caught(|| open(&self.path)).map_err(|error| self.named(error))?,
        };
        let done = caught(|| work(&database));
        match &done {
            Ok(_) => self.database = Some(database),
            Err(_) => close(database),
        }
        done.map_err(|error| self.named(error))
    }

    fn named(&self, error: io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}: {error}", self.path.display()))
    }
}

fn open(path: &PathBuf) -> Result<Database, redb::Error> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(StorageError::from)?;
    }
    Ok(Database::builder().set_cache_size(CACHE).create(path)?)
}

/// `redb` panics on some damaged files; here that is damage like any other.
fn caught<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> io::Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(redb::Error::Io(error))) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
        Ok(Err(error @ (redb::Error::DatabaseAlreadyOpen | redb::Error::UpgradeRequired(_)))) => {
            Err(io::Error::other(error))
        }
        Ok(Err(error)) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        Err(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "the file is damaged")),
    }
}

/// Closing writes too, and may meet damage; the next opening tells of it.
fn close(database: Database) {
    let _ = caught(|| {
        drop(database);
        Ok(())
    });
}

impl Drop for File {
    fn drop(&mut self) {
        self.database.take().into_iter().for_each(close);
    }
}

impl Disk for File {
    fn read(&mut self) -> io::Result<BTreeMap<Key, Vec<u8>>> {
        self.with(|database| {
            let reading = database.begin_read()?;
            let table = match reading.open_table(RECORDS) {
                Err(TableError::TableDoesNotExist(_)) => return Ok(BTreeMap::new()),
                table => table?,
            };
            let mut records = BTreeMap::new();
            for record in table.iter()? {
                let (key, bytes) = record?;
                records.insert(key.value(), bytes.value().to_vec());
            }
            Ok(records)
        })
    }

    fn write(&mut self, batch: &Batch) -> io::Result<()> {
        self.with(|database| {
            let mut writing = database.begin_write()?;
            // In one phase a crash could bring back the commit before the last, and with it an older vote.
            writing.set_two_phase_commit(true);
            {
                let mut table = writing.open_table(RECORDS)?;
                for range in &batch.drops {
                    table.retain_in(range.clone(), |_, _| false)?;
                }
                for (key, bytes) in &batch.puts {
                    table.insert(key, bytes.as_slice())?;
                }
            }
            writing.commit()?;
            Ok(())
        })
    }

    fn set_aside(&mut self) -> io::Result<()> {
        self.database.take().into_iter().for_each(close);
        match fs::rename(&self.path, self.path.with_extension("damaged")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.named(error)),
            _ => Ok(()),
        }
    }
}
