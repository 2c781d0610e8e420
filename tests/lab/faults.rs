//! Faults do what they say, in either fabric, and heal.

use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xtask::lab::{Cut, Fabric, Lab, Role, Topology};
use xtask::traffic::{ECHO_PORT, Server, Stream, ask};

const TIMEOUT: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(20);
const BOTH: [(Fabric, &str); 2] = [(Fabric::Switched, "s"), (Fabric::Routed, "r")];

/// A lab of nodes that echo in place of redirectors.
fn echoing(fabric: Fabric, name: &str) -> Result<(Lab, Vec<Server>)> {
    let lab = Lab::up(&Topology { fabric, backends: 0, ..Topology::for_test(name) })?;
    let servers = lab.nodes().iter().map(|node| lab.host(node)?.run(|| Server::start(node))?).collect::<Result<_>>()?;
    Ok((lab, servers))
}

/// Which of a node's addresses, of either family, answer a host.
fn answers(lab: &Lab, from: &str, to: u8) -> Result<[bool; 2]> {
    let ends = Role::Node(to).addresses().map(|address| SocketAddr::new(address, ECHO_PORT));
    lab.host(from)?.run(|| ends.map(|end| ask(end, None, b"there?", TIMEOUT).is_ok()))
}

/// Whether both addresses answer, in time: neighbours that were asked for in vain are asked for again only after a while.
fn reaches(lab: &Lab, from: &str, to: u8) -> Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    while answers(lab, from, to)? != [true; 2] {
        if Instant::now() > deadline {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_cut_off(lab: &Lab, from: &str, to: u8) -> Result<bool> {
    Ok(answers(lab, from, to)? == [false; 2])
}

#[test]
fn a_dead_node_is_silent_until_healed_and_its_carrier_stays() -> Result<()> {
    for (fabric, name) in BOTH {
        let (lab, _servers) = echoing(fabric, &format!("dead{name}"))?;
        let mut sleep = lab.host("n1")?.command("sleep");
        sleep.arg("600");
        let process = lab.spawn("n1", "sleeper", sleep)?;
        ensure!(reaches(&lab, "c1", 1)?, "n1 did not answer when it lived");
        lab.kill("n1")?;
        ensure!(is_cut_off(&lab, "c1", 1)?, "n1 answered when dead");
        ensure!(is_cut_off(&lab, "n1", 2)?, "n1 got answers when dead");
        ensure!(reaches(&lab, "c1", 2)?, "n2 died too");
        ensure!(!process.alive(), "a process outlived its host");
        let link = lab.host("n2")?.command("ip").args(["-o", "link", "show", "eth0"]).output()?;
        ensure!(String::from_utf8(link.stdout)?.contains("LOWER_UP"), "its carrier is gone");
        let twice = lab.kill("n1").err().context("it died twice")?;
        ensure!(twice.to_string().contains("lab heal"), "no way out is named: {twice:#}");
        lab.heal()?;
        ensure!(reaches(&lab, "c1", 1)? && reaches(&lab, "n1", 2)?, "n1 is not back");
    }
    Ok(())
}

#[test]
fn cables_are_pulled_and_plugged() -> Result<()> {
    for (fabric, name) in BOTH {
        let (lab, _servers) = echoing(fabric, &format!("cable{name}"))?;
        lab.unplug("n1")?;
        let link = lab.host("n1")?.command("ip").args(["-o", "link", "show", "eth0"]).output()?;
        ensure!(String::from_utf8(link.stdout)?.contains("NO-CARRIER"), "n1 has its carrier still");
        ensure!(is_cut_off(&lab, "c1", 1)? && reaches(&lab, "c1", 2)?, "not n1 alone was unplugged");
        lab.plug("n1")?;
        ensure!(reaches(&lab, "c1", 1)?, "n1 is not plugged in");
        lab.unplug("n2")?;
        lab.heal()?;
        ensure!(reaches(&lab, "c1", 2)?, "n2 is not healed");
    }
    Ok(())
}

#[test]
fn partitions_cut_between_their_groups_alone() -> Result<()> {
    for (fabric, name) in BOTH {
        let (lab, _servers) = echoing(fabric, &format!("part{name}"))?;
        lab.partition(&["n1", "c1"], &["n2"], Cut::BothWays)?;
        for (from, to) in [("c1", 2), ("n1", 2), ("n2", 1)] {
            ensure!(is_cut_off(&lab, from, to)?, "n{to} answers {from}");
        }
        for (from, to) in [("c1", 1), ("c1", 3), ("n2", 3), ("n3", 1), ("n3", 2)] {
            ensure!(reaches(&lab, from, to)?, "n{to} does not answer {from}");
        }
        lab.heal()?;
        ensure!(reaches(&lab, "c1", 2)? && reaches(&lab, "n2", 1)?, "the partition stays");
    }
    Ok(())
}

#[test]
fn a_cut_may_be_one_way() -> Result<()> {
    for (fabric, name) in BOTH {
        let (lab, _servers) = echoing(fabric, &format!("oneway{name}"))?;
        let socket = |host: &str, role: Role| -> Result<UdpSocket> {
            Ok(lab.host(host)?.run(|| UdpSocket::bind((role.v4(), 9)))??)
        };
        let (client, node) = (socket("c1", Role::Client)?, socket("n1", Role::Node(1))?);
        let sends = |from: &UdpSocket, to: &UdpSocket, patience: Duration| -> Result<bool> {
            to.set_read_timeout(Some(patience))?;
            from.send_to(b"x", to.local_addr()?)?;
            Ok(to.recv(&mut [0]).is_ok())
        };
        // So each knows the other's MAC address.
        ensure!(sends(&client, &node, PATIENCE)? && sends(&node, &client, PATIENCE)?, "no cut was made yet");
        lab.partition(&["c1"], &["n1"], Cut::OneWay)?;
        ensure!(!sends(&client, &node, TIMEOUT)?, "n1 hears c1");
        ensure!(sends(&node, &client, PATIENCE)?, "c1 does not hear n1");
    }
    Ok(())
}

#[test]
fn faults_of_hosts_that_are_not_there_are_refused() -> Result<()> {
    let (lab, _servers) = echoing(Fabric::Switched, "nofault")?;
    let refused = |done: Result<()>, names: &str| -> Result<()> {
        let error = done.err().with_context(|| format!("no mistake was found: {names}"))?.to_string();
        ensure!(error.contains(names), "{error}");
        Ok(())
    };
    refused(lab.kill("n9").map(drop), "`n9` is not a node")?;
    refused(lab.kill("c1").map(drop), "n1, n2, n3")?;
    refused(lab.pause("n1"), "n1-agent")?;
    refused(lab.kill_agent("b1").map(drop), "`b1` is not a node")?;
    refused(lab.unplug("b1").map(drop), "no host `b1`")?;
    refused(lab.plug("bridge"), "joins the hosts")?;
    refused(lab.partition(&["n1"], &["n1", "n2"], Cut::OneWay), "n1 is in both")?;
    refused(lab.partition(&[], &["n2"], Cut::OneWay), "two groups")?;
    refused(lab.partition(&["n1"], &["x"], Cut::OneWay), "no host `x`")?;
    ensure!(reaches(&lab, "c1", 1)?, "something was done all the same");
    Ok(())
}

#[test]
fn a_stream_tells_what_it_lost_and_for_how_long() -> Result<()> {
    let (lab, _servers) = echoing(Fabric::Switched, "stream")?;
    let targets: Vec<SocketAddr> = (1..=2).map(|node| (Role::Node(node).v4(), ECHO_PORT).into()).collect();
    let stream = Stream::new(1000, &targets, 4);
    let streaming = lab.client().run(|| stream.start())??;
    thread::sleep(Duration::from_millis(500));
    let report = streaming.finish()?;
    ensure!(report.sent >= 400 && report.lost == 0 && report.answered == report.sent, "{report:#?}");
    ensure!((report.wrong, report.duplicated, report.reordered, report.moved) == (0, 0, 0, 0), "{report:#?}");

    let outage = Duration::from_millis(400);
    let streaming = lab.client().run(|| stream.start())??;
    thread::sleep(Duration::from_millis(200));
    lab.unplug("n1")?;
    thread::sleep(outage);
    ensure!(streaming.silence() >= outage, "the silence of n1 is not heard");
    lab.plug("n1")?;
    thread::sleep(Duration::from_millis(500));
    let report = streaming.finish()?;
    for flow in &report.flows {
        let cut = flow.target == targets[0];
        ensure!(cut == (Duration::from_micros(flow.gap_max_us) >= outage), "{flow:#?}");
        ensure!(cut == (flow.lost >= 90), "{flow:#?}");
    }
    ensure!(report.gap_max_us >= 400_000 && report.lost == report.sent - report.answered, "{report:#?}");
    Ok(())
}
