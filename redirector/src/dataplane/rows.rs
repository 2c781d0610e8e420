//! Who owns slots and which backends rows name: what of the tables changes by agreement, and how one table follows
//! another. The same for the kernel's maps and for tables in memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redirector_ebpf::hash::{FlowHash, HashKey};
use redirector_ebpf::tables::{Pool, Row, Slot};

use super::flows::{Flow, now};
use super::image::{Image, PoolImage};
use super::maps::{Maps, MapsError, read, written};
use crate::config::OnDeath;
use crate::pool::{self, transition};

/// Tables of slots and rows, and the flows that live on them.
pub trait RowTables {
    /// The slot table in force; empty where there is none yet.
    ///
    /// # Errors
    /// [`MapsError::Use`].
    fn slots(&self) -> Result<Vec<Slot>, MapsError>;

    /// The same as it was last read or put in force here, where reading it takes time: as long as writing another.
    ///
    /// # Errors
    /// [`MapsError::Use`].
    fn known_slots(&self) -> Result<Vec<Slot>, MapsError> {
        self.slots()
    }

    /// Switches to another slot table.
    ///
    /// # Errors
    /// [`MapsError`].
    fn set_slots(&mut self, slots: &[Slot]) -> Result<(), MapsError>;

    /// A pool; zeros where there is none.
    ///
    /// # Errors
    /// [`MapsError::Use`].
    fn pool(&self, id: u16) -> Result<Pool, MapsError>;

    /// The present rows of a pool; none where it has no table yet.
    ///
    /// # Errors
    /// [`MapsError::Use`].
    fn rows(&self, pool: &Pool) -> Result<Vec<Row>, MapsError>;

    /// Puts rows where a pool says that its table is, and then the pool in place.
    ///
    /// # Errors
    /// [`MapsError`].
    fn set_rows(&mut self, id: u16, pool: Pool, rows: &[Row]) -> Result<(), MapsError>;

    /// All flows.
    fn flows<'a>(&'a self, key: &'a HashKey) -> impl Iterator<Item = Flow> + 'a;

    /// Monotonic time in nanoseconds.
    fn now(&self) -> u64;
}

/// What a lock holds, also after a thread that held it has failed.
fn known<T>(slots: &Mutex<T>) -> MutexGuard<'_, T> {
    slots.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RowTables for Maps {
    fn slots(&self) -> Result<Vec<Slot>, MapsError> {
        let slots = self.slots()?;
        *known(&self.known_slots) = Some(slots.clone());
        Ok(slots)
    }

    fn known_slots(&self) -> Result<Vec<Slot>, MapsError> {
        let slots = known(&self.known_slots).clone();
        slots.map_or_else(|| RowTables::slots(self), Ok)
    }

    fn set_slots(&mut self, slots: &[Slot]) -> Result<(), MapsError> {
        *known(&self.known_slots) = None;
        let table = super::batch::new_array(slots, "SLOTS")?;
        self.slots.set(0, &table, 0).map_err(written("SLOTS"))?;
        *known(&self.known_slots) = Some(slots.to_vec());
        Ok(())
    }

    fn pool(&self, id: u16) -> Result<Pool, MapsError> {
        self.pools.get(&u32::from(id), 0).map_err(read("POOLS"))
    }

    fn rows(&self, pool: &Pool) -> Result<Vec<Row>, MapsError> {
        self.rows(pool)
    }

    fn set_rows(&mut self, id: u16, pool: Pool, rows: &[Row]) -> Result<(), MapsError> {
        let array = super::batch::new_array(rows, "POOL_TABLES")?;
        self.pool_tables.set(pool.table.into(), &array, 0).map_err(written("POOL_TABLES"))?;
        self.pools.set(u32::from(id), pool, 0).map_err(written("POOLS"))
    }

    fn flows<'a>(&'a self, key: &'a HashKey) -> impl Iterator<Item = Flow> + 'a {
        self.flows.iter(key)
    }

    fn now(&self) -> u64 {
        now()
    }
}

/// Puts slots and rows that were agreed on into the tables, and nothing else.
///
/// # Errors
/// [`MapsError`], where the kernel refuses a write.
pub fn follow(tables: &mut impl RowTables, image: &Image) -> Result<(), MapsError> {
    slots(tables, image)?;
    pools(tables, image)
}

/// Switches to a new slot table, if it differs. Where the nodes do not agree on one, versions go up, and old primaries
/// become previous owners.
pub(super) fn slots(tables: &mut impl RowTables, image: &Image) -> Result<(), MapsError> {
    let (present, target) = (tables.known_slots()?, &image.slots);
    let next: Vec<Slot> = match present.len() == target.len() && image.agreed.is_none() {
        true => present.iter().zip(target).map(|(old, new)| next_slot(*old, *new)).collect(),
        false => target.clone(),
    };
    if next == present { Ok(()) } else { tables.set_slots(&next) }
}

fn next_slot(old: Slot, new: Slot) -> Slot {
    if old.ranks == new.ranks {
        return old;
    }
    let previous = if old.ranks[0] == new.ranks[0] { old.previous } else { old.ranks[0] };
    Slot { previous, version: old.version + 1, ..new }
}

