use proptest::prelude::*;

use super::*;
use crate::ownership::target;

const SLOTS: u32 = 64;

fn member(disk: u128) -> Member {
    Member {
        address: format!("192.0.2.{disk}:7400"),
        weight: 1,
        seat: Some(Seat { disk, votes: true }),
        standing: Standing::Up,
        draining: false,
        drained: false,
        incarnation: 1,
    }
}

/// A state of nodes that all serve, each slot ranked as it should be.
fn cluster(nodes: u8) -> State {
    let mut state = State::genesis(1, member(1), SLOTS, "text".to_owned(), BTreeMap::new());
    for id in 2..=nodes {
        state.members.insert(id, member(id.into()));
    }
    let ranks = target(&state.weights(), SLOTS as usize, 1).unwrap();
    state.apply(2, &Command::Move { first: 0, ranks }).unwrap();
    state.slots.iter_mut().for_each(|slot| slot.previous = 0);
    state
}

fn definition(backends: &[(&str, u32)]) -> Definition {
    Definition(backends.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect())
}

fn apply_pools(state: &mut State, index: u64, backends: &[(&str, u32)]) {
    let pools = BTreeMap::from([("web".to_owned(), definition(backends))]);
    state.apply(index, &Command::Apply { text: index.to_string(), expect: None, pools }).unwrap();
}

fn step(state: &mut State, index: u64, advance: Advance) -> Result<(), Refusal> {
    let since = state.pools["web"].since;
    state.apply(index, &Command::PoolStep { pool: "web".to_owned(), since, advance })
}

#[test]
fn a_death_promotes_the_next_ranks_and_nothing_else() {
    let before = cluster(4);
    let mut state = before.clone();
    state.apply(9, &Command::NodeDown { id: 3, incarnation: 1 }).unwrap();
    for (old, new) in before.slots.iter().zip(&state.slots) {
        assert_eq!(new.ranks, crate::ownership::promote(old.ranks, 3));
        assert_eq!(new.version, if old.ranks.contains(&3) { 9 } else { old.version });
        assert_eq!(new.previous, 0, "the dead cannot be asked");
    }
    assert_eq!(state.apply(10, &Command::NodeDown { id: 3, incarnation: 1 }), Err(Refusal::Stale(3)));
    assert_eq!(state.members[&3].state(), MemberState::Down);
}

#[test]
fn a_move_remembers_the_living_primary() {
    let mut state = cluster(3);
    let old = state.slots[5];
    let ranks = [old.ranks[1], old.ranks[0], old.ranks[2], 0];
    state.apply(9, &Command::Move { first: 5, ranks: vec![ranks] }).unwrap();
    assert_eq!(state.slots[5], Slot { ranks, previous: old.ranks[0], version: 9 });
    state.apply(10, &Command::Move { first: 5, ranks: vec![ranks] }).unwrap();
    assert_eq!(state.slots[5].version, 9, "what does not change keeps its version");

    state.apply(11, &Command::NodeDown { id: ranks[0], incarnation: 1 }).unwrap();
    assert_eq!(state.slots[5].previous, 0, "the previous owner is the primary again");
}

#[test]
fn previous_owners_are_forgotten_after_a_while() {
    let mut state = cluster(3);
    let [first, second, third, _] = state.slots[0].ranks;
    state.apply(9, &Command::Move { first: 0, ranks: vec![[second, first, third, 0]] }).unwrap();
    state.apply(10, &Command::Forget { unchanged_since: 8 }).unwrap();
    assert_eq!(state.slots[0].previous, first);
    state.apply(11, &Command::Forget { unchanged_since: 9 }).unwrap();
    assert_eq!((state.slots[0].previous, state.slots[0].version), (0, 11));
}

#[test]
fn apply_is_compare_and_set() {
    let mut state = cluster(1);
    let apply = |text: &str, expect| Command::Apply { text: text.to_owned(), expect, pools: BTreeMap::new() };
    state.apply(3, &apply("a", Some(1))).unwrap();
    assert_eq!(state.apply(4, &apply("b", Some(1))), Err(Refusal::Version { present: 2, expected: 1 }));
    assert_eq!(state.specification, Specification { version: 2, text: "a".to_owned() });
    state.apply(5, &apply("a", None)).unwrap();
    assert_eq!(state.specification.version, 2, "the same again changes nothing");
    assert_eq!(state.version, 5);
}

