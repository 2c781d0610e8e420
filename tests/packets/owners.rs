//! Flows that need their owner: owned services, disputed rows, and what the flow table remembers.

use redirector::dataplane::memory::MemoryTables;
use redirector_ebpf::reason::Reason;
use redirector_ebpf::tables::Row;
use redirector_ebpf::tables::flow::{Entry, State};
use suite::decode::Body;
use suite::node::{self, Done, backend, pool, send, set_rows};
use suite::packet::{Packet, tcp, udp};

use super::ranks;

/// Node 1 owns every slot; the pool's rows name these backends.
fn owner(current: &str, previous: &str) -> MemoryTables {
    let mut tables = node::node(1);
    ranks([1, 2, 0, 0])(&mut tables);
    let row = Row::new(backend(&tables, current), backend(&tables, previous), false);
    set_rows(&mut tables, "l2", row);
    tables
}

fn served(tables: &MemoryTables, says: &str, packet: &Packet, by: &str, known: bool, notes: &[Reason]) -> Done {
    let done = send(tables, &packet.bytes());
    assert_eq!(done.verdict.reason, Reason::Served, "{says}");
    assert_eq!(done.journey.backend, backend(tables, by), "{says}: by {by}");
    assert_eq!((done.journey.known, &done.notes[..]), (known, notes), "{says}");
    done
}

const RECORDED: &[Reason] = &[Reason::NoteRecorded];

fn https(client: u16) -> Packet {
    tcp(&format!("192.0.2.7:{client}"), "198.51.100.1:443")
}

fn http(client: u16) -> Packet {
    tcp(&format!("192.0.2.7:{client}"), "198.51.100.1:80")
}

fn sip(client: u16) -> Packet {
    udp(&format!("192.0.2.7:{client}"), "198.51.100.1:5060")
}

#[test]
fn a_shared_service_records_nothing_while_rows_are_undisputed() {
    let tables = owner("l2/a", "l2/a");
    served(&tables, "SYN", &http(1).syn(), "l2/a", false, &[]);
    served(&tables, "data", &http(1), "l2/a", false, &[]);
    assert!(tables.entries(false).is_empty());
}

#[test]
fn an_owned_service_records_each_flow_and_keeps_its_backend() {
    let mut tables = owner("l2/a", "l2/a");
    served(&tables, "SYN", &https(1).syn(), "l2/a", false, RECORDED);
    served(&tables, "ACK", &https(1), "l2/a", true, &[]);
    served(&tables, "a datagram", &sip(1), "l2/a", false, RECORDED);
    let row = Row::new(backend(&tables, "l2/b"), backend(&tables, "l2/b"), false);
    set_rows(&mut tables, "l2", row);
    served(&tables, "an old flow's data", &https(1), "l2/a", true, &[]);
    served(&tables, "a SYN sent again", &https(1).syn(), "l2/a", true, &[]);
    served(&tables, "an old flow's datagram", &sip(1), "l2/a", true, &[]);
    served(&tables, "a new flow", &https(2).syn(), "l2/b", false, RECORDED);
    let v6 = tcp("[2001:db8:7::7]:1", "[2001:db8:100::1]:443");
    served(&tables, "IPv6 has a table of its own", &v6.clone().syn(), "l2/b", false, RECORDED);
    served(&tables, "IPv6, known", &v6, "l2/b", true, &[]);
    assert_eq!((tables.entries(false).len(), tables.entries(true).len()), (3, 1));
}

#[test]
fn disputed_rows_tell_old_flows_from_new_ones() {
    let mut tables = owner("l2/b", "l2/a");
    served(&tables, "a SYN is new", &http(1).syn(), "l2/b", false, RECORDED);
    served(&tables, "and stays there", &http(1), "l2/b", true, &[]);
    served(&tables, "data of an unknown flow is old", &http(2), "l2/a", false, RECORDED);
    served(&tables, "and stays there", &http(2), "l2/a", true, &[]);
    let id = pool(&tables, "l2");
    let now = tables.now.get();
    tables.pools.get_mut(&id).unwrap().old_until = now + 1;
    served(&tables, "an unknown datagram is old for a while", &sip(1), "l2/a", false, RECORDED);
    tables.now.set(now + 1);
    served(&tables, "then new", &sip(2), "l2/b", false, RECORDED);
    served(&tables, "the old one stays old", &sip(1), "l2/a", true, &[]);
}

