//! Faults do what they say, in either fabric, and heal.

use std::fs::File;
use std::io::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xtask::lab::{Cut, Fabric, Lab, Role, Spoil, Topology};
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

/// How long it takes to have bytes on a disk, more than may become free behind a full one.
fn write(lab: &Lab, node: &str, name: &str) -> std::io::Result<Duration> {
    let (path, began) = (lab.config_file(node).with_file_name("data").join(name), Instant::now());
    let mut file = File::create(path)?;
    file.write_all(&vec![7; 1 << 20])?;
    file.sync_all()?;
    Ok(began.elapsed())
}

#[test]
fn a_disk_answers_no_more_or_is_full_until_healed() -> Result<()> {
    let lab = Lab::up(&Topology { nodes: 2, backends: 0, ..Topology::for_test("disk") })?;
    let without = lab.freeze("n1").err().context("a disk that is not there was frozen")?;
    ensure!(without.to_string().contains("bring the lab up with --disks"), "{without:#}");
    lab.give_disk("n1")?;
    ensure!(lab.give_disk("n1").is_err(), "it has two disks");
    write(&lab, "n1", "first")?;

    lab.freeze("n1")?;
    thread::scope(|scope| -> Result<()> {
        let writes = scope.spawn(|| write(&lab, "n1", "frozen"));
        thread::sleep(TIMEOUT);
        let waits = !writes.is_finished();
        lab.heal()?;
        let took = writes.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))?;
        ensure!(waits && took >= TIMEOUT, "a frozen disk answered after {took:?}");
        Ok(())
    })?;
    lab.fill("n1")?;
    let full = write(&lab, "n1", "full").err().context("a full disk took bytes")?;
    ensure!(full.kind() == std::io::ErrorKind::StorageFull, "{full}");
    lab.heal()?;
    write(&lab, "n1", "healed").context("it has no room after it was healed")?;
    // One that is frozen is no obstacle to the lab's end.
    lab.freeze("n1")?;
    let (directory, name) = (lab.directory().to_owned(), lab.topology().name.clone());
    lab.down()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!directory.exists() && !mounts.contains(&name), "a disk is left");
    Ok(())
}

#[test]
fn programs_keep_processors_busy_until_healed() -> Result<()> {
    let lab = Lab::up(&Topology { nodes: 2, backends: 0, ..Topology::for_test("busy") })?;
    lab.busy("n1", 2)?;
    let busy = lab.busy_on("n1")?;
    ensure!(busy.len() == 2 && lab.busy_on("n2")?.is_empty(), "{busy:?}");
    let used = || -> Result<u64> {
        let of = |process: &xtask::lab::Process| -> Result<u64> {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid))?;
            let fields = stat.rsplit_once(") ").context("a process's state")?.1;
            Ok(fields.split(' ').nth(11).context("its time")?.parse()?)
        };
        busy.iter().map(of).sum()
    };
    let (before, deadline) = (used()?, Instant::now() + PATIENCE);
    while used()? < before + 20 {
        ensure!(Instant::now() < deadline, "they take no time of a processor");
        thread::sleep(Duration::from_millis(20));
    }
    for process in &busy {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.pid))?;
        ensure!(limits.contains("Max cpu time              600"), "they would go on forever: {limits}");
        let home = std::fs::read_link(format!("/proc/{}/ns/net", process.pid))?;
        ensure!(home == lab.host("n1")?.run(|| std::fs::read_link("/proc/thread-self/ns/net"))??, "they run elsewhere");
    }
    lab.busy("n1", 1)?;
    ensure!(lab.busy_on("n1")?.len() == 1, "others are in their place");
    lab.heal()?;
    ensure!(lab.busy_on("n1")?.is_empty() && lab.processes()?.is_empty(), "they go on");
    Ok(())
}

/// Where the kernel can delay frames, it does so for the host that is named; elsewhere that is said.
#[test]
fn frames_are_late_until_healed_where_the_kernel_can_do_that() -> Result<()> {
    let late = Duration::from_millis(200);
    for (fabric, name) in BOTH {
        let (lab, _servers) = echoing(fabric, &format!("late{name}"))?;
        let trip = |to: u8| -> Result<Duration> {
            let end = SocketAddr::new(Role::Node(to).v4().into(), ECHO_PORT);
            let ask = || ask(end, None, b"late?", PATIENCE).map(drop);
            lab.client().run(|| -> Result<Duration> {
                // Once for the neighbour, then for the time.
                ask()?;
                let began = Instant::now();
                ask().map(|()| began.elapsed())
            })?
        };
        match lab.spoil(&"n1".parse().map_err(anyhow::Error::msg)?, Spoil::Delay(late.as_millis() as u32)) {
            Ok(()) => {
                ensure!(trip(1)? >= late, "what n1 gets is not late");
                ensure!(trip(1)? > trip(2)? + late / 2, "n1 is no later than n2");
                lab.heal()?;
                ensure!(trip(1)? < late, "it is late after it was healed");
            }
            Err(error) => {
                let says = format!("{error:#}");
                ensure!(says.contains("no netem") && says.contains("modprobe sch_netem"), "{says}");
                ensure!(trip(1)? < late, "something was done all the same");
            }
        }
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
    refused(lab.busy("c1", 1), "`c1` is not a node")?;
    refused(lab.busy("n1", 0), "from 1 to 64")?;
    refused(lab.fill("b1"), "`b1` is not a node")?;
    refused(lab.thaw("n1"), "--disks")?;
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
