//! Backends that die, that come back, that start slowly, and that drain.

use super::*;
use crate::consensus::state::{DRAIN_PARTS, WARMTH};

/// A cluster with one pool, `web`, whose backends start within so many milliseconds.
fn with_slow_start(nodes: u8, backends: &[&str], weight: u32, ms: u64) -> World {
    let mut world = World::of(nodes);
    world.settle();
    let backends = backends.iter().map(|name| ((*name).to_owned(), weight)).collect();
    let pools = BTreeMap::from([("web".to_owned(), Definition(backends))]);
    let apply = Command::Apply { text: "a".to_owned(), expect: None, pools };
    world.state.apply(world.state.version + 1, &apply).unwrap();
    world.times.slow_starts = BTreeMap::from([("web".to_owned(), ms)]);
    world
}

#[test]
fn a_backend_is_out_when_most_nodes_find_it_dead_for_a_while_and_in_when_they_do_not() {
    let mut world = World::of(3);
    world.settle();
    let names = ["one", "two"].map(|name| (name.to_owned(), 1));
    let pools = BTreeMap::from([("web".to_owned(), Definition(names.into()))]);
    let apply = Command::Apply { text: "a".to_owned(), expect: None, pools };
    world.state.apply(world.state.version + 1, &apply).unwrap();
    let out = |world: &World| world.state.pools["web"].out.iter().cloned().collect::<Vec<_>>();
    let find = |world: &mut World, nodes: &[u8], backends: &[&str]| {
        for (id, report) in &mut world.reports {
            let dead = backends.iter().filter(|_| nodes.contains(id)).map(|name| (*name).to_owned());
            report.dead = BTreeMap::from([("web".to_owned(), dead.collect())]);
        }
    };
    let live = |world: &mut World| {
        for _ in 0..300 {
            world.catch_up();
            for report in world.reports.values_mut() {
                report.restless.insert("web".to_owned(), RowSet::default());
            }
            world.pass();
        }
    };
    find(&mut world, &[1], &["one"]);
    live(&mut world);
    assert!(out(&world).is_empty(), "one node alone says so");
    find(&mut world, &[1, 3], &["one"]);
    world.pass();
    assert!(out(&world).is_empty(), "not for a while yet");
    live(&mut world);
    assert_eq!((out(&world), world.state.pools["web"].phase()), (vec!["one".to_owned()], Phase::Settled));
    let rows = world.state.pools["web"].rows(|name| u16::from(name == "one") + 1);
    assert!(rows.iter().all(|row| row.current() == 1), "all rows are the other one's");
    find(&mut world, &[1, 2, 3], &["one", "two"]);
    live(&mut world);
    let rows = world.state.pools["web"].rows(|name| u16::from(name == "one") + 1);
    assert!(rows.iter().any(|row| row.current() == 2), "where all are dead all are used");
    find(&mut world, &[2], &["two"]);
    live(&mut world);
    assert!(out(&world).is_empty(), "most find them alive");
    let rows = world.state.pools["web"].rows(|name| u16::from(name == "one") + 1);
    assert!(rows.iter().any(|row| row.current() == 2) && rows.iter().any(|row| row.current() == 1));
}

