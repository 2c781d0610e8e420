use redirector_ebpf::hash::FlowHash;
use redirector_ebpf::packet::headers::Ipv6;
use redirector_ebpf::packet::{Frame as _, protocol};
use redirector_ebpf::tables::flow::{Entry, Record, State};
use redirector_ebpf::tables::names::{NameKey, kind};
use redirector_ebpf::tables::path::{RESOLVED, alive};
use redirector_ebpf::tables::{AliveNodes, Backend, Node, Path, Pool, Port, Row, Service, ServiceKey, Slot, Vip};

use super::answer::Answer;
use super::question::{End, Protocol, Question};
use crate::cli::get::Refused;
use crate::cli::output::Names;
use crate::dataplane::image::Image;
use crate::dataplane::memory::MemoryTables;
use crate::dataplane::registry::Registry;

const MAC: u64 = 0x0605_0403_0202;

fn question(kind: Protocol, client: &str, vip: &str, syn: bool) -> Question {
    Question::new(kind, client.parse().unwrap(), vip.parse().unwrap(), syn).unwrap()
}

fn web(syn: bool) -> Question {
    question(Protocol::Tcp, "10.0.0.1:1234", "10.77.0.1:80", syn)
}

/// Node 1 of two, with an `owned` and a `shared` service over one pool of two backends; `slot` is every slot.
fn tables(slot: Slot, row: Row) -> MemoryTables {
    let mut alive = AliveNodes::default();
    alive.set(1, true);
    alive.set(2, true);
    let mut ports = vec![Port::default(); 16];
    ports[0] = Port { mac: MAC, ifindex: 7, mtu: 1500 };
    let path = |neighbour| Path { neighbour, mtu: 1500, ..Path::default() };
    let key = |port: u16| ServiceKey { vip: 1, protocol: protocol::TCP, pad: 0, port: port.to_be() };
    let image = Image {
        node: Node {
            id: 1,
            slot_mask: 15,
            hash_key: std::array::from_fn(|i| 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(i as u64 + 1)),
            idle: [60; 8],
            ..Node::default()
        },
        ports,
        vips: [("10.77.0.1".parse().unwrap(), Vip { id: 1, ..Vip::default() })].into(),
        services: [
            (key(80), Service { id: 1, pool: 1, owned: 1, ..Service::default() }),
            (key(81), Service { id: 2, pool: 1, owned: 0, ..Service::default() }),
        ]
        .into(),
        backends: [(1, Backend { pool: 1, paths: [1, 2, 0] }), (2, Backend { pool: 1, paths: [3, 0, 0] })].into(),
        paths: [(1, path(1)), (2, path(2)), (3, path(3))].into(),
        peers: [(2, path(4))].into(),
        slots: vec![slot; 16],
        alive,
        ..Image::default()
    };
    let mut tables = MemoryTables::new(image, 1);
    tables.pools.insert(1, Pool { table: 2, rows: 1, ..Pool::default() });
    tables.tables.insert(2, vec![row]);
    tables.neighbours.borrow_mut().extend((1..=4).map(|id| (id, id as u64 | RESOLVED)));
    tables
}

fn names() -> Names {
    let named = [
        (kind::SERVICE, 1, "web"),
        (kind::SERVICE, 2, "static"),
        (kind::POOL, 1, "l2"),
        (kind::BACKEND, 1, "l2/b1"),
        (kind::BACKEND, 2, "l2/b2"),
        (kind::PORT, 1, "eth0"),
    ];
    Names::new(Registry::new(named.map(|(kind, id, name)| (NameKey { kind, id }, name.to_owned()))))
}

fn ask(tables: &MemoryTables, question: &Question) -> Answer {
    Answer::new(tables, &names(), question)
}

fn slot(ranks: [u8; 4]) -> Slot {
    Slot { ranks, version: 9, ..Slot::default() }
}