#[test]
fn a_second_change_during_a_dispute_keeps_every_flow() {
    let mut tables = owner("l2/b", "l2/a");
    served(&tables, "new with the first change", &http(1).syn(), "l2/b", false, RECORDED);
    let row = Row::new(backend(&tables, "l2/c"), backend(&tables, "l2/a"), true);
    set_rows(&mut tables, "l2", row);
    served(&tables, "known", &http(1), "l2/b", true, &[]);
    served(&tables, "older than both", &http(2), "l2/a", false, RECORDED);
    served(&tables, "new with the second", &http(3).syn(), "l2/c", false, RECORDED);
}

/// The row's previous backend is dead, and its flows are to be told.
#[test]
fn flows_of_a_dead_backend_are_reset_and_others_go_on() {
    let mut tables = owner("l2/b", "l2/a");
    send(&tables, &https(1).syn().bytes());
    let dead = backend(&tables, "l2/a");
    let recorded = |tables: &MemoryTables| tables.entries(false).len() + tables.entries(true).len();
    let row = Row::new(backend(&tables, "l2/b"), dead, true).severed();
    set_rows(&mut tables, "l2", row);
    tables.image.backends.get_mut(&dead).unwrap().pool = 0;
    tables.pools.values_mut().for_each(|pool| pool.old_until = u64::MAX);
    served(&tables, "a flow of the one that lives", &https(1), "l2/b", true, &[]);
    served(&tables, "a new one", &https(2).syn(), "l2/b", false, RECORDED);
    served(&tables, "a datagram", &sip(1), "l2/b", false, RECORDED);
    let before = recorded(&tables);
    let data = |from: &str, to: &str| {
        tcp(from, to).flags(|tcp| (tcp.sequence_number, tcp.acknowledgment_number, tcp.ack) = (1_000, 77_000, true))
    };
    for (from, to) in [("192.0.2.7:9", "198.51.100.1:443"), ("[2001:db8:7::7]:9", "[2001:db8:100::1]:443")] {
        let done = send(&tables, &data(from, to).bytes());
        assert_eq!((done.verdict.reason, &done.notes[..]), (Reason::ResetSent, &[Reason::NoteSevered][..]));
        let answer = suite::decode::decode(&done.bytes);
        let Body::Tcp(reset, payload) = &answer.outer().body else { panic!("{answer:?}") };
        // RFC 9293, section 3.10.7.1: a segment with an ACK is answered from where its sender expects the next byte.
        assert!(reset.rst && !reset.ack && reset.sequence_number == 77_000 && payload.is_empty(), "{reset:?}");
    }
    let reset = tcp("192.0.2.7:9", "198.51.100.1:443").flags(|tcp| tcp.rst = true);
    assert_eq!(send(&tables, &reset.bytes()).verdict.reason, Reason::UnmatchedDrop, "no reset answers a reset");
    assert_eq!(recorded(&tables), before, "what is over is not recorded");
}

/// Before its death was known, this node knew flows on it.
#[test]
fn known_flows_of_a_dead_backend_are_reset_too() {
    let mut tables = owner("l2/a", "l2/a");
    for packet in [https(1).syn(), https(1), sip(1)] {
        send(&tables, &packet.bytes());
    }
    let dead = backend(&tables, "l2/a");
    let row = Row::new(backend(&tables, "l2/b"), dead, true).severed();
    set_rows(&mut tables, "l2", row);
    tables.image.backends.get_mut(&dead).unwrap().pool = 0;
    assert_eq!(send(&tables, &https(1).bytes()).verdict.reason, Reason::ResetSent);
    served(&tables, "its client connects again from the same port", &https(1).syn(), "l2/b", false, RECORDED);
    served(&tables, "a datagram goes to another", &sip(1), "l2/b", false, RECORDED);
}