#[test]
fn a_backend_that_comes_back_gets_its_weight_step_by_step_and_moves_rows_to_itself_alone() {
    let mut world = with_slow_start(3, &["one", "two", "three", "four"], 3, 8_000);
    let current = |world: &World| -> Vec<u16> {
        let id = |name: &str| u16::from(name == "one") + 2 * u16::from(name == "two") + 4 * u16::from(name == "three");
        world.state.pools["web"].rows(id).iter().map(|row| row.current()).collect()
    };
    let share = |rows: &[u16]| rows.iter().filter(|&&id| id == 1).count();
    let live = |world: &mut World| {
        world.catch_up();
        for report in world.reports.values_mut() {
            report.restless.insert("web".to_owned(), RowSet::default());
        }
        world.pass();
    };
    let find = |world: &mut World, dead: &[&str]| {
        let dead: BTreeSet<String> = dead.iter().map(|name| (*name).to_owned()).collect();
        world.reports.values_mut().for_each(|report| report.dead = BTreeMap::from([("web".to_owned(), dead.clone())]));
    };
    let whole = current(&world);
    find(&mut world, &["one"]);
    (0..50).for_each(|_| live(&mut world));
    assert_eq!(share(&current(&world)), 0);
    find(&mut world, &[]);
    let (mut last, mut levels, mut began) = (current(&world), Vec::new(), 0);
    for _ in 0..200 {
        live(&mut world);
        let now = current(&world);
        if now != last {
            began = if levels.is_empty() { world.now } else { began };
            levels.push((share(&now), world.now - began));
            let beside = last.iter().zip(&now).filter(|(old, new)| old != new && **new != 1).count();
            assert!(beside * 25 < now.len(), "{beside} of {} rows moved between others", now.len());
            last = now;
        }
    }
    assert!(levels.is_sorted() && levels.len() == usize::from(WARMTH), "{levels:?}");
    assert_eq!(last, whole, "in the end all is as before");
    let due = |step: usize| whole.len() * step / (step + 3 * usize::from(WARMTH));
    assert!(levels.iter().zip(1..).all(|((rows, _), step)| rows.abs_diff(due(step)) <= 8), "{levels:?}");
    // A step's rows are current a round after it was agreed on; it counts from then on.
    let (_, took) = levels[levels.len() - 1];
    assert!((7_000..=9_500).contains(&took), "{took} ms");
    assert!(world.state.warming.is_empty());
}

#[test]
fn a_backend_that_dies_again_begins_again_and_without_a_slow_start_has_all_at_once() {
    let mut world = with_slow_start(1, &["one", "two", "three"], 1, 80_000);
    let live = |world: &mut World, rounds: usize, dead: bool| {
        for _ in 0..rounds {
            world.catch_up();
            let report = world.reports.get_mut(&1).unwrap();
            report.restless.insert("web".to_owned(), RowSet::default());
            let names = dead.then(|| "one".to_owned()).into_iter().collect();
            report.dead = BTreeMap::from([("web".to_owned(), names)]);
            world.pass();
        }
        world.state.warming.get("web").and_then(|steps| steps.get("one")).copied()
    };
    assert_eq!(live(&mut world, 50, true), Some(1));
    assert_eq!(live(&mut world, 400, false), Some(4), "two seconds to be believed, and three steps");
    assert_eq!(live(&mut world, 20, true), Some(1));
    assert_eq!(live(&mut world, 50, false), Some(1));
    world.times.slow_starts.clear();
    assert_eq!(live(&mut world, 20, false), None);
    let weights: BTreeSet<u32> = world.state.pools["web"].latest().0.values().copied().collect();
    assert_eq!(weights, [1].into());
}

#[test]
fn a_pool_that_never_settles_takes_deaths_when_it_has_no_room_for_slow_starts() {
    let mut world = with_slow_start(1, &["one", "two", "three"], 1, 800);
    let every_row: RowSet = (0..world.state.pools["web"].rows(|_| 1).len()).collect();
    let live = |world: &mut World, dead: bool| {
        for _ in 0..if dead { 8 } else { 40 } {
            world.catch_up();
            let report = world.reports.get_mut(&1).unwrap();
            report.restless.insert("web".to_owned(), every_row.clone());
            let names = dead.then(|| "one".to_owned()).into_iter().collect();
            report.dead = BTreeMap::from([("web".to_owned(), names)]);
            world.pass();
        }
        world.state.pools["web"].out.contains("one")
    };
    let mut returns = 0;
    while world.state.pools["web"].has_room() {
        assert!(live(&mut world, true) && !live(&mut world, false), "after {returns} returns");
        returns += 1;
        assert!(returns < 200, "steps were to add up, or nothing is tried");
    }
    for _ in 0..3 {
        assert!(live(&mut world, true) && !live(&mut world, false), "after {returns} returns");
    }
    let weights: BTreeSet<u32> = world.state.pools["web"].latest().0.values().copied().collect();
    assert_eq!((world.state.warming.len(), weights), (0, [1].into()));
}

/// A pool of two, of which `one` drains by a configuration of this text.
fn drains_one(world: &mut World, text: &str, weight: u32) {
    let backends = [("one".to_owned(), weight), ("two".to_owned(), 1)];
    let pools = BTreeMap::from([("web".to_owned(), Definition(backends.into()))]);
    let apply = Command::Apply { text: text.to_owned(), expect: None, pools };
    world.state.apply(world.state.version + 1, &apply).unwrap();
}

