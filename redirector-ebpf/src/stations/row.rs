//! Station 6: the pool's row gives the current and the previous backend, and says whether the flow's owner must decide.

use crate::hash::FlowHash;
use crate::reason::{Reason, Station};
use crate::tables::{Pool, Row, Service, Tables};

/// What the stations behind need of pool and row.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The row.
    pub row: Row,
    /// [`Pool::old_until`].
    pub old_until: u64,
    /// `owned || disputed`: the slot's owner must decide.
    pub needs_owner: bool,
}

/// Finds the flow's row.
///
/// # Errors
/// [`Reason::NoTables`] where pool or table is missing.
#[inline(always)]
pub fn find<T: Tables>(tables: &T, service: &Service, hash: FlowHash) -> Station<Place> {
    let &Pool { table, rows, old_until, .. } = tables.pool(service.pool).ok_or(Reason::NoTables)?;
    let row = tables.row(table.into(), hash.row(rows)).ok_or(Reason::NoTables)?;
    Ok(Place { row, old_until, needs_owner: service.owned != 0 || row.disputed() })
}
