//! What a node says of itself to peers that have turned it off though the cluster agrees that it serves.

use std::collections::BTreeMap;

use redirector::agent::copies::Delivered;
use redirector::agent::lookout::{Agreed, Host, Lookout};
use redirector::consensus::state::{Member, Standing, State};
use redirector::dataplane::image::compile;
use redirector::dataplane::liveness::LivenessTables as _;
use redirector::liveness::Own;
use redirector_ebpf::tables::AliveNodes;
use redirector_ebpf::tables::liveness::{Vitals, slot, state};
use simulation::flaw::Flaw;
use simulation::plane::Plane;
use suite::cluster::{Between, configuration};
use suite::node;

const ME: u8 = 3;
const INCARNATION: u32 = 7;
const NOW: u64 = 5_000_000_000;

fn agreed() -> State {
    let member = |incarnation| Member {
        address: String::new(),
        weight: 1,
        seat: None,
        standing: Standing::Up,
        draining: false,
        drained: false,
        incarnation,
    };
    let members = (1..=ME).map(|id| (id, member(u64::from(INCARNATION)))).collect();
    State { version: 1, members, ..State::default() }
}

/// What node 3 says, and is, when its peers 1 and 2 count these alive, and it has all flows from these.
fn said(view: &[u8], from: &[u8]) -> (u8, Own) {
    let config = configuration(ME, ME, Between::Mac);
    let key = config.cluster.key.expect("it has one").0;
    let mut plane = Plane::new(&config, Flaw::None);
    let image = compile(&config, key, &node::links(&config), plane.registry()).expect("it can be compiled");
    let mut lookout = Lookout::new(ME);
    let host = Host { boot_id: 1, next_incarnation: || Ok(INCARNATION), time: 0 };
    lookout.configure(&mut plane.board, &config, key, &image, host).expect("memory can be written");
    let mut alive = AliveNodes::default();
    view.iter().for_each(|node| alive.set(*node, true));
    for &(node, port) in lookout.links() {
        let heard = plane.board.heard(node, port);
        heard.incarnation.store(u64::from(INCARNATION));
        heard.answered.store(1);
        heard.at.store(NOW);
        slot(&heard.times, 1).store(NOW);
        heard.vitals.store(Vitals { state: state::ACTIVE, health: 100, ..Vitals::default() }.word());
        heard.view.iter().zip(alive.words).for_each(|(word, bits)| word.store(bits));
    }
    let delivered = Delivered { to: [1, 2].into(), from: from.iter().copied().collect() };
    lookout.step(&plane.board, Some(&delivered), Agreed::On(&agreed()), NOW);
    (Vitals::of(plane.board.condition().vitals.load()).state, lookout.own())
}

#[test]
fn who_was_suspected_is_let_in_with_all_peers_flows_or_not_at_all() {
    let cases = BTreeMap::from([
        ("who has all flows may be let in", (said(&[1, 2], &[1, 2]), state::ACTIVE)),
        ("who lacks those of a peer waits for them", (said(&[1, 2], &[1]), state::RETURNING)),
        ("who was not suspected goes on", (said(&[1, 2, ME], &[]), state::ACTIVE)),
    ]);
    for (case, ((said, own), expected)) in cases {
        assert_eq!((said, own), (expected, Own::Active), "{case}");
    }
}
