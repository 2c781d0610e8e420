//! Packets that clients send, the way that each takes through the cluster, and what must hold of it.

use redirector_ebpf::hash::FlowHash;
use redirector_ebpf::reason::Reason;
use suite::node;
use suite::packet::ROUTER;

use super::MS;
use super::host::Host;
use super::users::Connection;
use super::world::World;

impl World {
    /// Sends what clients send.
    pub(super) fn use_connections(&mut self) {
        for at in 0..self.connections.len() {
            if self.connections[at].next > self.now {
                continue;
            }
            let wait = self.connections[at].wait(&mut self.random);
            self.connections[at].next = self.now + wait;
            if self.connections[at].ends <= self.now {
                self.opened += 1;
                self.connections[at] = Connection::new(self.opened, self.now, &mut self.random);
            }
            let fit: Vec<u8> =
                self.hosts.iter().filter(|host| host.forwards() && host.is_fit).map(|host| host.id).collect();
            if fit.is_empty() {
                continue;
            }
            let entry = self.random.pick(&fit);
            self.send(at, entry);
        }
    }

    /// Sends a connection's packet into the cluster at a node, and on as long as nodes forward it.
    pub(super) fn send(&mut self, connection: usize, entry: u8) {
        let mut frame = self.connections[connection].packet().bytes();
        let (mut at, mut from, mut visited, mut sender) = (entry, ROUTER, Vec::new(), entry);
        self.summary.packets += 1;
        let lost = loop {
            frame[..6].copy_from_slice(&node::mac(at, 0));
            frame[6..12].copy_from_slice(&from);
            visited.push(at);
            let host = &mut self.hosts[usize::from(at) - 1];
            let time = host.time(self.now);
            let Some(plane) = host.plane.as_mut().filter(|_| !host.paused) else {
                break Some("a dead node".to_owned());
            };
            let done = plane.run(&frame, time);
            match done.reason {
                Reason::Served => {
                    let backend = plane.backend(done.journey.backend).unwrap_or_default().to_owned();
                    self.check_way(connection, &visited);
                    self.note_proof(connection, at);
                    self.tell_of(connection, &visited, &backend);
                    self.check_backend(connection, &visited, backend);
                    return;
                }
                Reason::Forwarded | Reason::HandedBack if visited.len() < 10 => {
                    // The receiver's MAC address says who it is, but for the bit that marks what it must keep.
                    let to = done.bytes[4];
                    from = done.bytes[6..12].try_into().expect("six bytes");
                    frame = done.bytes;
                    sender = at;
                    if !self.network.is_open(at, to) {
                        break Some(format!("the way from n{at} to n{to}, which is cut"));
                    }
                    at = to;
                }
                reason => break Some(format!("n{at}: {}", reason.name())),
            }
        };
        self.check_way(connection, &visited);
        if let Some(lost) = lost {
            self.tell_of(connection, &visited, &lost);
            self.summary.lost += 1;
            self.check_service(connection, &visited, sender, &lost);
        }
    }

    /// Takes note of when a flow became proven at the node that has just served it.
    pub(super) fn note_proof(&mut self, connection: usize, node: u8) {
        let connection = &self.connections[connection];
        let Host { plane: Some(plane), proven, .. } = &mut self.hosts[usize::from(node) - 1] else { return };
        let flow = plane.tables.memory.flows.find(&plane.hash_key(), &connection.tuple(), false);
        if flow.is_some_and(|flow| flow.entry.proven()) {
            proven.entry(connection.client).or_insert(self.now);
        } else {
            proven.remove(&connection.client);
        }
    }

    /// No packet is forwarded more than twice, or comes by a node twice.
    pub(super) fn check_way(&mut self, connection: usize, visited: &[u8]) {
        let again = (1..visited.len()).any(|at| visited[..at].contains(&visited[at]));
        for node in visited {
            self.checks.mix(u64::from(*node) << 24 | connection as u64);
        }
        if visited.len() > 3 || again {
            self.checks.break_with(format_args!("a packet went over {visited:?}"));
        }
    }