#[test]
fn a_node_that_lost_its_maps_owns_nothing_until_it_is_up_again() {
    let mut state = cluster(3);
    assert_eq!(state.apply(5, &Command::NodeReturning { id: 2, incarnation: 1 }), Err(Refusal::Stale(2)));
    state.apply(6, &Command::NodeReturning { id: 2, incarnation: 7 }).unwrap();
    assert!(state.slots.iter().all(|slot| !slot.ranks.contains(&2)));
    assert_eq!(state.members[&2].state(), MemberState::Returning);
    assert!(state.has_two_owners_each());
    assert_eq!(state.apply(7, &Command::NodeUp { id: 2, incarnation: 1 }), Err(Refusal::Stale(2)));
    state.apply(8, &Command::NodeUp { id: 2, incarnation: 7 }).unwrap();
    assert_eq!(state.members[&2].state(), MemberState::Up);
}

#[test]
fn the_last_voter_and_the_last_owner_stay() {
    let mut state = cluster(2);
    state.apply(5, &Command::Drain(1)).unwrap();
    assert_eq!(state.apply(6, &Command::Drain(2)), Err(Refusal::LastOwner(2)));
    state.apply(7, &Command::Leave(1)).unwrap();
    assert_eq!(state.apply(8, &Command::Leave(2)), Err(Refusal::LastVoter(2)));
    assert_eq!(state.apply(9, &Command::Retire { id: 2, disk: 2 }), Err(Refusal::LastVoter(2)));
}

#[test]
fn a_node_is_relieved_once_it_drains_and_owns_nothing() {
    let mut state = cluster(3);
    assert_eq!(state.apply(4, &Command::Relieve(3)), Err(Refusal::Stale(3)));
    state.apply(5, &Command::Drain(3)).unwrap();
    assert_eq!(state.apply(6, &Command::Relieve(3)), Err(Refusal::Stale(3)));
    let ranks = target(&state.weights(), SLOTS as usize, 1).unwrap();
    state.apply(7, &Command::Move { first: 0, ranks }).unwrap();
    assert!(state.slots.iter().any(|slot| slot.previous == 3));
    let others: Vec<u8> = state.slots.iter().map(|slot| slot.previous).filter(|&id| id != 0 && id != 3).collect();
    state.apply(8, &Command::Relieve(3)).unwrap();
    let left: Vec<u8> = state.slots.iter().map(|slot| slot.previous).filter(|&id| id != 0).collect();
    assert_eq!((left, state.members[&3].state()), (others, MemberState::Drained));
    state.apply(9, &Command::Undrain(3)).unwrap();
    assert_eq!(state.members[&3].state(), MemberState::Up);
}

#[test]
fn a_seat_belongs_to_a_disk() {
    let mut state = cluster(3);
    let join = Command::Join { id: 2, disk: 22, address: "b".to_owned(), weight: 9, incarnation: 5 };
    assert_eq!(state.apply(5, &join), Err(Refusal::Seated(2)));
    assert_eq!(state.apply(6, &Command::Retire { id: 2, disk: 7 }), Err(Refusal::Stale(2)));
    state.apply(7, &Command::Retire { id: 2, disk: 2 }).unwrap();
    state.apply(8, &join).unwrap();
    assert_eq!(state.members[&2].seat, Some(Seat { disk: 22, votes: false }));
    assert_eq!(state.members[&2].weight, 1, "a member keeps its weight");
    assert_eq!(state.apply(9, &Command::Promote { id: 2, disk: 2 }), Err(Refusal::Stale(2)));
    state.apply(10, &Command::Promote { id: 2, disk: 22 }).unwrap();
    assert!(state.members[&2].seat.unwrap().votes);
}

