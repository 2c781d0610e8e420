//! A short run of the simulation, and the proof that it finds what it is made to find.

mod returning;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use simulation::flaw::Flaw;
use simulation::{replay, run};

/// Episodes of faults in each run.
const EPISODES: usize = 3;

#[test]
fn the_same_seed_is_the_same_run() {
    let [one, other] = [(); 2].map(|()| run(3, 1, Flaw::None).unwrap_or_else(|failure| panic!("{failure}")));
    assert_eq!(one, other);
    assert_ne!(one.digest, 0);
}

#[test]
fn a_few_seeds_hold() {
    // `cargo xtask test` then runs fifty more.
    for seed in 1..=4 {
        run(seed, EPISODES, Flaw::None).unwrap_or_else(|failure| panic!("{failure}\nreplay it: {}", replay(seed)));
    }
}

/// Seeds that are tried on a bug.
const TRIED: u64 = 400;

#[test]
fn every_known_bug_is_found() {
    let next = AtomicU64::new(0);
    let look = || {
        let mut missed = Vec::new();
        while let Some(&flaw) = Flaw::ALL.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            // What fails without the bug too has not found it.
            let finds = |seed| {
                let failure = run(seed, EPISODES, flaw).err()?;
                run(seed, EPISODES, Flaw::None).is_ok().then_some((seed, failure))
            };
            match (1..=TRIED).find_map(finds) {
                Some((seed, failure)) => {
                    println!("{flaw:?}: seed {seed}: {}", failure.what.lines().next().unwrap_or_default())
                }
                None => missed.push(flaw),
            }
        }
        missed
    };
    let missed: Vec<Flaw> = thread::scope(|scope| {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(look)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("it does not panic")).collect()
    });
    assert!(missed.is_empty(), "not found in {TRIED} seeds: {missed:?}");
}
