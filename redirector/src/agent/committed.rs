//! What is committed on disk: the configuration in force and its version, and beside it the last incarnation and the key
//! of a node alone. Each is written whole beside the old one and then put in its place, with a CRC-32C; what is damaged is
//! told of and never used.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
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

const FORMAT: u32 = 2;

/// The format of before: its checksum is a CRC-32 of IEEE 802.3.
const WITH_CRC32: u32 = 1;

/// Who may read what is kept: everybody, or its owner alone.
const PUBLIC: u32 = 0o644;
const SECRET: u32 = 0o600;

/// The format alone: whatever a newer version puts beside it.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

fn path(data: &Path) -> PathBuf {
    data.join("committed.json")
}

/// The bytes that a record's checksum is of.
fn summed(record: &Committed) -> Vec<u8> {
    let agreed: &[u8] = if record.agreed { b"agreed" } else { b"" };
    [&record.version.to_le_bytes(), &record.file.to_le_bytes(), record.text.as_bytes(), agreed].concat()
}

/// Puts a file in the place of the old one, so that after a crash there is one of the two.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let next = path.with_extension("next");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&next)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    File::open(directory)?.sync_all()
}

/// The line that ends a small file: the checksum of all before it.
fn checksum_line(content: &[u8]) -> String {
    format!("\ncrc32c {:08x}\n", crc32c::crc32c(content))
}

/// What a small file holds; none if its checksum does not hold. What is shorter than the line alone is from before there
/// was one.
fn content(bytes: &[u8]) -> Option<&[u8]> {
    let Some(at) = bytes.len().checked_sub(checksum_line(&[]).len()) else { return Some(bytes) };
    let (content, line) = bytes.split_at(at);
    (line == checksum_line(content).as_bytes()).then_some(content)
}

