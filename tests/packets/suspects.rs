//! New flows whose backend has no path that is alive, while nobody has agreed on its death.

use redirector::dataplane::memory::MemoryTables;
use redirector_ebpf::hash::FlowHash;
use redirector_ebpf::packet::{Tuple, protocol};
use redirector_ebpf::reason::Reason;
use redirector_ebpf::tables::Row;
use redirector_ebpf::tables::path::alive;
use suite::node::{self, Done, backend, pool, send, set_rows, tuple};
use suite::packet::{Packet, tcp, udp};

use super::ranks;

const AVOIDED: &[Reason] = &[Reason::NoteRecorded, Reason::NoteAvoided];
const STAYS: &[Reason] = &[Reason::NoteLeastBad];
const STAYS_NEW: &[Reason] = &[Reason::NoteRecorded, Reason::NoteLeastBad];

/// Node 1, which owns every slot; all paths of these backends are dead.
fn owner_without(dead: &[&str]) -> MemoryTables {
    let mut tables = node::node(1);
    ranks([1, 2, 0, 0])(&mut tables);
    tables.image.slots.iter_mut().for_each(|slot| slot.version = 7);
    dead.iter().for_each(|name| kill(&mut tables, name));
    tables
}

fn kill(tables: &mut MemoryTables, name: &str) {
    let paths = tables.image.backends[&backend(tables, name)].paths;
    tables.paths_off.extend(paths.iter().filter(|path| **path != 0).map(|path| (*path, alive::OFF)));
}

/// A client's port from which a flow to this VIP and port has a row of `of`, the `at`-th of those.
fn client(tables: &MemoryTables, to: &str, protocol: u8, of: &str, at: usize) -> u16 {
    let vip: std::net::SocketAddr = to.parse().unwrap();
    let pool = tables.pools[&pool(tables, "l2")];
    let is_of = |port: &u16| {
        let tuple: Tuple = tuple(("192.0.2.7".parse().unwrap(), *port), (vip.ip(), vip.port()), protocol);
        let hash = FlowHash::of(&tables.image.node.hash_key, &tuple, false);
        tables.tables[&pool.table][hash.row(pool.rows) as usize].current() == backend(tables, of)
    };
    (1_000..60_000).filter(is_of).nth(at).expect("some flow has such a row")
}

const HTTPS: &str = "198.51.100.1:443";
const HTTP: &str = "198.51.100.1:80";
const SIP: &str = "198.51.100.1:5060";

fn tcp_of(tables: &MemoryTables, to: &str, of: &str, at: usize) -> Packet {
    tcp(&format!("192.0.2.7:{}", client(tables, to, protocol::TCP, of, at)), to)
}

fn sip_of(tables: &MemoryTables, of: &str, at: usize) -> Packet {
    udp(&format!("192.0.2.7:{}", client(tables, SIP, protocol::UDP, of, at)), SIP)
}

fn served(tables: &MemoryTables, says: &str, packet: &Packet, notes: &[Reason]) -> Done {
    let done = send(tables, &packet.bytes());
    assert_eq!((done.verdict.reason, &done.notes[..]), (Reason::Served, notes), "{says}");
    done
}

fn stays(tables: &MemoryTables, says: &str, packet: &Packet, on: &str, notes: &[Reason]) {
    let done = served(tables, says, packet, notes);
    assert_eq!((done.journey.backend, done.journey.avoided), (backend(tables, on), 0), "{says}");
}

