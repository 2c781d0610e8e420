//! Floods of SYN, of ACK and of UDP from everywhere, ten times what users send and more: established connections live, and
//! new ones succeed. Frames are put on the client's wire as they are, from sources that nobody has.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use redirector::dataplane::flows::now;
use redirector_ebpf::reason::Reason;
use suite::packet::{tcp_between, udp_between};
use xtask::lab::{Ports, Role, Service, Topology, Vip, vip4};
use xtask::traffic::{ECHO_PORT, HTTP_PORT, Load, LongConnections, Stream, StreamReport, Streaming};

use crate::scene::{PATIENCE, Scene, every_kind, targets};

/// New connections a second of users, and packets that each takes, a few more or less.
const USERS: u32 = 100;
const PACKETS: u32 = 8;
/// Frames a second of a flood.
const FLOOD: u32 = 12 * USERS * PACKETS;
const LASTS: Duration = Duration::from_secs(4);
/// Sources of a flood; more flows than an eighth of the flow table holds.
const SOURCES: u32 = 12_000;
/// How often a packet of the ACK flood is repeated, and how many of its flows come before it is.
const REPEATED: u32 = 3;
const BETWEEN: u32 = 1_000;
/// Datagrams a second of users' established flows, and of new ones, and how many flows these are.
const DATAGRAMS: u32 = 200;
const FLOWS: usize = 40;
/// New flows a second that a source prefix is let in at each node.
const PER_SOURCE: u32 = 1_000;
/// Users' own flows and what of the floods before counts, in per cent of a flow table; the flood of ACKs has twice as many.
const FILL_MAX: u64 = 5;
/// A port that nobody listens at.
const DISCARD: u16 = 9;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Syn,
    Ack,
    Udp,
    /// SYN from a single prefix.
    OnePrefix,
}

fn frames(kind: Kind, nodes: u8) -> Vec<Vec<u8>> {
    let source = |number: u32| match kind {
        // RFC 2544's addresses for benchmarks: nobody in the lab has a route there.
        Kind::OnePrefix => SocketAddr::from((Ipv4Addr::from(0xc612_0100 | number & 0xff), 1024 + (number >> 8) as u16)),
        _ => SocketAddr::from((
            Ipv4Addr::from(0xc612_0000 | number.wrapping_mul(40_503) & 0x1_ffff),
            1024 + (number % 60_000) as u16,
        )),
    };
    let frame = |number: u32| {
        let (node, owned) = (1 + (number % u32::from(nodes)) as u8, vip4(2));
        let packet = match kind {
            Kind::Syn | Kind::OnePrefix => tcp_between(source(number), (owned, HTTP_PORT).into()).syn(),
            Kind::Ack => tcp_between(source(number), (owned, HTTP_PORT).into()),
            Kind::Udp => udp_between(source(number), (vip4(9), DISCARD).into()),
        };
        packet.to(Role::Node(node).mac_bytes()).from(Role::Client.mac_bytes()).bytes()
    };
    match kind {
        // Else each flow's packets might come over a longer time than a connection must last to count.
        Kind::Ack => {
            let rounds = (0..SOURCES).step_by(BETWEEN as usize).flat_map(|first| (0..REPEATED).map(move |_| first));
            // Not the flows that the flood of SYNs has opened: an ACK after a SYN is a connection.
            rounds.flat_map(|first| first..first + BETWEEN).map(|number| frame(SOURCES + number)).collect()
        }
        _ => (0..SOURCES).map(frame).collect(),
    }
}

/// Flows that count at a node, of a hundred that would fill its table.
fn fill(scene: &Scene, node: &str) -> Result<u64> {
    let maps = scene.maps(node)?;
    let (proven, places) = maps.flows.proven(0, 1, &maps.node.get(&0, 0)?.idle, now());
    Ok(proven * 100 / places)
}

/// Users' datagrams were answered, all flows', and by one backend each.
fn is_well(says: &str, stream: &StreamReport) -> Result<()> {
    println!("{says}: {} of {} datagrams of {FLOWS} flows were answered", stream.answered, stream.sent);
    let silent = stream.flows.iter().filter(|flow| flow.answered == 0).count();
    ensure!(stream.answered * 100 >= stream.sent * 99 && silent == 0 && stream.moved == 0, "{says}: {stream:#?}");
    Ok(())
}

