mod backends;

use super::*;
use crate::consensus::state::{Definition, Member, MemberState, Phase, Seat};
use crate::ownership::target;

const SLOTS: u32 = 256;

/// A state, its planner, and nodes that report what they are told to.
struct World {
    state: State,
    planner: Planner,
    reports: BTreeMap<u8, Report>,
    vips: BTreeMap<String, Vec<u8>>,
    times: Times,
    now: u64,
}

impl World {
    fn of(nodes: u8) -> Self {
        let member = |id: u8| Member {
            address: String::new(),
            weight: 1,
            seat: Some(Seat { disk: id.into(), votes: true }),
            standing: Standing::Up,
            draining: false,
            drained: false,
            incarnation: 1,
        };
        let mut state = State::genesis(1, member(1), SLOTS, String::new(), BTreeMap::new());
        state.members.extend((2..=nodes).map(|id| (id, member(id))));
        let ranks = target(&state.weights(), SLOTS as usize, 1).unwrap();
        state.apply(2, &Command::Move { first: 0, ranks }).unwrap();
        let report = Report { incarnation: 1, ..Report::default() };
        let reports = (1..=nodes).map(|id| (id, report.clone())).collect();
        Self {
            state,
            planner: Planner::new(Patience::default()),
            reports,
            vips: BTreeMap::new(),
            times: Times::default(),
            now: 0,
        }
    }

    fn status(&self) -> Status {
        Status {
            role: Role::Leader,
            term: 1,
            leader: Some(1),
            commit: self.state.version,
            applied: self.state.version,
            last: self.state.version,
            peers: Vec::new(),
            has_quorum: true,
            is_redundant: true,
        }
    }

    /// Lets 100 ms pass, in which nodes report and what is planned is committed.
    fn pass(&mut self) -> Vec<Command> {
        self.now += 100;
        for (&id, report) in &self.reports {
            self.planner.handle_report(id, report.clone(), self.now);
        }
        let status = self.status();
        let (welcome, vips, times) = (BTreeSet::new(), &self.vips, &self.times);
        let (state, strangers) = (&self.state, BTreeMap::new());
        let view = View { state, status: &status, strangers, welcome: &welcome, vips, times };
        let plans = self.planner.plan(&view, self.now);
        for (concern, command) in &plans {
            self.state.apply(self.state.version + 1, command).unwrap();
            self.planner.finished(*concern);
        }
        plans.into_iter().map(|(_, command)| command).collect()
    }

    /// All nodes that report have installed and copied everything.
    fn catch_up(&mut self) {
        for report in self.reports.values_mut() {
            (report.installed, report.resynced) = (self.state.version, self.state.version);
        }
    }

    fn settle(&mut self) {
        for _ in 0..1000 {
            self.catch_up();
            self.pass();
        }
    }

    fn is_on_target(&self) -> bool {
        let target = target(&self.state.weights(), SLOTS as usize, 1).unwrap();
        self.state.slots.iter().zip(target).all(|(slot, target)| slot.ranks == target && slot.previous == 0)
    }
}

#[test]
fn a_majority_that_suspects_for_long_enough_commits_the_death() {
    let mut world = World::of(3);
    world.settle();
    world.reports.remove(&3);
    world.reports.get_mut(&1).unwrap().suspects.insert(3);
    for _ in 0..300 {
        assert!(world.pass().is_empty(), "one of two is no majority");
    }
    world.reports.get_mut(&2).unwrap().suspects.insert(3);
    let took = (0..300).position(|_| world.pass().contains(&Command::NodeDown { id: 3, incarnation: 1 }));
    assert_eq!(took, Some(100));
    assert!(world.state.slots.iter().all(|slot| !slot.ranks.contains(&3)));
    world.settle();
    assert!(world.is_on_target());
}

#[test]
fn a_suspicion_that_ends_commits_nothing() {
    let mut world = World::of(3);
    world.settle();
    for _ in 0..20 {
        for suspect in [true, false] {
            for id in [1, 2] {
                world.reports.get_mut(&id).unwrap().suspects = if suspect { [3].into() } else { BTreeSet::new() };
            }
            (0..90).for_each(|_| assert!(world.pass().is_empty()));
        }
    }
}

