//! Pools on their way from one table to the next.

use std::collections::BTreeMap;

use super::{Planner, Report};
use crate::consensus::state::{Advance, Command, Phase, Pool, RowSet, Rows, State};

impl Planner {
    /// The next step of a pool. It follows only when every node that is there has installed the one before.
    pub(super) fn pools(&mut self, state: &State, now: u64) -> Option<Command> {
        let is_unsettled = |pool: &Pool| pool.phase() != Phase::Settled;
        self.settled_at.retain(|name, _| state.pools.get(name).is_some_and(is_unsettled));
        for (name, pool) in state.pools.iter().filter(|(_, pool)| is_unsettled(pool)) {
            let last = *self.settled_at.entry(name.clone()).or_insert(now);
            let present = state.members.iter().filter(|(_, member)| member.is_present());
            let reports: Option<Vec<&Report>> =
                present.map(|(&id, _)| self.report(id, now).filter(|report| report.installed >= pool.since)).collect();
            let Some(reports) = reports else { continue };
            let advance = match pool.phase() {
                Phase::Settled => continue,
                Phase::Announced => Advance::Switch,
                Phase::Agreed => Advance::Settle,
                Phase::Switched => {
                    let may_settle_some = now - last >= self.patience.settling;
                    let Some(rows) = quiet(name, pool, &reports, may_settle_some) else { continue };
                    self.settled_at.insert(name.clone(), now);
                    Advance::Agree(rows)
                }
            };
            return Some(Command::PoolStep { pool: name.clone(), since: pool.since, advance });
        }
        None
    }
}

/// The disputed rows that no node has flows of off their current backend; none where there is nothing to agree on.
fn quiet(name: &str, pool: &Pool, reports: &[&Report], may_be_some: bool) -> Option<Rows> {
    let mut restless = RowSet::default();
    for report in reports {
        restless.extend(report.restless.get(name)?);
    }
    if restless.is_empty() {
        return Some(Rows::All);
    }
    if !may_be_some {
        return None;
    }
    let numbers: BTreeMap<&str, u16> = pool.names().map(String::as_str).zip(1..).collect();
    let rows = pool.rows(|name| numbers.get(name).copied().unwrap_or(0));
    let quiet: RowSet = (0..rows.len()).filter(|&row| rows[row].disputed() && !restless.contains(row)).collect();
    (!quiet.is_empty()).then_some(Rows::Some(quiet))
}