#[test]
fn a_flow_is_proven_by_a_second_packet_and_closes() {
    let tables = owner("l2/a", "l2/a");
    let state = || {
        let [(_, entry)] = tables.entries(false)[..] else { panic!("one flow") };
        (Entry(entry).state(), Entry(entry).proven())
    };
    send(&tables, &https(1).syn().bytes());
    assert_eq!(state(), (State::Opening, false));
    tables.now.set(tables.now.get() + 5_000_000);
    send(&tables, &https(1).syn().bytes());
    assert_eq!(state(), (State::Opening, false), "a SYN again proves nothing");
    send(&tables, &https(1).bytes());
    assert_eq!(state(), (State::Established, true));
    send(&tables, &https(1).flags(|tcp| tcp.fin = true).bytes());
    assert_eq!(state(), (State::Closing, true));
    send(&tables, &https(1).bytes());
    assert_eq!(state(), (State::Closing, true), "the last ACK");
    let reopened = send(&tables, &https(1).syn().bytes());
    assert!(reopened.journey.known);
    assert_eq!(state(), (State::Opening, false), "the port is used anew");
}

/// A connection that nobody here has seen open is kept, but counts only when it has lasted.
#[test]
fn a_connection_that_is_taken_up_must_last_to_be_proven() {
    let mut tables = owner("l2/b", "l2/a");
    tables.image.node.tells_flows = 1;
    let entry = |tables: &MemoryTables| {
        let [(_, entry)] = tables.entries(false)[..] else { panic!("one flow") };
        (Entry(entry).state(), Entry(entry).proven())
    };
    let pass = |tables: &MemoryTables, milliseconds: u64| tables.now.set(tables.now.get() + milliseconds * 1_000_000);
    served(&tables, "its first packet here goes to the old backend", &https(1), "l2/a", false, RECORDED);
    for _ in 0..4 {
        pass(&tables, 1_000);
        served(&tables, "more of it", &https(1), "l2/a", true, &[]);
        assert_eq!(entry(&tables), (State::TakenUp, false));
    }
    assert!(tables.told.borrow().is_empty(), "no other node is told of what may be a flood");
    pass(&tables, 100);
    served(&tables, "it has lasted", &https(1), "l2/a", true, &[]);
    assert_eq!(entry(&tables), (State::Established, true));
    assert_eq!(tables.told.borrow().len(), 1);

    let mut tables = owner("l2/b", "l2/a");
    tables.image.node.tells_flows = 1;
    send(&tables, &https(1).bytes());
    for _ in 0..3 {
        pass(&tables, 1_000);
        served(&tables, "it ends", &https(1).flags(|tcp| tcp.fin = true), "l2/a", true, &[]);
        assert_eq!(entry(&tables), (State::Closing, false), "so that its dispute can end");
    }
    assert!(tables.told.borrow().is_empty());
    served(&tables, "the port is used anew", &https(1).syn(), "l2/b", true, &[]);
}

#[test]
fn an_entry_of_another_pool_makes_way() {
    let mut tables = owner("l2/a", "l2/a");
    send(&tables, &https(1).syn().bytes());
    // The service is given another pool, whose backend the flow cannot keep.
    let other = pool(&tables, "ranked");
    tables.image.services.values_mut().filter(|service| service.owned != 0).for_each(|service| service.pool = other);
    served(&tables, "the first packet since", &https(1), "ranked/a", false, RECORDED);
    served(&tables, "the second", &https(1), "ranked/a", true, &[]);
    assert_eq!(tables.entries(false).len(), 1, "one flow has one entry");
}

#[test]
fn inserts_have_a_budget_and_nobody_is_no_backend() {
    let mut tables = owner("l2/a", "l2/a");
    tables.image.node.inserts = 10;
    served(&tables, "within the budget", &https(1).syn(), "l2/a", false, RECORDED);
    served(&tables, "the budget is spent", &https(2).syn(), "l2/a", false, &[Reason::NoteInsertBudget]);
    set_rows(&mut tables, "l2", Row::default());
    let done = send(&tables, &https(3).syn().bytes());
    assert_eq!((done.verdict.reason, done.notes.len()), (Reason::NoBackend, 0));
}