#[test]
fn a_pools_change_goes_step_by_step() {
    let mut state = cluster(1);
    let id = |name: &str| name.len() as u16;
    apply_pools(&mut state, 3, &[("a", 1), ("bb", 1)]);
    assert_eq!(state.pools["web"].phase(), Phase::Settled, "a new pool has no flows to lose");
    let before = state.pools["web"].rows(id);

    apply_pools(&mut state, 4, &[("a", 1), ("ccc", 1)]);
    assert_eq!(state.pools["web"].phase(), Phase::Announced);
    assert_eq!(step(&mut state, 5, Advance::Settle), Err(Refusal::OutOfTurn));
    step(&mut state, 6, Advance::Switch).unwrap();
    let switched = state.pools["web"].rows(id);
    let disputed: Vec<usize> = (0..switched.len()).filter(|&row| switched[row].disputed()).collect();
    assert!(disputed.len() > switched.len() / 3);
    assert!(disputed.iter().all(|&row| switched[row].previous() == before[row].current()));

    let quiet: RowSet = disputed[..10].iter().copied().collect();
    step(&mut state, 7, Advance::Agree(Rows::Some(quiet))).unwrap();
    assert_eq!(state.pools["web"].rows(id).iter().filter(|row| row.disputed()).count(), disputed.len());
    step(&mut state, 8, Advance::Settle).unwrap();
    assert_eq!(state.pools["web"].rows(id).iter().filter(|row| row.disputed()).count(), disputed.len() - 10);
    let steps = state.pools["web"].steps.len();
    step(&mut state, 9, Advance::Agree(Rows::Some(disputed[10..20].iter().copied().collect()))).unwrap();
    step(&mut state, 10, Advance::Settle).unwrap();
    assert_eq!(state.pools["web"].steps.len(), steps, "what is settled bit by bit takes no more room");
    assert_eq!(state.pools["web"].rows(id).iter().filter(|row| row.disputed()).count(), disputed.len() - 20);

    step(&mut state, 11, Advance::Agree(Rows::All)).unwrap();
    step(&mut state, 12, Advance::Settle).unwrap();
    assert_eq!(state.pools["web"], Pool::settled(definition(&[("a", 1), ("ccc", 1)]), 12));
    assert!(state.pools["web"].rows(id).iter().zip(&switched).all(|(now, then)| now.current() == then.current()));
}

#[test]
fn a_second_change_keeps_the_previous_of_before_the_first() {
    let mut state = cluster(1);
    let id = |name: &str| name.len() as u16;
    apply_pools(&mut state, 3, &[("a", 1)]);
    apply_pools(&mut state, 4, &[("bb", 1)]);
    step(&mut state, 5, Advance::Switch).unwrap();
    apply_pools(&mut state, 6, &[("ccc", 1)]);
    assert_eq!(state.pools["web"].phase(), Phase::Announced);
    step(&mut state, 7, Advance::Switch).unwrap();
    assert!(state.pools["web"].rows(id).iter().all(|row| (row.current(), row.previous()) == (3, 1)));
}

#[test]
fn a_dead_backend_has_fallen_once_and_as_long_as_no_row_names_it() {
    let mut pool = Pool::settled(definition(&[("one", 1), ("two", 1), ("three", 1)]), 1);
    let fallen = |pool: &Pool| pool.fallen().cloned().collect::<Vec<_>>();
    let out = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    pool.set_out(&out(&["one"]), &BTreeMap::new(), 2);
    assert!(fallen(&pool).is_empty(), "its rows name it yet");
    pool.switch(3).unwrap();
    assert_eq!(fallen(&pool), ["one"]);
    pool.set_out(&out(&["one", "two"]), &BTreeMap::new(), 4);
    assert_eq!(fallen(&pool), ["one"]);
    pool.switch(5).unwrap();
    assert_eq!(fallen(&pool), ["one", "two"]);
    pool.set_out(&out(&["two"]), &BTreeMap::new(), 6);
    assert_eq!(fallen(&pool), ["two"], "rows are about to name it again");
    pool.set_out(&out(&["one", "two", "three"]), &BTreeMap::new(), 7);
    assert!(fallen(&pool).is_empty(), "where all are dead all are used");
}

#[test]
fn who_warms_up_and_is_out_has_nothing_and_who_is_left_alone_has_all() {
    let mut state = cluster(1);
    apply_pools(&mut state, 3, &[("a", 2), ("bb", 3)]);
    let weights = |state: &State| state.pools["web"].latest().0.values().copied().collect::<Vec<_>>();
    let warm = |steps: &[(&str, u8)]| {
        let steps = steps.iter().map(|(name, step)| ((*name).to_owned(), *step)).collect();
        Command::Warm { pool: "web".to_owned(), steps }
    };
    let out = |names: &[&str]| {
        Command::SetOut([("web".to_owned(), names.iter().map(|name| (*name).to_owned()).collect())].into())
    };
    for (index, command, expected) in [
        (4, out(&["bb"]), [2, 0]),
        (5, warm(&[("bb", 1)]), [2, 0]),
        (6, out(&[]), [16, 3]),
        (7, warm(&[("bb", 2)]), [16, 6]),
        (8, out(&["a"]), [0, 6]),
        (9, warm(&[("a", 1), ("bb", 7)]), [0, 21]),
        (10, out(&["a", "bb"]), [2, 3]),
        (11, warm(&[("bb", 7)]), [2, 3]),
        (12, out(&[]), [16, 21]),
        (13, warm(&[]), [2, 3]),
    ] {
        state.apply(index, &command).unwrap();
        assert_eq!(weights(&state), expected, "{command:?}");
    }
    assert!(state.warming.is_empty());
    state.apply(14, &warm(&[("bb", 7)])).unwrap();
    apply_pools(&mut state, 15, &[("a", 2)]);
    assert!(state.warming.is_empty(), "who is configured no more warms up no more");
    assert_eq!(state.apply(16, &Command::Warm { pool: "x".to_owned(), steps: [].into() }), Err(Refusal::OutOfTurn));
}

