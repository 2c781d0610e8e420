//! How loaded this node is: measured a dozen times a second, made a shed level of, and put where packets, beats and the
//! agent's own work go by it.

use std::fs;
use std::time::Duration;

use redirector_ebpf::reason::{Action, Reason};
use redirector_ebpf::tables::Node;
use serde::{Deserialize, Serialize};

use super::talk::Talk;
use crate::config::{Config, Shedding};
use crate::dataplane::maps::{Maps, MapsError, read, written};
use crate::shedding::capacity::Capacity;
use crate::shedding::{Levels, Load, Meter, Sample, cpu_times, work};

/// How often the load is measured.
const EVERY: Duration = Duration::from_millis(80);

/// Each time this part of the flow tables is looked at.
const PARTS: usize = 64;

/// What a node says of its load.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LoadStatus {
    /// The load, part by part.
    pub load: Load,
    /// The shed level that packets meet.
    pub level: u8,
    /// How long the load has asked for its level, milliseconds.
    pub for_ms: u64,
    /// Packets a second that this host can take, as configured or learnt; 0: not known.
    pub capacity: u64,
    /// How it was learnt; none where it is configured, or not known.
    #[serde(default)]
    pub learnt: Option<Capacity>,
}

/// The node's load, and what follows from it.
#[derive(Debug, Default)]
pub(super) struct Condition {
    meter: Meter,
    levels: Levels,
    load: Load,
    learnt: Option<Capacity>,
    measured: Duration,
    part: usize,
    /// Packets that were dropped by now.
    refused: u64,
    /// The level that is written to the maps.
    written: u8,
}

impl Condition {
    pub(super) fn new(config: &Config) -> Self {
        Self { learnt: Capacity::read(&config.node.data), ..Self::default() }
    }

    /// Goes by what this host was found to take since.
    pub(super) fn learn(&mut self, config: &Config) {
        self.learnt = Capacity::read(&config.node.data);
    }

    /// Packets a second that this host can take; 0: not known.
    fn capacity(&self, settings: &Shedding) -> u64 {
        let learnt = self.learnt.as_ref().map_or(0, |learnt| learnt.packets_per_second);
        if settings.capacity == 0 { learnt } else { settings.capacity.into() }
    }

    /// The level that holds: what the load asks for, or what is configured as the least.
    pub(super) fn level(&self, config: &Config) -> u8 {
        self.levels.level().max(config.limits.shed_level)
    }

    /// The greatest part of the load, in per cent.
    pub(super) fn load(&self) -> u8 {
        self.load.greatest().0
    }

    /// Packets that the data plane had dropped when the load was last measured.
    pub(super) fn refused(&self) -> u64 {
        self.refused
    }

    /// What there is to tell.
    pub(super) fn status(&self, config: &Config, now: Duration) -> LoadStatus {
        LoadStatus {
            load: self.load,
            level: self.level(config),
            for_ms: now.saturating_sub(self.levels.since()).as_millis() as u64,
            capacity: self.capacity(&config.shedding),
            learnt: self.learnt.clone().filter(|_| config.shedding.capacity == 0),
        }
    }

    /// The maps have been filled anew, with the level of [`Condition::level`].
    pub(super) fn was_written(&mut self, level: u8) {
        self.written = level;
        work::set_level(level);
    }

    /// Measures the load, where it is time to, and has the level follow.
    ///
    /// # Errors
    /// [`MapsError`]; the level that is in the maps stays, and it is tried again.
    pub(super) fn observe(
        &mut self,
        config: &Config,
        maps: &mut Maps,
        talk: Option<&Talk>,
        now: Duration,
    ) -> Result<(), MapsError> {
        if now.saturating_sub(self.measured) >= EVERY {
            self.measured = now;
            let node = maps.node.get(&0, 0).map_err(read("NODE"))?;
            // The kernel's timer lowers the level of an agent that was silent for long.
            self.written = node.shed_level;
            let sample = self.sample(maps, &node, talk, now)?;
            let capacity = self.capacity(&config.shedding);
            self.load = self.meter.observe(sample, capacity, config.shedding.softirq);
            let before = self.levels.level();
            let (load, part) = self.load.greatest();
            if self.levels.observe(load, &config.shedding, now) {
                let level = self.levels.level();
                match level > before {
                    true => tracing::warn!(load, part, level, "load is shed"),
                    false => tracing::warn!(load, part, level, "less load is shed"),
                }
            }
        }
        let level = self.level(config);
        if level != self.written { self.write(maps, level) } else { Ok(()) }
    }

    /// Goes back to what is configured as the least, since nobody will measure the load.
    ///
    /// # Errors
    /// [`MapsError`]; the kernel's timer does the same a little later.
    pub(super) fn relieve(&mut self, config: &Config, maps: &mut Maps) -> Result<(), MapsError> {
        self.write(maps, config.limits.shed_level)
    }

    fn write(&mut self, maps: &mut Maps, level: u8) -> Result<(), MapsError> {
        let mut node = maps.node.get(&0, 0).map_err(read("NODE"))?;
        node.shed_level = level;
        maps.node.set(0, node, 0).map_err(written("NODE"))?;
        self.was_written(level);
        Ok(())
    }

    fn sample(&mut self, maps: &Maps, node: &Node, talk: Option<&Talk>, now: Duration) -> Result<Sample, MapsError> {
        let counts = maps.all_reasons.sums()?;
        let ends = || Reason::ALL.iter().filter(|reason| !reason.is_note());
        let packets = ends().filter_map(|reason| counts.get(*reason as usize)).sum();
        let drops = ends().filter(|reason| reason.action() == Action::Drop);
        self.refused = drops.filter_map(|reason| counts.get(*reason as usize)).sum();
        self.part = (self.part + 1) % PARTS;
        // Where it cannot be read, soft interrupts are no part of the load.
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let softirq = cpu_times(&stat).into_iter().map(|times| (times[6], times.iter().sum())).collect();
        Ok(Sample {
            at: now,
            packets,
            softirq,
            flows: maps.flows.proven(self.part, PARTS, &node.idle, now.as_nanos() as u64),
            queue: talk.and_then(Talk::queue).unwrap_or_default(),
        })
    }
}
