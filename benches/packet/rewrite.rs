//! `rewrite`: from a committed change of the membership to the whole new slot table in force.
//!
//! The state is the cluster's own, changed by its own commands, and put in force by what the agent does it with, in the
//! maps of a loaded node. In force it is from the moment on at which the map of maps shows the new table, which another
//! thread watches for; the call that put it there returns later, when the kernel has seen the last packet off that might
//! still be reading the old one. New ranks are those after one node has come back, worked out as a leader does, which knows
//! those without it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use redirector::consensus::state::{Command, Member, Standing, State};
use redirector::dataplane::rows;
use redirector::ownership::{Ranking, Ranks};
use serde::Serialize;
use xtask::bench::machine::{Disturbance, Watch};
use xtask::bench::rows::Rows;
use xtask::bench::spread::Spread;

use crate::Options;
use crate::measure::Pinned;
use crate::node::Node;

/// Milliseconds that are aimed at with 64 nodes.
const TARGET: f64 = 5.0;
const SLOTS: usize = 16_384;

#[derive(Debug, Serialize)]
struct Figure {
    /// What was committed: the death of a node, or new ranks for every slot.
    change: &'static str,
    nodes: u8,
    slots: usize,
    /// From the commit to the switch.
    ms: Spread,
    /// From the commit to the return of the call that switched.
    returned_ms: Spread,
    /// Of these, what working out the new ranks took: by the leader, before it proposes them.
    ranks_ms: Spread,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<f64>,
    #[serde(flatten)]
    disturbance: Disturbance,
}

/// Milliseconds of one change.
struct Times {
    switched: f64,
    returned: f64,
    ranks: f64,
}

/// Measures all of it.
pub(crate) fn run(options: &Options, rows: &mut Rows) -> Result<()> {
    let rounds = if options.short { 10 } else { 50 };
    println!(
        "{:<7} {:>5} {:>24} {:>18} {:>18}",
        "change", "nodes", "ms p50/p99/max", "returned p50", "ranks alone p50"
    );
    for nodes in [3, 8, 16, 32, 64] {
        for change in ["death", "ranks"] {
            if !rows.begin(format_args!("{change} of {nodes} nodes")) {
                continue;
            }
            let watch = Watch::start();
            let times = Rewrite::new(nodes)?.times(change, rounds)?;
            let of = |which: fn(&Times) -> f64| Spread::of_ms(times.iter().map(which));
            let figure = Figure {
                change,
                nodes,
                slots: SLOTS,
                ms: of(|one| one.switched)?,
                returned_ms: of(|one| one.returned)?,
                ranks_ms: of(|one| one.ranks)?,
                target: Some(TARGET),
                disturbance: watch.seen(),
            };
            let Spread { p50, p99, max } = figure.ms;
            let spread = format!("{p50:.2}/{p99:.2}/{max:.2}");
            let verdict = if p99 > TARGET { " missed" } else { "" };
            let (returned, ranks) = (figure.returned_ms.p50, figure.ranks_ms.p50);
            println!("{change:<7} {nodes:>5} {spread:>24} {returned:>18.2} {ranks:>18.2}{verdict}");
            rows.push(&figure)?;
        }
    }
    Ok(())
}

struct Rewrite {
    node: Node,
    outer: Array<MapData, u32>,
    state: State,
    index: u64,
    ranking: Ranking,
}

impl Rewrite {
    fn new(nodes: u8) -> Result<Self> {
        let mut node = Node::of(&text(nodes), 1)?;
        // Nothing but slots is agreed on anew.
        node.image.agreed = Some(BTreeMap::new());
        let outer = MapData::from_pin(node.directory.join("SLOTS")).context("the map SLOTS")?;
        // The system call shows a map of maps as one of the numbers of the maps in it.
        let outer = Array::try_from(Map::Array(outer))?;
        let member = || Member {
            address: String::new(),
            weight: 1,
            seat: None,
            standing: Standing::Up,
            draining: false,
            drained: false,
            incarnation: 1,
        };
        let mut state = State::genesis(1, member(), SLOTS as u32, String::new(), BTreeMap::new());
        state.members = (1..=nodes).map(|id| (id, member())).collect();
        let mut rewrite = Self { node, outer, state, index: 1, ranking: Ranking::default() };
        rewrite.change(None)?;
        Ok(rewrite)
    }

