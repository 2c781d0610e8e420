//! Faults of links and fabrics: frames that are lost, spoilt or late, by chance or all of them.
//!
//! They befall frames where these enter a fabric, so one host's frames, or all of a fabric's, each of which enters once.

use std::fmt;
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::stub::Stub;
use super::{Between, Lab, Role};

/// Where something breaks: `a` or `b`, a whole fabric between nodes and backends; `n1`, a host's link to the segment of all;
/// `n1-a`, its link to a fabric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    host: Option<String>,
    fabric: Option<Between>,
}

/// What befalls frames.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Spoil {
    /// This share of them, in per cent, does not arrive.
    Loss(f64),
    /// This share of them, in per cent, arrives with a wrong byte.
    Corrupt(f64),
    /// They arrive so many milliseconds later.
    Delay(u32),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fabric = |name: &str| Between::ALL.into_iter().find(|between| between.name() == name);
        match text.split_once('-') {
            _ if text.is_empty() => Err("name a fabric, a host or a host's link: `a`, `n1`, `n1-a`".into()),
            None => Ok(match fabric(text) {
                Some(between) => Self { host: None, fabric: Some(between) },
                None => Self { host: Some(text.into()), fabric: None },
            }),
            Some((host, name)) => match fabric(name) {
                Some(between) => Ok(Self { host: Some(host.into()), fabric: Some(between) }),
                None => Err(format!("there is no fabric `{name}`: write {host}-a or {host}-b")),
            },
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.fabric) {
            (Some(host), Some(fabric)) => write!(f, "{host}-{}", fabric.name()),
            (Some(host), None) => f.write_str(host),
            (None, Some(fabric)) => write!(f, "fabric {}", fabric.name()),
            (None, None) => f.write_str("nowhere"),
        }
    }
}

impl Place {
    /// A whole fabric.
    pub fn fabric(between: Between) -> Self {
        Self { host: None, fabric: Some(between) }
    }
}

impl Lab {
    /// Takes the carrier of links away, until [`Lab::heal`]. Returns the moment.
    pub fn unlink(&self, place: &Place) -> Result<Instant> {
        let lines: Vec<String> = self.ends(place)?.iter().map(|end| format!("link set {end} down")).collect();
        let cut = Instant::now();
        self.role(Role::Fabric).ip(&lines)?;
        Ok(cut)
    }

    /// Has all frames lost from one moment on, while carriers stay up, until [`Lab::heal`]. Returns the moment.
    pub fn cut(&self, place: &Place) -> Result<Instant> {
        let ends = self.ends(place)?;
        self.attach(&ends, &Stub::drop()?)
    }

    /// Ends [`Lab::cut`] and [`Lab::spoil`] at a place, where no node is dead. Returns the moment.
    pub fn mend(&self, place: &Place) -> Result<Instant> {
        let ends = self.ends(place)?;
        self.attach(&ends, &Stub::pass()?)
    }

    /// Spoils frames, until [`Lab::heal`].
    pub fn spoil(&self, place: &Place, spoil: Spoil) -> Result<()> {
        let per_million = |percent: f64| match (0.0..=100.0).contains(&percent) {
            true => Ok((percent * 10_000.0) as u32),
            false => bail!("{percent} is no share: write a number from 0 to 100"),
        };
        let ends = self.ends(place)?;
        match spoil {
            Spoil::Loss(percent) => self.attach(&ends, &Stub::lossy(per_million(percent)?)?).map(drop),
            Spoil::Corrupt(percent) => self.attach(&ends, &Stub::corrupting(per_million(percent)?)?).map(drop),
            Spoil::Delay(milliseconds) => self.delay(&ends, milliseconds),
        }
    }

    /// Only a queueing discipline can hold frames back; what leaves by an end is what comes to its host.
    fn delay(&self, ends: &[String], milliseconds: u32) -> Result<()> {
        for end in ends {
            let time = format!("{milliseconds}ms");
            let args = ["qdisc", "replace", "dev", end, "root", "netem", "delay", &time];
            let output = self.role(Role::Fabric).command("tc").args(args).output().context("cannot run `tc`")?;
            if !output.status.success() {
                let says = String::from_utf8_lossy(&output.stderr);
                bail!("frames cannot be delayed, this kernel has no netem (`modprobe sch_netem`): {}", says.trim());
            }
        }
        Ok(())
    }

    fn attach(&self, ends: &[String], program: &Stub) -> Result<Instant> {
        self.role(Role::Fabric).run(|| {
            let moment = Instant::now();
            ends.iter().try_for_each(|end| program.attach(end)).map(|()| moment)
        })?
    }

    /// The fabric's ends of the links of a place.
    fn ends(&self, place: &Place) -> Result<Vec<String>> {
        if place.fabric.is_some() && !self.topology.between {
            bail!("the lab `{}` has no fabrics A and B: bring one up with --fabrics", self.topology.name);
        }
        let end = |role: Role| match place.fabric {
            Some(between) => role.end(self.topology.fabric, between),
            None => role.name(self.topology.fabric),
        };
        match &place.host {
            None => {
                let hosts = self.topology.hosts().into_iter();
                Ok(hosts.filter(|role| !self.topology.fabrics_of(*role).is_empty()).map(end).collect())
            }
            Some(host) => {
                let role = self.member(host)?;
                if place.fabric.is_some() && self.topology.fabrics_of(role).is_empty() {
                    bail!("{host} has no link to a fabric between nodes and backends");
                }
                Ok(vec![end(role)])
            }
        }
    }
}

/// Lets all frames through again, other than those of dead nodes.
pub(super) fn restore(lab: &Lab) -> Result<()> {
    let alive = lab.topology.hosts().into_iter().filter(|role| !lab.is_dead(&role.name(lab.topology.fabric)));
    let ends: Vec<String> = alive.flat_map(|role| lab.topology.ends(role)).collect();
    lab.attach(&ends, &Stub::pass()?)?;
    for end in &ends {
        // There is none to delete where nothing was delayed.
        let _ = lab.role(Role::Fabric).command("tc").args(["qdisc", "del", "dev", end, "root"]).output();
    }
    Ok(())
}