#[test]
fn who_has_drained_for_its_time_keeps_no_flows_and_begins_anew_when_it_drains_again() {
    let mut state = cluster(1);
    apply_pools(&mut state, 3, &[("a", 2), ("bb", 3)]);
    let elapse = |version, parts: &[(&str, u8)]| {
        let parts = parts.iter().map(|(name, part)| ((*name).to_owned(), *part)).collect();
        Command::Elapse { pool: "web".to_owned(), version, parts }
    };
    let version = state.specification.version;
    assert_eq!(state.apply(4, &elapse(version, &[("bb", 1)])), Err(Refusal::OutOfTurn), "it does not drain");
    apply_pools(&mut state, 5, &[("a", 2), ("bb", 0)]);
    let version = state.specification.version;
    let drained = |state: &State| state.drained("web").cloned().collect::<Vec<_>>();
    state.apply(6, &elapse(version, &[("bb", DRAIN_PARTS)])).unwrap();
    assert!(drained(&state).is_empty(), "its rows name it yet");
    step(&mut state, 7, Advance::Switch).unwrap();
    assert_eq!(drained(&state), ["bb"]);
    apply_pools(&mut state, 8, &[("a", 3), ("bb", 0)]);
    assert_eq!(drained(&state), ["bb"], "another change does not give it its time again");
    apply_pools(&mut state, 9, &[("a", 3), ("bb", 1)]);
    assert!(state.drains.is_empty() && drained(&state).is_empty());
    apply_pools(&mut state, 10, &[("a", 3), ("bb", 0)]);
    let late = state.apply(11, &elapse(version, &[("bb", DRAIN_PARTS)]));
    assert_eq!(late, Err(Refusal::OutOfTurn), "meant for when it drained before");
    state.apply(12, &elapse(state.specification.version, &[("bb", 3)])).unwrap();
    assert_eq!(state.drains["web"]["bb"], 3);
    state.apply(13, &elapse(state.specification.version, &[])).unwrap();
    assert!(state.drains.is_empty());
}

#[test]
fn commands_survive_the_log() {
    let command = Command::Move { first: 3, ranks: vec![[1, 2, 3, 4]] };
    assert_eq!(Command::open(&command.seal()), Ok(command));
}

fn commands() -> impl Strategy<Value = Command> {
    let id = 0u8..6;
    let rank = prop::array::uniform4(0u8..6);
    prop_oneof![
        (id.clone(), 1u64..3).prop_map(|(id, incarnation)| Command::NodeDown { id, incarnation }),
        (id.clone(), 1u64..3).prop_map(|(id, incarnation)| Command::NodeReturning { id, incarnation }),
        (id.clone(), 1u64..3).prop_map(|(id, incarnation)| Command::NodeUp { id, incarnation }),
        id.clone().prop_map(Command::Drain),
        id.clone().prop_map(Command::Undrain),
        id.clone().prop_map(Command::Relieve),
        (id.clone(), 0u32..9).prop_map(|(id, weight)| Command::SetWeights(BTreeMap::from([(id, weight)]))),
        (0u32..SLOTS + 9, prop::collection::vec(rank, 0..12)).prop_map(|(first, ranks)| Command::Move { first, ranks }),
        (0u64..40).prop_map(|unchanged_since| Command::Forget { unchanged_since }),
        (id.clone(), 1u128..9).prop_map(|(id, disk)| Command::Join {
            id,
            disk,
            address: String::new(),
            weight: 1,
            incarnation: 1
        }),
        (id.clone(), 1u128..9).prop_map(|(id, disk)| Command::Promote { id, disk }),
        (id.clone(), 1u128..9).prop_map(|(id, disk)| Command::Retire { id, disk }),
        id.prop_map(Command::Leave),
        (prop::option::of(0u64..5), "[ab]", 1u32..3).prop_map(|(expect, text, weight)| Command::Apply {
            text,
            expect,
            pools: BTreeMap::from([("web".to_owned(), definition(&[("a", weight)]))]),
        }),
        (0u64..40, prop_oneof![Just(Advance::Switch), Just(Advance::Agree(Rows::All)), Just(Advance::Settle)])
            .prop_map(|(since, advance)| Command::PoolStep { pool: "web".to_owned(), since, advance }),
        ("web|no", prop::collection::btree_map("[ab]", 1u8..9, 0..3))
            .prop_map(|(pool, steps)| Command::Warm { pool, steps }),
        ("web|no", 0u64..5, prop::collection::btree_map("[ab]", 1u8..9, 0..3))
            .prop_map(|(pool, version, parts)| Command::Elapse { pool, version, parts }),
        prop::collection::btree_set("[ab]", 0..3)
            .prop_map(|out| Command::SetOut(BTreeMap::from([("web".to_owned(), out)]))),
    ]
}

