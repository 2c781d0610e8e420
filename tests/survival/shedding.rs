//! Load is driven through the shed levels by a paced stream against a small capacity: at each level exactly its classes
//! are refused, and the class that is critical never.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use xtask::lab::{Config, Pool, Ports, Service, Topology, Vip, vip4};
use xtask::traffic::{ECHO_PORT, HTTP_PORT, LongConnections, Stream, fetch};

use crate::scene::{PATIENCE, Scene, TIMEOUT, wait_until};

const CLASSES: [&str; 4] = ["critical", "high", "normal", "low"];
/// The port of a service that goes by what packets are marked with, at the last VIP.
const MARKED_PORT: u16 = 81;
/// Marks by class, as such a service understands them.
const MARKS: [u8; 4] = [46, 24, 16, 8];
/// Packets a second that the nodes are said to take; levels at their usual 70, 85 and 95 %.
const CAPACITY: u32 = 8_000;
/// Packets a second, in the middle between levels, and the level that they come to.
const PACES: [(u32, u64); 3] = [(6_100, 1), (7_100, 2), (9_000, 3)];
/// New connections to each class at each level.
const ATTEMPTS: u64 = 10;
/// A level that another disturbs is tried again.
const TRIES: usize = 8;

fn target(class: usize, port: u16) -> SocketAddr {
    (vip4(class as u8 + 1), port).into()
}

fn config(topology: &Topology) -> Config {
    let mut config = Config::default();
    for (number, class) in (1..).zip(CLASSES) {
        let vip = IpAddr::from(vip4(number));
        config.vip.push(Vip::new(vip));
        for (protocol, port) in [("tcp", HTTP_PORT), ("udp", ECHO_PORT)] {
            config.service.push(Service {
                name: format!("{class}-{protocol}"),
                vip: vip.to_string(),
                protocol: protocol.into(),
                ports: Ports::One(port),
                class: class.into(),
                affinity: "shared".into(),
                pool: "all".into(),
            });
        }
    }
    config.pool.push(Pool::of_all(topology, "all", "l2", false));
    // What the machine does besides is none of this test's, and answers to refused ones must not run out.
    let marked = vip4(CLASSES.len() as u8);
    config.more = format!(
        "[[service]]\nname = \"marked\"\nvip = \"{marked}\"\nprotocol = \"tcp\"\nports = {MARKED_PORT}\n\
         class = \"normal\"\ndscp = true\naffinity = \"shared\"\npool = \"all\"\n\
         [limits]\nicmp_per_second = 1000000\n\
         [shedding]\ncapacity = {CAPACITY}\nsoftirq = false\ndwell = \"1s\"\nanswer = \"reject\"\n"
    );
    config
}

/// What `asked` says of n1: its shed level and load.
fn level_of_n1(scene: &Scene, asked: &str) -> Result<(u64, u64)> {
    let nodes: Vec<Value> = serde_json::from_str(&scene.done(asked, &["get", "nodes", "-o", "json"])?)?;
    let n1 = nodes.iter().find(|node| node["name"] == "n1").context("n1 is a node")?;
    Ok((n1["shed"].as_u64().context("a shed level")?, n1["load"].as_u64().context("a load")?))
}

/// Packets that n1 has refused, by service and reason.
fn refused(scene: &Scene) -> Result<BTreeMap<(String, String), u64>> {
    let stats: Value = serde_json::from_str(&scene.done("n1", &["get", "stats", "-o", "json"])?)?;
    let all = stats["refused"].as_array().context("a list of what was refused")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for one in all {
        ensure!(text(&one["service"]).starts_with(&text(&one["class"])), "of another class than its service: {one}");
    }
    let line = |one: &Value| ((text(&one["service"]), text(&one["reason"])), one["packets"].as_u64().unwrap_or(0));
    Ok(all.iter().map(line).collect())
}

/// What `why` is to say that a packet of a class is refused for at a level, the first of a connection or a later one.
fn refused_for(class: usize, level: u64, is_new: bool) -> Option<&'static str> {
    match is_new {
        true if is_refused(class, level) => Some("shed"),
        false if level == 3 && CLASSES[class] == "low" => Some("shed-established"),
        _ => None,
    }
}

/// Level 1 refuses new flows of low, 2 of normal too, 3 of high too.
fn is_refused(class: usize, level: u64) -> bool {
    class as u64 + level > 3 && class > 0
}

