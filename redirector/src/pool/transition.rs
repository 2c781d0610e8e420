//! How a pool's rows go from one Maglev table to the next without losing a flow.
//!
//! ```text
//! undisputed ── announce: the rows that will change are disputed, both backends as before ──► disputed
//! disputed ──── switch: current becomes the new one, previous stays the old one ──────────► disputed
//! disputed ──── agree: no flow of the row is off current: previous becomes current ───────► disputed
//! disputed ──── settle: and every node has agreed ────────────────────────────────────────► undisputed
//! ```
//!
//! While a row is disputed every flow of it goes to its owner and is recorded there; what the owner does not know is
//! older than the dispute, so `previous` stays what it was before the *first* change of an unfinished dispute.
//!
//! A row is quiet when no flow lives off its *current* backend. Off the previous one is not enough: after a second change
//! within a dispute, flows of the first one's backend live on neither of the two. Only the owners' flow tables together
//! tell whether a row is quiet.
//!
//! In a cluster the end takes two steps, each of which every node has to take before any takes the next. A node without
//! the dispute serves new flows and records nothing; a node still in it would take their later packets for older than the
//! dispute, and send them to `previous`. So first `previous` becomes `current` everywhere, while the row is still
//! disputed, and then it makes no difference which nodes have lifted the dispute. One node alone may settle at once.

use redirector_ebpf::tables::Row;

/// Rows of a pool that has no table yet.
pub fn fresh(table: &[u16]) -> Vec<Row> {
    table.iter().map(|&id| Row::new(id, id, false)).collect()
}

/// The first step towards `table`: each row that differs is disputed, nothing else changes.
pub fn announce(rows: &[Row], table: &[u16]) -> Vec<Row> {
    paired(rows, table)
        .map(|(row, id)| Row::new(row.current(), row.previous(), row.disputed() || row.current() != id))
        .collect()
}

/// The second step: the rows name the table's backends, and as previous the ones of before the dispute.
pub fn switch(rows: &[Row], table: &[u16]) -> Vec<Row> {
    paired(rows, table).map(|(row, id)| Row::new(id, row.previous(), row.disputed())).collect()
}

/// The first step of a dispute's end, for the rows for which `is_quiet` holds: unknown flows are the current backend's,
/// as all known ones are. Flows still go to their owner.
pub fn agree(rows: &[Row], is_quiet: impl Fn(usize) -> bool) -> Vec<Row> {
    quieted(rows, is_quiet, true)
}

/// Ends the dispute of the rows for which `is_quiet` holds. In a cluster: once every node has [`agree`]d on them.
pub fn settle(rows: &[Row], is_quiet: impl Fn(usize) -> bool) -> Vec<Row> {
    quieted(rows, is_quiet, false)
}

fn quieted(rows: &[Row], is_quiet: impl Fn(usize) -> bool, disputed: bool) -> Vec<Row> {
    let next = |(index, row): (usize, &Row)| {
        let row = *row;
        if row.disputed() && is_quiet(index) { Row::new(row.current(), row.current(), disputed) } else { row }
    };
    rows.iter().enumerate().map(next).collect()
}

/// The size in which a pool of `rows` present rows takes a table for `wanted`: it grows by doubling and never shrinks
/// while it lives, since only a finer table can tell what each row's flows had before.
pub fn size(rows: usize, wanted: usize) -> usize {
    rows.max(wanted)
}

/// The table's ids beside the rows that held the same flows before; a row of a smaller table stands for several.
fn paired<'a>(rows: &'a [Row], table: &'a [u16]) -> impl Iterator<Item = (Row, u16)> + 'a {
    table.iter().enumerate().map(move |(index, &id)| (rows[index * rows.len() / table.len()], id))
}