#[test]
fn a_node_that_comes_back_gets_slots_only_with_their_flows() {
    let mut world = World::of(3);
    world.settle();
    world.state.apply(world.state.version + 1, &Command::NodeDown { id: 3, incarnation: 1 }).unwrap();
    world.reports.remove(&3);
    world.settle();
    world.reports.insert(3, Report { incarnation: 5, ..Report::default() });
    for _ in 0..300 {
        let others = world.state.version;
        for id in [1, 2] {
            let report = world.reports.get_mut(&id).unwrap();
            (report.installed, report.resynced) = (others, others);
        }
        world.pass();
        assert!(world.state.slots.iter().all(|slot| !slot.ranks[..2].contains(&3)), "its flows are not there");
    }
    assert_eq!(world.state.members[&3].state(), MemberState::Returning);
    assert!(world.state.slots.iter().all(|slot| slot.ranks[2] == 3), "but it gets copies of them");
    world.settle();
    assert_eq!(world.state.members[&3].state(), MemberState::Up);
    assert!(world.is_on_target());
}

#[test]
fn no_owner_is_given_up_before_the_next_has_the_flows() {
    let mut world = World::of(8);
    world.settle();
    world.state.apply(world.state.version + 1, &Command::Drain(4)).unwrap();
    for _ in 0..2000 {
        let before = world.state.slots.clone();
        let resynced: BTreeMap<u8, u64> = world.reports.iter().map(|(&id, report)| (id, report.resynced)).collect();
        world.pass();
        for (old, new) in before.iter().zip(&world.state.slots) {
            for &id in new.ranks[..2].iter().filter(|&id| !old.ranks[..2].contains(id)) {
                assert!(old.ranks.contains(&id) && resynced[&id] >= old.version);
            }
        }
        if world.now.is_multiple_of(700) {
            world.catch_up();
        }
    }
    assert!(world.state.slots.iter().all(|slot| !slot.ranks.contains(&4)));
    world.settle();
    assert!(world.is_on_target());
}

#[test]
fn a_node_whose_agent_is_silent_gives_its_slots_away_and_gets_them_back() {
    let mut world = World::of(3);
    world.settle();
    for id in [1, 2] {
        world.reports.get_mut(&id).unwrap().silent.insert(3);
    }
    let patience = Patience::default().silent / 100;
    for _ in 0..patience {
        assert_eq!(world.pass(), [], "it may only be restarting");
    }
    world.settle();
    assert!(world.state.slots.iter().all(|slot| slot.ranks[0] != 3 && slot.ranks[1] != 3));
    assert_eq!(world.state.members[&3].state(), MemberState::Up, "it goes on forwarding");
    for id in [1, 2] {
        world.reports.get_mut(&id).unwrap().silent.clear();
    }
    world.settle();
    assert!(world.is_on_target());
}

#[test]
fn previous_owners_are_asked_until_the_last_of_their_new_flows_is_over() {
    for (new_flows, asked_for) in [(0, Patience::default().forwarding), (60_000, 60_000)] {
        let mut world = World::of(3);
        world.times.new_flows = new_flows;
        world.settle();
        for slot in &mut world.state.slots {
            slot.previous = slot.ranks[1];
        }
        for _ in 0..asked_for / 100 {
            assert_eq!(world.pass(), [], "they may know flows that nobody else does");
        }
        assert!(matches!(world.pass()[..], [Command::Forget { .. }]));
        assert!(world.state.slots.iter().all(|slot| slot.previous == 0));
    }
}

#[test]
fn a_pool_goes_on_only_when_all_nodes_have_installed_the_step() {
    let mut world = World::of(3);
    world.settle();
    for (text, backend) in [("a", "one"), ("b", "two")] {
        let pools = BTreeMap::from([("web".to_owned(), Definition(BTreeMap::from([(backend.to_owned(), 1)])))]);
        let apply = Command::Apply { text: text.to_owned(), expect: None, pools };
        world.state.apply(world.state.version + 1, &apply).unwrap();
    }
    let phase = |world: &World| world.state.pools["web"].phase();
    let lag = |world: &mut World| {
        for id in [1, 2] {
            world.reports.get_mut(&id).unwrap().installed = world.state.version;
        }
        (0..50).for_each(|_| assert_eq!(world.pass(), []));
    };
    lag(&mut world);
    assert_eq!(phase(&world), Phase::Announced);
    world.catch_up();
    world.pass();
    assert_eq!(phase(&world), Phase::Switched);
    lag(&mut world);
    world.catch_up();
    (0..50).for_each(|_| assert_eq!(world.pass(), []));
    for report in world.reports.values_mut() {
        report.restless.insert("web".to_owned(), RowSet::default());
    }
    world.reports.get_mut(&2).unwrap().restless.insert("web".to_owned(), [5].into_iter().collect());
    (0..100).for_each(|_| assert_eq!(world.pass(), [], "some rows are settled only after a while"));
    (0..300).for_each(|_| drop((world.catch_up(), world.pass())));
    assert_eq!(phase(&world), Phase::Switched);
    let rows = world.state.pools["web"].rows(|name| u16::from(name == "two"));
    assert_eq!((0..rows.len()).filter(|&row| rows[row].disputed()).collect::<Vec<_>>(), [5]);
    world.reports.get_mut(&2).unwrap().restless.insert("web".to_owned(), RowSet::default());
    world.pass();
    assert_eq!(phase(&world), Phase::Agreed);
    lag(&mut world);
    world.catch_up();
    world.pass();
    assert_eq!(phase(&world), Phase::Settled);
}

