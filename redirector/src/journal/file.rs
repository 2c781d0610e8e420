//! The journal's files: lines of a version, a checksum and a record, in the order in which they were written.
//!
//! ```text
//! 1 5f2a90c4 {"at_ms":1795819302653,"uptime_ms":81234,"kind":"peer","node":3,"what":"suspected"}
//! ```
//! The checksum is the CRC-32C of the JSON after it. When the file is full it takes the place of the one before it, so
//! that two files of bounded size are kept.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Incident;

/// Version of the lines.
const VERSION: &str = "1";

/// A file that is longer than this is full.
const BYTES_MAX: u64 = 1 << 20;

/// What is told is cut to so many bytes.
const WHAT_MAX: usize = 1000;

const NAME: &str = "incidents.log";
const OLD: &str = "incidents.old";

/// What a line of the journal holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Entry {
    /// An incident.
    Incident(Incident),
    /// Nothing that can be relied on.
    Damaged {
        /// Which file.
        file: PathBuf,
        /// Which line, from 1 on.
        line: usize,
        /// What is wrong with it.
        damage: String,
    },
}

/// The file that is written.
pub(super) struct File {
    data: PathBuf,
    open: Option<fs::File>,
}

impl File {
    pub(super) fn new(data: &Path) -> Self {
        Self { data: data.to_owned(), open: None }
    }

    /// Appends incidents, and has them on disk when it returns. With an error they may be appended again.
    pub(super) fn append(&mut self, incidents: &[Incident]) -> io::Result<()> {
        let written = self.write(incidents);
        if written.is_err() {
            // What became of it is not known: the next time looks at how it ends.
            self.open = None;
        }
        written
    }

    fn write(&mut self, incidents: &[Incident]) -> io::Result<()> {
        let (path, old) = (self.data.join(NAME), self.data.join(OLD));
        if self.open.as_ref().is_some_and(|file| file.metadata().is_ok_and(|about| about.len() >= BYTES_MAX)) {
            self.open = None;
            fs::rename(&path, old)?;
        }
        let mut file = match self.open.take() {
            Some(file) => file,
            None => open(&self.data, &path)?,
        };
        let mut text = Vec::new();
        for incident in incidents {
            text.extend(line(incident)?);
        }
        let end = file.metadata()?.len();
        if let Err(error) = file.write_all(&text).and_then(|()| file.sync_data()) {
            // A part of it may be there, which would be told twice. Where the disk does not take it back, it is.
            let _ = file.set_len(end);
            return Err(error);
        }
        self.open = Some(file);
        Ok(())
    }
}

/// Opens the file to append to it. Where its last line is torn, what follows begins with a line of its own.
fn open(data: &Path, path: &Path) -> io::Result<fs::File> {
    fs::create_dir_all(data)?;
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    if file.metadata()?.len() > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
    }
    fs::File::open(data)?.sync_all()?;
    Ok(file)
}

fn line(incident: &Incident) -> io::Result<Vec<u8>> {
    let mut incident = incident.clone();
    incident.what.truncate(incident.what.floor_char_boundary(WHAT_MAX));
    let json = serde_json::to_string(&incident)?;
    Ok(format!("{VERSION} {:08x} {json}\n", crc32c::crc32c(json.as_bytes())).into_bytes())
}

/// Everything that is kept, the oldest first.
///
/// # Errors
/// Where the disk fails. A journal that is not there is empty.
pub fn read(data: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for name in [OLD, NAME] {
        let path = data.join(name);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let is_torn = bytes.last().is_some_and(|last| *last != b'\n');
        let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
        let count = lines.len() - usize::from(!is_torn);
        entries.extend(lines[..count].iter().enumerate().map(|(at, line)| {
            parse(line)
                .map_or_else(|damage| Entry::Damaged { file: path.clone(), line: at + 1, damage }, Entry::Incident)
        }));
    }
    Ok(entries)
}

fn parse(line: &[u8]) -> Result<Incident, String> {
    let mut parts = line.splitn(3, |byte| *byte == b' ');
    let (Some(version), Some(sum), Some(json)) = (parts.next(), parts.next(), parts.next()) else {
        return Err("it is torn".to_owned());
    };
    if sum != format!("{:08x}", crc32c::crc32c(json)).as_bytes() {
        return Err("it is damaged: its checksum does not hold".to_owned());
    }
    if version != VERSION.as_bytes() {
        let version = String::from_utf8_lossy(version);
        return Err(format!("it is of format {version}, and this version knows {VERSION} alone"));
    }
    serde_json::from_slice(json).map_err(|error| format!("it is whole but not understood: {error}"))
}
