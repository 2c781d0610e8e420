//! What is measured, and from where on it is no longer good, and bad: as it is by itself, and as an operator has it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::figure::Area;

/// Something that is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// What it is about.
    pub area: Area,
    /// Its name, which ends with its unit.
    pub name: &'static str,
    /// Up to here it is good, or down to here where `bad` is less.
    pub good: f64,
    /// From here on it is bad.
    pub bad: f64,
    /// Whether a bad one is a failure of the whole node, whatever the others are.
    pub is_vital: bool,
}

impl Figure {
    /// Time that the hypervisor gave to others, of all CPUs'.
    pub const STEAL: Self = Self::new(Area::Cpu, "steal-%", 20.0, 80.0);
    /// Soft interrupts, of the time of the CPU that has most of them.
    pub const SOFTIRQ: Self = Self::new(Area::Cpu, "softirq-%", 90.0, 100.0);
    /// Time that CPUs are not idle. Busy ones are no fault by themselves: what suffers by them is measured beside.
    pub const BUSY: Self = Self::new(Area::Cpu, "busy-%", 100.0, f64::MAX);
    /// How long the agent's main task was held up.
    pub const LOOP_DELAY: Self = Self::new(Area::Cpu, "loop-delay-ms", 500.0, 5000.0);
    /// A step of the wall clock, by which nothing but certificates goes.
    pub const CLOCK_STEP: Self = Self::new(Area::Cpu, "clock-step-ms", 1000.0, 3_600_000.0);
    /// Memory that is available.
    pub const AVAILABLE: Self = Self::new(Area::Memory, "available-%", 5.0, 1.0);
    /// Time in which everybody waited for memory.
    pub const PRESSURE: Self = Self::new(Area::Memory, "pressure-%", 20.0, 80.0);
    /// Interfaces with something at the other end.
    pub const CARRIER: Self = Self::new(Area::Network, "carrier-%", 100.0, 0.0);
    /// Interfaces with XDP, in the way that is configured.
    pub const ATTACHED: Self = Self::new(Area::Network, "xdp-attached-%", 100.0, 0.0);
    /// Packets that cards had no room for, or that were dropped before anybody looked at them.
    pub const RECEIVE_DROPS: Self = Self::new(Area::Network, "receive-drops-%", 1.0, 50.0);
    /// Peers that answer on their first link. A node that no packets can come to from the others is alive to them, by its
    /// other links, and must hand over by itself what it has.
    pub const FIRST_LINK: Self = Self::new(Area::Network, "answers-on-first-link-%", 50.0, 0.0).vital();
    /// Next hops whose MAC address is not found, where that is this node's fault.
    pub const NEXT_HOPS: Self = Self::new(Area::Network, "next-hops-unresolved-%", 0.0, 100.0);
    /// How long a write to the data directory takes until it is durable.
    pub const FSYNC: Self = Self::new(Area::Storage, "fsync-ms", 500.0, 4000.0).vital();
    /// What is free of its file system.
    pub const SPACE: Self = Self::new(Area::Storage, "space-left-%", 5.0, 0.0);

    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::STEAL,
        Self::SOFTIRQ,
        Self::BUSY,
        Self::LOOP_DELAY,
        Self::CLOCK_STEP,
        Self::AVAILABLE,
        Self::PRESSURE,
        Self::CARRIER,
        Self::ATTACHED,
        Self::RECEIVE_DROPS,
        Self::FIRST_LINK,
        Self::NEXT_HOPS,
        Self::FSYNC,
        Self::SPACE,
    ];

    pub(super) const fn new(area: Area, name: &'static str, good: f64, bad: f64) -> Self {
        Self { area, name, good, bad, is_vital: false }
    }

    pub(super) const fn vital(self) -> Self {
        Self { is_vital: true, ..self }
    }

    /// Whether a greater value is a worse one.
    pub fn rises(&self) -> bool {
        self.bad > self.good
    }
}

/// Thresholds that an operator has set, by the names of figures: where each ceases to be good, and where it is bad.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Thresholds(BTreeMap<&'static str, [u32; 2]>);

impl Thresholds {
    /// Sets a figure's.
    pub fn set(&mut self, figure: &Figure, good_and_bad: [u32; 2]) {
        self.0.insert(figure.name, good_and_bad);
    }

    /// The figure, with the thresholds that hold.
    pub fn of(&self, figure: Figure) -> Figure {
        match self.0.get(figure.name) {
            Some(&[good, bad]) => Figure { good: good.into(), bad: bad.into(), ..figure },
            None => figure,
        }
    }
}