/// What `why` says at n1 by class: of a new and an established connection, by service.
type Verdicts = [BTreeMap<&'static str, BTreeMap<String, Value>>; 4];

/// Asks `why` of each class: of the service that is of it, and by the mark that stands for it.
fn verdicts(scene: &Scene) -> Result<Verdicts> {
    let mut all = Verdicts::default();
    for (class, says) in all.iter_mut().enumerate() {
        let own = target(class, HTTP_PORT).to_string();
        let marked = target(CLASSES.len() - 1, MARKED_PORT).to_string();
        let mark = MARKS[class].to_string();
        for (what, syn) in [("new", &["--syn"][..]), ("established", &[])] {
            for (at, mark) in [(&own, &[][..]), (&marked, &["--dscp", &mark])] {
                let asked = [&["why", "tcp", "10.77.3.1:40000", at, "-o", "json"], syn, mark].concat();
                let answer: Value = serde_json::from_str(&scene.done("n1", &asked)?)?;
                let service = answer["service"].as_str().with_context(|| format!("a service: {answer:#}"))?.to_owned();
                says.entry(what).or_default().insert(service, answer);
            }
        }
    }
    Ok(all)
}

/// New connections to each class while n1 stays at a level: how many were answered, by class. None if it did not stay.
fn attempts(scene: &Scene, level: u64) -> Result<Option<[u64; 4]>> {
    let (before, mut answered) = (refused(scene)?, [0; 4]);
    if level_of_n1(scene, "n1")?.0 != level {
        return Ok(None);
    }
    for _ in 0..ATTEMPTS {
        for (class, count) in answered.iter_mut().enumerate() {
            let done = scene.lab.client().run(|| fetch(target(class, HTTP_PORT), "/", None, TIMEOUT))?;
            *count += u64::from(done.is_ok());
        }
    }
    if level_of_n1(scene, "n1")?.0 != level {
        return Ok(None);
    }
    let (after, says) = (refused(scene)?, verdicts(scene)?);
    if level_of_n1(scene, "n1")?.0 != level {
        return Ok(None);
    }
    for (class, says) in says.iter().enumerate() {
        // Who is asked by the mark fares as its class does.
        for (what, expected) in
            [("new", refused_for(class, level, true)), ("established", refused_for(class, level, false))]
        {
            for (service, answer) in &says[what] {
                // Who is refused is told by a reset.
                let verdict = if expected.is_some() { "reset-sent" } else { "served" };
                let is_so = answer["class"] == CLASSES[class] && answer["verdict"] == verdict;
                let is_for = answer["refused_for"].as_str() == expected;
                ensure!(is_so && is_for, "level {level}, {what} of {service}: {answer:#}");
            }
        }
        let service = format!("{}-tcp", CLASSES[class]);
        let own = &says["new"][&service];
        let told = own["refused"].as_array().context("what was refused")?;
        for ((_, reason), packets) in after.iter().filter(|((of, _), _)| *of == service) {
            let one = told.iter().find(|one| one["reason"] == **reason && one["class"] == CLASSES[class]);
            let told = one.and_then(|one| one["packets"].as_u64());
            ensure!(told >= Some(*packets), "{packets} packets of {service} were refused, {reason}: {own:#}");
        }
    }
    for (class, answered) in CLASSES.iter().zip(answered) {
        let key = (format!("{class}-tcp"), "shed".to_owned());
        let counted = after.get(&key).unwrap_or(&0) - before.get(&key).unwrap_or(&0);
        if counted + answered != ATTEMPTS {
            // It went to another level and back meanwhile, or a client tried again.
            eprintln!("level {level}, {class}: {answered} answered, {counted} counted as refused");
            return Ok(None);
        }
    }
    Ok(Some(answered))
}

#[test]
fn each_level_refuses_exactly_its_classes() -> Result<()> {
    let topology = Topology { nodes: 2, backends: 2, ..Topology::for_test("shedding") };
    let scene = Scene::up(&topology, config(&topology))?;
    scene.lab.steer(xtask::lab::VIPS4, &["n1"])?;
    let client = scene.lab.client();
    let open = |class| client.run(|| LongConnections::open(&[target(class, HTTP_PORT)], 4, PATIENCE / 60, PATIENCE))?;
    let (kept, lowest) = (vec![open(0)?, open(1)?, open(2)?], open(3)?);
    for (pace, level) in PACES {
        let flows = xtask::lab::client_addresses(vip4(1).into()).into_iter().take(8);
        let flows = flows.map(|source| (SocketAddr::new(source, 0), target(0, ECHO_PORT))).collect();
        let streaming = client.run(|| Stream { per_second: pace, flows }.start())??;
        let mut answered = None;
        for _ in 0..TRIES {
            let deadline = Instant::now() + PATIENCE;
            while level_of_n1(&scene, "n1")?.0 != level {
                ensure!(
                    Instant::now() < deadline,
                    "{pace} packets/s never came to level {level}: {:?}",
                    level_of_n1(&scene, "n1")?
                );
                std::thread::sleep(Duration::from_millis(50));
            }
            answered = attempts(&scene, level)?;
            if answered.is_some() {
                break;
            }
        }
        let told = wait_until("n2 hears of it in beats", || Ok(level_of_n1(&scene, "n2")?.0 == level));
        let stream = streaming.finish()?;
        told?;
        let Some(answered) = answered else { bail!("n1 never stayed at level {level} for a second or two") };
        let expected: [u64; 4] = std::array::from_fn(|class| if is_refused(class, level) { 0 } else { ATTEMPTS });
        ensure!(answered == expected, "level {level}: {answered:?} of {ATTEMPTS} each were answered, critical first");
        // What servers on a busy machine lose is told, and is not the nodes': they count each packet that they refuse.
        println!("level {level}: {} of {} datagrams were answered", stream.answered, stream.sent);
    }
    wait_until("the level falls with the load", || Ok(level_of_n1(&scene, "n1")?.0 == 0))?;
    ensure!(attempts(&scene, 0)? == Some([ATTEMPTS; 4]), "something is refused, though nothing is to be shed");

    let all = refused(&scene)?;
    let of = |class: &str, reason: &str| {
        let those = all.iter().filter(|((service, why), _)| service.starts_with(class) && why == reason);
        those.map(|(_, count)| count).sum::<u64>()
    };
    ensure!(of("critical", "shed") + of("critical", "shed-established") == 0, "critical was refused: {all:?}");
    ensure!(of("low", "shed-established") > 0, "established flows of the lowest class went on at level 3: {all:?}");
    ensure!(of("high", "shed-established") + of("normal", "shed-established") == 0, "{all:?}");
    for (class, long) in CLASSES.iter().zip(kept) {
        let report = long.finish();
        ensure!(report.broken == 0, "established connections of class {class} broke: {report:#?}");
    }
    ensure!(lowest.finish().broken > 0, "who was refused at level 3 was not told");
    let why = scene.done("n1", &["why", "tcp", "10.77.3.1:40000", &target(3, HTTP_PORT).to_string(), "--syn"])?;
    ensure!(why.contains("packets of class low: shed") && why.contains("verdict      served"), "{why}");
    Ok(())
}

/// What a host can take is learnt from the traffic that it has, and its agent goes by it.
#[test]
fn a_host_learns_what_it_can_take_and_its_agent_goes_by_it() -> Result<()> {
    let topology = Topology { nodes: 1, backends: 2, ..Topology::for_test("capacity") };
    let mut config = config(&topology);
    config.more = "[shedding]\nlevels = [98, 99, 100]\n".into();
    let scene = Scene::up(&topology, config)?;
    let health =
        || -> Result<Value> { Ok(serde_json::from_str(&scene.done("n1", &["get", "health", "-o", "json"])?)?) };
    ensure!(health()?["load"]["capacity"] == 0, "nothing was measured yet");
    let flows = xtask::lab::client_addresses(vip4(1).into()).into_iter().take(8);
    let flows = flows.map(|source| (SocketAddr::new(source, 0), target(0, ECHO_PORT))).collect();
    let streaming = scene.lab.client().run(|| Stream { per_second: 30_000, flows }.start())??;
    // What others do on the machine may leave too little of it, or take too much.
    let (mut learnt, mut says, deadline) = (None, String::new(), Instant::now() + PATIENCE);
    while learnt.is_none() && Instant::now() < deadline {
        let done = scene.run("n1", &["capacity", "--for", "2s", "-o", "json"])?;
        says = crate::scene::words(&done);
        learnt = done.status.success().then(|| serde_json::from_slice::<Value>(&done.stdout)).transpose()?;
    }
    drop(streaming.finish()?);
    if learnt.is_none() && says.contains("the hypervisor gave") {
        println!("inconclusive: {says}");
        return Ok(());
    }
    let learnt = learnt.with_context(|| format!("nothing was learnt: {says}"))?;
    println!("{learnt:#}");
    let number = |name: &str| learnt[name].as_f64().with_context(|| format!("{name} of {learnt}"));
    let (capacity, seen, share) =
        (number("packets_per_second")?, number("seen_per_second")?, number("softirq_percent")?);
    ensure!(seen > 1_000.0 && (5.0..=100.0).contains(&share), "{learnt:#}");
    ensure!((capacity * share / 100.0 / seen - 1.0).abs() < 0.01 && learnt["interfaces"][0] == "eth0", "{learnt:#}");
    ensure!(says.contains("the agent goes by it from now on"), "{says}");
    let now = health()?;
    ensure!(now["load"]["capacity"].as_f64() == Some(capacity) && now["load"]["learnt"] == learnt, "{now:#}");
    ensure!(scene.done("n1", &["get", "health"])?.contains("packets/s, learnt 20"), "when it was learnt is not told");
    scene.lab.process("n1-agent")?.kill()?;
    let mut maps = scene.maps("n1")?;
    let mut node = maps.node.get(&0, 0)?;
    node.shed_level = 3;
    maps.node.set(0, node, 0)?;
    wait_until("the level goes with its agent", || Ok(maps.node.get(&0, 0)?.shed_level == 0))?;
    scene.lab.start_agent("n1")?;
    ensure!(health()?["load"]["capacity"].as_f64() == Some(capacity), "it is forgotten with the agent");
    Ok(())
}
