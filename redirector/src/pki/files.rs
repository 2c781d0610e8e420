//! Files that are there whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::Error;

/// Permission bits of a private key's file.
pub(super) const SECRET: u32 = 0o600;
/// Permission bits of a certificate's file.
pub(super) const PUBLIC: u32 = 0o644;

/// Writes a file beside its place and then puts it there, so that a reader, or a crash, meets the old one or the new.
pub(super) fn put(path: &Path, content: &str, mode: u32) -> Result<(), Error> {
    write(path, content, mode).map_err(|source| Error::File { path: path.to_owned(), source })
}

fn write(path: &Path, content: &str, mode: u32) -> io::Result<()> {
    let mut next = path.as_os_str().to_owned();
    next.push(".next");
    // What an interrupted command left may have other permissions than are wanted now.
    match fs::remove_file(&next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&next)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    // An empty parent stands for the working directory.
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

/// Reads a text file.
pub(super) fn get(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::File { path: path.to_owned(), source })
}

/// Insists on a directory.
pub(super) fn directory(path: &Path) -> Result<(), Error> {
    if path.is_dir() { Ok(()) } else { Err(Error::NoDirectory(path.to_owned())) }
}