#[test]
fn a_lost_disk_gets_another_seat_and_strangers_wait_to_be_welcome() {
    let mut world = World::of(3);
    world.settle();
    let mut net = crate::consensus::tests::net::Net::empty(2, 1);
    net.machines.get_mut(&1).unwrap().bootstrap(|disk| crate::consensus::tests::net::genesis(1, disk)).unwrap();
    net.run(60);
    let stranger = net.machines[&1].strangers().next().unwrap().1.clone();
    let seats = |state: &State, id: u8, welcome: &[u8]| {
        let (mut status, welcome) = (world.status(), welcome.iter().copied().collect());
        status.peers =
            vec![crate::consensus::machine::Peer { id, votes: false, matched: Some(status.last), is_heard: true }];
        let (strangers, vips, times) = (BTreeMap::from([(id, &stranger)]), &BTreeMap::new(), &Times::default());
        seats(&View { state, status: &status, strangers, welcome: &welcome, vips, times })
    };
    let mut state = world.state.clone();
    assert_eq!(seats(&state, 9, &[]), None);
    assert!(matches!(seats(&state, 9, &[9]), Some(Command::Join { id: 9, .. })));
    for expected in ["Retire", "Join", "Promote"] {
        let command = seats(&state, 2, &[]).unwrap();
        assert!(format!("{command:?}").starts_with(expected), "{command:?}");
        state.apply(state.version + 1, &command).unwrap();
    }
    assert_eq!(state.members[&2].seat, Some(Seat { disk: stranger.disk, votes: true }));
}

#[test]
fn old_reports_say_nothing() {
    let mut world = World::of(3);
    world.settle();
    for id in [1, 2] {
        world.reports.get_mut(&id).unwrap().suspects.insert(3);
    }
    world.pass();
    world.reports.clear();
    for _ in 0..300 {
        assert_eq!(world.pass(), []);
    }
}

#[test]
fn a_node_is_drained_when_it_owns_and_holds_nothing_and_is_asked_no_more() {
    let mut world = World::of(3);
    world.settle();
    world.state.apply(world.state.version + 1, &Command::Drain(3)).unwrap();
    world.settle();
    assert!(world.state.owns_nothing(3));
    assert_eq!(world.state.members[&3].state(), MemberState::Draining, "it holds VIPs yet");
    world.reports.get_mut(&3).unwrap().has_withdrawn = true;
    assert_eq!(world.pass(), [Command::Relieve(3)]);
    assert_eq!(world.state.members[&3].state(), MemberState::Drained);
    assert!(world.state.slots.iter().all(|slot| slot.previous != 3));
    world.settle();
    assert!(world.pass().is_empty());
    world.state.apply(world.state.version + 1, &Command::Undrain(3)).unwrap();
    world.settle();
    assert!(world.is_on_target() && world.state.members[&3].state() == MemberState::Up);
}

#[test]
fn vips_are_planned_once_all_planned_nodes_are_members_or_will_not_be() {
    let mut world = World::of(3);
    world.settle();
    world.vips = BTreeMap::from([("192.0.2.1".to_owned(), vec![2, 3, 1])]);
    assert_eq!(world.pass(), [Command::PlanVips(world.vips.clone())]);
    assert_eq!(world.pass(), []);
    world.vips = BTreeMap::from([("192.0.2.1".to_owned(), vec![4, 2, 3, 1])]);
    (0..100).for_each(|_| assert_eq!(world.pass(), [], "node 4 may join yet"));
    world.vips.insert("192.0.2.2".to_owned(), vec![1, 4, 2, 3]);
    let without = BTreeMap::from([("192.0.2.1".to_owned(), vec![2, 3, 1]), ("192.0.2.2".to_owned(), vec![1, 2, 3])]);
    assert_eq!(world.pass(), [Command::PlanVips(without)]);
}