    /// Makes the same change again and again, each time to another node.
    fn times(&mut self, change: &str, rounds: u8) -> Result<Vec<Times>> {
        let nodes = self.state.members.len() as u8;
        let mut times = Vec::new();
        for round in 0..rounds {
            let id = round % nodes + 1;
            let (down, up) = (Command::NodeDown { id, incarnation: 1 }, Command::NodeUp { id, incarnation: 1 });
            let died = self.change(Some(&down))?;
            // A leader works out at once how slots should be ranked without it.
            self.ranks()?;
            // It is back, and then every slot gets the ranks that it had.
            self.commit(&Command::NodeReturning { id, incarnation: 1 })?;
            self.commit(&up)?;
            let ranked = self.change(None)?;
            times.push(if change == "death" { died } else { ranked });
        }
        Ok(times)
    }

    fn commit(&mut self, command: &Command) -> Result<()> {
        self.index += 1;
        Ok(self.state.apply(self.index, command)?)
    }

    /// The ranks that the members should have, as a leader works them out.
    fn ranks(&mut self) -> Result<Vec<Ranks>> {
        Ok(self.ranking.target(&self.state.weights(), SLOTS, 1)?)
    }

    /// Commits a command, or the ranks that the members should have, and puts the slots in force.
    fn change(&mut self, command: Option<&Command>) -> Result<Times> {
        let before = self.outer.get(&0, 0)?;
        let (stop, seen) = (AtomicBool::new(false), AtomicU64::new(0));
        let watch = Array::<_, u32>::try_from(Map::Array(MapData::from_pin(self.node.directory.join("SLOTS"))?))?;
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| -> Result<()> {
                let _pinned = Pinned::on(0)?;
                while !stop.load(Ordering::Relaxed) {
                    if watch.get(&0, 0).is_ok_and(|id| id != before) {
                        seen.store(begun.elapsed().as_nanos() as u64, Ordering::Relaxed);
                        break;
                    }
                }
                Ok(())
            });
            // The watcher runs before anything is changed. It never waits, and would take time from what it watches if it
            // had no CPU of its own.
            let pinned = Pinned::on(1);
            std::thread::sleep(std::time::Duration::from_millis(1));
            let changed = pinned.and_then(|_pinned| self.timed(command, begun));
            if changed.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
            watcher.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload)).and(changed)
        })
        .and_then(|(committed, ranks, returned)| {
            let seen = seen.load(Ordering::Relaxed);
            ensure!(seen > 0, "the slot table did not change");
            let ms = |ns: u64| ns.saturating_sub(committed) as f64 / 1e6;
            Ok(Times { switched: ms(seen), returned: ms(returned), ranks: ms(ranks) })
        })
    }

    /// When it was committed, when the ranks were there, and when the call returned.
    fn timed(&mut self, command: Option<&Command>, begun: Instant) -> Result<(u64, u64, u64)> {
        let now = || begun.elapsed().as_nanos() as u64;
        let committed = now();
        let ranks = match command {
            Some(command) => {
                self.commit(command)?;
                committed
            }
            None => {
                let ranks = self.ranks()?;
                let done = now();
                self.commit(&Command::Move { first: 0, ranks })?;
                done
            }
        };
        self.node.image.slots = self.state.slots.iter().map(|slot| (*slot).into()).collect();
        rows::follow(&mut self.node.maps, &self.node.image)?;
        Ok((committed, ranks, now()))
    }
}

fn text(nodes: u8) -> String {
    let mut text = format!(
        "[node]\nid = 1\npins = \"PINS\"\n[cluster]\nkey = \"000102030405060708090a0b0c0d0e0f\"\nslots = {SLOTS}\n\
         [tables]\nflows4 = 4096\nflows6 = 4096\n[[interface]]\nname = \"eth0\"\n"
    );
    for id in 1..=nodes {
        text += &format!("[[member]]\nid = {id}\naddress = \"10.0.0.{id}\"\ninterface = \"eth0\"\n");
    }
    text
}
