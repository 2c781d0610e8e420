//! What a cluster agrees on, in a file to be kept elsewhere: the configuration, its version and who was a member. JSON
//! with a checksum, so that nothing is restored that is not what was kept.

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::consensus::state::{MemberState, State};

/// The format of the file.
const FORMAT: u32 = 1;

/// A member at the time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub id: u8,
    /// Where its agent was reached.
    pub address: String,
    /// `node`, `drained` (or on the way there) or `witness`.
    pub part: String,
}

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// The cluster's id.
    pub cluster: u32,
    /// The configuration's version.
    pub version: u64,
    /// Index of the last log entry that was in force.
    pub index: u64,
    /// The members.
    pub members: Vec<Member>,
    /// The configuration: TOML.
    pub text: String,
}

/// Its form in a file.
#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    crc32c: u32,
    backup: Backup,
}

/// The format alone: whatever a newer version puts beside it.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// Why a file is not taken for a backup.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    /// It is something else, or torn.
    #[error("it is no whole backup: `redirector backup FILE` makes one ({0})")]
    Foreign(String),
    /// Bytes were changed.
    #[error("it is damaged or was edited: its checksum does not hold; nothing of it is used")]
    Damaged,
    /// A newer version made it.
    #[error("it is of format {0}, and this version knows formats up to {FORMAT}: upgrade this node")]
    Newer(u32),
}

impl Backup {
    /// Of a cluster.
    pub fn of(cluster: u32, state: &State) -> Self {
        let member = |(&id, member): (&u8, &crate::consensus::state::Member)| Member {
            id,
            address: member.address.clone(),
            part: match member.state() {
                MemberState::Witness => "witness",
                _ if member.draining => "drained",
                _ => "node",
            }
            .to_owned(),
        };
        Self {
            cluster,
            version: state.specification.version,
            index: state.version,
            members: state.members.iter().map(member).collect(),
            text: state.specification.text.clone(),
        }
    }

    /// Of a node that agrees with nobody.
    pub fn of_one(config: &Config, version: u64, text: &str) -> Self {
        let member = Member { id: config.node.id, address: String::new(), part: "node".to_owned() };
        Self { cluster: config.cluster.id, version, index: 0, members: vec![member], text: text.to_owned() }
    }

    fn checksum(&self) -> Result<u32, serde_json::Error> {
        Ok(crc32c::crc32c(&serde_json::to_vec(self)?))
    }

    /// Its form in a file.
    ///
    /// # Errors
    /// None in practice: all of it can be written as JSON.
    pub fn seal(&self) -> Result<Vec<u8>, serde_json::Error> {
        let stored = Stored { format: FORMAT, crc32c: self.checksum()?, backup: self.clone() };
        let mut bytes = serde_json::to_vec_pretty(&stored)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads that form.
    ///
    /// # Errors
    /// [`BackupError`].
    pub fn open(bytes: &[u8]) -> Result<Self, BackupError> {
        let foreign = |error: serde_json::Error| BackupError::Foreign(error.to_string());
        match serde_json::from_slice(bytes).map_err(foreign)? {
            Format { format: FORMAT } => {}
            Format { format } => return Err(BackupError::Newer(format)),
        }
        let Stored { crc32c, backup, .. } = serde_json::from_slice(bytes).map_err(foreign)?;
        if backup.checksum().map_err(foreign)? == crc32c { Ok(backup) } else { Err(BackupError::Damaged) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup() -> Backup {
        let member = Member { id: 3, address: "10.0.0.3:4201".to_owned(), part: "witness".to_owned() };
        Backup { cluster: 7, version: 4, index: 900, members: vec![member], text: "[node]\nid = 1\n".to_owned() }
    }

    #[test]
    fn what_is_kept_is_restored_and_nothing_else() {
        let bytes = backup().seal().unwrap();
        assert_eq!(Backup::open(&bytes), Ok(backup()));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            let read = Backup::open(&damaged);
            assert!(read.is_err() || read == Ok(backup()), "byte {at} was flipped: {read:?}");
            // The last byte but one ends the JSON.
            assert!(Backup::open(&bytes[..at.min(bytes.len() - 2)]).is_err(), "cut at {at}");
        }
        let newer = String::from_utf8(bytes).unwrap().replace("\"format\": 1", "\"format\": 2");
        let refused = Backup::open(newer.as_bytes()).unwrap_err();
        assert!(refused.to_string().contains("upgrade this node"), "{refused}");
    }
}
