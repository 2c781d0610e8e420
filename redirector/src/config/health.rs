//! How paths and backends of a pool are watched, and what becomes of a backend that is dead.

use std::{ops::RangeInclusive, time::Duration};

use clap::ValueEnum;
use serde::Serialize;

use super::{
    Beats,
    reader::Reader,
    text::{self, Wrong, serialize_duration as duration},
};

/// Deadlines of draining: within a second nothing ends by itself, and after a week nobody remembers.
const DRAIN: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(7 * 24 * 3600);

/// What is configured as `[pool.health]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PoolHealth {
    /// How often beats go to far ends, if other than between nodes.
    pub beats: Option<Beats>,
    /// Answers in a row after which a path that was silent is used again.
    pub rise: u32,
    /// How long a path that is back waits at least, so that one that flaps is not used at each turn.
    #[serde(serialize_with = "duration")]
    pub hold_down: Duration,
    /// When less than this share of its weight is healthy, in per cent, all backends are used.
    pub panic: u8,
    /// Whether paths go by BFD sessions with their next hop or far end, where there are any.
    pub bfd: bool,
    /// What becomes of the established flows of a backend that is dead.
    pub on_death: OnDeath,
    /// What is made of it when flows die on a path.
    pub passive: Passive,
    /// How long a backend that was dead takes to get all of its weight again; zero: it gets it at once.
    #[serde(serialize_with = "duration")]
    pub slow_start: Duration,
    /// How long a backend that drains keeps its established flows at most, and what becomes of them then; `None`: it keeps
    /// them until they end.
    #[serde(flatten)]
    pub drain: Option<Deadline>,
}

/// What is made of it when flows die on a path whose beats and probes are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Passive {
    /// Nothing.
    Off,
    /// It is shown.
    Show,
    /// The path is taken out too, while its backend has another one that is alive.
    Out,
}

/// How long established flows stay where they are to go from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Deadline {
    /// For so long.
    #[serde(rename = "drain_deadline", serialize_with = "duration")]
    pub after: Duration,
    /// What becomes of them then, never [`OnDeath::Hold`].
    #[serde(rename = "at_deadline")]
    pub fate: OnDeath,
}

/// What becomes of the established flows of a backend that is dead, or has drained for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OnDeath {
    /// They stay with it: it may come back, or only its probes may fail.
    Hold,
    /// They go to the backends that its new flows go to.
    Rehash,
    /// TCP clients are told so by a reset, and connect anew; what else there is goes where new flows go.
    Reset,
}

impl Default for PoolHealth {
    fn default() -> Self {
        Self {
            beats: None,
            rise: 3,
            hold_down: Duration::from_millis(250),
            panic: 50,
            bfd: true,
            on_death: OnDeath::Hold,
            passive: Passive::Show,
            slow_start: Duration::ZERO,
            drain: None,
        }
    }
}

/// Reads `[pool.health]`.
pub(super) fn health(mut r: Reader<'_>) -> PoolHealth {
    let default = PoolHealth::default();
    let on_death = r.choice("on_death").unwrap_or(default.on_death);
    let health = PoolHealth {
        beats: r.parsed("beats", text::beats),
        rise: r.number("rise", 1..=15).unwrap_or(default.rise),
        hold_down: r.duration("hold_down", Duration::ZERO..=Duration::from_secs(3600)).unwrap_or(default.hold_down),
        panic: r.number("panic", 0..=100).unwrap_or(default.panic),
        bfd: r.flag("bfd").unwrap_or(default.bfd),
        on_death,
        passive: r.choice("passive").unwrap_or(default.passive),
        slow_start: r.duration("slow_start", Duration::ZERO..=Duration::from_secs(3600)).unwrap_or(default.slow_start),
        drain: deadline(&mut r, on_death),
    };
    r.done();
    health
}

/// When draining ends, and how: unless that is said, as with a death, and by a reset where the dead keep their flows.
fn deadline(r: &mut Reader<'_>, on_death: OnDeath) -> Option<Deadline> {
    let after = r.duration("drain_deadline", DRAIN);
    let fate = r.choice("at_deadline");
    if fate.is_some() && !r.has("drain_deadline") {
        r.wrong("at_deadline", Wrong::new("there is no deadline", "add drain_deadline = \"10m\", or remove it"));
    }
    if fate == Some(OnDeath::Hold) {
        let mend = "write \"rehash\" or \"reset\", or remove drain_deadline: then flows stay until they end";
        r.wrong("at_deadline", Wrong::new("flows that are held know no deadline", mend));
    }
    let usual = if on_death == OnDeath::Hold { OnDeath::Reset } else { on_death };
    after.map(|after| Deadline { after, fate: fate.unwrap_or(usual) })
}