#[test]
fn a_new_flow_avoids_a_suspect_backend_and_keeps_the_one_that_it_got() {
    let mut tables = owner_without(&["l2/a"]);
    let suspect = backend(&tables, "l2/a");
    let mut went = [0; 3];
    for at in 0..60 {
        for (opens, goes_on) in [
            (tcp_of(&tables, HTTPS, "l2/a", at).syn(), tcp_of(&tables, HTTPS, "l2/a", at)),
            (sip_of(&tables, "l2/a", at), sip_of(&tables, "l2/a", at)),
        ] {
            let done = served(&tables, "opens", &opens, AVOIDED);
            let got = done.journey.backend;
            assert!(got != suspect && done.journey.avoided == suspect, "{:?}", done.journey);
            assert_eq!(done.bytes[..6], node::backend_mac(&tables, got), "it leaves for it");
            went[usize::from(got != backend(&tables, "l2/b"))] += 1;
            let off = std::mem::take(&mut tables.paths_off);
            for at in [1, 1_000] {
                tables.now.set(tables.now.get() + at * 1_000_000);
                let done = served(&tables, "goes on, the suspect back or not", &goes_on, &[]);
                assert_eq!((done.journey.backend, done.journey.known, done.journey.avoided), (got, true, 0));
            }
            tables.paths_off = off;
            assert_eq!(served(&tables, "goes on", &goes_on, &[]).journey.backend, got);
        }
    }
    assert!(went[0] > 30 && went[1] > 30, "all others have their part: {went:?}");
    stays_away_from_nobody(&tables);
}

/// Flows of other rows are not touched.
fn stays_away_from_nobody(tables: &MemoryTables) {
    let notes = &[Reason::NoteRecorded];
    stays(tables, "another row's", &tcp_of(tables, HTTPS, "l2/b", 0).syn(), "l2/b", notes);
}

#[test]
fn a_syn_that_comes_again_leaves_a_backend_that_has_become_suspect_and_an_established_flow_does_not() {
    let mut tables = owner_without(&[]);
    let [opening, established] = [0, 1].map(|at| tcp_of(&tables, HTTPS, "l2/a", at));
    let [once, going] = [0, 1].map(|at| sip_of(&tables, "l2/a", at));
    for packet in [opening.clone().syn(), established.clone().syn(), once.clone(), going.clone()] {
        stays(&tables, "begins", &packet, "l2/a", &[Reason::NoteRecorded]);
    }
    tables.now.set(tables.now.get() + 5_000_000);
    stays(&tables, "its client answers", &established, "l2/a", &[]);
    stays(&tables, "its second datagram", &going, "l2/a", &[]);
    kill(&mut tables, "l2/a");
    let done = served(&tables, "the SYN again", &opening.clone().syn(), &[Reason::NoteAvoided]);
    assert!(done.journey.known && done.journey.avoided == backend(&tables, "l2/a"));
    let got = done.journey.backend;
    assert_eq!(served(&tables, "and it goes on there", &opening, &[]).journey.backend, got);
    stays(&tables, "established", &established, "l2/a", STAYS);
    stays(&tables, "established, and a SYN of its tuple", &established.syn(), "l2/a", STAYS);
    stays(&tables, "datagrams", &going, "l2/a", STAYS);
    stays(&tables, "a second datagram, of which the first got through", &once, "l2/a", STAYS);
}

#[test]
fn what_nobody_remembers_stays_with_its_row() {
    let mut tables = owner_without(&["l2/a"]);
    stays(&tables, "shared and undisputed", &tcp_of(&tables, HTTP, "l2/a", 0).syn(), "l2/a", STAYS);
    stays(&tables, "a flow that began elsewhere", &tcp_of(&tables, HTTPS, "l2/a", 0), "l2/a", STAYS_NEW);
    tables.image.node.inserts = 1;
    let spent = [Reason::NoteInsertBudget, Reason::NoteLeastBad];
    served(&tables, "the last that is recorded", &tcp_of(&tables, HTTPS, "l2/a", 1).syn(), AVOIDED);
    let next = tcp_of(&tables, HTTPS, "l2/a", 2);
    stays(&tables, "not recorded", &next.clone().syn(), "l2/a", &spent);
    stays(&tables, "nor the next one of the flow", &next, "l2/a", &spent);
}