    /// Whether any of the slot's owners is alive in the eyes of the node where a packet enters.
    fn reaches_an_owner(&self, connection: usize, entry: u8) -> bool {
        let Some(plane) = &self.hosts[usize::from(entry) - 1].plane else { return false };
        let slot = self.connections[connection].slot(&plane.hash_key(), plane.slots().len() as u32 - 1);
        let alive = &plane.tables.memory.image.alive;
        plane.slots()[slot as usize].ranks.iter().any(|&owner| owner != 0 && alive.is_alive(owner))
    }

    /// What each node knows of a connection's flow, for whoever reads a failure.
    pub(super) fn whereabouts(&self, at: usize) -> String {
        let connection = &self.connections[at];
        let place = |host: &Host| {
            let plane = host.plane.as_ref()?;
            let memory = &plane.tables.memory;
            let hash = FlowHash::of(&plane.hash_key(), &connection.tuple(), false);
            let slot = &plane.slots()[hash.slot(plane.slots().len() as u32 - 1) as usize];
            let pool = memory.pools.values().next()?;
            let row = memory.tables.get(&pool.table)?[hash.row(pool.rows) as usize];
            let flow = memory.flows.find(&plane.hash_key(), &connection.tuple(), false);
            let name = |id| plane.backend(id).unwrap_or("none");
            Some(format!(
                "n{}: row {} before {} {}, slot {:?} previous {} version {}, flow {:?} {}; ",
                host.id,
                name(row.current()),
                name(row.previous()),
                if row.disputed() { "disputed" } else { "settled" },
                slot.ranks,
                slot.previous,
                slot.version,
                flow.map(|flow| (
                    name(flow.entry.backend()),
                    flow.entry.proven(),
                    flow.entry.idle(host.time(self.now))
                )),
                if host.is_fit { "fit" } else { "not fit" },
            ))
        };
        self.hosts.iter().filter_map(place).collect()
    }

    /// Flows that have their copies keep their backend.
    pub(super) fn check_backend(&mut self, at: usize, visited: &[u8], backend: String) {
        let is_reached = self.reaches_an_owner(at, visited[0]);
        let host = |node: u8| &self.hosts[usize::from(node) - 1];
        let by_reborn = matches!(*visited, [.., sender, last] if !host(sender).acts() && !host(last).is_fit);
        let connection = &mut self.connections[at];
        connection.served += 1;
        match &connection.backend {
            None => connection.backend = Some(backend),
            Some(first) if *first == backend => {}
            // What a node chose while it reached nobody it goes on with where it is the slot's previous owner, until it has
            // told of it: a client that was sent there has lost its connection by then.
            Some(_) if connection.guaranteed && connection.strayed == visited.last().copied() => {
                self.summary.moved += 1
            }
            // A second fault: without an agent nobody finds out that the owner has died and come back knowing nothing.
            Some(_) if connection.guaranteed && by_reborn => self.summary.moved += 1,
            Some(first) if connection.guaranteed && is_reached => {
                let (client, port) = (connection.client, connection.service.port());
                let said = format!("{client} to port {port} was on {first} and is on {backend} now, by {visited:?}");
                let what = format!("{said}: {}", self.whereabouts(at));
                self.checks.break_with(what);
            }
            Some(_) if connection.guaranteed => {
                connection.strayed = visited.last().copied();
                self.summary.moved += 1;
            }
            Some(_) => {
                connection.backend = Some(backend);
                self.summary.moved += 1;
            }
        }
    }

    /// Once a fault is found out, every packet that enters at a node that serves is served.
    /// `sender` is the node that sent the packet where it was lost.
    pub(super) fn check_service(&mut self, at: usize, visited: &[u8], sender: u8, lost: &str) {
        let (_, timeout) = &self.beats;
        // Both a timeout and another one, where most peers fall silent at once; and until the last request was due.
        let found_out = 3 * timeout + 100 * MS;
        let storm = self.network.loss > 0 || self.network.jitter > 0;
        // Who has no agent, or whose agent stands still, passes no verdicts.
        let since = self.disturbed.max(self.hosts[usize::from(sender) - 1].acts_since);
        if self.now - since > found_out && !storm {
            let client = self.connections[at].client;
            self.checks.break_with(format_args!("a packet of {client} by {visited:?} was lost: {lost}"));
        }
    }
}