/// The share of primary slots that each node should have.
fn shares(world: &World) -> Vec<usize> {
    let count = |id: u8| world.state.slots.iter().filter(|slot| slot.ranks[0] == id).count();
    (1..=world.state.members.len() as u8).map(count).collect()
}

#[test]
fn a_node_takes_as_much_as_its_health_allows_and_the_last_one_goes_on() {
    let mut world = World::of(3);
    world.settle();
    let even = shares(&world);
    for share in [3, 2, 1] {
        world.reports.get_mut(&3).unwrap().share = share;
        world.settle();
        let (now, of) = (shares(&world), world.state.slots.len());
        let expected = of * usize::from(share) / (8 + usize::from(share));
        assert!(now[2].abs_diff(expected) <= of / 50 && now[0].abs_diff(now[1]) <= of / 50, "{share}: {now:?}");
    }
    // It asks to be relieved: its own report says so, or, where its disk holds that up, its beats do.
    world.reports.get_mut(&3).unwrap().share = 0;
    world.settle();
    assert_eq!(shares(&world)[2], 0);
    world.reports.get_mut(&3).unwrap().share = 4;
    for id in [1, 2] {
        world.reports.get_mut(&id).unwrap().ailing.insert(3);
    }
    world.settle();
    assert_eq!(shares(&world)[2], 0);
    assert!(world.state.slots.iter().all(|slot| slot.ranks[1] != 3), "nor is it anybody's second");
    for id in [1, 2] {
        world.reports.get_mut(&id).unwrap().ailing.clear();
    }
    world.settle();
    assert_eq!(shares(&world), even, "as it was before");
    // All ail: then none is worse than another.
    world.reports.values_mut().for_each(|report| report.share = 0);
    world.settle();
    assert_eq!(shares(&world), even);
}

/// Two nodes and a witness, node 9, which never reports anything of nodes.
fn with_witness() -> World {
    let mut world = World::of(2);
    let (disk, address) = (9, String::new());
    world.state.apply(3, &Command::Witness { id: 9, disk, address }).unwrap();
    world.state.apply(4, &Command::Promote { id: 9, disk }).unwrap();
    world.reports.insert(9, Report::default());
    world.settle();
    assert!(world.is_on_target() && world.state.weights().len() == 2);
    world
}

#[test]
fn with_a_witness_the_survivor_s_word_is_enough_and_comes_back_is_as_ever() {
    let mut world = with_witness();
    world.reports.remove(&2);
    world.reports.get_mut(&1).unwrap().suspects.insert(2);
    let took = (0..300).position(|_| world.pass().contains(&Command::NodeDown { id: 2, incarnation: 1 }));
    assert_eq!(took, Some(100));
    world.reports.get_mut(&1).unwrap().suspects.clear();
    world.reports.insert(2, Report { incarnation: 2, ..Report::default() });
    world.settle();
    assert!(world.is_on_target());
    assert_eq!(world.state.members[&9].state(), MemberState::Witness, "nothing is planned for it");
}

#[test]
fn of_two_that_are_cut_off_from_each_other_only_the_worse_one_is_down() {
    for (share, expected) in [([FULL_SHARE, FULL_SHARE], 2), ([1, FULL_SHARE], 1), ([FULL_SHARE, 1], 2)] {
        let mut world = with_witness();
        for (id, other) in [(1, 2), (2, 1)] {
            let report = world.reports.get_mut(&id).unwrap();
            report.suspects.insert(other);
            report.share = share[usize::from(id) - 1];
        }
        let down = (0..300).flat_map(|_| world.pass()).filter(|command| matches!(command, Command::NodeDown { .. }));
        assert_eq!(down.collect::<Vec<_>>(), [Command::NodeDown { id: expected, incarnation: 1 }], "{share:?}");
    }
}

#[test]
fn a_witness_is_not_waited_for() {
    let mut world = with_witness();
    world.reports.remove(&9);
    for backend in ["one", "two"] {
        let pools = BTreeMap::from([("web".to_owned(), Definition([(backend.to_owned(), 1)].into()))]);
        let change = Command::Apply { text: String::new(), expect: None, pools };
        world.state.apply(world.state.version + 1, &change).unwrap();
    }
    assert_ne!(world.state.pools["web"].phase(), Phase::Settled);
    for id in [1, 2] {
        world.reports.get_mut(&id).unwrap().restless.insert("web".to_owned(), RowSet::default());
    }
    world.vips = BTreeMap::from([("10.0.0.1".to_owned(), vec![9, 2, 1])]);
    world.settle();
    assert_eq!(world.state.pools["web"].phase(), Phase::Settled);
    assert_eq!(world.state.vips["10.0.0.1"], [2, 1]);
}