/// Writes a small file with its checksum.
fn keep(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    replace(path, &[content, checksum_line(content).as_bytes()].concat(), mode)
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
    let stored = serde_json::from_slice::<Stored>(&bytes).ok().filter(|stored| match stored.format {
        FORMAT => stored.checksum == crc32c::crc32c(&summed(&stored.record)),
        WITH_CRC32 => stored.checksum == crc32fast::hash(&summed(&stored.record)),
        _ => false,
    });
    match stored {
        Some(Stored { record, .. }) => Ok(Some(record)),
        None => {
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
    let checksum = crc32c::crc32c(&summed(record));
    let stored = Stored { format: FORMAT, checksum, record: record.clone() };
    replace(&path(data), &serde_json::to_vec(&stored)?, PUBLIC)
}

/// A number that is greater than all that it gave before on this host: seconds of the clock, which may have been set back.
///
/// # Errors
/// Where the disk fails.
pub(super) fn next_incarnation(data: &Path, journal: &Journal) -> io::Result<u32> {
    let path = data.join("incarnation");
    let parse = |bytes: &[u8]| str::from_utf8(content(bytes)?).ok()?.trim().parse().ok();
    let last = match fs::read(&path) {
        Ok(bytes) => parse(&bytes).unwrap_or_else(|| {
            let what =
                "the last incarnation is damaged on disk, and as good as lost: the clock alone gives the next one";
            tracing::error!(file = %path.display(), "{what}");
            journal.note(Kind::Damage, None, what);
            0
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0u32,
        Err(error) => return Err(error),
    };
    let clock = std::time::UNIX_EPOCH.elapsed().map_or(1, |time| time.as_secs() as u32);
    let next = clock.max(last.saturating_add(1));
    keep(&path, next.to_string().as_bytes(), PUBLIC)?;
    Ok(next)
}

/// The cluster's key where the configuration has none: drawn once and kept.
///
/// # Errors
/// Where the disk fails, or the kept key is not one.
pub(super) fn own_key(data: &Path) -> io::Result<[u8; 16]> {
    let path = data.join("key");
    match fs::read(&path) {
        Ok(bytes) => {
            let key: [u8; 16] = content(&bytes).and_then(|key| key.try_into().ok()).ok_or_else(|| {
                let says = format!(
                    "{} is damaged: it is not a key of 16 bytes and its checksum; remove it and `redirector unload` to start \
                     anew",
                    path.display()
                );
                io::Error::new(io::ErrorKind::InvalidData, says)
            })?;
            if bytes.len() == key.len()
                && let Err(error) = keep(&path, &key, SECRET)
            {
                tracing::warn!(file = %path.display(), %error, "the key goes without a checksum still");
            }
            Ok(key)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut key = [0; 16];
            getrandom::fill(&mut key).map_err(io::Error::other)?;
            keep(&path, &key, SECRET)?;
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
        let next = || next_incarnation(&data, &Journal::none()).unwrap();
        let first = next();
        assert!(next() > first);
        // As it was written before there were checksums.
        fs::write(data.join("incarnation"), (u32::MAX - 9).to_string()).unwrap();
        assert_eq!((next(), next()), (u32::MAX - 8, u32::MAX - 7));
        fs::remove_dir_all(data).unwrap();
    }

    #[test]
    fn a_newer_format_is_refused_and_left_alone() {
        let data = scratch("newer");
        write(&data, &record()).unwrap();
        let newer = fs::read_to_string(path(&data)).unwrap().replace("\"format\":2", "\"format\":3");
        fs::write(path(&data), &newer).unwrap();
        let refused = read(&data, &Journal::none()).unwrap_err();
        assert!(refused.to_string().contains("is of format 3") && refused.to_string().contains("upgrade"), "{refused}");
        assert_eq!(fs::read_to_string(path(&data)).unwrap(), newer);
        fs::remove_dir_all(data).unwrap();
    }

    #[test]
    fn any_flipped_bit_is_found() {
        let data = scratch("flipped");
        write(&data, &record()).unwrap();
        let whole = fs::read(path(&data)).unwrap();
        for bit in 0..whole.len() * 8 {
            fs::write(path(&data), flipped(&whole, bit)).unwrap();
            // A flip may make it say that it is of another format: then it is not used either.
            let found = read(&data, &Journal::none()).unwrap_or(None);
            assert!(found.is_none() || found == Some(record()), "bit {bit} was flipped and {found:?} was read");
        }
        fs::remove_dir_all(data).unwrap();
    }

    fn flipped(whole: &[u8], bit: usize) -> Vec<u8> {
        let mut damaged = whole.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        damaged
    }

    #[test]
    fn any_flipped_bit_of_incarnation_and_key_is_found() {
        let data = scratch("flips");
        let key = own_key(&data).unwrap();
        assert_eq!(own_key(&data).unwrap(), key);
        next_incarnation(&data, &Journal::none()).unwrap();
        for file in ["key", "incarnation"] {
            let whole = fs::read(data.join(file)).unwrap();
            for bit in 0..whole.len() * 8 {
                assert_eq!(content(&flipped(&whole, bit)), None, "bit {bit} of {file}");
            }
        }
        let (path, whole) = (data.join("key"), fs::read(data.join("key")).unwrap());
        fs::write(&path, flipped(&whole, 3)).unwrap();
        assert!(own_key(&data).unwrap_err().to_string().contains("is damaged"));
        let path = data.join("incarnation");
        fs::write(&path, [b"4294967290".as_slice(), b"\ncrc32c 00000000\n"].concat()).unwrap();
        let next = next_incarnation(&data, &Journal::none()).unwrap();
        assert!(next < u32::MAX - 9, "a damaged incarnation was believed");
        assert_eq!(content(&fs::read(&path).unwrap()), Some(next.to_string().as_bytes()));
        fs::remove_dir_all(data).unwrap();
    }

    #[test]
    fn what_earlier_versions_wrote_is_read() {
        let data = scratch("earlier");
        let checksum = crc32fast::hash(&summed(&record()));
        let stored = |checksum| serde_json::to_vec(&Stored { format: WITH_CRC32, checksum, record: record() }).unwrap();
        fs::write(path(&data), stored(checksum)).unwrap();
        assert_eq!(read(&data, &Journal::none()).unwrap(), Some(record()));
        fs::write(path(&data), stored(checksum ^ 1)).unwrap();
        assert_eq!(read(&data, &Journal::none()).unwrap(), None);
        let key: [u8; 16] = *b"sixteen bytes it";
        fs::write(data.join("key"), key).unwrap();
        assert_eq!((own_key(&data).unwrap(), own_key(&data).unwrap()), (key, key));
        assert!(fs::read(data.join("key")).unwrap().len() > key.len(), "it has a checksum now");
        fs::remove_dir_all(data).unwrap();
    }
}
