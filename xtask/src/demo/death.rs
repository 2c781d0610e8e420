//! The death of a node that matters: it holds a VIP and owns slots while clients use both. Another takes over; it comes
//! back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::maps::counters;
use super::walks::{Check, count};
use crate::lab::{Config, Lab, client_addresses, vip4};
use crate::traffic::{ECHO_PORT, HTTP_PORT, Load, LoadReport, Stream, Users};

/// The lab's second VIP is that of an owned service.
const OWNED: u8 = 2;
const REQUESTS_A_SECOND: u32 = 200;
const DATAGRAMS_A_SECOND: u32 = 2000;
const CONNECTIONS: usize = 48;
/// Requests go on until all is over, but not longer.
const REQUESTS_END: Duration = Duration::from_secs(300);
const FIRST_PORT: u16 = 20_000;

/// What was seen of it.
#[derive(Debug, Default, Serialize)]
pub(super) struct Death {
    vip: String,
    holder_before: String,
    holders_after: Vec<String>,
    holders_in_the_end: Vec<String>,
    /// Slots by the node that serves them.
    slots_before: BTreeMap<String, u64>,
    slots_after: BTreeMap<String, u64>,
    slots_in_the_end: BTreeMap<String, u64>,
    /// Owners of the stream's flow.
    owner_before: Option<String>,
    owner_after: Option<String>,
    /// The longest time without an answer to the stream.
    gap_ms: f64,
    datagrams_sent: u64,
    datagrams_lost: u64,
    /// From the start of the new agent until all nodes were alive again and the VIP was back.
    back_after_ms: f64,
    return_gap_ms: f64,
    return_datagrams_lost: u64,
    /// Packets that the node has served since it is back.
    served_again: u64,
    connections: u64,
    broken_connections: u64,
    requests_sent: u64,
    requests_ok: u64,
    /// What failed, in words.
    errors: Vec<String>,
}

/// The part of an entry of `redirector get owners --slots -o json` that says who may serve a slot.
#[derive(Debug, Deserialize)]
struct Slot {
    ranks: Vec<String>,
}