proptest! {
    #[test]
    fn each_part_of_a_weight_moves_rows_to_its_backend(weights in prop::collection::vec(1u32..=10, 2..30)) {
        let names: Vec<String> = (0..weights.len()).map(|one| format!("b{one}")).collect();
        let configured = Definition(names.iter().cloned().zip(weights).collect());
        let whole = Pool::settled(configured, 1);
        let id = |name: &str| name[1..].parse::<u16>().unwrap() + 1;
        let rows = |pool: &Pool| -> Vec<u16> {
            Pool::settled(pool.latest().clone(), 1).rows(id).iter().map(|row| row.current()).collect()
        };
        let mut pool = whole.clone();
        pool.set_out(&[names[0].clone()].into(), &BTreeMap::new(), 2);
        let mut last = rows(&pool);
        for step in 1..=WARMTH {
            let warming = if step < WARMTH { [(names[0].clone(), step)].into() } else { BTreeMap::new() };
            pool.set_out(&BTreeSet::new(), &warming, 3);
            let now = rows(&pool);
            let beside = last.iter().zip(&now).filter(|(old, new)| old != new && **new != 1).count();
            let share = |rows: &[u16]| rows.iter().filter(|&&one| one == 1).count();
            prop_assert!(share(&now) >= share(&last).max(1), "step {step} takes from it");
            prop_assert!(beside * 100 <= now.len() * 12, "step {step}: {beside} of {} beside", now.len());
            last = now;
        }
        prop_assert_eq!(last, rows(&whole));
    }

    #[test]
    fn the_same_log_gives_the_same_state(log in prop::collection::vec(commands(), 0..60)) {
        let (mut one, mut other) = (cluster(4), cluster(4));
        for (index, command) in (3..).zip(&log) {
            prop_assert_eq!(one.apply(index, command), other.apply(index, command));
            prop_assert_eq!(one.digest(), other.digest());
        }
        let bytes = postcard::to_stdvec(&one).unwrap();
        prop_assert_eq!(postcard::from_bytes::<State>(&bytes).unwrap(), one);
    }

    #[test]
    fn tables_stay_sound(log in prop::collection::vec(commands(), 0..60)) {
        let mut state = cluster(4);
        for (index, command) in (3..).zip(&log) {
            let before = state.clone();
            let outcome = state.apply(index, command);
            if outcome.is_err() {
                prop_assert_eq!(&State { version: before.version, ..state.clone() }, &before);
            }
            prop_assert!(state.specification.version >= before.specification.version);
            for (number, (old, new)) in before.slots.iter().zip(&state.slots).enumerate() {
                let mut ids: Vec<u8> = new.ranks.into_iter().filter(|&id| id != 0).collect();
                prop_assert!(ids.iter().all(|&id| state.is_present(id)));
                prop_assert!(new.previous == 0 || state.is_present(new.previous));
                prop_assert!(new.previous == 0 || new.previous != new.ranks[0]);
                let count = ids.len();
                ids.sort_unstable();
                ids.dedup();
                prop_assert_eq!(ids.len(), count);
                prop_assert!(new.version == old.version && new == old || new.version == index);
                if let Command::Move { first, ranks } = command {
                    let named = (*first as usize..*first as usize + ranks.len()).contains(&number);
                    prop_assert!(named || new == old);
                }
            }
        }
    }
}