/// Lets so much time pass, in milliseconds, in which rows have old flows all along.
fn drain_for(world: &mut World, ms: u64) -> Option<u8> {
    let every_row: RowSet = (0..world.state.pools["web"].rows(|_| 1).len()).collect();
    for _ in 0..ms / 100 {
        world.catch_up();
        world.reports.values_mut().for_each(|one| drop(one.restless.insert("web".to_owned(), every_row.clone())));
        world.pass();
    }
    world.state.drains.get("web").and_then(|parts| parts.get("one")).copied()
}

#[test]
fn the_time_of_a_backend_that_drains_is_counted_in_parts_and_outlives_leaders() {
    let mut world = with_slow_start(3, &["one", "two"], 1, 0);
    world.times.drains = BTreeMap::from([("web".to_owned(), 32_000)]);
    assert_eq!(drain_for(&mut world, 5_000), None, "nothing drains");
    drains_one(&mut world, "b", 0);
    assert_eq!(drain_for(&mut world, 16_200), Some(8));
    world.planner = Planner::new(Patience::default());
    assert_eq!(drain_for(&mut world, 2_100), Some(9), "a new leader counts a part anew at most");
    assert_eq!(drain_for(&mut world, 13_900), Some(15));
    assert_eq!(world.state.drained("web").count(), 0);
    assert_eq!(drain_for(&mut world, 2_000), Some(DRAIN_PARTS));
    assert_eq!(world.state.drained("web").collect::<Vec<_>>(), ["one"]);
    assert_eq!(drain_for(&mut world, 10_000), Some(DRAIN_PARTS), "and that is all");
    drains_one(&mut world, "c", 1);
    assert_eq!(drain_for(&mut world, 500), None);
    drains_one(&mut world, "d", 0);
    assert_eq!(drain_for(&mut world, 2_200), Some(1), "it has all of its time again");
    world.times.drains.clear();
    assert_eq!(drain_for(&mut world, 500), None, "there is no deadline any more");
}

#[test]
fn a_short_deadline_is_met_and_one_that_led_before_counts_nothing_of_that_time() {
    let mut world = with_slow_start(1, &["one", "two"], 1, 0);
    world.times.drains = BTreeMap::from([("web".to_owned(), 1_000)]);
    drains_one(&mut world, "b", 0);
    let took = (0..100).find(|_| drain_for(&mut world, 100) == Some(DRAIN_PARTS));
    assert!((9..=12).contains(&took.unwrap()), "{took:?} x 100 ms");
    let mut world = with_slow_start(1, &["one", "two"], 1, 0);
    world.times.drains = BTreeMap::from([("web".to_owned(), 64_000)]);
    drains_one(&mut world, "b", 0);
    assert_eq!(drain_for(&mut world, 4_200), Some(1));
    let (vips, times, status) = (BTreeMap::new(), world.times.clone(), world.status());
    let (welcome, strangers) = (BTreeSet::new(), BTreeMap::new());
    let status = Status { role: Role::Follower, ..status };
    let view = View { state: &world.state, status: &status, strangers, welcome: &welcome, vips: &vips, times: &times };
    assert!(world.planner.plan(&view, world.now + 60_000).is_empty());
    world.now += 60_000;
    assert_eq!(drain_for(&mut world, 3_000), Some(1), "who led meanwhile has counted it, or nobody has");
}

/// Lets so many rounds pass, in which nodes find these backends dead, each its own.
fn find(world: &mut World, rounds: usize, dead: &[(&[u8], &str)]) {
    for _ in 0..rounds {
        world.catch_up();
        for (id, report) in &mut world.reports {
            report.restless.insert("web".to_owned(), RowSet::default());
            let own = dead.iter().filter(|(nodes, _)| nodes.contains(id)).map(|(_, name)| (*name).to_owned());
            report.dead = BTreeMap::from([("web".to_owned(), own.collect())]);
        }
        world.pass();
    }
}

