//! What is committed on disk: the configuration in force and its version. Written whole beside the old one and then put
//! in its place, with a checksum; a damaged record is set aside and told of, never used.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::journal::{Journal, Kind};

/// The record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Committed {
    /// Goes up by one with each change.
    pub(super) version: u64,
    /// Digest of the file that `run` was last given, to see whether it was edited since.
    pub(super) file: u64,
    /// The configuration's text.
    pub(super) text: String,
    /// Whether a cluster has agreed on it: then the version is the cluster's, and of the text only what all nodes have in
    /// common counts.
    #[serde(default)]
    pub(super) agreed: bool,
}

/// Its form on disk.
#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    checksum: u32,
    record: Committed,
}

const FORMAT: u32 = 1;

/// The format alone: whatever a newer version puts beside it.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

fn path(data: &Path) -> PathBuf {
    data.join("committed.json")
}

fn checksum(record: &Committed) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&record.version.to_le_bytes());
    hasher.update(&record.file.to_le_bytes());
    hasher.update(record.text.as_bytes());
    if record.agreed {
        hasher.update(b"agreed");
    }
    hasher.finalize()
}

/// The digest of a file's text.
pub(super) fn digest(text: &str) -> u64 {
    siphasher::sip::SipHasher24::new_with_keys(0, 0).hash(text.as_bytes())
}

/// Reads the record; none if there is none or it is damaged.
///
/// # Errors
/// Where the disk fails, or a newer version wrote the record: then it is left as it is.
pub(super) fn read(data: &Path, journal: &Journal) -> io::Result<Option<Committed>> {
    let path = path(data);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if let Ok(Format { format }) = serde_json::from_slice(&bytes)
        && format > FORMAT
    {
        let says = format!(
            "{} is of format {format}, and this version knows formats up to {FORMAT}: upgrade this node",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::Unsupported, says));
    }
    match serde_json::from_slice::<Stored>(&bytes) {
        Ok(Stored { format: FORMAT, checksum: sum, record }) if sum == checksum(&record) => Ok(Some(record)),
        _ => {
            let aside = path.with_extension("damaged");
            tracing::error!(file = %path.display(), aside = %aside.display(), "the committed record is damaged: set aside");
            journal.note(Kind::Damage, None, "the committed configuration's record is damaged: it is set aside");
            fs::rename(&path, aside)?;
            Ok(None)
        }
    }
}

/// Writes the record so that after a crash there is the old one or the new one.
///
/// # Errors
/// Where the disk fails; then the old record is still there.
pub(super) fn write(data: &Path, record: &Committed) -> io::Result<()> {
    fs::create_dir_all(data)?;
    let stored = Stored { format: FORMAT, checksum: checksum(record), record: record.clone() };
    let next = path(data).with_extension("next");
    let mut file = File::create(&next)?;
    file.write_all(&serde_json::to_vec(&stored)?)?;
    file.sync_all()?;
    fs::rename(&next, path(data))?;
    File::open(data)?.sync_all()
}

/// A number that is greater than all that it gave before on this host: seconds of the clock, which may have been set back.
///
/// # Errors
/// Where the disk fails.
pub(super) fn next_incarnation(data: &Path) -> io::Result<u32> {
    let path = data.join("incarnation");
    let last = match fs::read_to_string(&path) {
        // What is damaged is as good as lost: then the clock alone counts.
        Ok(text) => text.trim().parse().unwrap_or(0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0u32,
        Err(error) => return Err(error),
    };
    let clock = std::time::UNIX_EPOCH.elapsed().map_or(1, |time| time.as_secs() as u32);
    let next = clock.max(last.saturating_add(1));
    fs::create_dir_all(data)?;
    let beside = path.with_extension("next");
    let mut file = File::create(&beside)?;
    file.write_all(next.to_string().as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, &path)?;
    Ok(next)
}

/// The cluster's key where the configuration has none: drawn once and kept.
///
/// # Errors
/// Where the disk fails, or the kept key is not one.
pub(super) fn own_key(data: &Path) -> io::Result<[u8; 16]> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = data.join("key");
    match fs::read(&path) {
        Ok(bytes) => bytes.try_into().map_err(|_| {
            let says =
                format!("{} is not 16 bytes long; remove it and `redirector unload` to start anew", path.display());
            io::Error::new(io::ErrorKind::InvalidData, says)
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut key = [0; 16];
            getrandom::fill(&mut key).map_err(io::Error::other)?;
            fs::create_dir_all(data)?;
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(&key)?;
            file.sync_all()?;
            Ok(key)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Committed {
        Committed { version: 3, file: 4, text: "[node]\nid = 1\n".to_owned(), agreed: true }
    }

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("redirector-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn what_is_written_is_read() {
        let data = scratch("committed");
        assert_eq!(read(&data, &Journal::none()).unwrap(), None);
        write(&data, &record()).unwrap();
        assert_eq!(read(&data, &Journal::none()).unwrap(), Some(record()));
        fs::remove_dir_all(data).unwrap();
    }

    #[test]
    fn incarnations_go_up_whatever_the_clock_says() {
        let data = scratch("incarnation");
        let first = next_incarnation(&data).unwrap();
        assert!(next_incarnation(&data).unwrap() > first);
        fs::write(data.join("incarnation"), (u32::MAX - 9).to_string()).unwrap();
        assert_eq!(next_incarnation(&data).unwrap(), u32::MAX - 8);
        fs::remove_dir_all(data).unwrap();
    }

    #[test]
    fn a_newer_format_is_refused_and_left_alone() {
        let data = scratch("newer");
        write(&data, &record()).unwrap();
        let newer = fs::read_to_string(path(&data)).unwrap().replace("\"format\":1", "\"format\":2");
        fs::write(path(&data), &newer).unwrap();
        let refused = read(&data, &Journal::none()).unwrap_err();
        assert!(refused.to_string().contains("is of format 2") && refused.to_string().contains("upgrade"), "{refused}");
        assert_eq!(fs::read_to_string(path(&data)).unwrap(), newer);
        fs::remove_dir_all(data).unwrap();
    }

    #[test]
    fn any_flipped_bit_is_found() {
        let data = scratch("flipped");
        write(&data, &record()).unwrap();
        let whole = fs::read(path(&data)).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            fs::write(path(&data), &damaged).unwrap();
            // A flip may make it say that it is of another format: then it is not used either.
            let found = read(&data, &Journal::none()).unwrap_or(None);
            assert!(found.is_none() || found == Some(record()), "byte {at} was flipped and {found:?} was read");
        }
        fs::remove_dir_all(data).unwrap();
    }
}