#[test]
fn an_owned_flow_is_served_by_its_owner() {
    let answer = ask(&tables(slot([1, 2, 0, 0]), Row::new(1, 1, false)), &web(true));
    let json = serde_json::to_value(&answer).unwrap();
    for (field, value) in [
        ("owner", "n1"),
        ("backend", "b1"),
        ("backend_from", "row"),
        ("service", "web"),
        ("pool", "l2"),
        ("verdict", "served"),
    ] {
        assert_eq!(json[field], value, "{field}");
    }
    assert_eq!((&json["path"], &json["version"]), (&1.into(), &9.into()));
    assert!(json["flow"].is_null());
}

#[test]
fn a_new_flow_that_avoids_a_suspect_backend_says_so() {
    let mut tables = tables(slot([1, 2, 0, 0]), Row::new(1, 1, false));
    tables.paths_off.extend([(1, alive::OFF), (2, alive::OFF)]);
    let stays = ask(&tables, &web(true));
    assert_eq!((stays.backend.as_deref(), stays.backend_from, stays.avoided), (Some("b1"), Some("row"), None));
    tables.pools.get_mut(&1).unwrap().rows = 2;
    tables.tables.insert(2, vec![Row::new(1, 1, false), Row::new(2, 2, false)]);
    let of_its_row = |tables: &MemoryTables| {
        let ask = |port| ask(tables, &question(Protocol::Tcp, &format!("10.0.0.1:{port}"), "10.77.0.1:80", true));
        let is_of = |answer: &Answer| answer.row.as_ref().is_some_and(|row| row.current.as_deref() == Some("l2/b1"));
        (1..100).map(ask).find(is_of).unwrap()
    };
    let answer = of_its_row(&tables);
    assert_eq!((answer.backend.as_deref(), answer.backend_from), (Some("b2"), Some("other")));
    assert_eq!((answer.avoided.as_deref(), answer.path), (Some("l2/b1"), Some(1)));
    let text = answer.text();
    assert!(text.contains("b2: from another row, since no path of l2/b1 is alive"), "{text}");
    tables.pools.get_mut(&1).unwrap().panics = 1;
    tables.set_bucket(false, 0, [0; 8]);
    let panicking = of_its_row(&tables);
    assert_eq!((panicking.backend.as_deref(), panicking.backend_from), (Some("b1"), Some("row")));
}

#[test]
fn asked_elsewhere_it_names_owner_and_backend_all_the_same() {
    let answer = ask(&tables(slot([2, 1, 0, 0]), Row::new(1, 1, false)), &web(false));
    assert_eq!((answer.owner.as_deref(), answer.backend.as_deref()), (Some("n2"), Some("b1")));
    assert_eq!((answer.verdict, answer.backend_from, answer.path), ("forwarded", Some("row"), Some(1)));
    assert!(answer.notes.iter().any(|note| note.starts_with("n2 decides by its flow table")), "{:?}", answer.notes);
}

#[test]
fn a_dead_primary_hands_over_to_the_next_rank() {
    let mut tables = tables(slot([2, 1, 0, 0]), Row::new(1, 1, false));
    tables.image.alive.set(2, false);
    let answer = ask(&tables, &web(true));
    assert_eq!(answer.owner.as_deref(), Some("n1"));
    assert!(answer.owner_why.unwrap().contains("rank 2"));
    assert!(!answer.ranks[0].alive && answer.ranks[1].alive);
}

#[test]
fn shared_flows_have_no_owner_unless_their_row_is_disputed() {
    let shared = question(Protocol::Tcp, "10.0.0.1:1234", "10.77.0.1:81", false);
    let answer = ask(&tables(slot([2, 1, 0, 0]), Row::new(1, 1, false)), &shared);
    assert_eq!((answer.owner, answer.backend.as_deref(), answer.verdict), (None, Some("b1"), "served"));
    let answer = ask(&tables(slot([2, 1, 0, 0]), Row::new(2, 1, false)), &shared);
    assert_eq!((answer.owner.as_deref(), answer.backend.as_deref()), (Some("n2"), Some("b2")));
    assert!(answer.notes[0].contains("before the pool's change stays on l2/b1"), "{:?}", answer.notes);
}