/// Who was out begins with the first part of its weight, as if it had come back, and has no more while it is dead; who dies in
/// the panic stays whole, and its end changes nothing for anybody who is well.
#[test]
fn in_a_panic_all_are_used_and_who_is_dead_uses_up_no_part_of_its_start() {
    let mut world = with_slow_start(3, &["one", "two", "three"], 1, 16_000);
    world.times.panics = BTreeMap::from([("web".to_owned(), 50)]);
    let all: &[u8] = &[1, 2, 3];
    let parts = |world: &World| {
        let weights = world.state.pools["web"].latest().0.clone();
        ["one", "two", "three"].map(|name| weights[name] * u32::from(WARMTH) / weights["three"])
    };
    find(&mut world, 50, &[(all, "one")]);
    assert_eq!((parts(&world), world.state.panicking.len()), ([0, 8, 8], 0));
    find(&mut world, 10, &[(all, "one"), (all, "two")]);
    assert_eq!(world.state.panicking, BTreeMap::from([("web".to_owned(), 33)]));
    assert_eq!(parts(&world), [1, 8, 8], "all are used");
    find(&mut world, 300, &[(all, "one"), (all, "two")]);
    assert_eq!(parts(&world), [1, 8, 8], "half a minute dead is no start");
    // The second one is back, and has to be for a while; then the panic ends, and the first is still dead.
    find(&mut world, 15, &[(all, "one")]);
    assert_eq!((parts(&world), world.state.panicking.len()), ([1, 8, 8], 1));
    find(&mut world, 15, &[(all, "one")]);
    assert_eq!((parts(&world), world.state.panicking.len()), ([0, 8, 8], 0));
    find(&mut world, 30, &[]);
    assert_eq!(parts(&world), [1, 8, 8], "its own return begins anew");
    find(&mut world, 200, &[]);
    assert_eq!(parts(&world), [8, 8, 8]);
}

/// Each node finds half of the pool dead, which it may be; most nodes together find three quarters.
#[test]
fn the_cluster_takes_out_no_more_than_a_panic_allows_however_its_nodes_differ() {
    let views: [(&[u8], &str); 3] = [(&[1, 3], "one"), (&[1, 2], "two"), (&[2, 3], "three")];
    for (panic, out, panicking) in [(50, 0, Some(25)), (26, 0, Some(25)), (25, 3, None), (0, 3, None)] {
        let mut world = with_slow_start(3, &["one", "two", "three", "four"], 1, 0);
        world.times = Times { panics: BTreeMap::from([("web".to_owned(), panic)]), ..Times::default() };
        find(&mut world, 50, &views);
        let (found, agreed) = (world.state.pools["web"].out.len(), world.state.panicking.get("web").copied());
        assert_eq!((found, agreed), (out, panicking), "at {panic} %");
        // Another leader goes on with what it finds, and the panic does not end for as long as it knows nobody well.
        world.planner = Planner::new(Patience::default());
        for _ in 0..50 {
            find(&mut world, 1, &views);
            assert_eq!(world.state.panicking.get("web").copied(), panicking, "at {panic} %, with another leader");
        }
        find(&mut world, 30, &views[..2]);
        assert_eq!((world.state.pools["web"].out.len(), world.state.panicking.len()), (2, 0), "one is back");
    }
}

#[test]
fn one_of_few_is_out_and_never_a_second_one_for_a_moment() {
    let mut world = with_slow_start(3, &["one", "two"], 1, 0);
    world.times = Times { panics: BTreeMap::from([("web".to_owned(), 50)]), ..Times::default() };
    find(&mut world, 20, &[(&[1, 2, 3], "one")]);
    assert_eq!(world.state.pools["web"].out.len(), 1);
    for _ in 0..60 {
        find(&mut world, 1, &[(&[1, 2, 3], "one"), (&[1, 3], "two")]);
        assert!(world.state.pools["web"].out.len() < 2, "both out");
    }
    assert_eq!((world.state.pools["web"].out.len(), world.state.panicking.len()), (0, 1));
    world
        .state
        .apply(
            world.state.version + 1,
            &Command::Apply { text: "none".to_owned(), expect: None, pools: BTreeMap::new() },
        )
        .unwrap();
    assert!(world.state.panicking.is_empty(), "a pool that is gone is in no panic");
    find(&mut world, 5, &[]);
}
