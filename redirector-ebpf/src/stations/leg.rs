//! Station 2, for answers from far ends of paths: an answer counts once, by the nonce of one of the last requests over its
//! leg and by this host's boot id.

use crate::beat::{Beat, Kind};
use crate::reason::{Reason, Station};
use crate::tables::Tables;
use crate::tables::liveness::{REMEMBERED, slot};

/// Takes an answer.
///
/// # Errors
/// The reason to drop it unheard.
#[inline(always)]
pub fn take<T: Tables>(tables: &T, beat: &Beat) -> Station<Reason> {
    let node = tables.node().ok_or(Reason::NoTables)?;
    let watch = tables.watch().ok_or(Reason::NoTables)?;
    let rules = tables.leg_rules().ok_or(Reason::NoTables)?;
    if beat.target() != node.id {
        return Err(Reason::BeatForeign);
    }
    beat.check_path(&rules.key, rules.key_id, node.cluster, Kind::PathAnswer)?;
    let leg = beat.leg();
    let sent = tables.leg_sent(leg).ok_or(Reason::BeatForeign)?;
    let heard = tables.leg_heard(leg).ok_or(Reason::BeatForeign)?;
    let own = sent.sequence.load();
    let number = beat.nonce().wrapping_sub(sent.nonce_base.load());
    if number == 0 || own.wrapping_sub(number) >= REMEMBERED as u64 || beat.asker() != watch.boot_id {
        return Err(Reason::BeatReplayed);
    }
    if !heard.answered.raise(number) {
        return Err(Reason::BeatReplayed);
    }
    let now = tables.fine_now();
    slot(&heard.times, number).store(now);
    heard.at.store(now);
    heard.boot_id.store(beat.boot_id());
    Ok(Reason::BeatTaken)
}