impl Death {
    /// Lets the VIP's holder die and come back under traffic, and says what happens when it does.
    pub(super) fn watch(lab: &Lab, config: &Config) -> Result<Self> {
        lab.on_link()?;
        let web = config.targets(HTTP_PORT);
        let load = Load::new(web.clone(), REQUESTS_A_SECOND, REQUESTS_END);
        let (client, stop) = (lab.client(), AtomicBool::new(false));
        thread::scope(|scope| {
            let requests = scope.spawn(|| client.run(|| load.run_until(&stop, |_, _| {})));
            let death = Self::under_way(lab, &web);
            stop.store(true, Ordering::Relaxed);
            let requests = requests.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))?;
            Ok(death?.with(requests))
        })
    }

    fn under_way(lab: &Lab, web: &[SocketAddr]) -> Result<Self> {
        let vip = IpAddr::from(vip4(OWNED));
        let victim = lab.holder(vip)?;
        let others: Vec<String> = lab.nodes().into_iter().filter(|node| *node != victim).collect();
        let witness = &others[0];
        let target = SocketAddr::new(vip, ECHO_PORT);
        let addresses = client_addresses(vip);
        let sources = (FIRST_PORT..).zip(addresses.iter().cycle()).map(|(port, ip)| SocketAddr::new(*ip, port));
        let source = lab.source_of(&victim, sources, target)?;
        let mut death = Self { vip: vip.to_string(), slots_before: slots(lab, witness)?, ..Self::default() };
        death.owner_before = lab.owner(witness, source, target)?;
        let (all, own) = (death.slots_before.values().sum::<u64>(), death.slots_before.get(&victim).unwrap_or(&0));
        println!(
            "   {victim} holds {vip} and serves {own} of {all} slots, under {REQUESTS_A_SECOND} requests a second,"
        );
        println!("   {CONNECTIONS} open connections, and a stream of {DATAGRAMS_A_SECOND} datagrams a second");

        let stream = Stream { per_second: DATAGRAMS_A_SECOND, flows: vec![(source, target)] };
        let users = Users::start(lab.client(), stream, web, CONNECTIONS)?;
        lab.kill(&victim)?;
        println!("   {victim} dies: kill -9, its data plane and maps are gone, its carrier stays up");
        let (felt, users) = users.felt()?;
        death.gap_ms = felt.gap_max_us as f64 / 1000.0;
        (death.datagrams_sent, death.datagrams_lost) = (felt.sent, felt.lost);
        println!("   ► no answer for {:.1} ms; {} of {} datagrams lost", death.gap_ms, felt.lost, felt.sent);
        death.holders_after = lab.holders(vip)?;
        println!("   ► {vip} went over to {}", death.holders_after.join(", "));
        death.slots_after = slots(lab, witness)?;
        death.owner_after = lab.owner(witness, source, target)?;
        println!("   ► its slots went to the next of their lists: {}", death.heirs());

        let begun = Instant::now();
        lab.heal()?;
        println!("   {victim} starts anew, with empty maps");
        if let Err(error) = lab.whole() {
            death.errors.push(format!("{error:#}"));
        }
        death.back_after_ms = begun.elapsed().as_secs_f64() * 1000.0;
        death.holders_in_the_end = lab.holders(vip)?;
        death.slots_in_the_end = slots(lab, witness)?;
        let (returned, long) = users.finish()?;
        death.served_again = counters(lab, &victim)?.get("served").copied().unwrap_or(0);
        death.return_gap_ms = returned.gap_max_us as f64 / 1000.0;
        death.return_datagrams_lost = returned.lost;
        let (seconds, served) = (death.back_after_ms / 1000.0, death.served_again);
        println!("   ► {victim} holds and serves again after {seconds:.1} s, {served} packets since it is back;");
        println!("     {} datagrams lost on its return, no answer for {:.1} ms", returned.lost, death.return_gap_ms);
        (death.connections, death.broken_connections) = (long.opened, long.broken);
        death.errors.extend(long.errors);
        death.holder_before = victim;
        Ok(death)
    }

    fn with(mut self, requests: LoadReport) -> Self {
        println!("   {} of {} requests answered, slowest {} ms;", requests.ok, requests.sent, requests.max_us / 1000);
        println!("   {} of {} connections broken", self.broken_connections, self.connections);
        (self.requests_sent, self.requests_ok) = (requests.sent, requests.ok);
        self.errors.extend(requests.errors);
        self
    }

    /// Who serves more slots than before.
    fn heirs(&self) -> String {
        let more = |(node, after): (&String, &u64)| {
            let more = after.saturating_sub(*self.slots_before.get(node).unwrap_or(&0));
            (more > 0).then(|| format!("{more} to {node}"))
        };
        self.slots_after.iter().filter_map(more).collect::<Vec<_>>().join(", ")
    }

    /// What must hold.
    pub(super) fn checks(&self) -> Vec<Check> {
        let dead = &self.holder_before;
        let holds = |what: String, holds: bool, else_: String| {
            let wrong =
                if holds { Vec::new() } else { [else_].into_iter().chain(self.errors.iter().cloned()).collect() };
            Check { what, wrong }
        };
        let others = |nodes: &[String]| nodes.len() == 1 && nodes[0] != *dead;
        let sum = |slots: &BTreeMap<String, u64>| slots.values().sum::<u64>();
        vec![
            holds(
                format!("every request was answered while {dead} died and came back"),
                self.requests_ok == self.requests_sent && self.requests_sent > 0,
                format!("{} of {} were answered", self.requests_ok, self.requests_sent),
            ),
            holds(
                format!("none of {CONNECTIONS} connections broke"),
                self.broken_connections == 0 && self.connections == CONNECTIONS as u64,
                format!("{} of {} broke", self.broken_connections, self.connections),
            ),
            holds(
                format!("another node took {} over", self.vip),
                others(&self.holders_after),
                format!("it was held by {:?}", self.holders_after),
            ),
            holds(
                format!("{dead}'s slots, and the flow of the stream, had other owners"),
                !self.slots_after.contains_key(dead)
                    && sum(&self.slots_after) == sum(&self.slots_before)
                    && self.owner_before.as_ref() == Some(dead)
                    && self.owner_after.as_ref().is_some_and(|owner| owner != dead),
                format!("slots: {:?}; the flow's owner: {:?}", self.slots_after, self.owner_after),
            ),
            holds(
                format!("in the end all nodes are alive, and {dead} holds, owns and serves as before"),
                self.holders_in_the_end == [dead.clone()]
                    && self.slots_in_the_end == self.slots_before
                    && self.served_again > 0,
                format!(
                    "holder: {:?}, slots: {:?}, served: {}",
                    self.holders_in_the_end, self.slots_in_the_end, self.served_again
                ),
            ),
        ]
    }
}

/// How many slots each node serves in a node's eyes: the first of a slot's list that is alive does.
fn slots(lab: &Lab, by: &str) -> Result<BTreeMap<String, u64>> {
    let alive: BTreeSet<String> = lab.seen(by)?.into_iter().filter(|seen| seen.alive).map(|seen| seen.name).collect();
    let slots: Vec<Slot> = lab.ask(by, &["get", "owners", "--slots"])?;
    let first = |slot: &'_ Slot| slot.ranks.iter().find(|node| alive.contains(*node)).cloned();
    let serving: Vec<String> = slots.iter().filter_map(first).collect();
    Ok(count(serving.iter().map(String::as_str)))
}
