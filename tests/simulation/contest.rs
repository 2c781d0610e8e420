//! The two sides of a cut choose a backend for the same flows, and the few go on with some of them, the most with none or
//! with the rest. After healing every node goes by the few's choice for the former, by the most's for the latter.

use std::collections::BTreeMap;

use redirector::consensus::state::Standing;

use super::users::Connection;
use super::world::World;
use super::{Failure, MS, SECOND};

/// Flows that both sides take for theirs.
const FLOWS: usize = 32;
/// For so long those that the few go on with are not used on the other side.
const UNUSED: u64 = 7 * SECOND;
/// How often a flow is used.
const USED: u64 = 400 * MS;
/// How soon after all is well no node goes by another choice any more.
const SETTLED: u64 = 3 * SECOND;

/// A contested flow: its place among the connections, and who chose what.
struct Contested {
    at: usize,
    few: String,
    most: String,
    /// Whether the most go on with it, too.
    by_both: bool,
}

impl World {
    /// Cuts two nodes off from three.
    pub(super) fn contest(&mut self) -> Result<(), Failure> {
        let first = self.random.below(5) as u8;
        let few = [first + 1, (first + 2) % 5 + 1];
        let most: Vec<u8> = (1..=5).filter(|id| !few.contains(id)).collect();
        self.change_at = u64::MAX;
        (self.calm, self.faulty, self.disturbed) = (false, true, self.now);
        self.connections.clear();
        self.cut(|one, other| few.contains(&one) != few.contains(&other));
        let others = most.clone();
        self.until("most agree that the few are down", 30 * SECOND, |world| {
            others.iter().all(|id| {
                let agent = world.hosts[usize::from(*id) - 1].agent.as_ref();
                let down =
                    |id: &u8| agent.is_some_and(|agent| agent.desk.state().members[id].standing == Standing::Down);
                few.iter().all(down)
            })
        })?;
        // The few go on by the rows of before.
        let before = self.summary.changes;
        self.ask(usize::from(most[0]) - 1);
        self.until("a change on the side of the most", 5 * SECOND, |world| world.summary.changes > before)?;
        self.pass(2 * SECOND)?;
        let contested = self.choose(few[0], most[0])?;
        let until = self.now + UNUSED;
        while self.now < until {
            self.use_contested(&contested, few[0], most[0])?;
        }
        self.heal();
        let mut well = None;
        while well.is_none_or(|at| self.now - at < SETTLED) {
            self.use_contested(&contested, few[0], most[0])?;
            if well.is_none() && self.is_calm() {
                well = Some(self.now);
            }
            if self.now - self.disturbed > 60 * SECOND {
                let standing = self.standing();
                return Err(self.failure(format!("not well for a minute after a cut\n{standing}")));
            }
        }
        for flow in &contested {
            let holds = if flow.by_both { &flow.most } else { &flow.few };
            let choices = self.choices(flow.at);
            if choices.values().any(|choice| choice != holds) {
                let used = if flow.by_both { "both sides" } else { "the few" };
                let whereabouts = self.whereabouts(flow.at);
                let client = self.connections[flow.at].client;
                let (few, most) = (&flow.few, &flow.most);
                let what = format!("{client}, by {few} and {most}, was used by {used}, and goes by {choices:?} now: ");
                return Err(self.failure(what + &whereabouts));
            }
        }
        self.connections.clear();
        self.tell(format_args!("{} contested flows go by the choices that hold", contested.len()));
        Ok(())
    }

    /// Opens flows on both sides; gives those for which the sides have chosen otherwise.
    fn choose(&mut self, few: u8, most: u8) -> Result<Vec<Contested>, Failure> {
        let first = self.connections.len();
        for number in 0..FLOWS as u64 {
            let mut connection = Connection::new(59_000 + number, self.now, &mut self.random);
            connection.service.set_port(443);
            (connection.next, connection.ends) = (u64::MAX, u64::MAX);
            self.connections.push(connection);
        }
        let mut chosen = Vec::new();
        for entry in [few, most] {
            for at in first..first + FLOWS {
                self.connections[at].served = 0;
            }
            for _ in 0..3 {
                (first..first + FLOWS).for_each(|at| self.send(at, entry));
                self.pass(50 * MS)?;
            }
            self.pass(300 * MS)?;
            let of = |at: usize| self.connections[at].backend.clone().unwrap_or_default();
            chosen.push((first..first + FLOWS).map(of).collect::<Vec<_>>());
        }
        let both = chosen[0].iter().zip(&chosen[1]).enumerate().filter(|(_, (few, most))| few != most);
        let contested = both.map(|(place, (few, most))| Contested {
            at: first + place,
            few: few.clone(),
            most: most.clone(),
            by_both: place % 2 == 0,
        });
        Ok(contested.collect())
    }

    fn use_contested(&mut self, contested: &[Contested], few: u8, most: u8) -> Result<(), Failure> {
        for flow in contested {
            self.send(flow.at, few);
            if flow.by_both {
                self.send(flow.at, most);
            }
        }
        self.pass(USED)
    }

    /// What each node that knows a flow goes by.
    fn choices(&self, at: usize) -> BTreeMap<u8, String> {
        let tuple = self.connections[at].tuple();
        let choice = |host: &super::host::Host| {
            let plane = host.plane.as_ref()?;
            let flow = plane.tables.memory.flows.find(&plane.hash_key(), &tuple, false)?;
            flow.entry.proven().then(|| (host.id, plane.backend(flow.entry.backend()).unwrap_or("none").to_owned()))
        };
        self.hosts.iter().filter_map(choice).collect()
    }
}