#[test]
fn a_known_flow_keeps_its_backend() {
    let mut tables = tables(slot([1, 2, 0, 0]), Row::new(2, 1, false));
    let tuple = web(false).tuple();
    let now = tables.now.get();
    let (_, tag) = FlowHash::of(&tables.image.node.hash_key, &tuple, false).entry(0);
    let entry =
        Entry::first(tag, 1, State::Established, false, now).touched(State::Established, true, now - 5_000_000_000);
    let mut words = [0; 8];
    words[3] = entry.0;
    tables.set_bucket(false, 0, words);
    tables.set_tuple(false, 3, Record { tuple, service: 1, since: now, version: 9 });
    let answer = ask(&tables, &web(false));
    assert_eq!((answer.backend.as_deref(), answer.backend_from), (Some("b1"), Some("flow")));
    let known = answer.flow.as_ref().unwrap();
    assert_eq!((known.state, known.proven, known.idle_s), ("established", true, Some(5)));
    let text = answer.text();
    assert!(text.contains("known here: established, proven, idle 5 s, on l2/b1"), "{text}");
}

#[test]
fn the_path_is_the_first_that_is_alive() {
    let mut tables = tables(slot([1, 2, 0, 0]), Row::new(1, 1, false));
    tables.paths_off = [(1, alive::OFF)].into();
    let answer = ask(&tables, &web(true));
    assert_eq!((answer.path, answer.verdict), (Some(2), "served"));
    for (first, second, path, why) in [
        (alive::OFF, alive::OFF, 1, "none is alive: the first is the least bad"),
        (alive::UNPLUGGED, alive::OFF, 2, "none is alive: rank 2 is the first whose port has a carrier"),
        (alive::UNPLUGGED, alive::UNPLUGGED, 1, "none is alive: the first is the least bad"),
    ] {
        tables.paths_off = [(1, first), (2, second)].into();
        let answer = ask(&tables, &web(true));
        assert_eq!((answer.path, answer.path_why.as_deref()), (Some(path), Some(why)));
    }
}

#[test]
fn the_class_is_the_packets_and_what_is_refused_of_it_is_told() {
    let mut tables = tables(slot([1, 2, 0, 0]), Row::new(1, 1, false));
    let service = |tables: &mut MemoryTables, class, dscp| {
        for service in tables.image.services.values_mut() {
            (service.class, service.dscp) = (class, dscp);
        }
        tables.set_bucket(false, 0, [0; 8]);
    };
    // Class of the service, whether it goes by the DSCP, the DSCP, the level; the class of the packet, and what becomes of the
    // first packet of a connection and of one of an established one.
    for (own, goes_by, dscp, level, class, new, established) in [
        (2, 0, 0, 0, "normal", "served", "served"),
        (2, 0, 0, 1, "normal", "served", "served"),
        (2, 0, 0, 2, "normal", "shed", "served"),
        (2, 0, 8, 1, "normal", "served", "served"),
        (2, 1, 8, 0, "low", "served", "served"),
        (2, 1, 8, 1, "low", "shed", "served"),
        (2, 1, 1, 1, "low", "shed", "served"),
        (2, 1, 8, 3, "low", "shed", "shed-established"),
        (3, 1, 24, 2, "high", "served", "served"),
        (3, 1, 24, 3, "high", "shed", "served"),
        (3, 1, 46, 3, "critical", "served", "served"),
        (0, 0, 8, 3, "critical", "served", "served"),
        (0, 1, 8, 3, "low", "shed", "shed-established"),
    ] {
        for port in [80, 81] {
            let says = format!("class {own}, DSCP {dscp} ({goes_by}), level {level}, port {port}");
            for (syn, verdict) in [(true, new), (false, established)] {
                service(&mut tables, own, goes_by);
                tables.image.node.shed_level = level;
                let vip = format!("10.77.0.1:{port}");
                let asked = question(Protocol::Tcp, "10.0.0.1:1234", &vip, syn).marked(dscp);
                // Of an owned service, who knows the flow refuses it: nobody does here.
                let verdict = if port == 80 && verdict == "shed-established" { "served" } else { verdict };
                let answer = ask(&tables, &asked);
                assert_eq!((answer.class, answer.verdict), (Some(class), verdict), "{says}, {syn}");
                assert_eq!(answer.refused_for, Some(verdict).filter(|verdict| *verdict != "served"), "{says}");
                let is_other = answer.class != answer.service_class;
                let text = answer.text();
                assert_eq!(text.contains(&format!("{class} by DSCP {dscp}, ")), is_other, "{says}: {text}");
                let is_vain = dscp != 0 && goes_by == 0;
                assert_eq!(text.contains("does not go by the DSCP"), is_vain, "{says}: {text}");
            }
        }
    }
    let v6 = question(Protocol::Udp, "[2001:db8::1]:1", "[2001:db8:77::1]:7", false).marked(46);
    let header: Ipv6 = v6.frame(MAC).read(14).unwrap();
    assert_eq!((header.class() >> 2, u32::from_be(header.version_class_label) >> 28), (46, 6));
}