/// Sends frames by the interface of this thread's namespace, again and again, at the flood's pace; says how many.
fn flood(frames: &[Vec<u8>]) -> Result<u64> {
    // SAFETY: integers in; the descriptor is checked and owned from here on.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        ensure!(fd >= 0, "a packet socket: {}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: a name that is ended by a zero.
    let index = unsafe { libc::if_nametoindex(c"eth0".as_ptr()) };
    ensure!(index != 0, "the client has no eth0");
    // SAFETY: a structure of integers, of which zero is a value.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    (to.sll_family, to.sll_ifindex, to.sll_halen) = (libc::AF_PACKET as u16, index as i32, 6);
    let (begun, mut sent) = (Instant::now(), 0u64);
    while begun.elapsed() < LASTS {
        let due = (begun.elapsed().as_secs_f64() * f64::from(FLOOD)) as u64;
        for number in sent..due {
            let frame = &frames[number as usize % frames.len()];
            // SAFETY: a frame and an address of the lengths that are told.
            let gone = unsafe {
                libc::sendto(
                    socket.as_raw_fd(),
                    frame.as_ptr().cast(),
                    frame.len(),
                    0,
                    (&raw const to).cast(),
                    size_of::<libc::sockaddr_ll>() as libc::socklen_t,
                )
            };
            ensure!(gone == frame.len() as isize, "a frame was not sent: {}", std::io::Error::last_os_error());
        }
        sent = due;
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(sent)
}

#[test]
fn floods_break_no_connection_and_keep_nobody_out() -> Result<()> {
    let topology = Topology::for_test("floods");
    let mut config = every_kind(&topology, &["l2"]);
    let (web, echo) = (targets(&config, HTTP_PORT), targets(&config, ECHO_PORT));
    config.vip.push(Vip::new(vip4(9).into()));
    config.service.push(Service {
        name: "discard".into(),
        vip: vip4(9).to_string(),
        protocol: "udp".into(),
        ports: Ports::One(DISCARD),
        class: "normal".into(),
        affinity: "owned".into(),
        pool: "l2-owned-v4".into(),
    });
    config.more = format!("[limits]\nnew_flows_per_source = {PER_SOURCE}\n[shedding]\nsoftirq = false\n");
    let scene = Scene::up(&topology, config)?;
    ensure!(web.contains(&(vip4(2), HTTP_PORT).into()), "the flooded service is one of the users'");
    let client = scene.lab.client();
    let long = client.run(|| LongConnections::open(&web, 60, Duration::from_millis(50), PATIENCE))??;
    let datagrams = || client.run(|| Stream::new(DATAGRAMS, &echo, FLOWS).start())?;
    let established = datagrams()?;
    for kind in [Kind::Syn, Kind::Ack, Kind::Udp, Kind::OnePrefix] {
        let frames = frames(kind, topology.nodes);
        let users = Load::new(web.clone(), USERS, LASTS);
        let (sent, users, new) = std::thread::scope(|scope| {
            let flood = scope.spawn(|| client.run(|| flood(&frames)));
            let new = datagrams();
            let users = client.run(|| users.run());
            (flood.join(), users, new.and_then(Streaming::finish))
        });
        let sent = sent.unwrap_or_else(|panic| std::panic::resume_unwind(panic))??;
        let users = users?;
        println!(
            "{kind:?}: {sent} frames beside {} connections, {} of them answered, p99 {} us",
            users.sent, users.ok, users.p99_us
        );
        ensure!(sent >= 10 * u64::from(PACKETS) * users.sent, "{kind:?}: a flood of {sent} frames was none");
        ensure!(users.ok * 100 >= users.sent * 99 && users.sent > 0, "{kind:?}: {users:#?}");
        is_well(&format!("{kind:?}, new"), &new?)?;
        for node in scene.lab.nodes() {
            let (fill, level) = (fill(&scene, &node)?, scene.maps(&node)?.node.get(&0, 0)?.shed_level);
            println!("{kind:?}: {node}'s flow table is full to {fill} %, its shed level {level}");
            ensure!(level == 0, "{kind:?}: {node} sheds at level {level}");
            ensure!(kind != Kind::Ack || fill <= FILL_MAX, "a flood of ACKs fills {fill} % of {node}'s flow table");
        }
    }
    is_well("established", &established.finish()?)?;
    let long = long.finish();
    ensure!(long.broken == 0 && long.opened == 60, "{long:#?}");
    let counted = |reason| scene.lab.nodes().iter().map(|node| scene.count(node, reason)).sum::<Result<u64>>();
    ensure!(counted(Reason::SourceBudget)? > 0, "a flood from one prefix met no limit");
    ensure!(counted(Reason::NoteEvicted)? > 0, "the floods did not fill a single bucket");
    let stats = scene.done("n1", &["get", "stats"])?;
    let line = stats.lines().find(|line| line.contains("source-budget") && line.contains("normal"));
    line.with_context(|| format!("what was refused is not told: {stats}"))?;
    Ok(())
}
