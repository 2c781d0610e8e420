//! A node that falls again and again is let in ever later, so that flows do not go to and fro with it, and none breaks.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use xtask::lab::{Cut, Topology};

use crate::kills::{Traffic, nothing_broke};
use crate::scene::{Scene, every_kind, wait_until};
use crate::truth::every;

const FALLS: usize = 4;
/// How long a node stays out after its first fall, at least; after each further one twice as long.
const OUT: Duration = Duration::from_millis(250);

#[test]
fn a_node_that_flaps_is_let_in_ever_later() -> Result<()> {
    let topology = Topology::for_test("flapping");
    let mut config = every_kind(&topology, &["l2"]);
    config.beats = Some("fast".to_owned());
    // What becomes of a node that is agreed to be down is for other tests.
    config.down_after = Some("60s".to_owned());
    let scene = Scene::up(&topology, config)?;
    let traffic = Traffic::start(&scene)?;
    wait_until("answers come to every flow", || Ok(traffic.flows()))?;
    let (others, mut times) = (["n1", "n2"], Vec::new());
    for fall in 1..=FALLS {
        let cut = Instant::now();
        scene.lab.partition(&["n3"], &others, Cut::Beats)?;
        wait_until(&format!("both others suspect n3 for the {fall}th time"), || {
            every(&others, |by| Ok(scene.lab.seen(by)?.iter().any(|seen| seen.name == "n3" && !seen.alive)))
        })?;
        scene.lab.heal()?;
        scene.lab.whole()?;
        times.push(cut.elapsed());
    }
    println!("n3 was out for {times:?}");
    let least = (0..).map(|falls| OUT * 2u32.pow(falls));
    for (time, least) in times.iter().zip(least) {
        ensure!(*time >= least, "it was let in after {time:?}, before {least:?} were over: {times:?}");
    }
    ensure!(times[FALLS - 1] > times[0].min(times[1]), "a node that flaps is let in no later than others: {times:?}");
    let (stream, long) = traffic.finish()?;
    nothing_broke(&long)?;
    println!("{} of {} datagrams were lost", stream.lost, stream.sent);
    ensure!(stream.wrong == 0 && stream.moved == 0, "{stream:#?}");
    Ok(())
}