#[test]
fn what_was_refused_so_far_is_told_of_the_service_alone() {
    let one = |service: &str, class, reason, packets| Refused { service: service.into(), class, reason, packets };
    let mut answer = ask(&tables(slot([1, 2, 0, 0]), Row::new(1, 1, false)), &web(true));
    assert!(!answer.text().contains("refused"));
    answer.count(vec![
        one("static", "low", "shed", 9),
        one("web", "low", "shed", 7),
        one("web", "normal", "over-budget", 0),
        one("web", "low", "shed-established", 3),
    ]);
    let json = serde_json::to_value(&answer).unwrap();
    assert_eq!(json["refused"].as_array().unwrap().len(), 2);
    assert_eq!(
        (&json["refused"][0]["packets"], &json["refused"][1]["reason"]),
        (&7.into(), &"shed-established".into())
    );
    let text = answer.text();
    assert!(text.contains("7 packets of class low: shed") && !text.contains(" 9 "), "{text}");
}

#[test]
fn what_goes_nowhere_is_told_too() {
    let tables = tables(slot([1, 0, 0, 0]), Row::new(1, 1, false));
    let answer = ask(&tables, &question(Protocol::Tcp, "10.0.0.1:1", "10.9.9.9:80", false));
    assert_eq!((answer.verdict, answer.service, answer.backend, answer.owner), ("not-ours", None, None, None));
    let answer = ask(&tables, &question(Protocol::Udp, "10.0.0.1:1", "10.77.0.1:80", false));
    assert_eq!(answer.verdict, "unmatched-drop");
    assert!(answer.text().contains("unmatched-drop"));
    let answer = ask(&tables, &question(Protocol::Icmp, "10.0.0.1", "10.77.0.1", false));
    assert_eq!(answer.verdict, "echo-answered");
    tables.neighbours.borrow_mut().clear();
    assert_eq!(ask(&tables, &web(true)).verdict, "no-neighbour");
}

#[test]
fn ends_are_read_with_and_without_ports() {
    for good in ["10.0.0.1:80", "10.0.0.1", "[2001:db8::1]:80", "2001:db8::1", "[2001:db8::1]"] {
        assert!(good.parse::<End>().is_ok(), "{good}");
    }
    for wrong in ["", "host:80", "10.0.0.1:99999", "[2001:db8::1]:", "10.0.0:80"] {
        assert!(wrong.parse::<End>().is_err(), "{wrong}");
    }
    let new =
        |kind, client: &str, vip: &str, syn| Question::new(kind, client.parse().unwrap(), vip.parse().unwrap(), syn);
    assert!(new(Protocol::Tcp, "10.0.0.1", "10.77.0.1:80", false).is_err());
    assert!(new(Protocol::Tcp, "10.0.0.1:1", "[2001:db8::1]:80", false).is_err());
    assert!(new(Protocol::Udp, "10.0.0.1:1", "10.77.0.1:80", true).is_err());
    let v6 = new(Protocol::Icmp, "2001:db8::1", "2001:db8:77::1", false).unwrap();
    assert_eq!(v6.protocol, protocol::ICMPV6);
}