#[test]
fn rows_of_a_change_are_their_owners_and_what_is_old_lasts() {
    let mut tables = owner_without(&["l2/a"]);
    for row in tables.tables.values_mut().flatten() {
        *row = Row::new(row.current(), row.previous(), true);
    }
    let done = served(&tables, "shared and disputed", &tcp_of(&tables, HTTP, "l2/a", 0).syn(), AVOIDED);
    assert_eq!(done.journey.avoided, backend(&tables, "l2/a"));
    for (says, at, old_until) in [("an old flow's, for all that is known", 1, u64::MAX), ("a new flow's", 2, 0)] {
        tables.pools.values_mut().for_each(|pool| pool.old_until = old_until);
        let (packet, notes) = (sip_of(&tables, "l2/a", at), if old_until == 0 { AVOIDED } else { STAYS_NEW });
        let done = served(&tables, says, &packet, notes);
        assert_eq!(done.journey.avoided != 0, old_until == 0, "{says}");
    }
    let row = Row::new(backend(&tables, "l2/b"), backend(&tables, "l2/a"), true);
    set_rows(&mut tables, "l2", row);
    tables.pools.values_mut().for_each(|pool| pool.old_until = u64::MAX);
    let old = udp("192.0.2.7:9", SIP);
    stays(&tables, "a datagram that may be of an old flow", &old, "l2/a", STAYS_NEW);
    // A SYN of before the change, whose client waits for an answer yet: its row names another backend by now.
    let mut tables = owner_without(&[]);
    let opening = tcp_of(&tables, HTTPS, "l2/a", 0).syn();
    stays(&tables, "a SYN", &opening, "l2/a", &[Reason::NoteRecorded]);
    kill(&mut tables, "l2/a");
    set_rows(&mut tables, "l2", row);
    let done = served(&tables, "goes to its row's backend", &opening, &[Reason::NoteAvoided]);
    assert_eq!(done.journey.backend, backend(&tables, "l2/b"));
}

#[test]
fn where_nobody_else_is_alive_or_too_few_are_the_row_decides() {
    let mut tables = owner_without(&["l2/a", "l2/b", "l2/c"]);
    stays(&tables, "nobody is alive", &tcp_of(&tables, HTTPS, "l2/a", 0).syn(), "l2/a", STAYS_NEW);
    tables.paths_off.clear();
    kill(&mut tables, "l2/a");
    let id = pool(&tables, "l2");
    tables.pools.get_mut(&id).unwrap().panics = 1;
    stays(&tables, "a panic", &tcp_of(&tables, HTTPS, "l2/a", 1).syn(), "l2/a", STAYS_NEW);
    tables.pools.get_mut(&id).unwrap().panics = 0;
    served(&tables, "its end", &tcp_of(&tables, HTTPS, "l2/a", 2).syn(), AVOIDED);
    // Rows that name nobody, or a backend of another pool.
    for (says, id) in [("nobody", 0), ("another pool's", backend(&tables, "gue4/a"))] {
        let mut tables = owner_without(&["l2/a"]);
        let syn = tcp_of(&tables, HTTPS, "l2/a", 0).syn();
        let suspect = backend(&tables, "l2/a");
        let others = tables.tables.values_mut().flatten().filter(|row| row.current() != suspect);
        others.for_each(|row| *row = Row::new(id, id, false));
        stays(&tables, says, &syn, "l2/a", STAYS_NEW);
    }
}

#[test]
fn the_owner_decides_and_fragments_follow_their_first() {
    let mut tables = owner_without(&["l2/a"]);
    ranks([2, 1, 0, 0])(&mut tables);
    let syn = tcp_of(&tables, HTTPS, "l2/a", 0).syn();
    let done = send(&tables, &syn.bytes());
    assert_eq!((done.verdict.reason, &done.notes[..]), (Reason::Forwarded, &[][..]));
    ranks([1, 2, 0, 0])(&mut tables);
    let fragments = sip_of(&tables, "l2/a", 0).sized(1_000).fragments(0x77, 400);
    let first = send(&tables, &fragments[0]);
    assert_eq!((first.verdict.reason, &first.notes[..]), (Reason::Served, AVOIDED));
    for later in &fragments[1..] {
        let done = send(&tables, later);
        assert_eq!((done.verdict.reason, done.journey.backend), (Reason::Served, first.journey.backend));
    }
}