/// Leads all pools to where they should be: to the rows that were agreed on, or else to their tables.
pub(super) fn pools(tables: &mut impl RowTables, image: &Image) -> Result<(), MapsError> {
    let old_for = Duration::from_secs(u64::from(image.node.idle[4]));
    for (&id, target) in &image.pools {
        match image.agreed.as_ref().map(|agreed| agreed.get(&id)) {
            Some(Some(rows)) => take(tables, id, rows, old_for)?,
            Some(None) if tables.pool(id)?.rows != 0 => {}
            _ => change(tables, id, target, old_for)?,
        }
    }
    Ok(())
}

/// Takes over a pool's rows as they were agreed on. Where a dispute begins or goes on to another backend, unknown flows are
/// old ones from now on for a while.
fn take(tables: &mut impl RowTables, id: u16, rows: &[Row], old_for: Duration) -> Result<(), MapsError> {
    let pool = tables.pool(id)?;
    let present = tables.rows(&pool)?;
    if present == rows {
        return Ok(());
    }
    let is_other = |(old, new): (&Row, &Row)| new.disputed() && (!old.disputed() || old.current() != new.current());
    let begins = present.len() != rows.len() || present.iter().zip(rows).any(is_other);
    let disputed = rows.iter().any(|row| row.disputed());
    let old_until = if begins && disputed { tables.now() + old_for.as_nanos() as u64 } else { pool.old_until };
    replace(tables, id, &pool, rows, old_until)
}

/// Leads a pool to its target: the first table at once, later ones by a dispute of the rows that change.
fn change(tables: &mut impl RowTables, id: u16, target: &PoolImage, old_for: Duration) -> Result<(), MapsError> {
    let pool = tables.pool(id)?;
    let rows = tables.rows(&pool)?;
    let table = pool::build(&target.members, transition::size(rows.len(), target.rows));
    if rows.is_empty() {
        return replace(tables, id, &pool, &transition::fresh(&table), 0);
    }
    if rows.len() == table.len() && rows.iter().zip(&table).all(|(row, id)| row.current() == *id) {
        let mut parted = rows.clone();
        part(&mut parted, &target.fates(&target.dead(), &target.drained));
        return if parted == rows { Ok(()) } else { replace(tables, id, &pool, &parted, pool.old_until) };
    }
    let old_until = tables.now() + old_for.as_nanos() as u64;
    let announced = transition::announce(&rows, &table);
    replace(tables, id, &pool, &announced, old_until)?;
    let pool = tables.pool(id)?;
    let mut rows = transition::switch(&announced, &table);
    part(&mut rows, &target.fates(&target.dead(), &target.drained));
    replace(tables, id, &pool, &rows, old_until)
}

/// Parts rows from previous backends whose flows do not stay; others are severed no more.
pub fn part(rows: &mut [Row], fates: &BTreeMap<u16, OnDeath>) {
    for row in rows.iter_mut().filter(|row| row.current() != row.previous()) {
        *row = match fates.get(&row.previous()).copied().unwrap_or(OnDeath::Hold) {
            OnDeath::Hold => Row::new(row.current(), row.previous(), row.disputed()),
            OnDeath::Rehash => Row::new(row.current(), row.current(), row.disputed()),
            OnDeath::Reset => row.severed(),
        };
    }
}

/// Puts rows in place: into the one of the pool's two tables that is not in force, which then is.
pub(super) fn replace(
    tables: &mut impl RowTables,
    id: u16,
    pool: &Pool,
    rows: &[Row],
    old_until: u64,
) -> Result<(), MapsError> {
    let even = id * 2;
    let table = if pool.rows != 0 && pool.table == even { even + 1 } else { even };
    tables.set_rows(id, Pool { table, rows: rows.len() as u32, old_until, ..*pool }, rows)
}

/// How many rows pools have.
///
/// # Errors
/// [`MapsError`].
pub fn sizes(tables: &impl RowTables, image: &Image) -> Result<HashMap<u16, u32>, MapsError> {
    image.pools.keys().map(|&id| Ok((id, tables.pool(id)?.rows))).collect()
}

/// The rows of disputed pools of which flows live off the current backend, in this node's flow table. A pool is left out as
/// long as its last change is no older than its settle time.
///
/// # Errors
/// [`MapsError`].
pub fn restless(tables: &impl RowTables, image: &Image) -> Result<HashMap<u16, Vec<bool>>, MapsError> {
    let (key, idle, time) = (image.node.hash_key, image.node.idle, tables.now());
    let mut restless = HashMap::new();
    for (&id, target) in &image.pools {
        let pool = tables.pool(id)?;
        let rows = tables.rows(&pool)?;
        // The change was as long ago as its old flows' time has run.
        let changed = pool.old_until.saturating_sub(u64::from(idle[4]) * 1_000_000_000);
        let is_settling = time < changed + target.settle.as_nanos() as u64;
        if is_settling || !rows.iter().any(|row| row.disputed()) {
            continue;
        }
        let mut busy = vec![false; rows.len()];
        let of_pool = |backend: u16| image.registry.backends.get(&backend).is_some_and(|row| row.pool == id);
        for flow in tables.flows(&key).filter(|flow| of_pool(flow.entry.backend())) {
            let row = FlowHash::of(&key, &flow.record.tuple, flow.v6).row(pool.rows) as usize;
            busy[row] |= flow.entry.backend() != rows[row].current();
        }
        restless.insert(id, busy);
    }
    Ok(restless)
}
