//! Station 9: the backend's best-ranked path whose alive bit is set; if none is, the least bad. The backend stays.

use crate::abi::PATHS;
use crate::reason::{Reason, Station};
use crate::tables::{Backend, Tables};

/// A path that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Its id.
    pub path: u16,
    /// Its rank among the backend's.
    pub rank: u8,
    /// Whether its alive bit is set.
    pub alive: bool,
}

/// Chooses the path of a backend.
///
/// # Errors
/// [`Reason::NoPath`] where the backend has none at all.
#[inline(always)]
pub fn choose<T: Tables>(tables: &T, backend: &Backend) -> Station<Choice> {
    let mut rank = 0;
    while rank < PATHS {
        let path = backend.paths[rank];
        if path != 0 && tables.path_alive(path) {
            return Ok(Choice { path, rank: rank as u8, alive: true });
        }
        rank += 1;
    }
    match backend.paths[0] {
        0 => Err(Reason::NoPath),
        path => Ok(Choice { path, rank: 0, alive: false }),
    }
}
